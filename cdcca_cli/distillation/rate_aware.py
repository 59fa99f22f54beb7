"""The second phase: the overlay learns to be what few bits can say of it.

    seen = base + restore(quantize(overlay - base, step), step)         (`numerics.uniform`)

Each step's forward and backward see `seen`, the gradient there goes straight through to the overlay
(Bengio et al. 2013), and Adam, its moments kept from the epochs, moves that. The base is the
mirror's overlay, against which the update will be taken.

The quantiser's step is the finest at which the change costs the bits asked for. The change goes on
growing while it is trained (a step held fixed ended at 1.38 bits for 1.2), so the step follows it:
within a leg in proportion to the change's root mean square, and at each leg's end it is found again
from the bits. So the result costs what was asked for.

The steps go in LEGS, judged after each on the held-out part through the quantiser, and before the
first. The best such state is the result; the mirror's own overlay is among them, so the device gets
nothing worse than it has. What is written is the overlay before the quantiser: quantised at the
step that is written with it, it is, code for code, what was judged.

Shapes: P parameters laid end to end.
Does not code: how many bytes the codes take is the downlink's business.
"""

from collections.abc import Mapping, Sequence
from itertools import chain, count, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdcca_cli.distillation.checkpoint import Checkpoint
from cdcca_cli.distillation.evaluation import HeldOutResult
from cdcca_cli.distillation.optimiser import schedule
from cdcca_cli.distillation.trainer import Advance, Epochs, Phase, Trainer
from cdcca_cli.formats.adaptation import RateAware
from cdcca_cli.numerics import uniform

LR_SHARE = 0.5
"""Of the epochs' learning rate, at the highest."""
LEGS = 5
MIRROR = -1
"""The 'leg' whose state is the mirror's own overlay: nothing is sent."""


class RateAwareSteps(Phase):
    """What follows the epochs, on the same student, examples and optimiser."""

    unit, title = "leg", "rate-aware leg"
    num_segments = LEGS

    def __init__(self, trainer: Trainer, epochs: Epochs, base: Mapping[str, np.ndarray]) -> None:
        """Begins at the best state of the epochs. Args: base: the mirror's overlay."""
        settings = trainer.settings
        checkpoint = None
        if settings.work is not None and epochs.checkpoint is not None:
            identity = [settings.rate_aware, settings.bits, LR_SHARE, LEGS]
            checkpoint = Checkpoint(settings.work, [epochs.checkpoint.key, "rate-aware", *identity])
        trainer.overlay.values.copy_(epochs.best_P)
        super().__init__(trainer, checkpoint, ("loss", "answer", "held_out", "bits"))
        self.base_P = trainer.overlay.laid_out(base)
        self.num_steps = settings.rate_aware
        self._unquantised = epochs.best
        self._ratio = 1.0
        kept = self._restore("best")
        if kept is not None:
            self.best = kept["best"]
            return
        self.best = self._evaluate_coded()
        with trainer.overlay.holding(self.base_P):
            mirror = trainer.evaluate()
        if mirror.cross_entropy < self.best.cross_entropy:
            self._keep(mirror, MIRROR, self.base_P)

    def quantiser(self) -> RateAware:
        """What the written state is to be coded with."""
        step = self._quantiser_step(self.best_P)
        return RateAware(float(step), self._bits(self.best_P, step), self.num_steps)

    def report(self) -> dict[str, Any]:
        """What the adaptation's header says of these steps."""
        before = self._unquantised
        return {
            **vars(self.quantiser()),
            "target_bits": self.trainer.settings.bits,
            "lr": LR_SHARE * self.trainer.lr,
            "best_leg": self.best_at,
            "legs": LEGS,
            "unquantised_cross_entropy": before.cross_entropy if len(before) else None,
            "curves": self.rounded_curves(),
        }

    # ---- steps

    def _first_step(self, segment: int) -> int:
        return round(self.num_steps * segment / LEGS)

    def _batches(self) -> list[list[int]]:
        epochs = map(self.trainer.batches, count(self.trainer.settings.epochs))
        ends = self._first_step(self.done), self._first_step(self.done + 1)
        return list(islice(chain.from_iterable(epochs), *ends))

    def _train_segment(self, advance: Advance) -> dict[str, float]:
        latent_P = self.trainer.overlay.values
        self._ratio = float(self._quantiser_step(latent_P)) / (self._rms(latent_P) or 1.0)
        means = super()._train_segment(advance)
        if not latent_P.isfinite().all():
            raise self.trainer.diverged(f"in {self.title} {self.done + 1}")
        if means:
            self.curves["loss"].append(means["loss"])
            self.curves["answer"].append(means.get("ce", 0.0))
        return means

    def _step(self, batch: Sequence[int], number: int) -> tuple[float, Tensor, Tensor]:
        latent_P = self.trainer.overlay.values
        # Where nothing has changed yet, any step sees nothing.
        seen_P = seen(latent_P, self.base_P, self._ratio * self._rms(latent_P) or 1.0)
        lr = LR_SHARE * self.trainer.lr * schedule(number, self.num_steps)
        return lr, *self.trainer.step(batch, lr, seen_P)

    def _rms(self, latent_P: Tensor) -> float:
        """The root of the mean square of the change."""
        return float((latent_P - self.base_P).double().square().mean().sqrt())

    def _quantiser_step(self, latent_P: Tensor) -> np.float32:
        """The finest step at which the change costs the bits asked for."""
        return uniform.step_for_bits(self._delta(latent_P), self.trainer.settings.bits)

    def _bits(self, latent_P: Tensor, step: np.float32) -> float:
        return uniform.entropy_bits(uniform.quantize(self._delta(latent_P), float(step)))

    def _delta(self, latent_P: Tensor) -> np.ndarray:
        return (latent_P - self.base_P).cpu().numpy()

    # ---- which state is best

    def _judge(self) -> None:
        held = self._evaluate_coded()
        if not len(held) or held.cross_entropy < self.best.cross_entropy:
            self._keep(held, self.done, self.trainer.overlay.values)

    def _evaluate_coded(self) -> HeldOutResult:
        """The present state as it would be decoded; noted in the curves."""
        trainer = self.trainer
        latent_P = trainer.overlay.values
        step = self._quantiser_step(latent_P)
        with trainer.overlay.holding(seen(latent_P, self.base_P, float(step))):
            held = trainer.evaluate()
        self.curves["bits"].append(self._bits(latent_P, step))
        self._note(held)
        return held


def seen(latent_P: Tensor, base_P: Tensor, step: float) -> Tensor:
    """base + restore(quantize(latent - base, step), step), bit for bit as `uniform` has it."""
    # A tensor on the device: by a mere number torch divides as by its reciprocal on CUDA.
    exact = torch.tensor(step, dtype=torch.float32, device=latent_P.device)
    # + 0: a code is a whole number, which has no negative zero.
    codes_P = torch.round((latent_P - base_P) / exact) + 0.0
    return base_P + codes_P * exact
