"""Connectors that are not one module's call: from the tokens of places to their features.

Each takes the model in transformers and (K, C), and gives (K, D).
"""

from typing import Any


def gemma3(module: Any, cells_KC: Any) -> Any:
    """The mean of a place's tokens, normalised, times a matrix."""
    projector = module.model.multi_modal_projector
    return projector.mm_soft_emb_norm(cells_KC) @ projector.mm_input_projection_weight
