"""The attention that a token receives: transformers' own weights, and the definition in loops."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cdcca_cli import models
from cdcca_cli.models import LoadedModel, attention
from tests import tiny
from tests.models.conftest import Case


def slow_received(model: LoadedModel, hidden_NC: np.ndarray) -> list[float]:
    """The definition in float64 loops. hidden_NC: what the last block's attention reads."""
    part = model.block_modules(1)[0][0]
    weights = {name: value.double().numpy() for name, value in part.state_dict().items()}
    width = part.num_heads * part.head_dim
    if "qkv.weight" in weights:
        q, k = (
            hidden_NC @ weights["qkv.weight"][at : at + width].T
            + weights["qkv.bias"][at : at + width]
            for at in (0, width)
        )
    else:
        q, k = (
            hidden_NC @ weights[f"{name}_proj.weight"].T + weights[f"{name}_proj.bias"]
            for name in "qk"
        )
    count = len(hidden_NC)
    first = count - model.grid[0] * model.grid[1]
    total = [0.0] * count
    for h in range(part.num_heads):
        at = slice(h * part.head_dim, (h + 1) * part.head_dim)
        for query in range(first, count):
            terms = [
                math.exp(float(q[query, at] @ k[key, at]) / part.head_dim**0.5)
                for key in range(count)
            ]
            for key in range(count):
                total[key] += terms[key] / math.fsum(terms)
    means = [one / part.num_heads / (count - first) for one in total]
    return means[count - model.num_tokens :]


def check(model: LoadedModel) -> None:
    with torch.no_grad():
        hidden = model.trunk(model.preprocess(tiny.images(3)), 1)
        plain = model.tail(hidden, 1)
    part = model.block_modules(1)[0][0]
    read: list[torch.Tensor] = []
    handle = part.register_forward_pre_hook(
        lambda _module, args, kwargs: read.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    tokens, received = attention.received(model, hidden, 1)
    handle.remove()
    assert torch.equal(tokens, plain)
    assert received.shape == (3, model.num_tokens)
    assert received.dtype == torch.float32
    for row in range(3):
        slow = slow_received(model, read[0][row].double().numpy())
        assert received[row].tolist() == pytest.approx(slow, rel=1e-4)
        alone = attention.received(model, hidden[row : row + 1], 1)[1][0]
        assert alone.tolist() == pytest.approx(received[row].tolist(), rel=1e-5)
    assert received.std(1).min() > 1e-3, "else the test would be of nothing"


def test_received_attention_equals_the_slow_form(case: Case) -> None:
    check(case.model)
    sums = attention.received(case.model, case.model.trunk(pixels(case), 0), 0)[1].sum(1)
    if case.name == "llava":
        assert bool((sums < 1).all()), "the class token takes a share of the attention"
    else:
        assert sums.tolist() == pytest.approx([1] * len(sums), abs=1e-5)


def pixels(case: Case) -> torch.Tensor:
    return case.model.preprocess(case.images)


@pytest.mark.parametrize(("tower", "strategy"), [("clip", "full"), ("siglip", "full")])
def test_other_towers_of_llava(tmp_path: Path, tower: str, strategy: str) -> None:
    """SigLIP has no class token; with `full` CLIP's is a visual token."""
    folder = tiny.llava_checkpoint(tmp_path, tower=tower, layer=-1, strategy=strategy)
    check(models.load(folder, compute="cpu"))


def test_the_weights_are_those_of_the_eager_attention(case: Case) -> None:
    """transformers gives the weights where its attention is not fused."""
    tower = case.reference.model.get_submodule(case.model.row.tower_path)
    inner = getattr(tower, "vision_model", tower)
    block = inner.encoder.layers[case.model.num_blocks - 1]
    configs = {id(one.config): one.config for one in inner.modules() if hasattr(one, "config")}
    before = {key: one._attn_implementation for key, one in configs.items()}
    seen: list[torch.Tensor] = []
    handle = block.self_attn.register_forward_hook(
        lambda _module, _args, output: seen.append(output[1])
    )
    try:
        for one in configs.values():
            one._attn_implementation = "eager"
        with torch.no_grad():
            tower(pixels(case))
    finally:
        handle.remove()
        for key, one in configs.items():
            one._attn_implementation = before[key]
    expected = seen[0][:, :, 1:].mean((1, 2))[:, -case.model.num_tokens :]
    found = attention.received(case.model, case.model.trunk(pixels(case), 0), 0)[1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_no_hook_stays(case: Case) -> None:
    part = case.model.block_modules(1)[0][0]
    attention.received(case.model, case.model.trunk(pixels(case), 0), 0)
    assert all(not module._forward_hooks for module in part.modules())


def test_the_grid(case: Case) -> None:
    """48 pixels in patches of 16: 3 rows and 3 columns, and a class token in the Q families."""
    assert case.model.grid == (3, 3)
    assert case.model.num_tokens - 9 == (0 if case.name == "llava" else 1)
