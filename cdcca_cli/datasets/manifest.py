"""The JSON-lines manifest: one question per line.

    {"id": "q1", "image": "a.jpg", "prompt": "What is it?", "choices": ["cat", "dog"],
     "correct_choice_idx": 0, "answers": ["cat", ...], "captions": ["A cat.", ...],
     "task": "vqa", "domain": "night", "kind": "object"}

Required are `id` (unique in the file) and `image`. Without `task`, a line with a `prompt` is a
question, and one without asks for a caption. Lines with one image form one Frame, wherever they are
in the file, and agree on its domain; frames come in the order of their first lines. Empty lines are
skipped, unknown keys ignored.

`image` is relative to the manifest's folder, or to `images` if given. It may not lead out of it (by
`..` or an absolute path), because the manifest may come from elsewhere; links inside the folder are
followed. The file is checked when opened and read again for its frames, so it cannot be a pipe.
"""

import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cdcca_cli.datasets import fields
from cdcca_cli.datasets.frames import TASKS, Frame, LabelledQuestion, Task
from cdcca_cli.datasets.pictures import require_file
from cdcca_cli.errors import BadData, MissingInput, SettingError

MAX_LINE_BYTES = 1 << 24
MAX_EMPTY_LINES = 1_000_000


class Manifest:
    """The frames of a manifest. images: the folder of its images, if not its own.

    task: only the questions of this task. check_images: refuse if an image is missing.
    Raises: BadData (65) naming file and line; MissingInput (66); SettingError (2) for no such task.
    """

    def __init__(
        self,
        path: Path,
        *,
        images: Path | None = None,
        task: Task | None = None,
        check_images: bool = True,
    ) -> None:
        require_file(path)
        self._path = path
        self._root = images if images is not None else path.parent
        self._task = task
        self._starts: dict[str, array[int]] = {}
        self._scan(check_images)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Frame]:
        with open(self._path, "rb") as file:
            for name, starts in self._starts.items():
                questions, domain = [], None
                for number, start in zip(starts[0::2], starts[1::2], strict=True):
                    file.seek(start)
                    _, question, domain = self._parse(file.readline(MAX_LINE_BYTES), number)
                    questions.append(question)
                yield Frame(name, inside(self._root, name, str(self._path)), questions, domain)

    def _scan(self, check_images: bool) -> None:
        seen: set[str] = set()
        domains: dict[str, str | None] = {}
        start = other_tasks = empty = 0
        with open(self._path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), 1):
                here, start = start, start + len(line)
                if not line.strip():
                    empty += 1
                    if empty > MAX_EMPTY_LINES:
                        raise BadData(f"{self._path}: more than {MAX_EMPTY_LINES:,} empty lines")
                    continue
                name, question, domain = self._parse(line, number)
                where = f"{self._path}:{number}"
                if question.id in seen:
                    raise BadData(f"{where}: the id '{question.id}' is on an earlier line already")
                seen.add(question.id)
                if domains.setdefault(name, domain) != domain:
                    raise BadData(
                        f"{where}: '{name[:80]}' is of domain {fields.describe(domain)} here, "
                        f"of {fields.describe(domains[name])} on an earlier line"
                    )
                if self._task is not None and question.task != self._task:
                    other_tasks += 1
                    continue
                if name not in self._starts:
                    image = inside(self._root, name, where)
                    if check_images and not os.path.isfile(image):
                        raise MissingInput(f"{where}: no image {image}")
                    self._starts[name] = array("q")
                self._starts[name].extend((number, here))
        if not self._starts and other_tasks:
            raise SettingError(
                "task", f"{self._path} holds no such questions: leave it out", self._task
            )
        if not self._starts:
            raise BadData(f"{self._path}: an empty manifest: expected one JSON object on each line")

    def _parse(self, line: bytes, number: int) -> tuple[str, LabelledQuestion, str | None]:
        where = f"{self._path}:{number}"
        if len(line) >= MAX_LINE_BYTES:
            raise BadData(f"{where}: a line of more than {MAX_LINE_BYTES:,} bytes")
        item = fields.an_object(fields.parse_json(line, where), where)
        name = fields.a_text(item, "image", where)
        return name, read_question(item, where), fields.optional_text(item, "domain", where)


def read_question(item: dict[str, Any], where: str) -> LabelledQuestion:
    """The question on one line of a manifest."""
    prompt = fields.optional_text(item, "prompt", where)
    choices = fields.optional_texts(item, "choices", where)
    correct = fields.optional_index(item, "correct_choice_idx", len(choices or ()), where)
    task = fields.optional_text(item, "task", where)
    if task is None:
        task = "caption" if prompt is None else "vqa"
    if task not in TASKS:
        raise BadData(f"{where}: 'task' must be vqa or caption, found {fields.describe(task)}")
    if task == "vqa" and prompt is None:
        raise BadData(f"{where}: a vqa line needs a 'prompt'")
    return LabelledQuestion(
        id=fields.an_id(item, "id", where),
        prompt=prompt,
        task=task,
        choices=choices,
        correct_choice_idx=correct,
        answers=fields.optional_texts(item, "answers", where),
        captions=fields.optional_texts(item, "captions", where),
        kind=fields.optional_text(item, "kind", where),
        difficult_direct_answer=fields.a_truth(item, "difficult_direct_answer", where),
    )


def inside(root: Path, name: str, where: str) -> Path:
    """The file `name` under `root`; BadData if the name leads out of it."""
    path = os.path.join(root, name)
    inner = os.path.join(os.path.abspath(root), "")
    if not name or "\0" in name or not os.path.abspath(path).startswith(inner):
        raise BadData(
            f"{where}: the image {fields.describe(name)} lies outside {root}: "
            "name it relative to that folder, or give the folder of the images with `images`"
        )
    return Path(os.path.normpath(path))
