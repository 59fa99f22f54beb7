"""NF4 and int8 on a CPU: load, answer, score, train; and the traps of bitsandbytes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cdcca_cli import models
from cdcca_cli.errors import Unavailable, UsageError
from cdcca_cli.formats.names import GROUPS
from cdcca_cli.models import initial, quantization
from cdcca_cli.models.settings import InitSettings
from tests import tiny

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
PROMPTS = ["Question: what colour is the square? Answer:", "Question: how many? Answer:"]


def spliced(model: models.LoadedModel) -> models.Spliced:
    prompts = PROMPTS
    if model.family == "llava":
        prompts = [model.format_prompt(prompt, "vqa") for prompt in PROMPTS]
    return model.read(model.see(model.prepare(tiny.images(2))), prompts)


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
@pytest.mark.parametrize("name", ["blip2_llama", "blip2_opt", "blip2_t5", "instructblip", "llava"])
def test_load_answer_and_score(name: str, quantize: str, request: pytest.FixtureRequest) -> None:
    """Only the language model is quantised; tokens are those of the full model, bit for bit."""
    folder = request.getfixturevalue(name)
    full = models.load(folder, compute="cpu")
    model = models.load(folder, compute="cpu", quantize=quantize)
    linears = quantization.quantized_linears(model.module)
    groups = full.trainable_groups()
    # transformers keeps T5's `wo` as it is.
    of_language = [name for name in groups["lora.language"] if not name.endswith(".wo")]
    assert len(linears) == len(of_language)
    assert model.trainable_groups() == groups
    assert model.tower_digest == full.tower_digest
    pictures = full.prepare(tiny.images(2))
    for ours, theirs in zip(model.see(pictures), full.see(pictures), strict=True):
        assert torch.equal(ours.tokens, theirs.tokens)
        assert ours.layout == theirs.layout
    made = model.generate(spliced(model), 4)
    assert all(np.isfinite(row).all() for row in made.entropies)
    scores = model.score_choices(spliced(model), [["red", "two"], ["one"]])
    exact = full.score_choices(spliced(full), [["red", "two"], ["one"]])
    # 4 bits change a random model's scores, but not beyond recognition.
    for row, expected in zip(scores, exact, strict=True):
        assert row == pytest.approx(expected, rel=0.25)
        assert row != expected


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_the_digest_is_the_same_before_and_after_an_answer(
    blip2_llama: Path, quantize: str
) -> None:
    """The first answer repacks the weights in memory; identity is content.

    And asking for the digest changes no later answer.
    """
    before = models.load(blip2_llama, compute="cpu", quantize=quantize).digest
    model = models.load(blip2_llama, compute="cpu", quantize=quantize)
    first = model.generate(spliced(model), 3)
    assert model.digest == before
    again = model.generate(spliced(model), 3)
    assert again.ids == first.ids
    for row, expected in zip(again.entropies, first.entropies, strict=True):
        assert row == pytest.approx(expected, abs=1e-6)
    assert model.digest != models.load(blip2_llama, compute="cpu").digest


def test_unpack_gives_the_weight_back() -> None:
    """Two blocks of 64 in a row of inputs: bitsandbytes alone leaves their scales transposed.

    The scales come back rounded to bfloat16: within 2^-8 of what they were, no more.
    """
    import bitsandbytes as bnb
    from bitsandbytes.functional import dequantize_4bit

    torch.manual_seed(0)
    linear = bnb.nn.Linear4bit(128, 64, quant_type="nf4", compress_statistics=False)
    linear.weight.data *= torch.linspace(0.1, 3, 128)  # scales that differ along a row
    linear = linear.to("cpu").eval()
    before = dequantize_4bit(linear.weight.data, linear.weight.quant_state).clone()
    with torch.no_grad():
        linear(torch.randn(2, 128))
    module = torch.nn.Sequential(linear)
    quantization.unpack(module)
    after = dequantize_4bit(linear.weight.data, linear.weight.quant_state)
    assert (after - before).abs().max() <= before.abs().max() * 2**-8
    quantization.unpack(module)
    assert torch.equal(dequantize_4bit(linear.weight.data, linear.weight.quant_state), after)


def test_gradients_are_right_after_an_answer(blip2_llama: Path) -> None:
    """`training_mode` on a model that has answered (packed) against one that never has.

    Without it bitsandbytes' gradients in eval mode are wrong on a CPU with AVX512-BF16.
    """
    gradients = []
    for answers_first in (False, True):
        model = models.load(blip2_llama, compute="cpu", quantize="nf4")
        values = model.initial_overlay(GROUPS, 2, 0)
        for name in values:
            if name.endswith("lora_B"):
                values[name] = values[name] + np.float32(0.02)
        model.install_overlay(values, 4.0)
        if answers_first:
            model.generate(spliced(model), 2)
        trainable = model.trainable()
        with model.training_mode():
            assert all(part.training for part in quantization.quantized_linears(model.module))
            assert not any(
                part.training
                for part in model.module.modules()
                if isinstance(part, torch.nn.Dropout)
            )
            logits = model.forward(spliced(model), model.answer_ids(["red", "two"])).logits
            logits.square().mean().backward()
        assert not model.module.training
        gradients.append({n: p.grad for n, p in trainable.items() if p.grad is not None})
        assert all(np.array_equal(model.overlay()[name], values[name]) for name in values)
    fresh, packed = gradients
    assert sorted(fresh) == sorted(packed)
    for name, expected in fresh.items():
        found = packed[name]
        if expected.norm() > 1e-8:
            cosine = torch.nn.functional.cosine_similarity(
                expected.flatten(), found.flatten(), dim=0
            )
            assert cosine > 0.99, name
            assert found.norm() / expected.norm() == pytest.approx(1, abs=0.05), name


def test_lora_works_on_4_bits(blip2_llama: Path) -> None:
    """The hook adds the same to a 4-bit linear as to a full one."""
    full = models.load(blip2_llama, compute="cpu")
    model = models.load(blip2_llama, compute="cpu", quantize="nf4")
    name = "language_model.model.layers.0.self_attn.q_proj"
    values = {
        f"{name}.lora_A": np.ones((2, 64), np.float32),
        f"{name}.lora_B": np.full((64, 2), 0.5, np.float32),
    }
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    added = []
    for loaded in (full, model):
        linear = loaded.module.get_submodule(name)
        plain = linear(x)
        loaded.install_overlay(values, 2.0)
        added.append(linear(x) - plain)
    torch.testing.assert_close(added[1], added[0], rtol=1e-4, atol=1e-4)
    expected = x.sum(1, keepdim=True).expand(-1, 64)  # 2/2 * (0.5 + 0.5) * sum x
    torch.testing.assert_close(added[0], expected, rtol=1e-4, atol=1e-4)


def test_a_model_of_which_4_bits_can_hold_nothing(tmp_path: Path) -> None:
    """Said at init and at load, with the first linear's name and numbers; int8 takes it."""
    folder = tiny.q_checkpoint(tmp_path / "odd", width=48)
    words = r"no linear .* multiples of 64 inputs and 32 .*layers\.0\.self_attn\.q_proj: 48 and 48"
    with pytest.raises(UsageError, match=words):
        models.load(folder, compute="cpu", quantize="nf4")
    with pytest.raises(UsageError, match=words):
        initial.create_device(tmp_path / "device", str(folder), InitSettings(quantize="nf4"))
    assert not (tmp_path / "device").exists()
    model = models.load(folder, compute="cpu", quantize="int8")
    assert len(model.generate(spliced(model), 2).ids) == 2


def test_a_quantised_device(tmp_path: Path, blip2_llama: Path) -> None:
    """The same overlay as an unquantised mirror's: one truth on both sides."""
    device = initial.create_device(
        tmp_path / "d", str(blip2_llama), InitSettings(quantize="nf4", lora_rank=2)
    )
    mirror = initial.create_device(tmp_path / "m", str(blip2_llama), InitSettings(lora_rank=2))
    assert device.digest == mirror.digest
    model = models.load_device(device, compute="cpu")
    assert quantization.quantized_linears(model.module)
    overlay = model.overlay()
    model.generate(spliced(model), 3)
    assert all(np.array_equal(value, overlay[name]) for name, value in model.overlay().items())
    in_full = models.load_device(device, compute="cpu", quantize="none")
    assert not quantization.quantized_linears(in_full.module)
    assert in_full.digest == model.digest == device.digest


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_float32_biases_survive_a_bfloat16_answer(blip2_llama: Path, quantize: str) -> None:
    """bitsandbytes casts a bias in place; the overlay must come back bit for bit, and train."""
    values = models.load(blip2_llama, compute="cpu").initial_overlay(GROUPS, 2, 0)
    model = models.load(blip2_llama, compute="cpu", quantize=quantize, dtype="bfloat16")
    model.install_overlay(values, 4.0)
    model.install_overlay(values, 4.0)
    made = model.generate(spliced(model), 3)
    assert all(np.isfinite(row).all() for row in made.entropies)
    assert all(np.array_equal(value, values[name]) for name, value in model.overlay().items())
    trainable = model.trainable()
    with model.training_mode():
        logits = model.forward(spliced(model), model.answer_ids(["red", "two"])).logits
        logits.float().square().mean().backward()
    name = "language_model.model.layers.1.mlp.down_proj.bias"
    gradient = trainable[name].grad
    assert gradient is not None
    assert gradient.dtype == torch.float32
    assert gradient.any()
    assert all(np.array_equal(value, values[name]) for name, value in model.overlay().items())


def test_without_bitsandbytes(blip2_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(Unavailable, match="pip install bitsandbytes"):
        models.load(blip2_llama, compute="cpu", quantize="nf4")


def test_bitsandbytes_gives_no_advice_on_stderr() -> None:
    """It logs some when it is imported, which came before the first line of `infer`."""
    program = (
        "import torch; from cdcca_cli.families import FAMILIES; "
        "from cdcca_cli.models import quantization; "
        "quantization.config('int8', FAMILIES['llava'], None, torch.float32)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
