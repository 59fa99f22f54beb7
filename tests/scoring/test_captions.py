"""BLEU and CIDEr: hand cases, a second form in plain loops, and the reference's own scores."""

import json
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cdcca_cli.scoring.captions import bleu, bleu_statistics, cider

DATA = Path(__file__).parents[3] / "shared" / "data" / "coco"
WORDS = "a the red dog cat sits on runs by grass sign road man".split()  # noqa: SIM905


def corpus_bleu(captions: list[str], references: list[list[str]], order: int = 4) -> float:
    return float(bleu(bleu_statistics(captions, references).sum(0, keepdims=True), order)[0])


def made_up(seed: int, images: int = 12) -> tuple[list[str], list[list[str]]]:
    draw = random.Random(seed)

    def sentence() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(0, 9)))

    captions = [sentence() for _ in range(images)]
    return captions, [[sentence() for _ in range(draw.randint(1, 4))] for _ in range(images)]


def test_bleu_by_hand() -> None:
    """Five words, the last one wrong: precisions 4/5, 3/4, 2/3, 1/2, product 1/5."""
    assert corpus_bleu(["a b c d e"], [["a b c d f"]]) == pytest.approx(0.2**0.25, abs=1e-6)


def test_bleu_brevity_by_hand() -> None:
    """Four of six words: all precisions 1, brevity exp(1 - 6/4) = exp(-1/2)."""
    assert corpus_bleu(["a b c d"], [["a b c d e f"]]) == pytest.approx(math.exp(-0.5), abs=1e-6)


def test_bleu_closest_reference_by_hand() -> None:
    """Lengths 4 and 9 for a caption of 5: the closest is 4, so there is no brevity penalty.

    Matches: a b c d are in the first reference; precisions 4/5, 3/4, 2/3, 1/2.
    """
    human = ["a b c d", "z z z z z z z z z"]
    assert corpus_bleu(["a b c d e"], [human]) == pytest.approx(0.2**0.25, abs=1e-6)


def test_bleu_is_of_the_corpus_not_the_mean_of_images() -> None:
    """4 of 4 words right and 0 of 12: the images' own BLEU-2 are 1 and 0, their mean 1/2; of the
    corpus it is sqrt(4/16 * 3/14)."""
    captions = ["a b c d", "q r s t u v w x y z k l"]
    human = [["a b c d"], ["1 2 3 4 5 6 7 8 9 10 11 12"]]
    expected = math.sqrt(4 / 16 * 3 / 14)
    assert corpus_bleu(captions, human, 2) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_bleu_equals_pycocoevalcap(seed: int) -> None:
    from pycocoevalcap.bleu.bleu import Bleu

    captions, human = made_up(seed)
    theirs, _ = Bleu(4).compute_score(
        dict(enumerate(human)), {i: [text] for i, text in enumerate(captions)}, verbose=0
    )
    for order in (1, 2, 3, 4):
        assert corpus_bleu(captions, human, order) == pytest.approx(theirs[order - 1], abs=1e-12)


def test_cider_by_hand() -> None:
    """Two images, two words each, captions as the references: every 1- and 2-gram is in one of
    two images (idf ln 2 > 0), so the cosines are 1, 1, 0, 0; their mean times 10 is 5."""
    assert cider(["a b", "c d"], [["a b"], ["c d"]]) == pytest.approx([5.0, 5.0])


def test_cider_of_one_image_is_zero() -> None:
    """DEFINITIONS 8: ln N - ln df = 0 for every n-gram of a single image."""
    assert cider(["a red dog sits"], [["a red dog sits"]]) == pytest.approx([0.0])


def test_cider_of_a_doubled_caption() -> None:
    """Clipping and the length penalty: as test_cider_by_hand, with the captions written twice.

    Of "a b a b": unigrams 2a 2b against a b, clipped dot 2 L^2 over (sqrt 8 L)(sqrt 2 L) = 1/2;
    bigrams 2ab + ba against ab: 1 over sqrt(2^2 w^2 + v^2) with ab and ba both of idf: ab is in
    one image (ln 2), ba in none (ln 2 too), so 1 / sqrt 5. Three bigrams against one:
    exp(-2^2 / 72). Mean over four orders, times 10.
    """
    expected = 10 * (1 / 2 + 1 / math.sqrt(5)) / 4 * math.exp(-4 / 72)
    values = cider(["a b a b", "c d c d"], [["a b"], ["c d"]])
    assert values == pytest.approx([expected, expected])


def slow_cider(captions: list[str], references: list[list[str]]) -> list[float]:
    """DEFINITIONS 8 in plain loops."""

    def grams(text: str, n: int) -> Counter[tuple[str, ...]]:
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    scores = []
    for caption, human in zip(captions, references, strict=True):
        total = 0.0
        for reference in human:
            delta = sum(grams(caption, 2).values()) - sum(grams(reference, 2).values())
            for n in (1, 2, 3, 4):

                def weigh(counts: Counter[tuple[str, ...]], n: int = n) -> dict[object, float]:
                    weights: dict[object, float] = {}
                    for gram, count in counts.items():
                        df = sum(any(gram in grams(r, n) for r in rs) for rs in references)
                        weights[gram] = count * (math.log(len(captions)) - math.log(max(1, df)))
                    return weights

                hyp, ref = weigh(grams(caption, n)), weigh(grams(reference, n))
                dot = sum(min(hyp[gram], ref[gram]) * ref[gram] for gram in hyp if gram in ref)
                norms = math.hypot(*hyp.values()) * math.hypot(*ref.values())
                if norms:
                    total += dot / norms * math.exp(-(delta**2) / 72)
        scores.append(10 * total / 4 / len(human))
    return scores


@pytest.mark.parametrize("seed", range(3))
def test_cider_equals_the_slow_form(seed: int) -> None:
    captions, human = made_up(seed)
    assert cider(captions, human) == pytest.approx(slow_cider(captions, human), abs=1e-9)


def test_nothing_to_compare() -> None:
    assert cider(["a dog", ""], [[""], ["."]]).tolist() == [0.0, 0.0]
    assert corpus_bleu(["", "a"], [[""], [""]]) == pytest.approx(0.0, abs=1e-6)
    assert bleu_statistics([], []).shape == (0, 10)


def prediction_sets(data: Path) -> dict[str, tuple[list[str], list[list[str]]]]:
    human: dict[int, list[str]] = {}
    for annotation in json.loads((data / "captions_val2017.json").read_text())["annotations"]:
        human.setdefault(annotation["image_id"], []).append(annotation["caption"])
    ids = list(human)
    sets = {
        "human leave-one-out: caption#0 vs the rest, 5000 images": (
            [human[i][0] for i in ids],
            [human[i][1:] for i in ids],
        ),
        "wrong-image: caption#0 of the next image in file order vs all refs": (
            [human[i][0] for i in ids[1:] + ids[:1]],
            [human[i] for i in ids],
        ),
    }
    for name, file in (
        ("ruizewang fakecap (4989)", "ruizewang_fakecap_val2017.json"),
        ("tylin fakecap on the 126 overlapping images", "tylin_fakecap_val2014.json"),
    ):
        made = {one["image_id"]: one["caption"] for one in json.loads((data / file).read_text())}
        known = [i for i in ids if i in made]
        sets[name] = ([made[i] for i in known], [human[i] for i in known])
    return sets


@pytest.mark.parametrize(
    "name",
    [
        "tylin fakecap on the 126 overlapping images",
        pytest.param(
            "human leave-one-out: caption#0 vs the rest, 5000 images", marks=pytest.mark.slow
        ),
        pytest.param("ruizewang fakecap (4989)", marks=pytest.mark.slow),
        pytest.param(
            "wrong-image: caption#0 of the next image in file order vs all refs",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_real_captions_score_as_with_java(name: str) -> None:
    """reference_scores.json: pycocoevalcap 1.2 with its Java tokenizer."""
    if not DATA.is_dir():
        pytest.skip("the real captions are not beside the project")
    expected = json.loads((DATA / "reference_scores.json").read_text())[name]
    captions, human = prediction_sets(DATA)[name]
    for order in (1, 2, 3, 4):
        assert abs(corpus_bleu(captions, human, order) - expected[f"Bleu_{order}"]) < 1e-9
    assert abs(float(np.mean(cider(captions, human))) - expected["CIDEr"]) < 1e-9
