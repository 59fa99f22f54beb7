"""Calibration: the sensitivity against a full Jacobian, the loss against its definition."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdcca_cli.datasets import Frame, LabelledQuestion
from cdcca_cli.distillation import calibration
from cdcca_cli.distillation.calibration import Sample
from cdcca_cli.distillation.settings import CalibrationSettings
from cdcca_cli.errors import BadData
from cdcca_cli.formats.shard import Coding, Layout, Shard
from cdcca_cli.models import LoadedModel, Seen, load
from cdcca_cli.models.decoding import right_padded
from cdcca_cli.payloads import pictures
from cdcca_cli.payloads.opening import Opener
from cdcca_cli.skipped import Skipped
from tests import tiny

QUESTIONS = [
    LabelledQuestion("q", "how many circles?", "vqa"),
    LabelledQuestion("r", "what colour is the square?", "vqa"),
    LabelledQuestion("c"),
]
KINDS = ["blip2_llama", "instructblip", "llava", "blip2_t5"]


@pytest.fixture(params=KINDS)
def teacher(request: pytest.FixtureRequest) -> LoadedModel:
    return load(request.getfixturevalue(request.param), compute="cpu")


def sample(teacher: LoadedModel, count: int = 6, seed: int = 0) -> Sample:
    with torch.no_grad():
        (seen,) = teacher.see(teacher.prepare(tiny.images(1)))
    shape = (count, *seen.tokens.shape)
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return Sample(values, [QUESTIONS[row % 2 :] for row in range(count)], seen.layout)


SETTINGS = CalibrationSettings(vectors=300)


def test_sensitivity_is_that_of_the_full_jacobian(teacher: LoadedModel) -> None:
    """W = mean of J'J over one frame's one question, J by torch's own Jacobian."""
    one = replace(sample(teacher, 1), questions=[QUESTIONS[:1]])
    prompts = [teacher.format_prompt(QUESTIONS[0].prompt, "vqa")]
    full = torch.autograd.functional.jacobian(
        lambda tokens: teacher.queries(tokens, prompts=prompts), torch.from_numpy(one.tokens)
    )
    rows = full.reshape(-1, *one.tokens.shape[1:]).double().numpy()
    expected = np.einsum("qnc,qnd->cd", rows, rows)
    expected /= np.trace(expected)
    found = calibration.sensitivity(teacher, one, SETTINGS)
    assert np.isclose(np.trace(found), 1) and np.allclose(found, found.T)
    assert np.linalg.norm(found - expected) < 0.25 * np.linalg.norm(expected)


def test_loss_and_agreement_by_their_definition(teacher: LoadedModel) -> None:
    """One question at a time, without batches, in float64: KL over answer tokens, and the loss of
    the greedy answer."""
    given = sample(teacher, 3)
    noise = np.random.default_rng(1).standard_normal(given.tokens.shape).astype(np.float32)
    ways = [given.tokens, given.tokens + noise / 10, given.tokens + 2 * noise]
    gaps, own, same = np.zeros(3), 0.0, np.zeros(3)
    for row, questions in enumerate(given.questions):
        for one in questions:
            text = [teacher.format_prompt(one.prompt, one.task)]

            def spliced(tokens_NC: np.ndarray, text: list[str] = text) -> object:
                return teacher.read([Seen(torch.from_numpy(tokens_NC), given.layout)], text)

            with torch.no_grad():
                limit = 16 if one.task == "vqa" else 40
                ids = teacher.generate(spliced(given.tokens[row]), limit).ids
                answer = right_padded(ids)
                p = teacher.forward(spliced(given.tokens[row]), answer).logits[0].double()
                p = p.log_softmax(-1)
                own -= float(p.gather(1, answer.T).mean())
                for number, way in enumerate(ways):
                    q = teacher.forward(spliced(way[row]), answer).logits[0].double()
                    q = q.log_softmax(-1)
                    gaps[number] += float((p.exp() * (p - q)).sum(-1).mean())
                    same[number] += teacher.generate(spliced(way[row]), limit).ids == ids
    found = calibration.changes(
        teacher, given, [lambda row, way=way: way[row] for way in ways], batch_size=4
    )
    number = sum(map(len, given.questions))
    assert [one.loss for one in found] == pytest.approx(gaps / own, rel=1e-3, abs=1e-6)
    assert [one.agreement for one in found] == pytest.approx(same / number)
    assert found[0].loss == pytest.approx(0, abs=1e-6) and found[0].agreement == 1
    assert found[2].loss > found[1].loss > 0


def test_a_codebook_from_frames(blip2_llama: Path) -> None:
    teacher = load(blip2_llama, compute="cpu")
    settings = CalibrationSettings(vectors=4)
    first, second = sample(teacher, 12), sample(teacher, 4, seed=1)
    made = calibration.calibrate(teacher, teacher, first, second, settings, 4)
    again = calibration.calibrate(teacher, teacher, first, second, settings, 4)
    assert made.digest == again.digest
    assert (made.tower, made.teacher) == (teacher.tower_digest, teacher.digest)
    assert (made.sequence, made.num_frames, made.num_tokens) == (4, *first.tokens.shape[:2])
    points = made.curve.tokens
    assert [point.step for point in points] == [float(np.float32(s)) for s in calibration.STEPS]
    bits = [point.bits for point in points]
    assert bits == sorted(bits, reverse=True)
    assert points[0].loss < points[-1].loss
    assert points[0].bytes * 8 == pytest.approx(points[0].bits * first.tokens[0].size)
    assert "step" in calibration.summary(made)


def test_pictures_are_measured_as_the_cloud_opens_them(blip2_llama: Path, tmp_path: Path) -> None:
    """Each point is what one picture a frame, through the tower, changes and takes."""
    teacher = load(blip2_llama, compute="cpu")
    frames = []
    for number, image in enumerate(tiny.images(3, seed=1)):
        image.save(tmp_path / f"{number}.png")
        frames.append(Frame(f"{number}", tmp_path / f"{number}.png", QUESTIONS[:2]))
    found = calibration.sample_of(
        teacher, frames, Skipped(strict=True), qualities={"image/webp": (5, 90)}
    )
    made = calibration.calibrate(
        teacher, teacher, sample(teacher, 8), found, CalibrationSettings(vectors=2)
    )
    worst, best = made.curve.frames
    assert (worst.media, worst.quality, best.quality) == ("image/webp", 5, 90)
    sizes = [len(picture.data) for picture in found.pictures["image/webp", 90]]
    assert worst.bytes < best.bytes == np.mean(sizes)
    assert worst.loss > best.loss > 0

    def seen(row: int) -> np.ndarray:
        image = pictures.decode(found.pictures["image/webp", 5][row])
        with torch.no_grad():
            return teacher.see(teacher.prepare([image]))[0].tokens.numpy()

    (expected,) = calibration.changes(teacher, found, [seen], 2)
    assert worst.loss == pytest.approx(expected.loss, rel=1e-4)


@pytest.mark.parametrize("place", ["see", "seen_as_picture"])
def test_a_frame_that_cannot_be_seen_or_shown_is_left_out(
    place: str, blip2_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others stay, each with all of its pictures, which are of one image."""
    student = load(blip2_llama, compute="cpu")
    frames = []
    for number, image in enumerate(tiny.images(3, seed=1)):
        image.save(tmp_path / f"{number}.png")
        frames.append(Frame(f"{number}", tmp_path / f"{number}.png", QUESTIONS[:1]))
    inner, calls = getattr(student, place), []

    def fails_once(given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise BadData("of no use")
        return inner(given)

    monkeypatch.setattr(student, place, fails_once)
    skipped = Skipped()
    found = calibration.sample_of(student, frames, skipped, qualities={"image/webp": (5, 90)})
    assert len(calls) == 3
    assert len(found.tokens) == len(found.questions) == skipped.num_sound == 2
    assert [len(row) for row in found.pictures.values()] == [2, 2]
    assert "1 frame" in str(skipped)


def test_frames_of_several_layouts_have_no_codebook(
    blip2_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of as many tokens or not: a codebook knows each token by its place."""
    student = load(blip2_llama, compute="cpu")
    frames = []
    for number, image in enumerate(tiny.images(2, seed=1)):
        image.save(tmp_path / f"{number}.png")
        frames.append(Frame(f"{number}", tmp_path / f"{number}.png", QUESTIONS[:1]))
    see = student.see
    for other in (Layout((1, 9)), Layout((3, 3), "<row>{10}")):
        layouts = iter([Layout((3, 3)), other])
        monkeypatch.setattr(
            student,
            "see",
            lambda found, layouts=layouts: [Seen(one.tokens, next(layouts)) for one in see(found)],
        )
        with pytest.raises(BadData, match="different numbers or layouts of tokens"):
            calibration.sample_of(student, frames, Skipped(strict=True))


def test_what_a_device_sent_has_the_layout_that_the_mirrors_tower_makes(
    blip2_llama: Path,
) -> None:
    """Whatever the layout in the shard of a picture says."""
    student = load(blip2_llama, compute="cpu")
    sent = [
        Shard(
            frame=f"{number}",
            image="a.png",
            domain=None,
            tokens=np.zeros((0, 0), np.float32),
            positions=np.arange(10, dtype=np.int32),
            num_tokens=10,
            tower=student.tower_digest,
            coding=Coding("frame"),
            picture=pictures.encode(student.seen_as_picture(image), pictures.WEBP),
        )
        for number, image in enumerate(tiny.images(2, seed=1))
    ]
    opener = Opener(student, {}.__getitem__)
    assert sent[0].layout == Layout()
    found = calibration.sample_of(student, sent, Skipped(strict=True), opener)
    assert found.layout == Layout((3, 3))
    assert found.tokens.shape[:2] == (2, 10)


def test_what_cannot_be_calibrated(blip2_llama: Path, instructblip: Path) -> None:
    teacher = load(blip2_llama, compute="cpu")
    given = sample(teacher)
    with pytest.raises(BadData, match="shares the student's tower"):
        calibration.calibrate(teacher, load(instructblip, compute="cpu"), given, given)
    with pytest.raises(BadData, match="no question"):
        calibration.changes(teacher, Sample(given.tokens, [[]] * 6), [], 4)
    reading = load(instructblip, compute="cpu")
    with pytest.raises(BadData, match="reads the question"):
        calibration.sensitivity(reading, Sample(given.tokens, [[]] * 6), SETTINGS)


def test_frames_are_divided_by_their_names() -> None:
    names = [f"{number}.jpg" for number in range(40)]
    settings = CalibrationSettings(frames=25, evaluated=12)

    def divided(names: list[str], others: list[str] | None = None) -> tuple[list[str], list[str]]:
        return calibration.divide(names, others, str, settings)

    first, second = divided(names)
    assert (len(first), len(second)) == (25, 12)
    assert len({*first, *second}) == 37
    assert divided(names[::-1]) == (first, second)
    assert divided(names[:20]) == divided(names[:20], None)
    assert list(map(len, divided(names[:20]))) == [15, 5]  # a quarter is evaluated on
    others = [f"other {number}" for number in range(30)]
    assert list(map(len, divided(names[:20], others))) == [20, 12]
    assert set(divided(names[:20], others)[1]) <= set(others)
    for too_few in ([], ["a"]):
        with pytest.raises(BadData, match="at least 2"):
            divided(too_few)
    other_seed = calibration.divide(names, None, str, replace(settings, seed=1))
    assert other_seed != (first, second)
