"""The published annotation files, as they are: one JSON value a file, found by what is in it.

- A-OKVQA v1.0: a list of {question_id, image_id, question, choices, correct_choice_idx,
  direct_answers, difficult_direct_answer}.
- VQAv2: {"questions": [{question_id, image_id, question}]} for frames, {"annotations":
  [{question_id, image_id, answers: [{answer}], answer_type}]} for references, or both in one;
  also the merged list of the two (OK-VQA's too, its answers plain texts).
- COCO captions and nocaps: {"images": [{id, file_name, domain?}], "annotations": [{image_id,
  caption}]}; also a list of {image_id, file, captions}.

The id of a question is its question_id, of a caption its image's id, as text. A frame's id is its
image's id. An image is looked for under `images` by the name the file gives and by the names COCO
uses, there and in COCO's folders (val2017/, train2014/, ...).

Whole files are held in memory. Rationales, boxes and licences are not read.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdcca_cli.datasets import fields
from cdcca_cli.datasets.frames import Frame, LabelledAsk, Task, require_file
from cdcca_cli.datasets.manifest import inside
from cdcca_cli.errors import BadData, MissingInput, UsageError

COCO_FOLDERS = ("", "val2017", "train2017", "test2017", "val2014", "train2014", "test2015")


@dataclass(slots=True)
class Picture:
    """One image of an annotation file: what the file calls it, and its asks."""

    id: str
    file_name: str | None = None
    domain: str | None = None
    split: str = ""
    asks: list[LabelledAsk] = field(default_factory=list)


class Annotations:
    """The frames of an annotation file.

    path: the file. images: the folder its images lie in, otherwise the file's own. task: only the
    asks of this task.

    Raises: BadData (65) naming the file and the entry; MissingInput (66) if images are not there;
        UsageError (2) if no ask is of that task.
    """

    def __init__(self, path: Path, *, images: Path | None = None, task: Task | None = None) -> None:
        pictures = read_pictures(path)
        kept = [_only(picture, task) for picture in pictures.values()]
        kept = [picture for picture in kept if picture.asks]
        if not kept:
            raise UsageError(f"{path}: holds no {task} asks: leave out --task")
        if any(ask.task == "vqa" and ask.prompt is None for p in kept for ask in p.asks):
            raise UsageError(
                f"{path}: answers without their questions; name the questions file for frames, "
                "this one for --references"
            )
        folder = images if images is not None else path.parent
        found = [(picture, _find_image(folder, picture, str(path))) for picture in kept]
        lost = [picture for picture, image in found if image is None]
        if lost:
            name = lost[0].file_name or f"{lost[0].id.zfill(12)}.jpg"
            raise MissingInput(
                f"{path}: {len(lost)} of {len(kept)} images are not in {folder}, {name} for one: "
                "give their folder with --images"
            )
        self._found = [(picture, image) for picture, image in found if image is not None]

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Frame]:
        for picture, image in self._found:
            yield Frame(picture.id, image, list(picture.asks), picture.domain)


def read_pictures(path: Path) -> dict[str, Picture]:
    """The images of an annotation file with their asks, by image id, in file order.

    Raises: BadData (65) if it is none of the published shapes, breaks its own, or repeats an id.
    """
    require_file(path)
    if path.stat().st_size > fields.MAX_JSON_BYTES:
        raise BadData(f"{path}: more than {fields.MAX_JSON_BYTES:,} bytes of JSON")
    content = fields.parse_json(path.read_bytes(), str(path))
    where = str(path)
    if isinstance(content, dict):
        if "questions" in content:
            pictures = _vqa_files(content, where)
        elif "images" in content:
            pictures = _coco_captions(content, where)
        elif "annotations" in content:
            pictures = _merged(fields.a_list(content, "annotations", where), where)
        else:
            raise BadData(f"{where}: {EXPECTED}, found an object with {_keys(content)}")
    elif isinstance(content, list):
        pictures = _merged(content, where)
    else:
        raise BadData(f"{where}: {EXPECTED}, found {fields.describe(content)}")
    if not pictures:
        raise BadData(f"{where}: holds no questions and no images")
    return pictures


EXPECTED = "expected A-OKVQA, VQAv2, COCO-caption or nocaps annotations"


def _merged(items: list[Any], where: str) -> dict[str, Picture]:
    """A list whose entries hold everything about one question, or all captions of one image."""
    pictures: dict[str, Picture] = {}
    seen: set[str] = set()
    for number, value in enumerate(items):
        place = f"{where}: entry {number}"
        item = fields.an_object(value, place)
        if "question_id" in item:
            ask = _question(item, place)
        elif "captions" in item:
            captions = fields.optional_texts(item, "captions", place)
            ask = LabelledAsk(fields.an_id(item, "image_id", place), captions=captions)
        elif "caption" in item:
            raise BadData(f"{place}: a file of results, not of references: {_keys(item)}")
        else:
            raise BadData(f"{place}: {EXPECTED}, found {_keys(item)}")
        _add_ask(pictures, seen, item, ask, place)
    return pictures


def _question(item: dict[str, Any], place: str) -> LabelledAsk:
    choices = fields.optional_texts(item, "choices", place)
    key = "direct_answers" if "direct_answers" in item else "answers"
    return LabelledAsk(
        id=fields.an_id(item, "question_id", place),
        prompt=fields.optional_text(item, "question", place),
        task="vqa",
        choices=choices,
        correct_choice_idx=fields.optional_index(
            item, "correct_choice_idx", len(choices or ()), place
        ),
        answers=_answers(item, key, place),
        kind=fields.optional_text(item, "answer_type", place),
        difficult_direct_answer=fields.a_truth(item, "difficult_direct_answer", place),
    )


def _answers(item: dict[str, Any], key: str, place: str) -> list[str] | None:
    """Plain texts, or VQAv2's objects with an `answer` each."""
    value = item.get(key)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        objects = [fields.an_object(answer, f"{place}, '{key}'") for answer in value]
        return [fields.a_text(answer, "answer", f"{place}, '{key}'") for answer in objects]
    return fields.optional_texts(item, key, place)


def _vqa_files(content: dict[str, Any], where: str) -> dict[str, Picture]:
    """VQAv2's questions, joined with its annotations where the file holds both."""
    labels: dict[str, dict[str, Any]] = {}
    if "annotations" in content:
        for number, value in enumerate(fields.a_list(content, "annotations", where)):
            place = f"{where}: annotation {number}"
            item = fields.an_object(value, place)
            labels[fields.an_id(item, "question_id", place)] = item
    items = []
    for number, value in enumerate(fields.a_list(content, "questions", where)):
        item = fields.an_object(value, f"{where}: question {number}")
        items.append({**labels.get(fields.an_id(item, "question_id", where), {}), **item})
    return _merged(items, where)


def _coco_captions(content: dict[str, Any], where: str) -> dict[str, Picture]:
    """COCO captions and nocaps. An image without captions keeps its ask, without references."""
    captions: dict[str, list[str]] = {}
    for number, value in enumerate(content.get("annotations") or []):
        place = f"{where}: annotation {number}"
        item = fields.an_object(value, place)
        if "caption" not in item:
            raise BadData(f"{place}: no 'caption' in it: COCO's captions file is expected")
        image_id = fields.an_id(item, "image_id", place)
        captions.setdefault(image_id, []).append(fields.a_text(item, "caption", place))
    pictures: dict[str, Picture] = {}
    seen: set[str] = set()
    for number, value in enumerate(fields.a_list(content, "images", where)):
        place = f"{where}: image {number}"
        item = fields.an_object(value, place)
        image_id = fields.an_id(item, "id", place)
        ask = LabelledAsk(image_id, captions=captions.pop(image_id, None))
        _add_ask(pictures, seen, {**item, "image_id": image_id}, ask, place)
    if captions:
        raise BadData(
            f"{where}: {len(captions)} captioned images are not among its 'images', "
            f"{next(iter(captions))} for one"
        )
    return pictures


def _add_ask(
    pictures: dict[str, Picture],
    seen: set[str],
    item: dict[str, Any],
    ask: LabelledAsk,
    place: str,
) -> None:
    if ask.id in seen:
        raise BadData(f"{place}: the id '{ask.id}' is there twice")
    seen.add(ask.id)
    image_id = fields.an_id(item, "image_id", place)
    names = (fields.optional_text(item, key, place) for key in ("file_name", "file", "image_path"))
    fresh = Picture(
        image_id,
        next((name for name in names if name), None),
        fields.optional_text(item, "domain", place),
        fields.optional_text(item, "split", place) or "",
    )
    pictures.setdefault(image_id, fresh).asks.append(ask)


def _only(picture: Picture, task: Task | None) -> Picture:
    if task is not None:
        picture.asks = [ask for ask in picture.asks if ask.task == task]
    return picture


def _find_image(folder: Path, picture: Picture, where: str) -> Path | None:
    for name in _candidates(picture):
        path = inside(folder, name, where)
        if os.path.isfile(path):
            return path
    return None


def _candidates(picture: Picture) -> Iterable[str]:
    names = [picture.file_name] if picture.file_name else []
    if picture.id.isascii() and picture.id.isdigit():
        number = picture.id.zfill(12)
        names.append(f"{number}.jpg")
        names += [f"COCO_{folder}_{number}.jpg" for folder in COCO_FOLDERS if folder]
    own = [picture.split, f"{picture.split}2017", f"{picture.split}2014"] if picture.split else []
    for folder in dict.fromkeys(("", *own, *COCO_FOLDERS)):
        for name in names:
            yield os.path.join(folder, name)


def _keys(item: dict[str, Any]) -> str:
    names = sorted(str(key)[:30] for key in item)[:6]
    return "the keys " + ", ".join(names) if names else "no keys"
