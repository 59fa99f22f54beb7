"""The index of a record of frames, version 2 of `shard`: JSON in a zstd frame."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from types import NoneType
from typing import Any, cast

import numpy as np

from cdcca_cli.errors import BadData
from cdcca_cli.formats import places, records
from cdcca_cli.formats.pictures import MEDIA, Picture
from cdcca_cli.formats.shard import Layout, Question, Shard
from cdcca_cli.numerics import zstd_frames
from cdcca_cli.text import load_json

MOST_TOKENS = 1 << 20
MOST_BYTES = 1 << 21
_MOST_CHARS = 1 << 22
_MOST_NUMBER = 1 << 31
_INDEX: dict[str, Any] = {
    **dict.fromkeys(("strings", "layouts", "frames", "domains", "layout", "counts", "ids"), list),
    **dict.fromkeys(("prompts", "choices"), list),
    **dict.fromkeys(("images", "times", "pictures"), list | None),
    "tasks": str,
}
_TYPES: dict[str, set[type]] = {
    **{name: {str} for name in ("strings", "frames", "images", "ids")},
    **{name: {int} for name in ("layout", "counts")},
    **{name: {int, NoneType} for name in ("domains", "prompts")},
    "layouts": {dict},
    "times": {int, float, NoneType},
    "choices": {list, NoneType},
    "pictures": {list},
}
_LAYOUT: dict[str, Any] = {"num_tokens": int, "grid": list, "marks": str, "fixed": list}
TASKS = {"v": "vqa", "c": "caption"}


def content(shards: Sequence[Shard]) -> dict[str, Any]:
    """The JSON object of these frames."""
    strings: dict[str, int] = {}

    def number(text: str | None) -> int | None:
        return None if text is None else strings.setdefault(text, len(strings))

    layouts: dict[tuple[int, Layout], int] = {}
    questions = [question for shard in shards for question in shard.questions]
    frames, images = [shard.frame for shard in shards], [shard.image for shard in shards]
    times = [shard.time for shard in shards]
    pictures = [cast(Picture, shard.picture) for shard in shards if shard.coding.codec == "frame"]
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
        {"num_tokens": int(count), "grid": [*layout.grid, *layout.boxes], "marks": layout.marks}
        | {"fixed": layout.fixed}
        for count, layout in layouts
    ]
    return index | {"strings": list(strings)}


def read(record: records.Record, header: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The index, with numbers of strings replaced by the strings. BadData."""
    where = f"{where}: the index"
    packed = record.tensors["index"].tobytes()
    try:
        content = zstd_frames.read_frame(packed, header["sizes"]["index"], "columns")
    except BadData as error:
        raise BadData(f"{where}: {error}") from None
    index = records.fields(load_json(content, where), _INDEX, where)
    _check_lists(index, header["count"], where)
    strings = index["strings"]
    num_chars = 0

    def string(place: object, what: str) -> str:
        nonlocal num_chars
        if type(place) is not int or not 0 <= place < len(strings):
            raise BadData(f"{where}: {what}: no string of this number")
        num_chars += len(strings[place])
        if num_chars > _MOST_CHARS:
            raise BadData(f"{where}: more than {_MOST_CHARS:,} characters of text")
        return strings[place]

    if not all(index["frames"]):
        raise BadData(f"{where}: the id of a frame is empty")
    if min(index["counts"]) < 0 or sum(index["counts"]) != len(index["ids"]):
        raise BadData(f"{where}: counts that do not add up to {len(index['ids']):,} questions")
    if (index["pictures"] is None) != (header["codec"] != "frame"):
        raise BadData(f"{where}: pictures belong to the codec frame, found {header['codec']}")
    if index["times"] is not None:
        index["times"] = [None if time is None else float(time) for time in index["times"]]
    for name in ("domains", "prompts"):
        index[name] = [None if n is None else string(n, name) for n in index[name]]
    for place, choices in enumerate(index["choices"]):
        if choices is not None:
            if not choices:
                raise BadData(f"{where}: an empty list of choices")
            index["choices"][place] = [string(n, "choices") for n in choices]
    for place, entry in enumerate(index["pictures"] or ()):
        numbers = _numbers(entry, "a picture", where)
        if len(numbers) != 4 or min(numbers[1:]) < 1 or string(numbers[0], "media") not in MEDIA:
            raise BadData(f"{where}: a picture that is not {' or '.join(MEDIA)} with its size")
        index["pictures"][place] = [strings[numbers[0]], *numbers[1:]]
    return index


def _check_lists(index: Mapping[str, Any], num_frames: int, where: str) -> None:
    """Lengths and types, before anything is made of them. BadData."""
    lengths = dict.fromkeys(("frames", "domains", "layout", "counts"), num_frames)
    lengths |= dict.fromkeys(("images", "times", "pictures"), num_frames)
    lengths |= dict.fromkeys(("tasks", "prompts", "choices"), len(index["ids"]))
    for name, count in lengths.items():
        if index[name] is not None and len(index[name]) != count:
            raise BadData(f"{where}: {len(index[name]):,} {name} for {count:,}")
    if len(index["layouts"]) > num_frames:
        raise BadData(f"{where}: {len(index['layouts']):,} layouts for {num_frames:,} frames")
    for name, types in _TYPES.items():
        if others := set(map(type, index[name] or ())) - types:
            raise BadData(f"{where}: {name} with a value of the type {others.pop().__name__}")


def _numbers(values: Iterable[object], what: str, where: str) -> list[int]:
    """Whole numbers from 0 to 2^31. BadData."""
    numbers = cast(list[int], list(values))
    if set(map(type, numbers)) - {int} or not min(numbers, default=0) >= 0:
        raise BadData(f"{where}: {what} that is not of whole numbers from 0 up")
    if max(numbers, default=0) > _MOST_NUMBER:
        raise BadData(f"{where}: {what} with a number above 2^31")
    return numbers


def layouts(index: Mapping[str, Any], where: str) -> list[tuple[int, Layout]]:
    """Number of tokens and layout, for each entry. BadData."""
    found = []
    for entry in index["layouts"]:
        one = records.fields(entry, _LAYOUT, f"{where}: a layout")
        count, grid = one["num_tokens"], _numbers(one["grid"], "a grid", where)
        fixed = _numbers(one["fixed"], "a list of fixed places", where)
        if not 1 <= count <= MOST_TOKENS:
            raise BadData(f"{where}: a layout of {count:,} tokens")
        if fixed and (fixed[-1] >= count or any(a >= b for a, b in pairwise(fixed))):
            raise BadData(f"{where}: a layout whose fixed places do not ascend within its tokens")
        shape, boxes = places.split(grid)
        found.append((count, Layout(shape, one["marks"], tuple(fixed), boxes)))
    if any(not 0 <= n < len(found) for n in index["layout"]):
        raise BadData(f"{where}: no layout of this number")
    return found


def questions(index: Mapping[str, Any], entropies: np.ndarray, where: str) -> list[Question]:
    """The questions of all frames, in order. BadData."""
    if len(entropies) != len(index["ids"]):
        raise BadData(f"{where}: {len(entropies):,} entropies for {len(index['ids']):,} questions")
    if (entropies < 0).any() or np.isinf(entropies).any():
        raise BadData(f"{where}: an entropy below 0 or not finite")
    if not set(index["tasks"]) <= set(TASKS):
        raise BadData(f"{where}: tasks other than {' and '.join(TASKS)}")
    return [
        Question(id, prompt, cast(Any, TASKS[task]), choices, None if math.isnan(nats) else nats)
        for id, task, prompt, choices, nats in zip(
            index["ids"],
            index["tasks"],
            index["prompts"],
            index["choices"],
            entropies.astype(float).tolist(),
            strict=True,
        )
    ]
