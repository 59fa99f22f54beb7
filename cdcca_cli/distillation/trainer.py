"""Training: one step of any method (`methods`), and the epochs.

- The optimiser is Adam on the trained part of the overlay (and on phi), with gradient clipping,
  linear warmup and cosine decay.
- The held-out part is evaluated before the first step and after each epoch (`evaluation`). With a
  teacher the result is the state of lowest cross-entropy there, the start included, which biases
  the gain measured there upwards a little. For methods without a teacher, and with nothing held
  out, the result is the last state.
- Training runs in segments: epochs here, then those of `rate_aware`. The state after each is kept
  in the work folder (`checkpoint`). Batches depend on seed and epoch alone and dropout is off, so a
  run that was stopped ends with the same bits.

Shapes: B batch, E examples, P parameters laid end to end.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import chain, count, islice
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from cdcca_cli import distributed, progress, streams
from cdcca_cli.distillation import methods
from cdcca_cli.distillation.activations import is_recomputed
from cdcca_cli.distillation.anchors import TERM as ANCHOR
from cdcca_cli.distillation.anchors import Anchors
from cdcca_cli.distillation.checkpoint import Checkpoint
from cdcca_cli.distillation.dataset import Dataset, shuffled_batches
from cdcca_cli.distillation.evaluation import Evaluator, HeldOutResult, comparison
from cdcca_cli.distillation.losses import distillation_loss
from cdcca_cli.distillation.optimiser import adam, open_overlay, schedule
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.distillation.step_log import StepLog
from cdcca_cli.errors import SettingError
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.labels import payload_digest, question_digest
from cdcca_cli.models import LoadedModel
from cdcca_cli.models.encoding import prompt_length

LR = 0.0057
"""The default learning rate times sqrt(width of the language model). A larger one learns more of
the stream and forgets more of the source domain."""
CLIP_NORM = 1.0


class Trainer:
    """A student in training mode, its method and its optimiser: one step, and one evaluation."""

    def __init__(
        self,
        student: LoadedModel,
        mirror: Device,
        start: Mapping[str, np.ndarray],
        dataset: Dataset,
        settings: DistillSettings,
        *,
        source: Callable[[], Mapping[str, np.ndarray]],
        log: StepLog | None = None,
        anchors: Anchors | None = None,
    ) -> None:
        """Args: start: the overlay before the first step. source: gives that of sequence 0."""
        self.log = log or StepLog(None)
        self.log.start()
        self.steps_per_epoch = -(-len(dataset.train) // settings.batch_size)
        self.num_epochs = settings.num_epochs(self.steps_per_epoch)
        settings = replace(settings, epochs=self.num_epochs)
        self.student, self.dataset, self.settings = student, dataset, settings
        self.lr = settings.lr or LR / math.sqrt(student.language.config.hidden_size)
        self.overlay = open_overlay(student, start, mirror.lora.alpha, settings.trained_groups)
        examples = [dataset.examples[number] for number in dataset.train]
        student.is_checkpointed = is_recomputed(student, settings, examples)
        self.method = methods.create(
            methods.MethodContext(student, self.overlay, dataset, settings, source)
        )
        self.anchors = anchors
        self._flats = [self.overlay, *self.method.flats]
        self.optimiser = adam(self._flats)
        self.evaluator = Evaluator(
            student,
            [dataset.examples[number] for number in dataset.held_out],
            [dataset.answers[number] for number in dataset.held_out],
            settings.batch_size,
        )
        self._lengths = [prompt_length(student, example) for example in examples]

    @property
    def terms(self) -> list[str]:
        """The names of the loss's terms, in the order of `backward`."""
        return [*self.method.weights, *([] if self.anchors is None else [ANCHOR])]

    def batches(self, epoch: int) -> list[list[int]]:
        """The examples of each step of an epoch."""
        settings, train = self.settings, self.dataset.train
        order = shuffled_batches(self._lengths, settings.batch_size, settings.seed, epoch)
        return [[train[place] for place in places] for places in order]

    def step(
        self, batch: Sequence[int], lr: float, seen_P: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step of the optimiser; returns the means of `backward` and the gradients' norm.

        Args: seen_P: the overlay in the forward pass, if other than the one that is trained.
        """
        with nullcontext() if seen_P is None else self.overlay.holding(seen_P):
            means = self.backward(batch)
        norm = nn.utils.clip_grad_norm_([flat.values for flat in self._flats], CLIP_NORM)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.step()
        return means, norm

    def backward(self, batch: Sequence[int]) -> Tensor:
        """Gradients of a batch; returns its means of the loss and of each term, on the CPU.

        The batch is cut into parts (`Method.micro_batches`), which the processes share.
        """
        method, rank, num = self.method, distributed.rank(), distributed.count()
        for flat in self._flats:
            flat.clear()
        parts = method.micro_batches(batch, num)
        means = torch.zeros(1 + len(self.terms), device=self.student.device)
        for part in parts[rank::num]:
            terms = method.losses(part)
            loss = distillation_loss(terms, method.weights).sum() / len(batch)
            loss.backward()
            of_terms = [term_B.sum() / len(batch) for term_B in terms.values()]
            means[: 1 + len(of_terms)] += torch.stack([loss, *of_terms]).detach()
        if self.anchors is not None:
            drawn = self.anchors.drawn(self.steps, num)
            for part in drawn[rank::num]:
                mean = self.anchors.losses(part).sum() / sum(map(len, drawn))
                loss = self.anchors.weight * mean
                loss.backward()
                means[[0, -1]] += torch.stack([loss, mean]).detach()
        for flat in self._flats:
            distributed.add_up(flat.gradient)
        distributed.add_up(means)
        return means.cpu()

    def evaluate(self) -> HeldOutResult:
        """The held-out part with the overlay as it is: the first process's result, for all."""
        held = self.evaluator.evaluate()
        for array_E in (held.nats_E, held.agrees_E):
            values_E = torch.from_numpy(array_E).to(self.student.device)
            distributed.broadcast(values_E)
            array_E[:] = values_E.cpu().numpy()
        return held

    def tensors(self) -> dict[str, Tensor]:
        """What is trained, and Adam's moments of it, live."""
        found: dict[str, Tensor] = {}
        for name, flat in zip(("overlay", "phi"), self._flats, strict=False):
            state = self.optimiser.state[flat.values]
            found |= {name: flat.values, f"{name}.mean": state["exp_avg"]}
            found[f"{name}.square"] = state["exp_avg_sq"]
        return found

    @property
    def steps(self) -> int:
        """Number of steps that the optimiser has taken."""
        return int(self.optimiser.state[self.overlay.values]["step"])

    @steps.setter
    def steps(self, steps: int) -> None:
        for state in self.optimiser.state.values():
            state["step"].fill_(steps)

    def diverged(self, when: str) -> SettingError:
        """The error for a number that is not finite."""
        return SettingError(
            "lr", f"training diverged: the loss is not finite {when}: give a smaller one", self.lr
        )


class TrainingLoop(ABC):
    """Training in segments: each is evaluated, and the state after it is kept on disk.

    done: number of segments so far. best_at, best_P: the segment and overlay of the best state.
    results: held-out results by role, "best" among them. curves: lists of numbers by name. A
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
    settings, dataset, student = asdict(trainer.settings), trainer.dataset, trainer.student
    for name in ("work", "labels", "checkpointing", "rate_aware", "bits"):
        del settings[name]
    shards = {id(example.shard): example.shard for example in dataset.examples}
    held_to = [] if trainer.anchors is None else trainer.anchors.dataset.examples
    anchors = [[payload_digest(one.shard), question_digest(one.question)] for one in held_to]
    return [
        None if dataset.source is None else asdict(dataset.source),
        *(mirror.digest, overlay_digest(start)),
        [
            [payload_digest(shard), *map(question_digest, shard.questions)]
            for shard in shards.values()
        ],
        *(settings, trainer.lr),
        *(student.compute, str(student.dtype), student.tower_digest),
        asdict(mirror.settings),
        [dataset.answers, dataset.train, dataset.held_out, anchors],
    ]
