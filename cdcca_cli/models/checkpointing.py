"""Gradient checkpointing: a layer keeps its input alone, and is computed again going backwards.

It goes through the door that transformers has for it, whose layers ask for training mode first.
Here everything stays in eval mode: there is no dropout, so the gradients are the same ones.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def layers_of(model: nn.Module) -> list[Any]:
    """The layers in `model` that transformers can checkpoint."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """A forward pass with gradients inside keeps the inputs of the layers, not what is in them."""
    layers = layers_of(model)
    for layer in layers:
        layer.gradient_checkpointing = layer.training = True
        layer._gradient_checkpointing_func = partial(_run, layer)
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = layer.training = False
            del layer._gradient_checkpointing_func


def _run(layer: nn.Module, forward: Callable[..., Any], *args: Any) -> Any:
    """What a layer in training mode calls: its own forward pass, which sees eval mode."""
    layer.training = False
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False)
