"""Processors that transformers has, but not for a picture's text alone.

Each function makes the class, since transformers is imported late.
"""

from typing import Any


def idefics2() -> Any:
    """Its own class, which writes a picture's text only into a whole prompt."""
    from transformers import Idefics2Processor

    class Idefics2(Idefics2Processor):
        def replace_image_token(self, image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
            mark = self.fake_image_token
            return f"{mark}{self.image_token * self.image_seq_len}{mark} "

    return Idefics2


def pixtral() -> Any:
    """As its own class, which cannot be imported without torchvision."""
    from transformers import ProcessorMixin

    class Pixtral(ProcessorMixin):
        def __init__(
            self,
            image_processor: Any = None,
            tokenizer: Any = None,
            patch_size: int = 16,
            spatial_merge_size: int = 1,
            chat_template: Any = None,
            image_token: str = "[IMG]",
            image_break_token: str = "[IMG_BREAK]",
            image_end_token: str = "[IMG_END]",
        ) -> None:
            super().__init__(image_processor, tokenizer, chat_template=chat_template)
            self.patch_size, self.side = patch_size, patch_size * spatial_merge_size
            self.image_token, self.image_break_token = image_token, image_break_token
            self.image_end_token = image_end_token

        def _process_images(self, images: Any, **settings: Any) -> Any:
            return super()._process_images(images, **{**settings, "patch_size": self.side})

        def replace_image_token(self, image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
            """Rows of image tokens with a break between two, the end mark behind the last."""
            height, width = image_inputs["image_sizes"][image_idx]
            row = self.image_token * int(width // self.side)
            rows = [row] * int(height // self.side)
            return self.image_break_token.join(rows) + self.image_end_token

    return Pixtral


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
