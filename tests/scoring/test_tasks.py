"""The default task of each kind of references, and the sizes of the published splits."""

from pathlib import Path

import pytest

from cdcca_cli.datasets import LabelledQuestion, Reference, read_references
from cdcca_cli.scoring.tasks import TASKS, metrics_of, nocaps_domain, split_of, task_of

DATA = Path(__file__).parents[3] / "shared" / "data"


def made(source: str, count: int, *, difficult: int = 0, domain: str | None = None) -> dict:
    return {
        f"{domain}{number}": Reference(
            LabelledQuestion(f"{domain}{number}", difficult_direct_answer=number < difficult),
            f"{domain}{number}",
            domain,
            source,  # type: ignore[arg-type]
        )
        for number in range(count)
    }


def test_the_task_is_that_of_the_references() -> None:
    for source in TASKS:
        assert task_of(made(source, 2)) == source
    assert task_of(made("aokvqa", 1) | made("caption", 1, domain="x")) == "manifest"
    assert task_of({"a": Reference(LabelledQuestion("a"), "a")}) == "manifest"


def test_metrics_have_one_order_and_names_that_exist() -> None:
    for task, row in TASKS.items():
        own = row.metrics
        assert metrics_of(task, None, with_java=False) == own
        assert metrics_of(task, own[::-1], with_java=False) == own
    assert metrics_of("caption", None, with_java=True)[-1] == "meteor"
    assert metrics_of("aokvqa", None, with_java=True) == TASKS["aokvqa"].metrics


def test_published_sizes() -> None:
    """DEFINITIONS 5 and 7, PAPER: A-OKVQA val has 1,145 questions, 1,075 for direct answers; nocaps
    val 648 in, 2,938 near, 914 out; VQAv2 val 214,354; COCO val2017 5,000 images."""
    assert split_of(made("aokvqa", 1145, difficult=70)).name == "val"
    odd = split_of(made("aokvqa", 1145))
    assert odd.name is None and odd.odd is not None and "1,145 of 1,145" in odd.odd
    (one,) = made("vqa", 1).values()
    assert split_of(dict.fromkeys(map(str, range(214_354)), one)).name == "VQAv2 val"
    assert split_of(made("caption", 5000)).name == "COCO val2017 or Karpathy val or test"
    assert "10 images" in (split_of(made("caption", 10)).odd or "")
    assert split_of(made("manifest", 10)) == split_of({})


@pytest.mark.parametrize(("sizes", "odd"), [((648, 2938, 914), False), ((417, 2670, 1413), True)])
def test_nocaps_split_of_other_sizes_is_told(sizes: tuple[int, int, int], odd: bool) -> None:
    """DEFINITIONS 7: some third-party splits are 417/2670/1413."""
    references = {}
    for domain, size in zip(("in-domain", "near-domain", "out-domain"), sizes, strict=True):
        references |= made("nocaps", size, domain=domain)
    split = split_of(references)
    assert (split.name is None) == odd
    assert ("417 in, 2,670 near, 1,413 out" in (split.odd or "")) == odd
    lost = split_of(references | made("nocaps", 3))
    assert "3 of no domain" in (lost.odd or "")


def test_nocaps_domains() -> None:
    assert [nocaps_domain(name) for name in ("in-domain", "near", "night", None)] == [
        "in",
        "near",
        None,
        None,
    ]


@pytest.mark.skipif(not DATA.is_dir(), reason="the real annotations are not beside the project")
def test_real_files() -> None:
    aokvqa = read_references(DATA / "aokvqa" / "aokvqa_v1p0_val.json")
    assert (task_of(aokvqa), split_of(aokvqa).name) == ("aokvqa", "val")
    vqav2 = read_references(DATA / "coco_mini" / "vqav2_on_these_images.json")
    assert task_of(vqav2) == "vqa" and split_of(vqav2).odd is not None
