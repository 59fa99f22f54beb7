"""Which questions count for what, groups, missing predictions, differences; A-OKVQA's real
scores."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cdcca_cli.datasets import LabelledQuestion, Reference, read_references
from cdcca_cli.errors import BadData, UsageError
from cdcca_cli.scoring.answers import Answer, read_answers
from cdcca_cli.scoring.captions import scorers
from cdcca_cli.scoring.captions.java import has_java
from cdcca_cli.scoring.continual import of_scores
from cdcca_cli.scoring.scores import Scores, compare, in_common, score
from cdcca_cli.scoring.statistics import Changes
from cdcca_cli.scoring.tasks import TASKS

DATA = Path(__file__).parents[3] / "shared" / "data" / "aokvqa"
real = pytest.mark.skipif(
    not DATA.is_dir(), reason="the real annotations are not beside the project"
)


def question(
    question_id: str, frame: str, *, domain: str | None = None, **fields: object
) -> Reference:
    labels: dict[str, object] = {
        "prompt": "?",
        "task": "vqa",
        "choices": ["cat", "dog"],
        "correct_choice_idx": 1,
        "answers": ["dog"] * 2 + ["pup"] * 8,
    }
    return Reference(LabelledQuestion(question_id, **{**labels, **fields}), frame, domain)  # type: ignore[arg-type]


def caption(frame: str, *captions: str, domain: str | None = None) -> Reference:
    return Reference(LabelledQuestion(frame, captions=list(captions)), frame, domain)


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


SIX = ("mc", "da", "da_norm", "bleu4", "cider", "cider_domain_idf")


def test_everything_by_hand() -> None:
    """CIDEr of c is 5 and of d 0 (see test_captions): 2.5, x100. With the document frequencies of
    its own domain, one image, each is 0. BLEU-4 of two words has no 3-grams, each worth 1e-15 /
    1e-9 in the scorer: near (1e-12)^(1/4) x 100 = 0.1; all (2/4 * 1/2 * 1e-12)^(1/4) x 100 =
    0.0707; far has no match, 1e-15 / 2 and 1e-15 too, and is 0 to 1e-6. Question 2 is marked
    difficult: da_norm counts it, and is right there."""
    assert values(score(REFERENCES, ANSWERS, metrics=SIX)) == pytest.approx(
        {
            "mc/all/all": 50,
            "mc/domain/near": 50,
            "mc/kind/x": 100,
            "mc/kind/y": 0,
            "da/all/all": 100 * (2 / 3 + 1) / 2,
            "da/domain/near": 100 * 2 / 3,
            "da/domain/far": 100,
            "da/kind/x": 100 * (2 / 3 + 1) / 2,
            "da_norm/all/all": 100 * (2 / 3 + 1 + 1) / 3,
            "da_norm/domain/near": 100 * (2 / 3 + 1) / 2,
            "da_norm/domain/far": 100,
            "da_norm/kind/x": 100 * (2 / 3 + 1) / 2,
            "da_norm/kind/y": 100,
            "bleu4/all/all": 100 * 0.25e-12**0.25,
            "bleu4/domain/near": 0.1,
            "bleu4/domain/far": 0,
            "cider/all/all": 250,
            "cider/domain/near": 500,
            "cider/domain/far": 0,
            "cider_domain_idf/all/all": 0,
            "cider_domain_idf/domain/near": 0,
            "cider_domain_idf/domain/far": 0,
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
    captions = dict.fromkeys(("bleu1", "bleu2", "bleu3", "bleu4", "cider", "rouge_l"), 1)
    assert missing == {"mc": 1, "da": 1, "da_norm": 2, **captions}
    answered = score(REFERENCES, answers, answered_only=True)
    assert values(answered)["mc/all/all"] == 100
    assert {one.num_missing for one in answered.scores} == {0}


def test_a_metric_without_any_prediction_is_left_out() -> None:
    scores = score(REFERENCES, {"1": Answer("dog")})
    assert [one.metric for one in scores.scores if one.by == "all"] == ["da", "da_norm"]
    assert scores.left_out == {"mc": 2} | dict.fromkeys(TASKS["caption"].metrics, 2)


def test_unknown_ids() -> None:
    assert score(REFERENCES, {**ANSWERS, "z": Answer("x")}).unknown_ids == ["z"]
    with pytest.raises(BadData, match="none of the 1 predictions"):
        score(REFERENCES, {"z": Answer("x")})
    with pytest.raises(BadData, match="no predictions"):
        score(REFERENCES, {})


def test_task() -> None:
    scored = {one.metric for one in score(REFERENCES, ANSWERS, task="caption").scores}
    assert scored == set(TASKS["caption"].metrics)
    assert {one.metric for one in score(REFERENCES, ANSWERS, task="vqa").scores} == {
        "vqa",
        "vqa_min3",
    }
    questions = {"1": REFERENCES["1"]}
    with pytest.raises(UsageError, match="caption"):
        score(questions, ANSWERS, task="caption")
    with pytest.raises(UsageError, match="cider"):
        score(questions, ANSWERS, metrics=["cider"])


def test_the_task_is_that_of_the_references() -> None:
    for source, task in TASKS.items():
        known = {
            question_id: replace(reference, source=source)  # type: ignore[arg-type]
            for question_id, reference in REFERENCES.items()
        }
        scores = score(known, ANSWERS)
        assert scores.task == source
        assert tuple(dict.fromkeys(one.metric for one in scores.scores)) == task.metrics


def test_answers_that_are_no_choice_become_the_one_the_model_scores_highest() -> None:
    known = {str(number): question(str(number), "a") for number in range(6)}  # dog is right
    answers = {
        "0": Answer("a dog, I think", None, ("cat", "dog"), (-2.0, -1.0)),  # becomes dog
        "1": Answer(None, "a cat", ("cat", "dog"), (-1.0, -2.0)),  # becomes cat
        "2": Answer(None, "a dog"),  # no choice, no scores: wrong
        "3": Answer(None, "dog", ("cat", "dog"), (-1.0, -2.0)),  # a choice: scores do not matter
        "4": Answer("dog"),  # says nothing of choices: missing
    }
    scores = score(known, answers)
    mc = scores.all("mc")
    assert mc is not None
    assert (mc.value, mc.num_missing) == (pytest.approx(100 * 2 / 6), 2)
    assert (scores.num_remapped, scores.num_not_choices) == (2, 2)
    # Asked for by name, a free answer is a chosen text.
    scores = score(known, answers, metrics=["mc"])
    mc = scores.all("mc")
    assert mc is not None
    assert (mc.value, mc.num_missing) == (pytest.approx(100 * 3 / 6), 1)
    assert (scores.num_remapped, scores.num_not_choices) == (2, 3)


def nocaps(seed: int) -> tuple[dict[str, Reference], dict[str, Answer]]:
    draw = random.Random(seed)
    references, answers = {}, {}
    for domain, size in (("in-domain", 4), ("near-domain", 9), ("out-domain", 6)):
        for number in range(size):
            question_id = f"{domain}{number}"
            human = [" ".join(draw.choices("abcdef", k=6)) for _ in range(3)]
            references[question_id] = replace(
                caption(question_id, *human, domain=domain), source="nocaps"
            )
            answers[question_id] = Answer(" ".join(draw.choices("abcdef", k=6)))
    return references, answers


def test_nocaps() -> None:
    """Each domain as if its annotations were a file of their own, but for `cider`, whose document
    frequencies are those of all images; the mean is that of the three, whatever their sizes."""
    references, answers = nocaps(0)
    found = values(score(references, answers))
    sizes = {"in-domain": 4, "near-domain": 9, "out-domain": 6}
    for metric in TASKS["nocaps"].metrics:
        three = [found[f"{metric}/domain/{domain}"] for domain in sizes]
        assert found[f"{metric}/mean/mean_of_domains"] == pytest.approx(sum(three) / 3)
        for domain in sizes:
            own = {i: one for i, one in references.items() if one.domain == domain}
            alone = values(score(own, answers, metrics=[metric]))[f"{metric}/all/all"]
            together = found[f"{metric}/domain/{domain}"]
            assert (together == pytest.approx(alone)) == (metric != "cider")
    for metric in ("cider", "cider_domain_idf", "rouge_l"):
        pooled = sum(found[f"{metric}/domain/{name}"] * size for name, size in sizes.items()) / 19
        assert found[f"{metric}/all/all"] == pytest.approx(pooled)
        assert found[f"{metric}/mean/mean_of_domains"] != pytest.approx(pooled)


def test_the_mean_of_domains_has_an_interval_and_a_difference() -> None:
    references, answers = nocaps(1)
    _, others = nocaps(2)
    ours, theirs = score(references, answers), score(references, others)
    mean = next(one for one in ours.scores if one.key == ("cider", "mean", "mean_of_domains"))
    assert mean.interval is not None
    assert mean.interval.low < mean.value < mean.interval.high
    found = compare(ours, theirs)["cider", "mean", "mean_of_domains"]
    other = next(one for one in theirs.scores if one.key == mean.key)
    assert found.value == pytest.approx(mean.value - other.value)
    assert found.p_value is not None and 0 < found.p_value <= 1


def test_two_domains_have_no_mean() -> None:
    references, answers = nocaps(0)
    two = {i: one for i, one in references.items() if one.domain != "out-domain"}
    assert not any(one.by == "mean" for one in score(two, answers).scores)


def made_up(seed: int) -> tuple[dict[str, Reference], dict[str, Answer]]:
    draw = random.Random(seed)
    references, answers = {}, {}
    for number in range(60):
        question_id, frame = f"q{number}", f"f{number // 3}"
        references[question_id] = question(question_id, frame, domain=draw.choice("xy"))
        answers[question_id] = Answer(
            draw.choice(["dog", "pup", "cow"]), draw.choice(["cat", "dog"])
        )
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
    ours = {question_id: Answer(one.text, "dog") for question_id, one in theirs.items()}
    differences = compare(score(references, ours), score(references, theirs))
    mc, da = differences["mc", "all", "all"], differences["da", "all", "all"]
    wrong = sum(answer.choice == "cat" for answer in theirs.values())
    assert mc.value == pytest.approx(100 * wrong / 60)
    assert mc.interval is not None and mc.interval.low > 0
    assert da.value == 0 and da.interval is not None and da.interval.high == 0
    assert mc.p_value is not None and mc.p_value < 0.001 and da.p_value == 1
    assert mc.changes == Changes(better=wrong, worse=0, same=60 - wrong)
    assert da.changes == Changes(better=0, worse=0, same=60)
    assert differences["bleu4", "all", "all"].changes is None
    assert differences["cider", "all", "all"].changes == Changes(0, 0, 60)


def test_in_common() -> None:
    ours = {"1": Answer("a", "b"), "2": Answer("c"), "3": Answer("d"), "4": Answer(None, "e")}
    scored = Answer("w", None, ("e", "f"), (-1.0, -2.0))
    theirs = {"1": Answer("x", None), "3": Answer("y", "z"), "4": scored}
    mine, other = in_common(ours, theirs)
    assert mine == {"1": Answer("a"), "3": Answer("d"), "4": Answer(None, "e")}
    assert other == {"1": Answer("x"), "3": Answer("y"), "4": Answer(None)}
    assert other["4"].choice_scores == (-1.0, -2.0)  # remapped, it is an answer too


def meteor_of(
    monkeypatch: pytest.MonkeyPatch, over_all: float, each: list[float] | None = None
) -> Scores:
    """40 images, or as many as `each`; a METEOR that gives these values, without Java."""
    values_U = np.array(each or [0.2, 0.3] * 20)
    monkeypatch.setattr(scorers, "meteor", lambda corpus: (values_U, over_all))
    ids = [f"i{number:02}" for number in range(len(values_U))]
    references = {i: caption(i, "a b", domain="xy"[int(i[1:]) % 2]) for i in ids}
    return score(references, {i: Answer("a b") for i in ids}, metrics=["meteor"])


def test_meteor_is_compared_by_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same images with corpus scores half a point apart differ in nothing that swapping sides
    or drawing frames could tell, and images that differ do so whatever the corpus scores are."""
    low, high = meteor_of(monkeypatch, 0.24), meteor_of(monkeypatch, 0.245)
    one, other = high.all("meteor"), low.all("meteor")
    assert one is not None and other is not None
    assert (one.value, other.value) == (pytest.approx(24.5), pytest.approx(24))
    assert one.interval is not None and one.interval.low < 24.5 < one.interval.high
    for found in compare(high, low).values():
        assert (found.value, found.p_value) == (0, 1)
        assert found.interval is not None and (found.interval.low, found.interval.high) == (0, 0)
    better = meteor_of(monkeypatch, 0.24, [0.22, 0.32] * 20)
    found = compare(better, low)["meteor", "all", "all"]
    assert found.value == pytest.approx(2)
    assert found.p_value is not None and found.p_value < 0.001
    assert found.interval is not None and found.interval.low == pytest.approx(2)


def test_meteor_of_rounds_is_of_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = [meteor_of(monkeypatch, 0.245), meteor_of(monkeypatch, 0.24)]
    found = of_scores(rounds, [None, None], "meteor")
    assert [score.value for score in found.cells_IJ[1]] == [pytest.approx(20), pytest.approx(30)]
    assert found.forgetting is not None and found.forgetting.value == 0
    average = found.averages[-1]
    assert average.value == pytest.approx(25)
    assert average.interval is not None and average.interval.low <= 25 <= average.interval.high


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
@pytest.mark.parametrize("name", PREDICTIONS)
def test_real_predictions_score_as_with_the_official_scorer(name: str) -> None:
    """Every score of reference_scores.json to 1e-4 points: MC and DA of the official scorer, DA of
    all 1,145 questions as exact strings and as SQuAD normalises them."""
    known = json.loads((DATA / "reference_scores.json").read_text())["val_1145"]
    expected = {
        metric: table[key]
        for metric, begins in (
            ("mc", "MC allenai"),
            ("da", "DA allenai"),
            ("da_all", "DA exact string, all"),
            ("da_norm", "DA SQuAD-normalised, all"),
        )
        for title, table in known.items()
        if title.startswith(begins)
        for key in table
        if key.split(" ")[0] == name
    }
    assert len(expected) == (3 if name.startswith("llama") else 2)
    references = read_references(DATA / "aokvqa_v1p0_val.json")
    answers = read_answers([str(DATA / "predictions" / PREDICTIONS[name])]).by_id
    scores = score(references, answers, metrics=("mc", "da", "da_all", "da_norm"))
    for metric, value in expected.items():
        found = scores.all(metric)
        assert found is not None and found.num_missing == 0
        assert found.sample.n == (1075 if metric == "da" else 1145)
        assert abs(found.value - value) < 1e-4


COCO = Path(__file__).parents[3] / "shared" / "data" / "coco"
FILES = {
    "ruizewang fakecap (4989)": "ruizewang_fakecap_val2017.json",
    "tylin fakecap on the 126 overlapping images": "tylin_fakecap_val2014.json",
    "human leave-one-out: caption#0 vs the rest, 5000 images": None,
    "wrong-image: caption#0 of the next image in file order vs all refs": None,
}
fast = "tylin fakecap on the 126 overlapping images"


@pytest.mark.skipif(not COCO.is_dir(), reason="the real captions are not beside the project")
@pytest.mark.parametrize(
    "name", [name if name == fast else pytest.param(name, marks=pytest.mark.slow) for name in FILES]
)
def test_real_captions_score_as_with_pycocoevalcap(name: str) -> None:
    """reference_scores.json, pycocoevalcap 1.2 with its Java tokenizer, to 1e-6 (1e-4 in points).

    The two sets that are made of the captions are made as their names say."""
    expected = json.loads((COCO / "reference_scores.json").read_text())[name]
    references = dict(read_references(COCO / "captions_val2017.json"))
    human = {i: one.question.captions or [] for i, one in references.items()}
    file = FILES[name]
    if file is not None:
        answers = read_answers([str(COCO / file)]).by_id
    elif name.startswith("human"):
        answers = {i: Answer(texts[0]) for i, texts in human.items()}
        references = {
            i: replace(one, question=replace(one.question, captions=human[i][1:]))
            for i, one in references.items()
        }
    else:
        # In the order of the captions, which is not that of the images.
        written = json.loads((COCO / "captions_val2017.json").read_text())["annotations"]
        order = list(dict.fromkeys(str(one["image_id"]) for one in written))
        following = [*order[1:], order[0]]
        answers = {i: Answer(human[j][0]) for i, j in zip(order, following, strict=True)}
    scores = score(references, answers, answered_only=True)
    assert scores.task == "caption"
    for title, value in expected.items():
        metric = title.lower().replace("bleu_", "bleu")
        if metric in TASKS["caption"].metrics:
            found = scores.all(metric)
            assert found is not None and abs(found.value / 100 - value) < 1e-6


@pytest.mark.slow
@pytest.mark.skipif(not COCO.is_dir(), reason="the real captions are not beside the project")
@pytest.mark.skipif(not has_java(), reason="METEOR needs Java, which is not here")
def test_meteor_is_the_corpus_score_of_pycocoevalcap() -> None:
    """reference_scores.json: 0.20508447515305 over the 126 images; not the mean of the images', yet
    inside its interval."""
    expected = json.loads((COCO / "reference_scores.json").read_text())[fast]["METEOR"]
    references = read_references(COCO / "captions_val2017.json")
    answers = read_answers([str(COCO / FILES[fast])]).by_id  # type: ignore[operator]
    scores = score(references, answers, answered_only=True, metrics=["meteor"])
    found = scores.all("meteor")
    assert found is not None and found.interval is not None and found.each_A is not None
    assert abs(found.value / 100 - expected) < 1e-6
    assert abs(found.value - found.each_A.mean()) > 0.1
    assert found.interval.low < found.value < found.interval.high
    assert set(scores.not_scored) == {"spice"}
