"""BLEU, CIDEr-D, ROUGE-L: hand cases, second forms in plain loops, pycocoevalcap's own scores."""

import json
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cdcca_cli.errors import BadData, Unavailable
from cdcca_cli.scoring.captions import java
from cdcca_cli.scoring.captions import scorers as module
from cdcca_cli.scoring.captions.scorers import (
    Corpus,
    bleu,
    bleu_statistics,
    meteor,
    rouge_l,
    spice,
    tokenised,
)
from tests.scoring.coco import prediction_sets

WORDS = "a the red dog cat sits on runs by grass sign road man".split()  # noqa: SIM905


def corpus_bleu(captions: list[str], references: list[list[str]], order: int = 4) -> float:
    statistics = bleu_statistics(tokenised(captions, references))
    return float(bleu(statistics.sum(0, keepdims=True), order)[0])


def cider(captions: list[str], references: list[list[str]]) -> list[float]:
    return [float(value) for value in module.cider(tokenised(captions, references))]


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
    assert cider(["a dog", ""], [[""], ["."]]) == [0.0, 0.0]
    assert corpus_bleu(["", "a"], [[""], [""]]) == pytest.approx(0.0, abs=1e-6)
    nothing = tokenised([], [])
    assert bleu_statistics(nothing).shape == (0, 10)
    assert module.cider(nothing).shape == rouge_l(nothing).shape == (0,)


def test_an_image_needs_a_reference() -> None:
    with pytest.raises(BadData, match="image 2 of 2"):
        tokenised(["a", "b"], [["a"], []])


def test_captions_said_twice() -> None:
    """DEFINITIONS 8 by hand: a caption said twice over loses to clipping, seam and length.

    Captions as the references of images with no word in common: every n-gram of a reference is in
    one image, all weigh ln N and it cancels. Of k distinct words said twice, m = k - n + 1 n-grams
    of the reference are there twice, and n - 1 more run over the seam: the cosine is m over
    sqrt(m) sqrt(4 m + n - 1), and there are k bigrams more.
    """
    k = 8
    texts = [" ".join(f"w{8 * image + i}" for i in range(k)) for image in range(3)]
    cosines = [(m := k - n + 1) / math.sqrt(m * (4 * m + n - 1)) for n in (1, 2, 3, 4)]
    expected = 10 * sum(cosines) / 4 * math.exp(-(k**2) / 72)
    assert cider(texts, [[text] for text in texts]) == pytest.approx([10.0] * 3)
    twice = cider([f"{text} {text}" for text in texts], [[text] for text in texts])
    assert twice == pytest.approx([expected] * 3)


@pytest.mark.parametrize("seed", range(3))
def test_a_part_scores_as_within_the_whole(seed: int) -> None:
    whole = tokenised(*made_up(seed))
    some = np.array([7, 2, 3])
    assert rouge_l(whole.part(some)) == pytest.approx(rouge_l(whole)[some])
    assert bleu_statistics(whole.part(some)).tolist() == bleu_statistics(whole)[some].tolist()


def test_rouge_by_hand() -> None:
    """ "a c d e x" against "a b c d": a c d are in order, P = 3/5, R = 3/4;
    (1 + 1.44) P R / (R + 1.44 P)."""
    p, r = 3 / 5, 3 / 4
    corpus = tokenised(["a c d e x"], [["a b c d"]])
    assert rouge_l(corpus) == pytest.approx([2.44 * p * r / (r + 1.44 * p)])


def test_rouge_takes_precision_and_recall_from_different_references() -> None:
    """ "a b" against "a b c d" (P 1, R 1/2) and "a" (P 1/2, R 1): the best of each is 1."""
    assert rouge_l(tokenised(["a b"], [["a b c d", "a"]])) == pytest.approx([1.0])


def test_degenerate_captions() -> None:
    """'.' is '' once tokenised: nothing in common with words, and all of another empty one."""
    assert rouge_l(tokenised([".", "."], [["a dog"], ["!"]])) == pytest.approx([0.0, 1.0])
    assert rouge_l(tokenised(["a a a ."], [["a dog on a hill"]]))[0] > 0.3


@pytest.mark.parametrize("seed", range(5))
def test_all_equal_pycocoevalcap(seed: int) -> None:
    """Empty captions, empty references and words said again among them."""
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    captions, human = made_up(seed, images=40)
    corpus = tokenised(captions, human)
    gts, res = dict(enumerate(human)), {i: [text] for i, text in enumerate(captions)}
    assert module.cider(corpus) == pytest.approx(Cider().compute_score(gts, res)[1], abs=1e-12)
    assert rouge_l(corpus) == pytest.approx(Rouge().compute_score(gts, res)[1], abs=1e-12)


def test_long_captions() -> None:
    """Ten thousand words each: the usual table would have a hundred million cells."""
    words = " ".join(random.Random(0).choices(WORDS, k=10_000))
    assert rouge_l(Corpus([words], [[words]])) == pytest.approx([1.0])


REAL = [
    "tylin fakecap on the 126 overlapping images",
    "human leave-one-out: caption#0 vs the rest, 5000 images",
    "ruizewang fakecap (4989)",
    "wrong-image: caption#0 of the next image in file order vs all refs",
]


@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [
        *((name, "python") for name in REAL),
        (REAL[0], "java"),
        *(pytest.param(name, "java", marks=pytest.mark.slow) for name in REAL[1:]),
    ],
)
def test_real_captions_score_as_published(name: str, tokenizer: str, coco: Path) -> None:
    """reference_scores.json: pycocoevalcap 1.2 with its Java tokenizer."""
    if tokenizer == "java" and not java.has_java():
        pytest.skip("no Java here")
    expected = json.loads((coco / "reference_scores.json").read_text())[name]
    corpus = tokenised(*prediction_sets(coco)[name], tokenizer)
    totals = bleu_statistics(corpus).sum(0, keepdims=True)
    for order in (1, 2, 3, 4):
        assert abs(float(bleu(totals, order)[0]) - expected[f"Bleu_{order}"]) < 1e-6
    assert abs(module.cider(corpus).mean() - expected["CIDEr"]) < 1e-6
    assert abs(rouge_l(corpus).mean() - expected["ROUGE_L"]) < 1e-6


@pytest.mark.slow
def test_meteor_as_published(coco: Path) -> None:
    """reference_scores.json; the jar takes ten seconds to begin."""
    if not java.has_java():
        pytest.skip("no Java here")
    expected = json.loads((coco / "reference_scores.json").read_text())[REAL[0]]
    values, score = meteor(tokenised(*prediction_sets(coco)[REAL[0]]))
    assert abs(score - expected["METEOR"]) < 1e-6
    assert values.shape == (126,) and values.min() >= 0 and values.max() <= 1


def test_what_needs_java_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    corpus = tokenised(["a"], [["a"]])
    assert not java.has_java()
    with pytest.raises(Unavailable, match=r"METEOR needs Java.* PATH: install"):
        meteor(corpus)
    with pytest.raises(Unavailable, match="SPICE needs Java"):
        spice(corpus)
    with pytest.raises(Unavailable, match="use `tokenizer` python"):
        tokenised(["a"], [["a"]], "java")


def fake_java(folder: Path, script: str) -> None:
    """A `java` that does what the script says."""
    program = folder / "java"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'openjdk version \"17.0.15\" 2025' >&2", r"Java 8 \(1.8\), found 17.0.15"),
        ("exit 1", "an unknown version"),
        ("echo 'java version \"1.8.0_402\"' >&2", "fetch its models"),
    ],
)
def test_spice_refuses(
    script: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another Java than 8; one that does not work; no models."""
    fake_java(tmp_path, script)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(module.JARS, "spice", "spice/lib/models-that-are-not-here.jar")
    with pytest.raises(Unavailable, match=words):
        spice(tokenised(["a"], [["a"]]))


@pytest.mark.parametrize("script", ["exit 3", "echo one; echo two; echo three"])
def test_a_jar_that_fails_is_named(
    script: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_java(tmp_path, script)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=r"lines for 1 captions .*use `tokenizer` python"):
        tokenised(["a"], [["a"]], "java")
