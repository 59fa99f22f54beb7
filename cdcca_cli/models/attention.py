"""The attention that each visual token receives in the last vision block.

Recomputed in float32 from what the block's own projections gave, because the fused attention
kernels return no weights. Knows the two ways in which towers name these projections.

Legend: B batch, N' tokens inside the tower, N visual tokens, H heads, D channels of a head.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from cdcca_cli.models.model import LoadedModel


@torch.no_grad()
def received(model: "LoadedModel", hidden_BNC: Tensor, first_block: int) -> tuple[Tensor, Tensor]:
    """Visual tokens (B, N, C) as `tail` gives them, and the attention received, (B, N) float32.

        received_n = mean over heads h and patches q of softmax_n(q_hq . k_hn / sqrt(D))

    The softmax is over all N' tokens; the class token's own query is left out, and the weights of
    a class token that is no visual token. `first_block` is below `num_blocks`.
    """
    attention: Any = model.block_modules(1)[0][0]
    fused = hasattr(attention, "qkv")  # one linear: queries, keys, values in this order
    projections = [attention.qkv] if fused else [attention.q_proj, attention.k_proj]
    seen: dict[Any, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda module, _args, output: seen.update({module: output}))
        for module in projections
    ]
    try:
        tokens_BNC = model.tail(hidden_BNC, first_block)
    finally:
        for handle in handles:
            handle.remove()
    joined = torch.cat([seen[module] for module in projections], dim=-1).float()
    batch, count = joined.shape[:2]
    width = attention.num_heads * attention.head_dim
    queries, keys = (
        part.view(batch, count, attention.num_heads, attention.head_dim).transpose(1, 2)
        for part in (joined[..., :width], joined[..., width : 2 * width])
    )
    rows, columns = model.grid
    patches = queries[:, :, count - rows * columns :]
    weights_BHQN = (patches @ keys.transpose(2, 3) * attention.scale).softmax(-1)
    return tokens_BNC, weights_BHQN.mean((1, 2))[:, count - tokens_BNC.shape[1] :]
