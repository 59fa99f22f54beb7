"""How questions are chosen: each rule from its definition, each task its share."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from cdcca_cli.datasets import Frame, load_image
from cdcca_cli.errors import BadData, SettingError
from cdcca_cli.formats.predictions import Prediction
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel, Seen, load
from cdcca_cli.models.decoding import step_margin
from cdcca_cli.text import parse_amount
from cdcca_cli.uplink.answers import answer_frames
from cdcca_cli.uplink.model_ranks import answer_information, mutual_information, pooled_queries
from cdcca_cli.uplink.questions import Interleaved, Point, Spread, draw, farthest_first
from cdcca_cli.uplink.sampling import sample_frames
from cdcca_cli.uplink.selection import Ranking
from cdcca_cli.uplink.settings import QUESTION_RULES, AnswerSettings, SampleSettings

TASKS = ("vqa", "caption")


def sampled(
    model: LoadedModel,
    frames: Sequence[Frame],
    predictions: list[Prediction] | None = None,
    **options: object,
) -> list[Shard]:
    if isinstance(options.get("top"), str):
        options["top"] = parse_amount(str(options["top"]))
    how = SampleSettings(**{"max_new_tokens": 3, **options})
    return [coded.shard for coded in sample_frames(model, frames, how, predictions)]


def picked(shards: list[Shard]) -> list[str]:
    return [question.id for shard in shards for question in shard.questions]


@pytest.fixture(scope="module")
def predictions(model: LoadedModel, frames: list[Frame]) -> list[Prediction]:
    return list(answer_frames(model, frames, AnswerSettings(max_new_tokens=3)))


class TestTasks:
    """(r - 1/2) / n within the task, the lowest first, ties in the order of the input."""

    @staticmethod
    def some(seed: int) -> list[tuple[list[str], list[float | None]]]:
        rng = random.Random(seed)
        values = [None, 0.0, 0.5, 1.0, 1.0, 2.0, 3.5]
        counts = [rng.randint(0, 4) for _ in range(rng.randint(1, 30))]
        return [(rng.choices(TASKS, [5, 1], k=k), rng.choices(values, k=k)) for k in counts]

    @staticmethod
    def slow(frames: list[tuple[list[str], list[float | None]]]) -> list[tuple[int, int]]:
        flat = [
            (task, frame, place, score)
            for frame, (tasks, scores) in enumerate(frames)
            for place, (task, score) in enumerate(zip(tasks, scores, strict=True))
            if score is not None
        ]
        found = []
        for task in TASKS:
            own = sorted((-s, f, p) for t, f, p, s in flat if t == task)
            found += [
                (Fraction(2 * rank - 1, 2 * len(own)), frame, place)
                for rank, (_, frame, place) in enumerate(own, start=1)
            ]
        return [(frame, place) for _, frame, place in sorted(found)]

    @pytest.mark.parametrize("seed", range(20))
    def test_one_by_one_is_sorting_all(self, seed: int) -> None:
        """With the rankings cut as `sample` cuts them for a share, and the frames that stay."""
        frames = self.some(seed)
        expected = self.slow(frames)
        for text in ("10%", "33%", "50%", "100%", "1", "7"):
            top = parse_amount(text)
            counts = {task: sum(tasks.count(task) for tasks, _ in frames) for task in TASKS}
            order = Interleaved(
                lambda task, top=top, counts=counts: Ranking(
                    max_questions=top.of(counts[task]) + top.is_share
                )
            )
            alive: set[int] = set()
            for frame, (tasks, scores) in enumerate(frames):
                gone = order.offer(frame, tasks, scores)
                assert gone <= alive | {frame}
                alive = (alive | {frame}) - gone
            assert len(order) == len(expected)
            most = top.of(len(order))
            assert [*order][:most] == expected[:most]
            assert {frame for frame, _ in expected[:most]} <= alive

    def test_each_task_gives_its_share(self) -> None:
        """Captions of entropy 0.01 x and questions of 1 + x: of 200 and 800, a tenth is 20 and
        80."""
        rng = random.Random(0)
        order = Interleaved(lambda _: Ranking())
        for frame in range(200):
            scores = [0.01 * rng.random(), *(1 + rng.random() for _ in range(4))]
            order.offer(frame, ["caption", *["vqa"] * 4], scores)
        for number in (100, 500, 999):
            captions = sum(place == 0 for _, place in [*order][:number])
            assert abs(captions - number / 5) <= 1

    def test_one_task_is_the_plain_ranking(self) -> None:
        plain, order = Ranking(), Interleaved(lambda _: Ranking())
        for frame, (_, scores) in enumerate(self.some(3)):
            plain.offer(frame, scores)
            order.offer(frame, ["vqa"] * len(scores), scores)
        assert [*order] == [*plain]


class TestSpread:
    @pytest.mark.parametrize("seed", range(10))
    def test_farthest_first_by_loops(self, seed: int) -> None:
        """Second form: all distances again at each step, in Python; ties by place."""
        rng = np.random.default_rng(seed)
        x = rng.integers(0, 4, (20, 3)).astype(np.float32)  # few places, so that there are ties
        w = rng.integers(0, 3, 20).astype(float)
        mean = [math.fsum(x[:, c]) / 20 for c in range(3)]
        first = min(range(20), key=lambda k: (-w[k], math.dist(x[k], mean), k))
        slow = [first]
        while len(slow) < 20:
            left = [k for k in range(20) if k not in slow]
            far = {k: w[k] * min(math.dist(x[k], x[c]) for c in slow) for k in left}
            slow.append(max(left, key=lambda k: (far[k], -k)))
        assert [*farthest_first(x, w)] == slow

    def test_by_hand(self) -> None:
        """On a line 0, 1, 2, 10, mean 3.25: from 2 to 10 (distance 8), to 0 (2), to 1."""
        x = np.array([[0], [1], [2], [10]], np.float32)
        assert [*farthest_first(x, np.ones(4))] == [2, 3, 0, 1]
        # Weights 1, 1, 1, 3: first 10; then 0 (10), 2 (2), 1.
        assert [*farthest_first(x, np.array([1.0, 1, 1, 3]))] == [3, 0, 2, 1]

    def test_within_twice_the_best_radius(self) -> None:
        """The guarantee of Gonzalez (1985), against all 3 centres of 9 points."""
        from itertools import combinations

        rng = np.random.default_rng(1)
        for _ in range(10):
            x = rng.normal(size=(9, 2)).astype(np.float32)
            apart = np.linalg.norm(x[:, None] - x[None], axis=-1)
            best = min(apart[:, [*c]].min(1).max() for c in combinations(range(9), 3))
            found = [*farthest_first(x, np.ones(9))][:3]
            assert apart[:, found].min(1).max() <= 2 * best + 1e-6

    def test_as_an_order(self) -> None:
        spread = Spread()
        assert spread.offer(0, [None]) == {0} and [*spread] == []
        assert spread.offer(1, [Point(1.0, np.zeros(2)), None, Point(1.0, np.ones(2))]) == set()
        assert 1 in spread and 0 not in spread
        assert sorted(spread) == [(1, 0), (1, 2)]


class TestMutualInformation:
    def test_by_hand(self) -> None:
        """Two masks sure of different words: log 2. The same words: 0."""
        sure = torch.tensor([[[0.0, -math.inf]], [[-math.inf, 0.0]]])
        assert mutual_information(sure).tolist() == pytest.approx([math.log(2)])
        assert mutual_information(sure[[0, 0]]).tolist() == [0.0]

    def test_the_entropy_of_the_mean_less_the_mean_entropy(self) -> None:
        """Houlsby's Eq. 2 in float64 loops."""
        logits = torch.randn(5, 3, 7, generator=torch.Generator().manual_seed(0))
        p = logits.double().softmax(-1).tolist()

        def entropy(q: list[float]) -> float:
            return -math.fsum(x * math.log(x) for x in q)

        for a in range(3):
            mean = [math.fsum(p[m][a][v] for m in range(5)) / 5 for v in range(7)]
            slow = entropy(mean) - math.fsum(entropy(p[m][a]) for m in range(5)) / 5
            assert float(mutual_information(logits)[a]) == pytest.approx(slow, abs=1e-6)
        assert float(mutual_information(logits).max()) <= math.log(5)


def test_margin_by_hand() -> None:
    """p = .7, .2, .1 and 1/2, 1/2, 0: margins .5 and 0."""
    p = torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.5, 0.0]])
    assert step_margin(p.log()).tolist() == pytest.approx([0.5, 0.0], abs=1e-6)


def test_the_margin_of_an_answer_is_the_mean_of_its_tokens(
    model: LoadedModel, frames: list[Frame], predictions: list[Prediction]
) -> None:
    """Second form: answers fed back one token at a time, probabilities sorted in float64."""
    question, prediction = frames[0].questions[0], predictions[0]
    text = model.format_prompt(question.prompt, question.task)
    ids: list[int] = []
    slow = []
    with torch.no_grad():
        spliced = model.read(model.see(model.prepare([load_image(frames[0])])), [text])
        for _ in range(3):
            logits = model.forward(spliced, torch.tensor([[*ids, 0]])).logits[0, -1].double()
            *_, second, first = sorted(logits.softmax(-1).tolist())
            slow.append(first - second)
            ids.append(int(logits.argmax()))
            if ids[-1] == 2:
                break
    assert prediction.margin == pytest.approx(math.fsum(slow) / len(slow), abs=1e-5)


def test_a_draw_depends_on_its_key_alone() -> None:
    drawn = [draw("q", 0, str(number)) for number in range(2000)]
    assert drawn == [draw("q", 0, str(number)) for number in range(2000)]
    assert drawn[0] != draw("q", 1, "0") != draw("r", 1, "0")
    assert min(drawn) >= 0 and max(drawn) < 1 and abs(np.mean(drawn) - 0.5) < 0.02


@pytest.mark.parametrize(
    ("select", "checkpoint"),
    [(rule, "instructblip") for rule in QUESTION_RULES]
    + [("bald", "blip2_t5"), ("k-center", "llava"), ("entropy*k-center", "blip2_llama")],
)
def test_the_batch_and_the_order_change_no_choice(
    select: str, checkpoint: str, request: pytest.FixtureRequest, frames: list[Frame]
) -> None:
    model = load(request.getfixturevalue(checkpoint), compute="cpu")
    options = {"top": "5", "select": select, "passes": 2, "keep": parse_amount("1"), "by": "norm"}
    one, many = (sampled(model, frames[:8], batch_size=n, **options) for n in (1, 32))
    assert len(picked(one)) == 5
    assert picked(one) == picked(many)
    back = sampled(model, frames[:8][::-1], batch_size=3, **options)[::-1]
    if select != "k-center" or model.reads_prompt:  # ties: a frame's questions look alike
        assert picked(back) == picked(one)


@pytest.mark.parametrize("select", [rule for rule in QUESTION_RULES if rule != "bald"])
def test_predictions_pick_what_answering_picks(
    model: LoadedModel, frames: list[Frame], predictions: list[Prediction], select: str
) -> None:
    now = sampled(model, frames, top="6", select=select)
    later = sampled(model, frames, predictions, top="6", select=select)
    assert picked(now) == picked(later)
    assert all(q.entropy is not None for shard in later for q in shard.questions)


def test_bald_refuses_predictions(
    model: LoadedModel, frames: list[Frame], predictions: list[Prediction]
) -> None:
    with pytest.raises(SettingError, match="`predictions`: cannot be combined with `select` bald"):
        sampled(model, frames, predictions, select="bald")


def test_margin_needs_predictions_that_have_it(
    model: LoadedModel, frames: list[Frame], predictions: list[Prediction]
) -> None:
    old = [replace(prediction, margin=None) for prediction in predictions]
    with pytest.raises(BadData, match="no margin"):
        sampled(model, frames, old, select="margin")
    assert sampled(model, frames, old)


@pytest.mark.parametrize("select", QUESTION_RULES)
def test_a_budget_is_filled_in_the_order_of_the_rule(
    model: LoadedModel, frames: list[Frame], select: str
) -> None:
    some = sampled(model, frames, budget_bytes=8_000, select=select, passes=3)
    number = len(picked(some))
    assert number and picked(some) == picked(
        sampled(model, frames, top=str(number), select=select, passes=3)
    )


def test_random_is_drawn_by_seed_and_id(model: LoadedModel, frames: list[Frame]) -> None:
    runs = [picked(sampled(model, frames, select="random", seed=s, top="8")) for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("checkpoint", ["blip2_llama", "instructblip"])
def test_pooled_queries_are_the_mean_of_each_question(
    checkpoint: str, request: pytest.FixtureRequest, frames: list[Frame]
) -> None:
    model = load(request.getfixturevalue(checkpoint), compute="cpu")
    frame = frames[3]
    with torch.no_grad():
        (seen,) = model.see(model.prepare([load_image(frame)]))
        tokens = seen.tokens[None]
        asked = [True, False, True, True]
        found = pooled_queries(model, frame, asked, tokens)
        questions = [q for q, a in zip(frame.questions, asked, strict=True) if a]
        for row, question in zip(found, questions, strict=True):
            text = model.format_prompt(question.prompt, question.task)
            queries = model.queries(tokens, prompts=[text])[0].double().mean(0)
            assert row == pytest.approx(queries.numpy(), abs=1e-5)
    assert (found[0] == found[1]).all() != model.reads_prompt


def test_wide_queries_keep_their_distances(
    model: LoadedModel, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,408 channels in 256: the distances of 20 random pairs to a sixth."""
    wide = torch.randn(21, 1, 1408, generator=torch.Generator().manual_seed(0))
    rows = iter(wide)
    monkeypatch.setattr(model, "queries", lambda tokens, prompts: next(rows)[None])
    tokens = torch.zeros(1, 1, 1)
    found = [pooled_queries(model, frames[0], [True], tokens)[0] for _ in wide]
    assert found[0].shape == (256,) and found[0].dtype == np.float32
    for one, full in zip(found[1:], wide[1:], strict=True):
        apart = float((full - wide[0]).norm())
        assert np.linalg.norm(one - found[0]) == pytest.approx(apart, rel=1 / 6)


def test_bald_by_single_passes(model: LoadedModel, frames: list[Frame]) -> None:
    """Second form: the masked tokens one by one through `forward`, Houlsby's Eq. 2 in float64."""
    from cdcca_cli.uplink.uncertainty import dropout_tokens

    how, frame = SampleSettings(select="bald", passes=3), frames[1]
    with torch.no_grad():
        (picture,) = model.prepare([load_image(frame)])
        trunk = model.trunk(picture, model.num_blocks - 2)
        masked, layout = dropout_tokens(
            model, trunk, frame.id, blocks=2, passes=3, rate=0.1, seed=0
        )
        found = answer_information(model, frame, ["red", None], trunk, how)
        question = frame.questions[0]
        text = model.format_prompt(question.prompt, question.task)
        p = []
        for tokens in masked[1:]:
            spliced = model.read([Seen(tokens, layout)], [text])
            logits = model.forward(spliced, model.answer_ids(["red"])).logits
            p.append(logits[0].double().softmax(-1))
    stacked = torch.stack(p)
    entropy = torch.special.entr(stacked.mean(0)).sum(-1) - torch.special.entr(stacked).sum(
        -1
    ).mean(0)
    assert found[1] is None
    assert found[0] == pytest.approx(float(entropy.mean()), abs=1e-6)
    assert found[0] and found[0] > 0


def test_a_model_that_fails_under_dropout_leaves_out_the_frame(
    blip2_llama: Path, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cdcca_cli.skipped import Skipped
    from cdcca_cli.uplink import model_ranks

    model = load(blip2_llama, compute="cpu")
    monkeypatch.setattr(
        model_ranks, "mutual_information", lambda logits: torch.tensor([math.nan, 0.0])
    )
    skipped = Skipped()
    how = SampleSettings(select="bald", passes=2, max_new_tokens=3)
    assert list(sample_frames(model, frames[:2], how, None, skipped)) == []
    assert skipped.count == 2
