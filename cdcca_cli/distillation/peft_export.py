"""The LoRA part of an overlay as an ordinary PEFT adapter."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cdcca_cli import files
from cdcca_cli.errors import CannotWrite, SettingError
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.names import LORA_A, LORA_B, has_lora

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def check_peft(folder: Path, device: Device, force: bool) -> None:
    """Check before training that an adapter can be written.

    Raises: SettingError for a student without LoRA; CannotWrite for a folder that has an adapter.
    """
    if not has_lora(device.settings.groups):
        trains = ", ".join(device.settings.groups)
        raise SettingError(
            "peft", f"the student trains {trains} and no LoRA: make a student with `groups` lora"
        )
    taken = [name for name in ADAPTER_FILES if (folder / name).exists()]
    if taken and not force:
        raise CannotWrite(f"{folder}: has {taken[0]} already: `force` replaces it")


def export_peft(folder: Path, overlay: Mapping[str, np.ndarray], device: Device) -> None:
    """Write the overlay's LoRA as a PEFT adapter of the device's checkpoint. Raises: CannotWrite.

    An adapter has no norms, biases or query tokens.
    """
    linears = sorted(name.removesuffix(LORA_A) for name in overlay if name.endswith(LORA_A))
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it, and it logs advice
    from peft import LoraConfig
    from safetensors.numpy import save

    config = LoraConfig(
        r=device.lora.rank,
        lora_alpha=device.lora.alpha,
        target_modules=linears,
        base_model_name_or_path=device.settings.checkpoint,
        revision=device.settings.revision,
        inference_mode=True,
    )
    tensors: dict[str, np.ndarray] = {}
    for name in linears:
        tensors[f"base_model.model.{name}.lora_A.weight"] = overlay[name + LORA_A]
        tensors[f"base_model.model.{name}.lora_B.weight"] = overlay[name + LORA_B]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(folder))
    except OSError as error:
        raise CannotWrite(files.reason(folder, error)) from None
    files.atomic_write_bytes(folder / ADAPTER_FILES[1], save(tensors, {"format": "pt"}))
