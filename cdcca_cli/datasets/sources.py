"""Which reader a source needs, found from what the source is.

A JSON file is a manifest if its first line is one, whatever its name. A folder with a frames.jsonl
is that manifest; one without, but with folders in it that have theirs, is refused unless a prompt
replaces what they ask: as bare images its frames would lose their questions without a word.

Nothing here knows what is inside the files; manifest.py and annotations.py do.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cdcca_cli.datasets import fields
from cdcca_cli.datasets.annotations import Annotations, Source, read_pictures
from cdcca_cli.datasets.frames import (
    IMAGE_SUFFIXES,
    TASKS,
    Frame,
    Frames,
    LabelledAsk,
    Task,
    require_file,
)
from cdcca_cli.datasets.manifest import Manifest
from cdcca_cli.datasets.video import VIDEO_SUFFIXES, Video
from cdcca_cli.errors import BadData, MissingInput, UsageError
from cdcca_cli.formats.kind import HEAD_BYTES, describe

MANIFEST_NAME = "frames.jsonl"
_NAMES_AN_IMAGE = re.compile(rb'"image"\s*:')
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"P5", b"P6")


def read_frames(
    source: str | Path,
    *,
    images: str | Path | None = None,
    prompt: str | None = None,
    task: str | None = None,
) -> Frames:
    """The frames of a source, lazy, with a length, to be gone through again and again.

    source: a folder of images (its frames.jsonl if it has one, otherwise all images under it,
        sorted by path), one image, a manifest, an annotation file, or a video.
    images: the folder in which the images of a manifest or annotation file lie.
    prompt: asks this of every frame, instead of what the source asks.
    task: "vqa" or "caption". Bare images are captioned unless a prompt is given; of a source with
        asks of its own, only those of this task are kept.

    Raises: MissingInput (66) if the source or an image it names is not there; BadData (65) for a
        folder without images or a file that is none of these, naming file and line; UsageError (2)
        for options that do not fit; Unavailable (69) for a video without PyAV.
    """
    wanted = _task(prompt, task)
    path = _existing(source)
    folder = _existing_folder(images)
    kind = _kind_of(path)
    if kind in ("folder", "image", "video"):
        if folder is not None:
            raise UsageError(f"--images goes with a manifest or annotation file; {path} is neither")
        if wanted == "vqa" and prompt is None:
            raise UsageError(f"{path}: holds no questions: give one with --prompt")
        bare: Task = wanted or ("caption" if prompt is None else "vqa")
        if kind == "video":
            return Video(path, prompt=prompt, task=bare)
        return _BareImages(path, bare, prompt, single=kind == "image")
    own_task = wanted if prompt is None else None
    frames: Frames
    if kind == "manifest":
        manifest = path / MANIFEST_NAME if path.is_dir() else path
        frames = Manifest(manifest, images=folder, task=own_task)
    else:
        frames = Annotations(path, images=folder, task=own_task)
    return frames if prompt is None else _Asked(frames, prompt, wanted or "vqa")


@dataclass(frozen=True, slots=True)
class Reference:
    """The labels of one ask, the frame it belongs to, that frame's domain, and where they are from.

    source: the kind of file; None for frames that no file was named for.
    """

    ask: LabelledAsk
    frame: str
    domain: str | None = None
    source: Source | None = None


def read_references(
    source: str | Path | Sequence[str | Path],
) -> Mapping[str, Reference]:
    """The labels of a manifest, a folder with frames.jsonl, or an annotation file, by ask id.

    Several count as one, in any order: VQAv2's questions and annotations, nocaps by domain. Asks
    without any label are in it too, since a prediction for them is no unknown one. No image needs
    to be there.

    Raises: as read_frames; BadData (65) for an id that is there twice, and where there are no
        labels at all.
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
            ask.id: Reference(ask, picture.id, picture.domain, picture.sources[ask.id])
            for picture in read_pictures(*annotations).values()
            for ask in picture.asks
        }
        _add(references, found, annotations[0])
    if not any(_is_labelled(reference.ask) for reference in references.values()):
        raise BadData(f"{', '.join(map(str, sources))}: {_NO_LABELS}")
    return references


_NO_LABELS = (
    "no labels in it: a manifest or annotation file with choices, answers or captions is expected"
)


def _add(known: dict[str, Reference], more: Mapping[str, Reference], path: Path) -> None:
    twice = known.keys() & more.keys()
    if twice:
        raise BadData(f"{path}: the id '{min(twice)}' is in another of these files already")
    known.update(more)


def references_of(frames: Iterable[Frame], source: Source | None = None) -> dict[str, Reference]:
    """The labels of frames that are there already, by ask id."""
    return {
        ask.id: Reference(ask, frame.id, frame.domain, source)
        for frame in frames
        for ask in frame.asks
    }


def _is_labelled(ask: LabelledAsk) -> bool:
    return bool(ask.answers or ask.captions) or ask.correct_choice_idx is not None


class _BareImages:
    """All images under a folder, sorted by path, or a single one; each with the same ask."""

    def __init__(self, path: Path, task: Task, prompt: str | None, *, single: bool) -> None:
        self._root, self._task, self._prompt = path, task, prompt
        if single:
            self._root = path.parent
            self._names = [path.name]
        else:
            self._names = _images_under(path, manifests=prompt is not None)

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Frame]:
        for name in self._names:
            yield Frame(name, self._root / name, [LabelledAsk(name, self._prompt, self._task)])


class _Asked:
    """Another source's frames, each asked one prompt instead of its own; labels are left behind."""

    def __init__(self, frames: Frames, prompt: str, task: Task) -> None:
        self._frames, self._prompt, self._task = frames, prompt, task

    def __len__(self) -> int:
        return len(self._frames)

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._frames:
            ask = LabelledAsk(frame.id, self._prompt, self._task)
            yield Frame(frame.id, frame.image, [ask], frame.domain, frame.position)


def _images_under(folder: Path, *, manifests: bool) -> list[str]:
    """Paths relative to `folder`, in code point order; hidden files and folders are passed over.

    manifests: folders further down may have one.
    """

    def refuse(error: OSError) -> None:
        raise MissingInput(f"{error.filename}: {error.strerror}")

    names = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inner = os.path.relpath(parent, folder)
        if MANIFEST_NAME in files and not manifests:
            raise BadData(
                f"{folder}: has no {MANIFEST_NAME}, but {inner}/{MANIFEST_NAME} is under it: name "
                "that folder, or give --prompt to ask one thing of all images"
            )
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                names.append(name if inner == "." else f"{inner}/{name}")
    if not names:
        raise BadData(
            f"{folder}: no images in this folder: expected {MANIFEST_NAME} or files such as *.jpg"
        )
    return sorted(names)


def _kind_of(path: Path) -> str:
    """One of folder, image, video, manifest and annotations."""
    if path.is_dir():
        return "manifest" if (path / MANIFEST_NAME).exists() else "folder"
    require_file(path)
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "image"
    if suffix in VIDEO_SUFFIXES:
        return "video"
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    opening = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if opening.startswith(b"["):
        return "annotations"
    if opening.startswith(b"{"):
        return _kind_of_line(opening.split(b"\n")[0], path)
    if head.startswith(_MAGIC):
        return "image"
    found = describe(head) or "a file that begins with neither { nor ["
    raise BadData(f"{path}: expected images, a manifest or an annotation file, found {found}")


def _kind_of_line(line: bytes, path: Path) -> str:
    """By the keys of a first line that is a whole object; any other names an image, or does not."""
    try:
        value = fields.parse_json(line, str(path))
    except BadData:
        return "manifest" if _NAMES_AN_IMAGE.search(line) else "annotations"
    if {"v", "model"} <= value.keys() or {"answer", "entropy"} <= value.keys():
        raise BadData(
            f"{path}: expected images, a manifest or an annotation file, found predictions, "
            "which cdcca infer writes: name the frames that they are about"
        )
    return "manifest" if {"id", "image"} & value.keys() else "annotations"


def _task(prompt: str | None, task: str | None) -> Task | None:
    if task is not None and task not in TASKS:
        raise UsageError(f"--task is vqa or caption, not {fields.describe(task)}")
    if prompt is not None and not prompt.strip():
        raise UsageError("--prompt is empty")
    return task


def _existing(source: str | Path) -> Path:
    path = Path(source)
    try:
        found = os.path.exists(path)
    except ValueError:
        found = False
    if not found:
        raise MissingInput(f"{path}: no such file or folder")
    return path


def _existing_folder(images: str | Path | None) -> Path | None:
    if images is None:
        return None
    if not os.path.isdir(images):
        raise MissingInput(f"--images {images}: no such folder")
    return Path(images)
