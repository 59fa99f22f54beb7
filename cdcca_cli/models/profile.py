"""The profile of a loaded model (`formats.profile`): what a device without torch knows of it."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from cdcca_cli.errors import BadData
from cdcca_cli.formats.profile import TASKS, LanguageShape, PictureRule, Profile, Sample
from cdcca_cli.formats.shard import Layout
from cdcca_cli.models import thin
from cdcca_cli.models.model import LoadedModel
from cdcca_cli.models.overlay import as_array

if TYPE_CHECKING:
    from PIL.Image import Image

_FIRST_PROJECTIONS = ("q_proj", "k_proj", "qkv_proj", "query_key_value", "in_proj")
_PLACEHOLDER = "{picture}"
_HEADS, _CONNECTOR_ROWS = 2, 4
_SIZES = ((97, 61), (40, 120), (64, 64), (200, 133))
"""Frames, width and height, on which a rule for pictures is tried."""


def profile_of(model: LoadedModel, digest: str | None) -> Profile:
    """Make it from the model as its checkpoint has it, before any overlay.

    Args: digest: of the frozen model, as in device.json.
    """
    module, groups = model.module, model.trainable_groups()
    parameters = dict(module.named_parameters())
    shape = _language_shape(model)
    layout, num_tokens = _layout(model)
    return Profile(
        model=digest,
        tower=model.tower_digest,
        language=shape,
        norms={name: _moments(as_array(parameters[name])) for name in groups["norm"]},
        samples=_samples(model, groups["lora.language"], groups["lora.connector"], shape),
        has_class_token=any("class_embed" in name or "cls_token" in name for name in _tower(model)),
        prompts={task: _template(model, task) for task in TASKS},
        said={"vqa": model.row.vqa_template, "caption": model.row.caption_template},
        caption_prompt=model.row.caption_prompt,
        begin=tuple(model.begin_ids),
        end=tuple(model.end_ids),
        suppressed=tuple(sorted(model.language.suppressed)),
        stub=model.stub,
        special=tuple(sorted(model.plain_tokenizer.special)),
        picture=_picture_rule(model),
        layout=layout,
        num_tokens=num_tokens,
    )


def _tower(model: LoadedModel) -> list[str]:
    return [name for name, _ in model.tower.named_parameters()]


def _language_shape(model: LoadedModel) -> LanguageShape:
    config = model.module.config.get_text_config()

    def number(*names: str) -> Any:
        return next((found for name in names if (found := getattr(config, name, None))), None)

    heads, width = number("num_attention_heads", "num_heads"), number("hidden_size", "d_model")
    rope: Any = number("rope_parameters", "rope_scaling") or {}
    theta = number("rope_theta") or (rope.get("rope_theta") if isinstance(rope, dict) else None)
    epsilon = number("rms_norm_eps", "layer_norm_eps", "norm_eps", "layer_norm_epsilon")
    inner = number("intermediate_size", "ffn_dim", "d_ff")
    inner = inner if isinstance(inner, int) else None  # Gemma 3n's differs from layer to layer
    return LanguageShape(
        type=config.model_type,
        blocks=number("num_hidden_layers", "num_layers"),
        width=width,
        heads=heads,
        kv_heads=number("num_key_value_heads", "num_attention_heads", "num_heads"),
        head_width=number("head_dim", "d_kv") or (heads and width // heads),
        inner_width=inner,
        vocabulary=int(model.module.get_output_embeddings().weight.shape[0]),
        epsilon=None if epsilon is None else float(epsilon),
        rope_theta=None if theta is None else float(theta),
    )


def _moments(values: NDArray[np.float32]) -> tuple[float, float]:
    wide = values.astype(np.float64)
    return float(wide.mean()), float(np.sqrt(np.square(wide).mean()))


def _samples(
    model: LoadedModel, language: list[str], connector: list[str], shape: LanguageShape
) -> dict[str, Sample]:
    first = [
        name for name in language if ".0." in name and name.rpartition(".")[2] in _FIRST_PROJECTIONS
    ]
    rows = dict.fromkeys(connector, _CONNECTOR_ROWS)
    rows |= dict.fromkeys(first, _HEADS * (shape.head_width or 1))
    found = {}
    for name, number in rows.items():
        linear = model.module.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        found[name] = Sample.of(as_array(linear.weight), number)
    return found


def _template(model: LoadedModel, task: str) -> str:
    """The text around a question, with its places, escaped nowhere: templates have no others."""
    text, mark = model.templates[task], model.preparer.mark
    return text.replace(mark, _PLACEHOLDER, 1) if mark else text


def _layout(model: LoadedModel) -> tuple[Layout | None, int | None]:
    """How every frame becomes tokens, where the frame's size does not matter."""
    if not model.preparer.has_one_size:
        return None, None
    seen = [model.see(model.prepare([_noise(size)]))[0] for size in _SIZES[:2]]
    layouts = {(one.layout, one.num_tokens) for one in seen}
    return next(iter(layouts)) if len(layouts) == 1 else (None, None)


def _picture_rule(model: LoadedModel) -> PictureRule | None:
    """The rule that makes what the processor makes, tried on frames of several shapes."""
    from cdcca_cli.payloads.preparing import prepared

    processor = model.preparer.image_processor
    if not model.preparer.has_one_size:
        return None
    size, crop = (dict(getattr(processor, name, None) or {}) for name in ("size", "crop_size"))
    crops = thin.crops_centre(processor)
    sides = crop if crops else size
    if not {"height", "width"} <= sides.keys():
        return None
    rule = PictureRule(
        crops=crops,
        edge=size.get("shortest_edge") if crops else None,
        size=(int(sides["height"]), int(sides["width"])),
        resample=int(getattr(processor, "resample", None) or 3),
    )
    for each in _SIZES:
        frame = _noise(each)
        try:
            wanted = model.seen_levels(frame)
        except BadData:
            return None
        if wanted is None or not np.array_equal(np.asarray(prepared(frame, rule)), wanted):
            return None
    return rule


def _noise(size: tuple[int, int]) -> "Image":
    from PIL import Image

    width, height = size
    levels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(levels)
