"""Prediction files of cdcca and of other tools; what is none of them is refused."""

import gzip
import json
import random
import tracemalloc
from pathlib import Path

import pytest

from cdcca_cli.errors import BadData, CdccaError, NewerFormat
from cdcca_cli.formats.predictions import read_predictions
from cdcca_cli.formats.records import encode_header
from cdcca_cli.scoring.answers import Answer, answers_of, read_answers

DATA = Path(__file__).parents[3] / "shared" / "data" / "aokvqa" / "predictions"


def prediction(question_id: str, answer: str, choice: str | None = None) -> dict[str, object]:
    return {
        "v": 1,
        "id": question_id,
        "image": "a.png",
        "task": "vqa",
        "prompt": "What is it?",
        "answer": answer,
        "choice": choice,
        "choices": None if choice is None else [choice, "other"],
        "choice_scores": None if choice is None else [-1.0, -2.0],
        "entropy": {"mean": 0.5, "sum": 1.0, "max": 0.7, "first": 0.3},
        "token_entropies": None,
        "model": "sha256:" + "0" * 64,
        "domain": None,
    }


def write(path: Path, *values: object) -> str:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


def test_own_predictions(tmp_path: Path) -> None:
    path = write(tmp_path / "p", prediction("1", "dog", "cat"), prediction("2", "cow"))
    assert read_answers([path]).by_id == {"1": Answer("dog", "cat"), "2": Answer("cow", None)}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            '{"q": {"multiple_choice": "a", "direct_answer": "b"}, "r": {"direct_answer": "c"}}',
            {"q": Answer("b", "a"), "r": Answer("c")},
        ),
        ('{\n "q": {\n  "multiple_choice": "a"}}', {"q": Answer(None, "a")}),
        ('[{"question_id": 7, "answer": "yes"}]', {"7": Answer("yes")}),
        ('[{"image_id": 7, "caption": "A cat."}]', {"7": Answer("A cat.")}),
        (
            'question_id,image_id,llama_answer\nq,1,gum\nr,2,"a, b"\n',
            {"q": Answer("gum"), "r": Answer("a, b")},
        ),
        ("question_id,multiple_choice\r\nq,a\r\n", {"q": Answer(None, "a")}),
        ('{"q": "a", "r": "b"}', {"q": Answer("a"), "r": Answer("b")}),
        ('[{"question_id": "q", "pred_ans": "a", "gt_ans": ["b"]}]', {"q": Answer("a")}),
        (
            '{"question_id": 7, "prompt": "?", "text": "yes", "metadata": {}}\n\n'
            '{"question_id": 8, "text": "no"}\r\n',
            {"7": Answer("yes"), "8": Answer("no")},
        ),
        ('{"image_id": 7, "caption": "A cat."}', {"7": Answer("A cat.")}),
        (
            '{"doc_id": 0, "doc": {"question_id": 7, "answers": [{"answer": "x"}]}, "target": "x",'
            ' "resps": [["Yes."]], "filtered_resps": ["yes"], "exact_match": 0.0}\n',
            {"7": Answer("yes")},
        ),
        ("image_id,caption\n7,A cat.\n", {"7": Answer("A cat.")}),
        (
            "question_id,answer,multiple_choice,direct_answer\nq,gold,a,b\n",
            {"q": Answer("b", "a")},
        ),
        ("question_id,llama_answer\n\nq,1\n\n", {"q": Answer("1")}),
        ('question_id,answer\nq,"a\n\nb"\n', {"q": Answer("a\n\nb")}),
        ("\ufeff[]", {}),
        ("", {}),
        (" \n\n", {}),
    ],
)
def test_other_tools_files(tmp_path: Path, content: str, expected: dict[str, Answer]) -> None:
    (tmp_path / "p").write_bytes(content.encode())
    assert read_answers([str(tmp_path / "p")]).by_id == expected


def test_several_files_in_any_order(tmp_path: Path) -> None:
    one = write(tmp_path / "1", prediction("1", "dog"))
    two = write(tmp_path / "2", prediction("2", "cat"), prediction("1", "dog"))
    for paths in ([one, two], [two, one]):
        answers = read_answers(paths)
        assert answers.by_id == {"1": Answer("dog"), "2": Answer("cat")}
        assert len(answers.duplicates) == 1


def test_choices_and_free_answers_in_two_files(tmp_path: Path) -> None:
    """As tools for A-OKVQA write them: one run for each of its two tasks."""
    one = write(tmp_path / "1", {"q": {"multiple_choice": "a"}, "r": {"multiple_choice": "b"}})
    two = write(tmp_path / "2", {"r": {"direct_answer": "c"}})
    for paths in ([one, two], [two, one]):
        answers = read_answers(paths)
        assert answers.by_id == {"q": Answer(None, "a"), "r": Answer("c", "b")}
        assert answers.duplicates == []
    again = write(tmp_path / "3", {"r": {"multiple_choice": "b", "direct_answer": "c"}})
    assert read_answers([one, two, again]).duplicates == ["r"]
    other = write(tmp_path / "4", {"r": {"multiple_choice": "x"}})
    for paths in ([one, two, other], [other, two, one]):
        with pytest.raises(BadData, match=f"'r' is answered differently in {paths[0]}: remove one"):
            read_answers(paths)


def test_two_different_answers_to_one_question(tmp_path: Path) -> None:
    path = write(tmp_path / "p", prediction("1", "dog"), prediction("1", "cat"))
    with pytest.raises(BadData, match="'1' is answered twice"):
        read_answers([path])


@pytest.mark.parametrize(
    "content",
    [
        "hello\n",
        "a,b\n1,2\n",
        "question_id,answer\nq\n",
        'question_id,answer\nq,"open\n',
        "7",
        '"text"',
        "[7]",
        '[{"image_id": 7}]',
        '[{"image_id": null, "caption": "x"}]',
        '[{"image_id": 7, "caption": 7}]',
        '{"q": ["a"]}',
        '{"q": {"answer": "b"}}',
        '{"q": {"direct_answer": 3}}',
        '{"v": 1, "id": "x"}',
        '{"v": 1, "id": "x"}\n' * 3,
        '{"id": "x", "entropy": ',
        '[{"image_id": 7, "caption": "x"}',
        '{"q": "a", "q": "b"}',
        '{"": {"direct_answer": "a"}}',
        '{"' + "q" * 1025 + '": "a"}',
        '[{"image_id": 7, "image_id": 8, "caption": "x"}]',
        '[{"image_id": 7, "caption": "\\ud800"}]',
        '{"question_id": 7, "text": "yes"}\nno\n',
        '{"doc": {"question_id": 7}, "filtered_resps": ["a", "b"]}',
        '{"doc": {"question_id": 7}, "filtered_resps": [[-0.5, true]]}',
        '{"doc": 7, "filtered_resps": ["a"]}',
        "question_id,answer,answer\nq,a,b\n",
        "question_id,a_answer,b_answer\nq,a,b\n",
        'question_id,answer\n"",a\n',
        "question_id,answer\n" + "\n" * 1_000_002,
        "[" * 100_000,
        "\xff\xfe",
        '[{"question_id": 1, "answer": "' + "x" * 100_001 + '"}]',
    ],
)
def test_what_holds_no_predictions(tmp_path: Path, content: str) -> None:
    (tmp_path / "p").write_bytes(content.encode("latin-1"))
    with pytest.raises(BadData) as caught:
        read_answers([str(tmp_path / "p")])
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 500


def test_the_scores_of_the_options_are_carried(tmp_path: Path) -> None:
    """But a figure that another batch size moved a little is no second answer."""
    one, two = prediction("1", "dog", "cat"), prediction("1", "dog", "cat")
    two["choice_scores"] = [-1.00001, -2.0]
    answers = read_answers([write(tmp_path / "p", one, two)])
    assert answers.duplicates == ["1"]
    assert answers.by_id["1"].choices == ("cat", "other")
    assert answers.by_id["1"].choice_scores == (-1.0, -2.0)
    (_, alone) = next(answers_of(read_predictions([json.dumps(prediction("1", "dog"))])))
    assert (alone.choices, alone.choice_scores) == (None, None)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (encode_header({}, {"kind": "shard", "version": 1}), "token shards"),
        (b'{"id": "q", "image": "a.jpg", "prompt": "?"}\n', "a manifest of frames"),
        (gzip.compress(b"[]", mtime=0), "gzip data"),
        ("[]".encode("utf-16"), "UTF-16"),
        (b"\0" * 100, "blanks or zeros"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "an image"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(BadData, match=f"expected predictions, found {found}"):
        read_answers([str(tmp_path / "p")])


@pytest.mark.parametrize("key", ["id", "answer", "choice"])
def test_half_a_character_is_refused(tmp_path: Path, key: str) -> None:
    """It can be written nowhere, neither to a report nor to a tokenizer."""
    broken = {**prediction("1", "a", "b"), key: "\ud800", "choices": ["\ud800", "b"]}
    with pytest.raises(BadData, match="lone surrogate"):
        read_answers([write(tmp_path / "p", broken)])


def test_a_prediction_without_its_version_is_called_so(tmp_path: Path) -> None:
    """Not a manifest, though its lines have an id and an image, too."""
    line = prediction("1", "dog")
    del line["v"]
    with pytest.raises(BadData, match=r"line 1: not a prediction \(an object with a version"):
        read_answers([write(tmp_path / "p", line)])


@pytest.mark.parametrize("nothing", [b"\0", b" ", b"\n"])
def test_a_gigabyte_of_nothing(tmp_path: Path, nothing: bytes) -> None:
    """Refused after a look at its beginning, without holding it."""
    path = tmp_path / "p"
    with open(path, "wb") as file:
        if nothing == b"\0":
            file.truncate(1 << 30)  # a hole: takes no room
        else:
            file.write(nothing * (1 << 22))
    tracemalloc.start()
    try:
        with pytest.raises(BadData, match="blanks or zeros"):
            read_answers([str(path)])
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "entry",
    [
        {"question_id": "q", "image_id": 1, "choices": ["a"], "direct_answers": ["a"]},
        {"question_id": 7, "image_id": 1, "answers": [{"answer": "a"}]},
        {"image_id": 1, "captions": ["A cat."]},
    ],
)
def test_references_in_place_of_predictions(tmp_path: Path, entry: dict[str, object]) -> None:
    with pytest.raises(BadData, match="name this file as `references`"):
        read_answers([write(tmp_path / "p", [entry])])


def test_a_newer_version_is_said_to_be_newer(tmp_path: Path) -> None:
    with pytest.raises(NewerFormat):
        read_answers([write(tmp_path / "p", {**prediction("1", "dog"), "v": 2})])


def test_a_long_first_line_is_still_a_prediction(tmp_path: Path) -> None:
    """Token entropies can make a line longer than what is looked at first (1 MiB)."""
    long = {"token_entropies": [0.25] * 300_000, **prediction("1", "dog")}
    long["token_entropies"] = [0.25] * 300_000
    assert read_answers([write(tmp_path / "p", long)]).by_id == {"1": Answer("dog")}


@pytest.mark.parametrize("seed", range(60))
def test_mutated_files_end_in_answers_or_one_line(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    sources = [
        json.dumps(prediction("1", "dog", "cat")) + "\n" + json.dumps(prediction("2", "cow")),
        '{"q": {"multiple_choice": "a", "direct_answer": "b"}}',
        '[{"question_id": 7, "answer": "yes"}, {"question_id": 8, "answer": "no"}]',
        "question_id,llama_answer\nq,gum\nr,tea\n",
    ]
    data = bytearray(sources[seed % 4].encode())
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(data))
        if draw.random() < 0.5:
            data[place] = draw.randrange(256)
        else:
            junk = draw.choice([b"", b"NaN", b"null", b"[", b"{", b'"', b"\n", b"\0", b"1e999"])
            data[place : place + draw.randint(0, 9)] = junk
    (tmp_path / "p").write_bytes(data)
    try:
        answers = read_answers([str(tmp_path / "p")])
        assert all(isinstance(question_id, str) for question_id in answers.by_id)
    except CdccaError as error:
        assert error.exit_code in (65, 76)
        assert len(str(error).splitlines()) == 1


def test_a_trust_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "2.trust").write_bytes(encode_header({}, {"kind": "trust", "version": 1}))
    with pytest.raises(BadData, match=r"expected predictions, found a trust list"):
        read_answers([str(tmp_path / "2.trust")])


@pytest.mark.skipif(not DATA.is_dir(), reason="the real predictions are not beside the project")
def test_real_files() -> None:
    files = sorted(DATA.iterdir())
    assert len(files) == 7
    for file in files:
        answers = read_answers([str(file)])
        assert (len(answers.by_id), answers.duplicates) == (1145, [])
