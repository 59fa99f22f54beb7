"""The frames and the labels of a source, whatever kind it is; `manifest` and `annotations` read it.

A JSON file is a manifest if its first line is one, whatever its name. A folder with a frames.jsonl
is that manifest. A folder of images is refused if a folder below it has a frames.jsonl, unless a
prompt replaces the questions. Its other files are counted by kind, on stderr.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cdcca_cli import files, remote, streams
from cdcca_cli.datasets import fields, pictures, video
from cdcca_cli.datasets.annotations import annotated_frames, no_labels, read_pictures
from cdcca_cli.datasets.frames import TASKS, Frame, Frames, LabelledQuestion, LazyFrames, Task
from cdcca_cli.datasets.live import LiveFrames, is_live, name_of
from cdcca_cli.datasets.manifest import Manifest
from cdcca_cli.errors import BadData, MissingInput, SettingError, UsageError
from cdcca_cli.formats import pictures as picture_files
from cdcca_cli.formats.kind import HEAD_BYTES, describe
from cdcca_cli.settings import NO_DASH
from cdcca_cli.text import counted, is_text

MANIFEST_NAME = "frames.jsonl"
_HEIC_SUFFIXES = frozenset((".heic", ".heif", ".hif"))
_NAMES_AN_IMAGE = re.compile(rb'"image"\s*:')


def read_frames(
    source: str | Path,
    *,
    images: str | Path | None = None,
    prompt: str | None = None,
    task: str | None = None,
    every: float | None = None,
    duration: float | None = None,
) -> Frames:
    """The frames of a source: lazy, with a length, and any number of times.

    source: a folder of images (its frames.jsonl if it has one, otherwise all images under it,
        sorted by path), one image, a manifest, an annotation file, or a video. All but the folder
        may be addresses (`remote`).
    images: the folder in which the images of a manifest or annotation file lie.
    prompt: the question for every frame, in place of the source's own.
    task: "vqa" or "caption": what a bare image is asked ("caption" unless a prompt is given), or
        which of a source's own questions are kept.
    every: seconds between the frames of a video, by its time stamps.
    duration: seconds of a video, by its time stamps, that are read.

    Raises: MissingInput (66) if the source or an image is missing; BadData (65) naming file and
    line; SettingError (2) for settings that do not fit; Unavailable (69) for a video without PyAV.
    """
    known = _checked(prompt, task)
    path = _existing(source)
    folder = None if images is None else Path(images)
    if folder is not None and not (str(images) and folder.is_dir()):
        raise MissingInput(f"`images` {images}: no such folder")
    kind = _kind_of(path)
    for name, value in (("every", every), ("duration", duration)):
        if value is not None and kind != "video":
            raise SettingError(name, f"is for videos and live sources; {path} is neither")
    if kind in ("folder", "image", "video"):
        if folder is not None:
            raise SettingError(
                "images", f"expected a manifest or annotation file beside it; {path} is neither"
            )
        question = _bare_question(str(path), prompt, known)
        if kind == "video":
            return _video(path, question, every, duration)
        return _bare(path, kind, question)
    own_task = known if prompt is None else None
    frames: Frames
    if folder is None and remote.is_copy(path):
        raise SettingError("images", f"{path} comes without its images: give their folder")
    if kind == "manifest":
        manifest = path / MANIFEST_NAME if path.is_dir() else path
        frames = Manifest(manifest, images=folder, task=own_task)
    else:
        frames = annotated_frames(path, images=folder, task=own_task)
    if prompt is None:
        return frames
    asked = LabelledQuestion("", prompt, known or "vqa")
    return LazyFrames(frames, lambda frame: replace(frame, questions=[replace(asked, id=frame.id)]))


def open_frames(
    source: str | Path,
    *,
    images: str | Path | None = None,
    prompt: str | None = None,
    task: str | None = None,
    every: float | None = None,
    duration: float | None = None,
) -> Frames | LiveFrames:
    """As `read_frames`, or of a live source: an address, or a device such as /dev/video0.

    Raises: as `read_frames`; MissingInput (66) if a live source cannot be opened.
    """
    if not is_live(source):
        return read_frames(
            source, images=images, prompt=prompt, task=task, every=every, duration=duration
        )
    known = _checked(prompt, task)
    if images is not None:
        raise SettingError("images", "is for manifests and annotation files, not a live source")
    question = _bare_question(name_of(str(source)), prompt, known)
    return LiveFrames(str(source), question, every, duration)


def _checked(prompt: str | None, task: str | None) -> Task | None:
    """The task. Raises: SettingError if there is none of that name, or the prompt is blank."""
    if task is not None and task not in TASKS:
        raise SettingError("task", f"expected one of {', '.join(TASKS)}", task)
    if prompt is not None and not prompt.strip():
        raise SettingError("prompt", "expected a question, found blanks")
    if prompt is not None and not is_text(prompt):
        raise SettingError("prompt", "is not UTF-8")
    return task


def _bare_question(where: str, prompt: str | None, task: Task | None) -> LabelledQuestion:
    """What a frame without questions of its own is asked."""
    if task == "vqa" and prompt is None:
        raise SettingError("task", f"{where} holds no questions: give one with `prompt`", task)
    return LabelledQuestion("", prompt, task or ("caption" if prompt is None else "vqa"))


@dataclass(frozen=True, slots=True)
class Reference:
    """The labels of one question. source: the kind of file. split: if the file has several."""

    question: LabelledQuestion
    frame: str
    domain: str | None = None
    source: str | None = None
    split: str | None = None


def read_references(
    source: str | Path | Sequence[str | Path],
) -> Mapping[str, Reference]:
    """The labels of manifests and annotation files, by question id. Images are not needed.

    Several sources count as one, in any order: VQAv2's questions and annotations, nocaps by domain.
    Raises: as read_frames; BadData (65) for a repeated id, or if there are no labels.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    references: dict[str, Reference] = {}
    annotations = []
    for path in map(_existing, sources):
        kind = _kind_of(path)
        if kind == "manifest":
            manifest = path / MANIFEST_NAME if path.is_dir() else path
            frames = Manifest(manifest, check_images=False)
            _add(references, references_of(frames, "manifest"), path)
        elif kind == "annotations":
            annotations.append(path)
        elif kind == "folder":
            _images_under(path, manifests=False)
        if kind not in ("manifest", "annotations"):
            raise BadData(f"{path}: {_NO_LABELS}")
    if annotations:
        found = {
            question.id: Reference(
                question, picture.id, picture.domain, picture.sources[question.id], picture.part
            )
            for picture in read_pictures(*annotations).values()
            for question in picture.questions
        }
        _add(references, found, annotations[0])
    if not any(_is_labelled(reference.question) for reference in references.values()):
        why = no_labels({reference.source for reference in references.values()})
        raise BadData(f"{', '.join(map(str, sources))}: {why}")
    return references


_NO_LABELS = (
    "no labels in it: a manifest or annotation file with choices, answers or captions is expected"
)


def _add(known: dict[str, Reference], more: Mapping[str, Reference], path: Path) -> None:
    twice = known.keys() & more.keys()
    if twice:
        raise BadData(f"{path}: the id '{min(twice)}' is in another of these files already")
    known.update(more)


def references_of(frames: Iterable[Frame], source: str | None = None) -> dict[str, Reference]:
    """The labels of frames, by question id."""
    return {
        question.id: Reference(question, frame.id, frame.domain, source)
        for frame in frames
        for question in frame.questions
    }


def _is_labelled(question: LabelledQuestion) -> bool:
    return bool(question.answers or question.captions) or question.correct_choice_idx is not None


def _bare(path: Path, kind: str, question: LabelledQuestion) -> Frames:
    """The images of a folder, or one image, each with the same question."""

    def frame(image: Path, name: str) -> Frame:
        return Frame(name, image, [replace(question, id=name)])

    if kind == "folder":
        names = _images_under(path, manifests=question.prompt is not None)
        return LazyFrames(names, lambda name: frame(path / name, name))
    return LazyFrames([path.name], lambda name: frame(path, name))


def _video(
    path: Path, question: LabelledQuestion, every: float | None, duration: float | None
) -> Frames:
    """Frames of a video, each with the same question."""

    def frame(picked: tuple[int, float | None]) -> Frame:
        position, time = picked
        name = f"{path.name}#{position}"
        return Frame(name, path, [replace(question, id=name)], position=position, time=time)

    if not is_text(path.name):
        raise BadData(f"{path}: its name is not UTF-8: rename the file")
    return LazyFrames(video.pick(path, every, duration), frame)


def _images_under(folder: Path, *, manifests: bool) -> list[str]:
    """Paths relative to `folder`, by code point, none hidden. manifests: allowed in subfolders."""

    def refuse(error: OSError) -> None:
        raise MissingInput(files.reason(error.filename, error))

    names = []
    others: Counter[str] = Counter()
    for parent, folders, found in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inner = os.path.relpath(parent, folder)
        if MANIFEST_NAME in found and not manifests:
            raise BadData(
                f"{folder}: has no {MANIFEST_NAME}, but {inner}/{MANIFEST_NAME} is under it: name "
                "that folder, or give `prompt` to ask one question of all images"
            )
        others["linked folder"] += sum(os.path.islink(os.path.join(parent, f)) for f in folders)
        for name in found:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in pictures.suffixes() and not name.startswith("."):
                names.append(name if inner == "." else f"{inner}/{name}")
            elif not name.startswith(".") and name != MANIFEST_NAME:
                others[suffix or "without an ending"] += 1
    left_out = ", ".join(_counted(kind, count) for kind, count in sorted((+others).items()))
    if not names:
        raise BadData(
            f"{folder}: no images in this folder: expected {MANIFEST_NAME} or files such as *.jpg"
            + (f", found only {left_out}" if left_out else "")
        )
    if left_out:
        streams.message(f"{folder}: {counted(len(names), 'image')}; left out: {left_out}")
    return sorted(names)


def _counted(kind: str, count: int) -> str:
    """The number of files of a kind that were left out, and the cure."""
    cure = ""
    if kind in _HEIC_SUFFIXES:
        cure = " (HEIC cannot be read here: convert to JPEG or PNG)"
    elif kind in video.SUFFIXES:
        cure = " (a video is a source of its own: name the file)"
    elif kind == "linked folder":
        return f"{counted(count, kind)} (not followed)"
    return f"{count:,} {kind}{cure}"


def _kind_of(path: Path) -> str:
    """One of folder, image, video, manifest and annotations."""
    if path.is_dir():
        return "manifest" if (path / MANIFEST_NAME).exists() else "folder"
    pictures.require_file(path)
    suffix = path.suffix.lower()
    if suffix in pictures.suffixes():
        return "image"
    if suffix in video.SUFFIXES:
        return "video"
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    opening = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if opening.startswith(b"["):
        return "annotations"
    if opening.startswith(b"{"):
        return _kind_of_line(opening.split(b"\n")[0], path)
    if picture_files.is_heic(head):
        raise BadData(f"{path}: {picture_files.looks_like(head)}")
    if pictures.MAGIC.match(head):
        return "image"
    if video.MAGIC.match(head):
        return "video"
    found = describe(head) or "a file that begins with neither { nor ["
    raise BadData(f"{path}: expected images, a video, a manifest or annotations, found {found}")


def _kind_of_line(line: bytes, path: Path) -> str:
    """Which of manifest and annotations a file with this first line is."""
    try:
        value = fields.parse_json(line, str(path))
    except BadData:
        return "manifest" if _NAMES_AN_IMAGE.search(line) else "annotations"
    if {"v", "model"} <= value.keys() or {"answer", "entropy"} <= value.keys():
        raise BadData(
            f"{path}: expected images, a video, a manifest or annotations, found predictions, "
            "which cdcca infer writes: name their frames"
        )
    return "manifest" if {"id", "image"} & value.keys() else "annotations"


def _existing(source: str | Path) -> Path:
    """Refuse an empty name, which would be the current folder: it comes from an unset variable."""
    if not str(source):
        raise MissingInput("expected the name of a file or folder, found an empty one")
    path = remote.local(source)
    if not os.path.exists(path):
        if source == "-":
            raise UsageError(f"-: {NO_DASH}")
        raise MissingInput(f"{path}: no such file or folder")
    return path
