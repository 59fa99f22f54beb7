"""The device folder, version 1: a frozen checkpoint's name, and what has been learnt on top.

    device.json                                    settings and state, JSON in UTF-8
    overlay/<sequence>-<digest16>.safetensors      one file for each overlay that is still needed
    lock                                           empty; held (flock) by whoever changes the folder

device.json, all keys always present:

    kind "device", version 1
    checkpoint      string: a folder, a hub id, "shipped:student" or "shipped:teacher"
    revision        string or null: of the hub id
    family          string: the family's name (transformers' model_type)
    qformer_layers  whole number >= 1 or null: how many layers of the Q-Former are kept
    quantize        "none", "int8" or "nf4": how the language model is held in memory
    groups          list of "norm", "bias", "query", "lora", each at most once
    lora            {"alpha": number > 0, "rank": whole number >= 1, "seed": whole number >= 0}
    tower           digest of the vision tower
    current         {"digest": overlay's digest, "file": its path in the folder, "sequence": number}
    previous        the same, or null
    highest_sequence  the highest sequence that was ever current; it stays when a rollback goes back

An overlay file is a record (`records`) of kind "overlay", version 1, header
{"kind": "overlay", "sequence": as in device.json, "version": 1}; its tensors are float32, finite,
by parameter name. `sequence` is 0 for the overlay of `cdcca init`, and the update's for one that
an update made. <digest16> is the digest's first 16 hexadecimal digits.

device.json is the only truth: it is replaced as a whole, after the overlay it names is on the disk,
and files that it does not name are deleted afterwards. So the folder is sound whenever the power
fails. The checkpoint is referred to, never written or checked here; no weights of it are kept.
"""

import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from cdcca_cli import streams
from cdcca_cli.errors import BadData, CannotWrite, MissingInput, NewerFormat
from cdcca_cli.formats import records
from cdcca_cli.formats.digest import is_digest, overlay_digest, short

VERSION = 1
OVERLAY_KINDS = {"overlay": 1}
FILE_NAME = "device.json"
GROUPS = ("norm", "bias", "query", "lora")
QUANTIZATIONS = ("none", "int8", "nf4")
OVERLAY_LIMITS = records.Limits(record_bytes=1 << 32)
_KEYS = {
    *("kind", "version", "checkpoint", "revision", "family", "qformer_layers", "quantize"),
    *("groups", "lora", "tower", "current", "previous", "highest_sequence"),
}
_FILE = re.compile(r"overlay/(0|[1-9][0-9]{0,15})-[0-9a-f]{16}\.safetensors")

Quantize = Literal["none", "int8", "nf4"]


@dataclass(frozen=True)
class Lora:
    """How the low-rank part starts and scales: delta = alpha / rank * B @ A."""

    rank: int
    alpha: float
    seed: int


@dataclass(frozen=True)
class DeviceSettings:
    """What `cdcca init` decided, for ever."""

    checkpoint: str
    family: str
    tower: str
    lora: Lora
    groups: tuple[str, ...] = GROUPS
    qformer_layers: int | None = None
    quantize: Quantize = "none"
    revision: str | None = None


@dataclass(frozen=True)
class Slot:
    """One overlay of the folder."""

    sequence: int
    digest: str
    file: str


@dataclass(frozen=True)
class State:
    """Which overlays there are."""

    current: Slot
    previous: Slot | None
    highest_sequence: int


class Device:
    """A device folder on disk: its settings, which overlay is current, and how to change that."""

    def __init__(self, path: Path, settings: DeviceSettings, state: State) -> None:
        self.path = path
        self.settings = settings
        self._state = state
        self._lock_depth = 0

    # ---- what it is

    @property
    def checkpoint(self) -> str:
        return self.settings.checkpoint

    @property
    def revision(self) -> str | None:
        return self.settings.revision

    @property
    def family(self) -> str:
        return self.settings.family

    @property
    def tower(self) -> str:
        return self.settings.tower

    @property
    def lora(self) -> Lora:
        return self.settings.lora

    @property
    def groups(self) -> tuple[str, ...]:
        return self.settings.groups

    @property
    def qformer_layers(self) -> int | None:
        return self.settings.qformer_layers

    @property
    def quantize(self) -> Quantize:
        return self.settings.quantize

    @property
    def current(self) -> Slot:
        return self._state.current

    @property
    def previous(self) -> Slot | None:
        return self._state.previous

    @property
    def highest_sequence(self) -> int:
        return self._state.highest_sequence

    @property
    def digest(self) -> str:
        """The current overlay's."""
        return self.current.digest

    @property
    def sequence(self) -> int:
        """The current overlay's."""
        return self.current.sequence

    def as_json(self) -> dict[str, Any]:
        """What device.json holds."""
        return {
            "kind": "device",
            "version": VERSION,
            **asdict(self.settings),
            "groups": list(self.settings.groups),
            **asdict(self._state),
        }

    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.checkpoint} ({self.family}), groups {', '.join(self.groups)}, "
            f"overlay {short(self.digest)} at sequence {self.sequence}"
        )

    # ---- reading

    @classmethod
    def open(cls, path: Path | str) -> "Device":
        """Open a folder. MissingInput if there is none, BadData, NewerFormat."""
        path = Path(path)
        return cls(path, *_parse(_read_state(path), str(path / FILE_NAME)))

    def read_overlay(self) -> dict[str, np.ndarray]:
        """The current overlay, float32 by name, its digest verified. MissingInput, BadData."""
        return self._read_slot(self.current)

    def _read_slot(self, slot: Slot) -> dict[str, np.ndarray]:
        file = self.path / slot.file
        with streams.binary_input(file) as source:
            tensors, sequence = read_overlay_file(source, where=str(file))
        found = overlay_digest(tensors)
        if (found, sequence) != (slot.digest, slot.sequence):
            raise BadData(
                f"{file}: expected sequence {slot.sequence}, {short(slot.digest)}; found sequence "
                f"{sequence}, {short(found)}: the folder is damaged, roll back or copy it again"
            )
        return tensors

    # ---- changing

    @classmethod
    def create(
        cls,
        path: Path | str,
        settings: DeviceSettings,
        overlay: Mapping[str, np.ndarray],
        *,
        force: bool = False,
    ) -> "Device":
        """Make a folder with its first overlay, sequence 0.

        An existing device folder is replaced only with `force`; a folder with other things in it
        never is. Raises: CannotWrite, and BadData for settings or an overlay that are not sound.
        """
        path = Path(path)
        _refuse_taken(path, force)
        slot, data = _encode_overlay(overlay, 0)
        device = cls(path, settings, State(slot, None, 0))
        _parse(device.as_json(), f"{path}: settings")
        made = [folder for folder in (path, path / "overlay") if not folder.exists()]
        try:
            streams.make_folder(path / "overlay")
            with device._locked_file():
                _refuse_taken(path, force)  # again: another init may have been quicker
                device._store(slot, data)
        except BaseException:
            if made:
                _remove(path / slot.file, path / "lock", *reversed(made))
            raise
        return device

    def install(self, overlay: Mapping[str, np.ndarray], sequence: int) -> None:
        """Make an overlay the current one; the one before stays for `rollback`.

        The file is on the disk before device.json names it; older files are deleted afterwards.
        The caller decides whether the sequence may be installed. Raises: CannotWrite, BadData.
        """
        with self.lock():
            slot, data = _encode_overlay(overlay, sequence)
            previous = self._state.previous if slot == self.current else self.current
            highest = max(self.highest_sequence, sequence)
            self._change(State(slot, previous, highest), slot, data)

    def rollback(self) -> None:
        """Make the previous overlay the current one again; highest_sequence stays.

        Raises: MissingInput if there is none, BadData if its file is damaged: nothing changes then.
        """
        with self.lock():
            slot = self.previous
            if slot is None:
                raise MissingInput(f"{self.path}: there is no earlier overlay to go back to")
            self._read_slot(slot)
            self._change(State(slot, None, self.highest_sequence), slot, None)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from changing the folder; waits for them. State is read afresh.

        May be entered again while it is held.
        """
        if self._lock_depth:
            yield
            return
        with self._locked_file():
            self.settings, self._state = _parse(_read_state(self.path), str(self.path / FILE_NAME))
            self._lock_depth = 1
            try:
                yield
            finally:
                self._lock_depth = 0

    @contextmanager
    def _locked_file(self) -> Iterator[None]:
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise _cannot_write(self.path / "lock", error) from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                streams.message(f"{self.path}: waiting for another process that is changing it")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                raise _cannot_write(self.path / "lock", error) from None
            yield
        finally:
            os.close(descriptor)

    def _change(self, state: State, slot: Slot, data: bytes | None) -> None:
        before, self._state = self._state, state
        try:
            self._store(slot, data)
        except BaseException:
            self._state = before
            raise

    def _store(self, slot: Slot, data: bytes | None) -> None:
        if data is not None:
            streams.atomic_write_bytes(self.path / slot.file, data)
        text = records.dump_json(self.as_json()) + "\n"
        try:
            streams.atomic_write_bytes(self.path / FILE_NAME, text.encode())
        except BaseException:
            # Ctrl-C may come after the rename: what the disk says decides.
            with suppress(OSError):
                if slot.file not in (self.path / FILE_NAME).read_text():
                    _remove(self.path / slot.file)
            raise
        kept = {slot.file, self.previous.file if self.previous else ""}
        stale = [f for f in (self.path / "overlay").iterdir() if f"overlay/{f.name}" not in kept]
        _remove(*stale, *self.path.glob(f".{FILE_NAME}.*"))  # also what a killed process left


def write_overlay_file(
    out: streams.Writable, overlay: Mapping[str, np.ndarray], sequence: int
) -> int:
    """Write an overlay file; returns its bytes."""
    header = {"kind": "overlay", "version": OVERLAY_KINDS["overlay"], "sequence": sequence}
    return records.write_record(out, overlay, header)


def read_overlay_file(source: Any, *, where: str = "overlay") -> tuple[dict[str, np.ndarray], int]:
    """The tensors and the sequence of an overlay file. BadData, NewerFormat."""
    record = records.read_only_record(source, OVERLAY_KINDS, limits=OVERLAY_LIMITS, where=where)
    records.exact_keys(record.header, {"kind", "version", "sequence"}, where)
    sequence = records.field(record.header, "sequence", int, where)
    if sequence < 0:
        raise BadData(f"{where}: a sequence of {sequence}")
    check_overlay(record.tensors, where)
    return record.tensors, sequence


def check_overlay(tensors: Mapping[str, np.ndarray], where: str) -> None:
    """Refuse tensors that are not float32 or not finite. BadData."""
    for name, array in tensors.items():
        if array.dtype != np.float32:
            raise BadData(f"{where}: {name[:80]!r} is {array.dtype}; overlays are float32")
        if not np.isfinite(array).all():
            raise BadData(f"{where}: {name[:80]!r} has values that are not finite")


def _encode_overlay(overlay: Mapping[str, np.ndarray], sequence: int) -> tuple[Slot, bytes]:
    check_overlay(overlay, "the new overlay")
    digest = overlay_digest(overlay)
    out = BytesIO()
    write_overlay_file(out, overlay, sequence)
    file = f"overlay/{sequence}-{digest.removeprefix('sha256:')[:16]}.safetensors"
    return Slot(sequence, digest, file), out.getvalue()


def _refuse_taken(path: Path, force: bool) -> None:
    try:
        names = {entry.name for entry in path.iterdir()}
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot_write(path, error) from None
    if FILE_NAME in names:
        if not force:
            raise CannotWrite(f"{path}: is a device folder already: --force starts it anew")
    elif names - {"overlay", "lock"}:
        raise CannotWrite(f"{path}: has other things in it: name a new folder")


def _remove(*paths: Path) -> None:
    for path in paths:
        with suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()


def _cannot_write(path: Path, error: OSError) -> CannotWrite:
    return CannotWrite(f"{path}: {(error.strerror or str(error)).lower()}")


# ---------------------------------------------------------------- device.json


def _read_state(path: Path) -> Any:
    file = path / FILE_NAME
    if path.is_dir() and not file.exists():
        raise MissingInput(f"{path}: no device folder (no {FILE_NAME}): make one with cdcca init")
    try:
        with file.open("rb") as source:
            text = source.read((1 << 20) + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise MissingInput(
            f"{path}: cannot be opened as a device folder ({(reason or '').lower()}): "
            "make one with cdcca init"
        ) from None
    if len(text) > 1 << 20:
        raise BadData(f"{file}: larger than {1 << 20:,} bytes")
    return records.load_json(text, str(file))


def _parse(data: Any, where: str) -> tuple[DeviceSettings, State]:
    if not isinstance(data, dict) or data.get("kind") != "device":
        raise BadData(f"{where}: is not the device.json of cdcca")
    version = records.field(data, "version", int, where)
    if version > VERSION:
        raise NewerFormat(
            f"{where}: device folder version {version}; this cdcca reads up to {VERSION}: "
            "upgrade it"
        )
    records.exact_keys(data, _KEYS, where)
    current = _slot(records.field(data, "current", dict, where), where)
    older = records.field(data, "previous", dict, where, optional=True)
    highest = records.field(data, "highest_sequence", int, where)
    previous = None if older is None else _slot(older, where)
    if highest < max(current.sequence, previous.sequence if previous else 0):
        raise BadData(f"{where}: highest_sequence {highest} is below an overlay's")
    return _settings(data, where), State(current, previous, highest)


def _settings(data: Mapping[str, Any], where: str) -> DeviceSettings:
    lora = records.field(data, "lora", dict, where)
    records.exact_keys(lora, {"rank", "alpha", "seed"}, f"{where}: lora")
    settings = DeviceSettings(
        checkpoint=records.field(data, "checkpoint", str, where),
        revision=records.field(data, "revision", str, where, optional=True),
        family=records.field(data, "family", str, where),
        qformer_layers=records.field(data, "qformer_layers", int, where, optional=True),
        quantize=cast(Quantize, records.field(data, "quantize", str, where)),
        groups=tuple(records.list_of(data, "groups", str, where) or ()),
        lora=Lora(
            rank=records.field(lora, "rank", int, where),
            alpha=records.field(lora, "alpha", float, where),
            seed=records.field(lora, "seed", int, where),
        ),
        tower=records.field(data, "tower", str, where),
    )
    groups = settings.groups
    sound = {
        "checkpoint": settings.checkpoint != "",
        "family": settings.family != "",
        "quantize": settings.quantize in QUANTIZATIONS,
        "qformer_layers": settings.qformer_layers is None or settings.qformer_layers >= 1,
        "groups": set(groups) <= set(GROUPS) and len(set(groups)) == len(groups) > 0,
        "lora": settings.lora.rank >= 1 and settings.lora.alpha > 0 and settings.lora.seed >= 0,
        "tower": is_digest(settings.tower),
    }
    if wrong := [name for name, is_sound in sound.items() if not is_sound]:
        raise BadData(f"{where}: {wrong[0]!r} cannot be {str(data[wrong[0]])[:80]}")
    return settings


def _slot(data: Mapping[str, Any], where: str) -> Slot:
    records.exact_keys(data, {"sequence", "digest", "file"}, where)
    slot = Slot(
        records.field(data, "sequence", int, where),
        records.field(data, "digest", str, where),
        records.field(data, "file", str, where),
    )
    if slot.sequence < 0 or not is_digest(slot.digest) or not _FILE.fullmatch(slot.file):
        raise BadData(f"{where}: no sound overlay entry: {slot}"[:300])
    return slot
