"""Drift: what it is, and a change that is scaled back because of it."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from cdcca_cli.distillation.dataset import is_held_out
from cdcca_cli.distillation.distill import distill
from cdcca_cli.distillation.drift import MOST, PARTS, Drift, drift_of
from cdcca_cli.distillation.losses import IGNORED
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.distillation.trainer import Trainer
from cdcca_cli.errors import SettingError
from cdcca_cli.formats.adaptation import Adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.names import LORA_A
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel, load_device
from cdcca_cli.models.encoding import encode
from tests.distillation.conftest import a_trainer, make_shards
from tests.distillation.test_anchors import moved

QUICK = DistillSettings(method="pseudo-label", epochs=1, batch_size=8, holdout=0.3, choose="last")


@pytest.fixture(scope="module")
def trainer(teacher: LoadedModel, mirror: Device, shards: list[Shard]) -> Trainer:
    return a_trainer(shards, teacher, mirror, QUICK)


@pytest.fixture(scope="module")
def drift(trainer: Trainer) -> Drift:
    made = drift_of(trainer)
    assert made is not None
    assert made.where == "held_out"
    return made


@pytest.fixture(scope="module")
def adapted(teacher: LoadedModel, mirror: Device, shards: list[Shard]) -> Adaptation:
    return distill(shards, teacher, mirror, QUICK)


def slow_drift(
    source: LoadedModel, student: LoadedModel, trainer: Trainer, numbers: list[int]
) -> float:
    """KL(student || source student) token by token, in float64."""
    found = []
    for number in numbers:
        example = trainer.dataset.examples[number]
        answer_BA = student.answer_ids([trainer.dataset.answers[number]])
        with torch.no_grad():
            q_AV, p_AV = (
                model.forward(encode(model, [example]).spliced, answer_BA)
                .logits[0]
                .double()
                .log_softmax(-1)
                for model in (student, source)
            )
        of_tokens = [
            float((q_AV[a].exp() * (q_AV[a] - p_AV[a])).sum())
            for a, one in enumerate(answer_BA[0].tolist())
            if one != IGNORED
        ]
        found.append(sum(of_tokens) / len(of_tokens))
    return sum(found) / len(found)


def test_it_is_0_at_sequence_0(drift: Drift, trainer: Trainer) -> None:
    assert drift.of(trainer.overlay.values) == [0.0]


def test_it_equals_a_direct_computation(drift: Drift, trainer: Trainer, mirror: Device) -> None:
    """Of two overlays at once, too; the student keeps the overlay that it has."""
    source, other = (load_device(mirror, compute="cpu") for _ in range(2))
    own_P = trainer.overlay.values.clone()
    overlays = [moved(mirror, seed=seed) for seed in (1, 2)]
    found = drift.of(*map(trainer.overlay.laid_out, overlays))
    for value, overlay in zip(found, overlays, strict=True):
        other.install_overlay(overlay, mirror.lora.alpha)
        slow = slow_drift(source, other, trainer, trainer.dataset.held_out)
        assert value == pytest.approx(slow, rel=1e-4)
        assert slow > 1e-3
    assert torch.equal(trainer.overlay.values, own_P)


def test_what_is_not_trained_has_moved_too(
    teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    """In an earlier round, say: sequence 0 is the whole overlay's, not the trained part's."""
    start = moved(mirror)
    trainer = a_trainer(shards, teacher, mirror, replace(QUICK, train=("norm",)), start)
    drift = drift_of(trainer)
    assert drift is not None
    source, other = (load_device(mirror, compute="cpu") for _ in range(2))
    other.install_overlay(start, mirror.lora.alpha)
    slow = slow_drift(source, other, trainer, trainer.dataset.held_out)
    assert drift.of(trainer.overlay.values) == [pytest.approx(slow, rel=1e-4)]
    assert all(
        np.array_equal(value, start[name]) for name, value in trainer.student.overlay().items()
    )


def test_a_later_round_begins_where_the_last_one_ended(
    adapted: Adaptation, teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    """A LoRA whose B is zero is the source, by any A: that costs no pass of the start."""
    made = distill(shards, teacher, mirror, replace(QUICK, seed=1), resume=adapted)
    before = made.report["drift"]["before"]
    assert before == pytest.approx(adapted.report["drift"]["after"], rel=1e-5)
    assert made.report["drift"]["after"] > before
    other_a = {
        name: value + 1 if name.endswith(LORA_A) else value
        for name, value in mirror.read_overlay().items()
    }
    trainer = a_trainer(shards, teacher, mirror, QUICK, other_a)
    drift = drift_of(trainer)
    assert drift is not None
    with pytest.MonkeyPatch.context() as patch:
        asked: list[int] = []
        patch.setattr(Drift, "of", lambda _, *found: [asked.append(len(found)) or 1.0] * len(found))
        _, report = drift.limited(other_a, trainer.overlay.values, None)
        assert (asked, report["before"], report["after"]) == ([1], 0.0, 1.0)


def test_no_more_questions_than_are_needed(trainer: Trainer) -> None:
    """Spread evenly, each at most once."""
    many = trainer.dataset.train * 20
    made = Drift(trainer.student, trainer.overlay, "held_out", trainer.dataset, many)
    assert len(made.numbers) == MOST
    few = Drift(trainer.student, trainer.overlay, "held_out", trainer.dataset, many[:5])
    assert few.numbers == many[:5]


def test_the_report_has_it(adapted: Adaptation) -> None:
    found = adapted.report["drift"]
    assert found["after"] > 0
    assert found == {
        "where": "held_out",
        "num_asks": adapted.report["held_out"]["num_asks"],
        "before": 0.0,
        "after": found["after"],
        "share": 1.0,
    }


@pytest.mark.parametrize("allowed", [2.0, 0.5, 0.1, 1e-9])
def test_a_change_is_scaled_back_in_sixteenths_and_never_above(
    allowed: float,
    adapted: Adaptation,
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    drift: Drift,
    trainer: Trainer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The next sixteenth would be too far; what is written has the drift that the report says."""
    whole = adapted.report["drift"]["after"]
    most = allowed * whole
    made = distill(shards, teacher, mirror, replace(QUICK, max_drift=most))
    found, said = made.report["drift"], capsys.readouterr().err
    assert found["after"] <= most
    kept = found["share"] * PARTS
    assert kept == int(kept)
    base, flat = mirror.read_overlay(), trainer.overlay
    base_P, whole_P = flat.laid_out(base), flat.laid_out(adapted.overlay)
    written_P = flat.laid_out(made.overlay)
    torch.testing.assert_close(written_P, torch.lerp(base_P, whole_P, found["share"]))
    assert drift.of(written_P) == [pytest.approx(found["after"], rel=1e-5, abs=1e-9)]
    if allowed > 1:
        assert (found["share"], said) == (1.0, "")
        return
    assert said.count("\n") == 1
    assert f"{found['share']:.0%} of the change is written" in said
    assert drift.of(torch.lerp(base_P, whole_P, (kept + 1) / PARTS))[0] > most
    if allowed < 1e-3:
        assert (found["share"], found["after"]) == (0.0, 0.0)
        assert torch.equal(written_P, base_P)


def test_nothing_to_measure_it_on_is_refused_before_training(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], never: Callable[..., None]
) -> None:
    settings = replace(QUICK, holdout=0.0, max_drift=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", never)
        with pytest.raises(SettingError, match="needs `anchors` or held-out frames"):
            distill(shards, teacher, mirror, settings)
    made = distill(shards, teacher, mirror, replace(settings, max_drift=None))
    assert made.report["drift"] is None


def test_refused_with_rate_aware_steps() -> None:
    with pytest.raises(SettingError, match="`max_drift`: cannot scale what `rate_aware` steps"):
        DistillSettings(max_drift=0.1, rate_aware=10)
    with pytest.raises(SettingError, match="`max_drift`: does nothing with `method` tent"):
        DistillSettings(method="tent", max_drift=0.1)


# ---- choose


@pytest.mark.parametrize("choose", ["best", "last"])
def test_choose_says_which_state_is_written(
    choose: str, teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    """With a step size that spoils the student, the best is the start."""
    settings = replace(QUICK, epochs=2, lr=3.0, choose=choose)
    made = distill(shards, teacher, mirror, settings)
    held = made.report["curves"]["held_out"]
    assert held[0] == min(held)
    expected = {"best": 0, "last": 2}[choose]
    assert made.report["best_epoch"] == expected
    after = made.report["held_out"]["cross_entropy"]["after"]
    assert after == pytest.approx(held[expected], abs=1e-5)
    is_start = all(
        np.array_equal(value, made.overlay[name]) for name, value in mirror.read_overlay().items()
    )
    assert is_start == (choose == "best")


def test_anchors_that_are_held_out_measure_it(
    teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    """Those that training holds the student to would flatter it. If all would be, none is."""
    frames = make_shards(teacher, 17, keep=(9,))[12:]
    held = [one for one in frames if is_held_out(one.frame, 0.5)]
    assert 0 < len(held) < len(frames)
    for anchors, measured in ((frames, held), (held, held)):
        made = distill(shards, teacher, mirror, replace(QUICK, holdout=0.5), anchors=anchors)
        found = made.report["drift"]
        assert found["where"] == "anchors" and found["after"] > 0
        assert found["num_asks"] == sum(len(one.questions) for one in measured)
        assert made.report["anchors"]["num_frames"] == len(anchors)
