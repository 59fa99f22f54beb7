"""The tokenizer and the processors of a checkpoint: what makes prompts and pictures."""

import copy
import inspect
from typing import Any

from cdcca_cli.errors import BadData, MissingInput, Unavailable, UsageError
from cdcca_cli.families import Family, adjusting, processors
from cdcca_cli.models.language import image_token_id
from cdcca_cli.models.pictures import Preparer
from cdcca_cli.models.sources import Source


def tokenizer_of(source: Source, subfolder: str = "") -> Any:
    """A checkpoint's tokenizer, or another in one of its folders. MissingInput, UsageError."""
    from transformers import AutoTokenizer

    what = f"the tokenizer in {subfolder}/" if subfolder else "the tokenizer"
    with source.reading(what):
        tokenizer = AutoTokenizer.from_pretrained(
            source.path, subfolder=subfolder, **source.options
        )
        knows_words = bool(tokenizer("Answer:", add_special_tokens=False)["input_ids"])
    if not knows_words:  # transformers makes an empty one where the files are missing
        raise MissingInput(f"{source.named}: {what} has no vocabulary: is tokenizer.json missing?")
    if not tokenizer.is_fast:
        raise UsageError(
            f"{source.named}: {what} is a {type(tokenizer).__name__}, which cannot be saved as the "
            "tokenizer.json that cdcca needs"
        )
    return tokenizer


def preparer_of(source: Source, row: Family, module: Any, tokenizer: Any) -> Preparer:
    """The processors for PIL images: the same pixels with torchvision and without."""
    from transformers import AutoImageProcessor

    with source.reading("the image processor"):
        image_processor = AutoImageProcessor.from_pretrained(
            source.path, backend=row.backend, **source.options
        )
    if row.kind == "qformer":
        return Preparer(image_processor, None, "", ("pixel_values",))
    with source.reading("the processor"):
        if row.adjust:
            getattr(adjusting, row.adjust)(module.config, image_processor)
        processor = _processor(source, row, image_processor, tokenizer)
        place_id = image_token_id(module.config)
        token = tokenizer.convert_ids_to_tokens(place_id)
    if not isinstance(token, str):
        raise BadData(f"{source.named}: the image token {place_id} is not in the tokenizer")
    if processor is None and place_id not in tokenizer.added_tokens_decoder:
        raise BadData(
            f"{source.named}: the image token {place_id} is {token!r} in the tokenizer, a piece of "
            "ordinary text: they do not belong together"
        )
    arguments = inspect.signature(module.model.get_image_features).parameters
    return Preparer(image_processor, processor, token, tuple(arguments))


def _processor(source: Source, row: Family, image_processor: Any, tokenizer: Any) -> Any:
    """The processor that knows a picture's text, without its video processor.

    None for a checkpoint that lacks its settings (LLaVA's): its text is image tokens alone. The
    tokenizer gets the processor's chat template, which knows pictures where its own may not.
    """
    if row.processor is None:
        return None
    from transformers.models.auto.processing_auto import (
        PROCESSOR_MAPPING_NAMES,
        processor_class_from_name,
    )

    name = row.processor or PROCESSOR_MAPPING_NAMES[row.model_type]
    made_here = getattr(processors, name, None)
    known = processor_class_from_name(name) if made_here is None else made_here()
    if known is None:
        raise Unavailable(f"{source.named}: transformers has no processor of {row.name}")
    settings, _ = known.get_processor_dict(source.path, **source.options)
    tokenizer.chat_template = settings.get("chat_template") or tokenizer.chat_template
    # A copy: PaliGemma's adds a thousand tokens, which a checkpoint has already.
    made_of = {"image_processor": image_processor, "tokenizer": copy.deepcopy(tokenizer)}
    takes = inspect.signature(known.__init__).parameters
    # MiniCPM-V reads settings of its video processor, which its image processor has as well.
    absent = {"video_processor": image_processor}
    made_of |= {n: absent.get(n) for n in known.get_attributes() if n not in made_of}
    kept = {name: value for name, value in settings.items() if name in takes}
    lenient = type(known.__name__, (known,), {"check_argument_for_proper_class": _any_argument})
    made = lenient(**{**kept, **made_of})
    is_set = "patch_size" not in takes or getattr(made, "patch_size", None) is not None
    return made if is_set else None


def _any_argument(self: Any, name: str, value: Any) -> type:
    """No video processor will do: none is used."""
    return type(value)
