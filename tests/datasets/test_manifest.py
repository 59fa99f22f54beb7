"""The manifest: lines become frames; every fault is named with file and line."""

import json
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from cdcca_cli.datasets import LabelledQuestion, read_frames, read_references, references_of
from cdcca_cli.errors import BadData, CdccaError, MissingInput, UsageError

FULL = {
    "id": "q1",
    "image": "a.png",
    "prompt": "What is it?",
    "choices": ["cat", "dog"],
    "correct_choice_idx": 1,
    "answers": ["dog", "dog", "puppy"],
    "task": "vqa",
    "domain": "night",
    "kind": "object",
}


def write(folder: Path, *lines: object, name: str = "frames.jsonl") -> Path:
    """A manifest of JSON values, or of texts as they stand; a.png and b.png lie beside it."""
    for image in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(folder / image)
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / name).write_text("\n".join(texts) + "\n")
    return folder / name


def test_every_field_arrives(tmp_path: Path) -> None:
    frames = read_frames(write(tmp_path, FULL))
    (frame,) = frames
    assert (frame.id, frame.image, frame.domain) == ("a.png", tmp_path / "a.png", "night")
    assert frame.questions == [
        LabelledQuestion(
            "q1", "What is it?", "vqa", ["cat", "dog"], 1, ["dog", "dog", "puppy"], None, "object"
        )
    ]


def test_lines_of_one_image_are_one_frame_wherever_they_stand(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"id": 1, "image": "b.png", "prompt": "x"},
        {"id": 2, "image": "a.png", "captions": ["A cat."]},
        "",
        {"id": 3, "image": "b.png", "prompt": "y"},
    )
    frames = read_frames(path)
    for _ in range(2):  # again and again
        assert len(frames) == 2
        assert [(f.id, [a.id for a in f.questions]) for f in frames] == [
            ("b.png", ["1", "3"]),
            ("a.png", ["2"]),
        ]
    assert [question.task for frame in frames for question in frame.questions] == [
        "vqa",
        "vqa",
        "caption",
    ]


def test_a_folder_with_a_manifest_is_its_manifest(tmp_path: Path) -> None:
    write(tmp_path, FULL)
    assert [frame.id for frame in read_frames(tmp_path)] == ["a.png"]


def test_task_keeps_only_its_questions(tmp_path: Path) -> None:
    path = write(tmp_path, FULL, {"id": "c", "image": "b.png", "captions": ["A cat."]})
    assert [frame.id for frame in read_frames(path, task="caption")] == ["b.png"]
    assert len(read_frames(path, task="caption")) == 1
    with pytest.raises(UsageError, match="caption"):
        read_frames(write(tmp_path, FULL), task="caption")


def test_prompt_replaces_the_questions_and_leaves_the_labels_behind(tmp_path: Path) -> None:
    path = write(tmp_path, FULL, {**FULL, "id": "q2"})
    (frame,) = read_frames(path, prompt="Is it raining?")
    assert frame.questions == [LabelledQuestion("a.png", "Is it raining?", "vqa")]
    assert frame.domain == "night"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "x", "image": "a.png"', "not JSON"),
        ('{"id": "x", "image": "a.png", "s": NaN}', "NaN"),
        ('{"id": "x", "image": "a.png", "s": ' + "9" * 5000 + "}", "not JSON"),
        ('{"id": "x", "image": "a.png", "id": "y"}', "the key 'id' occurs twice"),
        ({**FULL, "id": "x", "answers": [[["a"]]]}, "a list of lists"),
        ("[" * 100_000, "nested"),
        ("[1, 2]", "object"),
        ("7", "object"),
        ({"image": "a.png"}, "'id'"),
        ({"id": None, "image": "a.png"}, "'id'"),
        ({"id": True, "image": "a.png"}, "'id'"),
        ({"id": 1.5, "image": "a.png"}, "'id'"),
        ({"id": "", "image": "a.png"}, "'id'"),
        ({"id": "a\nb", "image": "a.png"}, "'id'"),
        ({"id": "x"}, "'image'"),
        ({"id": "x", "image": ["a.png"]}, "'image'"),
        ({"id": "x", "image": ""}, "outside"),
        ({"id": "x", "image": "a\0.png"}, "outside"),
        ({"id": "x", "image": "../a.png"}, "outside"),
        ({"id": "x", "image": "/etc/hostname"}, "outside"),
        ({"id": "x", "image": "sub/../../a.png"}, "outside"),
        ({"id": "x", "image": "."}, "outside"),
        ({"id": "x", "image": "a.png", "prompt": 3}, "'prompt'"),
        ('{"id": "x", "image": "a.png", "prompt": "\\ud800"}', "surrogate"),
        ({"id": "x", "image": "a.png", "choices": "cat"}, "'choices'"),
        ({"id": "x", "image": "a.png", "choices": []}, "'choices'"),
        ({"id": "x", "image": "a.png", "choices": [1]}, "'choices'"),
        ({**FULL, "id": "x", "correct_choice_idx": 2}, "0 to 1"),
        ({**FULL, "id": "x", "correct_choice_idx": -1}, "0 to 1"),
        ({**FULL, "id": "x", "correct_choice_idx": True}, "0 to 1"),
        ({**FULL, "id": "x", "answers": {"a": 1}}, "'answers'"),
        ({**FULL, "id": "x", "task": "ocr"}, "'task'"),
        ({**FULL, "id": "x", "difficult_direct_answer": "maybe"}, "true or false"),
        ({"id": "x", "image": "a.png", "task": "vqa"}, "prompt"),
        ({**FULL, "id": "x", "domain": "day"}, "domain"),
        ({**FULL, "prompt": "again"}, "'q1'"),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, line: object, message: str) -> None:
    path = write(tmp_path, FULL, line)
    with pytest.raises(BadData, match=r"frames\.jsonl:2") as caught:
        read_frames(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_endless_empty_lines(tmp_path: Path) -> None:
    path = write(tmp_path, FULL, "\n" * 999_998)
    assert len(read_frames(path)) == 1
    path.write_bytes(path.read_bytes() + b"\n\n\n")
    with pytest.raises(BadData, match=r"more than 1,000,000 empty lines"):
        read_frames(path)


def test_lines_that_are_no_text(tmp_path: Path) -> None:
    path = write(tmp_path, FULL)
    path.write_bytes(path.read_bytes() + b'{"id": "\xff"}\n')
    with pytest.raises(BadData, match=r":2: not UTF-8"):
        read_frames(path)
    path.write_bytes(path.read_bytes() + b" " * (1 << 24))
    with pytest.raises(BadData):
        read_frames(path)


def test_images_that_are_not_there(tmp_path: Path) -> None:
    path = write(tmp_path, FULL, {"id": "x", "image": "c.png", "prompt": "?"})
    with pytest.raises(MissingInput, match=r":2: no image .*c\.png"):
        read_frames(path)
    assert set(read_references(path)) == {"q1", "x"}  # scoring needs no images


def test_images_in_another_folder(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    path = write(tmp_path / "here", {"id": "x", "image": "../there/c.png", "prompt": "?"})
    (tmp_path / "there").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "there" / "c.png")
    with pytest.raises(BadData, match="`images`"):
        read_frames(path)
    path = write(tmp_path / "here", {"id": "x", "image": "there/c.png", "prompt": "?"})
    (frame,) = read_frames(path, images=tmp_path)
    assert frame.image == tmp_path / "there" / "c.png"
    with pytest.raises(MissingInput, match="`images`"):
        read_frames(path, images=tmp_path / "nowhere")


def test_a_relative_manifest_cannot_leave_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both `frames.jsonl` and `../x/frames.jsonl` have their own folder as the border."""
    (tmp_path / "x").mkdir()
    write(tmp_path / "x", {"id": "x", "image": "../b.png", "prompt": "?"})
    write(tmp_path, FULL)
    (tmp_path / "y").mkdir()
    for folder, name in (("x", "frames.jsonl"), ("y", "../x/frames.jsonl")):
        monkeypatch.chdir(tmp_path / folder)
        with pytest.raises(BadData, match="outside"):
            read_frames(name)


def test_empty_manifest(tmp_path: Path) -> None:
    (tmp_path / "frames.jsonl").write_text("\n\n")
    with pytest.raises(BadData):
        read_frames(tmp_path)


def test_references_need_labels(tmp_path: Path) -> None:
    path = write(tmp_path, {"id": "x", "image": "a.png", "prompt": "?"})
    with pytest.raises(BadData, match="no labels"):
        read_references(path)


def test_references_by_question_id(tmp_path: Path) -> None:
    path = write(tmp_path, FULL)
    reference = read_references(path)["q1"]
    assert references_of(read_frames(path), "manifest") == read_references(path)
    assert (reference.frame, reference.domain) == ("a.png", "night")
    assert reference.question.answers == ["dog", "dog", "puppy"]


def test_memory_stays_flat(tmp_path: Path) -> None:
    """3,000 frames with 10 kB of text a line: going through them holds one at a time."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    for number in range(3_000):
        (tmp_path / f"{number}.png").hardlink_to(tmp_path / "a.png")
    with open(tmp_path / "frames.jsonl", "w") as file:
        for number in range(3_000):
            line = {"id": number, "image": f"{number}.png", "prompt": "x" * 10_000}
            file.write(json.dumps(line) + "\n")
    tracemalloc.start()
    try:
        frames = read_frames(tmp_path)
        count = sum(len(frame.questions) for frame in frames)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == len(frames) == 3_000
    assert peak < 3e6  # the lines together are 30 MB


@pytest.mark.parametrize("seed", range(60))
def test_mutated_manifests_end_in_frames_or_one_line(tmp_path: Path, seed: int) -> None:
    import random

    draw = random.Random(seed)
    path = write(tmp_path, FULL, {"id": "c", "image": "b.png", "captions": ["A cat."]})
    data = bytearray(path.read_bytes())
    for _ in range(draw.randint(1, 6)):
        place = draw.randrange(len(data))
        action = draw.randrange(3)
        if action == 0:
            data[place] = draw.randrange(256)
        elif action == 1:
            del data[place : place + draw.randint(1, 12)]
        else:
            data[place:place] = draw.choice([b"NaN", b"null", b"[", b'"', b"\n", b"-1", b"\0"])
    path.write_bytes(data)
    try:
        assert all(frame.questions for frame in read_frames(path))
    except CdccaError as error:
        assert error.exit_code in (65, 66)
        assert len(str(error).splitlines()) == 1
