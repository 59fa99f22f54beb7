"""Connectors that are not one module's call: from the tokens of places to their features.

Each takes the model in transformers and (K, C), and gives (K, D).
"""

from typing import Any


def gemma3(module: Any, cells_KC: Any) -> Any:
    """The mean of a place's tokens, normalised, times a matrix."""
    projector = module.model.multi_modal_projector
    return projector.mm_soft_emb_norm(cells_KC) @ projector.mm_input_projection_weight


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
