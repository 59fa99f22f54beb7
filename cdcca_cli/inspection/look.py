"""A path or standard input, read by the reader of its kind."""

import os
from pathlib import Path

from cdcca_cli import remote, streams
from cdcca_cli.formats.kind import kind_of_folder, sniff
from cdcca_cli.formats.names import EXPORT_FILE
from cdcca_cli.inspection import contents, folders
from cdcca_cli.inspection.summary import Summary

_FRAMES = ("image", "video", "manifest", "annotations")


def look(file: str | None) -> Summary:
    """What a file or folder is, checked to its end; None and "-": standard input. CdccaError."""
    path = Path(remote.path_of(file or "-"))
    if path.name in ("device.json", "config.json", EXPORT_FILE):
        path = path.parent
    if os.path.isdir(path):
        kind = kind_of_folder(path)
        if kind == "device":
            return folders.summarize_device(path)
        if kind == "export":
            return folders.summarize_export(path)
        if kind == "checkpoint":
            return folders.summarize_checkpoint(path)
        return folders.summarize_frames(path, kind)
    name = streams.input_name(file)
    with streams.binary_input(file) as source:
        kind, stream = sniff(source, name)
        if kind not in _FRAMES or path == Path("-") or remote.is_address(file):
            return contents.summarize(kind, stream, name)
    return folders.summarize_frames(path, kind)
