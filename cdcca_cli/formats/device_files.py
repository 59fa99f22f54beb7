"""The files of a device folder, named by sequence and digest: encoded, and read and verified.

`device` says which of them are current and kept.
"""

from io import BytesIO
from pathlib import Path

import numpy as np

from cdcca_cli import files, streams
from cdcca_cli.errors import BadData, MissingInput
from cdcca_cli.formats import codebook as codebook_format
from cdcca_cli.formats.codebook import Codebook
from cdcca_cli.formats.device_state import CODEBOOKS, OVERLAYS, Slot
from cdcca_cli.formats.digest import overlay_digest, short
from cdcca_cli.formats.overlay import (
    Overlay,
    check_overlay,
    read_overlay_file,
    write_overlay_file,
)


def encode_overlay(overlay: Overlay, sequence: int) -> tuple[Slot, bytes]:
    """Its entry in device.json, without signers, and its file. BadData if it is not sound."""
    check_overlay(overlay, "the new overlay")
    out = BytesIO()
    write_overlay_file(out, overlay, sequence)
    return _slot(OVERLAYS, sequence, overlay_digest(overlay)), out.getvalue()


def read_overlay(folder: Path, slot: Slot) -> dict[str, np.ndarray]:
    """An overlay's tensors, verified. MissingInput, BadData."""
    file = folder / slot.file
    with streams.binary_input(file) as source:
        tensors, sequence = read_overlay_file(source, where=str(file))
    found = overlay_digest(tensors)
    if (found, sequence) != (slot.digest, slot.sequence):
        raise BadData(
            f"{file}: expected sequence {slot.sequence}, {short(slot.digest)}; found sequence "
            f"{sequence}, {short(found)}: the folder is damaged, roll back or copy it again"
        )
    return tensors


def encode_codebook(codebook: Codebook) -> tuple[Slot, bytes]:
    """Its entry in device.json, without signers, and its file. BadData if it is not sound."""
    out = BytesIO()
    codebook_format.write_codebook(out, codebook)
    return _slot(CODEBOOKS, codebook.sequence, codebook.digest), out.getvalue()


def read_codebook(folder: Path, slot: Slot, tower: str) -> Codebook:
    """The codebook that device.json names, verified. MissingInput, BadData, NewerFormat."""
    found = read_named_codebook(folder / slot.file)
    if (found.digest, found.sequence, found.tower) != (slot.digest, slot.sequence, tower):
        raise BadData(
            f"{folder / slot.file}: not codebook {slot.sequence}, {short(slot.digest)}, of this "
            "device's vision tower: the folder is damaged, apply that codebook again"
        )
    return found


def find_codebook(folder: Path, digest: str) -> Codebook:
    """The codebook with this digest, current or not. MissingInput, BadData, NewerFormat."""
    for path in codebook_paths(folder):
        if path.name.endswith(_ending(digest)):
            found = read_named_codebook(path)
            if found.digest == digest:
                return found
    raise MissingInput(
        f"{folder}: has no codebook {short(digest)}: apply that codebook to this folder too, or "
        f"copy its file from the {CODEBOOKS} of the device that coded with it"
    )


def codebook_paths(folder: Path) -> list[Path]:
    """The files of all codebooks, in the order of their names. MissingInput if unreadable."""
    try:
        return sorted(path for path in (folder / CODEBOOKS).iterdir() if path.name[0] != ".")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise MissingInput(files.reason(folder / CODEBOOKS, error)) from None


def read_named_codebook(path: Path) -> Codebook:
    """The codebook in a file, which its name must fit. MissingInput, BadData, NewerFormat."""
    with streams.binary_input(path) as source:
        found = codebook_format.read_codebook(source, where=str(path))
    if path.name != f"{found.sequence}{_ending(found.digest)}":
        raise BadData(
            f"{path}: holds codebook {found.sequence}, {short(found.digest)}: the folder is "
            "damaged, copy this file again from a folder that has it"
        )
    return found


def _slot(folder: str, sequence: int, digest: str) -> Slot:
    return Slot(sequence, digest, f"{folder}/{sequence}{_ending(digest)}")


def _ending(digest: str) -> str:
    return f"-{digest.removeprefix('sha256:')[:16]}.safetensors"
