"""What a file is that was given in the wrong place."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cdcca_cli.datasets import read_frames, read_references
from cdcca_cli.errors import BadData
from cdcca_cli.formats.kind import describe
from cdcca_cli.formats.records import encode_header

PREDICTION = {"v": 1, "id": "q", "image": "a.jpg", "answer": "b", "model": "sha256:" + "0" * 64}


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"", "an empty file"),
        (b"\0" * 20, "blanks or zeros"),
        (gzip.compress(b"[]", mtime=0), "gzip"),
        (b"PK\x03\x04rest", "zip"),
        ("[]".encode("utf-16"), "UTF-16"),
        ("[1, 2, 3, 4]".encode("utf-16-be"), "UTF-16"),
        (encode_header({}, {"kind": "shard", "version": 1}), "token shards"),
        (encode_header({}, {"kind": "end", "version": 1}), "token shards"),
        (encode_header({}, {"kind": "shards", "version": 2}), "token shards"),
        (encode_header({}, {"kind": "frames", "version": 2}), "token shards"),
        (encode_header({}, {"kind": "update", "version": 1}), "an update"),
        (encode_header({}, {"kind": "lessons", "version": 1}), "a teacher's labels"),
        (encode_header({}, {"kind": "lesson", "version": 2}), "a teacher's labels"),
        (encode_header({}, {"kind": "label", "version": 1}), "a teacher's labels"),
        ((1 << 22).to_bytes(8, "little") + b"{" + b" " * (1 << 20), "weights"),
        (b"\xff\xd8\xff" + b"x" * 20, "an image"),
        (json.dumps(PREDICTION).encode(), "predictions"),
        (b'{"id": "q", "image": "a.jpg"}\n', "a manifest"),
        (b'{"kind": "seen"}', "the state"),
        (b"[1]", None),
        (b"question_id,answer\n", None),
    ],
)
def test_names(head: bytes, name: str | None) -> None:
    found = describe(head)
    assert found is None if name is None else found is not None and name in found


@pytest.mark.parametrize("take", [read_frames, read_references])
def test_predictions_are_no_frames(tmp_path: Path, take: Callable[[Path], object]) -> None:
    """Each of their lines has an id and an image, as a manifest's has."""
    path = tmp_path / "frames.jsonl"
    path.write_text(json.dumps(PREDICTION) + "\n")
    with pytest.raises(BadData, match=r"frames\.jsonl: .*found predictions"):
        take(path)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("shard", "token shards"), ("shards", "token shards"), ("label", "a teacher's labels")],
)
def test_records_are_no_frames(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(encode_header({}, {"kind": kind, "version": 1}))
    for read in (read_frames, read_references):
        with pytest.raises(BadData, match=f"found {name}"):
            read(path)
