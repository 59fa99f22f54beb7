"""CoTTA as its source has it, slowly: a parameter and an example at a time. For the tests."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.formats.device import Device
from cdcca_cli.models import load_device
from cdcca_cli.models.encoding import Example, encode
from cdcca_cli.models.initial import start_of
from tests.distillation.conftest import MOST

Overlay = dict[str, np.ndarray]


class Slow:
    """A student, its mean and its source, on a model of their own."""

    def __init__(
        self, mirror: Device, start: Mapping[str, np.ndarray], how: DistillSettings
    ) -> None:
        self.model, self.alpha = load_device(mirror, compute="cpu"), mirror.lora.alpha
        self.how = how
        self.source = start_of(mirror)
        self.student = {name: array.copy() for name, array in start.items()}
        self.mean = {name: array.astype(np.float64) for name, array in start.items()}
        self.moments = {name: (np.zeros(a.shape), np.zeros(a.shape)) for name, a in start.items()}

    def put_on(self, overlay: Mapping[str, np.ndarray]) -> None:
        self.model.install_overlay(
            {name: array.astype(np.float32) for name, array in overlay.items()}, self.alpha
        )

    def logits(self, example: Example, answer: list[int]) -> Tensor:
        """(A, V) of one example."""
        seen = encode(self.model, [example]).spliced
        return self.model.forward(seen, torch.tensor([answer])).logits[0].double()

    def answer(self, example: Example) -> list[int]:
        """Greedy, without a cache: each token from a pass over all before it."""
        tokens: list[int] = []
        (end,) = self.model.end_ids
        while len(tokens) < MOST[example.question.task] and end not in tokens:
            tokens.append(int(self.logits(example, [*tokens, end])[-1].argmax()))
        return tokens

    @torch.no_grad()
    def confidence(
        self, overlay: Overlay, examples: list[Example], answers: list[list[int]]
    ) -> float:
        """The largest probability, meant over each answer's tokens, then over the examples."""
        self.put_on(overlay)
        pairs = zip(examples, answers, strict=True)
        return float(np.mean([self.logits(*p).softmax(-1).amax(-1).mean().item() for p in pairs]))

    def step(
        self, number: int, examples: list[Example], views: list[list[Example]], lr: float, seed: int
    ) -> bool:
        """Returns: whether the views were averaged."""
        with torch.no_grad():
            self.put_on(self.mean)
            answers = [self.answer(example) for example in examples]
            targets = [self.logits(*pair) for pair in zip(examples, answers, strict=True)]
            seen = [
                [self.logits(*pair) for pair in zip(view, answers, strict=True)] for view in views
            ]
            unsure = self.confidence(self.source, examples, answers) < self.how.cotta_threshold
        if unsure:
            targets = [torch.stack(rows).mean(0) for rows in zip(*seen, strict=True)]
        self.put_on(self.student)
        named = self.model.trainable()
        for parameter in named.values():
            parameter.grad = None
        loss = torch.zeros((), dtype=torch.float64)
        for example, answer, target in zip(examples, answers, targets, strict=True):
            surprise = -self.logits(example, answer).log_softmax(-1)
            loss = loss + (target.softmax(-1) * surprise).sum(-1).mean() / len(examples)
        loss.backward()
        self.adam(number, {name: p.grad.double().numpy() for name, p in named.items()}, lr)  # type: ignore[union-attr]
        for name, own in self.student.items():
            self.mean[name] = self.how.cotta_ema * self.mean[name] + (1 - self.how.cotta_ema) * own
        self.restore(number, seed)
        return unsure

    def adam(self, number: int, gradients: Overlay, lr: float) -> None:
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        for name, gradient in gradients.items():
            gradient = gradient / max(1.0, norm)
            first, second = self.moments[name]
            first, second = 0.9 * first + 0.1 * gradient, 0.98 * second + 0.02 * gradient**2
            self.moments[name] = first, second
            first, second = first / (1 - 0.9 ** (number + 1)), second / (1 - 0.98 ** (number + 1))
            moved = self.student[name] - lr * first / (np.sqrt(second) + 1e-8)
            self.student[name] = moved.astype(np.float32)

    def restore(self, number: int, seed: int) -> None:
        """A number in [0, 1) for each value, in the order of the parameters' names."""
        key = (3 * 2**56 + number) * 2**64 + seed  # 128 bits, the low half first
        draws = np.random.Generator(np.random.Philox(key=key))
        for name in sorted(self.student):
            own, source = self.student[name], self.source[name]
            back = (
                draws.random(own.size, dtype=np.float32).reshape(own.shape) < self.how.cotta_restore
            )
            self.student[name] = np.where(back, source, own)
