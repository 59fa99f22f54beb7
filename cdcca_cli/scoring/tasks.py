"""What each task scores: its metrics, what they mean, and how large its published splits are.

`da_all`, meteor and spice are scored only when named, meteor also where Java tokenises. Imports
nothing heavy: `settings` reads these tables.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from cdcca_cli.datasets import Reference

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
        "METEOR 1.5, the corpus score of pycocoevalcap's Java program; for a domain and in "
        "intervals the mean of the images' scores, plus the difference between the two over "
        "everything. Differences to other predictions and rounds are those of the images' means",
    ),
    "spice": Metric(
        "SPICE", "caption", "SPICE 1.0, the mean of images, pycocoevalcap's Java program"
    ),
}

_BLEUS = ("bleu1", "bleu2", "bleu3", "bleu4")
_CAPTIONS = (*_BLEUS, "cider", "rouge_l")
NEEDS = {"meteor": "Java", "spice": "Java 8 and 320 MB of models"}
NOCAPS_DOMAINS = ("in", "near", "out")
ACCEPTANCE_METRICS = ("da", "mc", "cider")
"""One metric for each kind of label, in order of preference; `loop` shows the same three."""


@dataclass(frozen=True)
class Task:
    """One task: its name for people, its metrics, and the sizes of its published splits.

    headlines: the metrics that papers compare, and that rounds are followed by. unit: what sizes
    count. num_direct: a split's questions that count for direct answers.
    """

    title: str
    metrics: tuple[str, ...]
    headlines: tuple[str, ...]
    unit: Literal["questions", "images"] = "questions"
    splits: Mapping[str, int] = field(default_factory=dict)
    num_direct: Mapping[str, int] = field(default_factory=dict)
    num_by_domain: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


TASKS = {
    "aokvqa": Task(
        "A-OKVQA",
        ("mc", "da", "da_norm"),
        ("mc", "da"),
        splits={"train": 17_056, "val": 1_145},
        num_direct={"val": 1_075},
    ),
    "vqa": Task(
        "VQA",
        ("vqa", "vqa_min3"),
        ("vqa",),
        splits={
            "VQAv2 train": 443_757,
            "VQAv2 val": 214_354,
            "VQA v1 train": 248_349,
            "VQA v1 val": 121_512,
            "OK-VQA train": 9_009,
            "OK-VQA val": 5_046,
        },
    ),
    "caption": Task(
        "captions",
        _CAPTIONS,
        ("bleu4", "cider"),
        unit="images",
        splits={
            "COCO val2017 or Karpathy val or test": 5_000,
            "COCO train2017": 118_287,
            "COCO val2014": 40_504,
            "COCO train2014": 82_783,
            "Karpathy train": 113_287,
        },
    ),
    "nocaps": Task(
        "nocaps",
        (*_BLEUS, "cider", "cider_domain_idf", "rouge_l"),
        ("bleu4", "cider"),
        unit="images",
        num_by_domain={"val": {"in": 648, "near": 2_938, "out": 914}},
    ),
    "manifest": Task(
        "labels of a manifest",
        ("mc", "da", "da_norm", *_CAPTIONS),
        ("mc", "da", "bleu4", "cider"),
    ),
}


def task_of(references: "Mapping[str, Reference]") -> str:
    """The task of the file that the references came from; `manifest` if it is not known."""
    sources = {reference.source for reference in references.values()}
    return (sources.pop() if len(sources) == 1 else None) or "manifest"


def metrics_of(task: str, named: Sequence[str] | None, *, with_java: bool) -> tuple[str, ...]:
    """The metrics named, in METRICS' order, or the task's own, with METEOR if Java tokenises."""
    if named is not None:
        return tuple(name for name in METRICS if name in named)
    own = TASKS[task].metrics
    return (*own, "meteor") if with_java and "cider" in own else own


def nocaps_domain(name: str | None) -> str | None:
    """in, near or out, as nocaps writes them or with -domain after it; None for anything else."""
    short = (name or "").removesuffix("-domain")
    return short if short in NOCAPS_DOMAINS else None


@dataclass(frozen=True)
class Split:
    """The published split that is as large as the references, or in `odd` why there is none."""

    name: str | None = None
    odd: str | None = None


def split_of(references: "Mapping[str, Reference]") -> Split:
    """Compare the number of questions or images with the sizes of the published splits."""
    task = TASKS[task_of(references)]
    everything = references.values()
    if task.num_by_domain:
        return _split_by_domain(task, everything)
    if not task.splits:
        return Split()
    frames = {reference.frame for reference in everything}
    found = len(frames if task.unit == "images" else references)
    name = next((name for name, size in task.splits.items() if size == found), None)
    if name is None:
        known = ", ".join(f"{name} {size:,}" for name, size in task.splits.items())
        unit = task.unit if found != 1 else task.unit.removesuffix("s")
        odd = f"{found:,} {unit}: no published split has this size (published: {known})"
        return Split(None, odd)
    direct = sum(not reference.question.difficult_direct_answer for reference in everything)
    expected = task.num_direct.get(name, direct)
    if direct == expected:
        return Split(name)
    odd = f"{direct:,} of {found:,} questions count for direct answers; {name} has {expected:,}"
    return Split(None, odd)


def _split_by_domain(task: Task, references: "Iterable[Reference]") -> Split:
    domains = {reference.frame: nocaps_domain(reference.domain) for reference in references}
    counts = Counter(domains.values())
    found = {name: counts[name] for name in NOCAPS_DOMAINS}
    for name, sizes in task.num_by_domain.items():
        if sizes == found and not counts[None]:
            return Split(name)
    words = ", ".join(f"{count:,} {name}" for name, count in found.items())
    if counts[None]:
        words += f" and {counts[None]:,} of no domain"
    known = "; ".join(
        f"{task.title} {name} has " + ", ".join(f"{size:,} {part}" for part, size in sizes.items())
        for name, sizes in task.num_by_domain.items()
    )
    return Split(None, f"{words}; {known}")
