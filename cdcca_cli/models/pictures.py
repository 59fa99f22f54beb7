"""A frame on its way into a prompt: what the tower takes of it, and what the tower made.

The processor classes of transformers know the text of a picture in a prompt, with the marks of its
tiles and rows. They are made here without their video processors, which need torchvision.

Shapes: N visual tokens, C channels.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from cdcca_cli.errors import BadData
from cdcca_cli.formats.shard import PLACES, Layout
from cdcca_cli.models import thin

if TYPE_CHECKING:
    from PIL.Image import Image


_REFUSALS = (ValueError, IndexError, KeyError, TypeError, ZeroDivisionError, RuntimeError)


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn what transformers raises for an odd picture into BadData: too small, long or thin.

    Args: what: the message's words before the reason. No lack of memory is taken for a refusal.
    """
    try:
        yield
    except _REFUSALS as error:
        words = " ".join(str(error).split())[:200]
        if isinstance(error, torch.OutOfMemoryError) or "alloc" in words:
            raise
        raise BadData(f"{what}: {words}") from error


@dataclass(frozen=True)
class Picture:
    """One frame as the tower takes it.

    inputs: the arguments of `get_image_features`, for this frame alone.
    marks: its text in a prompt, as in `Layout`; None if nobody knows it, so that it is as many
        image tokens as the tower makes.
    size: width and height of the frame.
    """

    inputs: dict[str, Tensor]
    marks: str | None = None
    size: tuple[int, int] | None = None

    @property
    def num_tokens(self) -> int | None:
        """N, if the text says it."""
        return Layout(marks=self.marks).num_places if self.marks else None


_MOST_VALUES, _MOST_PICTURES = 1 << 23, 16


def alike(pictures: Sequence[Picture]) -> Iterator[list[int]]:
    """The places of pictures that can go through a tower together, a bounded number at a time.

    They agree in their text and in all inputs but the values of their pixels.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, picture in enumerate(pictures):
        inputs = [
            (name, tuple(value.shape), None if value.is_floating_point() else _content(value))
            for name, value in picture.inputs.items()
        ]
        groups.setdefault((picture.marks, *inputs), []).append(place)
    for places in groups.values():
        values = sum(value.numel() for value in pictures[places[0]].inputs.values())
        size = min(max(1, _MOST_VALUES // max(1, values)), _MOST_PICTURES)
        yield from (places[start : start + size] for start in range(0, len(places), size))


def _content(value: Tensor) -> bytes:
    return hashlib.sha256(value.cpu().contiguous().numpy().tobytes()).digest()


@dataclass(frozen=True)
class Places:
    """How a picture lies in a prompt, without its tokens."""

    num_tokens: int
    layout: Layout


class Placed(Protocol):
    """What `splice` needs of a frame: how its tokens lie in the prompt."""

    @property
    def num_tokens(self) -> int: ...

    @property
    def layout(self) -> Layout: ...


@dataclass(frozen=True)
class Seen:
    """What the tower made of a frame. tokens: (N, C)."""

    tokens: Tensor
    layout: Layout

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens of several frames (B, N, C), zeros on the right, and which are real (B, N) bool."""
    counts_B = torch.tensor([len(row) for row in rows])
    mask_BN = torch.arange(int(counts_B.max())) < counts_B[:, None]
    tokens_BNC = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    return tokens_BNC, mask_BN.to(tokens_BNC.device)


def expanded(marks: str, image_token: str) -> str:
    """The picture's text with its image tokens."""
    return PLACES.sub(lambda found: image_token * int(found[1]), marks)


def shortened(text: str, image_token: str) -> str:
    """The picture's text with {64} in place of 64 image tokens."""
    runs = re.compile(f"(?:{re.escape(image_token)})+")
    return runs.sub(lambda found: f"{{{len(found[0]) // len(image_token)}}}", text)


class Preparer:
    """Makes `Picture`s with a checkpoint's own processors.

    mark: what the prompt has in place of a picture. image_token: what is repeated for its tokens.
    """

    def __init__(
        self, image_processor: Any, processor: Any, image_token: str, arguments: Sequence[str]
    ) -> None:
        """Args: processor: None if the checkpoint needs none. arguments: that the tower takes."""
        self.image_processor, self._processor = image_processor, processor
        self.image_token = image_token
        self.mark: str = getattr(processor, "image_token", None) or image_token
        self._arguments = set(arguments)
        self._settings: dict[str, Any] = {"return_tensors": "pt"}
        if processor is not None:
            merged = processor._merge_kwargs(
                tokenizer_init_kwargs=processor.tokenizer.init_kwargs, return_tensors="pt"
            )
            self._settings = merged["images_kwargs"]

    @property
    def has_one_size(self) -> bool:
        """Whether every frame becomes one picture of one size."""
        known = self.image_processor
        varies = (
            "do_image_splitting",
            "crop_to_patches",
            "do_pan_and_scan",
            "image_grid_pinpoints",
        )
        names = getattr(known, "model_input_names", ["pixel_values"])
        size = getattr(known, "size", None) or {}
        is_fixed = "height" in size or getattr(known, "do_center_crop", False)
        is_alone = [name for name in names if name in self._arguments] == ["pixel_values"]
        flags = [self._settings.get(name, getattr(known, name, None)) for name in varies]
        return bool(is_fixed and is_alone and not any(flags))

    def __call__(self, image: "Image", device: torch.device) -> Picture:
        """Raises: BadData for an image that the processor refuses, by its shape say."""
        size = image.size
        if thin.crops_centre(self.image_processor):
            image = thin.centre(image)
        image = image.convert("RGB")
        text = None
        with refusing(f"the image processor takes no picture of {image.width} x {image.height}"):
            if self._processor is None:
                made = self.image_processor(images=[image], **self._settings)
            else:
                made, (text,) = self._processor._process_images([image], **self._settings)
        inputs = {
            name: value.to(device)
            for name, value in made.items()
            if name in self._arguments and isinstance(value, Tensor)
        }
        marks = None if text is None else shortened(text, self.image_token)
        return Picture(inputs, marks, size)
