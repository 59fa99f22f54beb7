"""`cdcca compress` and `cdcca apply` as a user runs them: files, pipes, exit codes, faults."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cdcca_cli.downlink import keys as key_files
from cdcca_cli.downlink import signatures
from cdcca_cli.formats.adaptation import write_adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.update import read_update
from cdcca_cli.main import main
from tests.downlink import worlds

CDCCA = [sys.executable, "-m", "cdcca_cli"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def device(tmp_path: Path) -> Path:
    return worlds.device(tmp_path / "device").path


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    return worlds.device(tmp_path / "mirror").path


@pytest.fixture
def adaptation(tmp_path: Path, mirror: Path) -> Path:
    return written(tmp_path / "adaptation.safetensors", Device.open(mirror))


@pytest.fixture
def update(tmp_path: Path, mirror: Path, adaptation: Path) -> Path:
    path = tmp_path / "update.cdcca"
    assert run("compress", adaptation, "--base", mirror, "-o", path) == 0
    return path


def written(path: Path, base: Device, seed: int = 1) -> Path:
    """The file that distill would have written."""
    with path.open("wb") as out:
        write_adaptation(out, worlds.adaptation(worlds.learnt(base.read_overlay(), seed), base))
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def state(path: Path) -> tuple[int, str]:
    folder = Device.open(path)
    folder.read_overlay()
    return folder.sequence, folder.digest


class TestTogether:
    def test_through_files(
        self, device: Path, mirror: Path, adaptation: Path, tmp_path: Path, capfd: Capture
    ) -> None:
        before, update = state(device), tmp_path / "update.cdcca"
        assert run("compress", adaptation, "--base", mirror, "-o", update) == 0
        for folder in (device, mirror):
            assert run("apply", folder, update) == 0
        assert state(device) == state(mirror) != before
        out, err = capfd.readouterr()
        assert out == ""
        assert "update 1: " in err and "applied: sequence 1, sha256:" in err

    def test_through_a_pipe_it_is_the_same(
        self, device: Path, mirror: Path, adaptation: Path, update: Path
    ) -> None:
        assert run("apply", mirror, update) == 0
        shell = '"$0" -m cdcca_cli compress - --base "$2" < "$1" | "$0" -m cdcca_cli apply "$3"'
        base = worlds.device(mirror.parent / "base").path
        command = ["bash", "-o", "pipefail", "-c", shell, sys.executable, adaptation, base, device]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert state(device) == state(mirror)

    def test_the_same_bytes_whichever_way(
        self, mirror: Path, adaptation: Path, update: Path
    ) -> None:
        with adaptation.open("rb") as source:
            done = subprocess.run(
                [*CDCCA, "compress", "--base", mirror], stdin=source, capture_output=True
            )
        assert done.returncode == 0
        assert done.stdout == update.read_bytes()

    def test_an_update_in_zstd_is_read(self, device: Path, update: Path, tmp_path: Path) -> None:
        import zstandard

        packed = tmp_path / "update.cdcca.zst"
        packed.write_bytes(zstandard.ZstdCompressor().compress(update.read_bytes()))
        assert run("apply", device, packed) == 0


class TestCompress:
    def test_a_budget_in_words(self, mirror: Path, adaptation: Path, tmp_path: Path) -> None:
        out = tmp_path / "small.cdcca"
        for budget, most in (("0.9KB", 900), ("1KiB", 1024), ("950", 950)):
            assert run("compress", adaptation, "--base", mirror, "--budget", budget, "-o", out) == 0
            assert most - 200 < out.stat().st_size <= most
        assert run("compress", adaptation, "--base", mirror, "--bits", "8", "-o", out) == 0
        assert 900 < out.stat().st_size <= 918

    def test_groups(self, mirror: Path, adaptation: Path, tmp_path: Path, capfd: Capture) -> None:
        out = tmp_path / "some.cdcca"
        lora = 4 * 48 + 96 * 4
        rest = 96 + 40 + 40 + 1 + 165
        for options, sent in (
            (["--select", "norm,bias,query"], rest),
            (["--select", "lora"], lora),
            (["--select", "query,bias"], 165 + 96),
            ([], lora + rest),
        ):
            assert run("compress", adaptation, "--base", mirror, "-o", out, *options) == 0
            assert f"for {sent} of {lora + rest} parameters" in capfd.readouterr().err

    @pytest.mark.parametrize(
        ("options", "code", "reason"),
        [
            (["--budget", "10"], 2, "a budget of 10 bytes is too small to send any change: give"),
            (["--budget", "much"], 2, "--budget much: expected bytes"),
            (["--select", "weights"], 2, "weights: expected one of norm, bias, query, lora"),
            (["--max-error", "2"], 2, "expected more than 0, less than 1"),
            (["--max-error", "1e-7"], 2, "cannot be reached"),
            (["--bits", "0"], 2, "0.0: expected more than 0, at most 32"),
            (["--bits", "2", "--budget", "1KB"], 2, "exclude each other: give one"),
            (["--max-loss", "2%"], 2, "no held-out frames: distil with a share held out"),
            (["--max-loss", "much"], 2, "--max-loss much: expected a share"),
            (["--codec", "gzip"], 2, "expected one of usq, nf4"),
            (["--codec", "sign", "--bits", "2"], 2, "neither a budget nor a limit"),
            (["--expires", "soon"], 2, "soon: expected a span like 30d"),
            (["--since", "3"], 66, "sequence 3"),
            (["--sign", "/nowhere/key"], 66, "/nowhere/key"),
        ],
    )
    def test_options_that_cannot_be(
        self,
        mirror: Path,
        adaptation: Path,
        tmp_path: Path,
        capfd: Capture,
        options: list[str],
        code: int,
        reason: str,
    ) -> None:
        out = tmp_path / "none.cdcca"
        assert run("compress", adaptation, "--base", mirror, "-o", out, *options) == code
        assert reason in capfd.readouterr().err
        assert not out.exists()

    def test_every_codec_arrives(
        self, device: Path, mirror: Path, adaptation: Path, tmp_path: Path
    ) -> None:
        for codec in ("usq", "nf4", "ternary", "sign", "exact"):
            out = tmp_path / f"{codec}.cdcca"
            how = ["--codec", codec, "-o", out]
            assert run("compress", adaptation, "--base", mirror, *how) == 0
            assert run("apply", device, out, "--dry-run") == 0

    def test_without_a_loss_it_says_so(
        self, mirror: Path, adaptation: Path, tmp_path: Path, capfd: Capture
    ) -> None:
        out = tmp_path / "update"
        assert run("compress", adaptation, "--base", mirror, "-o", out) == 0
        assert "the loss was not measured (no held-out frames" in capfd.readouterr().err
        assert run("compress", adaptation, "--base", mirror, "-o", out, "--quiet") == 0
        assert capfd.readouterr().err == ""

    def test_of_an_adaptation_that_is_worse_it_warns(
        self, mirror: Path, tmp_path: Path, capfd: Capture
    ) -> None:
        base = Device.open(mirror)
        learnt = worlds.adaptation(worlds.learnt(base.read_overlay()), base)
        gain = {"mean": -0.2, "low": -0.3, "high": -0.1, "level": 0.95}
        learnt.report["held_out"] = {"verdict": "worse", "gain": gain}
        path, out = tmp_path / "worse", tmp_path / "update"
        with path.open("wb") as file:
            write_adaptation(file, learnt)
        how = ["--bits", "8", "-o", out]
        assert run("compress", path, "--base", mirror, *how) == 0
        error = capfd.readouterr().err
        assert "warning: the adaptation makes the student worse on its held-out frames" in error
        assert "gain -0.2 nats per token, 95 % interval -0.3 to -0.1" in error
        assert out.exists()

    def test_an_update_that_expires(self, mirror: Path, adaptation: Path, tmp_path: Path) -> None:
        out = tmp_path / "update"
        how = ["--expires", "30d", "-o", out]
        begin = int(time.time())
        assert run("compress", adaptation, "--base", mirror, *how) == 0
        with out.open("rb") as source:
            expires = read_update(source).expires
        assert expires is not None and 0 <= expires - begin - 30 * 86_400 <= 60

    def test_signatures_are_within_the_budget(
        self, mirror: Path, adaptation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys = []
        for name in ("one", "two"):
            key = signatures.generate()
            key_files.write_key_pair(tmp_path / name, key)
            keys.append(key.public)
        out = tmp_path / "update"
        signed = ["--sign", tmp_path / "one", "--sign", tmp_path / "two"]
        how = ["--budget", "1400", "-o", out]
        assert run("compress", adaptation, "--base", mirror, *how, *signed) == 0
        assert 1300 < out.stat().st_size <= 1400
        with out.open("rb") as source:
            assert [one.key for one in read_update(source).signatures] == sorted(keys)
        monkeypatch.setenv("CDCCA_SIGN", f"{tmp_path / 'one'}:{tmp_path / 'two'}")
        before = out.read_bytes()
        assert run("compress", adaptation, "--base", mirror, *how) == 0
        assert out.read_bytes() == before

    def test_the_curve_is_json_and_a_picture_beside_it(
        self, mirror: Path, adaptation: Path, tmp_path: Path
    ) -> None:
        pytest.importorskip("matplotlib")
        drawn = tmp_path / "rate.json"
        how = ["--curve", drawn, "-o", tmp_path / "update"]
        assert run("compress", adaptation, "--base", mirror, *how) == 0
        points = json.loads(drawn.read_text())["points"]
        assert points[-1]["chosen"] and points[-1]["bytes"] == (tmp_path / "update").stat().st_size
        assert (tmp_path / "rate.png").read_bytes().startswith(b"\x89PNG")

    def test_a_device_that_missed_some_catches_up_without_an_adaptation(
        self, device: Path, mirror: Path, tmp_path: Path, capfd: Capture
    ) -> None:
        """The mirror keeps one overlay before the current one, so sequence 1 of 2."""
        for number in (1, 2):
            out = tmp_path / f"{number}.cdcca"
            written(tmp_path / "next", Device.open(mirror), seed=number)
            assert run("compress", tmp_path / "next", "--base", mirror, "-o", out) == 0
            assert run("apply", mirror, out) == 0
        assert run("apply", device, tmp_path / "1.cdcca") == 0
        exact = ["--codec", "exact", "--base", mirror, "-o", tmp_path / "missed.cdcca"]
        assert run("compress", "--since", "1", *exact) == 0
        assert run("apply", device, tmp_path / "missed.cdcca") == 0
        assert state(device) == state(mirror)
        assert run("compress", "--since", "2", *exact) == 2
        assert "nothing to catch up with" in capfd.readouterr().err

    @pytest.mark.parametrize("way", ["pipe", "slow pipe", "file"])
    def test_a_catch_up_ignores_no_adaptation(
        self, mirror: Path, adaptation: Path, update: Path, tmp_path: Path, way: str
    ) -> None:
        """One on standard input is refused, also one that comes late; named as - it is coded."""
        assert run("apply", mirror, update) == 0
        written(tmp_path / "next", Device.open(mirror), seed=2)
        exact = "compress {} --base mirror --codec exact --since 0 -o out.cdcca"
        shell = {
            "pipe": "cat next | $PYTHON -m cdcca_cli {}",
            "slow pipe": "(sleep 2; cat next) | $PYTHON -m cdcca_cli {}",
            "file": "$PYTHON -m cdcca_cli {} < next",
        }[way]

        def ran(name: str) -> "subprocess.CompletedProcess[str]":
            return subprocess.run(
                ["bash", "-o", "pipefail", "-c", shell.format(exact.format(name))],
                cwd=tmp_path,
                env={
                    **os.environ,
                    "PYTHON": sys.executable,
                    "PYTHONPATH": str(Path(__file__).parents[2]),
                },
                capture_output=True,
                text=True,
            )

        refused = ran("")
        assert refused.returncode == 2, refused.stderr
        assert "standard input has data, which a catch-up would ignore" in refused.stderr
        assert not (tmp_path / "out.cdcca").exists()
        coded = ran("-")
        assert coded.returncode == 0, coded.stderr
        with (tmp_path / "out.cdcca").open("rb") as source:
            assert read_update(source).sequence == 2

    @pytest.mark.parametrize("stdin", ["devnull", "closed", "empty file", "empty pipe"])
    def test_a_catch_up_without_input_works_as_under_cron(
        self, mirror: Path, update: Path, tmp_path: Path, stdin: str
    ) -> None:
        assert run("apply", mirror, update) == 0
        (tmp_path / "empty").touch()
        begin = {
            "devnull": "{} < /dev/null",
            "closed": "{} <&-",
            "empty file": f"{{}} < {tmp_path}/empty",
            "empty pipe": "true | {}",
        }[stdin]
        out = tmp_path / "out.cdcca"
        command = f'"$0" -m cdcca_cli compress --base "{mirror}" --codec exact --since 0 -o "{out}"'
        done = subprocess.run(
            ["bash", "-c", begin.format(command), sys.executable], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert run("apply", worlds.device(tmp_path / "new").path, out) == 0

    def test_input_that_cannot_be(
        self, mirror: Path, adaptation: Path, tmp_path: Path, capfd: Capture
    ) -> None:
        other = worlds.device(tmp_path / "other", seed=4)
        cut = tmp_path / "cut"
        cut.write_bytes(adaptation.read_bytes()[:-1])
        for name, base, code, reason in (
            (adaptation, other.path, 78, "the adaptation was made from sha256:"),
            (cut, mirror, 65, "cut short"),
            (tmp_path / "absent", mirror, 66, "no such file"),
            (adaptation, tmp_path, 66, "name a device folder"),
        ):
            out = tmp_path / "none.cdcca"
            assert run("compress", name, "--base", base, "-o", out) == code
            assert reason in capfd.readouterr().err
            assert not out.exists()

    def test_training_that_diverged(self, mirror: Path, tmp_path: Path, capfd: Capture) -> None:
        """Finite at both ends, but what NF4 rounds it to is not."""
        base = Device.open(mirror)
        after = worlds.learnt(base.read_overlay())
        after["query_tokens"][:] = np.finfo(np.float32).max
        path = tmp_path / "diverged"
        with path.open("wb") as out:
            write_adaptation(out, worlds.adaptation(after, base))
        how = ["--codec", "nf4", "-o", tmp_path / "none.cdcca"]
        assert run("compress", path, "--base", mirror, *how) == 65
        assert "not finite" in capfd.readouterr().err
        assert not (tmp_path / "none.cdcca").exists()


class TestApply:
    def test_again_older_and_for_another_base(
        self, device: Path, mirror: Path, update: Path, tmp_path: Path, capfd: Capture
    ) -> None:
        assert run("apply", device, update) == 0
        before = worlds.bytes_of(Device.open(device))
        assert run("apply", device, update) == 0
        assert "already applied" in capfd.readouterr().err
        second, third = tmp_path / "second.cdcca", tmp_path / "third.cdcca"
        for path in (second, third):
            assert run("apply", mirror, update if path is second else second) == 0
            written(tmp_path / "next", Device.open(mirror))
            assert run("compress", tmp_path / "next", "--base", mirror, "-o", path) == 0
        assert run("apply", device, third) == 78
        assert "fetch update 2 first" in capfd.readouterr().err
        assert worlds.bytes_of(Device.open(device)) == before
        assert run("apply", device, second) == 0
        assert run("apply", device, update) == 79
        assert "update 1 is not newer than 2" in capfd.readouterr().err

    def test_a_dry_run_changes_nothing(self, device: Path, update: Path, capfd: Capture) -> None:
        before = worlds.bytes_of(Device.open(device))
        assert run("apply", device, update, "--dry-run") == 0
        assert "would apply: sequence 1" in capfd.readouterr().err
        assert worlds.bytes_of(Device.open(device)) == before

    def test_rollback(self, device: Path, update: Path, capfd: Capture) -> None:
        first = state(device)
        assert run("apply", device, "--rollback") == 66
        assert run("apply", device, update) == 0
        assert run("apply", device, "--rollback", "--quiet", "--json") == 0
        assert state(device) == first
        line = json.loads(capfd.readouterr().out)
        assert (line.pop("time"), line.pop("command")) > ("2026", "")
        assert line == {
            "device": str(device),
            "exit_code": 0,
            "status": "rolled back",
            "sequence": 0,
            "digest": first[1],
            "current": {"sequence": 0, "digest": first[1]},
            "file": None,
        }
        assert run("apply", device, update) == 79
        assert run("apply", device, update, "--rollback") == 2
        assert run("apply", device, "--rollback", "--dry-run") == 2
        assert state(device) == first

    def test_json_and_quiet(self, device: Path, update: Path, capfd: Capture) -> None:
        for status in ("applied", "already applied"):
            capfd.readouterr()
            assert run("apply", device, update, "--json", "--quiet") == 0
            out, err = capfd.readouterr()
            sequence, digest = state(device)
            line = json.loads(out)
            found = {"device": str(device), "status": status, "sequence": sequence}
            assert line.items() >= {**found, "digest": digest, "exit_code": 0}.items()
            data = update.read_bytes()
            content = f"sha256:{hashlib.sha256(data).hexdigest()}"
            assert line["file"] == {"name": str(update), "bytes": len(data), "content": content}
            assert err == ""

    def test_files_that_are_no_update(
        self, device: Path, adaptation: Path, update: Path, tmp_path: Path, capfd: Capture
    ) -> None:
        before = worlds.bytes_of(Device.open(device))
        data = update.read_bytes()
        faults = {
            "empty": (b"", 65),
            "cut": (data[:-1], 65),
            "half": (data[: len(data) // 2], 65),
            "longer": (data + b"\n", 65),
            "text": (b"once upon a time", 65),
            "flipped": (data[:-5] + bytes([data[-5] ^ 1]) + data[-4:], 65),
            "newer": (data.replace(rb"\"version\":2", rb"\"version\":3"), 76),
            "adaptation": (adaptation.read_bytes(), 65),
        }
        for name, (content, code) in faults.items():
            path = tmp_path / name
            path.write_bytes(content)
            assert (name, run("apply", device, path)) == (name, code)
            error = capfd.readouterr().err
            assert error.startswith("cdcca apply: ") and error.count("\n") == 1
        assert run("apply", device, tmp_path / "absent") == 66
        assert run("apply", tmp_path / "absent", update) == 66
        assert worlds.bytes_of(Device.open(device)) == before

    def test_a_file_of_another_kind_is_named(
        self, device: Path, adaptation: Path, tmp_path: Path, capfd: Capture
    ) -> None:
        golden = Path(__file__).parents[1] / "golden" / "valid"
        predictions = (golden / "predictions_v1.predictions").read_bytes()
        for name, content, words in (
            ("predictions", predictions, "predictions"),
            ("adaptation", adaptation.read_bytes(), "an adaptation"),
            ("image", b"\x89PNG\r\n\x1a\n" + bytes(40), "an image"),
            ("empty", b"", "an empty file"),
            ("text", b"once upon a time", "no file of cdcca"),
        ):
            (tmp_path / name).write_bytes(content)
            assert run("apply", device, tmp_path / name) == 65
            error = capfd.readouterr().err
            assert f"expected an update, a trust list or a codebook, found {words}" in error, error

    def test_neither_torch_nor_the_checkpoint_is_needed(self, device: Path, update: Path) -> None:
        program = (
            "import sys; from cdcca_cli.main import main; code = main(sys.argv[1:]);"
            "heavy = {'torch', 'transformers', 'PIL', 'peft', 'rich'} & set(sys.modules);"
            "sys.exit(str(heavy) if heavy else code)"
        )
        command = [sys.executable, "-c", program, "apply", str(device), str(update)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert state(device)[0] == 1

    def test_a_full_disk(self, device: Path, update: Path, tmp_path: Path) -> None:
        """The kernel itself refuses to write more than 2 KiB into a file; the overlay has 4."""
        before = worlds.bytes_of(Device.open(device))

        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

        done = subprocess.run(
            [*CDCCA, "apply", device, update], capture_output=True, text=True, preexec_fn=limited
        )
        assert done.returncode == 73, done.stderr
        assert done.stderr.count("\n") == 1
        assert worlds.bytes_of(Device.open(device)) == before
        assert run("apply", device, update) == 0

    def test_two_at_once(self, device: Path, update: Path) -> None:
        command = [*CDCCA, "apply", str(device), str(update), "--json", "--quiet"]
        both = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
        found = sorted(json.loads(process.communicate()[0])["status"] for process in both)
        assert [process.returncode for process in both] == [0, 0]
        assert found == ["already applied", "applied"]
        assert state(device)[0] == 1

    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
    )
    def test_stopped_while_it_waits_for_another(
        self, device: Path, update: Path, number: int, code: int
    ) -> None:
        folder = Device.open(device)
        before = worlds.bytes_of(folder)
        with folder.lock():
            process = subprocess.Popen(
                [*CDCCA, "apply", device, update], stderr=subprocess.PIPE, text=True
            )
            assert process.stderr is not None
            assert "waiting for another process" in process.stderr.readline()
            process.send_signal(number)
            assert process.wait(timeout=30) == code
            process.stderr.close()
        assert worlds.bytes_of(folder) == before
        assert run("apply", device, update) == 0

    def test_no_input_but_a_terminal(self, device: Path) -> None:
        ours, theirs = os.openpty()
        done = subprocess.run(
            [*CDCCA, "apply", device], stdin=theirs, capture_output=True, text=True
        )
        os.close(ours)
        os.close(theirs)
        assert done.returncode == 2
        assert "no input" in done.stderr

    def test_a_codec_of_the_future(self, device: Path, tmp_path: Path, capfd: Capture) -> None:
        update = replace(worlds.next_update(Device.open(device)), codec="trellis")
        path = tmp_path / "future.cdcca"
        path.write_bytes(worlds.file_of(update))
        assert run("apply", device, path) == 76
        assert "codec 'trellis'; this cdcca reads usq, nf4-mixed" in capfd.readouterr().err
