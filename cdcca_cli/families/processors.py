"""Processors that transformers has, but not for a picture's text alone.

Each function makes the class, since transformers is imported late.
"""

from typing import Any


def lfm2_vl() -> Any:
    """Its own class, with the marks around tiles that its call adds."""
    from transformers import Lfm2VlProcessor

    class Lfm2Vl(Lfm2VlProcessor):
        def _process_images(self, images: Any, **settings: Any) -> Any:
            marked = {"use_image_special_tokens": self.use_image_special_tokens}
            return super()._process_images(images, **{**marked, **settings})

    return Lfm2Vl


def minicpmv() -> Any:
    """Its own class, with the number of a picture that its call writes before it."""
    from transformers import MiniCPMV4_6Processor

    class MiniCPMV(MiniCPMV4_6Processor):
        def _process_images(self, images: Any, **settings: Any) -> Any:
            made, texts = super()._process_images(images, **settings)
            if self.default_use_image_id:
                start, end = self.image_id_start_token, self.image_id_end_token
                texts = [f"{start}{place}{end}{text}" for place, text in enumerate(texts)]
            return made, texts

    return MiniCPMV
