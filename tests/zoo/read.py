"""A checkpoint's processor without a video processor, and what it makes of one picture.

The references that tests compare against: transformers' own classes do the work.
"""

import importlib
import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from PIL import Image

from tests.zoo.row import Row


def processor(row: Row, folder: Path) -> Any:
    """The family's processor class on this folder's tokenizer and image processor.

    Its video processor, which would need torchvision, and its sound processor are stand-ins:
    MiniCPM-V reads two settings of the first in its constructor. SmolVLM's constructor asks for
    the package `num2words`, which only the text of a video uses.
    """
    from transformers import AutoImageProcessor, AutoTokenizer

    module = _module(row.home or row.name)
    family_class = getattr(module, row.processor)

    class Pictures(family_class):  # type: ignore[misc, valid-type]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument is absent:
                return type(absent)
            return super().check_argument_for_proper_class(argument_name, argument)

    absent = SimpleNamespace(slice_mode=True, downsample_mode="16x", num_frames=1, fps=1)
    parts = {
        "image_processor": AutoImageProcessor.from_pretrained(folder, backend=row.backend),
        "tokenizer": AutoTokenizer.from_pretrained(folder),
    }
    settings = json.loads((folder / "processor_config.json").read_text())
    settings.pop("processor_class")
    wanted = inspect.signature(family_class.__init__).parameters
    for name in ("video_processor", "feature_extractor"):
        if name in wanted:
            parts[name] = absent
    with mock.patch.object(module, "num2words", str, create=True):
        return Pictures(**parts, **settings)


def _module(home: str) -> Any:
    """The module of a processor; Pixtral's imports a torchvision class for a function alone."""
    path = f"transformers.models.{home}."
    try:
        return importlib.import_module(f"{path}processing_{home}")
    except ModuleNotFoundError:
        pil = importlib.import_module(f"{path}image_processing_pil_{home}")
        with mock.patch.dict(sys.modules, {f"{path}image_processing_{home}": pil}):
            return importlib.import_module(f"{path}processing_{home}")


def prepared(row: Row, processor: Any, picture: Image.Image) -> tuple[Any, str]:
    """What the model is given for one picture, and the picture's text in the prompt.

    By the processor's own steps, since some classes pass more to them than the image processor's
    settings (Pixtral the side of a merged patch, MiniCPM-V the patches of a token).
    """
    merged = processor._merge_kwargs(tokenizer_init_kwargs=processor.tokenizer.init_kwargs)
    settings = {**merged["images_kwargs"], "return_tensors": "pt", **row.call}
    if row.name == "idefics2":  # expands the mark in `__call__`
        made = processor(text=processor.image_token, images=picture, return_tensors="pt")
        tokens = processor.tokenizer.convert_ids_to_tokens(made.pop("input_ids")[0])
        return made, "".join(tokens[1:])
    made, (text,) = processor._process_images([picture], **settings)
    if getattr(processor, "default_use_image_id", False):  # MiniCPM-V's `__call__` numbers them
        text = f"{processor.image_id_start_token}0{processor.image_id_end_token}{text}"
    return made, text


def features(model: Any, made: Any) -> torch.Tensor:
    """What goes into the prompt for one picture (N, D), all its tiles one after another."""
    model = model.model  # some outer classes have no such method, or one of *args
    names = inspect.signature(model.get_image_features).parameters
    taken = {name: value for name, value in made.items() if name in names}
    with torch.no_grad():
        found = model.get_image_features(**taken, return_dict=True)
    if found.pooler_output is None:  # Granite: only features for deeper layers
        return torch.cat(list(found.deepstack_features[0][1]))
    return torch.cat([part.flatten(0, -2) for part in found.pooler_output])


def arguments(row: Row, model: Any, processor: Any, made: Any, ids: Any) -> dict[str, Any]:
    """What the model's forward and `generate` take for a prompt (1, S) and its picture."""
    names = set(inspect.signature(model.forward).parameters)
    taken = {name: value for name, value in made.items() if name in names}
    types = (ids == processor.tokenizer.convert_tokens_to_ids(row.image)).long()
    for name in {"token_type_ids", "mm_token_type_ids"} & names:
        taken[name] = 0 * types if row.name == "paligemma" else types
    return taken | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def logits(row: Row, model: Any, processor: Any, picture: Image.Image, question: str) -> Any:
    """Next-token logits (V,) after the picture and the question, from pixels."""
    made, text = prepared(row, processor, picture)
    ids = processor.tokenizer(text + question, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(**arguments(row, model, processor, made, ids)).logits[0, -1]
