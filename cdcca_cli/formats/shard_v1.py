"""Shard records of version 1, which are read, no longer written.

One record a frame. Header, all keys always present:

    kind "shard", version 1
    frame       string, not empty: the frame's id
    image       string: its path, as the device named it
    domain      string or null
    tower       digest of the vision tower that made the tokens
    num_tokens  how many visual tokens the tower makes of an image, 1 to 2^31 - 1
    bits        32, 16 or 8: how the tokens are stored
    asks        list of {"choices": list of strings or null, "entropy": number >= 0 (nats) or null,
                "id": string, "prompt": string or null, "task": "vqa" or "caption"}; exactly these
                keys; choices has at least one string

Tensors, with N kept tokens (1 <= N <= num_tokens) of C channels:

    tokens      (N, C)  F32 if bits is 32, F16 if 16, I8 in [-127, 127] if 8
    scales      (N,)    F32, finite, >= 0; only if bits is 8 (`numerics.absmax`)
    positions   (N,)    U16 if num_tokens <= 65536, else I32: each token's place among the
                        num_tokens, strictly ascending, each < num_tokens
    scores      (N,)    F32, finite: why the token was kept (larger is more uncertain)
"""

from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import numpy as np

from cdcca_cli.errors import BadData
from cdcca_cli.formats import records
from cdcca_cli.formats.digest import is_digest
from cdcca_cli.formats.shard import Codec, Coding, Question, Shard, Unusable
from cdcca_cli.numerics import absmax

_DTYPES = {32: "F32", 16: "F16", 8: "I8"}
_CODECS: dict[int, Codec] = {32: "float32", 16: "float16", 8: "int8"}
_HEADER: dict[str, Any] = records.HEAD | {
    **dict.fromkeys(("frame", "image", "tower"), str),
    "domain": str | None,
    **dict.fromkeys(("num_tokens", "bits"), int),
    "asks": list,
}
_QUESTION = get_type_hints(Question)


def decode(
    record: records.Record, where: str, refused: Callable[[Unusable], object] | None = None
) -> Iterator[Shard]:
    """The record's shard. Raises: BadData; Unusable if `refused` is None."""
    try:
        yield _decode(record, where)
    except Unusable as fault:
        if refused is None:
            raise
        refused(fault)


def _decode(record: records.Record, where: str) -> Shard:
    found = records.fields(record.header, _HEADER, where)
    num_tokens, bits = found["num_tokens"], found["bits"]
    if not found["frame"]:
        raise BadData(f"{where}: the frame's id is empty")
    where = f"{where} (frame {found['frame'][:80]})"
    if not is_digest(found["tower"]):
        raise BadData(f"{where}: 'tower' is not a digest")
    if not 1 <= num_tokens < 1 << 31:
        raise BadData(f"{where}: num_tokens is {num_tokens}")
    if bits not in _DTYPES:
        raise BadData(f"{where}: tokens of {bits} bits; expected 32, 16 or 8")
    position_dtype = "U16" if num_tokens <= 1 << 16 else "I32"
    expected = {"tokens": _DTYPES[bits], "positions": position_dtype, "scores": "F32"}
    if bits == 8:
        expected["scales"] = "F32"
    records.expect_tensors(record, expected, where)
    stored_NC = record.tensors["tokens"]
    if stored_NC.ndim != 2 or 0 in stored_NC.shape:
        raise BadData(f"{where}: tokens of shape {stored_NC.shape}; expected (N, C), neither 0")
    for name in set(expected) - {"tokens"}:
        if record.tensors[name].shape != stored_NC.shape[:1]:
            raise BadData(
                f"{where}: {name} of shape {record.tensors[name].shape} for {len(stored_NC)} tokens"
            )
    positions_N = record.tensors["positions"].astype(np.int64)
    if positions_N[0] < 0 or positions_N[-1] >= num_tokens or (np.diff(positions_N) <= 0).any():
        raise BadData(f"{where}: positions must ascend within 0 to {num_tokens - 1}")
    return Shard(
        **{name: found[name] for name in ("frame", "image", "domain", "tower", "num_tokens")},
        positions=positions_N.astype(np.int32),
        questions=[_question(question, where) for question in found["asks"]],
        coding=Coding(_CODECS[bits]),
        # Checked last, because Unusable promises that all else is sound.
        tokens=_tokens(record.tensors, where),
        scores=_finite(record.tensors["scores"], "scores", where),
    )


def _tokens(tensors: dict[str, np.ndarray], where: str) -> np.ndarray:
    stored_NC = tensors["tokens"]
    if stored_NC.dtype != np.int8:
        return _finite(stored_NC.astype(np.float32, copy=False), "tokens", where)
    scales_N = tensors["scales"]
    if (scales_N < 0).any():
        raise BadData(f"{where}: negative scales")
    if (stored_NC == -128).any():
        raise BadData(f"{where}: a token code of -128; they are -127 to 127")
    _finite(scales_N, "scales", where)
    with np.errstate(over="ignore"):
        return _finite(absmax.dequantize(stored_NC, scales_N), "tokens", where)


def _finite(array: np.ndarray, name: str, where: str) -> np.ndarray:
    if not np.isfinite(array).all():
        raise Unusable(f"{where}: {name} that are not finite in this many bits")
    return array


def _question(data: object, where: str) -> Question:
    question = Question(**records.fields(data, _QUESTION, f"{where}: a question"))
    if question.choices == []:
        raise BadData(f"{where}: an empty list of choices")
    if question.entropy is not None and question.entropy < 0:
        raise BadData(f"{where}: an entropy of {question.entropy}")
    return question
