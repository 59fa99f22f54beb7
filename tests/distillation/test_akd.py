"""Weights of one gradient, phi, where representations are compared, distributions, confidence."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cdcca_cli.distillation.distill import distill
from cdcca_cli.distillation.methods.taught import Taught
from cdcca_cli.distillation.settings import WEIGHTS, DistillSettings
from cdcca_cli.distillation.trainer import Trainer
from cdcca_cli.errors import UsageError
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel, load
from cdcca_cli.models.initial import create_device
from cdcca_cli.models.settings import InitSettings
from tests.distillation.conftest import a_trainer, make_shards
from tests.distillation.test_distill import cousin
from tests.distillation.test_feature_losses import _slow_divergence, _slow_pearson_distance

PLAIN = DistillSettings(method="akd", epochs=1, batch_size=8, holdout=0.3)
QUICK = replace(PLAIN, query_weight=1.0, repr_weight=1.0)


def prepared(*arguments: Any, **options: Any) -> tuple[Trainer, Taught]:
    """A run before its first step, its weights and phi made."""
    run = a_trainer(*arguments, **options)
    assert isinstance(run.method, Taught)
    return run, run.method


def gradient_lengths(run: Trainer, method: Taught) -> dict[str, float]:
    """Of each term over the overlay, by torch's own gradients of the mean over all examples."""
    parameters = [p for p in run.student.module.parameters() if p.requires_grad]
    found = {}
    for term, term_E in method.losses(run.dataset.train).items():
        gradients = torch.autograd.grad(
            term_E.mean(), parameters, allow_unused=True, retain_graph=True
        )
        squares = [g.double().square().sum() for g in gradients if g is not None]
        found[term] = math.sqrt(float(torch.stack(squares).sum()))
    return found


# ---- one gradient for all


@pytest.mark.parametrize("kl", ["none", "forward"])
def test_terms_pull_alike_at_a_weight_of_one(
    kl: str, teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    """Weight times the length of the gradient: the cross-entropy's, for every term."""
    run, method = prepared(shards, teacher, mirror, replace(QUICK, kl=kl))
    lengths = gradient_lengths(run, method)
    assert len(lengths) == (3 if kl == "none" else 4)
    assert method.gradients == pytest.approx(lengths, rel=1e-3)
    pulls = {term: method.weights[term] * lengths[term] for term in lengths}
    assert pulls == pytest.approx(dict.fromkeys(lengths, lengths["ce"]), rel=1e-3)
    assert max(lengths.values()) > 1.5 * min(lengths.values())  # there was something to balance
    assert method.weights["ce"] == 1
    assert not run.overlay.gradient.any()
    assert not any(flat.gradient.any() for flat in method.flats)


def test_weights_scale_what_was_balanced(
    teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    asked = {"query": 0.25, "repr": 3.0, "ce": 2.0}
    _, plain = prepared(shards, teacher, mirror, QUICK)
    given: dict[str, Any] = {f"{term}_weight": weight for term, weight in asked.items()}
    _, scaled = prepared(shards, teacher, mirror, replace(QUICK, **given))
    expected = {term: weight * plain.weights[term] for term, weight in asked.items()}
    assert scaled.weights == pytest.approx(expected, rel=1e-6)
    report = scaled.report()
    assert (report["weights"], report["effective_weights"]) == (asked, scaled.weights)
    assert (report["balance"], report["gradients"]) == ("gradients", scaled.gradients)


@pytest.mark.parametrize("settings", [replace(QUICK, balance="none"), replace(PLAIN, method="pkd")])
def test_without_balance_weights_stay(
    settings: DistillSettings, teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    _, method = prepared(shards, teacher, mirror, settings)
    assert method.weights == settings.weights()
    assert method.report()["balance"] == "none"


def test_balance_is_relative_to_the_next_term_where_ce_is_left_out(
    teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    _, method = prepared(shards, teacher, mirror, replace(QUICK, ce_weight=0.0))
    assert method.weights["repr"] == 1
    pulls = [method.weights[term] * method.gradients[term] for term in ("query", "repr")]
    assert pulls[0] == pytest.approx(pulls[1])


# ---- terms that nothing trained can change

NORMS = replace(PLAIN, train=("norm",))
"""Norms of the language model: nothing before it, so the queries stay as they are."""


@pytest.mark.parametrize(("checkpoint", "name"), [("blip2_llama", "akd"), ("llava", "pkd")])
def test_a_term_without_a_gradient_is_left_out_and_said(
    checkpoint: str,
    name: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of what is a default, that is; what was asked for is refused. (phi alone can still learn.)"""
    monkeypatch.setitem(WEIGHTS, "akd", WEIGHTS["pkd"])
    source = request.getfixturevalue(checkpoint)
    teacher = load(cousin(source, tmp_path / "teacher"), compute="cpu")
    mirror = create_device(tmp_path / "mirror", str(source), InitSettings(lora_rank=2))
    shards = make_shards(teacher, 4, keep=(5, 2))
    settings = replace(NORMS, method=name)
    _, method = prepared(shards, teacher, mirror, settings)
    assert "the query term has no gradient" in (said := capsys.readouterr().err)
    assert said.count("\n") == 1 and said.endswith("left out\n")
    assert set(method.weights) == {"repr", "ce"}
    assert set(method.losses([0])) == {"repr", "ce"}
    assert "query" not in method.report()["parts"]
    assert distill(shards, teacher, mirror, settings).report["epochs_done"] == 1
    with pytest.raises(UsageError, match="`query_weight` 0, or train more groups"):
        prepared(shards, teacher, mirror, replace(settings, query_weight=1.0))
    only = replace(settings, ce_weight=0.0, repr_weight=0.0)
    with pytest.raises(UsageError, match="the query term has no gradient"):
        prepared(shards, teacher, mirror, only)


# ---- PKD and CWD


def features(
    run: Trainer, method: Taught, batch: list[int]
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """The teacher's rows, the student's and the mask of each part."""
    with torch.no_grad():
        made = method._features(batch)
    return {
        part: (method._target(batch, part, mask_BL), made.rows[part], mask_BL)
        for part, mask_BL in made.masks.items()
    }


@pytest.mark.parametrize("method_name", ["pkd", "cwd"])
def test_baselines_compare_the_features_through_phi_where_widths_differ(
    method_name: str, teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    """Against loops in float64. Queries are 64 wide on both sides, representations 128 and 64."""
    settings = replace(PLAIN, method=method_name, tau=2.5)
    run, method = prepared(shards, teacher, mirror, settings)
    assert set(method.phis) == {"visual", "answer"}
    batch = run.dataset.train[:5]
    by_part = {}
    for part, (theirs, ours, mask) in features(run, method, batch).items():
        if part != "queries":
            phi: Any = method.phis[part]
            ours = ours.double() @ phi.weight.double().T + phi.bias.double()
        sides = theirs.double().tolist(), ours.tolist(), mask.tolist()
        if method_name == "pkd":
            by_part[part] = _slow_pearson_distance(*sides)
        else:
            by_part[part] = _slow_divergence(*sides, 2.5)
    with torch.no_grad():
        terms = method.losses(batch)
    both = (np.array(by_part["visual"]) + np.array(by_part["answer"])) / 2
    np.testing.assert_allclose(terms["query"].numpy(), by_part["queries"], rtol=1e-4)
    np.testing.assert_allclose(terms["repr"].numpy(), both, rtol=1e-4)


@pytest.mark.parametrize("method_name", ["pkd", "cwd", "akd"])
def test_phi_stands_nowhere_else(
    method_name: str,
    tiny_pair: tuple[Path, Path],
    mirror: Device,
    shards: list[Shard],
    tmp_path: Path,
) -> None:
    """A teacher as wide as the student; akd has its phi all the same (Eq. 5)."""
    like = load(cousin(tiny_pair[1], tmp_path / "like"), compute="cpu")
    _, method = prepared(shards, like, mirror, replace(QUICK, method=method_name))
    assert set(method.phis) == ({"queries", "visual", "answer"} if method_name == "akd" else set())
    assert sum(map(len, method.flats)) == sum(
        p.numel() for phi in method.phis.values() for p in phi.parameters()
    )


# ---- where representations are compared


@pytest.mark.parametrize(
    ("at", "parts"),
    [("visual", ["visual"]), ("answer", ["answer"]), ("both", ["visual", "answer"])],
)
def test_representations_are_compared_where_it_says(
    at: str, parts: list[str], teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    """Eq. 5 in units of the teacher's mean square, by hand from what both give there."""
    run, method = prepared(shards, teacher, mirror, replace(QUICK, repr_at=at))
    assert method.report()["parts"] == {"query": ["queries"], "repr": parts}
    batch = run.dataset.train[:5]
    expected = np.zeros(len(batch))
    for part in parts:
        theirs, ours, mask = (t.double().numpy() for t in features(run, method, batch)[part])
        phi: Any = method.phis[part]
        with torch.no_grad():
            seen = ours @ phi.weight.double().numpy().T + phi.bias.double().numpy()
        for row in range(len(batch)):
            gap = (theirs[row] - seen[row])[mask[row].astype(bool)]
            expected[row] += (gap**2).mean() / method.scales[part] / len(parts)
    with torch.no_grad():
        found = method.losses(batch)["repr"]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_other_vocabularies_are_compared_at_the_picture_alone(
    foreign: LoadedModel, teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    assert foreign.vocabulary_digest != teacher.vocabulary_digest
    _, method = prepared(shards, foreign, mirror, QUICK)
    assert method.aligned["repr"] == ("visual",)
    with pytest.raises(UsageError, match=r"`repr_at` answer: .* other vocabularies"):
        a_trainer(shards, foreign, mirror, replace(QUICK, repr_at="answer"))


def test_an_encoder_decoder_is_compared_at_the_picture_alone(
    blip2_t5: Path, tmp_path: Path
) -> None:
    teacher = load(cousin(blip2_t5, tmp_path / "teacher"), compute="cpu")
    mirror = create_device(tmp_path / "mirror", str(blip2_t5), InitSettings(lora_rank=2))
    shards = make_shards(teacher, 4)
    _, method = prepared(shards, teacher, mirror, replace(QUICK, kl="forward"))
    assert method.aligned["repr"] == ("visual",)
    with pytest.raises(UsageError, match="`repr_at` answer: an encoder-decoder"):
        a_trainer(shards, teacher, mirror, replace(QUICK, repr_at="answer"))
