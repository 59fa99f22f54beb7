"""The acceptance test: labelled frames decide whether a device takes an update.

A device that has a validation set of its own answers it without the update and with it, and refuses
an update that lowers the score.

- The checks of the channel (`receiver`) come first, and the model is loaded last. A trust list, a
  codebook and the update that the device already has are not tested: they change no answer.
- The update is refused if the score drops by more than the tolerance (the interval of the
  difference does not decide), or if the model's outputs are no longer finite.
- The folder is not locked while the model answers. Afterwards the update goes through every check
  again under the lock, and it is installed only if the device still has the overlay that it was
  tested against (else 78).
- After a refusal the device is one update behind a mirror that already has it, and the cloud's next
  update is for a base that the device does not have (78). So apply each update to the device first,
  and to the mirror only if the device took it; or roll the mirror back.

The frames are trusted like the folder: a person who can write them decides about updates.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from cdcca_cli import progress
from cdcca_cli.datasets import Frame, Frames, Reference, read_frames, read_references
from cdcca_cli.downlink import receiver
from cdcca_cli.downlink.notify import NO_COMMAND
from cdcca_cli.downlink.receiver import Applied, Carried, Checked, Clock, Overlay, Rotated
from cdcca_cli.downlink.settings import NotifySettings
from cdcca_cli.errors import BadData, MadeWorse, SettingError
from cdcca_cli.formats.codebook import Codebook
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.predictions import Prediction
from cdcca_cli.formats.trust import TrustList
from cdcca_cli.formats.update import Update
from cdcca_cli.scoring import tasks
from cdcca_cli.scoring.answers import answers_of
from cdcca_cli.scoring.measures import counts_for
from cdcca_cli.scoring.scores import Scores, compare, score
from cdcca_cli.scoring.settings import AcceptanceSettings
from cdcca_cli.scoring.statistics import SAME, Difference


@dataclass(frozen=True)
class ValidationSet:
    """Labelled frames that a device is scored on and never trained on."""

    frames: Frames
    references: Mapping[str, Reference]

    def frames_for(self, metric: str) -> list[Frame]:
        """The frames with only the questions that this metric scores."""
        found = []
        for frame in self.frames:
            questions = [one for one in frame.questions if counts_for(metric, one)]
            if questions:
                found.append(replace(frame, questions=questions))
        return found


def read_validation_set(path: str | Path, images: Path | None = None) -> ValidationSet:
    """Raises: as `read_frames`; BadData (65) if there are no labels."""
    return ValidationSet(read_frames(path, images=images), read_references(path))


def score_predictions(
    predictions: Iterable[Prediction],
    references: Mapping[str, Reference],
    metrics: Sequence[str] | None = None,
) -> Scores:
    """Scores by all metrics that the labels allow, or only by `metrics`."""
    return score(references, dict(answers_of(predictions)), task="manifest", metrics=metrics)


@dataclass(frozen=True)
class Comparison:
    """A metric's score without the update and with it; `difference` is with minus without."""

    metric: str
    before: float
    after: float
    difference: Difference

    def summary(self) -> str:
        """Like: DA 64.20 to 66.10 on 300 questions, +1.90 (95 % interval +0.40 to +3.50)."""
        return (
            f"{tasks.METRICS[self.metric].title} {self.before:.2f} to {self.after:.2f} on "
            f"{self.difference.n:,} questions, {self.difference.summary(places=2)}"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "before": self.before,
            "after": self.after,
            "difference": self.difference.as_json(),
        }


@dataclass(frozen=True)
class Accepted:
    """An update that passed the test and was applied."""

    applied: Applied
    comparison: Comparison

    def summary(self) -> str:
        return f"{self.applied.summary()}; {self.comparison.summary()}"

    def as_json(self) -> dict[str, object]:
        return self.applied.as_json() | {"measured": self.comparison.as_json()}


def receive(
    device: Device,
    stream: BinaryIO,
    settings: AcceptanceSettings,
    *,
    where: str,
    dry_run: bool = False,
    unsigned: bool = False,
    clock: Clock = time.time,
    telling: NotifySettings = NO_COMMAND,
) -> Applied | Rotated | Carried | Accepted:
    """As `receiver.receive`, but refuses an update that lowers the score (MadeWorse, no change)."""
    found = receiver.read(device, stream, where=where, unsigned=unsigned)
    if isinstance(found, TrustList):
        return receiver.rotate(device, found, dry_run=dry_run, unsigned=unsigned)
    if isinstance(found, Codebook):
        return receiver.carry(device, found, dry_run=dry_run, unsigned=unsigned)
    checked = receiver.check(device, found, unsigned=unsigned, clock=clock)
    comparison = None
    if checked.new is not None:
        comparison = measure(device, found, checked, checked.new, settings)
    applied = receiver.apply(
        device,
        found,
        dry_run=dry_run,
        unsigned=unsigned,
        clock=clock,
        onto=checked.digest,
        telling=telling,
    )
    return applied if comparison is None else Accepted(applied, comparison)


def measure(
    device: Device, update: Update, checked: Checked, new: Overlay, settings: AcceptanceSettings
) -> Comparison:
    """The scores without and with the overlay that an update leads to. Raises: as `receive`."""
    from cdcca_cli.models import load_device
    from cdcca_cli.uplink.answers import answer_frames
    from cdcca_cli.uplink.settings import AnswerSettings

    validation, metric = _validation_set_of(settings)
    frames = validation.frames_for(metric)
    how = AnswerSettings(settings.batch_size, score_choices=metric == "mc")
    with progress.stage("loading the model"):
        model = load_device(device, compute=settings.compute, dtype=settings.dtype)

    def scored(overlay: Overlay, description: str) -> Scores:
        model.install_overlay(overlay, device.lora.alpha)
        tracked = progress.track(frames, description=description)
        predictions = answer_frames(model, tracked, how)
        return score_predictions(predictions, validation.references, [metric])

    before = scored(checked.current, "without the update")
    try:
        after = scored(new, "with the update")
    except BadData as fault:  # the same frames were answered a moment ago
        raise _made_worse(update, None, f"the model cannot answer with it: {fault}") from None
    old, found = before.all(metric), after.all(metric)
    assert old is not None and found is not None, "every question of the metric was answered"
    difference = compare(after, before, permutations=0)[found.key]
    comparison = Comparison(metric, old.value, found.value, difference)
    if comparison.difference.value < -settings.tolerance - SAME:
        words = f"{comparison.summary()}, more than the tolerance of {settings.tolerance:g} points"
        raise _made_worse(update, comparison, words)
    return comparison


def _validation_set_of(settings: AcceptanceSettings) -> tuple[ValidationSet, str]:
    """The labelled frames, and the metric that they are scored by."""
    assert settings.validation is not None, "the command tests only with a validation set"
    validation = read_validation_set(settings.validation, settings.images)
    questions = [reference.question for reference in validation.references.values()]
    allowed = [
        metric
        for metric in tasks.ACCEPTANCE_METRICS
        if any(counts_for(metric, question) for question in questions)
    ]
    if not allowed:
        raise BadData(
            f"{settings.validation}: no labels for {', '.join(tasks.ACCEPTANCE_METRICS)}: expected "
            "answers, choices with the correct one, or captions"
        )
    if settings.metric is not None and settings.metric not in allowed:
        raise SettingError(
            "metric",
            f"{settings.validation} has no labels for it, only for {', '.join(allowed)}",
            settings.metric,
        )
    return validation, settings.metric or allowed[0]


def _made_worse(update: Update, comparison: Comparison | None, words: str) -> MadeWorse:
    return MadeWorse(
        f"update {update.sequence} makes this device worse, nothing was changed: {words}; "
        "do not apply it to the mirror, or roll the mirror back",
        {
            "status": "refused",
            "sequence": update.sequence,
            "digest": update.target,
            "measured": None if comparison is None else comparison.as_json(),
        },
    )
