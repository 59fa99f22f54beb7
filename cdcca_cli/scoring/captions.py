"""BLEU and CIDEr of captions through pycocoevalcap's own scorers, which are imported here only.

Captions are tokenised by `tokens`. An empty caption is a caption without n-grams: it scores 0 and
counts in BLEU's lengths. Values are in the scorers' own units (BLEU in [0, 1], CIDEr in [0, 10]).
No METEOR and no SPICE: they need Java.

U images.
"""

import numpy as np

from cdcca_cli.scoring.statistics import Floats
from cdcca_cli.scoring.tokens import tokenize

ORDERS = 4


def bleu_statistics(captions: list[str], references: list[list[str]]) -> Floats:
    """Each image's addends of corpus BLEU, (U, 10).

    Columns: clipped matches for n = 1..4, guesses for n = 1..4, the caption's length, the length of
    the reference closest to it.
    """
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=ORDERS)
    for caption, human in zip(captions, references, strict=True):
        scorer += (tokenize(caption), [tokenize(reference) for reference in human])
    rows = []
    for cooked in scorer.ctest:
        length = cooked["testlen"]
        closest = min((abs(reference - length), reference) for reference in cooked["reflen"])[1]
        rows.append([*cooked["correct"], *cooked["guess"], length, closest])
    return np.array(rows, np.float64).reshape(-1, 2 * ORDERS + 2)


def bleu(totals_SK: Floats, order: int = ORDERS) -> Floats:
    """Corpus BLEU of totals (S, 10) as `bleu_statistics` lays them out: (S,), in [0, 1].

    BLEU_n = min(1, exp(1 - r / c)) (prod_{k<=n} matches_k / guesses_k)^(1/n), with the scorer's two
    constants against division by zero. Source: pycocoevalcap bleu_scorer.py, option 'closest'.
    """
    tiny, small = 1e-15, 1e-9
    matches, guesses = totals_SK[:, :order], totals_SK[:, ORDERS : ORDERS + order]
    ratio = (totals_SK[:, -2] + tiny) / (totals_SK[:, -1] + small)
    precision: Floats = np.prod((matches + tiny) / (guesses + small), axis=1) ** (1 / order)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return precision * brevity


def cider(captions: list[str], references: list[list[str]]) -> Floats:
    """Each image's CIDEr-D, (U,); the corpus score is their mean. One image alone scores 0.

    The document frequencies are those of the images given here.
    Source: pycocoevalcap cider_scorer.py (clipped, Gaussian length penalty, sigma 6).
    """
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    scorer = CiderScorer(n=ORDERS, sigma=6.0)
    for caption, human in zip(captions, references, strict=True):
        scorer += (tokenize(caption), [tokenize(reference) for reference in human])
    if not any(ngrams for image in scorer.crefs for ngrams in image):
        return np.zeros(len(captions))  # nothing to compare with; the scorer would fail
    return np.asarray(scorer.compute_score()[1], np.float64)
