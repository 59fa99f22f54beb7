"""A codebook on its way to a device: the channel's rules, the folder, and the commands.

A refused file leaves every byte of the folder as it was.
"""

import json
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from cdcca_cli.acceptance import receive as receive_if_better
from cdcca_cli.downlink import keys as key_files
from cdcca_cli.downlink import receiver, signatures, verify
from cdcca_cli.errors import (
    BadData,
    CdccaError,
    MissingInput,
    NewerFormat,
    SignatureRefused,
    StaleUpdate,
    WrongBase,
)
from cdcca_cli.formats import codebook as codebook_format
from cdcca_cli.formats.codebook import Codebook
from cdcca_cli.formats.device import Device
from cdcca_cli.loop.rounds import Work
from cdcca_cli.main import main
from cdcca_cli.scoring.settings import AcceptanceSettings
from tests.downlink import changes, worlds
from tests.golden import make
from tests.shipped import few_frames

Capture = pytest.CaptureFixture[str]
GOLDEN = Path(make.__file__).parent


@pytest.fixture
def device(tmp_path: Path) -> Device:
    """It trusts the keys 0 and 1; one of them is enough."""
    trust = changes.trust(0, 1)
    return Device.create(tmp_path / "device", worlds.SETTINGS, worlds.overlay(), trust=trust)


def receive(device: Device, data: bytes, **how: bool) -> receiver.Carried:
    """As `cdcca apply` does, in a process of its own."""
    done = receiver.receive(Device.open(device.path), BytesIO(data), where="file", **how)
    assert isinstance(done, receiver.Carried)
    return done


def refused(device: Device, data: bytes, error: type[CdccaError], words: str, **how: bool) -> None:
    before = worlds.bytes_of(device)
    with pytest.raises(CdccaError) as caught:
        receive(device, data, **how)
    assert worlds.bytes_of(device) == before | {"lock": b""}
    assert isinstance(caught.value, error) and words in str(caught.value), caught.value
    assert "\n" not in str(caught.value)


def now(device: Device) -> Device:
    return Device.open(device.path)


def sequence_of(device: Device) -> int | None:
    found = now(device).codebook()
    return None if found is None else found.sequence


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


class TestRules:
    def test_signed_by_a_trusted_key(self, device: Device) -> None:
        overlay = device.digest
        done = receive(device, changes.codebook_file(3, 1, 2))
        assert (done.status, done.codebook.sequence) == ("applied", 3)
        found = now(device)
        assert found.codebook_slot is not None and found.digest == overlay
        assert found.codebook_slot.signed_by == (changes.key(1).public,)  # not a stranger's
        assert sequence_of(device) == 3

    def test_signatures(self, device: Device) -> None:
        refused(device, changes.codebook_file(1), SignatureRefused, "not signed; 1 of 2")
        strange = changes.codebook_file(1, 2)
        refused(device, strange, SignatureRefused, "1 signatures are of unknown keys")
        other = signatures.sign(worlds.codebook(2), [changes.key(0)]).signatures
        borrowed = worlds.codebook_file(worlds.codebook(1).with_signatures(other))
        refused(device, borrowed, SignatureRefused, "1 are false")

    def test_threshold(self, tmp_path: Path) -> None:
        trust = changes.trust(0, 1, 2, threshold=2)
        device = Device.create(tmp_path / "d", worlds.SETTINGS, worlds.overlay(), trust=trust)
        refused(device, changes.codebook_file(1, 0), SignatureRefused, "signed by 1 of 3")
        assert receive(device, changes.codebook_file(1, 0, 2)).status == "applied"

    def test_unsigned_with_the_flag_is_recorded(self, device: Device) -> None:
        done = receive(device, changes.codebook_file(1), unsigned=True)
        assert "signed by 0 of the 1 keys it needs" in done.summary()
        slot = now(device).codebook_slot
        assert slot is not None and slot.signed_by == ()

    def test_a_device_without_keys_takes_it_unsigned(self, tmp_path: Path) -> None:
        device = worlds.device(tmp_path / "open")
        assert receive(device, changes.codebook_file(0)).status == "applied"
        assert sequence_of(device) == 0

    def test_another_tower(self, device: Device) -> None:
        other = worlds.codebook(1, tower="sha256:" + 64 * "5")
        data = worlds.codebook_file(signatures.sign(other, [changes.key(0)]))
        refused(device, data, WrongBase, "is for vision tower sha256:55555555…")

    def test_an_older_one(self, device: Device) -> None:
        receive(device, changes.codebook_file(3, 0))
        for sequence in (0, 2):
            old = changes.codebook_file(sequence, 0)
            refused(device, old, StaleUpdate, f"codebook {sequence} is not newer than 3")
        different = signatures.sign(worlds.codebook(3, num_tokens=5), [changes.key(0)])
        refused(device, worlds.codebook_file(different), StaleUpdate, "3 is not newer than 3")
        assert receive(device, changes.codebook_file(4, 0)).status == "applied"

    def test_fast_forward(self, device: Device) -> None:
        """2**20 at a time, as updates."""
        refused(device, changes.codebook_file(1 << 20, 0), BadData, "1,048,576 ahead of 0")
        assert receive(device, changes.codebook_file((1 << 20) - 1, 0)).status == "applied"

    def test_the_same_again(self, device: Device) -> None:
        data = changes.codebook_file(3, 0)
        receive(device, data)
        before = worlds.bytes_of(device)
        assert receive(device, data).status == "already applied"
        assert receive(device, changes.codebook_file(3, 1)).status == "already applied"
        assert worlds.bytes_of(device) == before
        refused(device, changes.codebook_file(3), SignatureRefused, "not signed")

    def test_a_dry_run(self, device: Device) -> None:
        before = worlds.bytes_of(device)
        assert receive(device, changes.codebook_file(3, 0), dry_run=True).status == "would apply"
        assert worlds.bytes_of(device) == before | {"lock": b""}

    def test_neither_updates_nor_a_rollback_touch_it(self, device: Device) -> None:
        """Codebooks and updates are numbered apart."""
        receive(device, changes.codebook_file(7, 0))
        changes.apply(device.path, changes.next_file(now(device)))
        assert (now(device).sequence, sequence_of(device)) == (1, 7)
        receiver.rollback(now(device))
        assert (now(device).sequence, sequence_of(device)) == (0, 7)
        refused(device, changes.codebook_file(6, 0), StaleUpdate, "6 is not newer than 7")

    def test_keys_that_changed_while_it_was_read(self, device: Device) -> None:
        opened = now(device)
        found = receiver.read(opened, BytesIO(changes.codebook_file(1, 0)), where="file")
        now(device).install_trust(changes.trust(2, version=2))
        assert isinstance(found, Codebook)
        with pytest.raises(SignatureRefused):
            receiver.carry(opened, found)

    def test_it_is_not_tested_on_labelled_frames(self, device: Device) -> None:
        """It changes no answer; nothing is read but the codebook."""
        settings = AcceptanceSettings(validation=Path("absent"))
        data = BytesIO(changes.codebook_file(1, 0))
        assert receive_if_better(device, data, settings, where="file").as_json() == {
            "status": "applied",
            "codebook": {"sequence": 1, "digest": worlds.codebook(1).digest},
        }

    def test_every_byte_of_the_file(self, device: Device) -> None:
        """A bit of each at a time, tensors and signatures included: each is refused."""
        data = changes.codebook_file(1, 0)
        before = worlds.bytes_of(device)
        for number in range(len(data)):
            flipped = bytearray(data)
            flipped[number] ^= 1 << number % 8
            with pytest.raises(CdccaError):
                receiver.receive(device, BytesIO(flipped), where="file")
        assert worlds.bytes_of(device) == before | {"lock": b""}


class TestSize:
    def test_one_larger_than_an_update_can_be(self, device: Device) -> None:
        """1,000 positions: 2 MB of tensors, where an update has 1 MiB and the overlay at most."""
        large = signatures.sign(worlds.codebook(1, num_tokens=1000), [changes.key(0)])
        data = worlds.codebook_file(large)
        assert len(data) > 2_000_000
        assert receive(device, data).status == "applied"
        assert len(now(device).codebook_of(large.digest).positions) == 1000

    def test_endless_data(self, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
        """No more is read than a codebook may have, and no more than an update may have of what
        does not begin like a codebook."""
        monkeypatch.setattr(codebook_format, "MOST_BYTES", 3 << 20)
        asked = [0]

        class Endless(BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                assert size is not None and size >= 0
                asked[0] += size
                return super().read(size).ljust(size, b"\0")

        for begin, most in ((changes.codebook_file(1, 0), 3 << 20), (b"x", 1_100_000)):
            asked[0] = 0
            with pytest.raises(BadData, match="more than"):
                receiver.read(device, Endless(begin), where="file")
            assert asked[0] <= most + 1

    def test_what_begins_like_none(self) -> None:
        for data in (b"", b"x" * 100, make.update_2(), make.codebook()[:50]):
            assert verify.most_bytes_of(data, 100) == 100
        assert verify.most_bytes_of(make.codebook(), 100) == codebook_format.MOST_BYTES


@pytest.mark.parametrize("name", sorted(n for n in make.FAULTS if n.endswith(".codebook")))
def test_an_unsound_codebook_is_refused_by_apply(device: Device, name: str) -> None:
    """With its own code, whoever may have signed it."""
    code = make.FAULTS[name][0]
    data = (GOLDEN / "invalid" / name).read_bytes()
    refused(device, data, {65: BadData, 76: NewerFormat}[code], "", unsigned=True)


class TestFolder:
    def test_earlier_ones_stay(self, device: Device) -> None:
        for sequence in (1, 2, 5):
            receive(device, changes.codebook_file(sequence, 0))
            changes.apply(device.path, changes.next_file(now(device)))
        for sequence in (1, 2, 5):
            found = now(device).codebook_of(worlds.codebook(sequence).digest)
            assert found.sequence == sequence
            assert np.array_equal(found.mean, worlds.codebook(sequence).mean)
        assert len(list((device.path / "codebooks").iterdir())) == 3

    def test_one_that_it_never_had(self, device: Device) -> None:
        for is_first in (True, False):  # without a folder of codebooks, and with one
            with pytest.raises(MissingInput, match="apply that codebook to this folder too"):
                now(device).codebook_of(worlds.codebook(9).digest)
            if is_first:
                receive(device, changes.codebook_file(1, 0))

    def test_a_copied_file_will_do(self, device: Device, tmp_path: Path) -> None:
        """The cure for a mirror that missed one: its name and content vouch for each other."""
        receive(device, changes.codebook_file(1, 0))
        mirror = worlds.device(tmp_path / "mirror")
        shutil.copytree(device.path / "codebooks", mirror.path / "codebooks")
        changes.apply(mirror.path, worlds.file_of(changes.update_of(mirror)))
        assert now(mirror).codebook() is None
        assert now(mirror).codebook_of(worlds.codebook(1).digest).sequence == 1

    @pytest.mark.parametrize("damage", ["cut", "gone", "another", "newer", "another tower"])
    def test_a_damaged_one_is_none_until_it_comes_again(
        self, device: Device, damage: str, capfd: Capture
    ) -> None:
        data = changes.codebook_file(2, 0)
        receive(device, data)
        slot = now(device).codebook_slot
        assert slot is not None
        path = device.path / slot.file
        path.unlink()
        if damage != "gone":
            other = worlds.codebook(2, tower="sha256:" + 64 * "5")
            path.write_bytes(
                {
                    "cut": data[:-1],
                    "another": changes.codebook_file(1, 0),
                    "newer": make.codebook(header={"version": 2}),
                    "another tower": worlds.codebook_file(other),
                }[damage]
            )
        assert now(device).codebook() is None
        said = capfd.readouterr().err
        assert said.count("\n") == 1 and "going on without a codebook" in said
        assert now(device).read_overlay().keys() == worlds.overlay().keys()
        refused(device, changes.codebook_file(1, 0), StaleUpdate, "1 is not newer than 2")
        assert receive(device, data).status == "applied"
        assert sequence_of(device) == 2

    def test_what_a_killed_process_left_goes_with_the_next_change(self, device: Device) -> None:
        receive(device, changes.codebook_file(1, 0))
        (device.path / "codebooks/.2-00.safetensors.0a1b2c").write_bytes(b"half")
        receive(device, changes.codebook_file(2, 0))
        assert len(list((device.path / "codebooks").iterdir())) == 2

    def test_a_new_folder_with_one(self, tmp_path: Path) -> None:
        book = worlds.codebook(0)
        path, settings, overlay = tmp_path / "device", worlds.SETTINGS, worlds.overlay()
        made = Device.create(path, settings, overlay, codebook=book)
        assert sequence_of(made) == 0 and now(made).codebook_of(book.digest).digest == book.digest
        receive(made, worlds.codebook_file(worlds.codebook(1)))
        Device.create(path, settings, overlay, force=True)
        assert now(made).codebook_slot is None and not list((path / "codebooks").iterdir())
        Device.create(path, settings, overlay, force=True, codebook=book)
        assert sequence_of(made) == 0 and len(list((path / "codebooks").iterdir())) == 1

    def test_a_copy_for_the_rounds_has_them_all(self, device: Device, tmp_path: Path) -> None:
        for sequence in (1, 2):
            receive(device, changes.codebook_file(sequence, 0))
        mirror = Work(tmp_path / "work").mirror(now(device))
        assert mirror.codebook_of(worlds.codebook(1).digest).sequence == 1
        assert sequence_of(mirror) == 2


def test_the_commands(tmp_path: Path, capfd: Capture) -> None:
    """sign twice, apply to device and mirror, inspect; each refusal has its exit code."""
    names = [tmp_path / name for name in ("ann", "bob")]
    assert all(run("keygen", name) == 0 for name in names)
    trust = key_files.first_trust([name.with_suffix(".pub") for name in names], 2)
    for side in ("device", "mirror"):
        Device.create(tmp_path / side, worlds.SETTINGS, worlds.overlay(), trust=trust)
    file, device = tmp_path / "book", tmp_path / "device"
    file.write_bytes(worlds.codebook_file(worlds.codebook(4)))
    assert run("apply", device, file) == 77
    for name in names:
        assert run("sign", file, "--key", name, "-o", file) == 0
    assert run("apply", device, file, "--dry-run") == 0
    capfd.readouterr()
    for side in (device, tmp_path / "mirror"):
        assert run("apply", side, file, "--json") == 0
        out, err = capfd.readouterr()
        digest = worlds.codebook(4).digest
        found = {"status": "applied", "codebook": {"sequence": 4, "digest": digest}}
        assert json.loads(out).items() >= found.items()
        assert f"applied: codebook 4, {digest[:15]}" in err
    assert run("apply", device, file) == 0
    assert run("inspect", device) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["digests"]["codebook"] == digest and len(found["codebook"]["signed_by"]) == 2
    file.write_bytes(worlds.codebook_file(worlds.codebook(3)))
    assert run("apply", device, file, "--unsigned") == 79
    file.write_bytes(worlds.codebook_file(worlds.codebook(5, tower=make.TOWER)))
    assert run("apply", device, file, "--unsigned") == 78
    file.write_bytes(b"")
    assert run("apply", device, file, "--unsigned") == 65


def test_the_shipped_one_comes_with_init_and_one_made_again_follows_it(tmp_path: Path) -> None:
    """From init to apply, with a few frames: sequence 0, then 1; the mirror has both."""
    frames = few_frames(tmp_path / "frames", "stream", 8)
    device, mirror, made = (tmp_path / name for name in ("device", "mirror", "book"))
    assert run("init", device, "--quiet") == run("init", mirror, "--quiet") == 0
    first = Device.open(device).codebook()
    assert first is not None and first.sequence == 0
    how = ["--student", mirror, "--teacher", "shipped:teacher", "--quiet", "-o", made]
    assert run("calibrate", frames, *how) == 0
    assert all(run("apply", side, made, "--quiet") == 0 for side in (device, mirror))
    found = Device.open(mirror)
    second = found.codebook()
    assert second is not None and (second.sequence, second.num_frames) == (1, 6)
    assert found.codebook_of(first.digest).sequence == 0
    assert Device.open(device).codebook_slot == found.codebook_slot
