"""The published annotation formats, as they are: small ones by hand, and the real files."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cdcca_cli.datasets import LabelledAsk, load_image, read_frames, read_references
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
    assert frame.asks == [
        LabelledAsk(
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
    assert frame.asks[0].correct_choice_idx == 3
    assert frame.asks[0].difficult_direct_answer is True


def test_vqav2_in_two_files_and_in_one(tmp_path: Path) -> None:
    questions = [{"image_id": 5, "question": "Ripe?", "question_id": 50}]
    answers = [{"answer": "yes", "answer_confidence": "yes", "answer_id": n} for n in range(10)]
    labels = [{"question_id": 50, "image_id": 5, "answers": answers, "answer_type": "yes/no"}]
    image = "COCO_val2014_000000000005.jpg"

    path = write(tmp_path, {"questions": questions}, image)
    (frame,) = read_frames(path)
    assert frame.asks == [LabelledAsk("50", "Ripe?", "vqa")]
    with pytest.raises(BadData, match="no labels"):
        read_references(path)

    path = write(tmp_path, {"annotations": labels})
    assert read_references(path)["50"].ask.answers == ["yes"] * 10
    assert read_references(path)["50"].ask.kind == "yes/no"
    with pytest.raises(UsageError, match="questions"):
        read_frames(path)

    path = write(tmp_path, {"questions": questions, "annotations": labels})
    (frame,) = read_frames(path)
    assert (frame.asks[0].prompt, frame.asks[0].answers) == ("Ripe?", ["yes"] * 10)


def test_coco_and_nocaps(tmp_path: Path) -> None:
    path = write(tmp_path, COCO, "nine.jpg", "seven.jpg")
    frames = list(read_frames(path))
    assert [(f.id, f.domain, f.asks[0].captions) for f in frames] == [
        ("9", "near-domain", ["A dog."]),
        ("7", None, ["A cat.", "One cat."]),
    ]
    assert read_references(path)["9"].domain == "near-domain"


def test_nocaps_test_split_has_no_captions(tmp_path: Path) -> None:
    path = write(tmp_path, {"images": COCO["images"]}, "nine.jpg", "seven.jpg")
    assert [frame.asks[0].captions for frame in read_frames(path)] == [None, None]
    with pytest.raises(BadData, match="no labels"):
        read_references(path)


def test_missing_images_are_counted(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"1 of 2 images .* seven\.jpg .*--images"):
        read_frames(write(tmp_path, COCO, "nine.jpg"))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "no questions"),
        ({}, "no keys"),
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
def test_a_fault_is_named(tmp_path: Path, value: object, said: str) -> None:
    path = write(tmp_path, value)
    with pytest.raises(BadData, match=r"annotations\.json") as caught:
        read_references(path)
    assert said in str(caught.value)
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
    ("name", "frames", "asks"),
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
def test_real_files(name: str, frames: int, asks: int) -> None:
    """The numbers stand in the data's README, or are the lengths of the files' lists."""
    folder = DATA / "coco_mini"
    source = read_frames(folder / name, images=None if name == "val2017" else folder)
    assert len(source) == frames
    assert sum(len(frame.asks) for frame in source) == asks
    first = next(iter(source))
    assert max(load_image(first).size) == 384


@real
def test_real_references() -> None:
    assert len(read_references(DATA / "aokvqa/aokvqa_v1p0_val.json")) == 1145
    captions = read_references(DATA / "coco/captions_val2017.json")
    assert len(captions) == 5000
    assert sum(len(one.ask.captions or ()) for one in captions.values()) == 25_014


@real
def test_other_real_files_are_refused_for_what_they_are() -> None:
    with pytest.raises(BadData, match="captions file is expected"):
        read_frames(DATA / "coco_mini/repo_annotations/instances_val2017.json")
    with pytest.raises(BadData, match="results"):
        read_references(DATA / "coco/tylin_fakecap_val2014.json")
    with pytest.raises(MissingInput, match="1077 of 1122"):
        read_frames(DATA / "aokvqa/aokvqa_v1p0_val.json", images=DATA / "coco_mini")
