r"""A device folder from a checkpoint: the first overlay, which changes nothing.

The overlay holds the checkpoint's own values in float32, taken as they are stored, and LoRA's start
drawn from the seed. Two machines that run this with the same arguments on the same checkpoint get
the same overlay, bit for bit; only changes have to travel.

The model digest says what both sides have frozen, so that two that differ in what the overlay does
not show (LoRA's alpha, the language model's weights) are told apart. It is "sha256:" and the
SHA-256 of "cdcca model 1\n" and this object, as `records.dump_json` writes it:

    family, qformer_layers, groups, tower   as in device.json
    lora    its alpha, rank and seed, as in device.json; null without the group `lora`
    start   digest of the first overlay
    norms   digest of the language model's normalisation weights, trained or not: float32, by name

A LLaMA language model without biases gets them, all zero, if the group `bias` is asked for: that is
how the paper comes to 1.36 M of them.
"""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.errors import UsageError
from cdcca_cli.formats import records
from cdcca_cli.formats.device import Device, DeviceSettings, Lora, Quantize
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.trust import Trust
from cdcca_cli.models import quantization
from cdcca_cli.models.loading import load
from cdcca_cli.models.model import LoadedModel
from cdcca_cli.models.overlay import GROUPS, as_array


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
    trust: Trust | None = None,
    keep: int = 1,
    force: bool = False,
) -> Device:
    """Make a device folder for `checkpoint`.

    Args:
        alpha: LoRA's scale is alpha / rank; 2 x rank if None.
        quantize: how the device will load it; here it is loaded in full, to read its parameters.
        trust, keep: as `Device.create`.
    Raises: as `models.load`; UsageError for groups, rank or seed that cannot be.
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
    settings = replace(settings, model=_model_digest(settings, overlay, model))
    return Device.create(folder, settings, overlay, force=force, trust=trust, keep=keep)


def start_of(device: Device) -> dict[str, NDArray[np.float32]]:
    """The overlay that a device folder began with (sequence 0), made again from its checkpoint.

    Raises: as `models.load`.
    """
    with tempfile.TemporaryDirectory(prefix="cdcca-") as folder:
        return create_device(
            Path(folder) / "start",
            device.checkpoint,
            groups=device.groups,
            rank=device.lora.rank,
            alpha=device.lora.alpha,
            qformer_layers=device.qformer_layers,
            revision=device.revision,
            seed=device.lora.seed,
        ).read_overlay()


def _model_digest(
    settings: DeviceSettings, start: Mapping[str, NDArray[np.float32]], model: LoadedModel
) -> str:
    parameters = dict(model.module.named_parameters())
    norms = {name: as_array(parameters[name]) for name in model.trainable_groups()["norm"]}
    frozen = {
        "family": settings.family,
        "qformer_layers": settings.qformer_layers,
        "groups": list(settings.groups),
        "tower": settings.tower,
        "lora": asdict(settings.lora) if "lora" in settings.groups else None,
        "start": overlay_digest(start),
        "norms": overlay_digest(norms),
    }
    sha = hashlib.sha256(b"cdcca model 1\n" + records.dump_json(frozen).encode())
    return f"sha256:{sha.hexdigest()}"


def _lasting(checkpoint: str) -> str:
    """A folder by its absolute path, so that the device folder works from anywhere."""
    path = Path(checkpoint).expanduser()
    return str(path.resolve()) if path.exists() else checkpoint
