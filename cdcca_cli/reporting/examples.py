"""The frames that got better and worse: picture, question, answers before and after, and why.

At most `most` in all, shared between the series, and of each series half of them better if there
are as many. The teacher's answer is looked up in the run's labels by the shard that asked it.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdcca_cli import streams
from cdcca_cli.datasets import LabelledQuestion
from cdcca_cli.errors import CdccaError
from cdcca_cli.formats import shard_stream
from cdcca_cli.formats.label_stream import Labels, ShardKey
from cdcca_cli.formats.shard import Shard
from cdcca_cli.reporting.found import STREAM, Run, Unreadable
from cdcca_cli.reporting.frames import FrameSet, FrameSets
from cdcca_cli.reporting.plain import text
from cdcca_cli.reporting.scored import Change, Measured, Series, better_and_worse
from cdcca_cli.scoring.answers import Answer
from cdcca_cli.scoring.tasks import METRICS

if TYPE_CHECKING:
    from PIL.Image import Image

PIXELS = 240
_QUALITY = 70
_MOST_RIGHT = 5


def picture(image: "Image", pixels: int = PIXELS) -> dict[str, Any]:
    """A small JPEG of an image, as a data URI: {"uri", "width", "height"}."""
    small = image.convert("RGB")
    small.thumbnail((pixels, pixels))
    small.info = {}
    coded = io.BytesIO()
    small.save(coded, "JPEG", quality=_QUALITY, optimize=True)
    uri = "data:image/jpeg;base64," + base64.b64encode(coded.getvalue()).decode()
    return {"uri": uri, "width": small.width, "height": small.height}


Examples = tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]


def of_series(found: Sequence[tuple[Series, FrameSet]], frames: FrameSets, most: int) -> Examples:
    """The examples of each series that was scored before and after, as in `gather`.

    Returns: also those on the stream by the question's id, of which the teacher was asked.
    """
    of_stream: dict[str, dict[str, Any]] = {}
    made = []
    changed = [(series, known, series.changes(known.references)) for series, known in found]
    changed = [one for one in changed if one[2]]
    each = most // max(len(changed), 1)
    for series, known, changes in changed:
        better, worse = better_and_worse(changes, known.references, each)
        shared = (each + 1) // 2
        num_worse = min(len(worse), max(each // 2, each - len(better)))
        better, worse = better[: max(shared, each - num_worse)], worse[:num_worse]
        assert series.first is not None and series.last is not None
        better_count = sum(one.by > 0 for one in changes)
        worse_count = sum(one.by < 0 for one in changes)
        chosen = [*better, *worse]
        questions = [_example(one, series, known, frames) for one in chosen]
        if series.name == STREAM:
            ids = [one.question for one in chosen]
            of_stream |= dict(zip(ids, questions, strict=True))
        made.append(
            {
                "name": text(series.name, 80),
                "before": after_words(series.first),
                "after": after_words(series.last),
                "better": better_count,
                "worse": worse_count,
                "same": len(changes) - better_count - worse_count,
                "questions": questions,
            }
        )
    return made, of_stream


def after_words(measured: Measured) -> str:
    return "source only" if measured.after == 0 else f"after round {measured.after}"


def _example(change: Change, series: Series, known: FrameSet, frames: FrameSets) -> dict[str, Any]:
    reference = known.references[change.question]
    question = reference.question
    assert series.first is not None and series.last is not None
    answers = [one.answers.by_id[change.question] for one in (series.first, series.last)]
    image = frames.image(known, reference.frame)
    choices = question.choices if change.metric == "mc" else None
    return {
        "change": "better" if change.by > 0 else "worse",
        "id": text(change.question, 80),
        "frame": text(reference.frame, 80),
        "question": None if question.prompt is None else text(question.prompt),
        "choices": None if choices is None else [text(one, 80) for one in choices[:10]],
        "metric": METRICS[change.metric].title,
        "score_before": change.before,
        "score_after": change.after,
        "answer_before": _said(answers[0], change.metric),
        "answer_after": _said(answers[1], change.metric),
        "teacher": None,
        "right": _right(question, change.metric),
        "picture": None if image is None else picture(image),
    }


def _said(answer: Answer, metric: str) -> str | None:
    said = answer.choice if metric == "mc" and answer.choice is not None else answer.text
    return None if said is None else text(said)


def _right(question: LabelledQuestion, metric: str) -> list[str]:
    if metric == "mc" and question.choices and question.correct_choice_idx is not None:
        return [text(question.choices[question.correct_choice_idx])]
    given = question.captions if metric == "cider" else question.answers
    return [text(one) for one in dict.fromkeys(given or [])][:_MOST_RIGHT]


def add_teachers(wanted: Mapping[str, dict[str, Any]], run: Run, bad: Unreadable) -> None:
    """Fill in what the teacher answered where a shard with the question and its label are there."""
    if not wanted or not run.labels:
        return
    with ExitStack() as opened:
        labels = _opened(run.labels, opened, bad)
        if labels is None:
            return
        for one in run.rounds:
            for path in one.kinds.get("shards", ()):
                try:
                    with streams.binary_input(path) as stream:
                        _look_up(shard_stream.read_shards(stream, where=str(path)), labels, wanted)
                except CdccaError:  # named already, when its bytes were counted
                    continue


def _opened(paths: Sequence[Path], opened: ExitStack, bad: Unreadable) -> Labels | None:
    found = []
    for path in paths:
        try:
            file = opened.enter_context(open(path, "rb"))  # noqa: SIM115
            Labels([(file, str(path))])
        except OSError as error:
            bad.add(path, CdccaError(f"{path}: {error.strerror}"))
        except CdccaError as error:
            bad.add(path, error)
        else:
            found.append((file, str(path)))
    return Labels(found, refused=lambda error: None) if found else None


def _look_up(shards: Iterable[Shard], labels: Labels, wanted: Mapping[str, dict[str, Any]]) -> None:
    for shard in shards:
        places = [i for i, one in enumerate(shard.questions) if one.id in wanted]
        key = ShardKey.of(shard) if places else None
        for place in places:
            assert key is not None
            found = labels.read(key, place)
            if found is not None and not found[1].is_student:
                wanted[shard.questions[place].id]["teacher"] = text(found[0].answer)
