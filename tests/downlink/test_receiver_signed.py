"""The channel's rules, one test a rule: the cases of tuf-conformance that apply, by their names.

A refused file leaves every byte of the folder as it was: nothing is persisted before every check
has passed (tough's CVE-2025-2888 was about that; go-tuf's CVE-2022-29173 about a kind of file whose
number was compared with nothing: updates and trust lists both have tests of theirs).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdcca_cli.downlink import keys as key_files
from cdcca_cli.downlink import receiver, signatures
from cdcca_cli.downlink.codecs import exact
from cdcca_cli.downlink.signatures import PrivateKey
from cdcca_cli.errors import BadData, CdccaError, SignatureRefused, StaleUpdate, WrongBase
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.trust import Signature, Trust, TrustList, write_trust_list
from cdcca_cli.formats.update import Update
from tests.downlink import worlds

YEAR = 365 * 86400
NOW = 1_800_000_000
MODEL = "sha256:" + 64 * "7"
OTHER_MODEL = "sha256:" + 64 * "8"


@lru_cache
def keys() -> tuple[PrivateKey, ...]:
    """Four people's keys."""
    return tuple(signatures.generate() for _ in range(4))


def trust(*numbers: int, threshold: int = 1, version: int = 1) -> Trust:
    return Trust(version, threshold, tuple(sorted(keys()[number].public for number in numbers)))


def folder(path: Path, trusted: Trust | None, keep: int = 1) -> Device:
    settings = replace(worlds.SETTINGS, model=MODEL)
    return Device.create(path, settings, worlds.overlay(), trust=trusted, keep=keep)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    """It trusts the keys 0 and 1; one of them is enough."""
    return folder(tmp_path / "device", trust(0, 1))


@pytest.fixture
def careful(tmp_path: Path) -> Device:
    """It trusts the keys 0, 1 and 2; two of them must sign."""
    return folder(tmp_path / "careful", trust(0, 1, 2, threshold=2))


def update_to(device: Device, after: worlds.Overlay | None = None, **fields: Any) -> Update:
    """An unsigned update from the device's current overlay; `fields` are its header's."""
    base = device.read_overlay()
    after = worlds.learnt(base, device.highest_sequence + 7) if after is None else after
    sequence = fields.get("sequence", device.highest_sequence + 1)
    update = Update(
        base=device.digest,
        target=overlay_digest(after),
        sequence=sequence,
        codec="exact",
        coding={},
        num_parameters=sum(value.size for value in base.values()),
        payload=exact.encode(after, base, sequence),
        model=device.model,
    )
    return replace(update, **fields)


def signed(update: Update, *numbers: int) -> Update:
    return signatures.sign(update, [keys()[number] for number in numbers])


def at(seconds: float) -> Callable[[], float]:
    return lambda: seconds


def file_of(found: Update | TrustList) -> bytes:
    if isinstance(found, Update):
        return worlds.file_of(found)
    out = BytesIO()
    write_trust_list(out, found)
    return out.getvalue()


def receive(
    device: Device, found: Update | TrustList | bytes, **how: Any
) -> receiver.Applied | receiver.Rotated:
    """As `cdcca apply` does, in a process of its own."""
    data = found if isinstance(found, bytes) else file_of(found)
    how = {"clock": at(NOW)} | how
    return receiver.receive(Device.open(device.path), BytesIO(data), where="file", **how)


def refused(
    device: Device,
    found: Update | TrustList | bytes,
    error: type[CdccaError],
    words: str,
    **how: Any,
) -> None:
    """Refused with this class and these words, in one line; not a byte of the folder changes."""
    before = worlds.bytes_of(device)
    with pytest.raises(CdccaError) as caught:
        receive(device, found, **how)
    assert worlds.bytes_of(device) == before
    assert type(caught.value) is error and words in str(caught.value), caught.value
    assert "\n" not in str(caught.value)


def status(done: receiver.Applied | receiver.Rotated) -> str:
    return done.status


def now(device: Device) -> Device:
    return Device.open(device.path)


class TestSignatures:
    def test_signed_by_a_trusted_key(self, device: Device) -> None:
        assert status(receive(device, signed(update_to(device), 1))) == "applied"
        assert now(device).current.signed_by == (keys()[1].public,)

    def test_signed_by_several(self, device: Device) -> None:
        receive(device, signed(update_to(device), 0, 1, 3))
        assert now(device).current.signed_by == trust(0, 1).keys  # a stranger's is not recorded

    def test_unsigned(self, device: Device) -> None:
        refused(device, update_to(device), SignatureRefused, "not signed; 1 of 2 trusted keys")

    def test_unsigned_with_the_flag_is_recorded(self, device: Device) -> None:
        done = receive(device, update_to(device), unsigned=True)
        assert status(done) == "applied"
        assert "signed by 0 of the 1 keys it needs" in done.summary()
        assert now(device).current.signed_by == ()
        receive(device, signed(update_to(now(device)), 0))
        assert [slot.signed_by for slot in now(device).kept] == [()]

    def test_of_format_version_1(self, device: Device) -> None:
        """It has no room for a signature."""
        old = replace(update_to(device), version=1, codec="nf4-mixed", coding={"bits": [0] * 7})
        refused(device, old, SignatureRefused, "not signed")

    def test_unknown_key(self, device: Device) -> None:
        update = signed(update_to(device), 3)
        refused(device, update, SignatureRefused, "1 signatures are of unknown keys")

    def test_a_device_without_keys_takes_both(self, tmp_path: Path) -> None:
        device = folder(tmp_path / "open", None)
        receive(device, update_to(device))
        receive(device, signed(update_to(now(device)), 3))
        assert now(device).sequence == 2 and now(device).current.signed_by == ()

    def test_below_threshold(self, careful: Device) -> None:
        refused(careful, signed(update_to(careful), 2), SignatureRefused, "signed by 1 of 3")
        refused(careful, signed(update_to(careful), 2, 3), SignatureRefused, "signed by 1 of 3")
        assert status(receive(careful, signed(update_to(careful), 2, 0))) == "applied"

    def test_one_after_another(self, careful: Device) -> None:
        """Each signs what the one before wrote; order does not matter, and twice is once."""
        update = signed(signed(update_to(careful), 2), 0)
        assert file_of(update) == file_of(signed(signed(update_to(careful), 0), 2))
        assert file_of(signed(update, 0)) == file_of(update)
        assert status(receive(careful, update)) == "applied"

    def test_one_key_twice(self, careful: Device) -> None:
        """Two signatures of one key, whatever they are, are one, or no sound file."""
        (only,) = signed(update_to(careful), 0).signatures
        forged = Signature(only.key, only.signature[:-2] + "00")
        for pair in ((only, only), (only, forged)):
            update = replace(update_to(careful), signatures=pair)
            refused(careful, raw(update), BadData, "each once")
            with pytest.raises(SignatureRefused):  # and where no file is read
                receiver.apply(now(careful), update, clock=at(NOW))

    def test_one_keys_signature_under_anothers_name(self, careful: Device) -> None:
        update = signed(update_to(careful), 0)
        borrowed = Signature(keys()[1].public, update.signatures[0].signature)
        both = tuple(sorted((*update.signatures, borrowed), key=lambda one: one.key))
        refused(careful, replace(update, signatures=both), SignatureRefused, "1 are false")

    def test_a_signature_of_something_else(self, device: Device) -> None:
        other = signed(replace(update_to(device), sequence=9), 0)
        update = replace(update_to(device), signatures=other.signatures)
        refused(device, update, SignatureRefused, "1 are false")

    @pytest.mark.parametrize("hexadecimal", ["00" * 64, "ff" * 64, "01" + "00" * 63])
    def test_numbers_that_are_no_signature(self, device: Device, hexadecimal: str) -> None:
        update = replace(update_to(device), signatures=(Signature(keys()[0].public, hexadecimal),))
        refused(device, update, SignatureRefused, "1 are false")

    def test_a_trusted_key_that_is_no_point(self, tmp_path: Path) -> None:
        """y = 2 is not on the curve: nothing that it signed is true, and nothing breaks."""
        no_point = "02" + "00" * 31
        device = folder(tmp_path / "odd", Trust(1, 1, (no_point,)))
        update = replace(update_to(device), signatures=(Signature(no_point, "00" * 64),))
        refused(device, update, SignatureRefused, "1 are false")

    def test_the_signature_is_looked_at_before_what_it_covers(self, device: Device) -> None:
        """Payload, model, expiry, sequence and base are all wrong; who sent it comes first."""
        update = update_to(
            device, model=OTHER_MODEL, expires=1, sequence=1 << 40, base=MODEL, payload=b"junk"
        )
        refused(device, update, SignatureRefused, "not signed")
        refused(device, signed(update, 0), WrongBase, "is for model")
        unsigned = update_to(device)
        for strange in (
            mixed(unsigned, b"another payload"),
            file_of(unsigned).replace(b"num_parameters", b"numb_arameters"),
        ):
            refused(device, strange, SignatureRefused, "not signed")
            refused(device, strange, BadData, "", unsigned=True)

    def test_every_bit_of_the_header(self, device: Device) -> None:
        """One bit at a time, signatures included: each is refused."""
        data = file_of(signed(update_to(device), 0))
        (length,) = np.frombuffer(data[:8], "<u8")
        before, opened = worlds.bytes_of(device), now(device)
        for bit in range(8 * (8 + int(length))):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(CdccaError):
                receiver.receive(opened, BytesIO(flipped), where="file", clock=at(NOW))
        assert worlds.bytes_of(device) == before

    def test_a_header_is_small_whatever_stands_in_it(self, device: Device) -> None:
        """256 KiB are refused before they are parsed; such an update is not written either."""
        update = update_to(device, codec="nf4-mixed", coding={"bits": [4] * 200_000})
        with pytest.raises(BadData, match="at most 262,144 are read"):
            file_of(update)
        refused(device, (1 << 18).to_bytes(8, "little") + b"{" * (1 << 18), BadData, "not JSON")
        refused(device, (1 + (1 << 18)).to_bytes(8, "little") + b"{" * (1 << 18), BadData, "2 to")

    def test_keys_that_changed_while_it_was_read(self, device: Device) -> None:
        """`read` has seen the old keys; under the lock the new ones count."""
        opened = now(device)
        found = receiver.read(opened, BytesIO(file_of(signed(update_to(device), 0))), where="file")
        now(device).install_trust(trust(2, version=2))
        assert isinstance(found, Update)
        with pytest.raises(SignatureRefused):
            receiver.apply(opened, found, clock=at(NOW))


def raw(update: Update) -> bytes:
    """The file, though `write_update` would refuse to write it so (it does not look at order)."""
    return worlds.file_of(update)


class TestRollback:
    def test_replay(self, device: Device) -> None:
        """An update that was good once."""
        first = signed(update_to(device), 0)
        receive(device, first)
        receive(device, signed(update_to(now(device)), 0))
        refused(device, first, StaleUpdate, "update 1 is not newer than 2")

    def test_rollback_to_an_older_sequence_against_the_current_base(self, device: Device) -> None:
        """Signed by a thief, say: all is right but the sequence."""
        for _ in range(2):
            receive(device, signed(update_to(now(device)), 0))
        for sequence in (1, 2):
            again = signed(update_to(now(device), sequence=sequence), 0)
            refused(device, again, StaleUpdate, f"update {sequence} is not newer than 2")

    def test_the_same_sequence_with_other_content(self, device: Device) -> None:
        """Equivocation: two updates of one number."""
        first, second = update_to(device), update_to(device, worlds.overlay(5))
        receive(device, signed(first, 0))
        refused(device, signed(second, 0), StaleUpdate, "update 1 is not newer than 1")

    def test_a_local_rollback_does_not_lower_the_highest_sequence(self, device: Device) -> None:
        update = signed(update_to(device), 0)
        receive(device, update)
        receiver.rollback(now(device))
        assert (now(device).sequence, now(device).highest_sequence) == (0, 1)
        refused(device, update, StaleUpdate, "was rolled back to 0")
        again = signed(update_to(now(device)), 0)
        assert again.sequence == 2
        assert status(receive(device, again)) == "applied"

    def test_a_refused_update_does_not_raise_the_highest_sequence(self, device: Device) -> None:
        """CVE-2025-2888: the number was persisted before the content was checked."""
        lies = update_to(device, sequence=100, target=MODEL)
        refused(device, signed(lies, 0), BadData, "not to its target")
        assert now(device).highest_sequence == 0
        assert status(receive(device, signed(update_to(device), 0))) == "applied"

    def test_a_dry_run_does_not_raise_it_either(self, device: Device) -> None:
        before = worlds.bytes_of(device)
        done = receive(device, signed(update_to(device), 0), dry_run=True)
        assert status(done) == "would apply" and worlds.bytes_of(device) == before

    def test_the_same_again(self, device: Device) -> None:
        update = signed(update_to(device), 0)
        receive(device, update)
        before = worlds.bytes_of(device)
        assert status(receive(device, update)) == "already applied"
        assert worlds.bytes_of(device) == before
        refused(device, replace(update, signatures=()), SignatureRefused, "not signed")

    def test_fast_forward(self, device: Device) -> None:
        """2**20 at a time."""
        far = signed(update_to(device, sequence=(1 << 20) + 1), 0)
        refused(device, far, BadData, "more than 1,048,576 ahead of 0")
        assert status(receive(device, signed(update_to(device, sequence=1 << 20), 0))) == "applied"


class TestExpiry:
    """A clock ten years off, both ways, and none of it wherever there is no expiry."""

    def test_freeze(self, device: Device) -> None:
        update = signed(update_to(device, expires=NOW), 0)
        refused(device, update, StaleUpdate, "expired on 2027-01-15 08:00 UTC")
        assert status(receive(device, update, clock=at(NOW - 1))) == "applied"

    def test_the_clock_is_ten_years_ahead(self, device: Device) -> None:
        update = signed(update_to(device, expires=NOW + YEAR), 0)
        words = "this device's clock is at 2037-01-12 08:00 UTC"
        refused(device, update, StaleUpdate, words, clock=at(NOW + 10 * YEAR))

    def test_the_clock_is_ten_years_behind(self, device: Device) -> None:
        """It cannot know better: what expired meanwhile is taken."""
        update = signed(update_to(device, expires=NOW - YEAR), 0)
        assert status(receive(device, update, clock=at(NOW - 10 * YEAR))) == "applied"

    def test_an_update_without_expiry_needs_no_clock(self, device: Device) -> None:
        def broken() -> float:
            raise AssertionError("the clock was asked")

        assert status(receive(device, signed(update_to(device), 0), clock=broken)) == "applied"

    def test_the_same_again_after_it_expired(self, device: Device) -> None:
        """No error, since nothing changes; but it says that nothing newer comes through."""
        update = signed(update_to(device, expires=NOW), 0)
        receive(device, update, clock=at(NOW - 1))
        done = receive(device, update, clock=at(NOW))
        assert status(done) == "already applied"
        assert "it expired on 2027-01-15 08:00 UTC" in done.summary()

    @pytest.mark.parametrize("expires", [0, (1 << 53) - 1])
    def test_the_ends_of_time(self, device: Device, expires: int) -> None:
        update = signed(update_to(device, expires=expires), 0)
        if expires:
            assert status(receive(device, update)) == "applied"
        else:
            refused(device, update, StaleUpdate, "expired on 1970-01-01 00:00 UTC")


class TestMixAndMatch:
    def test_header_of_one_payload_of_another(self, device: Device) -> None:
        """Both are signed; together they are nothing."""
        one = signed(update_to(device), 0)
        other = update_to(device, worlds.overlay(9)).payload
        refused(device, mixed(one, other), BadData, "its header says")
        same_length = other[: len(one.payload)]
        refused(device, mixed(one, same_length), BadData, "hash in its header")

    def test_a_payload_of_another_length(self, device: Device) -> None:
        one = signed(update_to(device), 0)
        refused(device, mixed(one, one.payload + b"\0"), BadData, "its header says")

    def test_target_of_another(self, device: Device) -> None:
        one = update_to(device, target=MODEL)
        refused(device, signed(one, 0), BadData, "not to its target")

    def test_a_signed_update_for_another_model(self, device: Device) -> None:
        update = signed(update_to(device, model=OTHER_MODEL), 0)
        refused(device, update, WrongBase, "is for model sha256:88888888…")

    def test_a_signed_update_for_another_base(self, device: Device) -> None:
        update = signed(update_to(device, base=MODEL), 0)
        refused(device, update, WrongBase, "is for base sha256:77777777…")

    def test_an_update_that_names_no_model(self, device: Device) -> None:
        """As from a mirror of format version 1: the base's digest decides alone."""
        assert status(receive(device, signed(update_to(device, model=None), 0))) == "applied"

    def test_a_trust_list_is_no_update_and_an_update_no_trust_list(self, device: Device) -> None:
        """Their signatures are over different words, so one cannot be shown as the other's."""
        update, listed = update_to(device), TrustList(trust(2, version=2))
        assert update.signed_bytes().split(b"\n")[0] != listed.signed_bytes().split(b"\n")[0]


def mixed(update: Update, payload: bytes) -> bytes:
    """The update's header, as it is, around another payload."""
    import json
    import struct

    data = file_of(update)
    (length,) = struct.unpack("<Q", data[:8])
    table = json.loads(data[8 : 8 + length])
    size = len(payload)
    table["payload"] = {"data_offsets": [0, size], "dtype": "U8", "shape": [size]}
    text = json.dumps(table, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + payload


class TestOlderBases:
    """What the folder keeps may be a base too (`compress --since`)."""

    def test_an_update_against_the_one_before(self, tmp_path: Path) -> None:
        device = folder(tmp_path / "device", None, keep=2)
        first = update_to(device)
        receive(device, first)
        since = update_to(device, sequence=2)  # its base is the start
        receive(device, since)
        assert [slot.sequence for slot in now(device).kept] == [1, 0]
        receive(device, update_to(now(device)))
        assert [slot.sequence for slot in now(device).kept] == [2, 1]
        refused(device, replace(since, sequence=4), WrongBase, "is for base")  # kept no more

    def test_after_a_rollback_what_was_left_is_no_base(self, device: Device) -> None:
        receive(device, signed(update_to(device), 0))
        left = signed(update_to(now(device)), 0)
        receiver.rollback(now(device))
        refused(device, left, WrongBase, "was rolled back")


class TestDamage:
    def test_the_newest_sound_overlay_is_used_and_an_update_against_it_taken(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        device = folder(tmp_path / "device", None, keep=2)
        updates = []
        for _ in range(2):
            updates.append(update_to(now(device)))
            receive(device, updates[-1])
        damage(now(device))
        opened = now(device)
        opened.read_overlay()
        assert (opened.sequence, opened.highest_sequence) == (1, 2)
        assert "using the newest sound one kept, of sequence 1" in capfd.readouterr().err
        # The update that made the damaged one comes again, and repairs it.
        assert status(receive(device, updates[1])) == "applied"
        assert now(device).read_overlay() and now(device).sequence == 2
        assert [slot.sequence for slot in now(device).kept] == [1, 0]
        damage(now(device))
        newer = update_to(opened, sequence=3)
        assert status(receive(device, newer)) == "applied"
        assert [slot.sequence for slot in now(device).kept] == [1, 0]

    def test_with_no_sound_overlay_nothing_is_taken(self, device: Device) -> None:
        update = signed(update_to(device), 0)
        damage(device)
        refused(device, update, BadData, "not a cdcca record")


def damage(device: Device) -> None:
    (device.path / device.current.file).write_bytes(b"\0" * 100)


class TestRotation:
    def made(self, device: Device, new: Trust, *numbers: int) -> TrustList:
        return signatures.sign(TrustList(new), [keys()[number] for number in numbers])

    def test_to_other_keys(self, device: Device) -> None:
        new = trust(2, 3, threshold=2, version=2)
        assert status(receive(device, self.made(device, new, 0, 2, 3))) == "applied"
        assert now(device).trust == new
        refused(device, signed(update_to(now(device)), 0, 1), SignatureRefused, "2 signatures")
        assert status(receive(device, signed(update_to(now(device)), 2, 3))) == "applied"
        assert now(device).trust == new

    def test_the_same_list_again(self, device: Device) -> None:
        listed = self.made(device, trust(2, version=2), 0, 2)
        receive(device, listed)
        before = worlds.bytes_of(device)
        assert status(receive(device, listed)) == "already applied"
        assert worlds.bytes_of(device) == before

    def test_signed_only_by_new_keys(self, device: Device) -> None:
        listed = self.made(device, trust(2, 3, version=2), 2, 3)
        refused(device, listed, SignatureRefused, "the device's keys: signed by 0 of 2")

    def test_signed_only_by_old_keys(self, device: Device) -> None:
        listed = self.made(device, trust(2, 3, version=2), 0, 1)
        refused(device, listed, SignatureRefused, "its own keys: signed by 0 of 2")

    def test_signed_by_nobody(self, device: Device) -> None:
        listed = TrustList(trust(2, version=2))
        refused(device, listed, SignatureRefused, "not signed")
        refused(device, listed, SignatureRefused, "not signed", unsigned=True)

    def test_the_old_threshold_is_needed(self, careful: Device) -> None:
        new = trust(3, version=2)
        refused(careful, self.made(careful, new, 0, 3), SignatureRefused, "signed by 1 of 3")
        assert status(receive(careful, self.made(careful, new, 0, 1, 3))) == "applied"

    def test_the_new_threshold_is_needed(self, device: Device) -> None:
        new = trust(0, 2, 3, threshold=3, version=2)
        refused(device, self.made(device, new, 0, 2), SignatureRefused, "signed by 2 of 3")

    def test_a_key_in_both_counts_for_both(self, device: Device) -> None:
        assert status(receive(device, self.made(device, trust(0, version=2), 0))) == "applied"
        refused(device, signed(update_to(now(device)), 1), SignatureRefused, "unknown keys")

    def test_a_skipped_version(self, device: Device) -> None:
        second = self.made(device, trust(0, 2, version=2), 0)
        third = self.made(device, trust(0, 3, version=3), 0)
        refused(device, third, WrongBase, "does not follow this device's list 1: apply list 2")
        receive(device, second)
        assert status(receive(device, third)) == "applied"

    def test_back_to_an_older_version(self, device: Device) -> None:
        """A key that was taken out must not come back by replay."""
        second = self.made(device, trust(0, 2, version=2), 0)
        receive(device, second)
        receive(device, self.made(device, trust(0, version=3), 0))
        refused(device, second, StaleUpdate, "trust list 2 is not newer than this device's list 3")
        refused(device, self.made(device, trust(2, version=3), 0, 2), StaleUpdate, "not newer")

    def test_a_fast_forward_of_versions(self, device: Device) -> None:
        listed = self.made(device, trust(0, version=(1 << 53) - 1), 0)
        refused(device, listed, WrongBase, "does not follow")

    def test_one_key_twice_in_a_list(self, device: Device) -> None:
        twice = Trust(2, 2, (keys()[0].public,) * 2)
        with pytest.raises(BadData, match="each once"):
            file_of(TrustList(twice))

    def test_every_bit_of_a_list(self, device: Device) -> None:
        data = file_of(self.made(device, trust(0, 2, version=2), 0))
        before, opened = worlds.bytes_of(device), now(device)
        for bit in range(8 * len(data)):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(CdccaError):
                receiver.receive(opened, BytesIO(flipped), where="file")
        assert worlds.bytes_of(device) == before

    def test_a_device_without_keys_takes_the_first_list_on_its_operators_word(
        self, tmp_path: Path
    ) -> None:
        device = folder(tmp_path / "open", None)
        listed = self.made(device, trust(0), 0)
        refused(device, listed, SignatureRefused, "take it with `unsigned` if you trust it")
        refused(device, TrustList(trust(0)), SignatureRefused, "not signed", unsigned=True)
        assert status(receive(device, listed, unsigned=True)) == "applied"
        refused(device, update_to(device), SignatureRefused, "not signed")

    def test_a_dry_run(self, device: Device) -> None:
        before = worlds.bytes_of(device)
        done = receive(device, self.made(device, trust(0, version=2), 0), dry_run=True)
        assert status(done) == "would apply" and worlds.bytes_of(device) == before

    def test_the_list_that_follows_is_made_from_a_folder_or_a_list(
        self, device: Device, tmp_path: Path
    ) -> None:
        public = [keys()[2].public, keys()[0].public]
        made = key_files.next_list(key_files.trust_of(device.path), public, 2)
        assert made.trust == trust(0, 2, threshold=2, version=2)
        words = key_files.summary(device.trust, made)
        assert "has 0 of 1 signature by the keys trusted before" in words
        assert "0 of 2 signatures by its own keys" in words
        path = tmp_path / "list"
        path.write_bytes(file_of(made))
        assert key_files.trust_of(path) == made.trust
