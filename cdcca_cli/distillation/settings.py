"""The settings of `cdcca distill`, each with its range and the methods it is for."""

import hashlib
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cdcca_cli import remote
from cdcca_cli.errors import SettingError
from cdcca_cli.formats.names import GROUP_NAMES, LORA_ATTENTION
from cdcca_cli.settings import check, described, refuse_idle, setting
from cdcca_cli.text import parse_share

WEIGHTS = {
    "kd": {"ce": 1.0, "kl": 1.0},
    "akd": {"query": 0.03, "repr": 0.1, "ce": 1.0},
    "pseudo-label": {"ce": 1.0},
    "pkd": {"query": 6.0, "repr": 6.0, "ce": 1.0},
    "cwd": {"query": 3.0, "repr": 3.0, "ce": 1.0},
}
"""The default weight of each term, for the methods with a teacher."""
_OF_ANCHORS = ("anchor_weight", "anchor_questions", "anchor_targets")
METHODS = (*WEIGHTS, "tent", "cotta", "none")
LARGEST_HOLDOUT = 0.9
MICRO_BATCH_SIZE = 8
"""Default number of questions in one forward pass: half a batch, so that one process and two add up
the same parts to the same bits."""
TRAINING_POSITIONS = 1024
"""Positions of prompts in one forward pass with gradients, several questions together."""
USUAL_STEPS = 90
"""Optimiser steps that the usual number of epochs makes: few questions are seen more often."""
FEWEST_EPOCHS, MOST_EPOCHS = 3, 15
MOST_REPLAYED = 3
"""Earlier questions that are trained on again, at most, for each new one."""
_FEATURES = ("akd", "pkd", "cwd")
_WITH_TEACHER = tuple(WEIGHTS)
_WITH_EMA = (*_WITH_TEACHER, "tent")
_OF_THE_BATCH = ("pkd", "cotta")  # an example's loss depends on the others in its batch
_tuning = partial(setting, is_tuning=True)
_taught = partial(_tuning, methods=_WITH_TEACHER)
_cotta = partial(_tuning, methods=("cotta",))


@dataclass(frozen=True)
class DistillSettings:
    """How to train. The weights are the lambdas of Eq. 6; None is the method's default."""

    method: str = setting("kd", "How the student learns", choices=METHODS)
    epochs: int | None = setting(
        None,
        "Number of training epochs",
        at_least=1,
        usually=f"as many as make {USUAL_STEPS} steps, {FEWEST_EPOCHS} to {MOST_EPOCHS}",
    )
    lr: float | None = setting(
        None,
        "Learning rate",
        above=0,
        usually="0.0057 / sqrt(width of the language model), with anchors twice that",
    )
    batch_size: int = setting(16, "Questions in one optimiser step", at_least=1)
    kl: str = setting(
        "auto",
        "Also learn the teacher's token distributions, by forward or reverse KL divergence; auto: "
        "forward for kd, if there are any in the student's vocabulary",
        choices=("auto", "none", "forward", "reverse"),
        methods=_WITH_TEACHER,
    )
    confidence: bool = _taught(False, "Weigh each answer by the teacher's probability of it")
    train: tuple[str, ...] | None = setting(
        None,
        "Parameter groups to train",
        choices=(*GROUP_NAMES, LORA_ATTENTION),
        usually="all; norm for tent",
    )
    holdout: float = setting(
        0.1,
        "Share of the frames that is held out to evaluate the result",
        at_least=0,
        at_most=LARGEST_HOLDOUT,
        parse=partial(parse_share, largest=LARGEST_HOLDOUT),
    )
    rate_aware: int = setting(
        0,
        "Number of further steps that train through the quantiser, for a smaller update",
        at_least=0,
        methods=_WITH_TEACHER,
    )
    bits: float = setting(
        1.2, "Bits a parameter that the rate-aware steps train for", above=0, at_most=16
    )
    seed: int = setting(0, "Seed of the batches, of replay and of cotta's draws", at_least=0)
    work: Path | None = setting(None, "Folder that keeps each epoch, to resume a stopped run")
    labels: tuple[str, ...] = setting(
        (),
        "File of the teacher's labels (repeatable); with a teacher, the last one gets those that "
        "are missing",
    )
    query_weight: float | None = _taught(
        None,
        "Weight of the query alignment",
        at_least=0,
        usually="0.03 for akd, 6 for pkd, 3 for cwd",
    )
    repr_weight: float | None = _taught(
        None,
        "Weight of the representation alignment",
        at_least=0,
        usually="0.1 for akd, 6 for pkd, 3 for cwd",
    )
    ce_weight: float | None = _taught(
        None, "Weight of the cross-entropy on the teacher's answers", at_least=0, usually="1"
    )
    balance: str | None = _taught(
        None,
        "Scale each term by its gradient relative to the cross-entropy's, or leave it as it is",
        choices=("gradients", "none"),
        usually="gradients for akd, none for the others",
    )
    repr_at: str = _tuning(
        "both",
        "Positions where representations are compared",
        choices=("visual", "answer", "both"),
        methods=_FEATURES,
    )
    tau: float = _tuning(4.0, "Temperature of channel-wise divergence", above=0, methods=("cwd",))
    kl_weight: float | None = _taught(None, "Weight of the KL divergence", at_least=0, usually="1")
    kl_temperature: float | None = _taught(
        None, "Temperature of both distributions in the KL divergence", above=0, usually="1"
    )
    micro_batch_size: int | None = _tuning(
        None,
        "Questions in one forward pass; gradients add up over a step",
        at_least=1,
        usually=f"{MICRO_BATCH_SIZE} or fewer, one pass a process and {TRAINING_POSITIONS} tokens "
        "of prompts; for pkd and cotta the whole batch",
    )
    checkpointing: str = _tuning(
        "auto",
        "Whether training keeps the inputs of layers alone and computes the layers again, which "
        "takes less memory and more time; auto: if memory is short",
        choices=("auto", "always", "never"),
    )
    ema: float | None = _tuning(
        None,
        "Decay of a running mean of the overlay, which is then what is written",
        at_least=0,
        below=1,
        methods=_WITH_EMA,
    )
    patience: int | None = _taught(
        None, "Epochs without a gain on the held-out frames before training stops", at_least=1
    )
    choose: str = _taught(
        "last",
        "Which state is written: the last, or the best on the held-out frames",
        choices=("last", "best"),
    )
    max_drift: float | None = setting(
        None,
        "Write only as much of the change as keeps the student this close to its source, by the KL "
        "divergence on the anchors or else the held-out frames",
        above=0,
        unit="nats",
        methods=_WITH_TEACHER,
    )
    replay_share: float = _tuning(
        1.0,
        "Share of the replayed frames that is trained on again",
        at_least=0,
        at_most=1,
        parse=parse_share,
        methods=(*_WITH_EMA, "cotta"),
    )
    replay_questions: int | None = _tuning(
        None,
        "Most replayed questions that are trained on again, so that a late round takes no longer",
        at_least=1,
        usually=f"{MOST_REPLAYED} times as many as are new",
        methods=(*_WITH_EMA, "cotta"),
    )
    anchor_weight: float = _taught(
        10.0, "Weight of keeping to the source student's word at the anchors", above=0
    )
    anchor_questions: int = _taught(4, "Questions about anchors in each step", at_least=1)
    anchor_targets: str = _taught(
        "distributions",
        "What is kept of the source student's word: distributions of tokens, or answers alone",
        choices=("distributions", "answers"),
    )
    cotta_ema: float = _cotta(0.999, "Decay of the mean teacher", at_least=0, at_most=1)
    cotta_restore: float = _cotta(
        0.01,
        "Share of the parameters that each step restores to the source model",
        at_least=0,
        at_most=1,
    )
    cotta_threshold: float = _cotta(
        0.92,
        "Confidence of the source model below which augmented views are averaged",
        at_least=0,
        at_most=1,
    )
    cotta_views: int = _cotta(32, "Number of augmented views", at_least=1)

    def __post_init__(self) -> None:
        check(self)
        if self.bits != type(self).bits and not self.rate_aware:
            raise SettingError("bits", "is for `rate_aware` steps: give both or neither")
        if self.max_drift is not None and self.rate_aware:
            raise SettingError("max_drift", "cannot scale what `rate_aware` steps have trained")
        # Only these are read by code that all methods share.
        given = [
            name
            for name, known in described(type(self)).items()
            if known.methods in (_WITH_TEACHER, _WITH_EMA)
            and getattr(self, name) != getattr(type(self), name)
        ]
        refuse_idle(self, given)
        for name in ("patience", "choose"):
            if getattr(self, name) not in (None, "last") and not self.holdout:
                raise SettingError(name, "needs held-out frames, and `holdout` is 0%")
        if self.patience is not None and self.choose == "last":
            raise SettingError("patience", "is of `choose` best: give both")
        if not self.needs_teacher:
            return
        if self.divergence == "none":
            for name in ("kl_weight", "kl_temperature"):
                if getattr(self, name):
                    raise SettingError(name, "give `kl` forward or `kl` reverse too")
        elif self.kl_weight == 0 and self.kl != "auto":
            raise SettingError("kl", "its `kl_weight` is 0: leave both out", self.kl)
        if self.method not in _FEATURES and (self.query_weight or self.repr_weight):
            raise SettingError("method", f"{self.method} has no query or repr term: use akd")
        if not self.weights():
            raise SettingError("ce_weight", "all weights are 0: there is nothing to learn")
        if self.confidence and "ce" not in self.weights():
            raise SettingError("confidence", "weighs the cross-entropy, and `ce_weight` is 0")

    def check_anchors(self, *, are_given: bool) -> None:
        """Refuse anchors with a method that has no use of them, and their settings without them.

        Raises: SettingError.
        """
        if are_given and not self.needs_teacher:
            raise SettingError("anchors", f"does nothing with `method` {self.method}")
        for name in () if are_given else _OF_ANCHORS:
            if getattr(self, name) != getattr(type(self), name):
                raise SettingError(name, "is of the frames of `anchors`: name them")

    def num_epochs(self, steps_per_epoch: int) -> int:
        """The number of epochs that was given, or the usual one."""
        enough = -(-USUAL_STEPS // max(steps_per_epoch, 1))
        return self.epochs or min(max(enough, FEWEST_EPOCHS), MOST_EPOCHS)

    def pass_limits(self, num_processes: int = 1) -> tuple[int, int]:
        """Most questions, and most positions of their prompts, in one forward pass of training."""
        if self.micro_batch_size is not None:
            return self.micro_batch_size, sys.maxsize
        if self.method in _OF_THE_BATCH:
            return self.batch_size, sys.maxsize
        size = min(MICRO_BATCH_SIZE, -(-self.batch_size // num_processes))
        return size, TRAINING_POSITIONS

    @property
    def needs_teacher(self) -> bool:
        return self.method in _WITH_TEACHER

    def label_files(self, teacher: str | None) -> list[Path]:
        """The files of labels; of a teacher by name without any, one in the work folder."""
        if self.labels or teacher is None or self.work is None:
            if self.labels and teacher is not None and remote.is_address(self.labels[-1]):
                last = remote.shown(self.labels[-1])
                raise SettingError(
                    "labels", f"labels are added to the last: {remote.NOT_HERE}", last
                )
            return [remote.local(name) for name in self.labels]
        return [self.work / f"{hashlib.sha256(teacher.encode()).hexdigest()[:16]}.labels"]

    @property
    def trained_groups(self) -> tuple[str, ...] | None:
        """The groups of the overlay that are trained; None: all of them."""
        return self.train or (("norm",) if self.method == "tent" else None)

    @property
    def is_balanced(self) -> bool:
        return (self.balance or ("gradients" if self.method == "akd" else "none")) == "gradients"

    @property
    def divergence(self) -> str:
        """What is learnt of the teacher's distributions: `none`, or by `forward` or `reverse`."""
        if self.kl != "auto":
            return self.kl
        return "forward" if "kl" in WEIGHTS.get(self.method, ()) else "none"

    def given_weights(self) -> dict[str, float]:
        """The weight of each term whose setting was given."""
        given = {term: getattr(self, f"{term}_weight") for term in ("query", "repr", "ce", "kl")}
        return {term: weight for term, weight in given.items() if weight is not None}

    def weights(self) -> dict[str, float]:
        """The weight of each term of the loss."""
        found = WEIGHTS[self.method] | {"kl": float(self.divergence != "none")}
        found |= self.given_weights()
        return {term: weight for term, weight in found.items() if weight}


@dataclass(frozen=True)
class CalibrationSettings:
    """How a codebook is made (`calibration`)."""

    frames: int = setting(
        80, "Number of frames that the codebook is made from, at most three quarters", at_least=1
    )
    evaluated: int = setting(
        120, "Number of other frames that its curve is measured on", at_least=1, is_tuning=True
    )
    components: int | None = setting(
        None,
        "Number of components kept of a token",
        at_least=1,
        usually="those that are not always coded as zero",
    )
    vectors: int = setting(
        24, "Number of random vectors a frame for its sensitivity", at_least=1, is_tuning=True
    )
    batch_size: int = setting(32, "Number of questions answered at once", at_least=1)
    seed: int = setting(0, "Seed of the vectors and of the choice of frames", at_least=0)

    def __post_init__(self) -> None:
        check(self)
