"""The uncertainty of answers and of visual tokens (Eq. 2, 3, 4).

Equation 2, stage 1: `models.decoding.step_entropy` gives the entropy of each answer token, the end
token included; `entropies.summarise` combines them.

Equations 3 and 4, stage 2: the frame goes through the frozen trunk of the vision tower once. The
last blocks then run M + 1 times as one batch: once without dropout, which gives the tokens to send,
and M times with dropout on the output of each attention and each MLP (of each block, in towers of
convolutions), which gives the variance.

The other reading of the paper's 'dropout on the encoded multimodal input' is inverted dropout on
the finished tokens x. It is not used, because it gives the token's mean square times a constant,

    var_m(x d / (1 - p)) = x^2 p / (1 - p),      sigma^2 = p / (1 - p) * mean_c x_c^2,

by which `by` norm ranks (`token_rules.token_norm`).

Masks are drawn on the CPU, keyed by the seed and the frame's id, so that batch size, order and
machine do not change them.

Legend: B frames, M passes, N visual tokens, C channels.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cdcca_cli.errors import BadData
from cdcca_cli.formats.shard import Layout
from cdcca_cli.models import LoadedModel, Seen, Trunk


def pass_variance(tokens_MNC: Tensor) -> Tensor:
    """Variance of each token over the M passes, averaged over its channels (Eq. 4): (N,) float32.

    sigma^2_n = 1/C sum_c 1/M sum_m (F_mnc - mean_m F_nc)^2
    """
    return tokens_MNC.float().var(0, correction=0).mean(-1)


def frame_generator(seed: int, frame: str) -> np.random.Generator:
    """The random numbers of one frame."""
    key = hashlib.sha256(f"{seed}\n{frame}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


@contextmanager
def injected_dropout(
    modules: list[nn.Module], rate: float, passes: int, generator: np.random.Generator
) -> Iterator[None]:
    """Inside, rows 1 to `passes` of each module's output, but not row 0, have inverted dropout.

    A module may return a tensor or a tuple that begins with one: the passes one after the other,
    however their tokens are laid out, channels last.
    """

    def drop(module: nn.Module, arguments: Any, output: Any) -> Any:
        tensor = output[0] if isinstance(output, tuple) else output
        by_pass = tensor.reshape(1 + passes, -1, tensor.shape[-1])
        drawn = generator.random((passes, *by_pass.shape[1:]), dtype=np.float32)
        factor = torch.ones_like(by_pass)
        factor[1:] = torch.from_numpy(drawn >= rate).to(factor) / (1 - rate)
        dropped = (by_pass * factor).reshape(tensor.shape)
        return (dropped, *output[1:]) if isinstance(output, tuple) else dropped

    handles = [module.register_forward_hook(drop) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def dropout_tokens(
    model: LoadedModel,
    trunk: Trunk,
    frame: str,
    *,
    blocks: int,
    passes: int,
    rate: float,
    seed: int,
) -> tuple[Tensor, Layout]:
    """The tokens of one frame, (1 + M, N, C): without dropout, then with each of M masks.

    Args: trunk: of this frame, before these blocks. frame: its id, which keys the masks.
    """
    modules = model.block_modules(blocks)
    with injected_dropout(modules, rate, passes, frame_generator(seed, frame)):
        return model.tail(trunk, 1 + passes)


@torch.no_grad()
def token_variance(
    model: LoadedModel,
    trunk: Trunk,
    frame: str,
    *,
    blocks: int,
    passes: int,
    rate: float,
    seed: int,
) -> tuple[Seen, Tensor]:
    """The tokens of one frame and their variance under dropout in the last blocks.

    Args: as `dropout_tokens`.
    Returns: tokens (N, C) without dropout; variance (N,), float32, 0 where there is no content.
    Raises: BadData: no token varies, or a value is not finite.
    """
    tokens_BNC, layout = dropout_tokens(
        model, trunk, frame, blocks=blocks, passes=passes, rate=rate, seed=seed
    )
    variance_N = pass_variance(tokens_BNC[1:])
    if not bool(torch.isfinite(variance_N).all()):
        raise BadData(f"{frame}: the vision tower gave values that are not finite")
    if not bool(variance_N.any()):
        raise BadData(
            f"{frame}: no token changed in {passes} passes with dropout {rate} in the last "
            f"{blocks} blocks of the vision tower, so tokens cannot be ranked: raise `dropout`, "
            "`passes` or `blocks`, or use `by` norm"
        )
    return Seen(tokens_BNC[0], layout), variance_N
