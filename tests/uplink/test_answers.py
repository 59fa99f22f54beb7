"""The pass of infer: the same whatever the batch, in order, the tower once a frame."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cdcca_cli.datasets import Frame, LabelledQuestion, image_name, load_image
from cdcca_cli.errors import BadData, SettingError
from cdcca_cli.formats.predictions import Prediction, encode_line
from cdcca_cli.models import LoadedModel, load
from cdcca_cli.skipped import Skipped
from cdcca_cli.uplink import answers
from cdcca_cli.uplink.answers import answer_frames, windows
from cdcca_cli.uplink.settings import AnswerSettings
from tests.uplink.conftest import CHOICES


def answered(model: LoadedModel, frames: list[Frame], **options: object) -> list[Prediction]:
    return list(answer_frames(model, frames, AnswerSettings(max_new_tokens=6, **options)))


@pytest.fixture(scope="module")
def predictions(model: LoadedModel, frames: list[Frame]) -> list[Prediction]:
    return answered(model, frames, per_token=True)


@pytest.mark.parametrize("checkpoint", ["blip2_llama", "blip2_t5", "instructblip", "llava"])
def test_the_batch_size_changes_nothing(
    checkpoint: str, request: pytest.FixtureRequest, frames: list[Frame]
) -> None:
    model = load(request.getfixturevalue(checkpoint), compute="cpu")
    one, three, many = (answered(model, frames, batch_size=size) for size in (1, 3, 32))
    for other in (three, many):
        assert [(p.id, p.answer, p.choice) for p in other] == [
            (p.id, p.answer, p.choice) for p in one
        ]
        for a, b in zip(one, other, strict=True):
            assert list(b.entropy.values()) == pytest.approx(list(a.entropy.values()), abs=1e-5)
            # A sum of about -40 has steps of 4e-6 in float32.
            assert (b.choice_scores or []) == pytest.approx(a.choice_scores or [], rel=1e-6)


def test_in_the_order_of_the_input(predictions: list[Prediction], frames: list[Frame]) -> None:
    assert [p.id for p in predictions] == [
        question.id for frame in frames for question in frame.questions
    ]
    assert [p.prompt for p in predictions] == [
        question.prompt for f in frames for question in f.questions
    ]
    assert {p.domain for p in predictions} == {"night", None}


def test_predictions_can_be_written(predictions: list[Prediction], model: LoadedModel) -> None:
    assert all(encode_line(prediction) for prediction in predictions)
    assert {prediction.model for prediction in predictions} == {model.digest}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_tower_runs_once_a_frame(
    model: LoadedModel, frames: list[Frame], batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    see = model.see
    monkeypatch.setattr(model, "see", lambda pictures: rows.append(len(pictures)) or see(pictures))
    answered(model, frames, batch_size=batch_size)
    assert sum(rows) == len(frames) < sum(len(frame.questions) for frame in frames)
    assert max(rows) <= 2 * batch_size


def test_a_window_is_all_that_is_read_ahead(model: LoadedModel, frames: list[Frame]) -> None:
    """The first prediction comes out before many frames went in."""
    taken = Counter[str]()

    def source() -> Iterator[Frame]:
        for _ in range(100):
            taken["frames"] += 1
            yield frames[0]

    next(answer_frames(model, source(), AnswerSettings(batch_size=2, max_new_tokens=1)))
    assert taken["frames"] <= 4


def test_windows_divide_no_frame_and_lose_none(frames: list[Frame]) -> None:
    runs = list(windows(frames, 1))
    assert [frame for run in runs for frame in run] == frames
    assert all(sum(len(frame.questions) for frame in run[:-1]) < 2 for run in runs)


def test_entropy_is_of_the_tokens_that_were_chosen(
    model: LoadedModel, frames: list[Frame], predictions: list[Prediction]
) -> None:
    """Second form: answers fed back one token at a time through `forward`, in float64 loops."""
    for frame, prediction in ((frames[0], predictions[0]), (frames[1], predictions[2])):
        question = next(question for question in frame.questions if question.id == prediction.id)
        text = model.format_prompt(question.prompt, question.task)
        ids: list[int] = []
        slow = []
        with torch.no_grad():
            spliced = model.read(model.see(model.prepare([load_image(frame)])), [text])
            for _ in range(6):
                given = torch.tensor([[*ids, 0]])
                logits = model.forward(spliced, given).logits[0, -1].double()
                p = torch.softmax(logits, -1).tolist()
                slow.append(-math.fsum(x * math.log(x) for x in p if x > 0))
                ids.append(int(logits.argmax()))
                if ids[-1] == 2:
                    break
        assert prediction.token_entropies == pytest.approx(slow, abs=1e-5)
        assert prediction.answer == model.decode(ids)
        assert prediction.entropy["sum"] == pytest.approx(math.fsum(slow), abs=1e-4)
        assert prediction.entropy["mean"] == pytest.approx(math.fsum(slow) / len(slow), abs=1e-5)
        assert prediction.entropy["max"] == pytest.approx(max(slow), abs=1e-5)
        assert prediction.entropy["first"] == pytest.approx(slow[0], abs=1e-5)


def test_a_choice_is_scored_by_its_whole_text(
    model: LoadedModel, frames: list[Frame], predictions: list[Prediction]
) -> None:
    """Second form: log p of each token of " " + choice + end, one choice at a time."""
    frame, prediction = frames[1], predictions[2]
    assert prediction.choices == CHOICES
    text = model.format_prompt(prediction.prompt, "vqa")
    slow = []
    with torch.no_grad():
        spliced = model.read(model.see(model.prepare([load_image(frame)])), [text])
        for choice in CHOICES:
            ids = model.answer_ids([choice])
            logits = model.forward(spliced, ids).logits[0].double().log_softmax(-1)
            slow.append(math.fsum(float(row[i]) for row, i in zip(logits, ids[0], strict=True)))
    assert prediction.choice_scores == pytest.approx(slow, abs=1e-4)
    assert prediction.choice == CHOICES[slow.index(max(slow))]


def test_without_choices_there_is_no_choice(predictions: list[Prediction]) -> None:
    for prediction in predictions:
        assert (prediction.choice is None) == (prediction.choices is None)
        assert (prediction.choice_scores is None) == (prediction.choices is None)


def test_per_token_only_on_request(model: LoadedModel, frames: list[Frame]) -> None:
    assert answered(model, frames[:1])[0].token_entropies is None


def test_no_frames(model: LoadedModel) -> None:
    assert answered(model, []) == []


def test_a_damaged_model_is_said(blip2_llama: Path, frames: list[Frame]) -> None:
    model = load(blip2_llama, compute="cpu")
    with torch.no_grad():
        model.module.query_tokens.fill_(float("nan"))
    with pytest.raises(BadData, match=r"00\.png.*not finite"):
        answered(model, frames[:1])


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"max_new_tokens": 0}])
def test_settings_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(SettingError):
        AnswerSettings(**options)


def test_no_path_of_this_machine_leaves_it() -> None:
    """The name within the source, or the bare one."""
    assert image_name(Frame("a/b.jpg", Path("/secret/place/a/b.jpg"))) == "a/b.jpg"
    assert image_name(Frame("42", Path("/secret/val2017/000042.jpg"))) == "000042.jpg"
    assert image_name(Frame("clip.mp4#3", Path("/secret/clip.mp4"), position=3)) == "clip.mp4"


@pytest.fixture
def damaged(frames: list[Frame], tmp_path: Path) -> Frame:
    """A frame with questions whose picture is cut short."""
    path = tmp_path / "damaged.png"
    path.write_bytes(frames[0].image.read_bytes()[:150])
    questions = [LabelledQuestion("bad-1", "how many?", "vqa"), LabelledQuestion("bad-2")]
    return Frame(path.name, path, questions)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_a_damaged_frame_is_left_out_and_read_once(
    model: LoadedModel,
    frames: list[Frame],
    damaged: Frame,
    batch_size: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loaded = Counter[str]()
    monkeypatch.setattr(
        answers, "load_image", lambda frame: loaded.update([frame.id]) or load_image(frame)
    )
    how = AnswerSettings(batch_size=batch_size, max_new_tokens=6)
    skipped = Skipped()
    gone = Frame("gone.png", damaged.image.parent / "gone.png", damaged.questions)
    mixed = [*frames[:2], damaged, *frames[2:5], gone]
    found = list(answer_frames(model, mixed, how, skipped))
    expected = list(answer_frames(model, frames[:5], how))
    assert [(p.id, p.answer) for p in found] == [(p.id, p.answer) for p in expected]
    assert (skipped.count, skipped.num_sound) == (2, len(expected))
    assert loaded["damaged.png"] == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "damaged.png" in lines[0] and "gone.png" in lines[1]


def test_without_leave_a_damaged_frame_stops_the_run(
    model: LoadedModel, frames: list[Frame], damaged: Frame
) -> None:
    for skipped in (None, Skipped(strict=True)):
        with pytest.raises(BadData, match=r"damaged\.png"):
            list(answer_frames(model, [*frames[:2], damaged], AnswerSettings(), skipped))


@pytest.mark.parametrize("batch_size", [2, 32])
def test_a_question_that_the_model_refuses_loses_only_itself(
    model: LoadedModel,
    frames: list[Frame],
    batch_size: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Questions that are too long are left out of a batch, and the others are answered."""
    expected = answered(model, frames, batch_size=batch_size)
    skipped = Skipped()
    how = AnswerSettings(max_new_tokens=6, batch_size=batch_size)
    found = list(answer_frames(model, lengthened(frames, "green triangle"), how, skipped))
    kept = [p for p in expected if "green triangle" not in (p.prompt or "")]
    assert [(p.id, p.answer, p.choice) for p in found] == [(p.id, p.answer, p.choice) for p in kept]
    assert skipped.count == len(expected) - len(kept) == 6
    message = "02.png: question 2-1: a prompt with its picture and answer takes"
    assert message in capsys.readouterr().err


def lengthened(frames: list[Frame], words: str) -> list[Frame]:
    """The frames, with the questions that have these words too long for the model."""
    return [
        replace(
            frame,
            questions=[
                replace(question, prompt=question.prompt * 40)
                if question.prompt and words in question.prompt
                else question
                for question in frame.questions
            ],
        )
        for frame in frames
    ]
