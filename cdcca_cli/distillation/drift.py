"""Drift: how far a student has moved from the one of sequence 0.

    drift = mean over questions of KL( student || source student ), in nats an answer token

over the whole vocabulary, with an answer's tokens given (`losses.forward_kl` with the student
first): on the anchors that are held out, if there are anchors, else on the held-out frames of the
target domain, with the teacher's answers. No label and no source frame is needed for the latter. It
goes with the loss on the source domain, over runs of one pair (`examples/tables/RESULTS.md`).

Shapes: P parameters laid end to end, B batch, A answer tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdcca_cli import streams
from cdcca_cli.distillation.dataset import Dataset
from cdcca_cli.distillation.losses import forward_kl
from cdcca_cli.distillation.optimiser import Flat
from cdcca_cli.distillation.settings import TRAINING_POSITIONS
from cdcca_cli.distillation.trainer import Trainer
from cdcca_cli.errors import SettingError
from cdcca_cli.formats.names import LORA_A
from cdcca_cli.models import LoadedModel
from cdcca_cli.models.encoding import encode, num_positions, passes

MOST = 64
"""Questions that it is measured on, spread evenly."""
PARTS = 16
"""A change that drifts too far is scaled back in steps of one part."""


class Measure:
    """Measures states of a student against that of sequence 0, on some examples of a dataset."""

    def __init__(self, student: LoadedModel, dataset: Dataset, numbers: list[int]) -> None:
        self._student, self._dataset, count = student, dataset, min(len(numbers), MOST)
        self.numbers = [numbers[place * len(numbers) // count] for place in range(count)]
        examples = [dataset.examples[number] for number in self.numbers]
        positions = [num_positions(student, example) for example in examples]
        # Passes no larger than those of training, so that they take no more memory.
        order = sorted(range(count), key=positions.__getitem__)
        runs = passes([positions[place] for place in order], MOST, TRAINING_POSITIONS)
        self._batches = [
            [self.numbers[place] for place in order[each.start : each.stop]] for each in runs
        ]

    @torch.no_grad()
    def measure(self, *states: Callable[[], AbstractContextManager[object]]) -> list[float]:
        """The drift of the student in each state, in nats an answer token; 0 at sequence 0.

        Args: states: give contexts in which the student has the state.
        """
        totals = [0.0] * len(states)
        for batch in self._batches:
            answer_BA = self._student.answer_ids([self._dataset.answers[n] for n in batch])
            with self._at_source():
                source_BAV = self._logits(batch, answer_BA)
            for place, state in enumerate(states):
                with state():
                    own_BAV = self._logits(batch, answer_BA)
                kl_B = forward_kl(own_BAV, source_BAV, answer_BA.to(own_BAV.device))
                totals[place] += float(kl_B.double().sum())
        return [total / len(self.numbers) for total in totals]

    @contextmanager
    def _at_source(self) -> Iterator[None]:
        """The whole overlay is that of sequence 0 inside, the parameters not trained included."""
        present = dict(self._student.module.named_parameters())
        source = self._student.source_overlay()
        own = {name: present[name].detach().clone() for name in source}
        for name, array in source.items():
            present[name].copy_(torch.from_numpy(array))
        try:
            yield
        finally:
            for name, value in own.items():
                present[name].copy_(value)

    def _logits(self, batch: list[int], answer_BA: Tensor) -> Tensor:
        encoded = encode(self._student, [self._dataset.examples[number] for number in batch])
        return self._student.forward(encoded.spliced, answer_BA).logits


class Drift(Measure):
    """The drift of what is trained, and a limit to it. where: `anchors` or `held_out`."""

    def __init__(
        self, student: LoadedModel, overlay: Flat, where: str, dataset: Dataset, numbers: list[int]
    ) -> None:
        """Args: overlay: what is trained. numbers: the examples of `dataset` to measure it on."""
        super().__init__(student, dataset, numbers)
        self.where, self._overlay = where, overlay

    def of(self, *overlays: Tensor) -> list[float]:
        """The drift of each overlay (P,)."""
        return self.measure(*(partial(self._overlay.holding, values_P) for values_P in overlays))

    def limited(
        self, start: Mapping[str, np.ndarray], values_P: Tensor, most: float | None
    ) -> tuple[Tensor, dict[str, Any]]:
        """As much of a change as does not drift further than `most`, and the report on it.

        The share that is kept is the largest number of parts, if the drift grows with it; nothing
        where the start has drifted too far already.

        Args: start: the overlay before training. values_P: after it. most: None: no limit.
        Returns: the overlay, and the adaptation's report `drift`.
        """
        start_P = self._overlay.laid_out(start)
        overlays = [values_P] if self._is_source(start) else [values_P, start_P]
        after, before = (*self.of(*overlays), 0.0)[:2]
        kept, kept_P = PARTS, values_P
        if most is not None and after > most:
            kept, kept_P, after, too_many = 0, start_P, before, PARTS
            while too_many - kept > 1:
                tried = (kept + too_many) // 2
                tried_P = torch.lerp(start_P, values_P, tried / PARTS)
                (found,) = self.of(tried_P)
                if found <= most:
                    kept, kept_P, after = tried, tried_P, found
                else:
                    too_many = tried
            streams.message(
                f"{kept / PARTS:.0%} of the change is written: more of it drifts further than "
                f"{most:g} nats a token from the student of sequence 0"
            )
        return kept_P, {
            "where": self.where,
            "num_asks": len(self.numbers),
            "before": before,
            "after": after,
            "share": kept / PARTS,
        }

    def _is_source(self, overlay: Mapping[str, np.ndarray]) -> bool:
        """Whether an overlay acts as that of sequence 0: a LoRA whose B is zero does, by any A."""
        source = self._student.source_overlay()
        return all(
            name.endswith(LORA_A) or np.array_equal(overlay[name], value)
            for name, value in source.items()
        )


def drift_of(trainer: Trainer) -> Drift | None:
    """The drift of what a trainer trains; None if there is nothing to measure it on.

    Raises: SettingError if `max_drift` is given then.
    """
    where, dataset, numbers = "held_out", trainer.dataset, trainer.dataset.held_out
    if trainer.anchors is not None:
        where, dataset = "anchors", trainer.anchors.dataset
        numbers = dataset.held_out or dataset.train
    if numbers:
        return Drift(trainer.student, trainer.overlay, where, dataset, numbers)
    if trainer.settings.max_drift is not None:
        raise SettingError("max_drift", "needs `anchors` or held-out frames to measure it on")
    return None
