"""One step of training, by any method (`methods`), and one evaluation; `epochs` has the loop.

The loss is the method's and, with `anchors`, theirs. The optimiser is Adam on the trained part of
the overlay (and on phi), with gradient clipping. Batches depend on seed and epoch alone.

Shapes: B batch, P parameters laid end to end.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from cdcca_cli import distributed
from cdcca_cli.distillation import methods
from cdcca_cli.distillation.activations import is_recomputed
from cdcca_cli.distillation.anchors import Anchors
from cdcca_cli.distillation.dataset import Dataset, shuffled_batches
from cdcca_cli.distillation.evaluation import Evaluator, HeldOutResult
from cdcca_cli.distillation.losses import distillation_loss
from cdcca_cli.distillation.optimiser import Flat, adam, open_overlay
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.distillation.step_log import StepLog
from cdcca_cli.errors import SettingError
from cdcca_cli.formats.device import Device
from cdcca_cli.models import LoadedModel
from cdcca_cli.models.encoding import prompt_length

LR = 0.0057
"""The default learning rate times sqrt(width of the language model). A larger one learns more of
the stream and forgets more of the source domain."""
LR_ANCHORED = 2.0
"""Times that rate where anchors hold the student."""
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
        usual = LR if anchors is None else LR * LR_ANCHORED
        self.lr = settings.lr or usual / math.sqrt(student.language.config.hidden_size)
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
        return [*self.method.weights, *([] if self.anchors is None else self.anchors.weights)]

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

        The batch is cut into parts (`Method.micro_batches`), which the processes share, and so are
        the anchors of the step.
        """
        for flat in self._flats:
            flat.clear()
        num_processes = distributed.count()
        parts = self.method.micro_batches(batch, num_processes)
        means = self._add_gradients(self.method, parts, self._flats)
        if self.anchors is not None:
            # A sum of their own, so that one process and two add up the same numbers.
            batch_P = self.overlay.gradient.clone()
            self.overlay.clear()
            drawn = self.anchors.drawn(self.steps, num_processes)
            held = self._add_gradients(self.anchors, drawn, [self.overlay])
            self.overlay.gradient += batch_P
            means = torch.cat([means[:1] + held[:1], means[1:], held[1:]])
        return means.cpu()

    def _add_gradients(
        self,
        source: methods.Method | Anchors,
        parts: Sequence[Sequence[int]],
        flats: Sequence[Flat],
    ) -> Tensor:
        """Add the gradients of the mean loss of some parts to `flats`, of all processes.

        Args: source: of the terms and their weights. Returns: the means of loss and terms.
        """
        means = torch.zeros(1 + len(source.weights), device=self.student.device)
        total = sum(map(len, parts))
        for part in parts[distributed.rank() :: distributed.count()]:
            terms = source.losses(part)
            loss = distillation_loss(terms, source.weights).sum() / total
            loss.backward()
            of_terms = [term_B.sum() / total for term_B in terms.values()]
            means += torch.stack([loss, *of_terms]).detach()
        for flat in flats:
            distributed.add_up(flat.gradient)
        distributed.add_up(means)
        return means

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
