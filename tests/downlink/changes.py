"""Every way in which `cdcca apply` changes a device folder, prepared so that it can be cut off.

A `Change` is a folder as it is before, the files that are applied to it one after the other, and
one more for afterwards. The tests of faults, of power losses and of kills share them.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from cdcca_cli.downlink import receiver, signatures
from cdcca_cli.downlink.codecs import exact
from cdcca_cli.downlink.signatures import PrivateKey
from cdcca_cli.errors import BadData, MissingInput
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.device_files import codebook_paths
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.trust import Trust, TrustList, write_trust_list
from cdcca_cli.formats.update import Update
from tests.downlink import worlds

ROLLBACK = b"--rollback"  # in place of a file: what the command line calls it
State = tuple[dict[str, Any], tuple[bool, ...]]


@lru_cache
def key(number: int) -> PrivateKey:
    """A key that is the same in every run."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    seed = sha256(b"a key of the tests %d" % number).digest()
    return PrivateKey(Ed25519PrivateKey.from_private_bytes(seed))


def trust(*numbers: int, threshold: int = 1, version: int = 1) -> Trust:
    return Trust(version, threshold, tuple(sorted(key(number).public for number in numbers)))


def trust_file(made: Trust, *signers: int) -> bytes:
    """A trust list, signed by these keys."""
    out = BytesIO()
    write_trust_list(out, signatures.sign(TrustList(made), [key(number) for number in signers]))
    return out.getvalue()


def codebook_file(sequence: int, *signers: int) -> bytes:
    """A codebook, signed by these keys."""
    made = signatures.sign(worlds.codebook(sequence), [key(number) for number in signers])
    return worlds.codebook_file(made)


def update_of(device: Device, seed: int = 1) -> Update:
    """One more round on this folder, unsigned."""
    base = device.read_overlay()
    target = worlds.learnt(base, 1000 * device.highest_sequence + seed)
    sequence = device.highest_sequence + 1
    return Update(
        base=device.digest,
        target=overlay_digest(target),
        sequence=sequence,
        codec="exact",
        coding={},
        num_parameters=sum(value.size for value in base.values()),
        payload=exact.encode(target, base, sequence),
        model=device.model,
    )


def next_file(device: Device, seed: int = 1) -> bytes:
    """The file of one more round, signed by key 0."""
    return worlds.file_of(signatures.sign(update_of(device, seed), [key(0)]))


def apply(path: Path, file: bytes) -> str:
    """What `cdcca apply` does in a process of its own; returns the status."""
    device = Device.open(path)
    if file == ROLLBACK:
        return receiver.rollback(device).status
    return receiver.receive(device, BytesIO(file), where="the file").status


def state_of(path: Path) -> State:
    """What device.json says, and of each file that it names whether it is sound."""
    device = Device.open(path)
    sound = [_is_sound(device, n) for n in range(1 + len(device.kept))]
    if device.codebook_slot is not None:
        sound.append(device.codebook() is not None)
    return device.as_json(), tuple(sound)


def _is_sound(device: Device, number: int) -> bool:
    try:
        device.read_slot((device.current, *device.kept)[number])
    except (BadData, MissingInput):
        return False
    return True


def is_one_of(path: Path, allowed: Sequence[State]) -> bool:
    """Whether a folder is in one of these states, whole: no file worse than it was."""
    try:
        found = state_of(path)
    except (BadData, MissingInput):
        return False
    return is_among(found, allowed)


def is_among(found: State, allowed: Sequence[State]) -> bool:
    """The same for a state that has been looked at."""
    said, sound = found
    return any(said == state and (all(sound) or sound == files) for state, files in allowed)


def leftovers(path: Path) -> set[str]:
    """Files in a folder that nothing asks for; whole codebooks stay."""
    device = Device.open(path)
    named = {slot.file for slot in (device.current, *device.kept)}
    named |= {f"codebooks/{file.name}" for file in codebook_paths(path)}
    return set(worlds.bytes_of(device)) - named - {"device.json", "lock"}


@dataclass(frozen=True)
class Change:
    """A folder, the files that come to it, and one more for afterwards."""

    name: str
    before: Path
    files: tuple[bytes, ...]
    next: bytes

    def copy(self, path: Path) -> Path:
        """The folder as it is before, at another place."""
        shutil.copytree(self.before, path)
        return path

    @cached_property
    def states(self) -> list[State]:
        """Before the first file, and after each of them."""
        path = self.copy(self.before.with_name(f"{self.name}-states"))
        states = [state_of(path)]
        for file in self.files:
            apply(path, file)
            states.append(state_of(path))
        return states


def _change(folder: Path, name: str, device: Device, *files: bytes) -> Change:
    """The change, and the file for afterwards, which is made from where the files lead to."""
    after = folder / f"{name}-after"
    shutil.copytree(device.path, after)
    for file in files:
        apply(after, file)
    return Change(name, device.path, files, next_file(Device.open(after), seed=2))


def _device(folder: Path, name: str, rounds: int = 0, **options: Any) -> Device:
    options = {"trust": trust(0, 1), **options}
    device = Device.create(folder / name, worlds.SETTINGS, worlds.overlay(), **options)
    for _ in range(rounds):
        apply(device.path, next_file(device))
        device = Device.open(device.path)
    return device


def first(folder: Path, name: str) -> Change:
    """The first update of a new device."""
    device = _device(folder, name)
    return _change(folder, name, device, next_file(device))


def later(folder: Path, name: str) -> Change:
    """One that makes the oldest overlay go."""
    device = _device(folder, name, rounds=3)
    return _change(folder, name, device, next_file(device))


def unsigned(folder: Path, name: str) -> Change:
    """A device that trusts no key, and keeps three overlays."""
    device = _device(folder, name, rounds=4, trust=None, keep=3)
    return _change(folder, name, device, worlds.file_of(update_of(device)))


def rollback(folder: Path, name: str) -> Change:
    return _change(folder, name, _device(folder, name, rounds=2), ROLLBACK)


def after_rollback(folder: Path, name: str) -> Change:
    """The first update after a rollback."""
    device = _device(folder, name, rounds=2, keep=2)
    apply(device.path, ROLLBACK)
    device = Device.open(device.path)
    return _change(folder, name, device, next_file(device))


def trust_list(folder: Path, name: str) -> Change:
    device = _device(folder, name, rounds=1)
    return _change(folder, name, device, trust_file(trust(0, 2, version=2), 0))


def version_1(folder: Path, name: str) -> Change:
    """A device folder of version 1, which becomes one of version 3."""
    device = _device(folder, name, rounds=1, trust=None)
    data = device.as_json() | {"version": 1}
    current, *kept = [
        {part: slot[part] for part in ("sequence", "digest", "file")}
        for slot in (data["current"], *data["kept"])
    ]
    for added in ("kept", "keep", "model", "trust", "codebook"):
        del data[added]
    data |= {"current": current, "previous": kept[0]}
    (device.path / "device.json").write_text(json.dumps(data, sort_keys=True) + "\n")
    device = Device.open(device.path)
    return _change(folder, name, device, worlds.file_of(update_of(device)))


def first_codebook(folder: Path, name: str) -> Change:
    """It makes the folder of codebooks."""
    return _change(folder, name, _device(folder, name), codebook_file(1, 0))


def codebook(folder: Path, name: str) -> Change:
    """One after another; the first stays."""
    device = _device(folder, name)
    apply(device.path, codebook_file(1, 0))
    return _change(folder, name, Device.open(device.path), codebook_file(2, 0))


def repair(folder: Path, name: str) -> Change:
    """The current overlay is damaged, and the update that made it comes again."""
    device = _device(folder, name, rounds=1)
    file = next_file(device)
    apply(device.path, file)
    damaged = device.path / Device.open(device.path).current.file
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    return _change(folder, name, device, file)


def several(folder: Path, name: str) -> Change:
    """One after the other: what one left open on the disk, the next must not depend on."""
    device = _device(folder, name, rounds=1)
    scratch = folder / f"{name}-scratch"
    shutil.copytree(device.path, scratch)
    files = []
    for made in ("update", "update", "rollback", "trust", "update"):
        if made == "update":
            files.append(next_file(Device.open(scratch)))
        else:
            both = {"rollback": ROLLBACK, "trust": trust_file(trust(0, 2, version=2), 0)}
            files.append(both[made])
        apply(scratch, files[-1])
    return _change(folder, name, device, *files)


CHANGES: dict[str, Callable[[Path, str], Change]] = {
    made.__name__: made
    for made in (
        *(first, later, unsigned, rollback, after_rollback, trust_list),
        *(first_codebook, codebook, version_1, repair),
    )
}
