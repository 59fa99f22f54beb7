"""An update on probation: the device's own model on its own labelled frames, without and with it.

The cloud measures what it makes on what the device sent. A device with labelled frames at hand need
not rely on that: it takes the update only if it does not get worse on them.

**The order.** Every check of the channel (`receiver`) comes first, with its own error; then the
frames are read, and the model is loaded last. Not measured, because no overlay would change: a
trust list, and the update that the device is at already.

**What is compared.** The score with the overlay that the device uses now, also where the update is
against an older one, and with the one that it leads to. Both answer the same asks in the same way:
those that the metric scores. Worse is a score that is lower by more than the tolerance; as good is
good enough. The interval of the paired difference is told and decides nothing: on few frames the
score alone does. An update with which the model's figures are no longer finite is worse, whatever
the tolerance. The same folder, update and frames give the same answer on one machine.

**Other processes.** Answering takes its time, so the folder is not locked meanwhile. Then the
update goes through every check again under the lock, and is installed only if the device is still
at the overlay that it was measured against (else 78). What was not measured is never installed.

**After a refusal** the device is one update behind a mirror that has it already, and what the cloud
makes next is for a base that the device does not have (78). So bring the update to the device
first, and to the mirror if the device took it; or roll the mirror back (`cdcca apply --rollback`).

The frames are trusted as the folder is: whoever can write them decides what is taken.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cdcca_cli import progress
from cdcca_cli.datasets import Frame
from cdcca_cli.downlink import receiver
from cdcca_cli.downlink.receiver import Applied, Checked, Clock, Overlay, Rotated
from cdcca_cli.errors import BadData, MadeWorse, UsageError
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.trust import TrustList
from cdcca_cli.formats.update import Update
from cdcca_cli.probe import Probe, read_probe, scored
from cdcca_cli.scoring.scores import Scores, compare
from cdcca_cli.scoring.statistics import SAME, Difference
from cdcca_cli.scoring.tasks import METRICS as METRIC

METRICS = ("da", "mc", "cider")


@dataclass(frozen=True)
class Trial:
    """What an update is measured by, and on what.

    Args:
        frames: a manifest or an annotation file with labels. images: the folder of its images.
        metric: one of METRICS; None for the first that the labels allow.
        tolerance: by how many points (of scores x100) the update may be worse.
        compute, dtype: as `models.load`.
    """

    frames: Path
    images: Path | None = None
    metric: str | None = None
    tolerance: float = 0.0
    batch_size: int = 32
    compute: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.metric not in (None, *METRICS):
            raise UsageError(f"--metric {self.metric}: expected one of {', '.join(METRICS)}")
        if not 0 <= self.tolerance < math.inf:
            raise UsageError(f"--tolerance {self.tolerance:g}: expected points, 0 or more")

    def read(self) -> tuple[Probe, str]:
        """The frames, and the metric that they are scored by.

        Raises: as `read_probe`; BadData if no metric can be scored, UsageError if the one that was
            asked for cannot.
        """
        probe = read_probe(self.frames, self.images)
        allowed = [metric for metric in METRICS if probe.allows(metric)]
        if not allowed:
            raise BadData(
                f"{self.frames}: none of its labels is for {', '.join(METRICS)}: answers, choices "
                "with the correct one, or captions are expected"
            )
        if self.metric is not None and self.metric not in allowed:
            raise UsageError(
                f"--metric {self.metric}: {self.frames} has no labels for it, only for "
                f"{', '.join(allowed)}"
            )
        return probe, self.metric or allowed[0]


@dataclass(frozen=True)
class Measured:
    """A metric's score without the update and with it; `difference` is with minus without."""

    metric: str
    before: float
    after: float
    difference: Difference

    def summary(self) -> str:
        """Like: DA 64.20 to 66.10 on 300 asks, +1.90 (95 % interval +0.40 to +3.50)."""
        return (
            f"{METRIC[self.metric].title} {self.before:.2f} to {self.after:.2f} on "
            f"{self.difference.n:,} asks, {self.difference.summary(places=2)}"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "before": self.before,
            "after": self.after,
            "difference": self.difference.as_json(),
        }


@dataclass(frozen=True)
class Tried:
    """What became of an update that did not make the device worse."""

    applied: Applied
    measured: Measured

    def summary(self) -> str:
        """One line for people."""
        return f"{self.applied.summary()}; {self.measured.summary()}"

    def as_json(self) -> dict[str, object]:
        return self.applied.as_json() | {"measured": self.measured.as_json()}


def receive(
    device: Device,
    stream: BinaryIO,
    trial: Trial,
    *,
    where: str,
    dry_run: bool = False,
    unsigned: bool = False,
    clock: Clock = time.time,
) -> Applied | Rotated | Tried:
    """As `receiver.receive`, but an update that makes the device worse is refused.

    Raises: also MadeWorse, what `Trial.read` raises, and what loading the model and reading the
        images raise; the folder is as it was then.
    """
    found = receiver.read(device, stream, where=where, unsigned=unsigned)
    if isinstance(found, TrustList):
        return receiver.rotate(device, found, dry_run=dry_run, unsigned=unsigned)
    checked = receiver.check(device, found, unsigned=unsigned, clock=clock)
    measured = None if checked.new is None else measure(device, found, checked, checked.new, trial)
    applied = receiver.apply(
        device, found, dry_run=dry_run, unsigned=unsigned, clock=clock, onto=checked.digest
    )
    return applied if measured is None else Tried(applied, measured)


def measure(
    device: Device, update: Update, checked: Checked, new: Overlay, trial: Trial
) -> Measured:
    """The scores of a device as it is and with an overlay that an update leads to.

    Raises: MadeWorse, and as `receive`.
    """
    probe, metric = trial.read()
    device_scores = _Scorer(device, probe, metric, trial)
    before = device_scores.of(checked.current, "without the update")
    try:
        after = device_scores.of(new, "with the update")
    except BadData as fault:  # the same frames were answered a moment ago
        raise _made_worse(update, None, f"the model cannot answer with it: {fault}") from None
    measured = _compared(metric, before, after)
    if measured.difference.value < -trial.tolerance - SAME:
        words = f"{measured.summary()}, more than the tolerance of {trial.tolerance:g} points"
        raise _made_worse(update, measured, words)
    return measured


class _Scorer:
    """A device's model, and the frames that it answers with one overlay and another."""

    def __init__(self, device: Device, probe: Probe, metric: str, trial: Trial) -> None:
        from cdcca_cli.models import load_device
        from cdcca_cli.uplink.settings import AnswerSettings

        self._references = probe.references
        self._metric = metric
        self._frames: list[Frame] = probe.asked_for(metric)
        self._how = AnswerSettings(trial.batch_size, score_choices=metric == "mc")
        self._alpha = device.lora.alpha
        with progress.stage("loading the model"):
            self._model = load_device(device, compute=trial.compute, dtype=trial.dtype)

    def of(self, overlay: Overlay, description: str) -> Scores:
        from cdcca_cli.uplink.answers import answer_frames

        self._model.install_overlay(overlay, self._alpha)
        tracked = progress.track(self._frames, description=description)
        predictions = answer_frames(self._model, tracked, self._how)
        return scored(predictions, self._references, [self._metric])


def _compared(metric: str, before: Scores, after: Scores) -> Measured:
    old, new = before.all(metric), after.all(metric)
    assert old is not None and new is not None, "every ask that the metric scores was answered"
    difference = compare(after, before, permutations=0)[new.key]
    return Measured(metric, old.value, new.value, difference)


def _made_worse(update: Update, measured: Measured | None, words: str) -> MadeWorse:
    return MadeWorse(
        f"update {update.sequence} makes this device worse, nothing was changed: {words}; "
        "keep it from the mirror too, or roll the mirror back",
        {
            "status": "refused",
            "sequence": update.sequence,
            "digest": update.target,
            "measured": None if measured is None else measured.as_json(),
        },
    )
