"""`cdcca keygen`, `sign` and `trust`, and `apply` with keys, as a user runs them."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cdcca_cli.downlink import keys as key_files
from cdcca_cli.formats.device import Device
from cdcca_cli.main import main
from tests.downlink import worlds

Capture = pytest.CaptureFixture[str]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def keys(tmp_path: Path) -> list[Path]:
    """Three private keys; the public ones lie beside them."""
    made = [tmp_path / name for name in ("ann", "bob", "cleo")]
    for key in made:
        assert run("keygen", key, "--quiet") == 0
    return made


def public(key: Path) -> Path:
    return key.with_name(f"{key.name}.pub")


def folder(path: Path, keys: list[Path], threshold: int = 1) -> Path:
    """A device folder as `init --trust` makes it, without the model."""
    trust = key_files.first_trust([public(key) for key in keys], threshold if keys else None)
    Device.create(path, worlds.SETTINGS, worlds.overlay(), trust=trust)
    return path


@pytest.fixture
def update(tmp_path: Path) -> Path:
    """Unsigned."""
    path = tmp_path / "update.cdcca"
    device = worlds.device(tmp_path / "mirror")
    path.write_bytes(worlds.file_of(worlds.next_update(device)))
    return path


class TestKeygen:
    def test_a_pair(self, tmp_path: Path, capfd: Capture) -> None:
        assert run("keygen", tmp_path / "k", "--comment", "fleet 7", "--json", "--quiet") == 0
        out, err = capfd.readouterr()
        found = json.loads(out)
        assert err == "" and found["key"] == key_files.read_private_key(tmp_path / "k").public
        assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600
        assert (tmp_path / "k.pub").read_text().endswith(" fleet 7\n")

    def test_an_existing_key_is_kept(self, keys: list[Path], capfd: Capture) -> None:
        before = keys[0].read_bytes()
        assert run("keygen", keys[0]) == 73
        assert "keys are never replaced" in capfd.readouterr().err
        assert keys[0].read_bytes() == before

    def test_no_folder(self, tmp_path: Path, capfd: Capture) -> None:
        assert run("keygen", tmp_path / "none" / "k") == 73
        assert capfd.readouterr().err.count("\n") == 1


class TestApply:
    def test_one_signs_after_the_other(
        self, tmp_path: Path, keys: list[Path], update: Path, capfd: Capture
    ) -> None:
        device = folder(tmp_path / "device", keys, threshold=2)
        before = worlds.bytes_of(Device.open(device))
        assert run("apply", device, update) == 77
        assert run("sign", update, "--key", keys[0], "-o", update) == 0
        assert run("apply", device, update) == 77
        assert "signed by 1 of 3 trusted keys, 2 must sign" in capfd.readouterr().err
        assert worlds.bytes_of(Device.open(device)) == before
        assert run("sign", update, "--key", keys[2], "-o", update) == 0
        assert run("apply", device, update, "--dry-run") == 0
        assert run("apply", device, update) == 0
        assert len(Device.open(device).current.signed_by) == 2
        assert run("apply", device, update) == 0
        assert "already applied" in capfd.readouterr().err

    def test_unsigned_by_an_explicit_flag_alone(
        self, tmp_path: Path, keys: list[Path], update: Path, capfd: Capture
    ) -> None:
        device = folder(tmp_path / "device", keys[:1])
        assert run("apply", device, update, "--unsigned") == 0
        assert run("inspect", device) == 0
        found = json.loads(capfd.readouterr().out)
        assert found["signed_by"] == [] and found["trust"]["threshold"] == 1
        assert run("apply", device, "--rollback", "--unsigned") == 2

    def test_keys_are_in_an_environment_variable_for_cron(
        self, tmp_path: Path, keys: list[Path], update: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        device = folder(tmp_path / "device", keys[:1])
        monkeypatch.setenv("CDCCA_SIGN", str(keys[0]))
        assert run("sign", update, "-o", update) == 0
        assert run("apply", device, update) == 0

    def test_a_device_that_trusts_no_key_loads_no_cryptography(
        self, tmp_path: Path, keys: list[Path], update: Path
    ) -> None:
        program = (
            "import sys; from cdcca_cli.main import main; code = main(sys.argv[1:]);"
            "sys.exit(code or (10 if 'cryptography' in sys.modules else 11))"
        )
        for trusted, code in (([], 11), (keys[:1], 10)):
            device = folder(tmp_path / f"device{code}", trusted)
            assert run("sign", update, "--key", keys[0], "-o", update) == 0
            command = [sys.executable, "-c", program, "apply", str(device), str(update)]
            assert subprocess.run(command).returncode == code

    def test_through_a_pipe(self, tmp_path: Path, keys: list[Path], update: Path) -> None:
        device = folder(tmp_path / "device", keys[:1])
        shell = '"$0" -m cdcca_cli sign --key "$1" < "$2" | "$0" -m cdcca_cli apply "$3"'
        command = ["bash", "-o", "pipefail", "-c", shell, sys.executable, keys[0], update, device]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert Device.open(device).sequence == 1


class TestSign:
    @pytest.mark.parametrize(
        ("options", "code", "words"),
        [
            ([], 2, "no key to sign with"),
            (["--key", "absent"], 66, "absent"),
            (["--key", "ann.pub"], 2, "is a public key"),
            (["--key", "update.cdcca"], 65, "not a private key"),
        ],
    )
    def test_keys_that_cannot_sign(
        self,
        tmp_path: Path,
        keys: list[Path],
        update: Path,
        capfd: Capture,
        options: list[str],
        code: int,
        words: str,
    ) -> None:
        named = [tmp_path / word if index % 2 else word for index, word in enumerate(options)]
        assert run("sign", update, *named, "-o", tmp_path / "out") == code
        err = capfd.readouterr().err
        assert words in err and err.count("\n") == 1
        assert not (tmp_path / "out").exists()

    def test_what_cannot_be_signed(self, tmp_path: Path, keys: list[Path], capfd: Capture) -> None:
        overlay = next((worlds.device(tmp_path / "device").path / "overlay").iterdir())
        assert run("sign", overlay, "--key", keys[0], "-o", tmp_path / "out") == 65
        expected = "expected an update, a trust list or a codebook, found an overlay"
        assert expected in capfd.readouterr().err


class TestTrust:
    def test_a_key_is_taken_out_and_another_put_in(
        self, tmp_path: Path, keys: list[Path], update: Path, capfd: Capture
    ) -> None:
        ann, bob, cleo = keys
        device = folder(tmp_path / "device", [ann, bob], threshold=2)
        made = tmp_path / "2.trust"
        new = ["--key", public(bob), "--key", public(cleo), "--threshold", 2]
        assert run("trust", *new, "--after", device, "--sign", bob, "-o", made) == 0
        error = capfd.readouterr().err
        assert "has 1 of 2 signatures by the keys trusted before" in error
        assert "has 1 of 2 signatures by its own keys: add the missing ones" in error
        assert run("apply", device, made) == 77
        assert run("sign", made, "--key", ann, "--key", cleo, "-o", made) == 0
        capfd.readouterr()
        assert run("apply", device, made, "--json") == 0
        out, err = capfd.readouterr()
        assert json.loads(out)["trust"]["version"] == 2
        assert "applied: trust list 2, 2 of 2 keys must sign" in err
        assert run("sign", update, "--key", ann, "--key", bob, "-o", update) == 0
        assert run("apply", device, update) == 77
        assert run("sign", update, "--key", cleo, "-o", update) == 0
        assert run("apply", device, update) == 0

    def test_a_device_that_was_made_without_keys(
        self, tmp_path: Path, keys: list[Path], update: Path, capfd: Capture
    ) -> None:
        device, made = folder(tmp_path / "device", []), tmp_path / "1.trust"
        arguments = ["--key", public(keys[0]), "--sign", keys[0], "-o", made]
        assert run("trust", *arguments, "--after", device) == 0
        assert run("apply", device, made) == 77
        assert "if you trust it" in capfd.readouterr().err
        assert run("apply", device, made, "--unsigned") == 0
        assert run("apply", device, update) == 77

    def test_a_device_that_is_made_after_a_rotation_goes_on_from_its_list(
        self, tmp_path: Path, keys: list[Path], capfd: Capture
    ) -> None:
        """With the bare keys it would be at version 1, and take no list that follows."""
        ann, bob, cleo = keys
        old = folder(tmp_path / "old", [ann])
        second, third = tmp_path / "2.trust", tmp_path / "3.trust"
        assert run("trust", "--key", public(bob), "--after", old, "--sign", ann, "-o", second) == 0
        assert run("init", tmp_path / "new", "--trust", second) == 77
        assert (
            "has 0 of 1 signature by its own keys: add the missing ones with cdcca sign"
            in capfd.readouterr().err
        )
        assert run("sign", second, "--key", bob, "-o", second) == 0
        for wrong in (["--trust", public(ann)], ["--threshold", 1]):
            assert run("init", tmp_path / "new", "--trust", second, *wrong) == 2
        trust = key_files.first_trust([second], None)
        new = Device.create(tmp_path / "new", worlds.SETTINGS, worlds.overlay(), trust=trust).path
        arguments = ["--key", public(cleo), "--after", second, "--sign", bob, "--sign", cleo]
        assert run("trust", *arguments, "-o", third) == 0
        assert run("apply", new, third) == 0
        assert run("apply", old, third) == 78
        assert run("apply", old, second) == run("apply", old, third) == 0
        assert Device.open(old).trust == Device.open(new).trust

    @pytest.mark.parametrize(
        ("names", "threshold", "words"),
        [(["ann", "ann"], 1, "given twice"), (["ann"], 2, "the number of keys")],
    )
    def test_lists_that_cannot_be(
        self,
        tmp_path: Path,
        keys: list[Path],
        capfd: Capture,
        names: list[str],
        threshold: int,
        words: str,
    ) -> None:
        named = [word for name in names for word in ("--key", tmp_path / f"{name}.pub")]
        arguments = [*named, "--threshold", threshold, "-o", tmp_path / "out"]
        assert run("trust", *arguments) == 2
        assert words in capfd.readouterr().err
        assert not (tmp_path / "out").exists()
