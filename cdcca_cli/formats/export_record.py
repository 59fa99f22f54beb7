"""What a folder of `cdcca export` says of itself: export.json, version 1.

JSON in UTF-8, one object, all keys always present:

    kind "export", version 1
    to          the target
    device      {"model", "overlay": digests, "sequence", "groups", "alpha", "rank"}
    files       {name: {"bytes", "sha256"}} of all other files in the folder
    inputs      {name: {"path", "sha256"}} of the runtime's files that it was made from
    placed      {group: number of the overlay's tensors that arrive}
    dropped     {group: {"tensors": names, "share": of the change's norm, or null if unknown}}
    unchecked   list of what the preflight could not compare, in words
    probe       null, or what the effect check compares with (`probe`)
    command     how the runtime is started in this folder, as a list of words, or null
"""

import hashlib
from pathlib import Path
from typing import Any

from cdcca_cli import files
from cdcca_cli.errors import BadData, MissingInput
from cdcca_cli.formats import records
from cdcca_cli.formats.digest import is_digest
from cdcca_cli.text import read_json

VERSION = 1
FILE_NAME = "export.json"
_MOST_BYTES = 1 << 24
_HINTS = records.HEAD | {"to": str, "device": dict, "files": dict, "inputs": dict}
_HINTS |= {"placed": dict, "dropped": dict, "unchecked": list[str]}
_HINTS |= {"probe": dict | None, "command": list[str] | None}
_DEVICE: dict[str, Any] = {
    "model": str | None,
    "overlay": str,
    "sequence": int,
    "groups": list[str],
}
_DEVICE |= {"alpha": float, "rank": int}
_FILE, _INPUT = {"bytes": int, "sha256": str}, {"path": str, "sha256": str}


def read_record(path: Path) -> dict[str, Any]:
    """What an export's folder says of itself. MissingInput, BadData, NewerFormat."""
    where = str(path / FILE_NAME)
    value = read_json(path / FILE_NAME, _MOST_BYTES)
    if not isinstance(value, dict) or value.get("kind") != "export":
        raise BadData(f"{where}: is no export of cdcca")
    version = records.field(value, "version", int, where)
    records.check_version(version, VERSION, "export format", where)
    found = records.fields(value, _HINTS, where)
    of = records.fields(found["device"], _DEVICE, f"{where}: device")
    if not is_digest(of["overlay"]):
        raise BadData(f"{where}: 'overlay' is not a digest")
    for name, hints in (("files", _FILE), ("inputs", _INPUT)):
        for one in found[name].values():
            records.fields(one, hints, f"{where}: {name}")
    return found


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, "sha256:<64 hex digits>". Raises: MissingInput."""
    try:
        with open(path, "rb") as source:
            return f"sha256:{hashlib.file_digest(source, 'sha256').hexdigest()}"
    except OSError as error:
        raise MissingInput(files.reason(path, error)) from None
