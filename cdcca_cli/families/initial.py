"""A device folder from a checkpoint: the first overlay, which changes nothing.

The overlay holds the checkpoint's own values in float32, taken as they are stored, and LoRA's start
drawn from the seed. Two machines that run this with the same arguments on the same checkpoint get
the same overlay, bit for bit; only changes have to travel.

A LLaMA language model without biases gets them, all zero, if the group `bias` is asked for: that is
how the paper comes to 1.36 M of them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from cdcca_cli.errors import UsageError
from cdcca_cli.families import quantization
from cdcca_cli.families.loading import load
from cdcca_cli.families.overlay import GROUPS
from cdcca_cli.formats.device import Device, DeviceSettings, Lora, Quantize


def create_device(
    folder: Path,
    checkpoint: str,
    *,
    groups: Sequence[str] = GROUPS,
    rank: int = 16,
    alpha: float | None = None,
    qformer_layers: int | None = None,
    quantize: str = "none",
    revision: str | None = None,
    seed: int = 0,
    force: bool = False,
) -> Device:
    """Make a device folder for `checkpoint`.

    Args:
        alpha: LoRA's scale is alpha / rank; 2 x rank if None.
        quantize: how the device will load it; here it is loaded in full, to read its parameters.
    Raises: as `families.load`; UsageError for groups, rank or seed that cannot be.
    """
    if seed < 0:
        raise UsageError(f"--seed {seed}: expected 0 or more")
    alpha = 2.0 * rank if alpha is None else float(alpha)
    if not 0 < alpha < float("inf"):
        raise UsageError(f"--lora-alpha {alpha}: expected more than 0")
    quantization.check_name(quantize)
    model = load(
        checkpoint,
        compute="cpu",
        dtype="stored",
        qformer_layers=qformer_layers,
        revision=revision,
        zero_biases="bias" in groups,
    )
    settings = DeviceSettings(
        checkpoint=_lasting(checkpoint),
        revision=revision,
        family=model.family,
        qformer_layers=qformer_layers,
        quantize=cast(Quantize, quantize),
        groups=tuple(group for group in GROUPS if group in groups),
        lora=Lora(rank=rank, alpha=alpha, seed=seed),
        tower=model.tower_digest,
    )
    overlay = model.initial_overlay(groups, rank, seed)
    return Device.create(folder, settings, overlay, force=force)


def _lasting(checkpoint: str) -> str:
    """A folder by its absolute path, so that the device folder works from anywhere."""
    path = Path(checkpoint).expanduser()
    return str(path.resolve()) if path.exists() else checkpoint
