"""Whether a frame can be written (`shard`), so that one bad frame is refused by name."""

import math
from collections.abc import Iterator

import numpy as np

from cdcca_cli.errors import BadData
from cdcca_cli.formats import shard_index
from cdcca_cli.formats.digest import is_digest
from cdcca_cli.formats.pictures import MEDIA
from cdcca_cli.formats.shard import CODECS, Shard
from cdcca_cli.text import is_text

MOST_CODES = 1 << 23
"""The most codes of a record."""
_LARGEST_F16, _LARGEST_F32 = 65504.0, float(np.finfo(np.float32).max)


def check(shard: Shard) -> None:
    """BadData unless a record can hold the frame."""
    fault = _fault(shard)
    if fault is not None:
        raise BadData(f"frame {shard.frame[:80]}: {fault}")


def _fault(shard: Shard) -> str | None:
    codec = shard.coding.codec
    if not shard.frame or not is_text("".join(_texts(shard))):
        return "its id is empty, or a text has a lone surrogate"
    if not is_digest(shard.tower):
        return f"its tower {shard.tower[:40]!r} is not a digest"
    if codec not in CODECS:
        return f"codec {codec!r}"
    for question in shard.questions:
        if question.task not in shard_index.TASKS.values() or question.choices == []:
            return "a question of an unknown task, or with an empty list of choices"
        if question.entropy is not None and not 0 <= question.entropy <= _LARGEST_F16:
            return f"an entropy of {question.entropy}"
    if shard.time is not None and not math.isfinite(shard.time):
        return f"its time is {shard.time}"
    if not 1 <= shard.num_tokens <= shard_index.MOST_TOKENS:
        return f"{shard.num_tokens:,} tokens"
    return _payload_fault(shard)


def _payload_fault(shard: Shard) -> str | None:
    codec, positions = shard.coding.codec, np.asarray(shard.positions)
    if codec == "frame":
        picture = shard.picture
        if picture is None or not picture.data or picture.media not in MEDIA:
            return f"no picture of the types {', '.join(MEDIA)}"
        return None if min(picture.size) > 0 else f"a picture of size {picture.size}"
    if positions.ndim != 1 or not positions.size or positions.dtype.kind not in "iu":
        return f"positions of shape {positions.shape} and dtype {positions.dtype}"
    ascends = (np.diff(positions.astype(np.int64)) > 0).all()
    if not ascends or positions[0] < 0 or positions[-1] >= shard.num_tokens:
        return "positions that do not ascend within its tokens"
    if shard.scores is not None and np.shape(shard.scores) != positions.shape:
        return f"scores of shape {np.shape(shard.scores)} for {len(positions):,} tokens"
    if shard.scores is not None and not np.isfinite(shard.scores).all():
        return "scores that are not finite"
    if codec != "klt":
        shape = np.shape(shard.tokens)
        if len(shape) != 2 or shape[0] != len(positions) or not shape[1]:
            return f"tokens of shape {shape} at {len(positions):,} positions"
        largest = np.abs(shard.tokens).max()
        is_finite = largest <= (_LARGEST_F16 if codec == "float16" else _LARGEST_F32)
        return None if is_finite else f"values that are not finite in {codec}"
    rows = 1 if len(positions) == shard.num_tokens else len(positions)
    shape = () if shard.codes is None else shard.codes.shape
    if len(shape) != 2 or shape[0] != rows or not 1 <= shape[1] <= MOST_CODES // rows:
        return f"codes of shape {shape}; expected {rows:,} rows"
    return None


def text_chars(shard: Shard) -> int:
    """About how many characters of the index a frame takes."""
    texts = list(_texts(shard))
    numbers = len(shard.layout.fixed) + len(shard.layout.boxes)
    return sum(map(len, texts)) + 8 * len(texts) + 8 * numbers


def _texts(shard: Shard) -> Iterator[str]:
    yield from (shard.frame, shard.image, shard.domain or "", shard.layout.marks)
    for question in shard.questions:
        yield from (question.id, question.prompt or "", *(question.choices or ()))
