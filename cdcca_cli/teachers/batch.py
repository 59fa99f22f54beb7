"""Requests and answers in files: OpenAI's batch format, which `vllm run-batch`, LiteLLM and hosted
batch APIs read.

    {"custom_id": ..., "method": "POST", "url": "/v1/chat/completions", "body": {...}}
    {"custom_id": ..., "response": {"status_code": 200, "body": {...}}, "error": null}

One JSON object a line. Answers may come in any order, and in part; of two with one id the first
counts. Reading keeps 24 bytes of memory an answer.
"""

import json
import shutil
import tempfile
from array import array
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, BinaryIO, TextIO

import numpy as np

from cdcca_cli.errors import BadData
from cdcca_cli.serving import openai
from cdcca_cli.serving.http import fault
from cdcca_cli.serving.openai import Dialect, Reply
from cdcca_cli.teachers import chat
from cdcca_cli.teachers.chat import Ask
from cdcca_cli.text import load_json

ADDRESS = "/v1/chat/completions"
_LONGEST_LINE = 1 << 26


def write_request(out: TextIO, ask: Ask, model: str, dialect: Dialect) -> int:
    """Write one line. Returns: its length in bytes."""
    body = chat.body(ask, model, dialect)
    line = json.dumps(
        {"custom_id": ask.key, "method": "POST", "url": ADDRESS, "body": body}, ensure_ascii=False
    )
    out.write(f"{line}\n")
    return len(line.encode()) + 1


class Answers:
    """The answers in a file, found by their ids. model: that they name first, "" if none does."""

    def __init__(self, source: BinaryIO, where: str, refused: Callable[[BadData], object]) -> None:
        """Args: source: stays open. refused: what is done with a line that is none."""
        self._file = source if source.seekable() else _spooled(source)
        self._where = where
        self.model = ""
        keys, places, number = array("Q"), array("Q"), 0
        while True:
            place = self._file.tell()
            line = self._file.readline(_LONGEST_LINE)
            if not line:
                break
            number += 1
            if not line.strip():
                continue
            named = f"{where}: line {number}"
            try:
                if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
                    while (rest := self._file.readline(_LONGEST_LINE)) and rest[-1:] != b"\n":
                        pass
                    raise BadData(f"{named} is longer than {_LONGEST_LINE:,} bytes")
                found = _result(line, named)
            except BadData as error:
                refused(error)
                continue
            self.model = self.model or _model(found)
            keys.extend(_hashed(found["custom_id"]))
            places.append(place)
        # Sorted by both halves of the hash, and by place, so that the first of two comes first.
        halves = np.frombuffer(keys, np.uint64).reshape(-1, 2)
        order = np.lexsort((np.arange(len(halves)), halves[:, 1], halves[:, 0]))
        self._first, self._second = halves[order, 0], halves[order, 1]
        self._places = np.frombuffer(places, np.uint64)[order]

    def __len__(self) -> int:
        return len(self._places)

    def ask(self, ask: Ask) -> Reply:
        """The answer to one request. Raises: BadData if there is none, or an error instead."""
        first, second = _hashed(ask.key)
        left, right = (
            int(np.searchsorted(self._first, np.uint64(first), side=side))
            for side in ("left", "right")
        )
        at = left + int(np.searchsorted(self._second[left:right], np.uint64(second)))
        if at == right or self._second[at] != second:
            raise BadData(f"{self._where}: has no answer to it")
        self._file.seek(int(self._places[at]))
        found = _result(self._file.readline(_LONGEST_LINE), self._where)
        response = found.get("response")
        if found.get("error") or not isinstance(response, dict):
            words = fault(found.get("error"))
            raise BadData(f"{self._where}: an error instead of an answer: {words or 'no response'}")
        if response.get("status_code") not in (None, 200):
            words = fault(response.get("body"))
            raise BadData(
                f"{self._where}: HTTP {str(response['status_code'])[:20]}"
                + (f": {words}" if words else "")
            )
        return openai.parse(response.get("body"), self._where)


def _result(line: bytes, where: str) -> dict[str, Any]:
    found = load_json(line, where)
    if not isinstance(found, dict) or not isinstance(found.get("custom_id"), str):
        raise BadData(f"{where}: expected an answer of a batch, with its custom_id")
    if "response" not in found and "error" not in found:
        cure = "these are the requests" if "body" in found else "neither response nor error"
        raise BadData(f"{where}: expected an answer of a batch: {cure}")
    return found


def _model(found: dict[str, Any]) -> str:
    body = response.get("body") if isinstance(response := found.get("response"), dict) else None
    model = body.get("model") if isinstance(body, dict) else None
    return model if isinstance(model, str) else ""


def _hashed(key: str) -> tuple[int, int]:
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")


def _spooled(source: BinaryIO) -> BinaryIO:
    """A copy of a pipe on disk, which goes when it is closed."""
    file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115
    shutil.copyfileobj(source, file)
    file.seek(0)
    return file
