"""Device folders whose overlay has changed a lot, so that a mistake in an export shows."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cdcca_cli.formats.device import Device
from cdcca_cli.models.initial import create_device
from cdcca_cli.models.settings import InitSettings


def changed(overlay: Mapping[str, np.ndarray], seed: int, by: float = 0.2) -> dict[str, np.ndarray]:
    """Every tensor moved: LoRA's B and biases by noise, norms by a factor around 1."""
    draw = np.random.default_rng(seed)
    found = {}
    for name, value in overlay.items():
        noise = (draw.standard_normal(value.shape) * by).astype(np.float32)
        if name.endswith(".lora_A"):
            found[name] = value
        elif name.endswith((".lora_B", ".bias", "query_tokens")):
            found[name] = value + noise
        else:
            found[name] = value * (1 + noise)
    return found


def device_of(
    folder: Path, checkpoint: Path | str, *, rank: int = 4, groups: str = "", by: float = 0.2
) -> Device:
    """A device folder at sequence 1. Args: groups: between commas; all if empty."""
    named = {"groups": tuple(groups.split(","))} if groups else {}
    device = create_device(folder, str(checkpoint), InitSettings(lora_rank=rank, **named))
    device.install(changed(device.read_overlay(), 1, by), 1)
    return device
