r"""A device folder from a checkpoint: the first overlay, which changes nothing.

It holds the checkpoint's stored values in float32, and LoRA's start drawn from the seed: the same
arguments and checkpoint give the same overlay, bit for bit, on every machine.

The model digest identifies the frozen parts, which the overlay does not show (such as LoRA's
alpha). It is "sha256:" and the SHA-256 of "cdcca model 1\n" and this object, as `records.dump_json`
writes it:

    family, qformer_layers, groups, tower   as in device.json
    lora    its alpha, rank and seed, as in device.json; null without LoRA
    start   digest of the first overlay
    template  as in device.json; absent if null
    norms   digest of the language model's normalisation weights, trained or not: float32, by name

With the group `bias`, every linear of the language model has a bias, zero where the checkpoint has
none, as in the paper. Up to version 0.5 only LLaMA's got new ones; a device folder keeps the names
that it was made with.

A checkpoint folder may have a codebook (`formats.codebook`), codebook.safetensors. It comes with
the device folder, trusted as the checkpoint is, if it is for the checkpoint's vision tower.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from cdcca_cli import streams
from cdcca_cli.errors import BadData
from cdcca_cli.formats import records
from cdcca_cli.formats.codebook import Codebook, read_codebook
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.device_state import DeviceSettings, Lora, Quantize
from cdcca_cli.formats.digest import overlay_digest, short
from cdcca_cli.formats.names import CODEBOOK_FILE, has_lora, split_groups, whole_groups
from cdcca_cli.formats.profile import write_profile
from cdcca_cli.formats.trust import Trust
from cdcca_cli.models import quantization
from cdcca_cli.models.loading import load
from cdcca_cli.models.model import LoadedModel
from cdcca_cli.models.overlay import as_array, fused_experts
from cdcca_cli.models.profile import profile_of
from cdcca_cli.models.settings import InitSettings
from cdcca_cli.models.sources import ASSETS, SHIPPED


def create_device(
    folder: Path,
    checkpoint: str,
    settings: InitSettings | None = None,
    *,
    trust: Trust | None = None,
    force: bool = False,
) -> Device:
    """Make a device folder.

    Raises: as `load`, `Device.create` and `read_codebook`; SettingError for no group.
    """
    how = settings or InitSettings()
    groups = whole_groups(how.groups)
    model = _loaded(checkpoint, how)
    path = Path(checkpoint).expanduser()
    made = DeviceSettings(
        # An absolute path, so that the device folder works from any working folder.
        checkpoint=str(path.resolve()) if path.exists() else checkpoint,
        revision=how.revision,
        family=model.family,
        template=how.template,
        qformer_layers=how.qformer_layers,
        quantize=cast(Quantize, how.quantize),
        groups=groups,
        lora=Lora(rank=how.lora_rank, alpha=how.alpha, seed=how.seed),
        tower=model.tower_digest,
    )
    if how.quantize == "nf4":
        quantization.left_out(model.row, model.module.config)
    overlay = model.initial_overlay(groups, how.lora_rank, how.seed)
    experts = fused_experts(model.module)
    if experts and "lora.language" in split_groups(groups):
        streams.message(f"{checkpoint}: {experts} get no LoRA")
    made = replace(made, model=_model_digest(made, overlay, model))
    is_shipped = checkpoint.startswith(SHIPPED)
    source = ASSETS / checkpoint.removeprefix(SHIPPED) if is_shipped else path
    codebook = _codebook(source / CODEBOOK_FILE, model.tower_digest)
    profile = profile_of(model, made.model)
    device = Device.create(
        folder, made, overlay, force=force, trust=trust, keep=how.keep, codebook=codebook
    )
    write_profile(folder, profile)
    return device


def _codebook(path: Path, tower: str) -> Codebook | None:
    """The codebook in this file, for this tower; None if there is none."""
    if not path.exists():
        return None
    with streams.binary_input(path) as source:
        found = read_codebook(source, where=str(path))
    if found.tower == tower:
        return found
    streams.message(
        f"{path}: not taken: it is for vision tower {short(found.tower)}, the checkpoint's is "
        f"{short(tower)}"
    )
    return None


def start_of(device: Device) -> dict[str, NDArray[np.float32]]:
    """The first overlay of a device (sequence 0), made from its checkpoint as at `init`.

    Raises: as `load`; BadData if the checkpoint lacks one of the overlay's parameters.
    """
    made = device.settings
    model = _loaded(made.checkpoint, made)
    overlay = model.initial_overlay(made.groups, made.lora.rank, made.lora.seed)
    names = sorted(device.read_overlay())
    if absent := [name for name in names if name not in overlay]:
        raise BadData(
            f"{made.checkpoint}: has no {absent[0]}, the device folder's overlay has: restore that "
            "checkpoint, or run init again"
        )
    return {name: overlay[name] for name in names}


def _loaded(checkpoint: str, how: InitSettings | DeviceSettings) -> LoadedModel:
    return load(
        checkpoint,
        compute="cpu",
        dtype="stored",
        qformer_layers=how.qformer_layers,
        revision=how.revision,
        template=how.template,
    )


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
        "lora": asdict(settings.lora) if has_lora(settings.groups) else None,
        "start": overlay_digest(start),
        "norms": overlay_digest(norms),
    }
    if settings.template is not None:
        frozen["template"] = settings.template
    sha = hashlib.sha256(b"cdcca model 1\n" + records.dump_json(frozen).encode())
    return f"sha256:{sha.hexdigest()}"
