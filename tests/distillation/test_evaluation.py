"""The loss that `compress` measures is the loss that training judged by."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cdcca_cli.distillation.dataset import build_dataset
from cdcca_cli.distillation.distill import distill, kept_for_compress
from cdcca_cli.distillation.evaluation import (
    HeldOutLoss,
    HeldOutResult,
    bootstrap_interval,
    comparison,
)
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.errors import BadData
from cdcca_cli.formats import adaptation as format_
from cdcca_cli.formats.adaptation import Adaptation, read_adaptation, write_adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.shard import Coding, Shard
from cdcca_cli.formats.shard_stream import read_shards, writer
from cdcca_cli.models import LoadedModel, load_device
from cdcca_cli.models.encoding import Example, encode
from cdcca_cli.teachers.local import LocalTeacher

QUICK = DistillSettings(method="akd", choose="best", epochs=2, batch_size=8, holdout=0.4)


@pytest.fixture(scope="module")
def adapted(teacher: LoadedModel, mirror: Device, shards: list[Shard]) -> Adaptation:
    """Trained on 8-bit shards, as `sample` sends them, and read back from its own file."""
    stream = io.BytesIO()
    with writer(stream) as write:
        for shard in shards:
            write(replace(shard, coding=Coding("int8")))
    stream.seek(0)
    made = distill(read_shards(stream), teacher, mirror, QUICK)
    out = io.BytesIO()
    write_adaptation(out, made)
    out.seek(0)
    return read_adaptation(out)


@pytest.fixture
def loss(adapted: Adaptation, student: LoadedModel, mirror: Device) -> HeldOutLoss:
    assert adapted.held_out is not None
    return HeldOutLoss(student, adapted.held_out, mirror.lora.alpha, QUICK.batch_size)


def test_it_is_what_training_measured(
    adapted: Adaptation, loss: HeldOutLoss, mirror: Device
) -> None:
    """Before and after, to the bit, though tokens and answers went through a file."""
    said = adapted.report["held_out"]["cross_entropy"]
    assert loss(mirror.read_overlay()) == said["before"]
    assert loss(adapted.overlay) == said["after"]
    assert loss(adapted.overlay) == said["after"]  # as often as one likes
    assert said["after"] < said["before"]


def test_it_is_the_mean_over_questions_by_another_way(
    adapted: Adaptation, loss: HeldOutLoss, student: LoadedModel, mirror: Device
) -> None:
    """One question at a time: log-softmax of the logits at the answer's tokens, in float64."""
    student.install_overlay(adapted.overlay, mirror.lora.alpha)
    held_out = adapted.held_out
    assert held_out is not None
    nats = []
    for shard, answers in zip(held_out.shards, held_out.answers, strict=True):
        for question, answer in zip(shard.questions, answers, strict=True):
            ids_1A = student.answer_ids([answer])
            with torch.no_grad():
                seen = encode(student, [Example(shard, question)])
                logits_1AV = student.forward(seen.spliced, ids_1A).logits.double()
            chosen = logits_1AV.log_softmax(-1)[0, torch.arange(ids_1A.shape[1]), ids_1A[0]]
            nats.append(-float(chosen.mean()))
    assert loss(adapted.overlay) == pytest.approx(np.mean(nats), rel=1e-5)
    with student.training_mode():  # the overlay is still installed
        each = loss._evaluator.evaluate().nats_E.tolist()
    assert each == pytest.approx(nats, rel=1e-4)


def test_another_batch_size_changes_the_last_bits_only(
    adapted: Adaptation, loss: HeldOutLoss, student: LoadedModel, mirror: Device
) -> None:
    assert adapted.held_out is not None
    other = HeldOutLoss(student, adapted.held_out, mirror.lora.alpha, 1)
    assert other(adapted.overlay) == pytest.approx(loss(adapted.overlay), rel=1e-5)


def test_the_student_has_its_own_overlay_again(
    adapted: Adaptation, loss: HeldOutLoss, student: LoadedModel
) -> None:
    before = overlay_digest(student.overlay())
    loss(adapted.overlay)
    assert overlay_digest(student.overlay()) == before
    broken = {**adapted.overlay, "query_tokens": np.zeros(3, np.float32)}
    with pytest.raises(BadData):
        loss(broken)
    assert overlay_digest(student.overlay()) == before
    assert not any(parameter.requires_grad for parameter in student.module.parameters())


def test_the_frames_are_those_that_were_not_trained_on(
    adapted: Adaptation, shards: list[Shard]
) -> None:
    held_out, report = adapted.held_out, adapted.report
    assert held_out is not None
    assert len(held_out.shards) == report["held_out"]["num_frames"] == report["num_frames_kept"]
    assert held_out.num_questions == report["held_out"]["num_asks"]
    assert (
        report["num_trained"]
        == sum(len(shard.questions) for shard in shards) - held_out.num_questions
    )


def test_without_a_held_out_share_there_is_none(
    teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    made = distill(shards, teacher, mirror, replace(QUICK, epochs=1, holdout=0, choose="last"))
    assert made.held_out is None
    assert made.report["held_out"] is None


def test_no_more_frames_are_kept_than_an_adaptation_holds(
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first ones, as many as fit."""
    from cdcca_cli.distillation import distill as distilling

    gathered = build_dataset(
        shards, LocalTeacher(teacher), load_device(mirror, compute="cpu"), QUICK
    )
    whole = kept_for_compress(gathered)
    assert whole is not None
    first = whole.shards[0].tokens.nbytes
    for module in (distilling, format_):
        monkeypatch.setattr(module, "HELD_OUT_BYTES", first)
    kept = kept_for_compress(gathered)
    assert kept is not None
    assert [shard.frame for shard in kept.shards] == [whole.shards[0].frame]
    assert kept.answers == whole.answers[:1]


def test_frames_of_another_tower_are_refused(
    adapted: Adaptation, blip2_opt: Path, student: LoadedModel, mirror: Device
) -> None:
    held_out = adapted.held_out
    assert held_out is not None
    foreign = replace(held_out, shards=[replace(held_out.shards[0], tower="sha256:" + "1" * 64)])
    with pytest.raises(BadData, match="vision tower"):
        HeldOutLoss(student, foreign, mirror.lora.alpha)


# ---- the gain and its interval


def held(nats: list[float], agrees: list[float]) -> HeldOutResult:
    return HeldOutResult(np.array(nats, np.float32), np.array(agrees, np.float32))


def test_comparison_by_hand() -> None:
    """Gains 1, 0.5, 0 and 0.5: mean 0.5. Agreement 1 of 4, then 3 of 4."""
    report = comparison(
        held([2, 1, 1, 2], [0, 1, 0, 0]), held([1, 0.5, 1, 1.5], [1, 1, 0, 1]), list("aabb"), 0
    )
    assert report is not None
    assert (report["num_frames"], report["num_asks"]) == (2, 4)
    assert report["cross_entropy"] == {"before": 1.5, "after": 1.0}
    assert report["agreement"] == {"before": 0.25, "after": 0.75}
    assert report["gain"]["mean"] == 0.5
    assert (report["gain"]["low"], report["gain"]["high"]) == (0.25, 0.75)


def test_nothing_held_out_is_no_comparison() -> None:
    nothing = held([], [])
    assert comparison(nothing, nothing, [], 0) is None
    assert nothing.cross_entropy == float("inf")


def test_interval_of_many_values_is_the_normal_one() -> None:
    """400 independent draws: mean +- 1.96 s / sqrt(400), to a tenth of its width."""
    values = np.random.default_rng(1).normal(2, 3, 400)
    low, high = bootstrap_interval(values, [str(number) for number in range(400)], 0)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_frames_are_drawn_whole() -> None:
    """Each value ten times in its frame is no more evidence than once: the same interval."""
    values = np.random.default_rng(2).normal(0, 1, 50)
    frames = [str(number) for number in range(50)]
    assert bootstrap_interval(np.repeat(values, 10), np.repeat(frames, 10).tolist(), 0) == (
        pytest.approx(bootstrap_interval(values, frames, 0))
    )


def test_one_frame_falls_back_to_its_examples() -> None:
    low, high = bootstrap_interval(np.array([0.0, 1.0] * 20), ["only"] * 40, 0)
    assert 0.3 < low < 0.5 < high < 0.7


def test_interval_depends_on_the_seed_alone() -> None:
    values, frames = np.arange(9.0), list("abcabcabc")
    assert bootstrap_interval(values, frames, 3) == bootstrap_interval(values, frames, 3)


def verdict(gains: list[float]) -> str:
    """Of a loss of 2 nats before, a frame for each question."""
    before = [2.0] * len(gains)
    after = [2 - gain for gain in gains]
    frames = [str(number) for number in range(len(gains))]
    zeros = [0.0] * len(gains)
    report = comparison(held(before, zeros), held(after, zeros), frames, 0)
    assert report is not None
    return str(report["verdict"])


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([0.1, 0.2] * 10, "better"),
        ([-0.1, -0.2] * 10, "worse"),
        ([0.0] * 3, "equal"),
        ([0.01, -0.01] * 8, "equal"),  # the interval cannot leave +-0.01, and 1 % of 2 is 0.02
        ([0.4, -0.3] * 4, "not measurable"),  # it reaches far beyond 0.02 on both sides
        ([0.03, -0.001], "not measurable"),  # -0.001 to 0.03
        ([0.5], "not measurable"),  # one question has no interval
    ],
)
def test_the_verdict_is_by_the_interval(gains: list[float], expected: str) -> None:
    """`equal` where all of it is within 1 % of the loss, else there were too few to tell."""
    assert verdict(gains) == expected
