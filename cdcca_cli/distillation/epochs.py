"""The loop of training: segments of steps, each followed by an evaluation of the held-out part.

- The held-out part is evaluated before the first step and after each epoch (`evaluation`). The
  result is the last state, because few questions choose badly; or (`choose`), with a teacher, the
  state of lowest cross-entropy there, the start included, which biases the gain measured there
  upwards a little.
- Training runs in segments: epochs here, then those of `rate_aware`, with linear warmup and cosine
  decay over all steps of each. The state after each segment is kept in the work folder
  (`checkpoint`). Batches depend on seed and epoch alone and dropout is off, so a run that was
  stopped ends with the same bits.

Shapes: E examples, P parameters laid end to end.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain, count, islice
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from cdcca_cli import distributed, progress, streams
from cdcca_cli.distillation.checkpoint import Checkpoint
from cdcca_cli.distillation.dataset import Dataset
from cdcca_cli.distillation.evaluation import HeldOutResult, comparison
from cdcca_cli.distillation.optimiser import schedule
from cdcca_cli.distillation.trainer import Trainer
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.labels import payload_digest, question_digest


class TrainingLoop(ABC):
    """Training in segments: each is evaluated, and the state after it is kept on disk.

    done: number of segments so far. best_at, best_P: the segment and overlay of the state that is
    kept. results: held-out results by role, "best" among them. curves: lists of numbers by name. A
    subclass sets the fields without a value here.
    """

    unit: ClassVar[str]
    title: ClassVar[str]
    num_segments: int
    num_steps: int
    lr: float
    first_epoch = 0
    patience: int | None = None

    def __init__(
        self,
        trainer: Trainer,
        checkpoint: Checkpoint | None,
        curves: Sequence[str],
        roles: Sequence[str] = ("best",),
    ) -> None:
        """A subclass resumes, or evaluates, afterwards. Args: roles: of the results on disk."""
        self.trainer, self.checkpoint = trainer, checkpoint
        self.done = self.best_at = 0
        self.best_P = trainer.overlay.values.clone()
        self.curves: dict[str, list[float]] = {name: [] for name in curves}
        num_held = len(trainer.dataset.held_out)
        self.results = {role: HeldOutResult.zeros(num_held) for role in roles}

    @property
    def best(self) -> HeldOutResult:
        return self.results["best"]

    def train(self) -> None:
        """All remaining segments; call it in the student's training mode."""
        with progress.steps(self.num_steps, done=self._first_step(self.done)) as advance:
            while self.done < self.num_segments and not self._has_stalled():
                self._train_segment(advance)
                self.done += 1
                distributed.broadcast(self.trainer.overlay.values)
                held = self._evaluate()
                is_better = not len(held) or held.cross_entropy < self.best.cross_entropy
                settings = self.trainer.settings
                if is_better or settings.choose == "last" or not settings.needs_teacher:
                    self._keep(held, self.done, self._result())
                self._save()
        if self.done < self.num_segments:
            streams.message(
                f"no gain on the held-out part since {self.title} {self.best_at}: stopped after "
                f"{self.done} of {self.num_segments}"
            )

    @abstractmethod
    def _step(self, batch: Sequence[int], lr: float, number: int) -> tuple[Tensor, Tensor]:
        """Step `number`; returns what `Trainer.step` does."""

    @abstractmethod
    def _evaluate(self) -> HeldOutResult:
        """Evaluate the present state, and note the result."""

    def _result(self) -> Tensor:
        """(P,): the present state as it would be written."""
        return self.trainer.overlay.values

    def _has_stalled(self) -> bool:
        if self.patience is None or not len(self.best):
            return False
        return self.done - self.best_at >= self.patience

    def _first_step(self, segment: int) -> int:
        """The number of a segment's first step, from 0."""
        return round(self.num_steps * segment / max(self.num_segments, 1))

    def _batches(self) -> list[list[int]]:
        """The examples of each step of the next segment."""
        start, end = self._first_step(self.done), self._first_step(self.done + 1)
        epoch, skipped = divmod(start, self.trainer.steps_per_epoch)
        epochs = map(self.trainer.batches, count(self.first_epoch + epoch))
        return list(islice(chain.from_iterable(epochs), skipped, skipped + end - start))

    def _train_segment(self, advance: Callable[[str], None]) -> dict[str, float]:
        """Returns: the means over the segment's examples, by name; empty without steps."""
        trainer, names = self.trainer, ("loss", *self.trainer.terms)
        sums, num_examples = torch.zeros(len(names), dtype=torch.float64), 0
        place = {self.unit: self.done + 1}
        for number, batch in enumerate(self._batches(), self._first_step(self.done)):
            lr = self.lr * schedule(number, self.num_steps)
            means, norm = self._step(batch, lr, number)
            sums += means.double() * len(batch)
            num_examples += len(batch)
            named = dict(zip(names, means.tolist(), strict=True))
            trainer.log.step(number + 1, self.num_steps, place, lr, named, norm, len(batch))
            words = ", ".join(f"{name} {value:.3f}" for name, value in named.items())
            advance(f"{self.title} {self.done + 1} of {self.num_segments}: {words}")
        if not num_examples:
            return {}
        averages: list[float] = (sums / num_examples).tolist()
        if not all(map(math.isfinite, averages)):
            raise trainer.diverged(f"in {self.title} {self.done + 1}")
        return dict(zip(names, averages, strict=True))

    def _keep(self, held: HeldOutResult, at: int, values_P: Tensor) -> None:
        self.results["best"], self.best_at = held, at
        self.best_P.copy_(values_P)

    def _note(self, held: HeldOutResult) -> HeldOutResult:
        if len(held):
            self.curves["held_out"].append(held.cross_entropy)
            self.trainer.log.held_out({self.unit: self.done}, held)
        return held

    def rounded_curves(self) -> dict[str, list[float]]:
        return {name: [round(value, 6) for value in row] for name, row in self.curves.items()}

    # ---- on disk

    def _tensors(self) -> dict[str, Tensor]:
        """The state between segments, live."""
        held = {
            f"{role}.{name}": torch.from_numpy(array_E)
            for role, result in self.results.items()
            for name, array_E in (("nats", result.nats_E), ("agrees", result.agrees_E))
        }
        return {"best": self.best_P} | self.trainer.tensors() | held

    def _save(self) -> None:
        if self.checkpoint is not None and distributed.is_first():
            arrays = {name: tensor.cpu().numpy() for name, tensor in self._tensors().items()}
            self.checkpoint.save(
                arrays,
                epoch=self.done,
                best_epoch=self.best_at,
                steps=self.trainer.steps,
                curves=self.curves,
            )

    def _resume(self) -> bool:
        """Restore the state on disk; returns whether there is one of this run."""
        if self.checkpoint is None:
            return False
        tensors = self._tensors()
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if (kept := self.checkpoint.restore(shapes, self.curves)) is None:
            return False
        for name, tensor in tensors.items():
            tensor.copy_(torch.from_numpy(kept.tensors[name]))
        self.done, self.best_at = kept.header["epoch"], kept.header["best_epoch"]
        self.trainer.steps = kept.header["steps"]
        self.curves = kept.header["curves"]
        streams.message(f"resumed after {self.title} {self.done} of {self.num_segments}")
        return True


class Epochs(TrainingLoop):
    """Passes over all examples: every segment is an epoch."""

    unit = title = "epoch"

    def __init__(self, trainer: Trainer, start: Mapping[str, np.ndarray], mirror: Device) -> None:
        settings, terms = trainer.settings, trainer.terms
        checkpoint = None
        if settings.work is not None:
            checkpoint = Checkpoint(settings.work, _identity(trainer, start, mirror))
        super().__init__(trainer, checkpoint, ("loss", *terms, "held_out"), ("best", "before"))
        trainer.log.begin(settings, trainer.lr, terms)
        self.lr, self.patience = trainer.lr, settings.patience
        self.num_segments = trainer.num_epochs if trainer.method.weights else 0
        self.num_steps = self.num_segments * trainer.steps_per_epoch
        if not self._resume():
            before = self._evaluate()
            self.results = {"best": before, "before": before}

    def report(self, best: HeldOutResult) -> dict[str, Any]:
        """Training's part of the adaptation's header. Args: best: of the state that is written."""
        trainer, dataset, settings = self.trainer, self.trainer.dataset, self.trainer.settings
        frames = [dataset.examples[number].shard.frame for number in dataset.held_out]
        return {
            "teacher": None if dataset.source is None else dataset.source.name,
            "tower": trainer.student.tower_digest,
            "num_frames": len({example.shard.frame for example in dataset.examples}),
            "num_asks": len(dataset.examples),
            "num_unlabelled": dataset.num_unlabelled,
            "num_unanswered": dataset.num_unanswered,
            "num_replayed": dataset.num_replayed,
            "num_trained": len(dataset.train) if self.num_segments else 0,
            "epochs": trainer.num_epochs,
            "epochs_done": self.done,
            "best_epoch": self.best_at,
            "choose": settings.choose,
            "batch_size": settings.batch_size,
            "lr": trainer.lr,
            "groups": settings.trained_groups and list(settings.trained_groups),
            "ema": settings.ema,
            "confidence": settings.confidence,
            "anchors": None if trainer.anchors is None else trainer.anchors.report(),
            "curves": self.rounded_curves(),
            "held_out": comparison(self.results["before"], best, frames, settings.seed),
            **trainer.method.report(),
        }

    def _train_segment(self, advance: Callable[[str], None]) -> dict[str, float]:
        means = super()._train_segment(advance)
        for name, mean in means.items():
            self.curves[name].append(mean)
        return means

    def _step(self, batch: Sequence[int], lr: float, number: int) -> tuple[Tensor, Tensor]:
        made = self.trainer.step(batch, lr)
        self.trainer.method.after_step(number)
        return made

    def _evaluate(self) -> HeldOutResult:
        with self.trainer.overlay.holding(self._result()):
            return self._note(self.trainer.evaluate())

    def _result(self) -> Tensor:
        return self.trainer.method.result()

    def _tensors(self) -> dict[str, Tensor]:
        return super()._tensors() | self.trainer.method.tensors()


def _identity(trainer: Trainer, start: Mapping[str, np.ndarray], mirror: Device) -> list[Any]:
    """Everything that the epochs depend on."""
    settings, student, anchors = asdict(trainer.settings), trainer.student, trainer.anchors
    for name in ("work", "labels", "checkpointing", "rate_aware", "bits", "max_drift"):
        del settings[name]
    return [
        _content(trainer.dataset),
        None if anchors is None else _content(anchors.dataset),
        *(mirror.digest, overlay_digest(start)),
        *(settings, trainer.lr),
        *(student.compute, str(student.dtype), student.tower_digest),
        asdict(mirror.settings),
    ]


def _content(dataset: Dataset) -> list[Any]:
    """The frames, questions and answers of a dataset, and whose answers they are."""
    shards = {id(example.shard): example.shard for example in dataset.examples}
    return [
        None if dataset.source is None else asdict(dataset.source),
        [
            [payload_digest(shard), *map(question_digest, shard.questions)]
            for shard in shards.values()
        ],
        [dataset.answers, dataset.train, dataset.held_out],
    ]
