"""A merged checkpoint: transformers and cdcca load it, and both give the device's own logits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cdcca_cli.formats.device import Device
from cdcca_cli.main import main
from cdcca_cli.models import LoadedModel, load, load_device
from cdcca_cli.models.initial import create_device
from tests import tiny, zoo
from tests.export.devices import changed, device_of


def exported(device: Device, out: Path, *more: str) -> int:
    return main(["export", str(device.path), "--to", "transformers", "-o", str(out), *more])


def logits(model: LoadedModel) -> torch.Tensor:
    seen = model.see(model.prepare(tiny.images(2, size=48)))
    prompts = [model.format_prompt(text, "vqa") for text in ("what colour?", "how many?")]
    with torch.no_grad():
        return model.forward(model.read(seen, prompts), model.answer_ids(["red", "two"])).logits


@pytest.mark.parametrize("name", ["llava", "smolvlm", "qwen2_5_vl", "gemma3"])
def test_the_merged_checkpoint_has_the_devices_logits(name: str, tmp_path: Path) -> None:
    """And its biases, or the question whether they may stay behind."""
    if why := zoo.missing(name):
        pytest.skip(why)
    checkpoint = zoo.checkpoint(name, tmp_path / "checkpoint")
    device = device_of(tmp_path / "device", checkpoint, by=0.05)
    out = tmp_path / "out"
    allowed = ["--drop", "bias"] if exported(device, out) else []
    assert exported(device, out, *allowed) == 0
    record = json.loads((out / "export.json").read_text())
    assert bool(record["dropped"]) == bool(allowed)
    if allowed:
        values = device.read_overlay()
        present = {key for key, _ in load(out).module.named_parameters()}
        for key, value in values.items():
            if key.endswith(".bias") and key not in present:
                values[key] = np.zeros_like(value)
        device.install(values, 2)
    ours = logits(load_device(device, compute="cpu"))
    merged = load(out, compute="cpu")
    torch.testing.assert_close(logits(merged), ours, rtol=1e-5, atol=1e-5)
    assert (logits(load(checkpoint, compute="cpu")) - ours).abs().max() > 0.1
    assert create_device(tmp_path / "next", str(out)).settings.tower == device.settings.tower


def test_llama_takes_new_biases(tmp_path: Path) -> None:
    """On all seven linears, where the checkpoint has none: by two settings of its config."""
    checkpoint = zoo.checkpoint("llava", tmp_path / "checkpoint")
    assert not json.loads((checkpoint / "config.json").read_text())["text_config"]["mlp_bias"]
    device = device_of(tmp_path / "device", checkpoint)
    assert exported(device, tmp_path / "out") == 0
    text = json.loads((tmp_path / "out/config.json").read_text())["text_config"]
    assert text["mlp_bias"] and text["attention_bias"]


def test_transformers_loads_it_alone(tmp_path: Path) -> None:
    """In shards, by its Auto classes, with the processor; and nothing of LoRA is left."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    checkpoint = zoo.checkpoint("llava", tmp_path / "checkpoint")
    device = device_of(tmp_path / "device", checkpoint)
    assert exported(device, tmp_path / "out", "--shard-size", "200KB") == 0
    assert len([*(tmp_path / "out").glob("model-*.safetensors")]) > 1
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert not any("lora" in name for name, _ in model.named_parameters())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(checkpoint).chat_template
    ours = load_device(device, compute="cpu").module
    ids = torch.tensor([tokenizer("what colour is it?").input_ids])
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=ids).logits, ours(input_ids=ids).logits, rtol=1e-5, atol=1e-5
        )
    kept = {path.name for path in checkpoint.iterdir()} - {"model.safetensors"}
    assert kept <= {path.name for path in (tmp_path / "out").iterdir()}


def test_a_folder_in_the_checkpoint_comes_with_it(instructblip: Path, tmp_path: Path) -> None:
    device = device_of(tmp_path / "device", instructblip)
    for _ in range(2):  # in the place of the first
        assert exported(device, tmp_path / "out") == 0
    record = json.loads((tmp_path / "out/export.json").read_text())
    assert "qformer_tokenizer/tokenizer.json" in record["files"]
    ours = logits(load_device(device, compute="cpu"))
    merged = logits(load(tmp_path / "out", compute="cpu"))
    torch.testing.assert_close(merged, ours, rtol=1e-5, atol=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"device", "out"}


def test_rounding_is_measured(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In bfloat16 a small change is lost in part, and a line says how much; float32 keeps it."""
    checkpoint = zoo.checkpoint("llava", tmp_path / "checkpoint", dtype=torch.bfloat16)
    device = create_device(tmp_path / "device", str(checkpoint))
    device.install(changed(device.read_overlay(), 1, by=1e-3), 1)
    capfd.readouterr()
    assert exported(device, tmp_path / "out") == 0
    message = capfd.readouterr().err
    assert "rounding to bfloat16 is off by" in message and "--weights float32" in message
    assert exported(device, tmp_path / "out", "--weights", "float32") == 0
    assert "rounding to" not in capfd.readouterr().err
    ours = logits(load_device(device, compute="cpu", dtype="float32"))
    merged = logits(load(tmp_path / "out", compute="cpu"))
    torch.testing.assert_close(merged, ours, rtol=1e-5, atol=1e-5)


def test_a_template_that_the_checkpoint_does_not_have_is_said(
    llava: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = ["init", str(tmp_path / "device"), "--checkpoint", str(llava), "--groups", "lora"]
    assert main([*made, "--template", "Q: <image> {prompt} A:"]) == 0
    capfd.readouterr()
    assert exported(Device.open(tmp_path / "device"), tmp_path / "out") == 0
    assert "such as 'Q: <image> {prompt} A:'" in capfd.readouterr().err
    (words,) = json.loads((tmp_path / "out/export.json").read_text())["unchecked"]
    assert "prompts" in words


def test_a_quantised_device_is_refused(
    llava: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = ["init", str(tmp_path / "device"), "--checkpoint", str(llava), "--quantize", "nf4"]
    assert main(made) == 0
    capfd.readouterr()
    assert exported(Device.open(tmp_path / "device"), tmp_path / "out") == 2
    message = capfd.readouterr().err
    assert "weights in nf4" in message and "another model" in message and message.count("\n") == 1
