"""LoRA by forward hooks, on plain and on quantised linears alike.

    y = W x + b + (alpha / rank) * B (A x),    A: (R, in),  B: (out, R)

This is what PEFT computes (no dropout, no rslora). A and B are registered on the linear itself, as
`<linear>.lora_A` and `<linear>.lora_B`. They are never merged, which would destroy a packed 4-bit
weight and round a 16-bit one differently on the two sides of the link.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def attach(linear: nn.Linear, a_RI: Tensor, b_OR: Tensor, alpha: float) -> None:
    """Put a LoRA on `linear` as float32 copies on its device, or set the present one."""
    device = linear.weight.device
    for name, value in (("lora_A", a_RI), ("lora_B", b_OR)):
        value = value.to(device=device, dtype=torch.float32)
        present = linear._parameters.get(name)
        if present is not None and present.shape == value.shape:
            with torch.no_grad():
                present.copy_(value)
        else:
            parameter = nn.Parameter(value.clone(), requires_grad=False)
            linear.register_parameter(name, parameter)
    scale = alpha / a_RI.shape[0]
    handle: Any = linear.__dict__.get("_lora_hook")
    if handle is not None:
        handle.remove()
    linear.__dict__["_lora_hook"] = linear.register_forward_hook(_hook(scale))


def _hook(scale: float) -> Any:
    def add(linear: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        low = functional.linear(args[0], linear.lora_A)  # type: ignore[arg-type]
        delta = functional.linear(low, linear.lora_B)  # type: ignore[arg-type]
        return output + delta.to(output.dtype) * scale

    return add
