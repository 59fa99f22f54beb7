"""Which asks count for what, groups, missing predictions, differences; A-OKVQA's real scores."""

import json
import random
from pathlib import Path

import pytest

from cdcca_cli.datasets import LabelledAsk, Reference, read_references
from cdcca_cli.errors import BadData, UsageError
from cdcca_cli.scoring.answers import Answer, read_answers
from cdcca_cli.scoring.scores import Scores, compare, in_common, score
from cdcca_cli.scoring.vqa import direct_answer

DATA = Path(__file__).parents[3] / "shared" / "data" / "aokvqa"
real = pytest.mark.skipif(
    not DATA.is_dir(), reason="the real annotations are not beside the project"
)


def question(ask_id: str, frame: str, *, domain: str | None = None, **fields: object) -> Reference:
    labels: dict[str, object] = {
        "prompt": "?",
        "task": "vqa",
        "choices": ["cat", "dog"],
        "correct_choice_idx": 1,
        "answers": ["dog"] * 2 + ["pup"] * 8,
    }
    return Reference(LabelledAsk(ask_id, **{**labels, **fields}), frame, domain)  # type: ignore[arg-type]


def caption(frame: str, *captions: str, domain: str | None = None) -> Reference:
    return Reference(LabelledAsk(frame, captions=list(captions)), frame, domain)


def values(scores: Scores) -> dict[str, float]:
    return {f"{one.metric}/{one.by}/{one.group}": one.value for one in scores.scores}


REFERENCES = {
    "1": question("1", "a", domain="near", kind="x"),
    "2": question("2", "a", domain="near", kind="y", difficult_direct_answer=True),
    "3": question("3", "b", domain="far", kind="x", choices=None, correct_choice_idx=None),
    "c": caption("c", "a b", domain="near"),
    "d": caption("d", "c d", domain="far"),
}
ANSWERS = {
    "1": Answer("dog", "dog"),  # MC right, DA 2/3
    "2": Answer("pup", "cat"),  # MC wrong, DA left out
    "3": Answer("pup", None),  # no MC, DA 1
    "c": Answer("a b"),
    "d": Answer("z z"),
}


def test_everything_by_hand() -> None:
    """CIDEr of c is 5 and of d 0 (see test_captions.test_cider_by_hand): 2.5, x100. In a domain
    of one image it is 0. BLEU-4 of two words has no 3-grams, each worth 1e-15 / 1e-9 in the scorer:
    near (1e-12)^(1/4) x 100 = 0.1; all (2/4 * 1/2 * 1e-12)^(1/4) x 100 = 0.0707; far has no match,
    1e-15 / 2 and 1e-15 too, and is 0 to 1e-6."""
    assert values(score(REFERENCES, ANSWERS)) == pytest.approx(
        {
            "mc/all/all": 50,
            "mc/domain/near": 50,
            "mc/kind/x": 100,
            "mc/kind/y": 0,
            "da/all/all": 100 * (2 / 3 + 1) / 2,
            "da/domain/near": 100 * 2 / 3,
            "da/domain/far": 100,
            "da/kind/x": 100 * (2 / 3 + 1) / 2,
            "bleu4/all/all": 100 * 0.25e-12**0.25,
            "bleu4/domain/near": 0.1,
            "bleu4/domain/far": 0,
            "cider/all/all": 250,
            "cider/domain/near": 0,
            "cider/domain/far": 0,
        },
        abs=1e-6,
    )


def test_counts() -> None:
    scores = score(REFERENCES, ANSWERS)
    mc, da, cider = scores.all("mc"), scores.all("da"), scores.all("cider")
    assert mc is not None and da is not None and cider is not None
    assert (mc.sample.n, mc.sample.units, mc.num_missing) == (2, 1, 0)  # two questions, one frame
    assert mc.interval is None
    assert (da.sample.n, da.sample.units) == (2, 2)
    assert (cider.sample.n, cider.sample.units) == (2, 2)


def test_missing_predictions_are_wrong_and_counted() -> None:
    answers = {"1": Answer("dog", "dog"), "c": Answer("a b")}
    scores = score(REFERENCES, answers)
    assert values(scores)["mc/all/all"] == 50
    assert values(scores)["da/all/all"] == pytest.approx(100 / 3)
    assert values(scores)["cider/all/all"] == pytest.approx(250)
    missing = {one.metric: one.num_missing for one in scores.scores if one.by == "all"}
    assert missing == {"mc": 1, "da": 1, "bleu4": 1, "cider": 1}
    answered = score(REFERENCES, answers, answered_only=True)
    assert values(answered)["mc/all/all"] == 100
    assert {one.num_missing for one in answered.scores} == {0}


def test_a_metric_without_any_prediction_is_left_out() -> None:
    scores = score(REFERENCES, {"1": Answer("dog")})
    assert [one.metric for one in scores.scores if one.by == "all"] == ["da"]
    assert scores.left_out == {"mc": 2, "bleu4": 2, "cider": 2}


def test_unknown_ids() -> None:
    assert score(REFERENCES, {**ANSWERS, "z": Answer("x")}).unknown_ids == ["z"]
    with pytest.raises(BadData, match="none of the 1 predictions"):
        score(REFERENCES, {"z": Answer("x")})
    with pytest.raises(BadData, match="no predictions"):
        score(REFERENCES, {})


def test_task() -> None:
    assert {one.metric for one in score(REFERENCES, ANSWERS, task="caption").scores} == {
        "bleu4",
        "cider",
    }
    with pytest.raises(UsageError):
        score(REFERENCES, ANSWERS, task="ocr")


def made_up(seed: int) -> tuple[dict[str, Reference], dict[str, Answer]]:
    draw = random.Random(seed)
    references, answers = {}, {}
    for number in range(60):
        ask_id, frame = f"q{number}", f"f{number // 3}"
        references[ask_id] = question(ask_id, frame, domain=draw.choice("xy"))
        answers[ask_id] = Answer(draw.choice(["dog", "pup", "cow"]), draw.choice(["cat", "dog"]))
        text = " ".join(draw.choices("a b c d".split(), k=6))  # noqa: SIM905
        references[f"c{number}"] = caption(f"c{number}", text)
        answers[f"c{number}"] = Answer(" ".join(draw.choices(["a", "b", "c"], k=6)))
    return references, answers


def test_order_changes_no_number_and_no_interval() -> None:
    references, answers = made_up(1)
    first = score(references, answers)
    draw = random.Random(2)
    shuffled = [dict(draw.sample(list(d.items()), len(d))) for d in (references, answers)]
    second = score(*shuffled)  # type: ignore[arg-type]
    assert values(first) == values(second)
    assert [one.interval for one in first.scores] == [one.interval for one in second.scores]


def test_intervals_hold_the_score() -> None:
    references, answers = made_up(3)
    for one in score(references, answers).scores:
        assert one.interval is not None
        assert one.interval.low <= one.value <= one.interval.high
        assert one.interval.low < one.interval.high


def test_compare() -> None:
    references, theirs = made_up(4)
    ours = {ask_id: Answer(one.text, "dog") for ask_id, one in theirs.items()}
    differences = compare(score(references, ours), score(references, theirs))
    mc, da = differences["mc", "all", "all"], differences["da", "all", "all"]
    wrong = sum(answer.choice == "cat" for answer in theirs.values())
    assert mc.value == pytest.approx(100 * wrong / 60)
    assert mc.interval is not None and mc.interval.low > 0
    assert da.value == 0 and da.interval is not None and da.interval.high == 0


def test_in_common() -> None:
    ours = {"1": Answer("a", "b"), "2": Answer("c"), "3": Answer("d")}
    theirs = {"1": Answer("x", None), "3": Answer("y", "z")}
    assert in_common(ours, theirs) == (
        {"1": Answer("a"), "3": Answer("d")},
        {"1": Answer("x"), "3": Answer("y")},
    )


PREDICTIONS = {
    "most_common_answer": "heuristic_most_common_answer.json",
    "random_unweighted": "heuristic_random_unweighted.json",
    "random_weighted": "heuristic_random_weighted.json",
    **{
        f"{model}_{how}": f"{model}_{how}_based_retrieval_k_5_9_qr_captions_10_shots_val_set.csv"
        for model in ("llama1", "llama2")
        for how in ("blip", "mcan")
    },
}


@real
def test_real_predictions_score_as_with_the_official_scorer() -> None:
    """Every MC and DA of reference_scores.json, to 1e-4 points; DA over all 1,145 questions too."""
    known = json.loads((DATA / "reference_scores.json").read_text())["val_1145"]
    references = read_references(DATA / "aokvqa_v1p0_val.json")
    official = next(known[key] for key in known if key.startswith("DA allenai"))
    everything = known["DA exact string, all 1,145"]
    choices = known["MC allenai eval_predictions.py"]
    checked = 0
    for name, file in PREDICTIONS.items():
        answers = read_answers([str(DATA / "predictions" / file)]).by_id
        scores = score(references, answers)
        da = scores.all("da")
        assert da is not None and da.sample.n == 1075 and da.num_missing == 0
        assert abs(da.value - official[name]) < 1e-4
        checked += 1
        for given, expected in choices.items():
            if given.split(" ")[0] == name:
                mc = scores.all("mc")
                assert mc is not None and mc.sample.n == 1145
                assert abs(mc.value - expected) < 1e-4
                checked += 1
        if name in everything:
            credit = [
                direct_answer(answers[ask_id].text, one.ask.answers or [])
                for ask_id, one in references.items()
            ]
            assert abs(100 * sum(credit) / len(credit) - everything[name]) < 1e-4
            checked += 1
    assert checked == 7 + 3 + 4
