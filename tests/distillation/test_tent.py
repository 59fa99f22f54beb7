"""Tent: the loss by hand, what it moves, and that a teacher only judges."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdcca_cli.distillation.distill import distill, summary
from cdcca_cli.distillation.methods import tent
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.errors import UsageError
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel, load
from cdcca_cli.models.encoding import Example, encode
from cdcca_cli.models.initial import create_device
from cdcca_cli.models.settings import InitSettings
from tests.distillation.conftest import MOST, a_trainer, make_shards, train_epochs

TENT = DistillSettings(method="tent", epochs=3, batch_size=8, holdout=0.3)


def entropies_of_own_answer(model: LoadedModel, example: Example, most: int) -> list[float]:
    """Greedy, each token from a pass over all before it; - sum p ln p of each, in float64."""
    (end,) = model.end_ids
    tokens: list[int] = []
    found: list[float] = []
    while len(tokens) < most and end not in tokens:
        with torch.no_grad():
            seen = encode(model, [example]).spliced
            row = model.forward(seen, torch.tensor([[*tokens, end]])).logits[0, -1].tolist()
        highest = max(row)
        weights = [math.exp(value - highest) for value in row]
        shares = [weight / sum(weights) for weight in weights]
        found.append(-sum(p * math.log(p) for p in shares if p > 0))
        tokens.append(row.index(highest))
    return found


def test_the_loss_is_the_entropy_of_its_own_greedy_answers(
    mirror: Device, shards: list[Shard]
) -> None:
    """Of captions and answers in one batch, which end at 5 tokens and at 3."""
    run = a_trainer(shards, None, mirror, TENT)
    assert isinstance(run.method, tent.Tent)
    batch = run.dataset.train[:8]
    loss_B = run.method.losses(batch)["entropy"]
    lengths = set()
    for number, loss in zip(batch, loss_B.tolist(), strict=True):
        example = run.dataset.examples[number]
        by_hand = entropies_of_own_answer(run.student, example, MOST[example.question.task])
        lengths.add(len(by_hand))
        assert loss == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)
    assert lengths == {3, 5}


@pytest.mark.parametrize("checkpoint", ["blip2_opt", "blip2_t5", "instructblip", "llava"])
def test_of_every_family(checkpoint: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Frames of 5 and 2 tokens; one epoch is taken, too."""
    source = request.getfixturevalue(checkpoint)
    mirror = create_device(tmp_path / "mirror", str(source), InitSettings(lora_rank=2))
    shards = make_shards(load(source, compute="cpu"), 4, keep=(5, 2))
    run = a_trainer(shards, None, mirror, replace(TENT, epochs=1))
    assert run.method is not None
    batch = run.dataset.train[:4]
    for number, loss in zip(batch, run.method.losses(batch)["entropy"].tolist(), strict=True):
        example = run.dataset.examples[number]
        by_hand = entropies_of_own_answer(run.student, example, MOST[example.question.task])
        assert loss == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-4)
    assert train_epochs(run, mirror).done == 1


def test_an_answer_that_ends_is_counted_with_its_end(
    mirror: Device, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token that the student says first is made its end token: answers of one token."""
    run = a_trainer(shards, None, mirror, TENT)
    assert run.method is not None
    number = run.dataset.train[0]
    example = run.dataset.examples[number]
    (ids,) = run.student.generate(encode(run.student, [example]).spliced, 1).ids
    monkeypatch.setattr(run.student, "end_ids", tuple(ids))
    (by_hand,) = entropies_of_own_answer(run.student, example, 3)
    assert run.method.losses([number])["entropy"].item() == pytest.approx(by_hand, rel=1e-5)


def test_it_grows_surer(mirror: Device, shards: list[Shard]) -> None:
    curves = distill(shards, None, mirror, TENT).report["curves"]
    assert set(curves) == {"loss", "entropy", "held_out"}
    assert curves["loss"] == curves["entropy"]
    assert curves["entropy"][0] > curves["entropy"][1] > curves["entropy"][2]


def test_norms_alone_move_unless_told_otherwise(
    mirror: Device, shards: list[Shard], student: LoadedModel
) -> None:
    base, groups = mirror.read_overlay(), student.trainable_groups()
    made = distill(shards, None, mirror, TENT)
    assert made.report["groups"] == ["norm"]
    moved = {name for name in base if not np.array_equal(base[name], made.overlay[name])}
    assert moved == set(groups["norm"])
    made = distill(shards, None, mirror, replace(TENT, epochs=1, train=("bias", "query")))
    moved = {name for name in base if not np.array_equal(base[name], made.overlay[name])}
    assert moved == {*groups["bias"], *groups["query"]}


# ---- without a teacher, and with one


def test_nobody_need_be_asked(mirror: Device, shards: list[Shard]) -> None:
    """The same frames are set apart as for the other methods; nothing judges there."""
    made = distill(shards, None, mirror, TENT)
    assert (made.report["teacher"], made.report["held_out"]) == (None, None)
    assert (made.report["num_frames"], made.report["num_trained"]) == (12, 20)
    assert (made.report["epochs_done"], made.report["best_epoch"]) == (3, 3)
    assert made.held_out is None
    assert "none held out" in summary(made)[-1]


def test_a_teacher_judges_and_changes_nothing(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked of the held-out frames alone."""
    asked: list[int] = []
    inner: Callable[..., Any] = teacher.generate
    monkeypatch.setattr(teacher, "generate", lambda s, most: asked.append(len(s)) or inner(s, most))
    made = distill(shards, teacher, mirror, TENT)
    assert made.report["teacher"] == teacher.digest
    assert sum(asked) == made.report["held_out"]["num_asks"] == 28 - made.report["num_trained"]
    alone = distill(shards, None, mirror, TENT)
    assert overlay_digest(made.overlay) == overlay_digest(alone.overlay)
    assert made.report["curves"]["entropy"] == alone.report["curves"]["entropy"]
    assert made.held_out is not None
    assert made.held_out.num_questions == sum(asked)


def test_what_got_worse_is_written_all_the_same(
    teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    """The verdict says so; akd would have written the start."""
    spoiling = replace(TENT, lr=0.3)
    made = distill(shards, teacher, mirror, spoiling)
    held, curve = made.report["held_out"], made.report["curves"]["held_out"]
    assert held["verdict"] == "worse"
    assert min(curve) == curve[0] < held["cross_entropy"]["after"]
    assert held["cross_entropy"]["after"] == pytest.approx(curve[3], abs=1e-5)
    assert (made.report["best_epoch"], made.report["epochs_done"]) == (3, 3)
    alone = distill(shards, None, mirror, spoiling)
    assert overlay_digest(made.overlay) == overlay_digest(alone.overlay)
    assert overlay_digest(made.overlay) != mirror.digest


@pytest.mark.parametrize(
    "wrong",
    [
        {"ce_weight": 1.0},
        {"kl": "forward"},
        {"confidence": True},
        {"rate_aware": 5},
        {"patience": 1},
    ],
)
@pytest.mark.parametrize("method", ["tent", "cotta", "none"])
def test_what_needs_a_teacher_is_refused(method: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=method):
        DistillSettings(method=method, **wrong)
