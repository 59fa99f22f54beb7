"""How sure an answer is, and how much a token depends on chance (Eq. 2, 3, 4).

Legend: B frames, M passes, N visual tokens, C channels.

**Equation 2**, stage 1. H_j = - sum_v p_jv log p_jv of each answer token j, in nats and float32, of
the model's own logits, is `models.decoding.step_entropy`: it is taken in the pass that chooses the
token, the end token's included. `summarise` makes one figure of them.

**Equations 3 and 4**, stage 2. The frame goes through the frozen trunk of the vision tower once.
Its last blocks then run M + 1 times as one batch: once as they are, which gives the tokens that are
sent, and M times with dropout on the output of each attention and each MLP. F_m, the tokens of pass
m, differ; their variance says how much a token depends on single units.

**Why not on the encoded tokens themselves.** Stock checkpoints have no dropout in the tower, and
the nearest reading of 'dropout on the encoded multimodal input' would drop channels of the finished
tokens x. With inverted dropout each channel is then x / (1 - p) or 0, so that

    var_m(x d / (1 - p)) = x^2 p / (1 - p),      sigma^2 = p / (1 - p) * mean_c x_c^2

exactly: a constant times the mean square of the token, which needs no passes and knows nothing of
uncertainty. `selection.token_norm` is that ranking, and `by` norm offers it for comparison.

Masks are drawn on the CPU from a generator of the frame's own, keyed by the seed and the frame's
id, so neither the batch size, nor the order, nor the machine changes them.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cdcca_cli.errors import BadData
from cdcca_cli.models import LoadedModel


def summarise(entropies_N: Sequence[float]) -> dict[str, float]:
    """One figure for an answer of N >= 1 tokens, by each name of ENTROPIES, in nats.

    `mean` does not grow with the length of the answer, `sum` (Eq. 2 as printed) does; `max` is the
    least sure token, `first` the first one.
    """
    total = math.fsum(entropies_N)
    return {
        "mean": total / len(entropies_N),
        "sum": total,
        "max": max(entropies_N),
        "first": entropies_N[0],
    }


def pass_variance(tokens_MNC: Tensor) -> Tensor:
    """Variance of each token over the passes, meaned over its channels (Eq. 4).

    sigma^2_n = 1/C sum_c 1/M sum_m (F_mnc - mean_m F_nc)^2

    Args: tokens_MNC: (M, N, C), the passes.
    Returns: (N,), float32, in squares of the tokens' own unit; 0 for M = 1.
    """
    return tokens_MNC.float().var(0, correction=0).mean(-1)


def frame_generator(seed: int, frame: str) -> np.random.Generator:
    """The random numbers of one frame: the same in any batch, order and machine."""
    key = hashlib.sha256(f"{seed}\n{frame}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


@contextmanager
def injected_dropout(
    modules: list[nn.Module], rate: float, passes: int, generator: np.random.Generator
) -> Iterator[None]:
    """While open, rows 1 to `passes` of each module's output go through inverted dropout.

    Row 0 is left as it is. A module may return a tensor (1 + passes, N, C) or a tuple that begins
    with one, as attentions do.
    """

    def drop(module: nn.Module, arguments: Any, output: Any) -> Any:
        tensor = output[0] if isinstance(output, tuple) else output
        drawn = generator.random((passes, *tensor.shape[1:]), dtype=np.float32)
        factor = torch.ones_like(tensor)
        factor[1:] = torch.from_numpy(drawn >= rate).to(factor) / (1 - rate)
        dropped = tensor * factor
        return (dropped, *output[1:]) if isinstance(output, tuple) else dropped

    handles = [module.register_forward_hook(drop) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def token_variance(
    model: LoadedModel,
    hidden_1NC: Tensor,
    frame: str,
    *,
    blocks: int,
    passes: int,
    rate: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """The clean tokens of one frame and their variance under dropout in the last blocks.

    Args:
        hidden_1NC: the trunk's output before block `model.num_blocks - blocks`.
        frame: its id, which keys the masks.
    Returns: tokens (N, C) as the connector takes them; variance (N,), float32.
    Raises: BadData: no token varies, or a value is not finite.
    """
    modules = [module for pair in model.block_modules(blocks) for module in pair]
    batch = hidden_1NC.expand(1 + passes, *hidden_1NC.shape[1:])
    with injected_dropout(modules, rate, passes, frame_generator(seed, frame)):
        tokens_BNC = model.tail(batch, model.num_blocks - blocks)
    variance_N = pass_variance(tokens_BNC[1:])
    if not bool(torch.isfinite(variance_N).all()):
        raise BadData(f"{frame}: the vision tower gave values that are not finite")
    if not bool(variance_N.any()):
        raise BadData(
            f"{frame}: no token changed in {passes} passes with dropout {rate} in the last "
            f"{blocks} blocks of the vision tower, so there is nothing to choose by: "
            "raise `dropout`, `passes` or `blocks`, or choose `by` norm"
        )
    return tokens_BNC[0], variance_N
