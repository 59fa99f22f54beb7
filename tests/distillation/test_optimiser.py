"""Flat parameters, Adam and phi's start."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cdcca_cli.distillation.distill import check_overlay_names
from cdcca_cli.distillation.methods import Method
from cdcca_cli.distillation.optimiser import BETAS, Flat, adam, open_overlay
from cdcca_cli.distillation.phi import initial_phi
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.errors import BadData
from cdcca_cli.formats.device import Device
from cdcca_cli.models import LoadedModel


def twins(seed: int) -> tuple[nn.Module, nn.Module]:
    """Two equal small networks."""
    made = []
    for _ in range(2):
        torch.manual_seed(seed)
        made.append(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)))
    return made[0], made[1]


def test_flat_values_and_gradients_are_the_parameters_own() -> None:
    plain, flattened = twins(0)
    flat = Flat(dict(flattened.named_parameters()))
    batch = torch.randn(4, 5)
    for _ in range(2):  # gradients add up until they are cleared
        plain(batch).square().sum().backward()
        flattened(batch).square().sum().backward()
    named = dict(plain.named_parameters())
    assert len(flat) == sum(parameter.numel() for parameter in named.values())
    for name, array in flat.arrays(flat.gradient).items():
        np.testing.assert_array_equal(array, named[name].grad.numpy())
    for name, array in flat.arrays(flat.values).items():
        np.testing.assert_array_equal(array, named[name].detach().numpy())
    flat.values.zero_()
    assert flattened(batch).abs().max() == 0
    flat.clear()
    assert all(parameter.grad.abs().max() == 0 for parameter in flattened.parameters())


def test_adam_equals_the_one_of_torch() -> None:
    """torch.optim.AdamW without decay after clip_grad_norm_, over two flats and ten steps."""
    plain, flattened = twins(1)
    first, second = (
        Flat({name: p for name, p in flattened.named_parameters() if name.startswith(layer)})
        for layer in ("0", "2")
    )
    optimiser = adam([first, second])
    reference = torch.optim.AdamW(plain.parameters(), betas=BETAS, weight_decay=0)
    for step in range(10):
        batch = torch.randn(4, 5) * (30 if step % 2 else 0.1)  # clipped, and not clipped
        lr = 0.01 / (step + 1)
        reference.param_groups[0]["lr"] = lr
        reference.zero_grad()
        plain(batch).square().mean().backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        assert (norm > 1) == bool(step % 2)
        reference.step()
        first.clear()
        second.clear()
        flattened(batch).square().mean().backward()
        nn.utils.clip_grad_norm_([first.values, second.values], 1.0)
        for group in optimiser.param_groups:
            group["lr"] = lr
        optimiser.step()
    for mine, theirs in zip(flattened.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


class NoLoss(Method):
    """A method whose running mean alone is of interest."""

    def losses(self, batch: Sequence[int]) -> dict[str, Tensor]:
        raise NotImplementedError


def test_a_running_mean_equals_the_slow_form() -> None:
    """0.9^n times the start, and 0.1 * 0.9^(n-i) times each value since."""
    (plain, _) = twins(3)
    flat = Flat(dict(plain.named_parameters()))
    values = [flat.values.double().clone()]
    context: Any = SimpleNamespace(overlay=flat, settings=DistillSettings())
    method = NoLoss(context, {}, 0.9)
    assert method.mean_P is not None and torch.equal(method.mean_P, flat.values)
    for _ in range(5):
        flat.values.add_(torch.randn(len(flat)))
        values.append(flat.values.double().clone())
        method.after_step(0)
    weights = [0.9**5, *(0.1 * 0.9 ** (5 - i) for i in range(1, 6))]
    expected = torch.stack([w * v for w, v in zip(weights, values, strict=True)]).sum(0)
    torch.testing.assert_close(method.mean_P.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(flat.values.double(), values[-1])


def test_other_values_are_held_for_a_while_only() -> None:
    """Whatever happens inside, the parameters have their own again, and the very same tensors."""
    (plain, _) = twins(4)
    flat = Flat(dict(plain.named_parameters()))
    own, batch = flat.values.clone(), torch.randn(2, 5)
    before = plain(batch)
    with pytest.raises(KeyError), flat.holding(torch.zeros(len(flat))):
        assert not plain(batch).any()
        flat.values.add_(1)
        raise KeyError
    assert torch.equal(flat.values, own)
    assert torch.equal(plain(batch), before)


def test_arrays_are_laid_out_as_they_were_taken() -> None:
    (plain, _) = twins(5)
    flat = Flat(dict(plain.named_parameters()))
    assert flat.names == ["0.bias", "0.weight", "2.bias", "2.weight"]
    arrays = flat.arrays(flat.values)
    backwards = dict(reversed(arrays.items()))
    assert torch.equal(flat.laid_out({**backwards, "another": np.zeros(3)}), flat.values)
    arrays["0.bias"] += 1
    assert not np.array_equal(arrays["0.bias"], flat.arrays(flat.values)["0.bias"])
    nothing = Flat({})
    assert (len(nothing), nothing.names, nothing.arrays(nothing.values)) == (0, [], {})


def test_phi_finds_a_linear_map() -> None:
    """Y = X W' + b without noise is found again, but for the ridge's share of one in 1000."""
    torch.manual_seed(2)
    x_ES, true = torch.randn(500, 6), nn.Linear(6, 4)
    with torch.no_grad():
        phi = initial_phi(x_ES, true(x_ES))
    torch.testing.assert_close(phi.weight, true.weight, rtol=3e-3, atol=1e-3)
    torch.testing.assert_close(phi.bias, true.bias, rtol=3e-3, atol=1e-3)


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_phi_is_finite_with_few_or_equal_rows(rows: int) -> None:
    """Fewer rows than channels, and rows that are all alike: phi gives their mean."""
    x_ES, y_EC = torch.ones(rows, 6), torch.full((rows, 4), 2.5)
    phi = initial_phi(x_ES, y_EC)
    torch.testing.assert_close(phi(x_ES), y_EC)


def test_only_the_overlay_is_opened(student: LoadedModel, mirror: Device) -> None:
    overlay = mirror.read_overlay()
    flat = open_overlay(student, overlay, mirror.lora.alpha)
    opened = {name for name, p in student.module.named_parameters() if p.requires_grad}
    assert opened == set(overlay)
    for name, array in flat.arrays(flat.values).items():
        np.testing.assert_array_equal(array, overlay[name])
    flat.values.add_(1)
    for name, array in student.overlay().items():
        np.testing.assert_array_equal(array, overlay[name] + np.float32(1))


@pytest.mark.parametrize(
    "groups",
    [
        ("norm",),
        ("bias", "lora"),
        ("query",),
        ("lora.connector",),
        ("lora.language", "norm"),
        ("lora.attention", "query"),
    ],
)
def test_groups_are_opened_alone(
    groups: tuple[str, ...], student: LoadedModel, mirror: Device
) -> None:
    """By their names in the module; the whole overlay is on the student all the same."""
    overlay = mirror.read_overlay()
    flat = open_overlay(student, overlay, mirror.lora.alpha, groups)
    opened = {name for name, p in student.module.named_parameters() if p.requires_grad}
    parts = {
        "norm": {name for name in overlay if name.endswith("norm.weight")},
        "bias": {name for name in overlay if name.endswith("proj.bias")},
        "query": {"query_tokens"},
        "lora": {name for name in overlay if ".lora_" in name},
    }
    assert set().union(*parts.values()) == set(overlay)
    parts["lora.language"] = {name for name in parts["lora"] if name.startswith("language_model.")}
    parts["lora.connector"] = {name for name in parts["lora"] if name.startswith("qformer.")}
    parts["lora.attention"] = {name for name in parts["lora.language"] if ".self_attn." in name}
    assert 0 < len(parts["lora.attention"]) < len(parts["lora.language"])
    assert opened == set(flat.names) == set().union(*(parts[group] for group in groups))
    assert set(student.overlay()) == set(overlay)


def test_an_overlay_of_another_student_is_refused(mirror: Device) -> None:
    overlay = mirror.read_overlay()
    check_overlay_names(overlay, overlay, "`resume`")
    name = sorted(overlay)[3]
    with pytest.raises(BadData, match=f"`resume`: {name} is nothing there"):
        missing = {other: array for other, array in overlay.items() if other != name}
        check_overlay_names(missing, overlay, "`resume`")
    with pytest.raises(BadData, match=r"extra is .* there, nothing in the student's"):
        check_overlay_names({**overlay, "extra": overlay[name]}, overlay, "`resume`")
    with pytest.raises(BadData, match=name):
        wider = overlay[name][..., None]
        check_overlay_names({**overlay, name: wider}, overlay, "`resume`")
