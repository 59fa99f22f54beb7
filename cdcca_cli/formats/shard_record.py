"""A record of frames, version 2 of `shard`: from shards to columns and back."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, cast

import numpy as np

from cdcca_cli.errors import BadData
from cdcca_cli.formats import records, shard_index
from cdcca_cli.formats.digest import is_digest, overlay_digest
from cdcca_cli.formats.pictures import Picture
from cdcca_cli.formats.shard import CODECS, VERSION, Coding, Shard, Unusable
from cdcca_cli.formats.shard_check import MOST_CODES
from cdcca_cli.numerics import absmax, columns, uniform, zstd_frames

MOST_FRAMES = 256
_PICTURES_BYTES = 1 << 24
_DTYPES = {"float32": "F32", "float16": "F16", "int8": "I8"}
_HEADER: dict[str, Any] = records.HEAD | {
    "count": int,
    "codec": str,
    "codebook": str | None,
    "step": float | None,
    "columns": int | None,
    "sizes": dict,
    "sum": str,
    "other": int | None,
}


def group_key(shard: Shard) -> tuple[Any, ...]:
    """What all frames of a record have in common."""
    codes, codec = shard.codes, shard.coding.codec
    shape: tuple[Any, ...] = shard.tokens.shape[1:]
    if codec == "frame" or codes is None:
        shape = shape if codec in _DTYPES else ()
    elif codec == "klt":
        shape = (len(shard.positions) == shard.num_tokens, *codes.shape[1:])
    return shard.tower, shard.coding, shard.scores is None or codec == "frame", shape


# ---------------------------------------------------------------- encoding


def encode(shards: Sequence[Shard]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors and the header of a record of 1 to MOST_FRAMES frames of one `group_key`.

    The frames must be sound (`shard_check`).
    """
    coding = shards[0].coding
    index = records.dump_json(shard_index.content(shards)).encode()
    sizes = {"index": len(index)}
    questions = [question for shard in shards for question in shard.questions]
    entropies = [np.nan if one.entropy is None else one.entropy for one in questions]
    tensors = {"index": _compressed(index)}
    num_columns = None
    with np.errstate(over="ignore"):
        tensors["entropies"] = np.array(entropies, np.float16)
        if coding.codec == "frame":
            tensors["pictures"] = _compressed(b"".join(_picture(shard).data for shard in shards))
        elif coding.codec == "klt":
            codes_RK = np.concatenate([cast(np.ndarray, shard.codes) for shard in shards])
            num_columns = codes_RK.shape[1]
            tensors["codes"] = np.frombuffer(columns.pack(codes_RK), np.uint8)
        else:
            tensors |= _stored(coding.codec, np.concatenate([shard.tokens for shard in shards]))
    if coding.codec != "frame":
        if any(len(shard.positions) != shard.num_tokens for shard in shards):
            tensors["kept"] = np.packbits(np.concatenate([_bitmap(shard) for shard in shards]))
        if shards[0].scores is not None:
            scores = [cast(np.ndarray, shard.scores) for shard in shards]
            tensors["scores"] = np.concatenate(scores).astype(np.float32)
    header = {
        "kind": "frames",
        "version": VERSION,
        "count": len(shards),
        "codec": coding.codec,
        "codebook": coding.codebook,
        "step": None if coding.step is None else float(coding.step),
        "columns": num_columns,
        "sizes": sizes,
        "other": None,
    }
    return tensors, header


def seal(tensors: Mapping[str, np.ndarray], header: dict[str, Any], tower: str) -> dict[str, Any]:
    """The header with its sum."""
    return header | {"sum": _sum(tensors, header, tower)}


def _stored(codec: str, tokens_TC: np.ndarray) -> dict[str, np.ndarray]:
    tokens_TC = np.asarray(tokens_TC, np.float32)
    if codec == "int8":
        codes_TC, scales_T = absmax.quantize(tokens_TC)
        return {"tokens": codes_TC, "scales": scales_T}
    return {"tokens": tokens_TC.astype(np.float16 if codec == "float16" else np.float32)}


def _bitmap(shard: Shard) -> np.ndarray:
    kept_N = np.zeros(shard.num_tokens, bool)
    kept_N[shard.positions] = True
    return kept_N


def _picture(shard: Shard) -> Picture:
    assert shard.picture is not None
    return shard.picture


def _sum(tensors: Mapping[str, np.ndarray], header: Mapping[str, Any], tower: str) -> str:
    rest = {name: value for name, value in header.items() if name != "sum"} | {"tower": tower}
    text = np.frombuffer(records.dump_json(rest).encode(), np.uint8)
    return overlay_digest({**tensors, "header": text})


def _compressed(content: bytes) -> np.ndarray:
    import zstandard

    return np.frombuffer(zstandard.ZstdCompressor(level=19).compress(content), np.uint8)


# ---------------------------------------------------------------- decoding


def count(record: records.Record, where: str) -> int:
    """How many frames a record has, by its header. BadData."""
    found = records.field(record.header, "count", int, where)
    if not 1 <= found <= MOST_FRAMES:
        raise BadData(f"{where}: {found:,} frames in a record; expected 1 to {MOST_FRAMES}")
    return found


def decode(
    record: records.Record,
    tower: str,
    where: str,
    refused: Callable[[Unusable], object] | None = None,
) -> Iterator[Shard]:
    """The shards of a `frames` record. Raises: BadData; Unusable if `refused` is None."""
    header = records.fields(record.header, _HEADER, where)
    coding = _coding(header, where)
    if "header" in record.tensors:
        raise BadData(f"{where}: a tensor named 'header'")
    if header["sum"] != _sum(record.tensors, record.header, tower):
        count = header["count"]
        fault = Unusable(f"{where}: a damaged record of {count:,} frames (its sum is wrong)")
        if refused is None:
            raise fault
        refused(fault)
        return
    _check_tensors(record, header, where)
    index = shard_index.read(record, header, where)
    layouts = shard_index.layouts(index, where)
    questions = shard_index.questions(index, record.tensors["entropies"], where)
    starts = np.cumsum([0, *index["counts"]])
    counts = [layouts[n][0] for n in index["layout"]]
    kept = _kept(record.tensors, counts, coding, where)
    lengths = counts if kept is None else [len(one) for one in kept]
    payload = _payload(record.tensors, header, index, lengths, where)
    scores_T = record.tensors.get("scores")
    ends = np.cumsum([0, *lengths])
    for row, (frame, (begin, end)) in enumerate(zip(index["frames"], pairwise(ends), strict=True)):
        num_tokens, layout = layouts[index["layout"][row]]
        values = payload(row)
        scores = None if scores_T is None else scores_T[begin:end]
        arrays = [values.get("tokens"), scores]
        if not all(array is None or np.isfinite(array).all() for array in arrays):
            unusable = Unusable(f"{where} (frame {frame[:80]}): values that are not finite")
            if refused is None:
                raise unusable
            refused(unusable)
            continue
        yield Shard(
            frame=frame,
            image=(index["images"] or index["frames"])[row],
            domain=index["domains"][row],
            tokens=values.get("tokens", np.zeros((0, 0), np.float32)),
            positions=_all(num_tokens) if kept is None else kept[row],
            num_tokens=num_tokens,
            tower=tower,
            questions=questions[starts[row] : starts[row + 1]],
            scores=scores,
            coding=coding,
            codes=values.get("codes"),
            picture=values.get("picture"),
            layout=layout,
            time=None if index["times"] is None else index["times"][row],
        )


def _all(num_tokens: int) -> np.ndarray:
    """The positions of all tokens; frames share them, so that many frames take no memory."""
    return _counted((num_tokens - 1).bit_length())[:num_tokens]


@cache
def _counted(bits: int) -> np.ndarray:
    return np.arange(1 << bits, dtype=np.int32)


def _coding(header: Mapping[str, Any], where: str) -> Coding:
    codec, codebook, step = header["codec"], header["codebook"], header["step"]
    if codec not in CODECS:
        raise BadData(f"{where}: codec {codec[:40]!r}; expected {', '.join(CODECS)}")
    is_klt = [value is not None for value in (codebook, step, header["columns"])]
    if any(is_klt) != all(is_klt) or any(is_klt) != (codec == "klt"):
        raise BadData(
            f"{where}: codebook, step and columns belong to klt, all three, found {codec}"
        )
    if codec == "klt":
        if not is_digest(codebook):
            raise BadData(f"{where}: 'codebook' is not a digest")
        uniform.check_step(step, where)
        if not 1 <= header["columns"] <= MOST_CODES:
            raise BadData(f"{where}: {header['columns']:,} columns")
    if header["other"] is not None and header["other"] < 0:
        raise BadData(f"{where}: 'other' is {header['other']}")
    return Coding(codec, codebook, step)


def _check_tensors(record: records.Record, header: Mapping[str, Any], where: str) -> None:
    codec = header["codec"]
    expected = {"index": "U8", "entropies": "F16"}
    if codec in _DTYPES:
        expected["tokens"] = _DTYPES[codec]
    if codec == "int8":
        expected["scales"] = "F32"
    if codec in ("klt", "frame"):
        expected["codes" if codec == "klt" else "pictures"] = "U8"
    optional = {"kept": "U8", "scores": "F32"} if codec != "frame" else {}
    expected |= {name: dtype for name, dtype in optional.items() if name in record.tensors}
    records.expect_tensors(record, expected, where)
    for name, array in record.tensors.items():
        if array.ndim != (2 if name == "tokens" else 1) or (name == "tokens" and 0 in array.shape):
            raise BadData(f"{where}: {name} of shape {array.shape}")
    size = records.fields(header["sizes"], {"index": int}, f"{where}: sizes")["index"]
    if not 0 <= size <= shard_index.MOST_BYTES:
        raise BadData(
            f"{where}: an index of {size:,} bytes; at most {shard_index.MOST_BYTES:,} are read"
        )


def _kept(
    tensors: Mapping[str, np.ndarray], counts: Sequence[int], coding: Coding, where: str
) -> list[np.ndarray] | None:
    """The positions of each frame's kept tokens; None if every token was kept."""
    if "kept" not in tensors:
        return None
    total = sum(counts)
    if len(tensors["kept"]) != -(-total // 8):
        raise BadData(f"{where}: {len(tensors['kept']):,} bytes of kept tokens for {total:,}")
    bits = np.unpackbits(tensors["kept"])
    if bits[total:].any():
        raise BadData(f"{where}: kept tokens beyond the last one")
    kept = np.split(bits[:total], np.cumsum(counts)[:-1])
    found = [np.flatnonzero(one).astype(np.int32) for one in kept]
    lengths = list(map(len, found))
    if 0 in lengths:
        raise BadData(f"{where}: a frame that kept no token")
    wholes = [length == count for length, count in zip(lengths, counts, strict=True)]
    if all(wholes) or (coding.codec == "klt" and any(wholes)):
        raise BadData(f"{where}: 'kept' for frames that kept all of their tokens")
    return found


Payload = Callable[[int], dict[str, Any]]
"""What a frame of a record holds, by its row: `tokens`, `codes` or `picture`."""


def _payload(
    tensors: Mapping[str, np.ndarray],
    header: Mapping[str, Any],
    index: Mapping[str, Any],
    lengths: Sequence[int],
    where: str,
) -> Payload:
    if header["codec"] == "frame":
        return _pictures(tensors["pictures"], index["pictures"], where)
    for name in ("scores", "scales", "tokens"):
        if name in tensors and len(tensors[name]) != sum(lengths):
            raise BadData(f"{where}: {len(tensors[name]):,} {name} for {sum(lengths):,} tokens")
    if header["codec"] != "klt":
        tokens_TC = _values(tensors, where)
        ends = np.cumsum([0, *lengths])
        return lambda row: {"tokens": tokens_TC[ends[row] : ends[row + 1]]}
    if "kept" not in tensors:
        lengths = [1] * len(lengths)
    shape = (sum(lengths), header["columns"])
    if math.prod(shape) > MOST_CODES:
        raise BadData(f"{where}: {math.prod(shape):,} codes; at most {MOST_CODES:,} are read")
    codes_RK = columns.unpack(
        tensors["codes"].tobytes(), *shape, limit=MOST_CODES, where=f"{where}: the codes"
    )
    ends = np.cumsum([0, *lengths])
    return lambda row: {"codes": codes_RK[ends[row] : ends[row + 1]]}


def _values(tensors: Mapping[str, np.ndarray], where: str) -> np.ndarray:
    stored_TC = tensors["tokens"]
    if stored_TC.dtype != np.int8:
        return stored_TC.astype(np.float32, copy=False)
    if (tensors["scales"] < 0).any() or (stored_TC == -128).any():
        raise BadData(f"{where}: scales below 0, or a token code of -128")
    with np.errstate(over="ignore", invalid="ignore"):
        return absmax.dequantize(stored_TC, tensors["scales"])


def _pictures(data: np.ndarray, entries: Sequence[Any], where: str) -> Payload:
    ends = np.cumsum([0, *(entry[1] for entry in entries)]).tolist()
    if ends[-1] > _PICTURES_BYTES:
        raise BadData(f"{where}: pictures of {ends[-1]:,} bytes; at most {_PICTURES_BYTES:,}")
    try:
        content = zstd_frames.read_frame(data.tobytes(), ends[-1], "pictures")
    except BadData as error:
        raise BadData(f"{where}: {error}") from None

    def picture(row: int) -> dict[str, Any]:
        media, _, width, height = entries[row]
        return {"picture": Picture(content[ends[row] : ends[row + 1]], media, (width, height))}

    return picture


def forms_of(record: records.Record) -> dict[str, int | None]:
    """The bytes of the tensors as `tokens` and as a `frame`; None where that is not known."""
    own = sum(array.nbytes for array in record.tensors.values())
    forms = [own, record.header.get("other")]
    if record.header.get("codec") == "frame":
        forms.reverse()
    return dict(zip(("tokens", "frame"), forms, strict=True))


def bytes_of(record: records.Record) -> Counter[str]:
    """How many bytes of a record each part takes; they add up to its length."""
    found = Counter({name: array.nbytes for name, array in record.tensors.items()})
    found["header"] = record.num_bytes - found.total()
    return found
