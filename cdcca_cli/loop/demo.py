"""`cdcca demo`: Algorithm 1 on the shipped pair of models.

`assets/frames` holds `stream` (target domain, which the device adapts to), `heldout` (target
domain, never sent: what the table shows), `source` (the domain that must not be forgotten) and
`anchors` (other frames of the source domain, at which the student keeps to what it said).
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cdcca_cli import streams
from cdcca_cli.acceptance import read_validation_set, score_predictions
from cdcca_cli.config import SHIPPED_STUDENT, SHIPPED_TEACHER, Runtime
from cdcca_cli.datasets import read_frames
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.downlink.settings import CompressSettings
from cdcca_cli.loop.frames import FRAMES
from cdcca_cli.loop.history import History
from cdcca_cli.loop.rounds import Cycle, RoundSettings, Work
from cdcca_cli.models.initial import create_device
from cdcca_cli.reporting.settings import ReportSettings
from cdcca_cli.teachers.settings import LabelSettings
from cdcca_cli.uplink.settings import PayloadSettings, SampleSettings

STREAM, HELD_OUT, SOURCE, ANCHORS = "stream", "heldout", "source", "anchors"
PROBES = (HELD_OUT, STREAM, SOURCE)


def settings(seed: int) -> RoundSettings:
    """The usual settings, with a seed."""
    return RoundSettings(
        sample=SampleSettings(batch_size=64, seed=seed),
        payload=PayloadSettings(),
        label=LabelSettings(),
        distill=DistillSettings(seed=seed),
        compress=CompressSettings(),
    )


def sentences(history: History) -> list[str]:
    """The effect on the target frames, and on the stream and the source domain."""
    return [
        f"After {history.summary()}, the small model changed on target frames that were never sent "
        f"by {history.gain_words(HELD_OUT)}. It learned from the larger model's answers alone: no "
        "label was used.",
        "On the stream that it adapted to, which is what the paper scores, it changed by "
        f"{history.gain_words(STREAM)}; on its source domain by {history.gain_words(SOURCE)}.",
    ]


def report_settings() -> ReportSettings:
    """What `reporting.gather` needs to show the demo's frames."""
    return ReportSettings(references=tuple(f"{name}={FRAMES / name}" for name in PROBES))


@contextmanager
def folder(keep: Path | None) -> Iterator[Path]:
    """Where the files of a run are: in `keep`, or in a folder that is removed afterwards."""
    if keep is not None:
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="cdcca-") as temporary:
        yield Path(temporary)


def run(rounds: int, path: Path, *, seed: int = 0) -> History:
    """Run rounds from a new device and mirror of the shipped student, with files in a folder."""
    work = Work(path)
    cycle = Cycle(
        create_device(path / "device", SHIPPED_STUDENT),
        create_device(path / "mirror", SHIPPED_STUDENT),
        SHIPPED_TEACHER,
        settings(seed),
        work,
        Runtime("cpu", "float32"),
    )
    cycle.hold_to(read_frames(FRAMES / ANCHORS))
    return _scored_rounds(cycle, rounds)


def _scored_rounds(cycle: Cycle, rounds: int) -> History:
    probes = {name: read_validation_set(FRAMES / name) for name in PROBES}
    stream = probes[STREAM]
    names = {name: f"shipped:{name}" for name in PROBES}
    history = History(HELD_OUT, about=cycle.about(frames=names[STREAM], **names))

    def score(name: str, after: int, description: str) -> None:
        history.add(name, cycle.score(name, probes[name], after, description), after)

    score(HELD_OUT, 0, "source only")
    score(SOURCE, 0, "source only, source domain")
    for number in range(1, rounds + 1):
        done, predictions = cycle.round(number, stream.frames)
        history.rounds.append(done)
        history.add(STREAM, score_predictions(predictions, stream.references), number - 1)
        score(HELD_OUT, number, f"round {number}: eval")
        cycle.write(history)
        streams.message(done.summary())
    score(STREAM, rounds, "the stream")
    score(SOURCE, rounds, "the source domain")
    cycle.write(history)
    return history
