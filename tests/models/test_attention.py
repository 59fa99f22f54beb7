"""The attention that a token receives: transformers' own weights, and the definition in loops."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cdcca_cli import models
from cdcca_cli.models import LoadedModel, Seen, attention
from tests import tiny
from tests.models.conftest import Case


def slow_received(model: LoadedModel, seen: Seen, hidden_NC: np.ndarray) -> list[float]:
    """The definition in float64 loops. hidden_NC: what the last block's attention reads."""
    part = model.block_modules(1)[0]
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
    first = count - math.prod(seen.layout.grid)
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
    return means[count - seen.num_tokens :]


def check(model: LoadedModel) -> None:
    part = model.block_modules(1)[0]
    for picture in model.prepare(tiny.images(3)):
        with torch.no_grad():
            trunk = model.trunk(picture, 1)
            plain, layout = model.tail(trunk)
        read: list[torch.Tensor] = []
        handle = part.register_forward_pre_hook(
            lambda _module, args, kwargs, read=read: read.append(
                args[0] if args else kwargs["hidden_states"]
            ),
            with_kwargs=True,
        )
        seen, received = attention.received(model, trunk)
        handle.remove()
        assert torch.equal(seen.tokens, plain[0])
        assert seen.layout == layout
        assert received.shape == (seen.num_tokens,)
        assert received.dtype == torch.float32
        slow = slow_received(model, seen, read[0][0].double().numpy())
        assert received.tolist() == pytest.approx(slow, rel=1e-4)
        assert received.std() > 1e-3, "else the test would be of nothing"


def received_of(case: Case) -> list[torch.Tensor]:
    model = case.model
    pictures = model.prepare(case.images)
    return [attention.received(model, model.trunk(picture, 0))[1] for picture in pictures]


def test_received_attention_equals_the_slow_form(case: Case) -> None:
    check(case.model)
    sums = [float(received.sum()) for received in received_of(case)]
    if case.name == "llava":
        assert max(sums) < 1, "the class token takes a share of the attention"
    else:
        assert sums == pytest.approx([1] * len(sums), abs=1e-5)


def test_other_towers_of_llava(tmp_path: Path) -> None:
    """SigLIP has no class token; with `full` CLIP's is a visual token."""
    folder = tiny.llava_checkpoint(tmp_path / "s", tower="siglip", layer=-1, strategy="full")
    check(models.load(folder, compute="cpu"))
    folder = tiny.llava_checkpoint(tmp_path / "c", tower="clip", layer=-1, strategy="full")
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
            tower(
                torch.cat([one.inputs["pixel_values"] for one in case.model.prepare(case.images)])
            )
    finally:
        handle.remove()
        for key, one in configs.items():
            one._attn_implementation = before[key]
    found = torch.stack(received_of(case))
    expected = seen[0][:, :, 1:].mean((1, 2))[:, -found.shape[1] :]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_no_hook_stays(case: Case) -> None:
    """Only those that transformers itself leaves in a tower that has run."""

    def hooks() -> list[object]:
        parts = case.model.tower.modules()
        return [[*one._forward_hooks.values(), *one._forward_pre_hooks.values()] for one in parts]

    case.model.see(case.model.prepare(case.images))
    before = hooks()
    received_of(case)
    assert hooks() == before


def test_the_grid(case: Case) -> None:
    """48 pixels in patches of 16: 3 rows and 3 columns, and a class token in the Q families."""
    (seen,) = case.model.see(case.model.prepare(case.images[:1]))
    assert seen.layout.grid == (3, 3)
    assert seen.num_tokens - 9 == (0 if case.name == "llava" else 1)
