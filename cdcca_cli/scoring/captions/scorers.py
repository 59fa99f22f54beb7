"""BLEU, CIDEr-D and ROUGE-L of captions; METEOR and SPICE where Java is.

BLEU, CIDEr-D and ROUGE-L equal pycocoevalcap 1.2 to 1e-6. METEOR and SPICE are pycocoevalcap's own
Java programs. Only this module imports it.

An empty caption has no n-grams: it scores 0 and counts in BLEU's lengths (ROUGE-L of an empty
caption against an empty reference is 1, as in pycocoevalcap). CIDEr is in [0, 10], the others in
[0, 1].

U images, R references of all of them, S totals, P distinct (sentence, n-gram) pairs, G n-grams.
"""

import subprocess
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.errors import BadData, Unavailable
from cdcca_cli.numerics.statistics import Floats
from cdcca_cli.scoring.captions import java
from cdcca_cli.scoring.captions.tokens import tokenize

Ints = NDArray[np.int64]

ORDERS = 4
SIGMA = 6.0  # of CIDEr-D's length penalty, in bigrams
BETA = 1.2  # of ROUGE-L's F measure
JARS = {
    "tokenizer": "tokenizer/stanford-corenlp-3.4.1.jar",
    "meteor": "meteor/meteor-1.5.jar",
    "spice": "spice/lib/stanford-corenlp-3.6.0-models.jar",
}


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokenised captions, one for each image, and one or more references for each."""

    captions: list[str]
    references: list[list[str]]

    def __post_init__(self) -> None:
        if [] in self.references:
            number, count = self.references.index([]) + 1, len(self.references)
            raise BadData(f"image {number} of {count} has no caption to match")

    def __len__(self) -> int:
        return len(self.captions)

    def part(self, indices: "Sequence[int] | NDArray[np.integer]") -> "Corpus":
        """The images of these indices."""
        chosen = [int(index) for index in indices]
        return Corpus([self.captions[i] for i in chosen], [self.references[i] for i in chosen])

    @cached_property
    def image_R(self) -> Ints:
        """The image of each reference."""
        lengths = np.array([len(human) for human in self.references], np.int64)
        return np.repeat(np.arange(len(lengths)), lengths)

    @cached_property
    def ngrams(self) -> "NGrams":
        """Of the U captions, then of the R references, image after image."""
        return NGrams.of([*self.captions, *chain.from_iterable(self.references)])


@dataclass(frozen=True)
class NGramsOfOrder:
    """The distinct n-grams of each sentence, for one n; sorted by sentence, then n-gram."""

    sentence_P: Ints
    ngram_P: Ints
    count_P: Ints
    num_ngrams: int


@dataclass(frozen=True)
class NGrams:
    """n-grams as numbers: equal numbers are equal n-grams, within one table."""

    length: Ints  # words of each sentence
    orders: list[NGramsOfOrder]

    @staticmethod
    def of(sentences: list[str]) -> "NGrams":
        numbers: defaultdict[str, int] = defaultdict()
        numbers.default_factory = numbers.__len__
        split = [sentence.split() for sentence in sentences]
        length = np.fromiter(map(len, split), np.int64, len(split))
        word = np.fromiter((numbers[word] for words in split for word in words), np.int64)
        sentence = np.repeat(np.arange(len(split)), length)
        ngram, orders = np.zeros_like(word), []
        for n in range(1, ORDERS + 1):
            # An n-gram is an (n-1)-gram and the word after it, both in one sentence.
            starts = max(len(word) - n + 1, 0)
            whole = sentence[:starts] == sentence[n - 1 :]
            pair = ngram[:starts] * len(numbers) + word[n - 1 :]
            # What runs over the end of its sentence gets a number too, and is left out below.
            known, ngram = np.unique(pair, return_inverse=True)
            num_ngrams = len(known)
            key = sentence[:starts][whole] * max(num_ngrams, 1) + ngram[whole]
            key, count = np.unique(key, return_counts=True)
            of_sentence, of_ngram = np.divmod(key, max(num_ngrams, 1))
            orders.append(NGramsOfOrder(of_sentence, of_ngram, count, num_ngrams))
        return NGrams(length, orders)


def tokenised(
    captions: list[str], references: list[list[str]], tokenizer: str = "python"
) -> Corpus:
    """Tokenise captions and references.

    tokenizer: "python" (`tokens`) or "java" (the jar that pycocoevalcap ships, whose tokens depend
    on the order of the captions, because it reads on into the next line).
    """
    if tokenizer == "python":
        ours = [tokenize(caption) for caption in captions]
        return Corpus(ours, [[tokenize(reference) for reference in human] for human in references])
    jar = shipped("tokenizer")
    human = iter(java.tokenize(list(chain.from_iterable(references)), jar))
    # Two runs, as in coco-caption: the last caption must not be read on into the first reference.
    return Corpus(java.tokenize(captions, jar), [[next(human) for _ in of] for of in references])


def bleu_statistics(corpus: Corpus) -> Floats:
    """Each image's addends of corpus BLEU, (U, 10).

    Columns: clipped matches for n = 1..4, guesses for n = 1..4, the caption's length, the length of
    the reference closest to it (the shorter of two as close).
    """
    num_images = len(corpus)
    length = corpus.ngrams.length
    rows = np.zeros((num_images, 2 * ORDERS + 2))
    for n, order in enumerate(corpus.ngrams.orders):
        ours = order.sentence_P < num_images
        image = corpus.image_R[order.sentence_P[~ours] - num_images]
        # The most that one reference of the image has of the n-gram.
        key = image * order.num_ngrams + order.ngram_P[~ours]
        by_key = np.argsort(key, kind="stable")
        known, first = np.unique(key[by_key], return_index=True)
        count = order.count_P[~ours][by_key]
        most = np.maximum.reduceat(count, first) if len(first) else count
        asked = order.sentence_P[ours] * order.num_ngrams + order.ngram_P[ours]
        matches = np.minimum(order.count_P[ours], _looked_up(asked, known, most))
        rows[:, n] = np.bincount(order.sentence_P[ours], matches, num_images)
        rows[:, ORDERS + n] = np.maximum(length[:num_images] - n, 0)
    rows[:, -2] = length[:num_images]
    far = np.abs(length[num_images:] - length[corpus.image_R])
    # By image, then distance, then length: the first of each image is the closest.
    order_R = np.lexsort((length[num_images:], far, corpus.image_R))
    first_U = np.searchsorted(corpus.image_R, np.arange(num_images))
    rows[:, -1] = length[num_images:][order_R][first_U]
    return rows


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


def cider(corpus: Corpus) -> Floats:
    """Each image's CIDEr-D, (U,), in [0, 10]; the corpus score is their mean.

    10/4 sum_n mean_r exp(-d^2 / 2 sigma^2) <min(h, r), r> / (|h| |r|), where h and r are the n-gram
    counts of caption and reference times idf = ln N - ln max(1, df), d is how many bigrams more one
    has than the other, sigma is 6, N the number of images and df the number of images whose
    references have the n-gram; so one image alone scores 0.

    Source: pycocoevalcap cider_scorer.py.
    """
    num_images, num_sentences = len(corpus), len(corpus) + len(corpus.image_R)
    if num_images == 0:
        return np.zeros(0)
    bigrams = np.maximum(corpus.ngrams.length - 1, 0)
    difference_R = bigrams[corpus.image_R] - bigrams[num_images:]
    similarity_R = np.zeros(len(corpus.image_R))
    for order in corpus.ngrams.orders:
        sentence, ngram = order.sentence_P, order.ngram_P
        ours = sentence < num_images
        reference = sentence[~ours] - num_images
        asked = corpus.image_R[reference] * order.num_ngrams + ngram[~ours]
        frequency_G = np.bincount(
            np.unique(asked) % max(order.num_ngrams, 1), minlength=order.num_ngrams
        )
        idf_G = np.log(float(num_images)) - np.log(np.maximum(1.0, frequency_G))
        weight = order.count_P * idf_G[ngram]
        norm = np.sqrt(np.bincount(sentence, weight**2, num_sentences))
        known = sentence[ours] * order.num_ngrams + ngram[ours]
        hypothesis = _looked_up(asked, known, weight[ours])
        shared = np.minimum(hypothesis, weight[~ours]) * weight[~ours]
        dot_R = np.bincount(reference, shared, len(similarity_R)).astype(np.float64)
        norms_R = norm[corpus.image_R] * norm[num_images:]
        similarity_R += np.divide(dot_R, norms_R, out=dot_R, where=norms_R != 0)
    similarity_R *= np.exp(-(difference_R**2) / (2 * SIGMA**2))
    total_U = np.bincount(corpus.image_R, similarity_R, num_images)
    mean_U: Floats = total_U / np.bincount(corpus.image_R, minlength=num_images)
    return 10.0 * mean_U / ORDERS


def rouge_l(corpus: Corpus) -> Floats:
    """Each image's ROUGE-L, (U,), in [0, 1]; the corpus score is their mean.

    (1 + b^2) P R / (R + b^2 P), where P and R are the longest common subsequence of words over the
    caption's and the reference's length, each the best over the references; b = 1.2.
    Source: pycocoevalcap rouge.py.
    """
    scores = np.zeros(len(corpus))
    for image, (caption, references) in enumerate(
        zip(corpus.captions, corpus.references, strict=True)
    ):
        # By single spaces, as there: a token may hold another kind, and '' is one empty word.
        words = caption.split(" ")
        places: Counter[str] = Counter()
        for place, word in enumerate(words):
            places[word] |= 1 << place
        precision = recall = 0.0
        for reference in references:
            human = reference.split(" ")
            common = _common_subsequence(places, len(words), human)
            precision = max(precision, common / len(words))
            recall = max(recall, common / len(human))
        if precision and recall:
            scores[image] = (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
    return scores


def meteor(corpus: Corpus) -> tuple[Floats, float]:
    """METEOR 1.5: each image's, (U,), and the corpus score, not their mean; in [0, 1]."""
    java.require("METEOR", "install a Java runtime, or leave meteor out of `metrics`")
    shipped("meteor")
    if not len(corpus):
        return np.zeros(0), 0.0
    from pycocoevalcap.meteor.meteor import Meteor

    score, scores = _computed("METEOR", Meteor(), corpus)
    return np.array(scores, np.float64), float(score)


def spice(corpus: Corpus) -> Floats:
    """SPICE 1.0's F measure of each image, (U,), in [0, 1]; the corpus score is their mean.

    Needs Java 8, because later ones refuse its cache, and 320 MB of models, not downloaded here.
    """
    java.require("SPICE", "install Java 8, or leave spice out of `metrics`")
    if not (version := java.version()).startswith("1.8"):
        raise Unavailable(
            f"SPICE needs Java 8 (1.8), found {version or 'an unknown version'}: "
            "install Java 8, or leave spice out of `metrics`"
        )
    shipped("spice")
    if not len(corpus):
        return np.zeros(0)
    from pycocoevalcap.spice.spice import Spice

    _, scores = _computed("SPICE", Spice(), corpus)
    return np.array([score["All"]["f"] for score in scores], np.float64)


def _computed(name: str, scorer: Any, corpus: Corpus) -> tuple[Any, Any]:
    references, captions = dict(enumerate(corpus.references)), enumerate(corpus.captions)
    try:
        score, scores = scorer.compute_score(references, {i: [one] for i, one in captions})
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        cure = f"leave {name.lower()} out of `metrics`"
        raise Unavailable(f"{name} failed ({error}): {cure}") from error
    return score, scores


def _looked_up(asked: Ints, known: Ints, values: NDArray[np.generic]) -> NDArray[np.generic]:
    """values[i] for each that equals known[i], 0 for the others. `known` is sorted."""
    found = np.zeros(len(asked), values.dtype)
    if len(known):
        place = np.minimum(np.searchsorted(known, asked), len(known) - 1)
        there = known[place] == asked
        found[there] = values[place[there]]
    return found


def _common_subsequence(places: Counter[str], length: int, words: list[str]) -> int:
    """The longest common subsequence of `words` and the sentence whose words are at `places`.

    One row of the usual table as the bits of one integer: a bit is 0 where the row steps up.
    Source: Hyyrö, Bit-parallel LCS-length computation revisited (2004).
    """
    full = row = (1 << length) - 1
    for word in words:
        step = row & places.get(word, 0)
        if step:
            row = ((row + step) | (row - step)) & full
    return length - row.bit_count()


def shipped(name: str) -> Path:
    """The path of a jar in pycocoevalcap. Raises: Unavailable (69) if it is not there."""
    import pycocoevalcap

    jar = Path(next(iter(pycocoevalcap.__path__))) / JARS[name]
    if jar.is_file():
        return jar
    cure = "reinstall pycocoevalcap"
    if name == "spice":
        script = "from pycocoevalcap.spice.get_stanford_models import get_stanford_models as get"
        cure = f'fetch its models (once, 320 MB) with python -c "{script}; get()"'
    raise Unavailable(f"{name} has no {jar.name}, looked for at {jar}: {cure}")
