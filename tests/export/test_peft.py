"""The adapter folder: PEFT's own loader gives cdcca's logits, and what it cannot hold is refused.

vLLM is not run: its rules are those of vllm/lora (tensor names, `PEFTHelper`), by hand.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from cdcca_cli.export import targets
from cdcca_cli.formats.device import Device
from cdcca_cli.main import main
from cdcca_cli.models import LoadedModel, load
from tests import tiny
from tests.export.devices import changed, device_of

RANK, ALPHA = 4, 8.0


def logits(model: LoadedModel) -> torch.Tensor:
    seen = model.see(model.prepare(tiny.images(2)))
    prompts = [model.format_prompt(text, "vqa") for text in ("what colour?", "how many?")]
    with torch.no_grad():
        return model.forward(model.read(seen, prompts), model.answer_ids(["red", "two"])).logits


def lora_of(overlay: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value for name, value in overlay.items() if ".lora_" in name}


@pytest.mark.parametrize("fixture", ["llava", "blip2_llama"])
def test_peft_loads_it_and_gives_the_logits_of_cdcca(
    fixture: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from peft import PeftModel

    checkpoint = request.getfixturevalue(fixture)
    device = device_of(tmp_path / "device", checkpoint, rank=RANK)
    out = str(tmp_path / "out")
    arguments = ["export", str(device.path), "--to", "peft", "-o", out, "--quiet"]
    assert main([*arguments, "--drop", "norm,bias,query"]) == 0
    adapted, ours = load(checkpoint, compute="cpu"), load(checkpoint, compute="cpu")
    plain = logits(ours)
    PeftModel.from_pretrained(adapted.module, out)
    ours.install_overlay(lora_of(device.read_overlay()), ALPHA)
    torch.testing.assert_close(logits(adapted), logits(ours), rtol=1e-5, atol=1e-5)
    assert (logits(ours) - plain).abs().max() > 0.1


def test_its_files_are_as_vllm_reads_them(llava: Path, tmp_path: Path) -> None:
    """Each tensor is named base_model.model.MODULE.lora_[AB].weight, and r, alpha, bias fit."""
    device = device_of(tmp_path / "device", llava, rank=RANK, groups="lora")
    assert main(["export", str(device.path), "--to", "peft", "-o", str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    found: dict[str, Any] = {name: config[name] for name in ("r", "lora_alpha", "bias")}
    assert found == {"r": RANK, "lora_alpha": 8, "bias": "none"}
    assert not config["modules_to_save"] and not config["use_dora"] and not config["use_rslora"]
    tensors = load_file(tmp_path / "out/adapter_model.safetensors")
    modules = {name.removeprefix("base_model.model.").rsplit(".", 2)[0] for name in tensors}
    assert modules == set(config["target_modules"]) and 2 * len(modules) == len(tensors)
    overlay = device.read_overlay()
    for name in modules:
        for half in ("lora_A", "lora_B"):
            found_tensor = tensors[f"base_model.model.{name}.{half}.weight"]
            np.testing.assert_array_equal(found_tensor, overlay[f"{name}.{half}"])
    record = json.loads((tmp_path / "out/export.json").read_text())
    assert record["command"][:3] == ["vllm", "serve", str(llava)]
    assert "--enable-tower-connector-lora" in record["command"]
    assert "device=." in record["command"]
    assert f"device={tmp_path}/out" in targets.command(record, tmp_path / "out")
    assert record["command"][record["command"].index("--max-lora-rank") + 1] == "8"


def test_what_stays_behind_must_be_named(
    llava: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    device = device_of(tmp_path / "device", llava, rank=RANK)
    out = tmp_path / "out"
    arguments = ["export", str(device.path), "--to", "peft", "-o", str(out)]
    capfd.readouterr()
    assert main(arguments) == 2
    message = capfd.readouterr().err
    assert "norm: 5 tensors" in message and "bias: 14 tensors" in message
    assert "--drop norm,bias allows it" in message and message.count("\n") == 1
    assert not out.exists()
    assert main([*arguments, "--drop", "norm"]) == 2
    assert main([*arguments, "--drop", "norm,bias", "--json"]) == 0
    record = json.loads(capfd.readouterr().out)
    assert set(record["dropped"]) == {"norm", "bias"}
    assert 0 < record["dropped"]["norm"]["share"] < 1  # the first overlay is still kept


def test_norms_that_did_not_change_need_no_leave(llava: Path, tmp_path: Path) -> None:
    """Where the first overlay is gone, by the moments in the profile."""
    device = device_of(tmp_path / "device", llava, rank=RANK)
    start = device.read_kept(0)[1]
    same = {name: value for name, value in start.items() if ".lora_" not in name}
    for sequence in (2, 3):
        device.install(changed(start, sequence) | same, sequence)
    assert all(slot.sequence for slot in (device.current, *device.kept))
    arguments = ["export", str(device.path), "--to", "peft", "-o", str(tmp_path / "out")]
    assert main([*arguments, "--drop", "bias"]) == 0
    name = next(name for name in same if name.endswith("norm.weight"))
    device.install(changed(start, 4) | same | {name: same[name] * np.float32(1.01)}, 4)
    assert main([*arguments, "--drop", "bias"]) == 2


def test_a_device_without_lora_is_refused(
    llava: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    device = device_of(tmp_path / "device", llava, rank=RANK, groups="norm")
    capfd.readouterr()
    assert main(["export", str(device.path), "--to", "peft", "-o", str(tmp_path / "out")]) == 2
    assert "this device trains norm" in capfd.readouterr().err


def test_a_rank_beyond_vllm(llava: Path, tmp_path: Path) -> None:
    device = device_of(tmp_path / "device", llava, rank=513, groups="lora.connector")
    assert main(["export", str(device.path), "--to", "peft", "-o", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out/export.json").read_text())
    assert record["command"] is None and "rank 513, at most 512" in record["unchecked"][0]


def test_it_imports_neither_torch_nor_peft(llava: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    device = device_of(tmp_path / "device", llava, rank=RANK, groups="lora")
    words = ["export", str(device.path), "--to", "peft", "-o", str(tmp_path / "out")]
    script = (
        "import sys; from cdcca_cli.main import main;"
        f"assert main({words!r}) == 0;"
        "heavy = {'torch', 'transformers', 'PIL', 'peft', 'rich'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_device_without_profile(llava: Path, tmp_path: Path) -> None:
    device = device_of(tmp_path / "device", llava, rank=RANK, groups="lora")
    (tmp_path / "device/profile.json").unlink()
    arguments = ["export", str(device.path), "--to", "peft", "-o", str(tmp_path / "out")]
    assert main(arguments) == 0 and Device.open(tmp_path / "device").digest == device.digest
