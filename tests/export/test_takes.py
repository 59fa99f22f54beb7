"""Which groups arrive where: the table agrees with transformers' configs and with the exports."""

import json
from pathlib import Path

import pytest

from cdcca_cli.export import takes
from cdcca_cli.export.takes import TRANSFORMERS_BIASES, Takes
from cdcca_cli.families import FAMILIES
from cdcca_cli.formats.device import Device
from cdcca_cli.main import main
from cdcca_cli.models import loading, merging
from tests import zoo
from tests.export.devices import device_of

GROUPS = ("norm", "bias", "query", "lora")
LLAVA = ("model.multi_modal_projector.linear_1", "model.multi_modal_projector.linear_2")


def of(family: str, language: str, linears: tuple[str, ...] = LLAVA) -> dict[str, Takes]:
    found = takes.takes(FAMILIES[family], language, GROUPS, linears)
    return {one.runtime: one for one in found}


def test_llama_takes_all_of_a_llava() -> None:
    found = of("llava", "llama")
    assert [str(one) for one in found.values()] == [
        "all",
        "lora.language, lora.connector; not norm, bias",
        "all",
    ]


def test_parts_are_named() -> None:
    found = of("qwen2_5_vl", "qwen2_5_vl_text", ("model.visual.merger.mlp.0",))
    assert found["llama.cpp"].groups["bias"] == "of q, k, v"
    assert found["llama.cpp"].groups["lora.connector"] == "all"
    assert of("gemma3", "gemma3_text")["transformers"].groups["bias"] == "of q, k, v, o"
    assert "bias" in of("llava", "mistral")["transformers"].refused
    half = of("llava", "llama", (*LLAVA, "model.elsewhere"))["llama.cpp"]
    assert half.groups["lora.connector"] == "2 of 3 linears"


def test_what_llama_cpp_does_not_have() -> None:
    assert str(of("blip-2", "opt")["llama.cpp"]) == "nothing"
    assert str(of("llava", "falcon")["llama.cpp"]) == "nothing"


@pytest.mark.parametrize("name", ["llava", "llava_next", "gemma3", "qwen2_5_vl", "qwen3_vl"])
def test_the_biases_are_those_that_configs_have(name: str, tmp_path: Path) -> None:
    """Against the model that transformers makes when the settings are on."""
    if why := zoo.missing(name):
        pytest.skip(why)
    model = loading.outline(str(zoo.checkpoint(name, tmp_path / "checkpoint")))
    possible = set(model.trainable_groups()["bias"])
    present = {one for one, _ in model.module.named_parameters()}
    made = set().union(*merging.bias_settings(model, possible - present).values())
    linears = {one.rsplit(".", 2)[-2] for one in possible & (present | made)}
    language = model.module.config.get_text_config().model_type
    assert linears == set(TRANSFORMERS_BIASES.get(language, ()))


def test_init_and_doctor_say_it(
    llava: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = ["init", str(tmp_path / "d"), "--checkpoint", str(llava), "--groups", "norm,lora"]
    assert main([*made, "--json"]) == 0
    shown = capfd.readouterr()
    words = "; llama.cpp takes all; peft takes lora.language, lora.connector; not norm; "
    assert words in shown.err
    expected = {"lora.language": "all", "lora.connector": "all"}
    found = json.loads(shown.out)["takes"]
    assert found["peft"] == expected
    assert found["llama.cpp"] == expected | {"norm": "all"}
    assert main(["doctor", str(tmp_path / "d"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["takes"] == found


def test_what_is_carried_is_what_an_export_places(made_device: Device) -> None:
    overlay = made_device.read_overlay()
    assert takes.carried(made_device, overlay) == set(overlay)


@pytest.fixture
def made_device(llava: Path, tmp_path: Path) -> Device:
    return device_of(tmp_path / "device", llava)
