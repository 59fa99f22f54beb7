"""Device folders that cdcca 0.5.0 made still load, and `init` makes the same again where it may.

`tests/golden/devices` has three, each made by `cdcca init --lora-rank 1` from the checkpoint that
`checkpoint` writes, and then only its path in device.json was changed. The weights of that are
fractions of a power of two, so they are the same on every machine.

- `llama`: a LLaMA without biases, which got 7 biases of zeros;
- `opt`: an OPT, which has biases of its own on all its linears;
- `t5`: a T5, which has none, so that the group `bias` was empty.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cdcca_cli import models
from cdcca_cli.errors import BadData, UsageError
from cdcca_cli.formats.device import Device
from cdcca_cli.models import initial
from cdcca_cli.models.settings import InitSettings
from tests import tiny

GOLDEN = Path(__file__).parent.parent / "golden" / "devices"
KINDS = ("llama", "opt", "t5")
NEW_BIASES = {"llama": 0, "opt": 0, "t5": 7 + 11}
"""What `init` finds today beside them: T5's encoder has 7 linears a block, its decoder 11."""


def checkpoint(folder: Path, text: str) -> Path:
    """A BLIP-2 with one layer everywhere, whose weights depend on no generator."""
    import transformers as tf

    tiny.q_checkpoint(folder, text=text, qformer_layers=1, text_layers=1)
    config = tf.Blip2Config.from_pretrained(folder)
    if text == "llama":
        config.text_config.attention_bias = config.text_config.mlp_bias = False
    module = tf.Blip2ForConditionalGeneration(config)
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(module.named_parameters())):
            values = (torch.arange(parameter.numel()) * 7 + number * 13) % 31 - 15
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(values.reshape(parameter.shape) / 128 + is_norm)
    module.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def earlier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a golden folder, which names the checkpoint beside it."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint(folder / "checkpoint", request.param)
    device = Path(shutil.copytree(GOLDEN / request.param, folder / request.param))
    state = json.loads((device / "device.json").read_text())
    state["checkpoint"] = str(folder / "checkpoint")
    (device / "device.json").write_text(json.dumps(state))
    return device


def test_it_loads_with_the_digest_it_had(earlier: Path) -> None:
    device = Device.open(earlier)
    model = models.load_device(device, compute="cpu")
    assert model.digest == device.digest
    assert model.tower_digest == device.settings.tower
    assert device.settings.groups == ("norm", "bias", "query", "lora")


def test_its_start_is_made_again_bit_for_bit(earlier: Path) -> None:
    device = Device.open(earlier)
    first, again = device.read_overlay(), initial.start_of(device)
    assert list(again) == sorted(first)
    assert all(again[name].tobytes() == first[name].tobytes() for name in first)


def test_init_makes_the_same_but_for_new_biases(earlier: Path, tmp_path: Path) -> None:
    """LLaMA's and OPT's folders in full; T5's gets zeros for each linear beside what it had."""
    device = Device.open(earlier)
    how = InitSettings(lora_rank=1)
    made = initial.create_device(tmp_path / "made", device.settings.checkpoint, how)
    before, now = device.read_overlay(), made.read_overlay()
    assert all(np.array_equal(now[name], value) for name, value in before.items())
    new = now.keys() - before.keys()
    assert len(new) == NEW_BIASES[earlier.name]
    assert not any(now[name].any() or not name.endswith(".bias") for name in new)
    if not new:
        assert made.as_json() == device.as_json()
        assert (tmp_path / "made" / made.current.file).read_bytes() == (
            earlier / device.current.file
        ).read_bytes()


def test_only_what_its_overlay_has_is_trained(earlier: Path) -> None:
    """T5's has no biases, whatever `init` would give it today."""
    from cdcca_cli.distillation.optimiser import open_overlay

    device = Device.open(earlier)
    student, overlay = models.load_device(device, compute="cpu"), device.read_overlay()
    assert open_overlay(student, overlay, 2.0).names == sorted(overlay)
    if earlier.name == "t5":
        with pytest.raises(UsageError, match="nothing of bias"):
            open_overlay(student, overlay, 2.0, ("bias",))
    else:
        biases = open_overlay(student, overlay, 2.0, ("bias",)).names
        assert len(biases) == (7 if earlier.name == "llama" else 6)


def test_another_checkpoint_is_not_its_start(earlier: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(earlier, tmp_path / "device"))
    other = "opt" if earlier.name == "llama" else "llama"
    state = json.loads((folder / "device.json").read_text())
    state["checkpoint"] = str(checkpoint(tmp_path / "checkpoint", other))
    (folder / "device.json").write_text(json.dumps(state))
    with pytest.raises(BadData, match="restore that checkpoint"):
        initial.start_of(Device.open(folder))


def test_the_shipped_student_starts_as_it_did(tmp_path: Path) -> None:
    made = initial.create_device(tmp_path / "device", "shipped:student")
    assert made.digest.startswith("sha256:8d9a1a84cbd37b9b")
    assert made.model is not None and made.model.startswith("sha256:63988cc3e42f20b8")
