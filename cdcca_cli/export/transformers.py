"""`to` transformers: a checkpoint with the device's overlay merged in, for whatever reads one.

config.json, weights in shards, and the tokenizer, processors, templates and codebook of the
checkpoint as they are, so a device's own template of prompts is not in it. LoRA is merged in
float32 and stored in the checkpoint's own type, which rounds, or in float32 (`weights`). A bias is
carried where the language model's config has a setting for it. Needs torch and the checkpoint.
"""

from math import sqrt
from pathlib import Path
from typing import Any

from cdcca_cli import streams
from cdcca_cli.errors import SettingError
from cdcca_cli.export import placing
from cdcca_cli.export.settings import ExportSettings
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.names import LORA_A, LORA_B
from cdcca_cli.formats.overlay import Overlay

_WORTH_A_LINE = 0.02


def write(
    folder: Path, device: Device, overlay: Overlay, settings: ExportSettings
) -> dict[str, Any]:
    """Fill `folder`; returns its part of export.json.

    Raises: SettingError for a quantised device and for `drop`; as `models.load`.
    """
    made = device.settings
    if made.quantize != "none":
        raise SettingError(
            "to",
            f"this device computes with weights in {made.quantize}, and a merged checkpoint has "
            "others: it would be another model; export to gguf or peft, or the folder of a mirror "
            "that holds its language model in full",
        )
    from cdcca_cli.models import merging
    from cdcca_cli.models.loading import load

    model = load(
        made.checkpoint,
        compute="cpu",
        dtype=settings.weights,
        qformer_layers=made.qformer_layers,
        revision=made.revision,
        template=made.template,
    )
    if getattr(model.module, "is_quantized", False):
        raise SettingError("to", f"{made.checkpoint} is quantised itself: nothing can be merged in")
    start = model.initial_overlay(made.groups, made.lora.rank, made.lora.seed)
    present = {name for name, _ in model.module.named_parameters()}
    biases = {name for name in overlay if name.endswith(".bias")} - present
    flags = merging.bias_settings(model, biases)
    new = biases & set().union(*flags.values())
    carried = {
        name
        for name in overlay
        if name in present or name in new or name.endswith((LORA_A, LORA_B))
    }
    why = {"bias": f"{model.module.config.get_text_config().model_type} has no place for them"}
    dropped = placing.require_placed(device, overlay, carried, settings.dropped, start, why)
    arriving = {name: overlay[name] for name in sorted(carried)}
    squares = merging.merge(model, arriving, made.lora.alpha, flags)
    lost = sqrt(squares["rounding"] / squares["change"]) if squares["change"] else 0.0
    if lost > _WORTH_A_LINE:
        stored = str(model.dtype).removeprefix("torch.")
        streams.message(
            f"rounding to {stored} is off by {lost:.0%} of the change: `weights` float32 keeps it"
        )
    merging.save(model, folder, settings.shard_size, made.revision)
    unchecked = []
    if made.template is not None:
        unchecked = [
            "whether the runtime's prompts are the device's: it has a `template` of its own"
        ]
        streams.message(
            "the device has a `template` of prompts of its own, and the checkpoint keeps its chat "
            f"template: give the runtime prompts such as {made.template!r}"
        )
    placed = placing.placed(device, overlay, carried)
    return {"placed": placed, "dropped": dropped, "unchecked": unchecked}
