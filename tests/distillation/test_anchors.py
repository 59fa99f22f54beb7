"""Anchors: what is drawn, what is asked, what is added to the loss, and what it keeps."""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from cdcca_cli import distributed
from cdcca_cli.distillation import anchors
from cdcca_cli.distillation.anchors import TERM, Anchors, open_anchors
from cdcca_cli.distillation.distill import distill
from cdcca_cli.distillation.losses import IGNORED
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.distillation.step_log import StepLog
from cdcca_cli.distillation.trainer import Trainer
from cdcca_cli.errors import BadData, UsageError
from cdcca_cli.formats.adaptation import Adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.names import LORA_A
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel, load_device
from cdcca_cli.models.encoding import Example, encode
from cdcca_cli.models.initial import start_of
from cdcca_cli.skipped import Skipped
from cdcca_cli.teachers import labelling
from cdcca_cli.teachers.local import LocalTeacher
from tests.distillation.conftest import Stopped, a_trainer, make_shards, stopped_at_step

QUICK = DistillSettings(
    method="pseudo-label", epochs=2, batch_size=8, holdout=0.3, anchor_questions=4
)
SKIPPED = Skipped(strict=True)


@pytest.fixture(scope="module")
def frames(teacher: LoadedModel) -> list[Shard]:
    """5 source frames of 12 questions, all their tokens."""
    made = make_shards(teacher, 17, keep=(9,))[12:]
    assert sum(len(shard.questions) for shard in made) == 12
    return made


@pytest.fixture(scope="module")
def adapted(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], frames: list[Shard]
) -> Adaptation:
    """An ordinary run with anchors."""
    return distill(shards, teacher, mirror, QUICK, anchors=frames)


def held_trainer(
    shards: list[Shard],
    frames: list[Shard],
    teacher: LoadedModel,
    mirror: Device,
    settings: DistillSettings = QUICK,
    start: dict[str, np.ndarray] | None = None,
) -> Trainer:
    """One with anchors that has done no step yet."""
    trainer = a_trainer(shards, teacher, mirror, settings, start)
    student = load_device(mirror, compute="cpu")
    made = open_anchors(frames, student, mirror, settings, SKIPPED)
    with trainer.student.training_mode():
        trainer.anchors = Anchors(made.dataset, trainer.student, settings)
    return trainer


def questions_of(held: Anchors, step: int) -> list[int]:
    """All questions of a step."""
    return [*chain.from_iterable(held.drawn(step))]


def moved(mirror: Device, scale: float = 0.02, seed: int = 5) -> dict[str, np.ndarray]:
    """The mirror's overlay after an arbitrary change of every parameter."""
    source = np.random.default_rng(seed)
    return {
        name: value + scale * source.standard_normal(value.shape).astype(np.float32)
        for name, value in mirror.read_overlay().items()
    }


# ---- what is drawn


def test_the_drawn_depend_on_seed_and_step_alone(
    student: LoadedModel, mirror: Device, frames: list[Shard]
) -> None:
    """In any order of asking; in each pass over the anchors every question comes once."""
    made = open_anchors(frames, student, mirror, QUICK, SKIPPED)
    drawn = [questions_of(made, step) for step in range(12)]
    assert [len(each) for each in drawn] == [4] * 12
    again = Anchors(made.dataset, student, QUICK)
    assert [questions_of(again, step) for step in reversed(range(12))] == drawn[::-1]
    for begin in range(0, 12, 3):
        seen = Counter(number for each in drawn[begin : begin + 3] for number in each)
        assert seen == Counter(made.dataset.train)
    assert len({frozenset(each) for each in drawn}) > 3
    other = Anchors(made.dataset, student, replace(QUICK, seed=1))
    assert [questions_of(other, step) for step in range(12)] != drawn


def test_fewer_anchors_than_a_step_takes(
    student: LoadedModel, mirror: Device, frames: list[Shard]
) -> None:
    made = open_anchors(frames[:1], student, mirror, replace(QUICK, anchor_questions=50), SKIPPED)
    count = len(frames[0].questions)
    assert {len(questions_of(made, step)) for step in range(5)} == {count}


@pytest.mark.parametrize("size", [1, 3])
def test_a_pass_takes_no_more_than_its_limit(
    size: int, student: LoadedModel, mirror: Device, frames: list[Shard]
) -> None:
    settings = replace(QUICK, micro_batch_size=size, anchor_questions=7)
    made = open_anchors(frames, student, mirror, settings, SKIPPED)
    parts = made.drawn(0)
    assert max(map(len, parts)) == size
    assert sum(map(len, parts)) == 7


# ---- what is added to the loss


@pytest.mark.parametrize("top", [None, 3])
def test_the_gradient_equals_a_slow_second_form(
    top: int | None,
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    frames: list[Shard],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """KL of full distributions in float64, question by question, when the labels have them all.

    Labels keep float16, so to 1e-3. With 3 tokens and a rest the term is less, or as much.
    """
    vocabulary = load_device(mirror, compute="cpu").module.get_output_embeddings().weight.shape[0]
    monkeypatch.setattr(anchors, "TOP", top or vocabulary)
    trainer = held_trainer(shards, frames, teacher, mirror, start=moved(mirror))
    held, student = trainer.anchors, trainer.student
    assert held is not None
    numbers = questions_of(held, 0)
    with student.training_mode():
        trainer.overlay.clear()
        value_B = held.losses(numbers)[TERM]
        value_B.mean().backward()
        ours_P = trainer.overlay.gradient.clone()
        trainer.overlay.clear()
        source = load_device(mirror, compute="cpu")
        slow = [slow_divergence(source, student, held, number) for number in numbers]
        torch.stack(slow).mean().backward()
    slow_B = torch.stack(slow).detach()
    assert float(slow_B.min()) > 1e-3
    if top is None:
        torch.testing.assert_close(value_B.detach().double(), slow_B, rtol=2e-3, atol=1e-5)
        size = float(trainer.overlay.gradient.norm())
        assert float((ours_P - trainer.overlay.gradient).norm()) < 5e-3 * size
    else:
        assert bool((value_B.detach().double() <= slow_B + 1e-4).all())


def slow_divergence(
    source: LoadedModel, student: LoadedModel, held: Anchors, number: int
) -> torch.Tensor:
    """Mean over an answer's tokens of sum_v p_v (log p_v - log q_v), p of the source student."""
    example = held.dataset.examples[number]
    answer_BA = student.answer_ids([held.dataset.answers[number]])
    with torch.no_grad():
        theirs = source.forward(encode(source, [example]).spliced, answer_BA).logits[0]
    ours = student.forward(encode(student, [example]).spliced, answer_BA).logits[0]
    p_AV, q_AV = (logits.double().log_softmax(-1) for logits in (theirs, ours))
    tokens = [place for place, one in enumerate(answer_BA[0].tolist()) if one != IGNORED]
    return torch.stack([(p_AV[a].exp() * (p_AV[a] - q_AV[a])).sum() for a in tokens]).mean()


def test_answers_alone_are_learnt_as_they_are(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], frames: list[Shard]
) -> None:
    """Mean over an answer's tokens of -log q, in float64, whatever the source's distribution."""
    settings = replace(QUICK, anchor_targets="answers")
    trainer = held_trainer(shards, frames, teacher, mirror, settings, moved(mirror))
    held, student = trainer.anchors, trainer.student
    assert held is not None
    numbers = questions_of(held, 0)
    with student.training_mode(), torch.no_grad():
        value_B = held.losses(numbers)[TERM]
        for number, value in zip(numbers, value_B.tolist(), strict=True):
            answer_BA = student.answer_ids([held.dataset.answers[number]])
            encoded = encode(student, [held.dataset.examples[number]])
            logits_AV = student.forward(encoded.spliced, answer_BA).logits[0].double()
            nats = [-float(logits_AV[a].log_softmax(-1)[i]) for a, i in enumerate(answer_BA[0])]
            assert value == pytest.approx(np.mean(nats), rel=1e-4)


def test_the_term_is_added_with_its_weight(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], frames: list[Shard]
) -> None:
    """Gradient and loss of a step: the method's, and weight times the anchors'."""
    trainer = held_trainer(shards, frames, teacher, mirror, start=moved(mirror))
    held, batch = trainer.anchors, trainer.dataset.train[:8]
    assert held is not None
    assert trainer.terms == ["ce", TERM]
    with trainer.student.training_mode():
        trainer.anchors = None
        alone = trainer.backward(batch)
        alone_P = trainer.overlay.gradient.clone()
        trainer.overlay.clear()
        value = held.losses(questions_of(held, 0))[TERM].mean()
        value.backward()
        anchor_P = trainer.overlay.gradient.clone()
        trainer.anchors = held
        both = trainer.backward(batch)
    torch.testing.assert_close(
        trainer.overlay.gradient, alone_P + QUICK.anchor_weight * anchor_P, rtol=1e-4, atol=1e-6
    )
    expected = [alone[0] + QUICK.anchor_weight * value.detach(), alone[1], value.detach()]
    torch.testing.assert_close(both, torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_at_sequence_0_there_is_nothing_to_hold(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], frames: list[Shard]
) -> None:
    trainer = held_trainer(shards, frames, teacher, mirror)
    assert trainer.anchors is not None
    with torch.no_grad():
        value_B = trainer.anchors.losses(trainer.anchors.dataset.train)[TERM]
    assert float(value_B.abs().max()) < 1e-4


def test_a_student_that_is_held_drifts_less(
    adapted: Adaptation,
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    frames: list[Shard],
) -> None:
    """More with more weight, on the anchors; and the stream is learnt still."""
    drifts = [
        distill(
            shards, teacher, mirror, replace(QUICK, anchor_weight=weight), anchors=frames
        ).report["drift"]["after"]
        for weight in (1e-6, 1000.0)
    ]
    assert drifts[1] < adapted.report["drift"]["after"] < drifts[0]
    assert adapted.report["held_out"]["gain"]["mean"] > 0


# ---- the report, the curve, the seed


def test_the_report_says_what_was_held(adapted: Adaptation, frames: list[Shard]) -> None:
    assert adapted.report["anchors"] == {
        "num_frames": 5,
        "num_asks": 12,
        "weight": QUICK.anchor_weight,
        "questions": 4,
    }
    assert len(adapted.report["curves"][TERM]) == 2
    assert adapted.report["drift"]["where"] == "anchors"


def test_the_same_seed_gives_the_same_bits(
    adapted: Adaptation,
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    frames: list[Shard],
) -> None:
    again = distill(shards, teacher, mirror, QUICK, anchors=frames)
    assert overlay_digest(again.overlay) == overlay_digest(adapted.overlay)
    assert again.report == adapted.report


def test_the_log_has_the_term(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], frames: list[Shard], tmp_path: Path
) -> None:
    """Of each step, whose loss is the sum of the terms by their weights; and the curve's mean."""
    with closing(StepLog(tmp_path / "log")) as log:
        made = distill(shards, teacher, mirror, QUICK, anchors=frames, log=log)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert lines[0]["terms"] == ["ce", TERM]
    steps = [line for line in lines if line["what"] == "step"]
    for line in steps:
        assert line["loss"] == pytest.approx(
            line["ce"] + QUICK.anchor_weight * line[TERM], abs=2e-5
        )
    first = [line for line in steps if line["epoch"] == 1]
    sizes = [line["questions"] for line in first]
    mean = np.average([line[TERM] for line in first], weights=sizes)
    assert made.report["curves"][TERM][0] == pytest.approx(mean, abs=2e-6)


# ---- asked once


def test_they_are_asked_once_and_found_in_the_file_of_labels(
    adapted: Adaptation,
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    frames: list[Shard],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    never: Callable[..., None],
) -> None:
    """Beside the teacher's, which are still read without naming the teacher."""
    kept = replace(QUICK, labels=(str(tmp_path / "labels"),))
    first = distill(shards, teacher, mirror, kept, anchors=frames)
    assert overlay_digest(first.overlay) == overlay_digest(adapted.overlay)
    monkeypatch.setattr(LocalTeacher, "label", never)
    for asked in (teacher, None):
        again = distill(shards, asked, mirror, kept, anchors=frames)
        assert overlay_digest(again.overlay) == overlay_digest(adapted.overlay)
        assert again.report == adapted.report
    assert again.report["teacher"] == teacher.digest
    found = labelling.open_labels([tmp_path / "labels"])
    assert [source.name for source in found.sources] == [teacher.digest]


def test_the_students_own_word_is_no_teachers(
    mirror: Device, shards: list[Shard], frames: list[Shard], teacher: LoadedModel, tmp_path: Path
) -> None:
    """Where anchors are frames of the stream too, its questions have no label by that."""
    kept = replace(QUICK, labels=(str(tmp_path / "labels"),))
    distill(frames, teacher, mirror, kept, anchors=shards)
    with pytest.raises(BadData, match="have no label"):
        distill(shards, None, mirror, kept)


def test_they_are_found_in_the_work_folder(
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    frames: list[Shard],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    never: Callable[..., None],
) -> None:
    """After a first round, too: they are the student's of sequence 0, whatever it is now."""
    settings = replace(QUICK, work=tmp_path)
    first = distill(shards, teacher, mirror, settings, anchors=frames)
    assert len([*tmp_path.glob("*.labels")]) == 2
    monkeypatch.setattr(LocalTeacher, "label", never)
    again = distill(shards, teacher, mirror, replace(settings, seed=1), anchors=frames)
    assert again.report["anchors"] == first.report["anchors"]
    distill(shards, teacher, mirror, settings, anchors=frames, resume=first)


# ---- stopped and resumed


def test_a_run_that_was_stopped_ends_with_the_same_bits(
    adapted: Adaptation,
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    frames: list[Shard],
    tmp_path: Path,
) -> None:
    settings = replace(QUICK, work=tmp_path)
    with pytest.raises(Stopped), stopped_at_step(5):
        distill(shards, teacher, mirror, settings, anchors=frames)
    with stopped_at_step(99) as taken:
        made = distill(shards, teacher, mirror, settings, anchors=frames)
    assert taken[0] == 3  # of three steps an epoch, the second epoch's
    assert overlay_digest(made.overlay) == overlay_digest(adapted.overlay)
    assert made.report == adapted.report


def test_so_does_one_that_was_stopped_in_its_rate_aware_steps(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], frames: list[Shard], tmp_path: Path
) -> None:
    """They go on with the anchors where the epochs stopped."""
    settings = replace(QUICK, epochs=1, rate_aware=5)
    whole = distill(shards, teacher, mirror, settings, anchors=frames)
    kept = replace(settings, work=tmp_path)
    with pytest.raises(Stopped), stopped_at_step(3 + 4):
        distill(shards, teacher, mirror, kept, anchors=frames)
    made = distill(shards, teacher, mirror, kept, anchors=frames)
    assert overlay_digest(made.overlay) == overlay_digest(whole.overlay)
    assert made.report == whole.report


@pytest.mark.parametrize("change", ["frames", "weight", "none"])
def test_other_anchors_do_not_resume(
    change: str,
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    frames: list[Shard],
    tmp_path: Path,
) -> None:
    settings = replace(QUICK, epochs=1, work=tmp_path)
    distill(shards, teacher, mirror, settings, anchors=frames)
    held = {"frames": frames[1:], "weight": frames, "none": None}[change]
    if change == "weight":
        settings = replace(settings, anchor_weight=3.0)
    with stopped_at_step(99) as taken:
        distill(shards, teacher, mirror, settings, anchors=held)
    assert taken[0] == 3


def test_another_limit_of_the_drift_does_resume(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], frames: list[Shard], tmp_path: Path
) -> None:
    settings = replace(QUICK, epochs=1, work=tmp_path)
    distill(shards, teacher, mirror, settings, anchors=frames)
    with stopped_at_step(1):
        made = distill(shards, teacher, mirror, replace(settings, max_drift=1e-9), anchors=frames)
    assert made.report["drift"]["share"] == 0


# ---- the student of sequence 0


def test_the_source_overlay_acts_as_that_of_sequence_0(
    student: LoadedModel, mirror: Device, frames: list[Shard]
) -> None:
    """Same logits, bit for bit, as the device's first overlay, after two other overlays."""
    first = start_of(mirror)
    examples = [Example(shard, question) for shard in frames for question in shard.questions]
    answer_BA = student.answer_ids(["red"] * len(examples))

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return student.forward(encode(student, examples).spliced, answer_BA).logits

    student.install_overlay(first, mirror.lora.alpha)
    expected = logits()
    for seed in (1, 2):
        student.install_overlay(moved(mirror, seed=seed), mirror.lora.alpha)
    assert not torch.equal(logits(), expected)
    source = student.source_overlay()
    assert source.keys() == first.keys()
    for name, value in source.items():
        assert name.endswith(LORA_A) or np.array_equal(value, first[name]), name
    student.install_overlay(source, mirror.lora.alpha)
    assert torch.equal(logits(), expected)


# ---- what is refused


def test_anchors_of_another_tower(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], frames: list[Shard]
) -> None:
    other = [replace(frames[0], tower="sha256:" + "0" * 64)]
    with pytest.raises(BadData, match="its tokens come from the vision tower") as caught:
        distill(shards, teacher, mirror, QUICK, anchors=other)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("without", ["questions", "frames"])
def test_anchors_without_questions(
    without: str, teacher: LoadedModel, mirror: Device, shards: list[Shard], frames: list[Shard]
) -> None:
    found = [] if without == "frames" else [replace(frames[0], questions=[])]
    with pytest.raises(BadData, match="`anchors`: holds no question that the student answers"):
        distill(shards, teacher, mirror, QUICK, anchors=found)


def test_several_processes_need_a_file(
    teacher: LoadedModel,
    mirror: Device,
    frames: list[Shard],
    student: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "count", lambda: 2)
    far = replace(QUICK, labels=("https://example.org/uplink.labels",))
    for settings in (QUICK, far):
        with pytest.raises(UsageError, match="share the anchors' labels in a file: give `work`"):
            open_anchors(frames, student, mirror, settings, SKIPPED)


def test_settings_that_cannot_be() -> None:
    for wrong in ({"anchor_weight": 0.0}, {"anchor_questions": 0}):
        with pytest.raises(UsageError):
            DistillSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="anchor_targets"):
        DistillSettings(anchor_targets="answers").check_anchors(are_given=False)
    with pytest.raises(UsageError, match="`anchor_weight`: does nothing with `method` tent"):
        DistillSettings(method="tent", anchor_weight=1.0)
