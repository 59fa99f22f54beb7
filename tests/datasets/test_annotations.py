"""The published annotation formats, as they are: small ones by hand, and the real files."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cdcca_cli.datasets import LabelledQuestion, load_image, read_frames, read_references
from cdcca_cli.errors import BadData, CdccaError, MissingInput, UsageError

DATA = Path(__file__).parents[3] / "shared" / "data"
real = pytest.mark.skipif(
    not DATA.is_dir(), reason="the real annotations are not beside the project"
)

AOKVQA: dict[str, Any] = {
    "split": "val",
    "image_id": 461751,
    "question_id": "22jb",
    "question": "What is in the mouth?",
    "choices": ["toothpick", "food", "stick", "cigarette"],
    "correct_choice_idx": 3,
    "direct_answers": ["cigarette"] * 9 + ["smoke"],
    "difficult_direct_answer": False,
    "rationales": ["He smokes."],
}
COCO = {
    "images": [
        {"id": 9, "file_name": "nine.jpg", "domain": "near-domain"},
        {"id": 7, "file_name": "seven.jpg"},
    ],
    "annotations": [
        {"image_id": 7, "id": 1, "caption": "A cat."},
        {"image_id": 9, "id": 2, "caption": "A dog."},
        {"image_id": 7, "id": 3, "caption": "One cat."},
    ],
}


def write(folder: Path, value: object, *images: str) -> Path:
    for name in images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    path = folder / "annotations.json"
    path.write_text(json.dumps(value))
    return path


def test_aokvqa(tmp_path: Path) -> None:
    path = write(tmp_path, [AOKVQA], "images/val2017/000000461751.jpg")
    (frame,) = read_frames(path, images=tmp_path / "images")
    assert frame.id == "461751"
    assert frame.image == tmp_path / "images/val2017/000000461751.jpg"
    assert frame.questions == [
        LabelledQuestion(
            "22jb",
            "What is in the mouth?",
            "vqa",
            AOKVQA["choices"],
            3,
            AOKVQA["direct_answers"],
        )
    ]


def test_aokvqa_with_everything_as_text(tmp_path: Path) -> None:
    """As one public copy has it: ids and indices as digits, truth values as words."""
    item = {
        **AOKVQA,
        "image_id": "461751",
        "correct_choice_idx": "3",
        "difficult_direct_answer": "True",
        "image_path": "here.jpg",
    }
    (frame,) = read_frames(write(tmp_path, [item], "here.jpg"))
    assert frame.questions[0].correct_choice_idx == 3
    assert frame.questions[0].difficult_direct_answer is True


def test_vqav2_in_two_files_and_in_one(tmp_path: Path) -> None:
    questions = [{"image_id": 5, "question": "Ripe?", "question_id": 50}]
    answers = [{"answer": "yes", "answer_confidence": "yes", "answer_id": n} for n in range(10)]
    labels = [{"question_id": 50, "image_id": 5, "answers": answers, "answer_type": "yes/no"}]
    image = "COCO_val2014_000000000005.jpg"

    path = write(tmp_path, {"questions": questions}, image)
    (frame,) = read_frames(path)
    assert frame.questions == [LabelledQuestion("50", "Ripe?", "vqa")]
    with pytest.raises(BadData, match="no labels"):
        read_references(path)

    path = write(tmp_path, {"annotations": labels})
    assert read_references(path)["50"].question.answers == ["yes"] * 10
    assert read_references(path)["50"].question.kind == "yes/no"
    with pytest.raises(UsageError, match="questions"):
        read_frames(path)

    path = write(tmp_path, {"questions": questions, "annotations": labels})
    (frame,) = read_frames(path)
    assert (frame.questions[0].prompt, frame.questions[0].answers) == ("Ripe?", ["yes"] * 10)


QUESTIONS = [{"image_id": 5, "question": f"{n}?", "question_id": 50 + n} for n in range(3)]
LABELS = [
    {
        "question_id": 50 + n,
        "image_id": 5,
        "answers": [{"answer": "yes", "raw_answer": "yes!", "answer_confidence": "no"}] * 10,
        "answer_type": "yes/no",
        "question_type": "is the",
    }
    for n in (2, 0, 1, 7)
]


def files(folder: Path, *values: object) -> list[Path]:
    for number, value in enumerate(values):
        (folder / f"{number}.json").write_text(json.dumps(value))
    return [folder / f"{number}.json" for number in range(len(values))]


def test_vqav2_in_two_files_in_any_order(tmp_path: Path) -> None:
    """Together as in one file: the questions decide which annotations count."""
    paths = files(tmp_path, {"questions": QUESTIONS}, {"annotations": LABELS})
    both = write(tmp_path, {"questions": QUESTIONS, "annotations": LABELS})
    whole = read_references(both)
    assert list(whole) == ["50", "51", "52"]
    assert read_references(paths) == read_references(paths[::-1]) == whole
    assert (whole["51"].question.prompt, whole["51"].question.kind, whole["51"].frame) == (
        "1?",
        "yes/no",
        "5",
    )
    assert {one.source for one in whole.values()} == {"vqa"}
    alone = read_references(paths[1])
    assert list(alone) == ["52", "50", "51", "57"]
    assert alone["51"].question.answers == whole["51"].question.answers == ["yes"] * 10


def test_okvqa_names_its_kinds(tmp_path: Path) -> None:
    """The answer type of all its questions is `other`; the type's name is the kind."""
    labels = [{**label, "answer_type": "other", "question_type": "one"} for label in LABELS]
    labels[0]["question_type"] = "unheard of"
    names = {"one": "Vehicles and Transportation", "two": "Brands, Companies and Products"}
    for keys in (("annotations", "question_types"), ("question_types", "annotations")):
        content: dict[str, Any] = {"annotations": labels, "question_types": names}
        path = write(tmp_path, {key: content[key] for key in keys})
        kinds = {
            question_id: one.question.kind for question_id, one in read_references(path).items()
        }
        assert kinds.pop("52") == "other"
        assert set(kinds.values()) == {"Vehicles and Transportation"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (({"questions": QUESTIONS}, {"annotations": LABELS[3:]}), "of different splits"),
        (({"questions": QUESTIONS}, {"questions": QUESTIONS, "annotations": LABELS}), "twice"),
        (({"annotations": LABELS}, {"annotations": LABELS}), "twice"),
        (({"annotations": LABELS[:1] * 2},), "twice"),
        (([AOKVQA], [AOKVQA]), "twice"),
        (
            ({"questions": QUESTIONS, "annotations": [{**LABELS[0], "image_id": 6}]},),
            "is about image 6 here, about 5 in",
        ),
        (({"annotations": LABELS, "question_types": {"one": 1}},), "'one' must be text"),
        (({"annotations": LABELS, "question_types": []},), "expected an object"),
        ((COCO, {"images": COCO["images"]}), "twice"),
    ],
)
def test_files_that_do_not_go_together(
    tmp_path: Path, values: tuple[object, ...], message: str
) -> None:
    with pytest.raises(BadData) as caught:
        read_references(files(tmp_path, *values))
    assert message in str(caught.value)


def test_a_manifest_and_an_annotation_file(tmp_path: Path) -> None:
    (path,) = files(tmp_path, [AOKVQA])
    manifest = tmp_path / "m"
    manifest.write_text('{"id": "22jb", "image": "a.jpg", "prompt": "?", "answers": ["a"]}\n')
    with pytest.raises(BadData, match="'22jb' is in another"):
        read_references([manifest, path])
    manifest.write_text('{"id": "x", "image": "a.jpg", "prompt": "?", "answers": ["a"]}\n')
    found = read_references([manifest, path])
    assert {question_id: one.source for question_id, one in found.items()} == {
        "x": "manifest",
        "22jb": "aokvqa",
    }


def test_each_question_has_its_own_source(tmp_path: Path) -> None:
    """Also where two files ask about one image."""
    labels = [{**LABELS[0], "image_id": AOKVQA["image_id"]}]
    (path, other) = files(tmp_path, [AOKVQA], {"annotations": labels})
    for paths in ([path, other], [other, path]):
        found = {question_id: one.source for question_id, one in read_references(paths).items()}
        assert found == {"22jb": "aokvqa", "52": "vqa"}


@pytest.mark.parametrize("domain", [None, "night", "in-domain", "out-domain", "near"])
def test_nocaps_is_known_by_its_domains(tmp_path: Path, domain: str | None) -> None:
    images = [{"id": 7, "file_name": "a.jpg", "domain": domain}, {"id": 9, "file_name": "b.jpg"}]
    path = write(tmp_path, {"images": images, "annotations": COCO["annotations"]})
    found = {(one.source, one.domain) for one in read_references(path).values()}
    source = "caption" if domain in (None, "night") else "nocaps"
    assert found == {(source, domain), (source, None)}


def test_captions_alone(tmp_path: Path) -> None:
    """COCO's annotations without its list of images hold all that scoring needs."""
    path = write(tmp_path, {"annotations": COCO["annotations"]})
    found = read_references(path)
    assert {question_id: one.question.captions for question_id, one in found.items()} == {
        "7": ["A cat.", "One cat."],
        "9": ["A dog."],
    }


def test_coco_and_nocaps(tmp_path: Path) -> None:
    path = write(tmp_path, COCO, "nine.jpg", "seven.jpg")
    frames = list(read_frames(path))
    assert [(f.id, f.domain, f.questions[0].captions) for f in frames] == [
        ("9", "near-domain", ["A dog."]),
        ("7", None, ["A cat.", "One cat."]),
    ]
    assert read_references(path)["9"].domain == "near-domain"


def test_nocaps_test_split_has_no_captions(tmp_path: Path) -> None:
    path = write(tmp_path, {"images": COCO["images"]}, "nine.jpg", "seven.jpg")
    assert [frame.questions[0].captions for frame in read_frames(path)] == [None, None]
    with pytest.raises(BadData, match="no labels"):
        read_references(path)


def test_missing_images_are_counted(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"1 of 2 images .* seven\.jpg .*`images`"):
        read_frames(write(tmp_path, COCO, "nine.jpg"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "no questions"),
        ({}, "no questions"),
        ({"instances": []}, "instances"),
        ([1], "object"),
        ([{"image_id": 1, "caption": "A result."}], "results"),
        ([{"image_id": 1, "boxes": []}], "boxes"),
        ([AOKVQA, AOKVQA], "twice"),
        ([{**AOKVQA, "image_id": None}], "image_id"),
        ([{**AOKVQA, "correct_choice_idx": 4}], "0 to 3"),
        ([{**AOKVQA, "direct_answers": "cigarette"}], "direct_answers"),
        ([{**AOKVQA, "direct_answers": [{"text": "x"}]}], "answer"),
        ({"images": [], "annotations": [{"image_id": 1, "caption": "x"}]}, "1 captioned"),
        ({"images": COCO["images"] * 2}, "twice"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 1, "bbox": []}]}, "caption"),
        ({"images": [{"id": 1, "file_name": 3}]}, "file_name"),
        ({"questions": {"a": 1}}, "questions"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, value: object, message: str) -> None:
    path = write(tmp_path, value)
    with pytest.raises(BadData, match=r"annotations\.json") as caught:
        read_references(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["../seven.jpg", "/etc/hostname"])
def test_a_file_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    value = {"images": [{"id": 1, "file_name": name}]}
    with pytest.raises(BadData, match="outside"):
        read_frames(write(tmp_path, value))


@pytest.mark.parametrize("seed", range(60))
def test_mutated_files_end_in_references_or_one_line(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    data = bytearray(json.dumps([AOKVQA] if seed % 2 else COCO).encode())
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(data))
        if draw.random() < 0.5:
            data[place] = draw.randrange(256)
        else:
            data[place : place + draw.randint(0, 9)] = draw.choice(
                [b"", b"NaN", b"null", b"[]", b"{}", b'"', b"1e999", b"-1", b"true"]
            )
    (tmp_path / "annotations.json").write_bytes(data)
    try:
        assert read_references(tmp_path / "annotations.json")
    except CdccaError as error:
        assert error.exit_code == 65
        assert len(str(error).splitlines()) == 1


@real
@pytest.mark.parametrize(
    ("name", "frames", "questions"),
    [
        ("val2017", 177, 177),
        ("aokvqa_val_on_these_images.json", 45, 45),
        ("aokvqa_train_on_these_images.json", 15, 15),
        ("vqav2_on_these_images.json", 25, 39),
        ("okvqa_on_these_images.json", 29, 29),
        ("captions.json", 257, 257),
        ("repo_annotations/captions_val2017.json", 79, 79),
    ],
)
def test_real_files(name: str, frames: int, questions: int) -> None:
    """The numbers stand in the data's README, or are the lengths of the files' lists."""
    folder = DATA / "coco_mini"
    source = read_frames(folder / name, images=None if name == "val2017" else folder)
    assert len(source) == frames
    assert sum(len(frame.questions) for frame in source) == questions
    first = next(iter(source))
    assert max(load_image(first).size) == 384


def test_a_list_that_is_there_twice(tmp_path: Path) -> None:
    """Python's own reader would drop the first of the two without a word."""
    path = tmp_path / "annotations.json"
    captions = json.dumps(COCO["annotations"])
    path.write_text(f'{{"annotations": {captions}, "annotations": {captions}}}')
    with pytest.raises(BadData, match="the key 'annotations' is there twice"):
        read_references(path)


@real
@pytest.mark.parametrize(
    ("name", "source", "questions"),
    [
        ("aokvqa/aokvqa_v1p0_val.json", "aokvqa", 1145),
        ("coco/captions_val2017.json", "caption", 5000),
        ("coco_mini/aokvqa_train_on_these_images.json", "aokvqa", 15),
        ("coco_mini/vqav2_on_these_images.json", "vqa", 39),
        ("coco_mini/okvqa_on_these_images.json", "vqa", 29),
        ("coco_mini/captions.json", "caption", 257),
        ("coco_mini/repo_annotations/captions_train2017.json", "caption", 80),
    ],
)
def test_the_kind_of_real_references(name: str, source: str, questions: int) -> None:
    found = read_references(DATA / name)
    assert {one.source for one in found.values()} == {source}
    assert len(found) == questions


@real
def test_real_references() -> None:
    assert len(read_references(DATA / "aokvqa/aokvqa_v1p0_val.json")) == 1145
    captions = read_references(DATA / "coco/captions_val2017.json")
    assert len(captions) == 5000
    assert sum(len(one.question.captions or ()) for one in captions.values()) == 25_014


@real
def test_other_real_files_are_refused_for_what_they_are() -> None:
    with pytest.raises(BadData, match="captions file is expected"):
        read_frames(DATA / "coco_mini/repo_annotations/instances_val2017.json")
    with pytest.raises(BadData, match="results"):
        read_references(DATA / "coco/tylin_fakecap_val2014.json")
    with pytest.raises(MissingInput, match="1077 of 1122"):
        read_frames(DATA / "aokvqa/aokvqa_v1p0_val.json", images=DATA / "coco_mini")
