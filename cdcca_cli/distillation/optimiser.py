"""What is trained, and how: the trained part of the overlay, Adam, the schedule.

The trained parameters are views into one flat float32 tensor, so that a step, clipping and a copy
of the best state are a few operations, however many parameters there are.

Shapes: P parameters laid end to end.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from cdcca_cli.errors import UsageError
from cdcca_cli.formats.names import LORA_A, LORA_ATTENTION, LORA_B, split_groups
from cdcca_cli.models import LoadedModel

BETAS = (0.9, 0.98)
WARMUP = 0.05


class Flat:
    """Parameters laid end to end in one tensor, in the order of their names.

    values, gradient: (P,) float32; each parameter and its gradient are views of them.
    """

    def __init__(self, named: Mapping[str, nn.Parameter]) -> None:
        self._shapes = {name: named[name].shape for name in sorted(named)}
        parts = [named[name].detach().reshape(-1) for name in self._shapes]
        self.values = torch.cat(parts) if parts else torch.zeros(0)
        self.gradient = torch.zeros_like(self.values)
        values, gradients = self._split(self.values), self._split(self.gradient)
        for name, parameter in named.items():
            parameter.data, parameter.grad = values[name], gradients[name]

    def __len__(self) -> int:
        return self.values.numel()

    @property
    def names(self) -> list[str]:
        """In their order in `values`."""
        return list(self._shapes)

    def clear(self) -> None:
        """Set the gradients to zero."""
        self.gradient.zero_()

    @contextmanager
    def holding(self, values_P: Tensor) -> Iterator[None]:
        """The parameters have these values inside, and their own again afterwards."""
        own_P = self.values.clone()
        self.values.copy_(values_P)
        try:
            yield
        finally:
            self.values.copy_(own_P)

    def arrays(self, values_P: Tensor) -> dict[str, np.ndarray]:
        """Float32 arrays by name, from values laid end to end."""
        views = self._split(values_P.cpu())
        return {name: view.numpy().copy() for name, view in views.items()}

    def laid_out(self, arrays: Mapping[str, np.ndarray]) -> Tensor:
        """Arrays by name, end to end as `values` is, on its device."""
        parts = [torch.from_numpy(np.asarray(arrays[name])).reshape(-1) for name in self._shapes]
        return torch.cat(parts).to(self.values.device) if parts else torch.zeros(0)

    def _split(self, values_P: Tensor) -> dict[str, Tensor]:
        parts = values_P.split([shape.numel() for shape in self._shapes.values()])
        named = zip(self._shapes.items(), parts, strict=True)
        return {name: part.view(shape) for (name, shape), part in named}


def adam(flats: Sequence[Flat]) -> torch.optim.Adam:
    """Adam on flat parameters, its state made before the first step, to be saved and restored.

    There is no weight decay: it would pull norms and biases away from what the frozen model
    expects, and every parameter that moves costs downlink.
    """
    optimiser = torch.optim.Adam([flat.values for flat in flats], betas=BETAS)
    for flat in flats:
        flat.values.grad = flat.gradient
        optimiser.state[flat.values] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(flat.values),
            "exp_avg_sq": torch.zeros_like(flat.values),
        }
    return optimiser


def open_overlay(
    student: LoadedModel,
    overlay: Mapping[str, np.ndarray],
    alpha: float,
    groups: Sequence[str] | None = None,
) -> Flat:
    """Put `overlay` on the student; only its parameters of `groups` (None: all) require gradients.

    Raises: UsageError if the overlay has no parameter of these groups.
    """
    student.freeze()
    student.install_overlay(overlay, alpha)
    named = student.trainable()
    if groups is not None:
        of_group = student.trainable_groups()  # LoRA's are the linears
        wanted = {name for group in split_groups(groups) for name in of_group[group]}
        if LORA_ATTENTION in groups:
            wanted.update(student.attention_linears())
        for name in list(named):
            if name.removesuffix(LORA_A).removesuffix(LORA_B) not in wanted:
                named.pop(name).requires_grad_(False)
        if not named:
            raise UsageError(
                f"the student's overlay has nothing of {', '.join(groups)}: make it with these "
                "`groups` (cdcca init), or give other groups to `train`"
            )
    return Flat(named)


def schedule(done: int, total: int) -> float:
    """The share of the learning rate after `done` of `total` steps: linear warmup, cosine decay."""
    warmup = max(1, round(WARMUP * total))
    if done < warmup:
        return (done + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (total - warmup + 1)))
