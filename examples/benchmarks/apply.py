"""Time and memory of `cdcca apply` for an update of the paper's size.

    python examples/benchmarks/apply.py [--runs 7] [--codec usq] [--bits 2.2]

Makes a device whose overlay has the paper's 1,650,688 parameters in their shapes (LLaMA-2-7B: norms
266,240, biases 1,359,872; query tokens 24,576), a random change of them and its update; then runs
`cdcca apply` on fresh copies of the device. Prints one JSON object: the fastest run in seconds, the
least processor time relative to a Python that only imports numpy (nearly independent of the
machine), the peak memory, and the size of the update.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np

from cdcca_cli.downlink import sender
from cdcca_cli.downlink.settings import CompressSettings
from cdcca_cli.formats.adaptation import Adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.device_state import DeviceSettings, Lora
from cdcca_cli.formats.update import write_update

LAYERS, WIDTH, INNER = 32, 4096, 11_008


def paper_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the 1.65 M parameters of section 4.1."""
    shapes: dict[str, tuple[int, ...]] = {
        "query_tokens": (1, 32, 768),
        "language_model.norm.weight": (WIDTH,),
    }
    for layer in range(LAYERS):
        stem = f"language_model.layers.{layer}"
        shapes[f"{stem}.input_layernorm.weight"] = (WIDTH,)
        shapes[f"{stem}.post_attention_layernorm.weight"] = (WIDTH,)
        for linear in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.down"):
            shapes[f"{stem}.{linear}_proj.bias"] = (WIDTH,)
        for linear in ("mlp.gate", "mlp.up"):
            shapes[f"{stem}.{linear}_proj.bias"] = (INNER,)
    return shapes


def settings(groups: tuple[str, ...]) -> DeviceSettings:
    """Settings of a device folder whose checkpoint is never loaded."""
    return DeviceSettings(
        checkpoint="shipped:student",
        family="blip_2",
        tower="sha256:" + 64 * "0",
        lora=Lora(rank=16, alpha=32.0, seed=0),
        groups=groups,
    )


def make(folder: Path, how: CompressSettings) -> dict[str, float]:
    """Make a device folder and update.cdcca for it; returns the update's sizes."""
    generator = np.random.default_rng(0)
    overlay = {
        name: generator.standard_normal(shape, np.float32) for name, shape in paper_shapes().items()
    }
    after = {
        name: value + np.float32(1e-3) * generator.standard_normal(value.shape, np.float32)
        for name, value in overlay.items()
    }
    device = Device.create(folder / "device", settings(("norm", "bias", "query")), overlay)
    made = sender.compress(Adaptation(after, device.digest, 0, "akd", 0), device, how)
    out = BytesIO()
    write_update(out, made.update)
    (folder / "update.cdcca").write_bytes(out.getvalue())
    return {
        "parameters": made.update.num_parameters,
        "update_bytes": made.num_bytes,
        "bits_per_parameter": round(made.bits_per_parameter, 4),
        "relative_error": round(made.relative_error, 4),
    }


def timed(command: list[str]) -> tuple[float, float, int]:
    """Seconds and processor seconds that a command takes, and the most bytes that it held."""
    begin = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--codec", default="usq", help="as in cdcca compress")
    parser.add_argument("--bits", type=float, default=None, help="2.2 for usq")
    options = parser.parse_args()
    runs = options.runs
    bits = 2.2 if (options.codec, options.bits) == ("usq", None) else options.bits
    how = CompressSettings(codec=options.codec, bits=bits)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = make(folder, how)
        applied = []
        for run in range(runs):
            device = folder / f"device-{run}"
            shutil.copytree(folder / "device", device)
            command = ["apply", str(device), str(folder / "update.cdcca"), "--quiet"]
            applied.append(timed([sys.executable, "-m", "cdcca_cli", *command]))
        numpy_alone = [timed([sys.executable, "-c", "import numpy"]) for _ in range(runs)]
    result["apply_seconds"] = round(min(seconds for seconds, _, _ in applied), 3)
    ratio = min(cpu for _, cpu, _ in applied) / min(cpu for _, cpu, _ in numpy_alone)
    result["times_importing_numpy"] = round(ratio, 2)
    result["apply_peak_bytes"] = max(peak for _, _, peak in applied)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
