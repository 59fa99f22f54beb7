"""A record of frames, version 2 of `shard`: from shards to columns and back."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np

from cdcca_cli.errors import BadData
from cdcca_cli.formats import records
from cdcca_cli.formats.digest import is_digest, little_endian_bytes
from cdcca_cli.formats.shard import (
    CODECS,
    MEDIA,
    VERSION,
    Coding,
    Layout,
    Picture,
    Question,
    Shard,
    Unusable,
)
from cdcca_cli.numerics import absmax, columns, uniform
from cdcca_cli.text import load_json

MOST_FRAMES = 256
_MOST_TOKENS = 1 << 20
_INDEX_BYTES = 1 << 24
_CODES_BYTES = 1 << 28
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
_INDEX: dict[str, Any] = {
    "strings": list[str],
    "layouts": list[dict],
    "frames": list[str],
    "images": list | None,
    "domains": list,
    "times": list | None,
    "layout": list[int],
    "counts": list[int],
    "ids": list[str],
    "tasks": str,
    "prompts": list,
    "choices": list,
    "pictures": list | None,
}
_LAYOUT: dict[str, Any] = {
    "num_tokens": int,
    "grid": list[int],
    "marks": str,
    "fixed": list[int],
}
_TASKS = {"v": "vqa", "c": "caption"}


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
    """The tensors and the header of a record of 1 to MOST_FRAMES frames of one `group_key`."""
    coding = shards[0].coding
    index = records.dump_json(_index(shards)).encode()
    sizes = {"index": len(index)}
    questions = [question for shard in shards for question in shard.questions]
    entropies = [np.nan if one.entropy is None else one.entropy for one in questions]
    tensors = {"index": _compressed(index)}
    num_columns = None
    with np.errstate(over="ignore"):
        tensors["entropies"] = np.array(entropies, np.float16)
        if coding.codec == "frame":
            data = b"".join(_picture(shard).data for shard in shards)
            tensors["pictures"] = np.frombuffer(data, np.uint8)
        elif coding.codec == "klt":
            codes_RK = np.concatenate([cast(np.ndarray, shard.codes) for shard in shards])
            num_columns = codes_RK.shape[1]
            packed = columns.pack(codes_RK)
            tensors["codes"] = np.frombuffer(packed, np.uint8)
            sizes["codes"] = columns.content_bytes(packed)
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
        "step": coding.step,
        "columns": num_columns,
        "sizes": sizes,
        "sum": _sum(tensors),
        "other": None,
    }
    return tensors, header


def _stored(codec: str, tokens_TC: np.ndarray) -> dict[str, np.ndarray]:
    tokens_TC = np.asarray(tokens_TC, np.float32)
    if codec == "int8":
        codes_TC, scales_T = absmax.quantize(tokens_TC)
        return {"tokens": codes_TC, "scales": scales_T}
    return {"tokens": tokens_TC.astype(np.float16 if codec == "float16" else np.float32)}


def _bitmap(shard: Shard) -> np.ndarray:
    if not 1 <= shard.num_tokens <= _MOST_TOKENS:
        raise BadData(f"frame {shard.frame}: {shard.num_tokens:,} tokens")
    kept_N = np.zeros(shard.num_tokens, bool)
    positions = np.asarray(shard.positions)
    if positions.min() < 0 or positions.max() >= len(kept_N) or (np.diff(positions) <= 0).any():
        raise BadData(f"frame {shard.frame}: positions that do not ascend within the tokens")
    kept_N[positions] = True
    return kept_N


def _picture(shard: Shard) -> Picture:
    assert shard.picture is not None
    return shard.picture


def _sum(tensors: Mapping[str, np.ndarray]) -> str:
    hashed = hashlib.sha256()
    for name in sorted(tensors):
        hashed.update(little_endian_bytes(tensors[name]))
    return hashed.hexdigest()


def _compressed(content: bytes) -> np.ndarray:
    import zstandard

    return np.frombuffer(zstandard.ZstdCompressor(level=19).compress(content), np.uint8)


def _index(shards: Sequence[Shard]) -> dict[str, Any]:
    strings: dict[str, int] = {}

    def number(text: str | None) -> int | None:
        return None if text is None else strings.setdefault(text, len(strings))

    layouts: dict[tuple[int, Layout], int] = {}
    questions = [question for shard in shards for question in shard.questions]
    frames, images = [shard.frame for shard in shards], [shard.image for shard in shards]
    times = [shard.time for shard in shards]
    pictures = [_picture(shard) for shard in shards if shard.coding.codec == "frame"]
    index = {
        "layout": [
            layouts.setdefault((shard.num_tokens, shard.layout), len(layouts)) for shard in shards
        ],
        "frames": frames,
        "images": None if images == frames else images,
        "domains": [number(shard.domain) for shard in shards],
        "times": times if any(time is not None for time in times) else None,
        "counts": [len(shard.questions) for shard in shards],
        "ids": [question.id for question in questions],
        "tasks": "".join(question.task[:1] for question in questions),
        "prompts": [number(question.prompt) for question in questions],
        "choices": [
            None if question.choices is None else [number(text) for text in question.choices]
            for question in questions
        ],
        "pictures": [[number(one.media), len(one.data), *one.size] for one in pictures] or None,
    }
    index["layouts"] = [
        {"num_tokens": int(count), "grid": layout.grid, "marks": layout.marks}
        | {"fixed": layout.fixed}
        for count, layout in layouts
    ]
    return index | {"strings": list(strings)}


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
    if header["sum"] != _sum(record.tensors):
        fault = Unusable(f"{where}: a record of frames whose checksum is wrong: it is damaged")
        if refused is None:
            raise fault
        refused(fault)
        return
    _check_tensors(record, header, where)
    index = _read_index(record, header, where)
    layouts = _layouts(index, where)
    questions = _questions(index, record.tensors["entropies"], where)
    starts = np.cumsum([0, *index["counts"]])
    kept = _kept(record.tensors, [layouts[n][0] for n in index["layout"]], coding, where)
    payload = _payload(record.tensors, header, index, kept, where)
    scores_T = record.tensors.get("scores")
    ends = np.cumsum([0, *map(len, kept)])
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
            positions=kept[row],
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
        if not 1 <= header["columns"] <= 1 << 30:
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
    sizes = {"index": int} | ({"codes": int} if codec == "klt" else {})
    for name, size in records.fields(header["sizes"], sizes, f"{where}: sizes").items():
        most = _INDEX_BYTES if name == "index" else _CODES_BYTES
        if not 0 <= size <= most:
            raise BadData(f"{where}: {name} would be {size:,} bytes; at most {most:,} are read")


def _read_index(record: records.Record, header: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The index, with numbers of strings replaced by the strings. BadData."""
    where = f"{where}: the index"
    packed = record.tensors["index"].tobytes()
    content = columns.unpacked(packed, header["sizes"]["index"], where)
    index = records.fields(load_json(content, where), _INDEX, where)
    strings, frames, ids = index["strings"], index["frames"], index["ids"]
    if len(frames) != header["count"] or not all(frames):
        raise BadData(f"{where}: {len(frames):,} frames for {header['count']:,}, or one without id")

    def string(place: object, what: str) -> str:
        if type(place) is not int or not 0 <= place < len(strings):
            raise BadData(f"{where}: {what}: no string of this number")
        return strings[place]

    for name, count in (
        *dict.fromkeys(("images", "domains", "times", "layout", "counts"), len(frames)).items(),
        *dict.fromkeys(("tasks", "prompts", "choices"), len(ids)).items(),
        ("pictures", len(frames)),
    ):
        if index[name] is not None and len(index[name]) != count:
            raise BadData(f"{where}: {len(index[name]):,} {name} for {count:,}")
    if any(count < 0 for count in index["counts"]) or sum(index["counts"]) != len(ids):
        raise BadData(f"{where}: counts that do not add up to {len(ids):,} questions")
    if (index["pictures"] is None) != (header["codec"] != "frame"):
        raise BadData(f"{where}: pictures belong to the codec frame, found {header['codec']}")
    if index["images"] is not None:
        index["images"] = records.fields({"images": index["images"]}, {"images": list[str]}, where)[
            "images"
        ]
    for name in ("domains", "prompts"):
        index[name] = [None if n is None else string(n, name) for n in index[name]]
    for time in index["times"] or ():
        if time is not None:
            records.fields({"time": time}, {"time": float}, where)
    for place, choices in enumerate(index["choices"]):
        if choices is not None:
            if not isinstance(choices, list) or not choices:
                raise BadData(f"{where}: choices that are no list, or an empty one")
            index["choices"][place] = [string(n, "choices") for n in choices]
    for place, entry in enumerate(index["pictures"] or ()):
        numbers = records.fields({"picture": entry}, {"picture": list[int]}, where)["picture"]
        if len(numbers) != 4 or min(numbers) < 0 or string(numbers[0], "pictures") not in MEDIA:
            raise BadData(f"{where}: a picture that is not {' or '.join(MEDIA)} with its size")
        index["pictures"][place] = [strings[numbers[0]], *numbers[1:]]
    return index


def _layouts(index: Mapping[str, Any], where: str) -> list[tuple[int, Layout]]:
    found = []
    for entry in index["layouts"]:
        one = records.fields(entry, _LAYOUT, f"{where}: a layout")
        count, fixed = one["num_tokens"], one["fixed"]
        ascending = all(first < second for first, second in pairwise(fixed))
        if not 1 <= count <= _MOST_TOKENS or any(size < 0 for size in one["grid"]):
            raise BadData(f"{where}: a layout of {count:,} tokens, grid {one['grid'][:4]}")
        if fixed and not (ascending and fixed[0] >= 0 and fixed[-1] < count):
            raise BadData(f"{where}: a layout whose fixed places do not ascend within its tokens")
        found.append((count, Layout(tuple(one["grid"]), one["marks"], tuple(fixed))))
    if any(not 0 <= n < len(found) for n in index["layout"]):
        raise BadData(f"{where}: no layout of this number")
    return found


def _questions(index: Mapping[str, Any], entropies: np.ndarray, where: str) -> list[Question]:
    if len(entropies) != len(index["ids"]):
        raise BadData(f"{where}: {len(entropies):,} entropies for {len(index['ids']):,} questions")
    if (entropies < 0).any() or np.isinf(entropies).any():
        raise BadData(f"{where}: an entropy below 0 or not finite")
    if not set(index["tasks"]) <= set(_TASKS):
        raise BadData(f"{where}: tasks other than {' and '.join(_TASKS)}")
    return [
        Question(id, prompt, cast(Any, _TASKS[task]), choices, None if np.isnan(nats) else nats)
        for id, task, prompt, choices, nats in zip(
            index["ids"],
            index["tasks"],
            index["prompts"],
            index["choices"],
            entropies.astype(float).tolist(),
            strict=True,
        )
    ]


def _kept(
    tensors: Mapping[str, np.ndarray], counts: Sequence[int], coding: Coding, where: str
) -> list[np.ndarray]:
    """The positions of each frame's kept tokens."""
    total = sum(counts)
    if total > MOST_FRAMES * _MOST_TOKENS or ("kept" not in tensors and total > _CODES_BYTES >> 2):
        raise BadData(f"{where}: {total:,} tokens in a record")
    if "kept" not in tensors:
        return [np.arange(count, dtype=np.int32) for count in counts]
    if len(tensors["kept"]) != -(-total // 8):
        raise BadData(f"{where}: {len(tensors['kept']):,} bytes of kept tokens for {total:,}")
    bits = np.unpackbits(tensors["kept"])
    if bits[total:].any():
        raise BadData(f"{where}: kept tokens beyond the last one")
    kept = np.split(bits[:total], np.cumsum(counts)[:-1])
    found = [np.flatnonzero(one).astype(np.int32) for one in kept]
    if not all(len(one) for one in found):
        raise BadData(f"{where}: a frame that kept no token")
    return found


Payload = Callable[[int], dict[str, Any]]
"""What a frame of a record holds, by its row: `tokens`, `codes` or `picture`."""


def _payload(
    tensors: Mapping[str, np.ndarray],
    header: Mapping[str, Any],
    index: Mapping[str, Any],
    kept: Sequence[np.ndarray],
    where: str,
) -> Payload:
    if header["codec"] == "frame":
        return _pictures(tensors["pictures"], index["pictures"], where)
    lengths = [len(one) for one in kept]
    for name in ("scores", "scales", "tokens"):
        if name in tensors and len(tensors[name]) != sum(lengths):
            raise BadData(f"{where}: {len(tensors[name]):,} {name} for {sum(lengths):,} tokens")
    if header["codec"] != "klt":
        tokens_TC = _values(tensors, where)
        ends = np.cumsum([0, *lengths])
        return lambda row: {"tokens": tokens_TC[ends[row] : ends[row + 1]]}
    if "kept" not in tensors:
        lengths = [1] * len(kept)
    codes_RK = columns.unpack(
        tensors["codes"].tobytes(),
        (sum(lengths), header["columns"]),
        header["sizes"]["codes"],
        f"{where}: the codes",
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
    ends = np.cumsum([0, *(entry[1] for entry in entries)], dtype=np.float64).astype(np.int64)
    if any(not entry[1] or not entry[2] or not entry[3] for entry in entries):
        raise BadData(f"{where}: an empty picture")
    if sum(entry[1] for entry in entries) != len(data):
        raise BadData(f"{where}: pictures that are not as long as their bytes ({len(data):,})")

    def picture(row: int) -> dict[str, Any]:
        content = data[ends[row] : ends[row + 1]].tobytes()
        media, _, width, height = entries[row]
        return {"picture": Picture(content, media, (width, height))}

    return picture


def bytes_of(record: records.Record) -> Counter[str]:
    """How many bytes of a record each part takes; they add up to its length."""
    found = Counter({name: array.nbytes for name, array in record.tensors.items()})
    found["header"] = record.num_bytes - found.total()
    return found
