"""LoRA by hooks is PEFT's LoRA, forward and backward, and comes off without a trace."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdcca_cli import models
from cdcca_cli.formats.names import LORA_B
from cdcca_cli.models import lora
from tests import tiny

RANK, ALPHA = 3, 7.0


def linears(model: models.LoadedModel) -> list[str]:
    groups = model.trainable_groups()
    return groups["lora.language"] + groups["lora.connector"]


def random_lora(names: list[str], model: models.LoadedModel) -> dict[str, np.ndarray]:
    overlay = model.initial_overlay(["lora"], RANK, 5)
    generator = np.random.default_rng(1)
    for name in names:
        shape = overlay[name + LORA_B].shape
        overlay[name + LORA_B] = generator.normal(0, 0.05, shape).astype(np.float32)
    return overlay


def peft_logits(folder: Path, overlay: dict[str, np.ndarray], inputs: Any) -> tuple[Any, Any]:
    """The same weights in PEFT's own LoRA, on a model of its own."""
    import peft
    import transformers as tf

    names = sorted({name.rpartition(".")[0] for name in overlay})
    plain = tf.Blip2ForConditionalGeneration.from_pretrained(folder)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names, lora_dropout=0.0)
    wrapped = peft.get_peft_model(plain, config).eval()
    for name in names:
        linear = wrapped.base_model.model.get_submodule(name)
        with torch.no_grad():
            linear.lora_A["default"].weight.copy_(torch.from_numpy(overlay[f"{name}.lora_A"]))
            linear.lora_B["default"].weight.copy_(torch.from_numpy(overlay[f"{name}.lora_B"]))
    logits = wrapped(**inputs).logits
    logits.square().sum().backward()
    gradients = {
        f"{name}.lora_{side}": getattr(
            wrapped.base_model.model.get_submodule(name), f"lora_{side}"
        )["default"].weight.grad
        for name in names
        for side in "AB"
    }
    return logits.detach(), gradients


def test_equals_peft(blip2_llama: Path) -> None:
    """Logits to 1e-6 of their size and every gradient, on all linears that get LoRA."""
    model = models.load(blip2_llama, compute="cpu")
    names = linears(model)
    overlay = random_lora(names, model)
    import transformers as tf

    processor = tf.Blip2Processor(
        model.preparer.image_processor, model.tokenizer, num_query_tokens=4
    )
    inputs = processor(images=tiny.images(1)[0], text="Question: red? Answer:", return_tensors="pt")
    before = model.module(**inputs).logits
    model.install_overlay(overlay, ALPHA)
    trainable = model.trainable()
    logits = model.module(**inputs).logits
    logits.square().sum().backward()
    theirs, gradients = peft_logits(blip2_llama, overlay, inputs)
    assert (logits.detach() - before).abs().max() > 0.01, "the LoRA should change something"
    torch.testing.assert_close(logits.detach(), theirs, rtol=1e-6, atol=1e-6)
    assert sorted(trainable) == sorted(gradients)
    for name, parameter in trainable.items():
        grad, expected = parameter.grad, gradients[name]
        if grad is None or expected is None:
            assert grad is expected is None
        else:
            torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-3)


def test_zero_b_changes_nothing(blip2_llama: Path) -> None:
    model = models.load(blip2_llama, compute="cpu")
    seen = model.see(model.prepare(tiny.images(1)))
    prompt = [model.format_prompt("red?", "vqa")]
    answer = model.answer_ids(["two"])

    def logits() -> torch.Tensor:
        return model.forward(model.read(seen, prompt), answer).logits

    plain = logits()
    start = model.initial_overlay(["lora"], RANK, 0)
    model.install_overlay(start, ALPHA)
    assert torch.equal(logits(), plain)
    model.install_overlay(random_lora(linears(model), model), ALPHA)
    assert not torch.equal(logits(), plain)


@pytest.mark.parametrize("alpha", [1.0, 8.0])
def test_scale_is_alpha_over_rank(alpha: float) -> None:
    """By hand: W = 0, A picks the first input twice, B adds the two: 2 (alpha / 2) x_0."""
    linear = torch.nn.Linear(3, 1)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    a_RI = torch.tensor([[1.0, 0, 0], [1.0, 0, 0]])
    lora.attach(linear, a_RI, torch.ones(1, 2), alpha)
    lora.attach(linear, a_RI, torch.ones(1, 2), alpha)  # again: still one hook
    assert linear(torch.tensor([5.0, 1.0, 1.0])).item() == pytest.approx(5 * alpha)
