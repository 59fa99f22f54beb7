"""The published annotation files, as they are: one JSON value a file, found by what is in it.

- A-OKVQA v1.0: a list of {question_id, image_id, question, choices, correct_choice_idx,
  direct_answers, difficult_direct_answer}. Ids and indices may be digits in a text and truth values
  words, as in one public copy.
- VQAv2: {"questions": [{question_id, image_id, question}]} for frames, {"annotations":
  [{question_id, image_id, answers: [{answer}], answer_type}]} for references, or both, in one file
  or in two; then the questions decide which annotations count. Also the merged list of the two.
- OK-VQA: the same, but the kind of a question is its name in {"question_types": {type: name}},
  since every answer type is `other`. In a merged list the answers may be plain texts.
- COCO captions and nocaps: {"images": [{id, file_name, domain?}], "annotations": [{image_id,
  caption}]}; also a list of {image_id, file, captions}. nocaps is what has one of its domains
  (in-domain, near-domain, out-domain, or without -domain).
- Karpathy's dataset_coco.json: {"images": [{cocoid, filename, filepath, split,
  sentences: [{raw}]}]}, with all four splits in one file.
- LAVIS' caption lists: [{image, caption}], where `caption` is a text or a list of them, and an
  image may come again. Its id is `img_id` (nocaps) or the digits at the end of the image's name.

The id of a question is its question_id, of a caption or frame its image's id, as text. An image is
looked for under `images` by the name in the file and by COCO's names, there and in COCO's folders
(val2017/, train2014/, ...). Entries are read and checked one by one, and unused fields dropped.
"""

import os
import re
import sys
from collections.abc import Container, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from cdcca_cli.datasets import fields
from cdcca_cli.datasets.entries import entries
from cdcca_cli.datasets.frames import Frame, Frames, LabelledQuestion, LazyFrames, Task
from cdcca_cli.datasets.manifest import inside
from cdcca_cli.datasets.pictures import require_file
from cdcca_cli.errors import BadData, MissingInput, SettingError, UsageError

COCO_FOLDERS = ("", "val2017", "train2017", "test2017", "val2014", "train2014", "test2015")


@dataclass(slots=True)
class Picture:
    """An image and its questions. part: its split. sources: task names by question id."""

    id: str
    file_name: str | None = None
    domain: str | None = None
    split: str = ""
    part: str | None = None
    questions: list[LabelledQuestion] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)


def annotated_frames(path: Path, *, images: Path | None = None, task: Task | None = None) -> Frames:
    """The frames of an annotation file. task: only the questions of this task.

    Raises: BadData (65) naming the file and the entry; MissingInput (66) if images are missing;
    SettingError (2) if no question is of that task.
    """
    pictures = read_pictures(path).values()
    for picture in pictures:
        picture.questions = [one for one in picture.questions if task in (None, one.task)]
    kept = [picture for picture in pictures if picture.questions]
    if not kept:
        raise SettingError("task", f"{path} holds no such questions: leave it out", task)
    questions = (question for picture in kept for question in picture.questions)
    if any(question.task == "vqa" and question.prompt is None for question in questions):
        raise UsageError(
            f"{path}: answers without their questions; name the questions file for frames, "
            "this one for `references`"
        )
    folder = images if images is not None else path.parent
    files = {picture.id: _find_image(folder, picture, str(path)) for picture in kept}
    found = {image_id: image for image_id, image in files.items() if image is not None}
    lost = [picture for picture in kept if picture.id not in found]
    if lost:
        name = lost[0].file_name or f"{lost[0].id.zfill(12)}.jpg"
        raise MissingInput(
            f"{path}: {len(lost)} of {len(kept)} images are not in {folder}, {name} for one: "
            "give their folder with `images`"
        )
    return LazyFrames(kept, lambda p: Frame(p.id, found[p.id], list(p.questions), p.domain))


def read_pictures(*paths: Path) -> dict[str, Picture]:
    """The images of annotation files with their questions, by image id, in file order.

    Several files count as one, in any order. Raises: BadData (65) for an unknown shape, a repeated
    id, or questions and annotations without a match.
    """
    found = _Found()
    for path in paths:
        require_file(path)
        with open(path, "rb") as file:
            found.read(file, str(path))
    return found.pictures(", ".join(map(str, paths)))


EXPECTED = (
    "expected A-OKVQA, VQAv2, COCO-caption or nocaps annotations, Karpathy's dataset_coco.json or "
    "LAVIS' captions"
)
NOCAPS_DOMAINS = frozenset(("in-domain", "near-domain", "out-domain", "in", "near", "out"))
AOKVQA_KEYS = frozenset(("choices", "direct_answers", "difficult_direct_answer", "rationales"))
_NUMBER_OF_IMAGE = re.compile(r"(?:.*[_/])?0*([0-9]{1,18})\.[a-z]{3,4}", re.IGNORECASE | re.DOTALL)


@dataclass(slots=True)
class _Entry:
    question: LabelledQuestion
    source: str
    picture: Picture
    place: str
    question_type: str | None = None


@dataclass(slots=True)
class _Found:
    listed: list[_Entry] = field(default_factory=list)
    questions: dict[str, _Entry] = field(default_factory=dict)
    labels: dict[str, _Entry] = field(default_factory=dict)
    images: dict[str, Picture] = field(default_factory=dict)
    captions: dict[str, list[str]] = field(default_factory=dict)
    type_names: dict[str, str] = field(default_factory=dict)
    lists_images: bool = False
    _seen: set[str] = field(default_factory=set)

    def read(self, file: BinaryIO, where: str) -> None:
        known: set[str] = set()
        others: list[str] = []
        for key, number, value in entries(file, where):
            if key is None:
                self._merged(value, f"{where}: entry {number}")
            elif key not in ("questions", "annotations", "images", "question_types"):
                if number is None and len(others) < 100:
                    others.append(key)
            elif number is not None and key != "question_types":
                _ENTRY_OF[key](self, value, f"{where}: {key.removesuffix('s')} {number}")
            elif key in known:
                raise BadData(f"{where}: the key '{key}' is there twice")
            else:
                known.add(key)
                self.lists_images |= key == "images"
                if key == "question_types":
                    names = fields.an_object(value, f"{where}: '{key}'")
                    self.type_names.update((k, fields.a_text(names, k, where)) for k in names)
                elif value is not None:
                    fields.a_list({key: value}, key, where)
        if others and not known:
            raise BadData(f"{where}: {EXPECTED}, found an object with {fields.keys_of(others)}")

    def _merged(self, value: object, place: str) -> None:
        """An entry of a list: one question with its labels, or the captions of one image."""
        item = fields.an_object(value, place)
        if "question_id" in item:
            self.listed.append(self._entry(item, place))
        elif "captions" in item:
            picture = _picture(item, fields.an_id(item, "image_id", place), place)
            captions = fields.optional_texts(item, "captions", place)
            question = LabelledQuestion(self._new(picture.id, place), captions=captions)
            self.listed.append(_Entry(question, "caption", picture, place))
        elif "caption" in item and "image" in item:
            self._lavis(item, place)
        elif "caption" in item:
            raise BadData(
                f"{place}: {EXPECTED}, found results (captions that a model made): name this file "
                "as predictions"
            )
        else:
            raise BadData(f"{place}: {EXPECTED}, found {fields.keys_of(item)}")

    def _lavis(self, item: dict[str, Any], place: str) -> None:
        """One of LAVIS' entries: an image with one of its captions, or with all of them."""
        name = fields.a_text(item, "image", place)
        key = "img_id" if "img_id" in item else "image"
        image_id = fields.an_id(item, key, place)
        if key == "image":
            image_id = _image_id(name)
        if isinstance(item["caption"], list):
            captions = fields.optional_texts(item, "caption", place) or []
        else:
            captions = [fields.a_text(item, "caption", place)]
        self.lists_images = True
        self.images.setdefault(image_id, Picture(image_id, name))
        self.captions.setdefault(image_id, []).extend(captions)

    def _asked(self, value: object, place: str) -> None:
        """One of VQAv2's questions."""
        item = fields.an_object(value, place)
        entry = self._entry(item, place)
        self.questions[entry.question.id] = entry

    def _annotation(self, value: object, place: str) -> None:
        """One of VQAv2's annotations, or one of COCO's captions."""
        item = fields.an_object(value, place)
        if "caption" in item:
            image_id = fields.an_id(item, "image_id", place)
            caption = fields.a_text(item, "caption", place)
            self.captions.setdefault(image_id, []).append(caption)
        elif "question_id" in item:
            question_id = fields.an_id(item, "question_id", place)
            _refuse_twice(question_id, self.labels, place)
            self.labels[question_id] = self._entry(item, place, labels=True)
        else:
            raise BadData(
                f"{place}: no 'caption' and no 'question_id' in it: COCO's captions file is "
                f"expected, or VQAv2's annotations; found {fields.keys_of(item)}"
            )

    def _image(self, value: object, place: str) -> None:
        item = fields.an_object(value, place)
        picture = self._karpathy(item, place) if "sentences" in item else None
        picture = picture or _picture(item, fields.an_id(item, "id", place), place)
        _refuse_twice(picture.id, self.images, place)
        self.images[picture.id] = picture

    def _karpathy(self, item: dict[str, Any], place: str) -> Picture:
        picture_id = fields.an_id(item, "cocoid" if "cocoid" in item else "imgid", place)
        folder = fields.optional_text(item, "filepath", place) or ""
        name = os.path.join(folder, fields.a_text(item, "filename", place))
        split = fields.a_text(item, "split", place)
        for sentence in fields.a_list(item, "sentences", place):
            words = fields.an_object(sentence, f"{place}, 'sentences'")
            caption = fields.a_text(words, "raw", f"{place}, 'sentences'")
            self.captions.setdefault(picture_id, []).append(caption)
        return Picture(picture_id, name, part=sys.intern(split))

    def _entry(self, item: dict[str, Any], place: str, *, labels: bool = False) -> _Entry:
        choices = fields.optional_texts(item, "choices", place)
        question_id = fields.an_id(item, "question_id", place)
        question = LabelledQuestion(
            id=question_id if labels else self._new(question_id, place),
            prompt=fields.optional_text(item, "question", place),
            task="vqa",
            choices=choices,
            correct_choice_idx=fields.optional_index(
                item, "correct_choice_idx", len(choices or ()), place
            ),
            answers=_answers(item, place),
            kind=fields.optional_text(item, "answer_type", place),
            difficult_direct_answer=fields.a_truth(item, "difficult_direct_answer", place),
        )
        picture = _picture(item, fields.an_id(item, "image_id", place), place)
        source: str = "aokvqa" if AOKVQA_KEYS & item.keys() else "vqa"
        question_type = fields.optional_text(item, "question_type", place)
        return _Entry(question, source, picture, place, question_type and sys.intern(question_type))

    def _new(self, question_id: str, place: str) -> str:
        _refuse_twice(question_id, self._seen, place)
        self._seen.add(question_id)
        return question_id

    def pictures(self, where: str) -> dict[str, Picture]:
        """The images of all files, each with its questions."""
        pictures: dict[str, Picture] = {}
        for one in [*self.listed, *self._joined(where), *self._captioned(where)]:
            question = one.question
            if one.question_type is not None and one.question_type in self.type_names:
                question = replace(question, kind=self.type_names[one.question_type])
            picture = pictures.setdefault(one.picture.id, one.picture)
            picture.questions.append(question)
            picture.sources[question.id] = one.source
        if not pictures:
            raise BadData(f"{where}: holds no questions and no images")
        return pictures

    def _joined(self, where: str) -> Iterator[_Entry]:
        """The questions with their labels; only the labels if there are no questions."""
        if not self.questions:
            for question_id, label in self.labels.items():
                self._new(question_id, label.place)
                yield label
            return
        if self.labels and not self.labels.keys() & self.questions.keys():
            raise BadData(
                f"{where}: not one of {len(self.questions)} questions is among the "
                f"{len(self.labels)} annotations: they are of different splits"
            )
        for question_id, entry in self.questions.items():
            labels = self.labels.get(question_id)
            if labels is None:
                yield entry
                continue
            if labels.picture.id != entry.picture.id:
                raise BadData(
                    f"{labels.place}: '{question_id}' is about image {labels.picture.id} "
                    f"here, about {entry.picture.id} in {entry.place}"
                )
            question = replace(labels.question, prompt=entry.question.prompt)
            yield replace(entry, question=question, question_type=labels.question_type)

    def _captioned(self, where: str) -> Iterator[_Entry]:
        """A caption question for each image, with its captions if there are any."""
        if self.captions and not self.lists_images:
            self.images = {image_id: Picture(image_id) for image_id in self.captions}
        lost = self.captions.keys() - self.images.keys()
        if lost:
            raise BadData(
                f"{where}: {len(lost)} captioned images are not among its 'images', "
                f"{min(lost)} for one"
            )
        domains = {picture.domain for picture in self.images.values()}
        source: str = "nocaps" if domains & NOCAPS_DOMAINS else "caption"
        for image_id, picture in self.images.items():
            question = LabelledQuestion(
                self._new(image_id, where), captions=self.captions.get(image_id)
            )
            yield _Entry(question, source, picture, where)


def _refuse_twice(name: str, seen: Container[str], place: str) -> None:
    if name in seen:
        raise BadData(f"{place}: the id '{name}' is there twice")


_ENTRY_OF = {
    "questions": _Found._asked,
    "annotations": _Found._annotation,
    "images": _Found._image,
}


def _answers(item: dict[str, Any], place: str) -> list[str] | None:
    """Plain texts, or VQAv2's objects with an `answer` each."""
    key = "direct_answers" if "direct_answers" in item else "answers"
    value = item.get(key)
    place = f"{place}, '{key}'"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        objects = (fields.an_object(answer, place) for answer in value)
        return [sys.intern(fields.a_text(answer, "answer", place)) for answer in objects]
    return fields.optional_texts(item, key, place)


def _picture(item: dict[str, Any], image_id: str, place: str) -> Picture:
    names = (fields.optional_text(item, key, place) for key in ("file_name", "file", "image_path"))
    return Picture(
        image_id,
        next((name for name in names if name), None),
        fields.optional_text(item, "domain", place),
        fields.optional_text(item, "split", place) or "",
    )


def _find_image(folder: Path, picture: Picture, where: str) -> Path | None:
    names = [picture.file_name] if picture.file_name else []
    if picture.id.isascii() and picture.id.isdigit():
        number = picture.id.zfill(12)
        names.append(f"{number}.jpg")
        names += [f"COCO_{parent}_{number}.jpg" for parent in COCO_FOLDERS if parent]
    split = picture.split
    own = [split, f"{split}2017", f"{split}2014"] if split else []
    for parent in dict.fromkeys(("", *own, *COCO_FOLDERS)):
        for name in names:
            path = inside(folder, os.path.join(parent, name), where)
            if os.path.isfile(path):
                return path
    return None


def _image_id(name: str) -> str:
    """The id in an image's name: COCO_val2014_000000000042.jpg is 42; else the name's stem."""
    match = _NUMBER_OF_IMAGE.fullmatch(name)
    return match[1] if match else os.path.splitext(os.path.basename(name))[0] or name


def no_labels(sources: set[str | None]) -> str:
    """Why files of these kinds, which hold no labels, cannot be references."""
    why = {
        "aokvqa": "A-OKVQA's test split is published without answers: give the train or val split",
        "vqa": "questions without answers: give their annotations too (test splits have none)",
        "caption": "images without captions, as test splits are published",
        "nocaps": "images without captions, as nocaps' test split is published",
    }
    known = sources.pop() if len(sources) == 1 else None
    expected = "a manifest or annotation file with choices, answers or captions is expected"
    return f"no labels in it: {why.get(known or '', expected)}"
