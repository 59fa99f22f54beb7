"""A checkpoint's processor without a video processor, and what it makes of one picture.

The references that tests compare against: everything here is transformers' own code.
"""

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

from PIL import Image

from tests.zoo.rows import Row


def processor(row: Row, folder: Path) -> Any:
    """The family's processor class on this folder's tokenizer and image processor.

    A video processor asks for torchvision and has none here; `num2words`, which writes the number
    of a video's frames and is asked for by SmolVLM's constructor, may be missing.
    """
    from transformers import AutoImageProcessor, AutoTokenizer

    home = row.home or row.name
    module = importlib.import_module(f"transformers.models.{home}.processing_{home}")
    if getattr(module, "num2words", True) is None:
        module.num2words = str
    family_class = getattr(module, row.processor)

    class Alone(family_class):  # type: ignore[misc, valid-type]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument is None:
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    parts = {
        "image_processor": AutoImageProcessor.from_pretrained(folder, backend="pil"),
        "tokenizer": AutoTokenizer.from_pretrained(folder),
    }
    settings = json.loads((folder / "processor_config.json").read_text())
    settings.pop("processor_class")
    wanted = inspect.signature(family_class.__init__).parameters
    absent = {name: None for name in ("video_processor", "feature_extractor") if name in wanted}
    return Alone(**parts, **absent, **settings)


def inputs(processor: Any, picture: Image.Image) -> Any:
    """What the image processor makes of one picture, with the processor's settings for pictures."""
    settings = getattr(processor, "images_kwargs", None) or {}
    return processor.image_processor([picture], return_tensors="pt", **settings)


def accepted(model: Any, inputs: Any) -> dict[str, Any]:
    """The inputs that `get_image_features` takes."""
    names = inspect.signature(model.get_image_features).parameters
    return {name: value for name, value in inputs.items() if name in names}


def num_features(found: Any) -> int:
    """Rows of what goes into the prompt, over all tiles of a picture."""
    rows = found.pooler_output
    return sum(part.numel() // part.shape[-1] for part in rows)


def logits(model: Any, processor: Any, picture: Image.Image, question: str) -> Any:
    """Next-token logits (V,) after the picture and the question, from pixels."""
    import torch

    made = inputs(processor, picture)
    text = processor.replace_image_token(made, 0) + question
    ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
    taken = {name: value for name, value in made.items() if name in _forward_names(model)}
    types = torch.zeros_like(ids)
    types[ids == model.config.image_token_id] = 1
    names = {"token_type_ids", "mm_token_type_ids"} & _forward_names(model)
    with torch.no_grad():
        return model(input_ids=ids, **taken, **dict.fromkeys(names, types)).logits[0, -1]


def _forward_names(model: Any) -> set[str]:
    return set(inspect.signature(model.forward).parameters)
