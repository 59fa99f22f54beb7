"""Files as other tools write them: predictions and references that score as the plain shapes do.

The captions are three images with two references each, and predictions that are the first reference
word for word. So every n-gram of a prediction is in its reference and no prediction is shorter:
BLEU-1 to BLEU-4 are 100, and so is ROUGE-L. CIDEr is pycocoevalcap's.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from pycocoevalcap.cider.cider import Cider

from cdcca_cli.datasets import read_frames, read_references
from cdcca_cli.errors import BadData
from cdcca_cli.main import main
from cdcca_cli.scoring.answers import Answer, read_answers

HUMAN = {
    11: ["A red ball on the grass.", "A ball lies on green grass."],
    12: ["Two dogs run on a beach.", "Dogs running along the sand."],
    13: ["A man rides a horse.", "Someone on a brown horse."],
}
MADE = {11: "a red ball on the grass", 12: "two dogs run on a beach", 13: "a man rides a horse"}


def write(path: Path, *values: Any, indent: int | None = None, end: str = "\n") -> Path:
    path.write_text("".join(json.dumps(value, indent=indent) + end for value in values))
    return path


def coco(folder: Path) -> Path:
    annotations = [{"image_id": i, "caption": one} for i, of in HUMAN.items() for one in of]
    images = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in HUMAN]
    return write(folder / "coco.json", {"images": images, "annotations": annotations})


def results(folder: Path) -> Path:
    return write(folder / "r.json", [{"image_id": i, "caption": MADE[i]} for i in MADE])


def evaluate(
    capfd: pytest.CaptureFixture[str], predictions: Path, references: Path, *options: str
) -> tuple[dict[str, Any], str]:
    """The report and stderr of a run that succeeds."""
    code = main(["eval", str(predictions), "--references", str(references), *options])
    out, err = capfd.readouterr()
    assert code == 0, err
    return json.loads(out), err


def cider(ids: list[int]) -> float:
    """pycocoevalcap's CIDEr, x100, of captions that are plain words but for case and a period."""
    human = {i: [one.lower().rstrip(".") for one in HUMAN[i]] for i in ids}
    return 100 * float(Cider().compute_score(human, {i: [MADE[i]] for i in ids})[0])


# ---------------------------------------------------------------- predictions


def lmms(image_id: int, doc: dict[str, Any]) -> dict[str, Any]:
    caption = MADE[image_id]
    return {"doc_id": 0, "doc": doc, "resps": [[caption]], "filtered_resps": [caption]}


@pytest.mark.parametrize("sort", ["coco_cap", "coco_cap of 2014", "nocaps"])
def test_lmms_evals_caption_samples(
    sort: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """coco_cap's question_id is the image's file name, and the image id is its digits, as its
    utils.py takes them for the submission; nocaps' samples have doc.image_id only."""
    docs: dict[str, Any] = {
        "coco_cap": lambda i: {"question_id": f"{i:012d}.jpg", "id": 4},
        "coco_cap of 2014": lambda i: {"question_id": f"COCO_val2014_{i:012d}.jpg"},
        "nocaps": lambda i: {"image_id": i, "annotations_captions": ["x"]},
    }
    samples = write(tmp_path / "samples.jsonl", *(lmms(i, docs[sort](i)) for i in MADE))
    report, _ = evaluate(capfd, samples, coco(tmp_path))
    scores = {name: found["score"] for name, found in report["scores"].items()}
    assert scores["bleu4"] == pytest.approx(100) and scores["rouge_l"] == pytest.approx(100)
    assert scores["cider"] == pytest.approx(cider(list(MADE)), abs=1e-6)
    plain, _ = evaluate(capfd, results(tmp_path), coco(tmp_path))
    assert report["scores"] == plain["scores"]


def test_an_id_of_a_question_is_never_taken_for_a_file_name(tmp_path: Path) -> None:
    samples = [
        lmms(11, {"question_id": "262148000"}),
        lmms(12, {"question_id": "22jbM6gDxdaMaunu"}),
    ]
    assert set(read_answers([str(write(tmp_path / "s", *samples))]).by_id) == {
        "262148000",
        "22jbM6gDxdaMaunu",
    }


@pytest.mark.parametrize(("indent", "end"), [(2, "\n"), (2, ""), (None, ""), (None, " \n\n ")])
@pytest.mark.parametrize("sort", ["results", "predictions"])
def test_objects_over_several_lines_and_on_one(
    sort: str, indent: int | None, end: str, tmp_path: Path
) -> None:
    """What `jq .` prints of JSON lines, and what is written without line ends."""
    if sort == "results":
        rows = [
            {"question_id": 10, "text": "two"},
            {"question_id": 11, "text": "yes", "model": "m"},
        ]
    else:
        entropy = {"mean": 0.5, "sum": 1.0, "max": 0.7, "first": 0.3}
        rows = [
            {"v": 1, "id": str(i), "image": "a.png", "task": "vqa", "prompt": "?", "answer": answer}
            | dict.fromkeys(("choice", "choices", "choice_scores", "token_entropies", "domain"))
            | {"entropy": entropy, "model": "sha256:" + "0" * 64}
            for i, answer in ((10, "two"), (11, "yes"))
        ]
    answers = read_answers([str(write(tmp_path / "p", *rows, indent=indent, end=end))])
    assert answers.by_id == {"10": Answer("two"), "11": Answer("yes")}


def test_an_object_that_is_cut_short_is_named(tmp_path: Path) -> None:
    """Three objects of 40 characters; the third's text begins at 2 x 40 + 2 + 20 + 10."""
    path = write(tmp_path / "p", *({"question_id": i, "text": "two"} for i in range(3)), indent=2)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(BadData, match=r"p: not JSON \(character 112"):
        read_answers([str(path)])


AOKVQA = {
    "split": "val",
    "image_id": 1,
    "question_id": "aaa",
    "question": "What?",
    "choices": ["dog", "cat", "cow", "pig"],
    "correct_choice_idx": 0,
    "direct_answers": ["dog"] * 2 + ["hound"] * 8,
    "difficult_direct_answer": False,
}


@pytest.mark.parametrize("as_lines", [False, True])
def test_a_list_of_aokvqa_answers(
    as_lines: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The CSV's columns as records. 'dog' is the right choice, and two of ten say it: 2 / 3."""
    rows = [
        {"question_id": "aaa", "multiple_choice": "dog", "direct_answer": "dog"},
        {"question_id": "bbb", "multiple_choice": "cat", "direct_answer": None},
    ]
    path = write(tmp_path / "p", *(rows if as_lines else [rows]))
    assert read_answers([str(path)]).by_id == {
        "aaa": Answer("dog", "dog"),
        "bbb": Answer(None, "cat"),
    }
    references = write(tmp_path / "val.json", [AOKVQA, {**AOKVQA, "question_id": "bbb"}])
    report, _ = evaluate(capfd, path, references)
    assert report["scores"]["mc"]["score"] == 50
    assert report["scores"]["da"]["score"] == pytest.approx(100 * (2 / 3) / 2)


def test_aokvqas_test_split_is_named_as_a_reference(tmp_path: Path) -> None:
    test = {k: v for k, v in AOKVQA.items() if k not in ("correct_choice_idx", "direct_answers")}
    path = write(tmp_path / "test.json", [{**test, "split": "test"}])
    with pytest.raises(BadData, match="A-OKVQA's test split is published without answers"):
        read_references(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"questions": [{"question_id": 1, "image_id": 1, "question": "?"}]},
            "their annotations too",
        ),
        ({"images": [{"id": 1}]}, "images without captions"),
    ],
)
def test_other_files_without_labels(content: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=words):
        read_references(write(tmp_path / "r.json", content))


def test_one_id_answered_twice_differently(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A sampler that repeats a sample. The first answer is right and the second wrong: of the two
    questions 'aaa' scores 100 and 'bbb' 0."""
    rows = [{"question_id": i, "multiple_choice": c} for i, c in (("aaa", "dog"), ("bbb", "cat"))]
    again = {"question_id": "aaa", "multiple_choice": "pig"}
    path = write(tmp_path / "p", *rows, again, again)
    with pytest.raises(
        BadData, match="p: 'aaa' is answered twice, differently: remove one"
    ) as error:
        read_answers([str(path)])
    assert "files" not in str(error.value) and "`duplicates` first" in str(error.value)
    found = read_answers([str(path)], keep_first=True)
    assert found.by_id["aaa"] == Answer(None, "dog")
    assert (len(found.conflicts), found.conflicts[0], found.duplicates) == (2, "aaa", [])
    references = write(tmp_path / "val.json", [AOKVQA, {**AOKVQA, "question_id": "bbb"}])
    report, err = evaluate(capfd, path, references, "--duplicates", "first")
    assert report["scores"]["mc"]["score"] == 50
    assert report["duplicates"] == 2
    assert "such as 'aaa': the first one counts" in err


# ---------------------------------------------------------------- references


def karpathy(folder: Path) -> Path:
    splits = {11: "test", 12: "test", 13: "val"}
    images = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{i:012d}.jpg",
            "imgid": number,
            "cocoid": i,
            "sentids": [0, 1],
            "split": splits[i],
            "sentences": [
                {"raw": one, "tokens": one.lower().split(), "imgid": number, "sentid": 0}
                for one in HUMAN[i]
            ],
        }
        for number, i in enumerate(HUMAN)
    ]
    return write(folder / "dataset_coco.json", {"images": images, "dataset": "coco"})


def test_karpathys_dataset_with_predictions_of_one_split(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Predictions for both images of `test`: the image of `val` is not missing, it is left out."""
    made = [{"image_id": i, "caption": MADE[i]} for i in (11, 12)]
    report, err = evaluate(capfd, write(tmp_path / "p", made), karpathy(tmp_path))
    assert report["references"]["questions"] == 2 and report["references"]["source"] == "caption"
    assert report["scores"]["bleu4"]["missing"] == 0
    assert report["scores"]["bleu4"]["score"] == pytest.approx(100)
    assert report["scores"]["cider"]["score"] == pytest.approx(cider([11, 12]), abs=1e-6)
    assert "scored on 2 of 3, those of test" in err


def test_karpathys_dataset_with_predictions_of_all_splits(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report, err = evaluate(capfd, results(tmp_path), karpathy(tmp_path))
    assert report["scores"]["cider"]["score"] == pytest.approx(cider(list(MADE)), abs=1e-6)
    assert report["scores"]["cider"]["n"] == 3 and "those of" not in err


@pytest.mark.parametrize("sort", ["val", "train", "nocaps"])
def test_lavis_caption_lists(sort: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """coco_karpathy_val.json has all captions of an image in one entry, coco_karpathy_train.json
    one caption in each entry, nocaps_val.json its ids apart from the names."""
    name = "val2014/COCO_val2014_{:012d}.jpg".format
    lists = {
        "val": [{"image": name(i), "caption": of} for i, of in HUMAN.items()],
        "train": [
            {"image": name(i), "caption": one, "image_id": f"coco_{i}"}
            for i, of in HUMAN.items()
            for one in of
        ],
        "nocaps": [
            {"image": "val/0013ea2087020901.jpg", "caption": of, "img_id": i}
            for i, of in HUMAN.items()
        ],
    }
    report, _ = evaluate(capfd, results(tmp_path), write(tmp_path / "l.json", lists[sort]))
    plain, _ = evaluate(capfd, results(tmp_path), coco(tmp_path))
    assert report["scores"] == plain["scores"]
    assert report["scores"]["bleu4"]["score"] == pytest.approx(100)


def test_frames_of_karpathys_dataset(tmp_path: Path) -> None:
    images = tmp_path / "val2014"
    images.mkdir()
    for i in HUMAN:
        (images / f"COCO_val2014_{i:012d}.jpg").write_bytes(b"")
    frames = list(read_frames(karpathy(tmp_path), images=tmp_path))
    assert [frame.id for frame in frames] == ["11", "12", "13"]
    assert frames[0].questions[0].captions == HUMAN[11]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"sentences": [{"raw": "A."}], "filename": "a.jpg", "split": "val"}, "'imgid' must be"),
        ({"cocoid": 1, "sentences": 3, "filename": "a.jpg", "split": "val"}, "'sentences' must be"),
        ({"cocoid": 1, "sentences": [3], "filename": "a.jpg", "split": "val"}, "an object"),
        ({"cocoid": 1, "sentences": [{"raw": 1}], "filename": "a", "split": "val"}, "'raw' must"),
        ({"cocoid": 1, "sentences": [], "filename": None, "split": "val"}, "'filename' is missing"),
    ],
)
def test_karpathys_dataset_refused(entry: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=f"image 0.*{words}"):
        read_references(write(tmp_path / "k.json", {"images": [entry]}))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"image": 3, "caption": ["a"]}, "'image' must be text"),
        ({"image": "a.jpg", "caption": []}, "'caption' must be a list"),
        ({"image": "a.jpg", "caption": 7}, "'caption' must be text"),
        ({"image_id": 3, "caption": "a"}, "found results"),
    ],
)
def test_lavis_lists_refused(entry: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=f"entry 0.*{words}"):
        read_references(write(tmp_path / "l.json", [entry]))
