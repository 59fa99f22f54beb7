"""Coarse to fine: which questions and tokens go up; no batch, order or memory changes it.

Payloads are tokens here, with their scores; `test_coding.py` has the others.
"""

import io
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard

from cdcca_cli import streams
from cdcca_cli.datasets import Frame, LabelledQuestion, load_image
from cdcca_cli.errors import BadData, SettingError
from cdcca_cli.formats import records, shard_stream
from cdcca_cli.formats.predictions import Prediction
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel, Trunk, load
from cdcca_cli.skipped import Skipped
from cdcca_cli.text import parse_amount
from cdcca_cli.uplink import spool
from cdcca_cli.uplink.answers import answer_frames
from cdcca_cli.uplink.coding import Coder
from cdcca_cli.uplink.sampling import sample_frames
from cdcca_cli.uplink.settings import AnswerSettings, PayloadSettings, SampleSettings
from cdcca_cli.uplink.spool import Slot, Spool


def amount(text: str) -> object:
    return parse_amount(text)


def settings(**options: object) -> SampleSettings:
    for name in ("top", "keep"):
        if isinstance(options.get(name), str):
            options[name] = amount(str(options[name]))
    return SampleSettings(**{"max_new_tokens": 3, **options})


def sampled(
    model: LoadedModel,
    frames: list[Frame],
    predictions: list[Prediction] | None = None,
    codec: str = "int8",
    skipped: Skipped | None = None,
    **options: object,
) -> list[Shard]:
    payload = PayloadSettings(payload="tokens", codec=codec, scores=True)
    coder = Coder(model, payload, None)
    found = sample_frames(model, frames, settings(**options), predictions, skipped, coder)
    return [coded.shard for coded in found]


def stream_of(shards: list[Shard]) -> bytes:
    out = io.BytesIO()
    with shard_stream.writer(out) as write:
        for shard in shards:
            write(shard)
    return out.getvalue()


def picked(shards: list[Shard]) -> list[str]:
    return [question.id for shard in shards for question in shard.questions]


@pytest.fixture(scope="module")
def predictions(model: LoadedModel, frames: list[Frame]) -> list[Prediction]:
    return list(answer_frames(model, frames, AnswerSettings(max_new_tokens=3)))


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(streams, "message", lines.append)
    return lines


class TestStage1:
    @pytest.mark.parametrize("entropy", ["mean", "sum", "max", "first"])
    def test_the_highest_questions_in_the_order_of_the_input(
        self,
        model: LoadedModel,
        frames: list[Frame],
        predictions: list[Prediction],
        entropy: str,
    ) -> None:
        """Second form: sort the predictions of infer of each task, put them at (r - 1/2) / n, take
        five, put them in order."""
        order = {p.id: place for place, p in enumerate(predictions)}
        at = {}
        for task in ("vqa", "caption"):
            ranked = sorted(
                (p for p in predictions if p.task == task), key=lambda p: -p.entropy[entropy]
            )
            at |= {p.id: (place + 0.5) / len(ranked) for place, p in enumerate(ranked)}
        best = sorted(predictions, key=lambda p: at[p.id])[:5]
        assert Counter(p.task for p in best) == {"vqa": 3, "caption": 2}
        expected = [p.id for p in sorted(best, key=lambda p: order[p.id])]
        shards = sampled(model, frames, top="5", entropy=entropy)
        assert picked(shards) == expected
        figures = {p.id: p.entropy[entropy] for p in predictions}
        for shard in shards:
            for question in shard.questions:
                assert question.entropy == pytest.approx(figures[question.id], abs=1e-5)

    def test_ten_percent_of_the_questions_by_default(
        self, model: LoadedModel, frames: list[Frame]
    ) -> None:
        """30 questions, so 3."""
        assert sum(len(frame.questions) for frame in frames) == 30
        assert len(picked(sampled(model, frames))) == 3

    def test_threshold(
        self, model: LoadedModel, frames: list[Frame], predictions: list[Prediction]
    ) -> None:
        middle = sorted(p.entropy["mean"] for p in predictions)[20]
        shards = sampled(model, frames, predictions, threshold=middle)
        assert picked(shards) == [p.id for p in predictions if p.entropy["mean"] >= middle]
        assert sampled(model, frames, threshold=99.0) == []
        assert picked(sampled(model, frames, threshold=0.0)) == [p.id for p in predictions]

    def test_predictions_pick_what_answering_picks(
        self, model: LoadedModel, frames: list[Frame], predictions: list[Prediction]
    ) -> None:
        with_pass, with_file = (
            sampled(model, frames, top="6"),
            sampled(model, frames, predictions, top="6"),
        )
        assert picked(with_pass) == picked(with_file)
        for a, b in zip(with_pass, with_file, strict=True):
            assert a.tokens.tobytes() == b.tokens.tobytes()
            assert a.positions.tolist() == b.positions.tolist()

    @pytest.mark.parametrize("with_file", [False, True])
    @pytest.mark.parametrize("codec", ["int8", "float32"])
    def test_budget_is_the_longest_prefix_that_fits(
        self,
        model: LoadedModel,
        frames: list[Frame],
        predictions: list[Prediction],
        with_file: bool,
        codec: str,
    ) -> None:
        """Second form: the whole stream of the n highest questions, for every n."""
        earlier = predictions if with_file else None
        lengths = {
            number: len(stream_of(sampled(model, frames, predictions, codec, top=str(number))))
            for number in range(1, 9)
        }
        assert sorted(lengths.values()) == list(lengths.values())
        for number, num_bytes in lengths.items():
            exact = sampled(model, frames, earlier, codec, budget_bytes=num_bytes)
            assert len(stream_of(exact)) == num_bytes
            assert len(picked(exact)) == number
            below = sampled(model, frames, earlier, codec, budget_bytes=num_bytes - 1)
            assert len(picked(below)) == number - 1

    def test_a_budget_for_nothing_is_an_empty_stream(
        self, model: LoadedModel, frames: list[Frame], messages: list[str]
    ) -> None:
        assert sampled(model, frames, budget_bytes=40) == []
        assert "holds no shard" in messages[-1]

    def test_missing_predictions_are_said(
        self,
        model: LoadedModel,
        frames: list[Frame],
        predictions: list[Prediction],
        messages: list[str],
    ) -> None:
        assert len(picked(sampled(model, frames, predictions[:20], top="50%"))) == 10
        assert messages == ["10 of 30 questions have no prediction and are left out"]

    def test_predictions_of_other_frames_are_an_error(
        self, model: LoadedModel, frames: list[Frame], predictions: list[Prediction]
    ) -> None:
        with pytest.raises(BadData, match="`predictions`"):
            sampled(model, frames[:1], predictions[1:])

    def test_predictions_of_another_model_are_said(
        self,
        model: LoadedModel,
        instructblip: Path,
        frames: list[Frame],
        predictions: list[Prediction],
        messages: list[str],
    ) -> None:
        other = load(instructblip, compute="cpu")
        assert sampled(other, frames, predictions)
        assert len(messages) == 1
        assert "another model" in messages[0] or "model at" in messages[0]

    def test_no_frames(self, model: LoadedModel) -> None:
        assert sampled(model, []) == []
        assert sampled(model, [], budget_bytes=10_000) == []


class TestStage2:
    @pytest.mark.parametrize("checkpoint", ["blip2_t5", "instructblip", "llava"])
    def test_clean_tokens_at_the_kept_positions(
        self, checkpoint: str, request: pytest.FixtureRequest, frames: list[Frame]
    ) -> None:
        model = load(request.getfixturevalue(checkpoint), compute="cpu")
        shards = sampled(model, frames, top="4", keep="50%")
        by_id = {frame.id: frame for frame in frames}
        assert shards
        for shard in shards:
            with torch.no_grad():
                (seen,) = model.see(model.prepare([load_image(by_id[shard.frame])]))
            clean = seen.tokens.numpy()
            assert shard.tokens == pytest.approx(clean[shard.positions], abs=1e-5)
            layout = replace(shard.layout, boxes=())
            assert (shard.num_tokens, layout) == (len(clean), seen.layout)
            assert shard.tower == model.tower_digest
            assert len(shard.positions) == -(-len(clean) // 2)

    def test_the_same_whatever_the_batch_and_the_order(
        self, model: LoadedModel, frames: list[Frame]
    ) -> None:
        """Tokens bit for bit, so that a rank can never hang on the batch; entropies to 1e-5."""
        options = {"top": "6", "keep": "50%"}
        runs = [sampled(model, frames, batch_size=size, **options) for size in (1, 3, 32)]
        runs.append(sampled(model, frames[::-1], batch_size=5, **options)[::-1])
        for shards in runs[1:]:
            assert [shard.frame for shard in shards] == [shard.frame for shard in runs[0]]
            assert picked(shards) == picked(runs[0])
            for a, b in zip(runs[0], shards, strict=True):
                assert a.positions.tolist() == b.positions.tolist()
                assert a.tokens.tobytes() == b.tokens.tobytes()
                assert a.scores.tobytes() == b.scores.tobytes()
                assert [x.entropy for x in a.questions] == pytest.approx(
                    [x.entropy for x in b.questions], abs=1e-5
                )

    def test_kept_are_the_highest_scores(self, model: LoadedModel, frames: list[Frame]) -> None:
        """All tokens kept shows every score; half of them must be the upper half."""
        everything = sampled(model, frames, threshold=0.0, keep="100%")
        for all_of, half in zip(
            everything, sampled(model, frames, threshold=0.0, keep="50%"), strict=True
        ):
            ranked = np.argsort(-all_of.scores, kind="stable")[: len(half.positions)]
            assert half.positions.tolist() == sorted(ranked.tolist())
            assert half.scores.tolist() == all_of.scores[half.positions].tolist()

    def test_beta(self, model: LoadedModel, frames: list[Frame]) -> None:
        everything = sampled(model, frames[:3], threshold=0.0, keep="100%")
        beta = float(np.median(everything[0].scores))
        shards = sampled(model, frames[:3], threshold=0.0, beta=beta)
        for all_of, above in zip(everything, shards, strict=True):
            assert above.positions.tolist() == np.flatnonzero(all_of.scores > beta).tolist()
        assert all(
            len(shard.positions) == 1
            for shard in sampled(model, frames[:3], threshold=0.0, beta=1e6)
        )

    def test_norm_and_random(self, model: LoadedModel, frames: list[Frame]) -> None:
        options = {"threshold": 0.0, "keep": "100%"}
        by_norm = sampled(model, frames[:2], by="norm", **options)
        for shard in by_norm:
            squares = (shard.tokens.astype(np.float64) ** 2).mean(-1)
            assert shard.scores == pytest.approx(squares, rel=1e-5)
        random = [sampled(model, frames[:2], by="random", seed=s, **options) for s in (0, 0, 1)]
        assert random[0][0].scores.tolist() == random[1][0].scores.tolist()
        assert random[0][0].scores.tolist() != random[2][0].scores.tolist()
        assert random[0][0].scores.tolist() != random[0][1].scores.tolist()

    def test_the_seed_changes_the_variance(self, model: LoadedModel, frames: list[Frame]) -> None:
        first, second = (sampled(model, frames[:1], seed=seed)[0] for seed in (0, 1))
        assert first.scores.tolist() != second.scores.tolist()

    def test_no_label_goes_up(self, model: LoadedModel, frames: list[Frame]) -> None:
        source = io.BytesIO(stream_of(sampled(model, frames, threshold=0.0)))
        contents = [source.getvalue()]
        while record := records.read_record(source):
            if "index" in record.tensors:
                packed = record.tensors["index"].tobytes()
                contents.append(zstandard.ZstdDecompressor().decompress(packed))
        assert not any(b"secret" in content for content in contents)
        assert b"what colour is the square?" in contents[1]

    @pytest.mark.parametrize(
        ("codec", "most"), [("int8", 2e-2), ("float16", 2e-3), ("float32", 0.0)]
    )
    def test_shards_are_read_back(
        self, model: LoadedModel, frames: list[Frame], codec: str, most: float
    ) -> None:
        shards = sampled(model, frames, codec=codec, keep="50%")
        again = list(shard_stream.read_shards(io.BytesIO(stream_of(shards))))
        for a, b in zip(shards, again, strict=True):
            assert (a.frame, a.image, a.domain) == (b.frame, b.image, b.domain)
            for one, other in zip(a.questions, b.questions, strict=True):
                assert replace(one, entropy=other.entropy) == other
                assert other.entropy == pytest.approx(one.entropy, rel=2**-11)
            assert a.positions.tolist() == b.positions.tolist()
            assert np.abs(a.tokens - b.tokens).max() <= most


class TestCost:
    @pytest.fixture
    def trunks(self, model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """The first block behind each run of the trunk, which takes one frame."""
        blocks: list[int] = []
        trunk = model.trunk
        monkeypatch.setattr(
            model, "trunk", lambda picture, block: blocks.append(block) or trunk(picture, block)
        )
        return blocks

    @pytest.mark.parametrize(
        "options", [{}, {"top": "100%"}, {"threshold": 0.0}, {"budget_bytes": 8_000}]
    )
    def test_the_tower_runs_once_a_frame(
        self, model: LoadedModel, frames: list[Frame], trunks: list[int], options: dict
    ) -> None:
        assert sampled(model, frames, **options)
        assert trunks == [model.num_blocks - 2] * len(frames)

    def test_with_predictions_for_the_picked_frames_alone(
        self,
        model: LoadedModel,
        frames: list[Frame],
        predictions: list[Prediction],
        trunks: list[int],
    ) -> None:
        shards = sampled(model, frames, predictions, top="3")
        assert len(trunks) == len(shards) <= 3

    def test_passes_are_one_batch(
        self, model: LoadedModel, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = Counter[int]()
        tail = model.tail
        monkeypatch.setattr(
            model,
            "tail",
            lambda trunk, passes=1: rows.update([passes]) or tail(trunk, passes),
        )
        shards = sampled(model, frames, passes=6)
        assert rows == {1: len(frames), 7: len(shards)}

    def test_no_more_waits_than_can_be_picked(
        self, model: LoadedModel, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slots: set[int] = set()

        class Watched(Spool):
            def put(self, trunk: Trunk) -> Slot:
                slot = super().put(trunk)
                slots.add(slot.place)
                return slot

        monkeypatch.setattr(spool, "Spool", Watched)
        many = [Frame(f"{n}", f.image, f.questions) for n in range(4) for f in frames]
        # Of each of two tasks.
        assert len(sampled(model, many, top="3")) <= 3
        assert len(slots) <= 2 * 3
        slots.clear()
        # At least 32 bytes a frame, so 46 frames of each task at the most.
        many = [Frame(f"{n}", f.image, f.questions) for n in range(9) for f in frames]
        assert sampled(model, many, budget_bytes=1500)
        assert 1 <= len(slots) <= 2 * 46 < len(many)

    def test_a_threshold_sends_at_once(self, model: LoadedModel, frames: list[Frame]) -> None:
        """A camera's stream never ends: the first shard must not wait for the last frame."""
        taken = Counter[str]()

        class Camera:
            def __iter__(self) -> Iterator[Frame]:
                for frame in frames:
                    taken["frames"] += 1
                    yield frame

        next(sample_frames(model, Camera(), settings(threshold=0.0, batch_size=1)))
        assert taken["frames"] <= 4


class TestBadFrames:
    """A bad frame changes nothing for the others: the shards are those of a source without it."""

    @pytest.fixture
    def mixed(self, frames: list[Frame], tmp_path: Path) -> list[Frame]:
        path = tmp_path / "damaged.png"
        path.write_bytes(frames[0].image.read_bytes()[:150])
        questions = [LabelledQuestion(f"bad-{number}", "how many?", "vqa") for number in range(10)]
        name = os.fsdecode(b"caf\xe9.png")
        other = tmp_path / name
        other.write_bytes(frames[0].image.read_bytes())
        return [Frame("damaged.png", path, questions), *frames, Frame(name, other, questions)]

    @pytest.mark.parametrize(
        "options", [{}, {"top": "50%"}, {"top": "4"}, {"threshold": 0.5}, {"budget_bytes": 9_000}]
    )
    def test_the_same_shards(
        self,
        model: LoadedModel,
        frames: list[Frame],
        mixed: list[Frame],
        options: dict,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """20 questions more are asked of the bad frames: 10 % and 50 % are not of those."""
        expected = sampled(model, frames, **options)
        assert expected
        capsys.readouterr()
        skipped = Skipped()
        shards = sampled(model, mixed, skipped=skipped, **options)
        assert stream_of(shards) == stream_of(expected)
        assert skipped.count == 2
        assert capsys.readouterr().err.count("\n") == 2, "one line for each"

    @pytest.mark.parametrize("options", [{"top": "100%"}, {"budget_bytes": 30_000}])
    def test_with_predictions_a_frame_that_went_bad_is_left_out(
        self,
        model: LoadedModel,
        frames: list[Frame],
        predictions: list[Prediction],
        tmp_path: Path,
        options: dict,
    ) -> None:
        (tmp_path / "02.png").write_bytes(b"")
        changed = [*frames]
        changed[2] = replace(frames[2], image=tmp_path / "02.png")
        skipped = Skipped()
        shards = sampled(model, changed, predictions, skipped=skipped, **options)
        assert len(shards) > 1
        expected = [
            s for s in sampled(model, frames, predictions, top="100%") if s.frame != "02.png"
        ]
        by_frame = {shard.frame: shard for shard in expected}
        for shard in shards:
            assert shard.tokens.tobytes() == by_frame[shard.frame].tokens.tobytes()
        assert skipped.count == 1

    def test_strict(self, model: LoadedModel, mixed: list[Frame]) -> None:
        with pytest.raises(BadData, match=r"damaged\.png"):
            list(sample_frames(model, mixed, settings(), None, Skipped(strict=True)))


class TestSettings:
    @pytest.mark.parametrize(
        "options",
        [
            {"top": "10%", "threshold": 1.0},
            {"threshold": 1.0, "budget_bytes": 100},
            {"threshold": 1.0, "running": 0.1},
            {"threshold": 1.0, "select": "margin"},
            {"running": 0.1, "top": "10%"},
            {"running": 0.1, "select": "k-center"},
            {"running": 0.1, "select": "entropy*k-center"},
            {"running": 0.0},
            {"running": 1.1},
            {"select": "entropies"},
            {"keep": "50%", "beta": 0.1},
            {"beta": 0.1, "by": "norm"},
            {"beta": 0.1, "by": "spread"},
            {"beta": -0.1},
            {"beta": float("nan")},
            {"threshold": float("inf")},
            {"threshold": -1.0},
            {"by": "cls"},
            {"entropy": "median"},
            {"passes": 1},
            {"dropout": 0.0},
            {"dropout": 1.0},
            {"dropout": float("nan")},
            {"blocks": 0},
            {"budget_bytes": 0},
            {"batch_size": 0},
            {"max_new_tokens": 0},
        ],
    )
    def test_out_of_range_or_two_at_once(self, options: dict) -> None:
        with pytest.raises(SettingError) as caught:
            settings(**options)
        assert "--" not in str(caught.value)
        assert caught.value.name in options

    def test_more_blocks_than_there_are(self, model: LoadedModel, frames: list[Frame]) -> None:
        assert sampled(model, frames[:1], blocks=3)
        with pytest.raises(SettingError, match="`blocks` 4: the vision tower has 3"):
            sampled(model, frames[:1], blocks=4)

    @pytest.mark.parametrize(("name", "value"), [("by", "variance"), ("select", "bald")])
    def test_a_model_without_blocks(
        self,
        name: str,
        value: str,
        model: LoadedModel,
        frames: list[Frame],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(type(model), "blocks", [])
        with pytest.raises(SettingError, match=f"`{name}` {value}: blip_2 has no vision blocks"):
            sampled(model, frames[:1], **{name: value})


def test_a_frame_of_two_tasks_sends_only_what_was_picked(
    model: LoadedModel, frames: list[Frame]
) -> None:
    shards = sampled(model, frames, top="2")
    assert sum(len(shard.questions) for shard in shards) == 2
    by_id = {frame.id: frame for frame in frames}
    for shard in shards:
        questions: list[LabelledQuestion] = by_id[shard.frame].questions
        places = [
            [question.id for question in questions].index(question.id)
            for question in shard.questions
        ]
        assert places == sorted(places)
