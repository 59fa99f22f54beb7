"""What cdcca sets otherwise in a checkpoint, so that each visual token is one of its own.

Each function takes the model's config and the image processor, and changes both.
"""

from typing import Any

_SCALED_FROM = 1.1
"""LLaVA-OneVision scales features down from this multiple of the largest side."""


def llava_onevision(config: Any, image_processor: Any) -> None:
    """Fewer tiles: of more than about nine, the model would scale the features down.

    A feature would then be a mixture of several of the connector's. With at most as many tiles as
    it keeps features of, it never does so, and the tower runs less often.
    """
    most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    area = most * config.vision_config.image_size**2 * _SCALED_FROM**2
    kept = [list(size) for size in config.image_grid_pinpoints if size[0] * size[1] <= area]
    config.image_grid_pinpoints = image_processor.image_grid_pinpoints = kept


def idefics2(config: Any, image_processor: Any) -> None:
    """The picture as a whole, without its four quarters, which have latents of their own."""
    image_processor.do_image_splitting = False
