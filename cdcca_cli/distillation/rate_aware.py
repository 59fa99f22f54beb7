"""The last steps through the quantiser: the overlay learns to be what few bits can say of it.

    seen = base + restore(quantize(latent - base, step), step)         (`formats.uniform`)

Each step's forward and backward see `seen`, the gradient there goes straight through to `latent`
(Bengio et al. 2013), and Adam, its moments kept from the epochs before, moves that. The base is the
mirror's overlay, against which the update will be taken.

The quantiser's step is the finest at which the change costs the bits asked for. The change goes on
growing while it is trained (a step held fixed ended at 1.38 bits for 1.2), so the step follows it:
within a leg in proportion to the change's root mean square, and at each leg's end it is found anew
from the bits. So the result costs what was asked for.

The steps go in LEGS, judged after each on the held-out part through the quantiser, and before the
first. The best such state is the result; the mirror's own overlay is among them, so the device gets
nothing worse than it has. What is written is the latent: quantised at the step that is written with
it, it is, code for code, what was judged.

With a work folder the state after each leg is kept, like an epoch's (`state`).

Shapes: P parameters laid end to end.
Does not code: how many bytes the codes take is the downlink's business.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdcca_cli import progress, streams
from cdcca_cli.distillation import processes, state
from cdcca_cli.distillation.held_out import Judgement
from cdcca_cli.distillation.run import CLIP_NORM, Run, schedule
from cdcca_cli.formats import records
from cdcca_cli.formats.adaptation import RateAware
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.numerics import uniform

LR_SHARE = 0.5
"""Of the epochs' step size, at the highest."""
LEGS = 5
MIRROR = -1
"""The 'leg' whose state is the mirror's own overlay: nothing is sent."""


@dataclass
class _Curves:
    """Means over each leg; held_out and bits begin before the first."""

    loss: list[float] = field(default_factory=list)
    answer: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    bits: list[float] = field(default_factory=list)


class RateAwareSteps:
    """What follows the epochs of a `Run`, on its models, examples and optimiser."""

    def __init__(self, run: Run, base: Mapping[str, np.ndarray]) -> None:
        """Args: base: the mirror's overlay."""
        self.run = run
        self.base_P = run.overlay.laid_out(base)
        self.latent_P = run.best_P.clone()
        self.best_P = self.latent_P.clone()
        self.num_steps = run.settings.rate_aware
        self.curves = _Curves()
        self.leg = self.best_leg = 0
        self.path: Path | None = None
        if run.settings.work is not None:
            said = [run.key, "rate-aware", self.num_steps, run.settings.bits, LR_SHARE, LEGS]
            text = np.frombuffer(records.dump_json(said).encode(), np.uint8)
            self.key = overlay_digest({"key": text})
            self.path = state.path_of(run.settings.work, self.key)

    def train(self) -> None:
        """All legs that are still to do; call it in the student's training mode."""
        if not self._restore():
            self._begin()
        ends = [round(self.num_steps * leg / LEGS) for leg in range(LEGS + 1)]
        while self.leg < LEGS:
            self._train_leg(ends[self.leg], ends[self.leg + 1])
            self._judge()
            self._save()

    def quantiser(self) -> RateAware:
        """What the written state is to be coded with."""
        step = self._step_for(self.best_P)
        bits = self._bits(self.best_P, step)
        return RateAware(step=float(step), bits=bits, num_steps=self.num_steps)

    def report(self) -> dict[str, Any]:
        """What the adaptation's header says of these steps."""
        best = self.run.best
        return {
            **vars(self.quantiser()),
            "target_bits": self.run.settings.bits,
            "lr": LR_SHARE * self.run.lr,
            "best_leg": self.best_leg,
            "legs": LEGS,
            "unquantised_cross_entropy": best.cross_entropy if len(best) else None,
            "curves": {
                name: [round(value, 6) for value in values]
                for name, values in asdict(self.curves).items()
            },
        }

    # ---- steps

    def _train_leg(self, begin: int, end: int) -> None:
        """Steps number `begin` to `end` - 1."""
        run = self.run
        endless = chain.from_iterable(run.batches(epoch) for epoch in count(run.settings.epochs))
        batches = list(islice(endless, begin, end))
        sums, num_examples = torch.zeros(1 + len(run.terms), dtype=torch.float64), 0
        title = f"rate-aware steps to {end} of {self.num_steps}"
        ratio = float(self._step_for(self.latent_P)) / (self._rms(self.latent_P) or 1.0)
        for number, batch in enumerate(progress.track(batches, description=title), begin):
            # Where nothing has changed yet, any step sees nothing.
            self._show(self.latent_P, ratio * self._rms(self.latent_P) or 1.0)
            means = run.backward(batch)
            sums += means.double() * len(batch)
            num_examples += len(batch)
            run.overlay.values.copy_(self.latent_P)
            lr = LR_SHARE * run.lr * schedule(number, self.num_steps)
            norm = run.adam.step(lr, CLIP_NORM)
            self.latent_P.copy_(run.overlay.values)
            named = dict(zip(("loss", *run.terms), means.tolist(), strict=True))
            at = {"leg": self.leg + 1}
            run.log.step(number + 1, self.num_steps, at, lr, named, norm, len(batch))
        when = f"in the rate-aware steps {begin + 1} to {end}"
        if not self.latent_P.isfinite().all():
            raise run.diverged(when)
        if batches:
            of_leg = dict(run.means(sums, num_examples, when))
            self.curves.loss.append(of_leg["loss"])
            self.curves.answer.append(of_leg.get("ce", 0.0))
        self.leg += 1

    def _show(self, latent_P: Tensor, step: float) -> None:
        """Give the student the overlay that a device would have."""
        self.run.overlay.values.copy_(seen(latent_P, self.base_P, step))

    def _rms(self, latent_P: Tensor) -> float:
        """The root of the mean square of the change."""
        return float((latent_P - self.base_P).double().square().mean().sqrt())

    def _step_for(self, latent_P: Tensor) -> np.float32:
        """The finest step at which the change costs the bits asked for."""
        return uniform.step_for_bits(self._delta(latent_P), self.run.settings.bits)

    def _bits(self, latent_P: Tensor, step: np.float32) -> float:
        return uniform.entropy_bits(uniform.quantize(self._delta(latent_P), float(step)))

    def _delta(self, latent_P: Tensor) -> np.ndarray:
        return (latent_P - self.base_P).cpu().numpy()

    # ---- which state is best

    def _begin(self) -> None:
        """Judge the mirror's own overlay, and the epochs' result as it would be decoded."""
        run = self.run
        run.overlay.values.copy_(self.base_P)
        mirror = run.examine()
        self.best = self._examined()
        if mirror.cross_entropy < self.best.cross_entropy:
            self._keep(mirror, MIRROR, self.base_P)

    def _judge(self) -> None:
        held = self._examined()
        if not len(held) or held.cross_entropy < self.best.cross_entropy:
            self._keep(held, self.leg, self.latent_P)

    def _keep(self, held: Judgement, leg: int, latent_P: Tensor) -> None:
        self.best, self.best_leg = held, leg
        self.best_P.copy_(latent_P)

    def _examined(self) -> Judgement:
        """What the present state is worth as it would be decoded; noted in the curves."""
        step = self._step_for(self.latent_P)
        self._show(self.latent_P, float(step))
        held = self.run.examine()
        self.curves.bits.append(self._bits(self.latent_P, step))
        if len(held):
            self.curves.held_out.append(held.cross_entropy)
            self.run.log.judged({"leg": self.leg}, held)
        return held

    # ---- on disk

    def _save(self) -> None:
        if self.path is None or not processes.is_first():
            return
        arrays = {name: tensor.cpu().numpy() for name, tensor in self._tensors().items()}
        arrays |= state.judged(best=self.best)
        steps, curves = self.run.adam.steps, asdict(self.curves)
        state.save(self.path, self.key, state.State(self.leg, self.best_leg, steps, curves, arrays))

    def _restore(self) -> bool:
        if self.path is None:
            return False
        shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors().items()}
        shapes |= state.judged_shapes(len(self.run.lessons.held_out), "best")
        kept = state.restore(self.path, self.key, shapes)
        if kept is None:
            return False
        for name, tensor in self._tensors().items():
            tensor.copy_(torch.from_numpy(kept.arrays[name]))
        self.run.adam.steps = kept.steps
        self.best = kept.judgement("best")
        self.leg, self.best_leg = kept.epoch, kept.best_epoch
        self.curves = _Curves(**kept.curves)
        streams.message(f"going on after rate-aware leg {self.leg} of {LEGS}")
        return True

    def _tensors(self) -> dict[str, Tensor]:
        return {"best": self.best_P} | self.run.adam_tensors(self.latent_P)


def seen(latent_P: Tensor, base_P: Tensor, step: float) -> Tensor:
    """base + restore(quantize(latent - base, step), step), bit for bit as `uniform` has it."""
    # A tensor on the device: by a mere number torch divides as by its reciprocal on CUDA.
    exact = torch.tensor(step, dtype=torch.float32, device=latent_P.device)
    # + 0: a code is a whole number, which has no negative zero.
    codes_P = torch.round((latent_P - base_P) / exact) + 0.0
    return base_P + codes_P * exact
