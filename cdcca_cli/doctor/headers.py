"""The tensors of a checkpoint, found by the headers of its safetensors files.

A folder's files are read in place, those of a hub id by ranged requests, so that of a checkpoint of
many gigabytes only the headers and the tensors that are asked for are fetched.
"""

import io
import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from cdcca_cli import files
from cdcca_cli.errors import BadData, MissingInput, Unavailable
from cdcca_cli.formats import records
from cdcca_cli.inspection import weights
from cdcca_cli.text import load_json

if TYPE_CHECKING:
    import torch
    from _typeshed import WriteableBuffer

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_INDEX_BYTES = 1 << 26
_AHEAD_BYTES = 1 << 20
"""What one request to the hub fetches at least: headers and small tensors come many at a time."""
_PIECE_BYTES = 1 << 26
_SECONDS = 60
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
Open = Callable[[str], AbstractContextManager[BinaryIO]]
"""Opens one of a checkpoint's files, by its name, wherever it was left. Raises: MissingInput."""


@dataclass(frozen=True)
class Tensors:
    """The tensors of a checkpoint by name, each with its file and where that file's data begins."""

    named: str
    places: Mapping[str, tuple[str, int, weights.Stored]]
    open_file: Open

    def files(self) -> set[str]:
        return {file for file, _, _ in self.places.values()}

    def num_bytes(self) -> dict[str, int]:
        """By dtype, as torch names it, the largest first."""
        found = Counter[str]()
        for _, _, stored in self.places.values():
            found[_DTYPES.get(stored.dtype, stored.dtype)] += stored.end - stored.begin
        return dict(found.most_common())

    def shapes(self) -> "dict[str, tuple[torch.dtype, tuple[int, ...]]]":
        """dtype and shape by name; those of a dtype that torch does not have are left out."""
        import torch

        return {
            name: (getattr(torch, _DTYPES[stored.dtype]), stored.shape)
            for name, (_, _, stored) in self.places.items()
            if stored.dtype in _DTYPES
        }

    def read(self, name: str) -> "torch.Tensor":
        """One tensor. Raises: BadData if its bytes do not fit its shape or are not all there."""
        import torch

        file, begin, stored = self.places[name]
        where = f"{self.named}: {file}: tensor {name[:80]!r}"
        dtype: torch.dtype = getattr(torch, _DTYPES[stored.dtype])
        num_bytes = stored.end - stored.begin
        if num_bytes != stored.size * dtype.itemsize:
            raise BadData(f"{where}: {num_bytes:,} bytes for the shape {list(stored.shape)}")
        fault = f"{where}: cut short"
        with self.open_file(file) as source:
            try:
                source.seek(begin + stored.begin)
            except (OSError, OverflowError):
                raise BadData(f"{fault}: no file is that long") from None
            data = records.read_exactly(source, num_bytes, fault, piece_bytes=_PIECE_BYTES)
        if not data:
            return torch.empty(stored.shape, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype).reshape(stored.shape)


def tensors(named: str, open_file: Open) -> Tensors | None:
    """Read the headers of a checkpoint's files; None if it has no weights.

    Raises: MissingInput for a file that the index names, BadData, and what `open_file` raises.
    """
    found = _names(named, open_file)
    if found is None:
        return None
    places: dict[str, tuple[str, int, weights.Stored]] = {}
    for file in found:
        with open_file(file) as source:
            source.seek(0)
            where = f"{named}: {file}"
            length = weights.header_bytes(source, where)
            for stored in weights.tensors(source, length, where):
                places[stored.name] = (file, 8 + length, stored)
    return Tensors(named, places, open_file)


def _names(named: str, open_file: Open) -> list[str] | None:
    """The files with weights: one, or those of the index, as transformers looks for them."""
    with suppress(MissingInput), open_file(ONE_FILE):
        return [ONE_FILE]
    try:
        with open_file(INDEX) as source:
            source.seek(0)
            text = source.read(_INDEX_BYTES)
    except MissingInput:
        return None
    table = load_json(text, f"{named}: {INDEX}")
    found = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(found, dict) or not all(map(_is_file_name, found.values())):
        raise BadData(f"{named}: {INDEX} has no weight_map of file names")
    return sorted(set(found.values()))


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and "/" not in name


def in_folder(folder: Path) -> Open:
    """The files of a folder."""

    def open_file(name: str) -> AbstractContextManager[BinaryIO]:
        try:
            return open(folder / name, "rb")
        except (OSError, ValueError) as error:
            raise MissingInput(files.reason(folder / name, error)) from None

    return open_file


def on_hub(repository: str, revision: str | None) -> Open:
    """The files of a hub id. Raises: MissingInput for one that is not there, Unavailable."""
    opened: dict[str, BinaryIO] = {}  # left open, with what was read ahead

    def open_file(name: str) -> AbstractContextManager[BinaryIO]:
        if (cached := in_cache(repository, name, revision)) is not None:
            return open(cached, "rb")
        if name not in opened:
            stream = io.BufferedReader(_Ranged(repository, name, revision), _AHEAD_BYTES)
            stream.peek()
            opened[name] = stream
        return nullcontext(opened[name])

    return open_file


def in_cache(repository: str, name: str, revision: str | None) -> str | None:
    """The path of a file that was fetched from the hub before; None if it was not."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, name, revision=revision)
    return found if isinstance(found, str) else None


class _Ranged(io.RawIOBase):
    """A file on the hub as a stream: each read is one request for a range of its bytes."""

    def __init__(self, repository: str, name: str, revision: str | None) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        self._where = f"{repository}: {name}"
        self._url = hf_hub_url(repository, name, revision=revision)
        # Compressed, a range would be one of the compressed bytes.
        self._headers = build_hf_headers(headers={"Accept-Encoding": "identity"})
        self._position, self._size = 0, 1

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begins = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        self._position = begins[whence] + offset
        return self._position

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer).cast("B")
        if not len(view) or self._position >= self._size:
            return 0
        data = self._fetch(self._position, self._position + len(view))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _fetch(self, begin: int, end: int) -> bytes:
        """Bytes [begin, end) of the file, fewer at its end."""
        from huggingface_hub.errors import EntryNotFoundError
        from huggingface_hub.utils import get_session, hf_raise_for_status

        wanted = self._headers | {"Range": f"bytes={begin}-{end - 1}"}
        try:
            response = get_session().get(self._url, headers=wanted, timeout=_SECONDS)
            hf_raise_for_status(response)
        except EntryNotFoundError:
            raise MissingInput(f"{self._where}: not on the hub") from None
        except Exception as error:  # the session's library, and so its errors, have changed before
            words = " ".join(str(error).split())[:300]
            raise Unavailable(f"{self._where}: cannot be fetched from the hub: {words}") from error
        span = re.fullmatch(
            r"bytes (\d{1,18})-\d+/(\d{1,18})", response.headers.get("Content-Range", "")
        )
        if response.status_code != 206 or span is None or int(span[1]) != begin:
            raise Unavailable(f"{self._where}: the hub does not send parts of a file")
        self._size = int(span[2])
        data: bytes = response.content
        return data[: end - begin]
