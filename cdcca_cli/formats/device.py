"""The device folder, version 4: the name of a frozen checkpoint, and the overlays learnt for it.

    device.json                                    settings and state, JSON in UTF-8
    overlay/<sequence>-<digest16>.safetensors      one file for each overlay that is still needed
    codebooks/<sequence>-<digest16>.safetensors    every codebook that was ever current
    profile.json                                   what is known of the frozen model (`profile`)
    notify                                         a command has to be told of a change (`mark`)
    lock                                           empty; locked (flock) to change the folder

device.json, all keys always present:

    kind "device", version 3 or 4
    checkpoint      string: a folder, a hub id, "shipped:student" or "shipped:teacher"
    revision        string or null: of the hub id
    family          string: the family's name (transformers' model_type)
    qformer_layers  whole number >= 1 or null: how many layers of the Q-Former are kept
    quantize        "none", "int8" or "nf4": how memory holds the language model
    groups          list of "norm", "bias", "query", "lora", each at most once; in version 4 one of
                    "lora.language" and "lora.connector" in place of "lora", which is both
    lora            {"alpha": number > 0, "rank": whole number >= 1, "seed": whole number >= 0}
    tower           digest of the vision tower
    model           digest of what is frozen and of the first overlay (`models.initial`), or null
    template        version 4 alone: string or null: of prompts, with {prompt} for the question, in
                    place of the checkpoint's own
    current         {"digest": overlay's digest, "file": its path in the folder, "sequence": number,
                    "signed_by": the trusted keys that signed its update, ascending; may be empty}
    kept            list of the same: the overlays before it, newest first, each of a lower sequence
    keep            whole number >= 1: how many overlays before the current one are kept
    highest_sequence  the highest sequence that was ever current; a rollback does not lower it
    trust           null, or the keys that updates must be signed by: "signed" of a `trust` list
    codebook        null, or the codebook that tokens are coded with, as `current` has it

An overlay file (`overlay`) has the same sequence as its entry in device.json: its update's, or 0
for the first overlay. <digest16> is the first 16 hexadecimal digits of the digest. A codebook's
file is as it arrived (`codebook`), with the sequence in its header.

device.json is replaced as a whole once the file that it names is on the disk; then the overlays
that neither it nor a mark names are deleted. Codebooks stay, however many, because a mirror decodes
old shards with them. Each file is synced before its rename and its folder after, so counter, keys,
overlay and codebook change together or not at all, even if the power fails. If an overlay file is
damaged, the newest sound kept one is used; if it is the codebook's, the device has none until it
comes again.

Version 3 is written if groups and template allow it. Versions 1 and 2 are read as well, written as
version 3 or 4 at the next change. Version 2 has no codebook (null). Version 1 has also no model,
trust, keep and signed_by (null, null, 1, empty), and "previous", a slot or null, in place of
"kept".
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from cdcca_cli import files, streams
from cdcca_cli.errors import BadData, CannotWrite, MissingInput, NewerFormat
from cdcca_cli.formats import device_files, records
from cdcca_cli.formats.codebook import Codebook
from cdcca_cli.formats.device_state import (
    CODEBOOKS,
    FILE_NAME,
    OVERLAYS,
    DeviceSettings,
    Lora,
    Slot,
    State,
    parse_state,
    read_state,
)
from cdcca_cli.formats.digest import short
from cdcca_cli.formats.locks import lock
from cdcca_cli.formats.mark import FILE_NAME as MARK
from cdcca_cli.formats.mark import files_of_mark, remove_mark
from cdcca_cli.formats.overlay import Overlay
from cdcca_cli.formats.profile import FILE_NAME as PROFILE
from cdcca_cli.formats.profile import Profile, read_profile
from cdcca_cli.formats.trust import Trust


class Device:
    """A device folder on disk, and how it changes."""

    def __init__(self, path: Path, settings: DeviceSettings, state: State) -> None:
        self.path = path
        self.settings = settings
        self._state = state
        self._lock_depth = 0

    @property
    def lora(self) -> Lora:
        return self.settings.lora

    @property
    def model(self) -> str | None:
        """Digest of all that never changes; None in a folder of format version 1."""
        return self.settings.model

    @property
    def trust(self) -> Trust | None:
        """The keys that updates must be signed by; None: any update is taken."""
        return self._state.trust

    @property
    def current(self) -> Slot:
        return self._state.current

    @property
    def kept(self) -> tuple[Slot, ...]:
        """The overlays before the current one, newest first."""
        return self._state.kept

    @property
    def codebook_slot(self) -> Slot | None:
        """The codebook that device.json names; its file may be damaged (see `codebook`)."""
        return self._state.codebook

    @property
    def next_codebook(self) -> int:
        """The sequence of the next codebook that this device takes, after the last."""
        return 0 if self.codebook_slot is None else self.codebook_slot.sequence + 1

    @property
    def highest_sequence(self) -> int:
        return self._state.highest_sequence

    @property
    def digest(self) -> str:
        return self.current.digest

    @property
    def sequence(self) -> int:
        return self.current.sequence

    def as_json(self) -> dict[str, Any]:
        """What device.json holds."""
        found: dict[str, Any] = json.loads(self._text())
        return found

    def _text(self) -> str:
        settings_and_state = asdict(self.settings) | asdict(self._state)
        version = self.settings.version
        if version < 4:
            del settings_and_state["template"]
        return records.dump_json({"kind": "device", "version": version, **settings_and_state})

    def summary(self) -> str:
        settings = self.settings
        codebook = self.codebook_slot
        return (
            f"{settings.checkpoint} ({settings.family}), groups {', '.join(settings.groups)}, "
            f"overlay {short(self.digest)} at sequence {self.sequence}"
            + ("" if codebook is None else f", codebook {short(codebook.digest)}")
        )

    @classmethod
    def open(cls, path: Path | str) -> "Device":
        """Open a folder. MissingInput if there is none, BadData, NewerFormat."""
        return cls(Path(path), *_load(Path(path)))

    def read_overlay(self) -> dict[str, np.ndarray]:
        """The current overlay, float32 by name, verified, even if another process installed it.

        If its file is damaged, the newest sound kept overlay, which becomes current in this object,
        not on disk. Raises: MissingInput, BadData if no overlay is sound.
        """
        try:
            return self.read_slot(self.current)
        except (BadData, MissingInput) as fault:
            if self._has_changed():
                return self.read_overlay()
            state, tensors = self._before(fault)
            sequence = state.current.sequence
            streams.message(f"{fault}; using the newest sound one kept, of sequence {sequence}")
            self._state = state
            return tensors

    def read_kept(self, sequence: int) -> tuple[Slot, dict[str, np.ndarray]]:
        """The current or a kept overlay, by its sequence. Raises: MissingInput, BadData."""
        for slot in (self.current, *self.kept):
            if slot.sequence == sequence:
                return slot, self.read_slot(slot)
        have = ", ".join(str(slot.sequence) for slot in (self.current, *self.kept))
        raise MissingInput(
            f"{self.path}: keeps no overlay of sequence {sequence}, only of {have} "
            f"(keep is {self._state.keep})"
        )

    def read_slot(self, slot: Slot) -> dict[str, np.ndarray]:
        """One overlay's tensors, verified. Raises: MissingInput, BadData."""
        return device_files.read_overlay(self.path, slot)

    def _is_sound(self, slot: Slot) -> bool:
        try:
            self.read_slot(slot)
        except (BadData, MissingInput):
            return False
        return True

    def profile(self) -> Profile:
        """What is known of the frozen model. Raises: MissingInput, BadData, NewerFormat."""
        return read_profile(self.path, self.model)

    def codebook(self) -> Codebook | None:
        """The codebook that tokens are coded with; None, and a message, if its file is damaged."""
        if self.codebook_slot is None:
            return None
        try:
            return device_files.read_codebook(self.path, self.codebook_slot, self.settings.tower)
        except (BadData, MissingInput, NewerFormat) as fault:
            streams.message(f"{fault}; going on without a codebook")
            return None

    def codebook_of(self, digest: str) -> Codebook:
        """The current or an earlier codebook, for what was coded with it. MissingInput, BadData."""
        return device_files.find_codebook(self.path, digest)

    def _has_changed(self) -> bool:
        """Read the state again; whether it differs from this object's."""
        if self._lock_depth:
            return False
        before = self._state
        self.settings, self._state = _load(self.path)
        return self._state != before

    def _before(self, fault: Exception) -> tuple[State, dict[str, np.ndarray]]:
        """The state in which the newest sound kept overlay is current. Raises: `fault` if none."""
        for index, slot in enumerate(self.kept):
            try:
                tensors = self.read_slot(slot)
            except (BadData, MissingInput):
                continue
            return replace(self._state, current=slot, kept=self.kept[index + 1 :]), tensors
        raise fault

    @classmethod
    def create(
        cls,
        path: Path | str,
        settings: DeviceSettings,
        overlay: Overlay,
        *,
        force: bool = False,
        trust: Trust | None = None,
        keep: int = 1,
        codebook: Codebook | None = None,
    ) -> "Device":
        """Make a folder with its first overlay, sequence 0. Raises: CannotWrite, BadData.

        force: replace an existing device folder; any other folder must be empty.
        """
        path = Path(path)
        _refuse_taken(path, force)
        slot, data = device_files.encode_overlay(overlay, 0)
        new, coding = {slot.file: data}, None
        if codebook is not None:
            coding, new_codebook = device_files.encode_codebook(codebook)
            new[coding.file] = new_codebook
        device = cls(path, settings, State(slot, keep=keep, trust=trust, codebook=coding))
        parse_state(device.as_json(), f"{path}: settings")
        folders = [path, *((path / name).parent for name in new)]
        made = [folder for folder in folders if not folder.exists()]
        try:
            for folder in folders:
                files.make_folder(folder)
            with device._locked_file():
                _refuse_taken(path, force)  # again: another init may have been quicker
                if (path / MARK).exists():
                    remove_mark(path)  # of the device that is replaced
                device._store(new)
                _remove(*set(path.glob(f"{CODEBOOKS}/*")) - {path / name for name in new})
                if path in made:
                    _sync(path.parent)
        except BaseException:
            if made:
                _remove(*(path / name for name in (*new, "lock")), *reversed(made))
            raise
        return device

    def install(self, overlay: Overlay, sequence: int, signed_by: Sequence[str] = ()) -> None:
        """Make an overlay current. The caller has checked its sequence. CannotWrite, BadData."""
        with self.lock():
            slot, data = device_files.encode_overlay(overlay, sequence)
            older = [old for old in (self.current, *self.kept) if old.sequence < sequence]
            state = replace(
                self._state,
                current=replace(slot, signed_by=tuple(signed_by)),
                kept=tuple(older[: self._state.keep]),
                highest_sequence=max(self.highest_sequence, sequence),
            )
            self._change(state, {slot.file: data})

    def install_trust(self, trust: Trust) -> None:
        """Trust these keys from now on; the caller has checked them. Raises: CannotWrite."""
        with self.lock():
            self._change(replace(self._state, trust=trust))

    def install_codebook(self, codebook: Codebook, signed_by: Sequence[str] = ()) -> None:
        """Code tokens with this from now on; the caller has checked it. Raises: CannotWrite."""
        with self.lock():
            slot, data = device_files.encode_codebook(codebook)
            files.make_folder(self.path / CODEBOOKS)
            _sync(self.path)  # also if another process made the folder: it may have been killed
            state = replace(self._state, codebook=replace(slot, signed_by=tuple(signed_by)))
            self._change(state, {slot.file: data})

    def rollback(self) -> None:
        """Make the newest sound kept overlay current. MissingInput if none is kept, BadData."""
        with self.lock():
            if not self.kept:
                raise MissingInput(f"{self.path}: there is no earlier overlay to go back to")
            fault = BadData(f"{self.path}: no earlier overlay is sound: the folder is damaged")
            state, _ = self._before(fault)
            self._change(state)

    def restore(self, before: State) -> None:
        """Make the overlays of an earlier state count again, and lower highest_sequence to its.

        Keys and codebook stay. Raises: BadData if none of its overlays is sound; CannotWrite.
        """
        with self.lock():
            state = replace(
                self._state,
                current=before.current,
                kept=before.kept,
                highest_sequence=before.highest_sequence,
            )
            if not any(map(self._is_sound, (before.current, *before.kept))):
                raise BadData(f"{self.path}: no overlay from before is sound")
            self._change(state)

    def written_state(self) -> State:
        """The state as it is on the disk. Raises: MissingInput, BadData."""
        return _load(self.path)[1]

    def tidy(self) -> None:
        """Delete the overlays that nothing names any more."""
        named = {slot.file for slot in (self.current, *self.kept)} | files_of_mark(self.path)
        with suppress(OSError):
            for file in (self.path / OVERLAYS).iterdir():
                if f"{OVERLAYS}/{file.name}" not in named:
                    _remove(file)
            hidden = (f".{FILE_NAME}.*", f".{MARK}.*", f"{CODEBOOKS}/.*")  # of a killed process
            _remove(*(file for pattern in hidden for file in self.path.glob(pattern)))

    def settle(self) -> None:
        """Sync what another process changed, in case it was killed before its sync. CannotWrite."""
        for folder in (self.path / OVERLAYS, self.path / CODEBOOKS, self.path):
            if folder.exists():
                _sync(folder)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from changing the folder; reads the state again. Reentrant."""
        if self._lock_depth:
            yield
            return
        with self._locked_file():
            self.settings, self._state = _load(self.path)
            self._lock_depth = 1
            try:
                yield
            finally:
                self._lock_depth = 0

    @contextmanager
    def _locked_file(self) -> Iterator[None]:
        path = self.path / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise CannotWrite(files.reason(path, error)) from None
        try:
            lock(descriptor, str(self.path))
            yield
        finally:
            os.close(descriptor)

    def _change(self, state: State, new: Mapping[str, bytes] | None = None) -> None:
        before, self._state = self._state, state
        try:
            self._store(new or {})
        except BaseException:
            self._state = before
            raise

    def _store(self, new: Mapping[str, bytes]) -> None:
        """Write new files, if any, then device.json, then delete what is not needed any more."""
        text = f"{self._text()}\n".encode()
        is_flipping = False
        try:
            for name, data in new.items():
                files.atomic_write_bytes(self.path / name, data)
            is_flipping = True
            files.atomic_write_bytes(self.path / FILE_NAME, text)
        except BaseException as error:
            # The rename may have happened: trust what is on the disk. (The text may also have been
            # there before, when a damaged file is rewritten under its own name.)
            written = self._written()
            if not is_flipping or written != text:
                _remove(*(self.path / name for name in new if name.encode() not in written))
                raise
            if not isinstance(error, CannotWrite):
                raise
            streams.message(f"{error}: a power failure may bring the state before back")
            return  # and with it the files that it names
        self.tidy()

    def _written(self) -> bytes:
        """device.json as it is on the disk; nothing if there is none yet."""
        try:
            return (self.path / FILE_NAME).read_bytes()
        except FileNotFoundError:
            return b""


def _load(path: Path) -> tuple[DeviceSettings, State]:
    return parse_state(read_state(path), str(path / FILE_NAME))


def _refuse_taken(path: Path, force: bool) -> None:
    try:
        names = {entry.name for entry in path.iterdir()}
    except FileNotFoundError:
        return
    except OSError as error:
        raise CannotWrite(files.reason(path, error)) from None
    if FILE_NAME in names:
        if not force:
            raise CannotWrite(f"{path}: is a device folder already: `force` replaces it")
    elif names - {OVERLAYS, CODEBOOKS, PROFILE, MARK, "lock"}:
        raise CannotWrite(f"{path}: has other things in it: name a new folder")


def _remove(*paths: Path) -> None:
    for path in paths:
        with suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()


def _sync(folder: Path) -> None:
    try:
        files.sync_folder(folder)
    except OSError as error:
        raise CannotWrite(files.reason(folder, error)) from None
