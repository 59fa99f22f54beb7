"""`cdcca init`: the same start on both sides, and one line for what cannot be."""

import json
import shutil
from pathlib import Path

import pytest

from cdcca_cli.formats.device import Device
from cdcca_cli.main import main
from tests import tiny
from tests.downlink import worlds


def test_both_sides_start_with_the_same_overlay(blip2_llama: Path, tmp_path: Path) -> None:
    for side in ("device", "mirror"):
        assert main(["init", str(tmp_path / side), "--checkpoint", str(blip2_llama)]) == 0
    device, mirror = Device.open(tmp_path / "device"), Device.open(tmp_path / "mirror")
    assert device.digest == mirror.digest
    assert device.settings.groups == ("norm", "bias", "query", "lora")
    assert (
        main(["init", str(tmp_path / "other"), "--checkpoint", str(blip2_llama), "--seed", "1"])
        == 0
    )
    assert Device.open(tmp_path / "other").digest != device.digest


def test_the_overlay_does_not_depend_on_how_the_model_is_held(
    blip2_llama: Path, tmp_path: Path
) -> None:
    """An NF4 device and a mirror in full precision are two copies of one overlay."""
    for side, quantize in (("device", "nf4"), ("mirror", "none")):
        arguments = ["init", str(tmp_path / side), "--checkpoint", str(blip2_llama)]
        assert main([*arguments, "--quantize", quantize]) == 0
    device, mirror = Device.open(tmp_path / "device"), Device.open(tmp_path / "mirror")
    assert device.digest == mirror.digest
    assert device.settings.quantize == "nf4"


def test_groups_and_a_cut_qformer_are_kept(blip2_llama: Path, tmp_path: Path) -> None:
    arguments = ["init", str(tmp_path / "d"), "--checkpoint", str(blip2_llama)]
    assert main([*arguments, "--groups", "query,norm", "--qformer-layers", "1"]) == 0
    device = Device.open(tmp_path / "d")
    assert device.settings.groups == ("norm", "query")
    assert device.settings.qformer_layers == 1
    assert not any("lora" in name for name in device.read_overlay())


def test_lora_in_one_part_of_the_model(blip2_llama: Path, tmp_path: Path) -> None:
    """Device.json of version 4; with both parts it is `lora` as ever, in version 3."""
    found = {}
    for groups in ("lora.language", "lora.connector", "lora.language,lora.connector", "lora"):
        arguments = ["init", str(tmp_path / groups), "--checkpoint", str(blip2_llama), "--quiet"]
        assert main([*arguments, "--groups", groups]) == 0
        found[groups] = Device.open(tmp_path / groups)
    language, connector, both, lora = found.values()
    assert lora.settings.groups == both.settings.groups == ("lora",)
    assert (lora.digest, lora.model) == (both.digest, both.model)
    assert language.settings.groups == ("lora.language",)
    assert [device.as_json()["version"] for device in found.values()] == [4, 4, 3, 3]
    overlays = [device.read_overlay() for device in (language, connector, lora)]
    assert overlays[0].keys() | overlays[1].keys() == overlays[2].keys()
    assert all(name.startswith("language_model.") for name in overlays[0])
    assert all(name.startswith("qformer.") for name in overlays[1])
    assert len({language.model, connector.model, lora.model}) == 3


def test_the_experts_of_a_mixture_are_named_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A LLaVA around Qwen3-MoE; without the group `lora` nobody misses them."""
    import transformers as tf

    checkpoint = tiny.llava_checkpoint(tmp_path / "checkpoint")
    config = tf.LlavaConfig.from_pretrained(checkpoint)
    sizes = {**tiny.text_config("llama", config.text_config.vocab_size).to_dict(), "head_dim": 16}
    config.text_config = tf.Qwen3MoeConfig(
        **{name: value for name, value in sizes.items() if name != "model_type"},
        num_experts=4,
        moe_intermediate_size=64,
    )
    tf.LlavaForConditionalGeneration(config).save_pretrained(checkpoint)
    capfd.readouterr()
    arguments = ["init", str(tmp_path / "d"), "--checkpoint", str(checkpoint)]
    assert main([*arguments, "--lora-rank", "2"]) == 0
    words = f"cdcca init: {checkpoint}: the fused experts of 2 layers (Qwen3MoeExperts) get no LoRA"
    assert capfd.readouterr().err.splitlines()[:-1] == [words]
    linears = {name.removesuffix(".lora_A") for name in Device.open(tmp_path / "d").read_overlay()}
    assert "model.language_model.layers.0.self_attn.q_proj" in linears
    assert not any("experts" in name for name in linears)
    assert main([*arguments, "--groups", "norm,lora.connector", "--force"]) == 0
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_keys_and_how_many_overlays_are_kept(blip2_llama: Path, tmp_path: Path) -> None:
    for name in ("ann", "bob"):
        assert main(["keygen", str(tmp_path / name), "--quiet"]) == 0
    trusted = ["--trust", str(tmp_path / "ann.pub"), "--trust", str(tmp_path / "bob.pub")]
    arguments = ["init", str(tmp_path / "d"), "--checkpoint", str(blip2_llama)]
    assert main([*arguments, *trusted, "--threshold", "2", "--keep", "5"]) == 0
    device = Device.open(tmp_path / "d")
    assert device.trust is not None and device.as_json()["keep"] == 5
    assert (device.trust.version, device.trust.threshold, len(device.trust.keys)) == (1, 2, 2)


def test_the_model_digest_tells_what_the_overlay_does_not(
    blip2_llama: Path, tmp_path: Path
) -> None:
    """Alpha is in no overlay; how the language model is held is no part of the model."""
    found = {}
    for name, options in {
        "one": [],
        "same": ["--quantize", "nf4", "--keep", "3"],
        "alpha": ["--lora-alpha", "7"],
        "seed": ["--seed", "1"],
        "groups": ["--groups", "norm,lora"],
        "norm": ["--groups", "norm"],
        "norm, other alpha": ["--groups", "norm", "--lora-alpha", "7"],
    }.items():
        arguments = ["init", str(tmp_path / name), "--checkpoint", str(blip2_llama)]
        assert main([*arguments, "--quiet", *options]) == 0
        found[name] = Device.open(tmp_path / name)
    assert found["one"].model == found["same"].model
    assert found["alpha"].digest == found["one"].digest
    assert found["norm"].model == found["norm, other alpha"].model  # no LoRA, no alpha
    assert len({device.model for device in found.values()}) == 5


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--trust", "absent.pub"], 66, "absent.pub"),
        (["--trust", "ann"], 2, "is a private key"),
        (["--trust", "ann.pub", "--threshold", "2"], 2, "the number of keys"),
        (["--trust", "ann.pub", "--trust", "ann.pub"], 2, "given twice"),
        (["--threshold", "2"], 2, "does nothing without --trust"),
        (["--keep", "0"], 2, "--keep"),
    ],
)
def test_keys_that_cannot_be_trusted(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    words: str,
) -> None:
    assert main(["keygen", str(tmp_path / "ann"), "--quiet"]) == 0
    named = [str(tmp_path / word) if word.startswith(("ann", "abs")) else word for word in options]
    assert main(["init", str(tmp_path / "d"), *named]) == code
    message = capfd.readouterr().err
    assert words in message and message.count("\n") == 1
    assert not (tmp_path / "d").exists()


@pytest.fixture
def with_codebook(blip2_llama: Path, tmp_path: Path) -> Path:
    """A checkpoint with a codebook for its vision tower, and a device folder made before."""
    checkpoint = shutil.copytree(blip2_llama, tmp_path / "checkpoint")
    assert main(["init", str(tmp_path / "before"), "--checkpoint", str(checkpoint)]) == 0
    tower = Device.open(tmp_path / "before").settings.tower
    book = worlds.codebook(0, tower=tower)
    (checkpoint / "codebook.safetensors").write_bytes(worlds.codebook_file(book))
    return checkpoint


def test_a_checkpoints_codebook_comes_with_it(with_codebook: Path, tmp_path: Path) -> None:
    """On both sides; nothing else of the folder depends on it."""
    for side in ("device", "mirror"):
        assert main(["init", str(tmp_path / side), "--checkpoint", str(with_codebook)]) == 0
    before, device = (Device.open(tmp_path / side) for side in ("before", "device"))
    found = device.codebook()
    assert found is not None and (found.sequence, before.codebook()) == (0, None)
    assert (tmp_path / "mirror" / f"codebooks/0-{found.digest[7:23]}.safetensors").exists()
    assert device.as_json() | {"codebook": None} == before.as_json()


def test_a_codebook_of_another_vision_tower_does_not(
    with_codebook: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    book = worlds.codebook_file(worlds.codebook(0))
    (with_codebook / "codebook.safetensors").write_bytes(book)
    capfd.readouterr()
    assert main(["init", str(tmp_path / "d"), "--checkpoint", str(with_codebook)]) == 0
    first, last = capfd.readouterr().err.splitlines()
    assert "codebook.safetensors: not taken: it is for vision tower sha256:00000000" in first
    assert ", codebook " not in last and Device.open(tmp_path / "d").codebook_slot is None


def test_a_damaged_codebook_makes_nothing(
    with_codebook: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (with_codebook / "codebook.safetensors").write_bytes(b"damaged")
    capfd.readouterr()
    assert main(["init", str(tmp_path / "d"), "--checkpoint", str(with_codebook)]) == 65
    message = capfd.readouterr().err
    assert "codebook.safetensors" in message and message.count("\n") == 1
    assert not (tmp_path / "d").exists()


def test_a_codebook_is_none_of_a_checkpoints_weights(
    with_codebook: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (book,) = with_codebook.glob("codebook*")
    assert main(["inspect", str(with_codebook)]) == 0
    counts = json.loads(capfd.readouterr().out)["counts"]
    weights = [file for file in with_codebook.glob("*.safetensors") if file != book]
    book.rename(tmp_path / "book")
    assert main(["inspect", str(with_codebook)]) == 0
    assert json.loads(capfd.readouterr().out)["counts"] == counts
    (tmp_path / "book").rename(book)
    for file in weights:
        file.unlink()
    assert main(["init", str(tmp_path / "d"), "--checkpoint", str(with_codebook)]) == 66
    assert "has no weights" in capfd.readouterr().err


def test_json_is_what_device_json_holds(
    blip2_llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(tmp_path / "d"), "--checkpoint", str(blip2_llama), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert set(found.pop("takes")) == {"llama.cpp", "peft", "transformers"}
    assert found == json.loads((tmp_path / "d/device.json").read_text())


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--groups", "norm,weights"], 2, "weights"),
        (["--groups", ""], 2, "found an empty one"),
        (["--quantize", "nf3"], 2, "nf3"),
        (["--qformer-layers", "9"], 2, "9"),
        (["--lora-alpha", "-1"], 2, "-1"),
    ],
)
def test_wrong_options_make_nothing(
    blip2_llama: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    words: str,
) -> None:
    arguments = ["init", str(tmp_path / "d"), "--checkpoint", str(blip2_llama), *options]
    assert main(arguments) == code
    message = capfd.readouterr().err
    assert message.startswith("cdcca ") and message.count("\n") == 1 and words in message
    assert not (tmp_path / "d").exists()


def test_a_checkpoint_that_is_none_makes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = tiny.text_checkpoint(tmp_path / "text")
    (tmp_path / "empty").mkdir()
    for checkpoint, code in ((text, 2), (tmp_path / "empty", 66), (tmp_path / "absent", 66)):
        assert main(["init", str(tmp_path / "d"), "--checkpoint", str(checkpoint)]) == code
        assert capfd.readouterr().err.count("\n") == 1
        assert not (tmp_path / "d").exists()


def test_an_existing_device_is_kept(blip2_llama: Path, tmp_path: Path) -> None:
    arguments = ["init", str(tmp_path / "d"), "--checkpoint", str(blip2_llama)]
    assert main(arguments) == 0
    before = (tmp_path / "d/device.json").read_bytes()
    assert main([*arguments, "--seed", "5"]) == 73
    assert (tmp_path / "d/device.json").read_bytes() == before
    assert main([*arguments, "--seed", "5", "--force"]) == 0
    assert (tmp_path / "d/device.json").read_bytes() != before
