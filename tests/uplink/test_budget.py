"""A byte budget is never exceeded, and used: by more questions, or by a finer step."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cdcca_cli.datasets import Frame
from cdcca_cli.errors import SettingError
from cdcca_cli.formats import shard_stream
from cdcca_cli.formats.codebook import Codebook
from cdcca_cli.models import LoadedModel
from cdcca_cli.payloads import pictures
from cdcca_cli.text import parse_amount
from cdcca_cli.uplink.answers import answer_frames
from cdcca_cli.uplink.budget import COARSEST_STEP, FINEST_STEP
from cdcca_cli.uplink.coding import Coded, Coder
from cdcca_cli.uplink.sampling import sample_frames
from cdcca_cli.uplink.settings import AnswerSettings, PayloadSettings, SampleSettings

RATIO = (COARSEST_STEP / FINEST_STEP) ** (1 / 64)
"""Of one place of the bisection to the next: six halvings of 8 octaves."""


Sampled = Callable[..., list[Coded]]


@pytest.fixture(scope="module")
def sampled(model: LoadedModel, frames: list[Frame]) -> Sampled:
    """What is sent of the first frames, whose questions were answered once."""
    some = frames[:6]
    answers = list(answer_frames(model, some, AnswerSettings(max_new_tokens=1)))

    def sampled(coder: Coder, given: list[Frame] = some, **options: Any) -> list[Coded]:
        if "top" in options:
            options["top"] = parse_amount(options["top"])
        settings = SampleSettings(**options)
        return list(sample_frames(model, given, settings, answers, None, coder))

    return sampled


def num_bytes(sent: list[Coded]) -> int:
    with shard_stream.writer(io.BytesIO()) as write:
        for coded in sent:
            write(coded.shard, coded.picture)
    return write.num_bytes


@pytest.mark.parametrize("payload", [{}, {"payload": "frame"}, {"codec": "int8"}])
def test_alone_it_is_the_longest_prefix_that_fits(
    model: LoadedModel, codebook: Codebook, sampled: Sampled, payload: dict[str, Any]
) -> None:
    """Second form: the stream of the n highest questions, for every n."""
    coder = Coder(model, PayloadSettings(**payload), codebook)
    for count in range(1, 5):
        most = num_bytes(sampled(coder, top=str(count)))
        exact = sampled(coder, budget_bytes=most)
        assert num_bytes(exact) == most
        assert sum(len(coded.shard.questions) for coded in exact) == count
        below = sampled(coder, budget_bytes=most - 1)
        assert not below or num_bytes(below) < most
        assert sum(len(coded.shard.questions) for coded in below) == count - 1


def test_with_a_share_the_step_is_the_finest_that_fits(
    model: LoadedModel, codebook: Codebook, sampled: Sampled
) -> None:
    """The same questions as without a budget; one place finer in the bisection does not fit, or is
    the finest; more bytes never give a coarser step."""
    coder, found = Coder(model, PayloadSettings(), codebook), []
    plain = sampled(coder, top="50%")
    for most in (1150, 1250, 1400, 9000):
        sent = sampled(coder, top="50%", budget_bytes=most)
        assert [coded.shard.questions for coded in sent] == [c.shard.questions for c in plain]
        assert num_bytes(sent) <= most
        (step,) = {coded.shard.coding.step for coded in sent}
        found.append(step)
        finer = step / RATIO
        if finer > FINEST_STEP * 1.0001:
            assert num_bytes(sampled(coder.with_step(finer), top="50%")) > most
    assert found == sorted(found, reverse=True) and len({*found}) == 4
    assert found[-1] == pytest.approx(FINEST_STEP * RATIO)


def test_a_picture_is_sent_only_where_it_costs_no_more_than_the_step(
    model: LoadedModel, codebook: Codebook, frames: list[Frame], sampled: Sampled, tmp_path: Path
) -> None:
    """A flat picture takes fewer bytes than any codes, but no picture was measured to cost less
    than 0.2 %: with bytes to spare, tokens of a step that costs less are sent."""
    coder = Coder(model, PayloadSettings(), codebook)
    assert coder.with_step(1.0).quality == 50
    assert coder.with_step(4.0).quality == 30
    assert coder.with_step(0.25).quality is None
    flat = tmp_path / "flat.png"
    Image.new("RGB", (60, 60), "red").save(flat)
    given = [Frame(frames[0].id, flat, frames[0].questions)]
    (sent,) = sampled(coder, given, top="1", budget_bytes=10_000)
    assert sent.picture is None and sent.shard.codes is not None


@pytest.mark.parametrize(
    ("payload", "with_codebook", "name", "reason"),
    [
        ({}, False, "budget_bytes", "needs tokens in the codec klt, and so a codebook"),
        ({"payload": "frame"}, True, "budget_bytes", "needs tokens in the codec klt"),
        ({"codec": "int8"}, True, "budget_bytes", "needs tokens in the codec klt"),
        ({"step": 1.0}, True, "step", "`top` and `budget_bytes`, which set the step"),
        ({"bits": 1.0}, True, "bits", "which set the step"),
        ({"max_loss": 0.02}, True, "max_loss", "which set the step"),
    ],
)
def test_what_cannot_be_made_to_fit_is_refused_before_a_frame_is_read(
    model: LoadedModel,
    codebook: Codebook,
    sampled: Sampled,
    payload: dict[str, Any],
    with_codebook: bool,
    name: str,
    reason: str,
) -> None:
    class Unread(list[Frame]):
        def __iter__(self) -> Any:
            raise AssertionError("read")

    coder = Coder(model, PayloadSettings(**payload), codebook if with_codebook else None)
    with pytest.raises(SettingError, match=reason) as caught:
        sampled(coder, Unread(), top="10%", budget_bytes=5000)
    assert caught.value.name == name


def test_too_few_bytes_for_the_coarsest_step_are_refused(
    model: LoadedModel, codebook: Codebook, sampled: Sampled
) -> None:
    coder = Coder(model, PayloadSettings(), codebook)
    with pytest.raises(SettingError, match=r"`budget_bytes` 300: too few for \d+ frames: lower"):
        sampled(coder, top="50%", budget_bytes=300)


def test_each_picture_is_made_once_however_many_steps_are_tried(
    model: LoadedModel, frames: list[Frame], codebook: Codebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by timing: a budget made the picture of each frame for each step it tried."""
    made: list[bytes] = []
    encode = pictures.encode

    def counted(image: object, *rest: object) -> pictures.Picture:
        picture = encode(image, *rest)  # type: ignore[arg-type]
        made.append(picture.data)
        return picture

    monkeypatch.setattr(pictures, "encode", counted)
    settings = SampleSettings(top=parse_amount("50%"), budget_bytes=3_000, max_new_tokens=2)
    coder = Coder(model, PayloadSettings(codec="klt", media="jpeg", quality=50), codebook)
    out = io.BytesIO()
    with shard_stream.writer(out) as write:
        for coded in sample_frames(model, frames, settings, coder=coder):
            write(coded.shard, coded.picture)
    picked = list(shard_stream.read_shards(io.BytesIO(out.getvalue())))
    assert write.num_bytes <= 3_000
    assert len(made) == len(picked) > 2
