"""Equations 2, 3 and 4, and why dropout goes inside the tower and not on its tokens."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cdcca_cli.datasets import Frame, load_image
from cdcca_cli.errors import BadData
from cdcca_cli.models import LoadedModel, Trunk, load
from cdcca_cli.models.decoding import step_entropy
from cdcca_cli.uplink import token_rules
from cdcca_cli.uplink.entropies import summarise
from cdcca_cli.uplink.settings import ENTROPIES
from cdcca_cli.uplink.uncertainty import (
    frame_generator,
    injected_dropout,
    pass_variance,
    token_variance,
)


def slow_entropy(logits: list[float]) -> float:
    """- sum p ln p in float64 loops; 0 ln 0 is 0."""
    highest = max(logits)
    weights = [math.exp(logit - highest) for logit in logits]
    probabilities = [weight / math.fsum(weights) for weight in weights]
    return -math.fsum(p * math.log(p) for p in probabilities if p > 0)


def test_entropy_equals_the_slow_form() -> None:
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(0)) * 3
    logits[2, 5:] = -torch.inf
    slow = [slow_entropy([float(x) for x in row if x > -torch.inf]) for row in logits]
    assert step_entropy(logits).tolist() == pytest.approx(slow, abs=1e-5)


def test_bounds() -> None:
    """ln V for a uniform distribution, 0 for a certain one, and never below."""
    certain = torch.full((1, 9), -torch.inf)
    certain[0, 4] = 1.0
    assert step_entropy(certain).item() == 0
    assert step_entropy(torch.zeros(1, 9)).item() == pytest.approx(math.log(9), abs=1e-6)
    peaked = torch.tensor([[80.0, 0.0, -80.0], [30.0, 29.9, -100.0]])
    assert bool((step_entropy(peaked) >= 0).all())


def test_half_precision_is_taken_in_float32() -> None:
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(1)).bfloat16()
    slow = [slow_entropy([float(x) for x in row]) for row in logits]
    assert step_entropy(logits).dtype == torch.float32
    assert step_entropy(logits).tolist() == pytest.approx(slow, abs=1e-5)


def test_figures_of_an_answer() -> None:
    """0.5 + 2 + 1 = 3.5, over three tokens 1.1667, the highest 2, the first 0.5."""
    figures = summarise([0.5, 2.0, 1.0])
    assert figures == {"mean": pytest.approx(3.5 / 3), "sum": 3.5, "max": 2.0, "first": 0.5}
    assert set(figures) == set(ENTROPIES)


def test_one_token_is_all_four() -> None:
    assert set(summarise([0.7]).values()) == {0.7}


def trunk_of(model: LoadedModel, frame: Frame, blocks: int = 2) -> Trunk:
    with torch.no_grad():
        (picture,) = model.prepare([load_image(frame)])
        return model.trunk(picture, model.num_blocks - blocks)


def scored(
    model: LoadedModel, frame: Frame, **changes: object
) -> tuple[torch.Tensor, torch.Tensor]:
    options: dict = {"blocks": 2, "passes": 8, "rate": 0.1, "seed": 0, **changes}
    trunk = trunk_of(model, frame, options["blocks"])
    seen, variance_N = token_variance(model, trunk, frame.id, **options)
    return seen.tokens, variance_N


def test_variance_equals_the_slow_form() -> None:
    """1/C sum_c 1/M sum_m (F - mean F)^2, in float64 loops."""
    tokens = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
    slow = []
    for n in range(4):
        total = 0.0
        for c in range(3):
            values = [float(tokens[m, n, c]) for m in range(5)]
            mean = sum(values) / 5
            total += sum((value - mean) ** 2 for value in values) / 5
        slow.append(total / 3)
    assert pass_variance(tokens).tolist() == pytest.approx(slow, rel=1e-5)


def test_by_hand() -> None:
    """Two passes 1 and 3: mean 2, variance ((1-2)^2 + (3-2)^2) / 2 = 1 (not 2: it is 1/M)."""
    assert pass_variance(torch.tensor([[[1.0]], [[3.0]]])).tolist() == [1.0]


def test_dropout_on_the_tokens_is_their_norm() -> None:
    """var = p / (1 - p) mean_c x_c^2, in closed form; the slow estimate takes 20,000 passes.

    Each channel is x / (1 - p) with probability 1 - p, else 0: mean x, second moment x^2 / (1 - p),
    so variance x^2 (1 / (1 - p) - 1) = x^2 p / (1 - p).
    """
    rate, passes = 0.2, 20_000
    rng = np.random.default_rng(3)
    tokens = rng.normal(size=(6, 16)) * rng.uniform(0.5, 2, size=(6, 1))
    drawn = np.zeros((6, 16)), np.zeros((6, 16))
    for _ in range(passes):
        dropped = np.where(rng.random(tokens.shape) >= rate, tokens / (1 - rate), 0.0)
        drawn[0][:] += dropped
        drawn[1][:] += dropped**2
    estimate = (drawn[1] / passes - (drawn[0] / passes) ** 2).mean(-1)
    closed = rate / (1 - rate) * (tokens**2).mean(-1)
    assert estimate == pytest.approx(closed, rel=0.03)
    norm = token_rules.token_norm(tokens.astype(np.float32))
    assert closed == pytest.approx(rate / (1 - rate) * norm, rel=1e-5)

    batch = torch.from_numpy(tokens).float().expand(1 + passes // 10, 6, 16)
    identity = torch.nn.Identity()
    with injected_dropout([identity], rate, passes // 10, frame_generator(0, "f")):
        injected = pass_variance(identity(batch)[1:])
    assert injected.numpy() == pytest.approx(closed, rel=0.1)


def test_dropout_inside_ranks_otherwise_than_the_norm(
    model: LoadedModel, frames: list[Frame]
) -> None:
    """Else stage 2 would be a constant times what needs no passes."""
    differ = 0
    for frame in frames:
        tokens, variance = scored(model, frame, passes=64)
        by_norm = token_rules.highest(token_rules.token_norm(tokens.numpy()), 5)
        by_variance = token_rules.highest(variance.numpy(), 5)
        differ += by_norm.tolist() != by_variance.tolist()
    assert differ >= len(frames) // 2


@pytest.mark.parametrize("checkpoint", ["blip2_llama", "instructblip", "llava"])
def test_clean_tokens_are_those_without_dropout(
    checkpoint: str, request: pytest.FixtureRequest, frames: list[Frame]
) -> None:
    folder: Path = request.getfixturevalue(checkpoint)
    model = load(folder, compute="cpu")
    tokens, variance = scored(model, frames[0])
    with torch.no_grad():
        (plain,) = model.see(model.prepare([load_image(frames[0])]))
    torch.testing.assert_close(tokens, plain.tokens, rtol=0, atol=1e-5)
    assert variance.shape == (plain.num_tokens,)
    assert bool((variance > 0).all())


def test_passes_equal_one_tail_each(model: LoadedModel, frames: list[Frame]) -> None:
    """All passes as one batch are what one pass after the other gives, with the same masks."""
    rate, passes = 0.1, 5
    trunk = trunk_of(model, frames[1])
    shape = trunk.states[0].shape[1:]
    _, variance = scored(model, frames[1], passes=passes)
    generator = frame_generator(0, frames[1].id)
    modules = model.block_modules(2)
    kept = [generator.random((passes, *shape), dtype=np.float32) for _ in modules]
    slow = []
    for m in range(passes):
        handles = [
            module.register_forward_hook(
                lambda _module, _args, output, mask=torch.from_numpy(drawn[m] >= rate): (
                    (output[0] * mask / (1 - rate), *output[1:])
                    if isinstance(output, tuple)
                    else output * mask / (1 - rate)
                )
            )
            for module, drawn in zip(modules, kept, strict=True)
        ]
        with torch.no_grad():
            slow.append(model.tail(trunk)[0][0].double().numpy())
        for handle in handles:
            handle.remove()
    assert variance.numpy() == pytest.approx(np.var(slow, axis=0).mean(-1), rel=1e-4)


def test_seed_and_frame_decide(model: LoadedModel, frames: list[Frame]) -> None:
    trunk = trunk_of(model, frames[0])

    def variance(seed: int, frame: str) -> list[float]:
        options = {"blocks": 2, "passes": 8, "rate": 0.1, "seed": seed}
        return token_variance(model, trunk, frame, **options)[1].tolist()

    assert variance(0, "a") == variance(0, "a")
    assert variance(0, "a") != variance(1, "a")
    assert variance(0, "a") != variance(0, "b")


def test_random_numbers_are_pinned() -> None:
    """Another numpy must not change which tokens a device sends.

    The second form: the key is the first 16 bytes of SHA-256("7\\nclip.mp4#3"), little-endian, for
    Philox-4x64; of each 64 raw bits the low half comes first, and its upper 24 bits over 2^24 are
    the number. 0.96561... is what both gave when this was written.
    """
    key = int.from_bytes(hashlib.sha256(b"7\nclip.mp4#3").digest()[:16], "little")
    first, second = (int(raw) for raw in np.random.Philox(key=key).random_raw(2))
    halves = [first & 0xFFFFFFFF, first >> 32, second & 0xFFFFFFFF]
    drawn = frame_generator(7, "clip.mp4#3").random(3, dtype=np.float32).tolist()
    assert drawn == [(half >> 8) / 2**24 for half in halves]
    assert drawn[0] == 0.9656174778938293


def test_more_blocks_vary_more_and_hooks_are_gone(model: LoadedModel, frames: list[Frame]) -> None:
    one = scored(model, frames[0], blocks=1)[1].sum()
    three = scored(model, frames[0], blocks=3)[1].sum()
    assert three > one
    trunk = trunk_of(model, frames[0])
    with torch.no_grad():
        first, second = (model.tail(trunk)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_no_variance_is_an_error(blip2_llama: Path, frames: list[Frame]) -> None:
    """A tower whose last blocks add nothing: dropout of zero is zero."""
    model = load(blip2_llama, compute="cpu")
    with torch.no_grad():
        for module in model.block_modules(2):
            for parameter in module.parameters():
                parameter.zero_()
    with pytest.raises(BadData, match=r"00\.png.*no token changed"):
        scored(model, frames[0])


def test_values_that_are_not_finite_are_an_error(blip2_llama: Path, frames: list[Frame]) -> None:
    model = load(blip2_llama, compute="cpu")
    with torch.no_grad():
        next(model.block_modules(1)[1].parameters()).fill_(float("nan"))
    with pytest.raises(BadData, match="not finite"):
        scored(model, frames[0])
