"""`to` peft: LoRA as an adapter folder of PEFT, which vLLM loads as well.

    adapter_config.json        PEFT's settings of LoRA; target_modules are whole names of linears
    adapter_model.safetensors  base_model.model.<linear>.lora_A.weight and lora_B.weight, float32

Whole names, because PEFT takes a last part such as q_proj for every linear that ends so, those of a
vision tower too; vLLM goes by the names of the tensors. Norms, biases and query tokens have no
place in an adapter. Written without peft and torch.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcca_cli import files
from cdcca_cli.errors import BadData, MissingInput, SettingError
from cdcca_cli.export import placing
from cdcca_cli.export.settings import ExportSettings
from cdcca_cli.formats import records
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.names import LORA_A, LORA_B
from cdcca_cli.formats.overlay import Overlay

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WHY = "an adapter of PEFT holds LoRA alone"
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's max_lora_rank can be."""


def write(
    folder: Path, device: Device, overlay: Overlay, settings: ExportSettings
) -> dict[str, Any]:
    """Fill `folder`; returns its part of export.json. Raises: SettingError, CannotWrite."""
    linears = sorted(name.removesuffix(LORA_A) for name in overlay if name.endswith(LORA_A))
    if not linears:
        raise SettingError("to", f"{WHY}; this device trains {', '.join(device.settings.groups)}")
    carried = [name + end for name in linears for end in (LORA_A, LORA_B)]
    why = dict.fromkeys(("norm", "bias", "query"), WHY)
    start = known_start(device, overlay)
    dropped = placing.require_placed(device, overlay, carried, settings.dropped, start, why)
    from safetensors.numpy import save

    tensors = {f"base_model.model.{name}.weight": np.asarray(overlay[name]) for name in carried}
    rank = len(overlay[carried[0]])
    text = records.dump_json(_config(device, linears, rank))
    files.atomic_write_bytes(folder / CONFIG, f"{text}\n".encode())
    files.atomic_write_bytes(folder / WEIGHTS, save(tensors, {"format": "pt"}))
    counts = placing.placed(device, overlay, carried)
    most = next((known for known in _RANKS if known >= rank), None)
    unchecked = [f"vLLM has no LoRA of rank {rank}, at most {_RANKS[-1]}"] if most is None else []
    return {
        "placed": counts,
        "dropped": dropped,
        "unchecked": [*unchecked, "no runtime was asked whether it takes the adapter"],
        "command": most and _command(device, most, "lora.connector" in counts),
    }


def known_start(device: Device, overlay: Overlay) -> dict[str, NDArray[np.float32]]:
    """The first values of norms, biases and queries, as far as a device knows them by itself.

    Those of the overlay of sequence 0, if it is still kept, and of norms that are as the profile
    has them.
    """
    for slot in (device.current, *device.kept):
        if slot.sequence == 0:
            return device.read_slot(slot)
    try:
        moments = device.profile().norms
    except (MissingInput, BadData):
        return {}
    return {
        name: value
        for name, value in overlay.items()
        if name in moments and _moments(value) == moments[name]
    }


def _moments(values: NDArray[np.float32]) -> tuple[float, float]:
    wide = values.astype(np.float64)
    return float(wide.mean()), float(np.sqrt(np.square(wide).mean()))


def _config(device: Device, linears: list[str], rank: int) -> dict[str, Any]:
    """PEFT's settings that decide what an adapter does; all others have PEFT's defaults."""
    alpha = device.lora.alpha
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": device.settings.checkpoint,
        "revision": device.settings.revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": linears,
    }


def _command(device: Device, most: int, has_connector: bool) -> list[str]:
    """How vLLM serves the checkpoint with the adapter, in the export's folder.

    Unless it is told to, vLLM leaves the connector's LoRA out, with a warning in its log alone.
    """
    flags = {"enable-lora": "", "max-lora-rank": str(most), "lora-modules": "device=."}
    if has_connector:
        flags["enable-tower-connector-lora"] = ""
    words = ["vllm", "serve", device.settings.checkpoint]
    for name, value in flags.items():
        words += [f"--{name}", value] if value else [f"--{name}"]
    return words
