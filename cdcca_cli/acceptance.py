"""The acceptance test: frames of its own decide whether a device takes an update.

A device that has a validation set answers it without the update and with it, and refuses an update
that lowers the score.

- The checks of the channel (`receiver`) come first, and the model is loaded last. A trust list, a
  codebook and the update that the device already has are not tested: they change no answer.
- The update is refused if the score drops by more than the tolerance (the interval of the
  difference does not decide), or if the model's outputs are no longer finite.
- With a largest drift, which needs no labels, it is refused if the model would be further than that
  from the one of sequence 0 on these frames (`distillation.drift`, at that model's own answers).
- The folder is not locked while the model answers. Afterwards the update goes through every check
  again under the lock, and it is installed only if the device still has the overlay that it was
  tested against (else 78).
- After a refusal the device is one update behind a mirror that already has it, and the cloud's next
  update is for a base that the device does not have (78). So apply each update to the device first,
  and to the mirror only if the device took it; or roll the mirror back.

The frames are trusted like the folder: a person who can write them decides about updates.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

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
from cdcca_cli.skipped import Skipped
from cdcca_cli.text import parse_amount

if TYPE_CHECKING:
    from cdcca_cli.models import LoadedModel


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
class Measured:
    """What the test found. drift: in nats an answer token, of the model with the update."""

    comparison: Comparison | None
    drift: float | None = None

    def summary(self) -> str:
        words = [] if self.comparison is None else [self.comparison.summary()]
        if self.drift is not None:
            words.append(f"drift {self.drift:.3g} nats")
        return ", ".join(words)

    def as_json(self) -> dict[str, Any]:
        found = {} if self.comparison is None else self.comparison.as_json()
        return found if self.drift is None else found | {"drift": self.drift}


@dataclass(frozen=True)
class Accepted:
    """An update that passed the test and was applied."""

    applied: Applied
    measured: Measured

    def summary(self) -> str:
        return f"{self.applied.summary()}; {self.measured.summary()}"

    def as_json(self) -> dict[str, object]:
        return self.applied.as_json() | {"measured": self.measured.as_json()}


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
    measured = None
    if checked.new is not None:
        measured = measure(device, found, checked, checked.new, settings)
    applied = receiver.apply(
        device,
        found,
        dry_run=dry_run,
        unsigned=unsigned,
        clock=clock,
        onto=checked.digest,
        telling=telling,
    )
    return applied if measured is None else Accepted(applied, measured)


def measure(
    device: Device, update: Update, checked: Checked, new: Overlay, settings: AcceptanceSettings
) -> Measured:
    """Whether the overlay that an update leads to passes the test. Raises: as `receive`."""
    from cdcca_cli.models import load_device

    assert settings.validation is not None, "the command tests only with a validation set"
    probe, metric = _probe_of(settings.validation, settings)
    with progress.stage("loading the model"):
        model = load_device(device, compute=settings.compute, dtype=settings.dtype)
    drift = comparison = None
    if isinstance(probe, ValidationSet):
        comparison = _compared(device, update, checked, new, probe, metric, model, settings)
    if settings.max_drift is not None:
        frames = probe.frames if isinstance(probe, ValidationSet) else probe
        drift = _drift(device, model, new, frames, settings)
        if not math.isfinite(drift):
            raise _made_worse(update, Measured(comparison), "its outputs are not finite with it")
        if drift > settings.max_drift:
            words = f"{drift:.3g} nats from sequence 0, more than {settings.max_drift:g}"
            raise _refused(update, "moves this device too far", Measured(comparison, drift), words)
    return Measured(comparison, drift)


def _drift(
    device: Device, model: "LoadedModel", new: Overlay, frames: Frames, settings: AcceptanceSettings
) -> float:
    """How far the model is with an overlay from the one of sequence 0, on its answers there."""
    from cdcca_cli.distillation import drift
    from cdcca_cli.distillation.anchors import open_anchors
    from cdcca_cli.distillation.settings import DistillSettings
    from cdcca_cli.payloads.opening import Opener
    from cdcca_cli.uplink.coding import Coder
    from cdcca_cli.uplink.sampling import sample_frames
    from cdcca_cli.uplink.settings import PayloadSettings, SampleSettings

    everything = SampleSettings(top=parse_amount("100%"), batch_size=settings.batch_size)
    exact = Coder(model, PayloadSettings(payload="tokens", codec="float32"), None)
    sampled = sample_frames(model, frames, everything, coder=exact)
    opener, strict = Opener(model, device.codebook_of), Skipped(strict=True)
    shards = opener.open_all((one.shard for one in sampled), strict)
    dataset = open_anchors(shards, model, device, DistillSettings(holdout=0), strict).dataset

    @contextmanager
    def updated() -> Iterator[None]:
        model.install_overlay(new, device.lora.alpha)
        yield

    return drift.Measure(model, dataset, dataset.train).measure(updated)[0]


def _compared(
    device: Device,
    update: Update,
    checked: Checked,
    new: Overlay,
    validation: ValidationSet,
    metric: str,
    model: "LoadedModel",
    settings: AcceptanceSettings,
) -> Comparison:
    """The scores without and with the overlay. Raises: MadeWorse."""
    from cdcca_cli.uplink.answers import answer_frames
    from cdcca_cli.uplink.settings import AnswerSettings

    frames = validation.frames_for(metric)
    how = AnswerSettings(settings.batch_size, score_choices=metric == "mc")

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
        raise _made_worse(update, Measured(comparison), words)
    return comparison


def _probe_of(path: str, settings: AcceptanceSettings) -> tuple[ValidationSet | Frames, str]:
    """The frames, with their labels and the metric that they are scored by, if there are any."""
    try:
        validation = read_validation_set(path, settings.images)
        questions = [reference.question for reference in validation.references.values()]
    except BadData:
        if settings.max_drift is None:
            raise
        questions = []
    allowed = [
        metric
        for metric in tasks.ACCEPTANCE_METRICS
        if any(counts_for(metric, question) for question in questions)
    ]
    if not allowed and settings.max_drift is not None and settings.metric is None:
        return read_frames(path, images=settings.images), ""
    if not allowed:
        raise BadData(
            f"{path}: no labels for {', '.join(tasks.ACCEPTANCE_METRICS)}: expected "
            "answers, choices with the correct one, or captions"
        )
    if settings.metric is not None and settings.metric not in allowed:
        raise SettingError(
            "metric",
            f"{path} has no labels for it, only for {', '.join(allowed)}",
            settings.metric,
        )
    return validation, settings.metric or allowed[0]


def _made_worse(update: Update, measured: Measured | None, words: str) -> MadeWorse:
    return _refused(update, "makes this device worse", measured, words)


def _refused(update: Update, why: str, measured: Measured | None, words: str) -> MadeWorse:
    return MadeWorse(
        f"update {update.sequence} {why}, nothing was changed: {words}; "
        "do not apply it to the mirror, or roll the mirror back",
        {
            "status": "refused",
            "sequence": update.sequence,
            "digest": update.target,
            "measured": None if measured is None else measured.as_json(),
        },
    )
