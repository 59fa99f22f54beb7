"""What each task scores: its metrics, what they mean, and how large its published splits are.

| task     | references                    | metrics                                               |
|----------|-------------------------------|-------------------------------------------------------|
| aokvqa   | A-OKVQA v1.0                  | mc, da, da_norm                                       |
| vqa      | VQAv2; lists such as OK-VQA's | vqa, vqa_min3                                         |
| caption  | COCO captions                 | bleu1 to bleu4, cider, rouge_l                        |
| nocaps   | nocaps                        | the same and cider_domain_idf, each also as the mean  |
|          |                               | of the three domains                                  |
| manifest | a manifest's own asks         | mc, da, da_norm and the captions', as its asks allow  |

The task is that of the references unless another is named. `da_all` is scored where it is asked
for; so are meteor and spice, which need Java (meteor also where Java tokenises).

Nothing is scored here.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cdcca_cli.datasets import Reference
from cdcca_cli.errors import UsageError

What = Literal["choice", "answer", "caption"]


@dataclass(frozen=True)
class Metric:
    """One metric: its name in tables, what of an answer it scores, and its definition."""

    title: str
    what: What
    definition: str


_BLEU = (
    "corpus BLEU of n-grams up to so many words as in pycocoevalcap, with the length of the "
    "closest reference"
)
METRICS = {
    "mc": Metric(
        "MC",
        "choice",
        "A-OKVQA multiple choice: the chosen text equals the correct one's. An answer that is none "
        "of the choices becomes the choice of highest option score where it has such scores",
    ),
    "da": Metric(
        "DA",
        "answer",
        "A-OKVQA direct answer: min(1, matches / 3) of ten, exact strings, difficult ones out",
    ),
    "da_norm": Metric(
        "DA normalised",
        "answer",
        "min(1, matches / 3) of ten after SQuAD's normalisation, difficult ones in",
    ),
    "da_all": Metric(
        "DA all", "answer", "min(1, matches / 3) of ten, exact strings, difficult ones in"
    ),
    "vqa": Metric(
        "VQA",
        "answer",
        "VQAv2 accuracy: the mean over ten answers of min(1, matches among the other nine / 3), "
        "after vqaEval.py's normalisation",
    ),
    "vqa_min3": Metric(
        "VQA min-3",
        "answer",
        "min(1, matches / 3) of ten after vqaEval.py's normalisation, none left out",
    ),
    **{f"bleu{order}": Metric(f"BLEU-{order}", "caption", _BLEU) for order in (1, 2, 3, 4)},
    "cider": Metric(
        "CIDEr",
        "caption",
        "CIDEr-D as in pycocoevalcap; document frequencies of all images that are scored, also "
        "in a domain",
    ),
    "cider_domain_idf": Metric(
        "CIDEr (domain IDF)",
        "caption",
        "CIDEr-D as in pycocoevalcap; document frequencies of the image's own domain, as with one "
        "annotation file a domain",
    ),
    "rouge_l": Metric("ROUGE-L", "caption", "ROUGE-L as in pycocoevalcap, beta 1.2"),
    "meteor": Metric(
        "METEOR",
        "caption",
        "METEOR 1.5, the corpus score of pycocoevalcap's Java program; of a domain, and in "
        "intervals, the mean of images, moved by what lies between the two over all. Differences "
        "to other predictions and rounds are of the images' means, unmoved",
    ),
    "spice": Metric(
        "SPICE", "caption", "SPICE 1.0, the mean of images, pycocoevalcap's Java program"
    ),
}

_BLEUS = ("bleu1", "bleu2", "bleu3", "bleu4")
_CAPTIONS = (*_BLEUS, "cider", "rouge_l")
TASKS: dict[str, tuple[str, ...]] = {
    "aokvqa": ("mc", "da", "da_norm"),
    "vqa": ("vqa", "vqa_min3"),
    "caption": _CAPTIONS,
    "nocaps": (*_BLEUS, "cider", "cider_domain_idf", "rouge_l"),
    "manifest": ("mc", "da", "da_norm", *_CAPTIONS),
}
HEADLINES = {
    "aokvqa": ("mc", "da"),
    "vqa": ("vqa",),
    "caption": ("bleu4", "cider"),
    "nocaps": ("bleu4", "cider"),
    "manifest": ("mc", "da", "bleu4", "cider"),
}
"""The metrics that papers compare: those that rounds are followed by."""
NEEDS = {"meteor": "Java", "spice": "Java 8 and 320 MB of models"}
TITLES = {
    "aokvqa": "A-OKVQA",
    "vqa": "VQA",
    "caption": "captions",
    "nocaps": "nocaps",
    "manifest": "a manifest's asks",
}
NOCAPS_DOMAINS = ("in", "near", "out")

_QUESTIONS = {
    "aokvqa": {"train": 17_056, "val": 1_145},
    "vqa": {
        "VQAv2 train": 443_757,
        "VQAv2 val": 214_354,
        "VQA v1 train": 248_349,
        "VQA v1 val": 121_512,
        "OK-VQA train": 9_009,
        "OK-VQA val": 5_046,
    },
}
_IMAGES = {
    "caption": {
        "COCO val2017 or Karpathy val or test": 5_000,
        "COCO train2017": 118_287,
        "COCO val2014": 40_504,
        "COCO train2014": 82_783,
        "Karpathy train": 113_287,
    }
}
_AOKVQA_DIRECT = {"val": 1_075}
_NOCAPS = {"val": {"in": 648, "near": 2_938, "out": 914}}


def task_of(references: Mapping[str, Reference]) -> str:
    """The task of the file that the references came from; `manifest` where they say nothing."""
    sources = {reference.source for reference in references.values()}
    source = next(iter(sources)) if len(sources) == 1 else None
    return source or "manifest"


def metrics_of(task: str, named: Sequence[str] | None, *, with_java: bool) -> tuple[str, ...]:
    """The metrics to score, in METRICS' order: those named, or the task's own.

    with_java: METEOR is one of the task's own. Raises: UsageError for a name that is none.
    """
    if named is not None:
        for name in named:
            if name not in METRICS:
                raise UsageError(f"--metrics: no metric '{name}'; there are {', '.join(METRICS)}")
        return tuple(name for name in METRICS if name in named)
    own = TASKS[task]
    return (*own, "meteor") if with_java and "cider" in own else own


def nocaps_domain(name: str | None) -> str | None:
    """in, near or out, as nocaps writes them or with -domain after it; None for anything else."""
    short = (name or "").removesuffix("-domain")
    return short if short in NOCAPS_DOMAINS else None


@dataclass(frozen=True)
class Split:
    """Which published split the references are as large as; `odd` says in one line why it is none.

    name: None if it is none, or if nothing is published for references of this kind.
    """

    name: str | None = None
    odd: str | None = None


def split_of(references: Mapping[str, Reference]) -> Split:
    """Compare the number of questions or images with those of the published splits.

    It is the size alone that is looked at. A manifest has no published size.
    """
    source = task_of(references)
    everything = references.values()
    if source == "nocaps":
        return _nocaps_split(everything)
    sizes = _QUESTIONS.get(source) or _IMAGES.get(source)
    if sizes is None:
        return Split()
    if source in _IMAGES:
        found, unit = len({reference.frame for reference in everything}), "images"
    else:
        found, unit = len(references), "questions"
    name = next((name for name, size in sizes.items() if size == found), None)
    if name is None:
        known = ", ".join(f"{size:,} ({name})" for name, size in sizes.items())
        return Split(None, f"{found:,} {unit}, no published split: those have {known}")
    if source == "aokvqa" and name in _AOKVQA_DIRECT:
        direct = sum(not reference.ask.difficult_direct_answer for reference in everything)
        if direct != _AOKVQA_DIRECT[name]:
            return Split(
                None,
                f"{direct:,} of {found:,} questions count for direct answers; {name} has "
                f"{_AOKVQA_DIRECT[name]:,}",
            )
    return Split(name)


def _nocaps_split(references: Iterable[Reference]) -> Split:
    domains = {reference.frame: nocaps_domain(reference.domain) for reference in references}
    counts = Counter(domains.values())
    found = {name: counts[name] for name in NOCAPS_DOMAINS}
    unknown = counts[None]
    for name, sizes in _NOCAPS.items():
        if sizes == found and not unknown:
            return Split(name)
    words = ", ".join(f"{count:,} {name}" for name, count in found.items())
    if unknown:
        words += f" and {unknown:,} of no domain"
    known = ", ".join(f"{size:,} {name}" for name, size in _NOCAPS["val"].items())
    return Split(None, f"{words}; nocaps val has {known}")
