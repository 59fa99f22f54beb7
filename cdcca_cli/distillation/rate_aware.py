"""Further steps after the epochs, through the quantiser, for an update of few bits.

    seen = base + restore(quantize(overlay - base, step), step)         (`numerics.uniform`)

Each step's forward and backward pass see `seen`. The gradient there goes straight through to the
overlay (Bengio et al. 2013), which Adam moves, with its moments from the epochs. The base is the
mirror's overlay, from which the update will be taken.

The quantiser's step is the finest at which the change costs the bits asked for. It is found from
the bits after each segment; within a segment it grows with the root mean square of the change.

The held-out part is evaluated through the quantiser, before the first and after each of
NUM_SEGMENTS segments. The best of these states, or the mirror's own overlay, is the result, so the
device gets nothing worse than it has. The overlay is written unquantised; quantised at the step
that is written with it, it is, code for code, what was evaluated.

Shapes: P parameters laid end to end.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdcca_cli.distillation.checkpoint import Checkpoint
from cdcca_cli.distillation.epochs import Epochs, TrainingLoop
from cdcca_cli.distillation.evaluation import HeldOutResult
from cdcca_cli.distillation.trainer import Trainer
from cdcca_cli.formats.adaptation import RateAware
from cdcca_cli.numerics import uniform

LR_SHARE = 0.5
"""The highest learning rate, as a share of the epochs'."""
NUM_SEGMENTS = 5
MIRROR = -1
"""`best_at` when the mirror's own overlay is best, and nothing is sent."""


class RateAwareSteps(TrainingLoop):
    """The steps after the epochs, with the same student, examples and optimiser."""

    unit, title = "segment", "rate-aware segment"
    num_segments = NUM_SEGMENTS

    def __init__(self, trainer: Trainer, epochs: Epochs, base: Mapping[str, np.ndarray]) -> None:
        """Begins at the best state of the epochs. Args: base: the mirror's overlay."""
        settings = trainer.settings
        checkpoint = None
        if settings.work is not None and epochs.checkpoint is not None:
            identity = [settings.rate_aware, settings.bits, LR_SHARE, NUM_SEGMENTS]
            checkpoint = Checkpoint(settings.work, [epochs.checkpoint.key, "rate-aware", *identity])
        trainer.overlay.values.copy_(epochs.best_P)
        super().__init__(trainer, checkpoint, ("loss", "answer", "held_out", "bits"))
        self.base_P = trainer.overlay.laid_out(base)
        self.num_steps, self.lr = settings.rate_aware, LR_SHARE * trainer.lr
        self.first_epoch = trainer.num_epochs
        self._unquantised = epochs.best
        self._ratio = 1.0
        if self._resume():
            return
        self.results["best"] = self._evaluate()
        with trainer.overlay.holding(self.base_P):
            mirror = trainer.evaluate()
        if mirror.cross_entropy < self.best.cross_entropy:
            self._keep(mirror, MIRROR, self.base_P)

    def quantiser(self) -> RateAware:
        """The quantiser with which the best state is to be coded."""
        step = self._quantiser_step(self.best_P)
        return RateAware(float(step), self._bits(self.best_P, step), self.num_steps)

    def report(self) -> dict[str, Any]:
        """These steps' part of the adaptation's header."""
        before = self._unquantised
        return {
            **vars(self.quantiser()),
            "target_bits": self.trainer.settings.bits,
            "lr": self.lr,
            "best_segment": self.best_at,
            "segments": NUM_SEGMENTS,
            "unquantised_cross_entropy": before.cross_entropy if len(before) else None,
            "curves": self.rounded_curves(),
        }

    def _train_segment(self, advance: Callable[[str], None]) -> dict[str, float]:
        latent_P = self.trainer.overlay.values
        self._ratio = float(self._quantiser_step(latent_P)) / (self._rms(latent_P) or 1.0)
        means = super()._train_segment(advance)
        if not latent_P.isfinite().all():
            raise self.trainer.diverged(f"in {self.title} {self.done + 1}")
        if means:
            self.curves["loss"].append(means["loss"])
            self.curves["answer"].append(means.get("ce", 0.0))
        return means

    def _step(self, batch: Sequence[int], lr: float, number: int) -> tuple[Tensor, Tensor]:
        latent_P = self.trainer.overlay.values
        # Without a change yet, any step gives the same.
        step = self._ratio * self._rms(latent_P) or 1.0
        return self.trainer.step(batch, lr, seen(latent_P, self.base_P, step))

    def _evaluate(self) -> HeldOutResult:
        """The present state as it would be decoded."""
        trainer = self.trainer
        latent_P = trainer.overlay.values
        step = self._quantiser_step(latent_P)
        with trainer.overlay.holding(seen(latent_P, self.base_P, float(step))):
            held = trainer.evaluate()
        self.curves["bits"].append(self._bits(latent_P, step))
        return self._note(held)

    def _rms(self, latent_P: Tensor) -> float:
        return float((latent_P - self.base_P).double().square().mean().sqrt())

    def _quantiser_step(self, latent_P: Tensor) -> np.float32:
        return uniform.step_for_bits(self._delta(latent_P), self.trainer.settings.bits)

    def _bits(self, latent_P: Tensor, step: np.float32) -> float:
        return uniform.entropy_bits(uniform.quantize(self._delta(latent_P), float(step)))

    def _delta(self, latent_P: Tensor) -> np.ndarray:
        return (latent_P - self.base_P).cpu().numpy()


def seen(latent_P: Tensor, base_P: Tensor, step: float) -> Tensor:
    """base + restore(quantize(latent - base, step), step), with the bits of `uniform`."""
    # A tensor on the device: CUDA divides by a Python number as by its reciprocal.
    exact = torch.tensor(step, dtype=torch.float32, device=latent_P.device)
    # + 0: a code is a whole number, which has no negative zero.
    codes_P = torch.round((latent_P - base_P) / exact) + 0.0
    return base_P + codes_P * exact
