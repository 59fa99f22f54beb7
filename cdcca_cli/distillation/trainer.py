"""The loop: a student's overlay learns on stored tokens, by any of the methods.

- Adam on what is trained of the overlay (and on phi), gradients clipped, the learning rate rising
  over the first steps and falling as a cosine to zero. Where none is given it is
  LR / sqrt(width of the language model).
- Held-out frames judge (`evaluation`): before the first step and after each epoch. Of a method with
  a teacher the state of lowest cross-entropy there is the result, the start included, so the result
  is never worse there than the start. (The choice is made on the part that also measures the gain,
  which flatters it a little.) Of a method without one, and where nothing is held out, the last
  state is the result.
- A batch can go through in smaller parts; several processes take its parts by turns and step by the
  sum of their gradients (`distributed`).
- Training has two phases, the epochs (`Epochs`) and the rate-aware steps (`rate_aware`). Each goes
  in segments, and the state after each segment is kept in the work folder (`checkpoint`). Batches
  depend on seed and epoch alone and dropout is off, so a run that was killed and started again ends
  with the same bits; one that had finished is only read.

What a step minimises is the method's (`methods`).

Shapes: B batch, E examples, P parameters laid end to end.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from cdcca_cli import progress, streams
from cdcca_cli.distillation import distributed, methods
from cdcca_cli.distillation.checkpoint import Checkpoint, State
from cdcca_cli.distillation.dataset import Dataset, shuffled_batches
from cdcca_cli.distillation.encoding import Encoder, prompt_length
from cdcca_cli.distillation.evaluation import Evaluator, HeldOutResult, comparison
from cdcca_cli.distillation.losses import distillation_loss
from cdcca_cli.distillation.optimiser import Adam, open_overlay, schedule
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.distillation.step_log import StepLog
from cdcca_cli.errors import SettingError
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.labels import key_of
from cdcca_cli.models import LoadedModel

LR = 0.0057
"""5e-4 for the shipped student (width 128), 9e-5 for 4,096. On the shipped pair four times as much
taught more in a round of six epochs (held-out DA 79.7 for 74.5) and cost more of what was known
(source DA 81.8 for 89.3, of 90.7 before)."""
CLIP_NORM = 1.0

Advance = Callable[[str], None]


class Trainer:
    """A student, its method and its optimiser: one step, and one evaluation."""

    def __init__(
        self,
        student: LoadedModel,
        mirror: Device,
        start: Mapping[str, np.ndarray],
        dataset: Dataset,
        settings: DistillSettings,
        *,
        source: methods.Source,
        log: StepLog | None = None,
    ) -> None:
        """To be made in the student's training mode.

        Args: start: the overlay before the first step. source: makes the overlay of sequence 0.
        """
        self.log = log or StepLog(None)
        self.log.start()
        self.student, self.dataset, self.settings = student, dataset, settings
        self.lr = settings.lr or LR / math.sqrt(student.language.config.hidden_size)
        self.overlay = open_overlay(student, start, mirror.lora.alpha, settings.trained_groups)
        encoder = Encoder(student, self.overlay.names)
        self.method = methods.create(
            methods.MethodContext(student, self.overlay, dataset, settings, encoder, source)
        )
        self._flats = [self.overlay, *([] if self.method is None else self.method.flats)]
        self.optimiser = Adam(self._flats)
        self.evaluator = Evaluator(
            student,
            [dataset.examples[number] for number in dataset.held_out],
            [dataset.answers[number] for number in dataset.held_out],
            settings.batch_size,
        )
        self._lengths = [prompt_length(student, dataset.examples[n]) for n in dataset.train]

    @property
    def terms(self) -> list[str]:
        """The terms of the loss, by name."""
        return [] if self.method is None else list(self.method.weights)

    def batches(self, epoch: int) -> list[list[int]]:
        """The examples of each step of an epoch."""
        settings, train = self.settings, self.dataset.train
        order = shuffled_batches(self._lengths, settings.batch_size, settings.seed, epoch)
        return [[train[place] for place in places] for places in order]

    def step(
        self, batch: Sequence[int], lr: float, seen_P: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step of the optimiser; returns what `backward` does, and the gradients' norm.

        Args: seen_P: the overlay in the forward pass, if other than the one that is trained.
        """
        if seen_P is None:
            means = self.backward(batch)
        else:
            with self.overlay.holding(seen_P):
                means = self.backward(batch)
        return means, self.optimiser.step(lr, CLIP_NORM)

    def backward(self, batch: Sequence[int]) -> Tensor:
        """Gradients of a batch; returns its means of the loss and of each term, on the CPU.

        In parts (`Method.pass_size`), one after the other or shared by the processes.
        """
        method = self.method
        assert method is not None
        size = method.pass_size(distributed.count())
        for flat in self._flats:
            flat.clear()
        parts = [batch[at : at + size] for at in range(0, len(batch), size)]
        sums = torch.zeros(1 + len(method.weights), device=self.student.device)
        for part in parts[distributed.rank() :: distributed.count()]:
            terms = method.losses(part)
            loss = distillation_loss(terms, method.weights).sum()
            (loss / len(batch)).backward()
            sums += torch.stack([loss, *(term_B.sum() for term_B in terms.values())]).detach()
        for flat in self._flats:
            distributed.add_up(flat.gradient)
        distributed.add_up(sums)
        return (sums / len(batch)).cpu()

    def evaluate(self) -> HeldOutResult:
        """The held-out part under the overlay as it is: the first process's result, for all."""
        held = self.evaluator.evaluate()
        for array_E in (held.nats_E, held.agrees_E):
            values_E = torch.from_numpy(array_E).to(self.student.device)
            distributed.broadcast(values_E)
            array_E[:] = values_E.cpu().numpy()
        return held

    def tensors(self) -> dict[str, Tensor]:
        """What is trained and what Adam remembers of it, live."""
        named = zip(
            ("overlay", "phi"),
            self._flats,
            self.optimiser.means,
            self.optimiser.squares,
            strict=False,
        )
        return {
            name + part: tensor
            for name, flat, mean, square in named
            for part, tensor in (("", flat.values), (".mean", mean), (".square", square))
        }

    def diverged(self, when: str) -> SettingError:
        """What to raise when a number is not finite."""
        return SettingError(
            "lr", f"training diverged: the loss is not finite {when}: give a smaller one", self.lr
        )


class Phase(ABC):
    """A part of training, in segments: each is judged, and the state after it is kept on disk.

    done: segments so far. best, best_at, best_P: the best state, and after which segment it was.
    curves: lists of numbers by name.
    """

    unit: ClassVar[str]
    title: ClassVar[str]

    def __init__(
        self, trainer: Trainer, checkpoint: Checkpoint | None, curves: Sequence[str]
    ) -> None:
        """Begins where the overlay is. A subclass restores, or evaluates, afterwards."""
        self.trainer, self._checkpoint = trainer, checkpoint
        self.done = self.best_at = 0
        self.best_P = trainer.overlay.values.clone()
        self.curves: dict[str, list[float]] = {name: [] for name in curves}

    best: HeldOutResult
    num_segments: int
    num_steps: int

    def train(self) -> None:
        """All segments that are still to do; call it in the student's training mode."""
        with progress.steps(self.num_steps, done=self._first_step(self.done)) as advance:
            while self.done < self.num_segments and not self._has_stalled():
                self._train_segment(advance)
                self.done += 1
                distributed.broadcast(self.trainer.overlay.values)
                self._judge()
                self._save()

    @abstractmethod
    def _first_step(self, segment: int) -> int:
        """The number of a segment's first step, from 0."""

    @abstractmethod
    def _batches(self) -> Sequence[list[int]]:
        """The examples of each step of the next segment."""

    @abstractmethod
    def _step(self, batch: Sequence[int], number: int) -> tuple[float, Tensor, Tensor]:
        """Step `number`; returns its learning rate, and what `Trainer.step` does."""

    @abstractmethod
    def _judge(self) -> None:
        """Keep the present state if it is the best so far."""

    def _has_stalled(self) -> bool:
        return False

    def _train_segment(self, advance: Advance) -> dict[str, float]:
        """Returns: the means over the segment's examples, by name; empty without steps."""
        trainer, names = self.trainer, ("loss", *self.trainer.terms)
        sums, num_examples = torch.zeros(len(names), dtype=torch.float64), 0
        first = self._first_step(self.done)
        for number, batch in enumerate(self._batches(), first):
            lr, means, norm = self._step(batch, number)
            sums += means.double() * len(batch)
            num_examples += len(batch)
            named = dict(zip(names, means.tolist(), strict=True))
            place = {self.unit: self.done + 1}
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
        self.best, self.best_at = held, at
        self.best_P.copy_(values_P)

    def _note(self, held: HeldOutResult) -> None:
        if len(held):
            self.curves["held_out"].append(held.cross_entropy)
            self.trainer.log.judged({self.unit: self.done}, held)

    def rounded_curves(self) -> dict[str, list[float]]:
        return {name: [round(value, 6) for value in row] for name, row in self.curves.items()}

    # ---- on disk

    def _tensors(self) -> dict[str, Tensor]:
        """What a segment leaves to the next, live."""
        return {"best": self.best_P} | self.trainer.tensors()

    def _results(self) -> dict[str, HeldOutResult]:
        """The results that are kept, by role."""
        return {"best": self.best}

    def _save(self) -> None:
        if self._checkpoint is None or not distributed.is_first():
            return
        arrays = {name: tensor.cpu().numpy() for name, tensor in self._tensors().items()}
        steps = self.trainer.optimiser.steps
        state = State(self.done, self.best_at, steps, self.curves, arrays, self._results())
        self._checkpoint.save(state)

    def _restore(self, *roles: str) -> dict[str, HeldOutResult] | None:
        """Take up the state on disk, if there is one of this run; returns its results by role."""
        if self._checkpoint is None:
            return None
        tensors = self._tensors()
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        num_held = len(self.trainer.dataset.held_out)
        kept = self._checkpoint.restore(shapes, roles, num_held, self.curves)
        if kept is None:
            return None
        for name, tensor in tensors.items():
            tensor.copy_(torch.from_numpy(kept.arrays[name]))
        self.trainer.optimiser.steps = kept.steps
        self.done, self.best_at, self.curves = kept.done, kept.best_at, kept.curves
        streams.message(f"going on after {self.title} {self.done} of {self.num_segments}")
        return kept.results


class Epochs(Phase):
    """The first phase: times over the examples."""

    unit = title = "epoch"

    def __init__(self, trainer: Trainer, start: Mapping[str, np.ndarray], mirror: Device) -> None:
        """Args: start: the overlay before the first step, as the trainer has it."""
        settings = trainer.settings
        self.checkpoint = None
        if settings.work is not None:
            self.checkpoint = Checkpoint(settings.work, _identity(trainer, start, mirror))
        super().__init__(trainer, self.checkpoint, ("loss", *trainer.terms, "held_out"))
        trainer.log.begin(settings, trainer.lr, trainer.terms)
        self.num_segments = 0 if trainer.method is None else settings.epochs
        self._steps_per_epoch = len(trainer.batches(0))
        self.num_steps = self.num_segments * self._steps_per_epoch
        kept = self._restore("before", "best")
        if kept is None:
            self.before = self.best = trainer.evaluate()
            self._note(self.before)
        else:
            self.before, self.best = kept["before"], kept["best"]

    def train(self) -> None:
        super().train()
        if self.done < self.num_segments:
            streams.message(
                f"no gain on the held-out part since epoch {self.best_at}: stopped after "
                f"{self.done} of {self.num_segments}"
            )

    def report(self, best: HeldOutResult) -> dict[str, Any]:
        """What the adaptation's header says of training. Args: best: of the state written."""
        trainer, dataset, settings = self.trainer, self.trainer.dataset, self.trainer.settings
        frames = [dataset.examples[number].shard.frame for number in dataset.held_out]
        return {
            "teacher": None if dataset.outputs is None else dataset.outputs.head.teacher,
            "tower": trainer.student.tower_digest,
            "num_frames": len({example.shard.frame for example in dataset.examples}),
            "num_asks": len(dataset.examples),
            "num_unanswered": dataset.num_unanswered,
            "num_replayed": dataset.num_replayed,
            "num_trained": len(dataset.train) if trainer.method is not None else 0,
            "epochs": settings.epochs,
            "epochs_done": self.done,
            "best_epoch": self.best_at,
            "batch_size": settings.batch_size,
            "lr": trainer.lr,
            "groups": settings.trained_groups and list(settings.trained_groups),
            "ema": settings.ema,
            "confidence": settings.confidence,
            "curves": self.rounded_curves(),
            "held_out": comparison(self.before, best, frames, settings.seed),
            **({} if trainer.method is None else trainer.method.report()),
        }

    def _first_step(self, segment: int) -> int:
        return segment * self._steps_per_epoch

    def _batches(self) -> list[list[int]]:
        return self.trainer.batches(self.done)

    def _step(self, batch: Sequence[int], number: int) -> tuple[float, Tensor, Tensor]:
        lr = self.trainer.lr * schedule(number, self.num_steps)
        made = self.trainer.step(batch, lr)
        self._method.after_step(number)
        return lr, *made

    def _train_segment(self, advance: Advance) -> dict[str, float]:
        means = super()._train_segment(advance)
        for name, mean in means.items():
            self.curves[name].append(mean)
        return means

    def _judge(self) -> None:
        with self.trainer.overlay.holding(self._method.result()):
            held = self.trainer.evaluate()
        self._note(held)
        is_better = not len(held) or held.cross_entropy < self.best.cross_entropy
        if is_better or not self.trainer.settings.needs_teacher:
            self._keep(held, self.done, self._method.result())

    def _has_stalled(self) -> bool:
        patience = self.trainer.settings.patience
        if patience is None or not len(self.best):
            return False
        return self.done - self.best_at >= patience

    @property
    def _method(self) -> methods.Method:
        assert self.trainer.method is not None
        return self.trainer.method

    def _tensors(self) -> dict[str, Tensor]:
        method = self.trainer.method
        return super()._tensors() | ({} if method is None else method.tensors())

    def _results(self) -> dict[str, HeldOutResult]:
        return super()._results() | {"before": self.before}


def _identity(trainer: Trainer, start: Mapping[str, np.ndarray], mirror: Device) -> list[Any]:
    """Everything that the epochs depend on; what follows them has an identity of its own."""
    settings, dataset, student = asdict(trainer.settings), trainer.dataset, trainer.student
    later = ("work", "cache", "cache_bits", "rate_aware", "bits")
    for name in (*later, "teacher_quantize", "teacher_device_map"):
        del settings[name]
    shards = {id(example.shard): example.shard for example in dataset.examples}
    head = None if dataset.outputs is None else dataset.outputs.head
    return [
        None if head is None else [head.teacher, head.dtype, head.bits],
        *(mirror.digest, overlay_digest(start)),
        *([key_of(shard) for shard in shards.values()], settings, trainer.lr),
        *(student.compute, str(student.dtype), student.tower_digest),
        asdict(mirror.settings),
        [dataset.answers, dataset.train, dataset.held_out],
    ]
