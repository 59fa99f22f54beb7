"""The attention that each visual token receives in the last vision block.

Recomputed in float32 from what the block's own projections gave, because the fused attention
kernels return no weights. Knows the two ways in which towers name these projections.

Legend: B batch, N' tokens inside the tower, N visual tokens, H heads, D channels of a head.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cdcca_cli.errors import SettingError
from cdcca_cli.models.pictures import Seen

if TYPE_CHECKING:
    from cdcca_cli.models.model import LoadedModel, Trunk


@torch.no_grad()
def received(model: "LoadedModel", trunk: "Trunk") -> tuple[Seen, Tensor]:
    """What `tail` makes of a frame, and the attention that each token received, (N,) float32.

        received_n = mean over heads h and patches q of softmax_n(q_hq . k_hn / sqrt(D))

    The softmax is over all N' tokens; the class token's own query is left out, and the weights of
    a class token that is no visual token.
    Raises: SettingError for a tower without a list of plain attentions, or where a visual token is
        not one of the tower's.
    """
    attention: Any = model.block_modules(1)[0] if model.num_blocks else None
    fused = hasattr(attention, "qkv")  # one linear: queries, keys, values in this order
    if not fused and not hasattr(attention, "q_proj"):
        raise _refused(model)
    projections = [attention.qkv] if fused else [attention.q_proj, attention.k_proj]
    seen: dict[Any, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda module, _args, output: seen.update({module: output}))
        for module in projections
    ]
    try:
        tokens_1NC, layout = model.tail(trunk)
    finally:
        for handle in handles:
            handle.remove()
    joined = torch.cat([seen[module] for module in projections], dim=-1).float()
    num_patches = math.prod(layout.grid) if layout.grid else 0
    num_tokens = tokens_1NC.shape[1]
    is_plain = joined.ndim == 3 and len(joined) == 1 and hasattr(attention, "scale")
    if not is_plain or not 0 <= joined.shape[1] - num_patches <= 1 or num_tokens < num_patches:
        raise _refused(model)
    count = joined.shape[1]
    width = attention.num_heads * attention.head_dim
    queries, keys = (
        part.view(1, count, attention.num_heads, attention.head_dim).transpose(1, 2)
        for part in (joined[..., :width], joined[..., width : 2 * width])
    )
    patches = queries[:, :, count - num_patches :]
    weights_1HQN = (patches @ keys.transpose(2, 3) * attention.scale).softmax(-1)
    received_N = weights_1HQN.mean((1, 2))[0, count - num_tokens :]
    return Seen(tokens_1NC[0], layout), received_N


def _refused(model: "LoadedModel") -> SettingError:
    reason = f"needs one visual token for each of the tower's, which {model.family} does not have"
    return SettingError("by", reason, "received")
