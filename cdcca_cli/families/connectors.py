"""Connectors that are not one module's call: from the tokens of places to their features.

Each takes the model in transformers and (K, C), and gives (K, D). `ovis2_indicators` gives what a
family's outputs hold beside the features.
"""

from typing import Any


def gemma3(module: Any, cells_KC: Any) -> Any:
    """The mean of a place's tokens, normalised, times a matrix."""
    projector = module.model.multi_modal_projector
    return projector.mm_soft_emb_norm(cells_KC) @ projector.mm_input_projection_weight


def mistral3(module: Any, cells_KC: Any) -> Any:
    """Each token normalised, the channels of a place's tokens merged, two linears."""
    projector = module.model.multi_modal_projector
    width = module.config.vision_config.hidden_size
    tokens_KNC = projector.norm(cells_KC.reshape(len(cells_KC), -1, width))
    merged = projector.patch_merger.merging_layer(tokens_KNC.transpose(1, 2).flatten(1))
    return projector.linear_2(projector.act(projector.linear_1(merged)))


def ovis2(module: Any, cells_KC: Any) -> Any:
    """The mean of visual words, by how probable each is for a place."""
    tower, table = module.model.vision_tower, module.model.visual_embeddings_table.weight
    words = tower.head_norm(tower.head_linear(cells_KC))
    if tower.config.tokenize_function == "softmax":
        weights = words.softmax(-1)
    else:
        weights = words == words.amax(-1, keepdim=True)
    return weights.to(table.dtype) @ table[: weights.shape[-1]]


def ovis2_indicators(module: Any) -> dict[str, Any]:
    """The features of the marks around a picture, the last words of the visual vocabulary."""
    count = module.model.vision_tower.num_visual_indicator_tokens
    return {"visual_indicator_features": module.model.visual_embeddings_table.weight[-count:]}


def gemma3n(module: Any, cells_KC: Any) -> Any:
    """The embedder of pictures, whose first argument is the ids of hard tokens."""
    return module.model.embed_vision(inputs_embeds=cells_KC)


def glm4v(module: Any, cells_KC: Any) -> Any:
    """A convolution over the tokens of a place, then a gated MLP."""
    visual = module.model.visual
    side = visual.spatial_merge_size
    maps_KCHW = cells_KC.reshape(len(cells_KC), -1, side, side)
    return visual.merger(visual.downsample(maps_KCHW).flatten(1))


def lfm2_vl(module: Any, cells_KC: Any) -> Any:
    """Each place a picture of its own, of as many tokens as are merged."""
    side = module.config.downsample_factor
    squares_KHWC = cells_KC.reshape(len(cells_KC), side, side, -1)
    return module.model.multi_modal_projector(squares_KHWC)
