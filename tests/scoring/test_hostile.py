"""Damaged annotation and prediction files through `cdcca eval`: a right score, or one line.

Each case takes a sound pair of files, damages one of them, and runs the command in this process. If
the command scores, the score must be that of a clean file with the same content: the damaged file
is read once more by Python's own json and csv and written afresh. For A-OKVQA and manifests the
score is also worked out here, from DEFINITIONS 5. If it refuses, the exit code is 65, and stderr is
one line. What a damage must not change (order, layout, keys nobody asked for) is tested to change
nothing.
"""

import codecs
import csv
import gzip
import io
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cdcca_cli.main import main

DATA = Path(__file__).parents[3] / "shared" / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the real files are not beside the project")


# ---------------------------------------------------------------- sound pairs of files


@dataclass(frozen=True)
class File:
    """A sound file: its layout (json, jsonl or csv) and content. A CSV's rows are lists of text."""

    layout: str
    content: Any

    def data(self) -> bytes:
        return dump(self.layout, self.content)


@dataclass(frozen=True)
class Pair:
    references: File
    predictions: File


def dump(layout: str, content: Any) -> bytes:
    if layout == "csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(content)
        return out.getvalue().encode("utf-8", "surrogatepass")
    if layout == "jsonl":
        return "".join(json.dumps(line) + "\n" for line in content).encode()
    return json.dumps(content).encode()


def load(layout: str, data: bytes) -> Any:
    """As Python's own readers have it; ValueError where they have nothing."""
    text = data.decode("utf-8-sig")
    if layout == "csv":
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        return [row for row in rows if row]
    if layout == "jsonl":
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    return json.loads(text)


def question(number: int, **more: object) -> dict[str, object]:
    """An A-OKVQA question; the answers of number 3 are marked as too various."""
    return {
        "split": "val",
        "image_id": 100 + number // 2,
        "question_id": f"q{number}",
        "question": f"What is number {number}?",
        "choices": ["cat", "dog", "red bus", "4"],
        "correct_choice_idx": number % 4,
        "direct_answers": ["cat"] * (number + 1) + ["dog"] * (9 - number),
        "difficult_direct_answer": number == 3,
        "rationales": ["It is."],
        **more,
    }


def annotation(number: int, **more: object) -> dict[str, object]:
    """One of VQAv2's."""
    answers = ["yes"] * number + ["no"] * (10 - number)
    return {
        "question_type": "is the",
        "multiple_choice_answer": "no",
        "answers": [
            {"answer": answer, "answer_confidence": "maybe", "answer_id": place}
            for place, answer in enumerate(answers, 1)
        ],
        "image_id": 7 + number // 2,
        "answer_type": "yes/no",
        "question_id": 700 + number,
        **more,
    }


def prediction(number: int) -> dict[str, object]:
    return {
        "v": 1,
        "id": f"m{number}",
        "image": f"{number}.jpg",
        "task": "vqa",
        "prompt": "What is it?",
        "answer": ["cat", "dog", "pup"][number % 3],
        "choice": ["cat", "dog"][number % 2],
        "choices": ["cat", "dog"],
        "choice_scores": [-1.0 - number % 2, -1.5],
        "entropy": {"mean": 0.5, "sum": 1.0, "max": 0.7, "first": 0.3},
        "token_entropies": [0.5, 0.5],
        "model": "sha256:" + "0" * 64,
        "domain": "night",
    }


def line(number: int) -> dict[str, object]:
    return {
        "id": f"m{number}",
        "image": f"{number}.jpg",
        "prompt": "What is it?",
        "choices": ["cat", "dog"],
        "correct_choice_idx": number % 2,
        "answers": ["cat"] * (number + 1) + ["dog", "pup"],
        "domain": "night" if number < 2 else "day",
        "kind": "object",
    }


CAPTIONS = ["A cat on a red mat.", "Two dogs run in the snow.", "A bus in the rain.", "One tree."]


def images(domains: list[str | None]) -> list[dict[str, object]]:
    return [
        {"id": 40 + place, "file_name": f"{place}.jpg"} | ({"domain": domain} if domain else {})
        for place, domain in enumerate(domains)
    ]


def captions() -> list[dict[str, object]]:
    return [
        {
            "image_id": 40 + place % 4,
            "id": place,
            "caption": CAPTIONS[place % 4] + " " * (place % 3),
        }
        for place in range(10)
    ]


def results() -> list[dict[str, object]]:
    return [{"image_id": 40 + place, "caption": CAPTIONS[place]} for place in range(4)]


AOKVQA = File("json", [question(number) for number in range(5)])
NUMBERS = range(5)
PAIRS = {
    "aokvqa": Pair(
        AOKVQA,
        File(
            "json",
            {f"q{n}": {"multiple_choice": "dog", "direct_answer": "cat"} for n in NUMBERS},
        ),
    ),
    "aokvqa csv": Pair(
        AOKVQA,
        File(
            "csv",
            [["question_id", "image_id", "llama_answer"]]
            + [[f"q{n}", str(100 + n // 2), ["dog", "a, b", "cat"][n % 3]] for n in NUMBERS],
        ),
    ),
    "vqa": Pair(
        File("json", {"info": {}, "annotations": [annotation(n) for n in NUMBERS]}),
        File("json", [{"question_id": 700 + n, "answer": "yes"} for n in NUMBERS]),
    ),
    "okvqa and llava": Pair(
        File(
            "json",
            {
                "annotations": [
                    annotation(n, question_type="one", answer_type="other") for n in NUMBERS
                ],
                "question_types": {"one": "Vehicles and Transportation"},
            },
        ),
        File(
            "jsonl",
            [{"question_id": 700 + n, "text": "no", "metadata": {}} for n in NUMBERS],
        ),
    ),
    "coco": Pair(
        File("json", {"images": images([None] * 4), "annotations": captions()}),
        File("json", results()),
    ),
    "nocaps": Pair(
        File(
            "json",
            {
                "licenses": [],
                "images": images(["in-domain", "near-domain", "out-domain", "near-domain"]),
                "annotations": captions(),
            },
        ),
        File("json", results()),
    ),
    "manifest": Pair(
        File("jsonl", [line(n) for n in range(4)]),
        File("jsonl", [prediction(n) for n in range(4)]),
    ),
}
REAL = ("aokvqa", "aokvqa csv", "vqa", "okvqa", "coco")


@cache
def real_pair(name: str) -> Pair:
    """A few entries of the published files; where no predictions lie beside them, one is made."""
    if name.startswith("aokvqa"):
        entries = json.loads((DATA / "aokvqa/aokvqa_v1p0_val.json").read_text())[:8]
        ids = {entry["question_id"] for entry in entries}
        folder = DATA / "aokvqa/predictions"
        if name == "aokvqa":
            whole = json.loads((folder / "heuristic_random_weighted.json").read_text())
            return Pair(File("json", entries), File("json", {q: whole[q] for q in sorted(ids)}))
        with open(sorted(folder.glob("*.csv"))[0], newline="") as file:
            header, *rows = csv.reader(file)
        return Pair(
            File("json", entries), File("csv", [header, *(row for row in rows if row[0] in ids)])
        )
    if name == "coco":
        whole = json.loads((DATA / "coco/captions_val2017.json").read_text())
        given = json.loads((DATA / "coco/ruizewang_fakecap_val2017.json").read_text())[:5]
        image_ids = {result["image_id"] for result in given}
        kept = {
            "info": whole["info"],
            "images": [image for image in whole["images"] if image["id"] in image_ids],
            "annotations": [one for one in whole["annotations"] if one["image_id"] in image_ids],
        }
        return Pair(File("json", kept), File("json", given))
    file_name = {"vqa": "vqav2_on_these_images.json", "okvqa": "okvqa_on_these_images.json"}[name]
    entries = json.loads((DATA / "coco_mini" / file_name).read_text())[:6]
    given = [{"question_id": entry["question_id"], "answer": "yes"} for entry in entries]
    return Pair(File("json", entries), File("json", given))


# ---------------------------------------------------------------- damages


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a tree, its root first."""
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(tree, dict):
        inner = tree.items()
    elif isinstance(tree, list):
        inner = enumerate(tree)
    return [path] + [one for key, value in inner for one in places(value, (*path, key))]


def put(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of the tree with another value at a path; `...` takes it out."""
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    if len(path) == 1 and value is ...:
        del copy[path[0]]
    else:
        copy[path[0]] = put(copy[path[0]], path[1:], value)
    return copy


def with_text(file: File, draw: random.Random, text: str) -> bytes:
    """JSON (or a cell) at a random place that json.dumps would not write."""
    path = draw.choice(places(file.content)[1:])
    if file.layout == "csv" and len(path) == 1:
        path = (*path, 0)
    return dump(file.layout, put(file.content, path, "@@")).replace(
        b"@@" if file.layout == "csv" else b'"@@"', text.encode()
    )


def with_value(file: File, draw: random.Random, values: list[Any]) -> bytes:
    path = draw.choice(places(file.content)[1:])
    value = draw.choice(values)
    if file.layout == "csv":
        path, value = (path if len(path) > 1 else (*path, 0)), str(value)
    return dump(file.layout, put(file.content, path, value))


def flipped(file: File, draw: random.Random) -> bytes:
    data = bytearray(file.data())
    for _ in range(draw.randint(1, 4)):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def junk(file: File, draw: random.Random) -> bytes:
    data = bytearray(file.data())
    place = draw.randrange(len(data))
    pieces = [b"", b"\0", b"\n", b"\r", b'"', b"[", b"}", b",", b"\xff", b"\xe2\x80\xa8", b"\\"]
    data[place : place + draw.randint(0, 9)] = draw.choice(pieces)
    return bytes(data)


def key_gone(file: File, draw: random.Random) -> bytes:
    return dump(file.layout, put(file.content, draw.choice(places(file.content)[1:]), ...))


def wrong_type(file: File, draw: random.Random) -> bytes:
    return with_value(file, draw, [None, True, -1, 1.5, [], {}, "", "text", [[]], {"a": {}}])


def wrong_id(file: File, draw: random.Random) -> bytes:
    """An id of another kind, in an entry or as the key of A-OKVQA's object."""
    ids = [p for p in places(file.content) if p and str(p[-1]) in ("id", "question_id", "image_id")]
    value = draw.choice([None, True, 700.0, 1e30, [700], {"id": 1}, "", "  ", "700", "q1", "\x00"])
    if file.layout == "csv" or not ids:
        return with_text(file, draw, "" if file.layout == "csv" else '"q\\u0000"')
    return dump(file.layout, put(file.content, draw.choice(ids), value))


def not_a_number(file: File, draw: random.Random) -> bytes:
    return with_text(file, draw, draw.choice(["NaN", "Infinity", "-Infinity", "1e999", "nan"]))


def huge_number(file: File, draw: random.Random) -> bytes:
    number = draw.choice(["9" * 30, "-" + "9" * 400, "1" + "0" * 5000, "1e400", "0." + "0" * 5000])
    return with_text(file, draw, number)


def nested(file: File, draw: random.Random) -> bytes:
    depth = draw.choice([30, 900, 100_000])
    opening, closing = draw.choice([("[", "]"), ('{"a":', "}")])
    return with_text(file, draw, opening * depth + "1" * (opening != "[") + closing * depth)


def key_twice(file: File, draw: random.Random) -> bytes:
    """An object with the same key twice; of a CSV, a column."""
    if file.layout == "csv":
        return dump("csv", [[*row, row[draw.randrange(len(row))]] for row in file.content])
    path = draw.choice([p for p in places(file.content) if p and isinstance(p[-1], str)])
    parent: Any = file.content
    for key in path[:-1]:
        parent = parent[key]
    value = draw.choice([parent[path[-1]], None, "text", 7])
    data = dump(file.layout, put(file.content, path[:-1], {**parent, "@@": value}))
    return data.replace(b'"@@"', json.dumps(path[-1]).encode())


def lone_surrogate(file: File, draw: random.Random) -> bytes:
    return with_text(file, draw, "\\ud800" if file.layout == "csv" else '"a\\ud800b"')


def cut(file: File, draw: random.Random) -> bytes:
    data = file.data()
    return data[: draw.randrange(len(data))]


def twice(file: File, draw: random.Random) -> bytes:
    return file.data() * 2


def blank(file: File, draw: random.Random) -> bytes:
    return draw.choice([b"", b" \n", b"\xef\xbb\xbf", b"\0" * 99, b"null", b"[]", b"{}", b'""'])


def utf16(file: File, draw: random.Random) -> bytes:
    encoding = draw.choice(["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
    return file.data().decode().encode(encoding)


def packed(file: File, draw: random.Random) -> bytes:
    return gzip.compress(file.data(), mtime=0)


DAMAGES: list[Callable[[File, random.Random], bytes]] = [
    *(flipped, junk, key_gone, wrong_type, wrong_id, not_a_number, huge_number, nested, key_twice),
    *(lone_surrogate, cut, twice, blank, utf16, packed),
]
SIDES = ("references", "predictions")
CASES = [(pair, side, damage) for damage in DAMAGES for pair in PAIRS for side in SIDES]


# ---------------------------------------------------------------- running


def run(
    folder: Path, references: Path | str, predictions: Path | str, capfd: Any
) -> tuple[int, dict[str, Any], list[str]]:
    """The exit code, the scores and the lines on stderr."""
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    capfd.readouterr()
    arguments = ["eval", str(predictions), "--references", str(references), "-o", str(report)]
    code = main(arguments)
    out, err = capfd.readouterr()
    assert out == "" and "Traceback" not in err and "a bug in cdcca" not in err, err
    scores = json.loads(report.read_text())["scores"] if code == 0 else {}
    return code, scores, err.splitlines()


def check(folder: Path, pair: Pair, side: str, data: bytes, capfd: Any) -> int:
    """Run with one file replaced by damaged bytes, and hold the outcome to what is right."""
    sound: File = getattr(pair, side)
    files = {name: folder / name for name in ("references", "predictions")}
    for name, path in files.items():
        path.write_bytes(data if name == side else getattr(pair, name).data())
    code, scores, said = run(folder, files["references"], files["predictions"], capfd)
    if code:
        newer = side == "predictions" and sound.layout == "jsonl" and b'"v"' in data
        assert code == 65 or (code == 76 and newer), said
        assert len(said) == 1 and said[0].startswith("cdcca ") and len(said[0]) < 700, said
        return code
    content = load(sound.layout, data)
    clean = dump(sound.layout, content).replace(b"Infinity", b"1e999")
    files[side].write_bytes(clean)
    assert run(folder, files["references"], files["predictions"], capfd)[:2] == (0, scores)
    both = {name: content if name == side else getattr(pair, name).content for name in files}
    for metric, value in by_hand(both["references"], both["predictions"]).items():
        assert scores[metric]["score"] == pytest.approx(value), metric
    return 0


def chosen_by(prediction: dict[str, Any]) -> str | None:
    """The choice; where there is none, the option that the model scored highest."""
    scores, choices = prediction.get("choice_scores"), prediction.get("choices")
    if prediction.get("choice") is not None or not scores or not choices:
        return prediction.get("choice")
    return str(choices[scores.index(max(scores))])


def by_hand(references: Any, predictions: Any) -> dict[str, float]:
    """MC and DA of A-OKVQA or a manifest as DEFINITIONS 5 has them; nothing for other formats.

    MC: the right choice's text. DA: min(1, matches / 3), exact texts, difficult questions left out.
    """
    if not isinstance(references, list) or not isinstance(references[0], dict):
        return {}
    if isinstance(predictions, dict):
        mine = {
            question_id: (one.get("multiple_choice"), one.get("direct_answer"))
            for question_id, one in predictions.items()
        }
    elif predictions and isinstance(predictions[0], dict) and "v" in predictions[0]:
        mine = {one["id"]: (chosen_by(one), one["answer"]) for one in predictions}
    else:
        return {}
    chosen, direct = [], []
    for one in references:
        question_id = one.get("question_id", one.get("id"))
        choice, answer = mine.get(question_id, (None, None))
        right = one.get("correct_choice_idx")
        if one.get("choices") and right is not None:
            chosen.append(float(choice == one["choices"][int(right)]))
        answers = one.get("direct_answers", one.get("answers"))
        if answers and str(one.get("difficult_direct_answer")).lower() != "true":
            direct.append(min(1.0, answers.count(answer) / 3))
    found = {"mc": chosen, "da": direct}
    given = {
        "mc": any(choice is not None for choice, _ in mine.values()),
        "da": any(answer is not None for _, answer in mine.values()),
    }
    return {
        metric: 100 * sum(values) / len(values)
        for metric, values in found.items()
        if values and given[metric]
    }


# ---------------------------------------------------------------- the tests


@pytest.mark.parametrize("name", PAIRS)
def test_sound_files_score(tmp_path: Path, name: str, capfd: Any) -> None:
    pair = PAIRS[name]
    assert check(tmp_path, pair, "predictions", pair.predictions.data(), capfd) == 0


@pytest.mark.parametrize(
    ("pair", "side", "damage"),
    CASES,
    ids=[f"{d.__name__}-{p}-{s}".replace(" ", "_") for p, s, d in CASES],
)
def test_damaged(
    tmp_path: Path,
    pair: str,
    side: str,
    damage: Callable[[File, random.Random], bytes],
    capfd: Any,
) -> None:
    draw = random.Random(f"{damage.__name__} {pair} {side}")
    data = damage(getattr(PAIRS[pair], side), draw)
    code = check(tmp_path, PAIRS[pair], side, data, capfd)
    if damage in (packed, utf16, blank):
        assert code == 65


@real
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", REAL)
def test_damaged_real_files(
    tmp_path: Path, name: str, damage: Callable[[File, random.Random], bytes], capfd: Any
) -> None:
    pair = real_pair(name)
    draw = random.Random(f"{damage.__name__} {name}")
    side = draw.choice(["references", "predictions"])
    assert check(tmp_path, pair, side, getattr(pair, side).data(), capfd) == 0
    check(tmp_path, pair, side, damage(getattr(pair, side), draw), capfd)


def shuffled(file: File, draw: random.Random) -> bytes:
    def mixed(tree: Any) -> Any:
        if isinstance(tree, dict):
            keys = draw.sample(list(tree), len(tree))
            return {key: mixed(tree[key]) for key in keys}
        return tree

    content = file.content
    if file.layout == "csv":
        return dump("csv", [content[0], *draw.sample(content[1:], len(content) - 1)])
    if isinstance(content, list):
        content = [mixed(one) for one in draw.sample(content, len(content))]
    return dump(file.layout, mixed(content))


def spread(file: File, draw: random.Random) -> bytes:
    """JSON over many lines; of lines, blank ones between them and Windows' ends."""
    if file.layout == "json":
        return json.dumps(file.content, indent=2).encode()
    return file.data().replace(b"\n", b"\r\n\r\n")


def marked(file: File, draw: random.Random) -> bytes:
    return codecs.BOM_UTF8 + file.data()


def unescaped(file: File, draw: random.Random) -> bytes:
    return file.data() + b" \n" * (file.layout != "csv") + b"\n"


def with_notes(file: File, draw: random.Random) -> bytes:
    """A key or column that nobody asked for, holding anything."""
    if file.layout == "csv":
        return dump("csv", [[*row, f"note {place}"] for place, row in enumerate(file.content)])
    note = {"note": {"a": [None, 1e300, "\ud83d\ude00"]}}
    if isinstance(file.content, list):
        return dump(file.layout, [{**entry, **note} for entry in file.content])
    if {"annotations"} & file.content.keys():
        return dump(file.layout, {**note, **file.content})
    return dump(file.layout, {key: {**entry, **note} for key, entry in file.content.items()})


def ids_as_text(file: File, draw: random.Random) -> bytes:
    """As one public copy of A-OKVQA has them; a number and its digits are one id."""
    content = file.content
    for path in places(content):
        if path and path[-1] in ("id", "image_id", "question_id") and file.layout != "csv":
            value = content
            for key in path:
                value = value[key]
            content = put(content, path, str(value))
    return dump(file.layout, content)


@pytest.mark.parametrize(
    "change",
    [shuffled, spread, marked, unescaped, with_notes, ids_as_text],
    ids=lambda change: change.__name__,
)
@pytest.mark.parametrize("name", PAIRS)
def test_what_is_no_damage_changes_nothing(
    tmp_path: Path, name: str, change: Callable[[File, random.Random], bytes], capfd: Any
) -> None:
    """Also not in the last digit: the intervals are drawn over the same units in the same order."""
    pair = PAIRS[name]
    paths = {side: tmp_path / side for side in ("references", "predictions")}
    for side, path in paths.items():
        path.write_bytes(getattr(pair, side).data())
    code, expected, _ = run(tmp_path, paths["references"], paths["predictions"], capfd)
    assert code == 0 and expected
    for side, path in paths.items():
        path.write_bytes(change(getattr(pair, side), random.Random(7)))
        found = run(tmp_path, paths["references"], paths["predictions"], capfd)
        assert found[:2] == (0, expected), side


@pytest.mark.parametrize("side", ["references", "predictions"])
@pytest.mark.parametrize("what", ["folder", "nothing", "closed pipe", "zstd"])
def test_what_is_no_file_of_that_kind(
    tmp_path: Path, side: str, what: str, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = PAIRS["aokvqa"]
    paths = {name: tmp_path / name for name in ("references", "predictions")}
    for name, path in paths.items():
        path.write_bytes(getattr(pair, name).data())
    path = paths[side]
    if what == "zstd":
        import zstandard

        path.write_bytes(zstandard.compress(path.read_bytes()))
    else:
        path.unlink()
    if what == "folder":
        path.mkdir()
    writer = None
    if what == "closed pipe":
        os.mkfifo(path)
        if side == "predictions":  # references are looked at first, and a pipe is no file
            writer = threading.Thread(target=lambda: open(path, "wb").close())
            writer.start()
    code, scores, said = run(tmp_path, paths["references"], paths["predictions"], capfd)
    if writer is not None:
        writer.join(timeout=10)
    if (side, what) == ("predictions", "zstd"):  # the only packing that is taken off
        assert code == 0 and scores
    else:
        expected = {"folder": 65 if side == "references" else 66, "nothing": 66}.get(what, 65)
        assert code == expected and len(said) == 1, said


GIGABYTE = """
import os, sys, threading
from cdcca_cli.main import main

folder = sys.argv[1]
sound = {"references": sys.argv[3], "predictions": sys.argv[4]}
heads = [b"", b"[", b'{"annotations": [', b'{"q0": "', b"[{", b'{"id": "q", "image": "a"}\\n',
         b"question_id,answer\\n", b'[{"image_id": 1, "caption": "', b'["']
count = 0
for side in sound:
    for head in heads:
        path = os.path.join(folder, "hole")
        with open(path, "wb") as file:
            file.write(head)
            file.truncate(1 << 30)
        files = {**sound, side: path}
        code = main(["eval", files["predictions"], "--references", files["references"]])
        assert code == 65, (side, head, code)
        count += 1
repeated = [b" ", b"\\n", b"[],", b"{},", b"1", b"a", b'"', b"[", b"\\xff", b"q,1\\n"]
for piece in repeated:
    for head in (b"", b"[", b'{"question_id": 1, "answer": "a"}\\n'):
        reader, writer = os.pipe()
        def fill():
            data = piece * ((1 << 20) // len(piece))
            try:
                os.write(writer, head)
                for _ in range(1024):
                    os.write(writer, data)
            except BrokenPipeError:
                pass
            os.close(writer)
        filling = threading.Thread(target=fill)
        filling.start()
        os.dup2(reader, 0)
        os.close(reader)
        code = main(["eval", "-", "--references", sound["references"]])
        assert code == 65, (piece, head, code)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        filling.join()
        count += 1
with open("/proc/self/status") as status:
    (peak,) = (line.split()[1] for line in status if line.startswith("VmHWM"))
os.write(int(sys.argv[2]), f"{count} {peak}".encode())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak of memory")
def test_a_gigabyte_of_nothing(tmp_path: Path) -> None:
    """Holes in files take no room on the disk, and pipes none; the process stays small.

    48 times a gigabyte: holes behind the beginnings of all formats on both sides, and pipes full of
    one thing. The peak, in KiB, is Linux' own; getrusage's would be that of this process, too.
    """
    pair = PAIRS["aokvqa"]
    for side in ("references", "predictions"):
        (tmp_path / side).write_bytes(getattr(pair, side).data())
    reader, writer = os.pipe()
    with os.fdopen(reader) as answer:
        done = subprocess.run(
            [sys.executable, "-c", GIGABYTE, str(tmp_path), str(writer)]
            + [str(tmp_path / side) for side in ("references", "predictions")],
            capture_output=True,
            text=True,
            pass_fds=(writer,),
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        os.close(writer)
        found = answer.read()
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 48
    count, peak = map(int, found.split())
    assert count == 48
    assert peak < 400 << 10
