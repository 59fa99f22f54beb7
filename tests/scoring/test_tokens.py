"""The Python tokenizer against published cases, and against the jar where Java is."""

import json
import shutil
import subprocess
from importlib import util
from pathlib import Path

import pytest

from cdcca_cli.scoring.tokens import PUNCTUATION, tokenize

DATA = Path(__file__).parents[3] / "shared" / "data" / "coco"


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        # DEFINITIONS 10
        ("It isn't red.", "it is n't red"),
        ("It's red", "it 's red"),
        ("the U.S. flag", "the u.s. flag"),
        ("-LRB- x", "-lrb- x"),
        ('A "stop" sign; one, two: -- a - b... ok?!', "a stop sign one two a b ok"),
        # Penn Treebank conventions
        ("A cannot-do man can't", "a cannot-do man ca n't"),
        ("we cannot go", "we can not go"),
        ("a t-shirt and 22 3/4 inches at 11:44", "a t-shirt and 22 3/4 inches at 11:44"),
        ("the dogs' bowl (red)", "the dogs bowl -lrb- red -rrb-"),
        ("a tub/shower combination.", "a tub/shower combination"),
        ("It’s a “stop” sign", "it 's a stop sign"),
        ("1,000 people\non a hill", "1,000 people on a hill"),
        ("", ""),
        (" . ", ""),
    ],
)
def test_cases(caption: str, tokens: str) -> None:
    assert tokenize(caption) == tokens


def test_tokens_are_never_punctuation_nor_spaces() -> None:
    text = " ".join(chr(code) for code in range(1, 0x3000) if not 0xD800 <= code < 0xE000)
    words = tokenize(text + " 'tis d'art a.b.c... --- x' ''y'' ``").split(" ")
    assert "" not in words and not PUNCTUATION & set(words)


@pytest.mark.parametrize(
    "text", ["a", "a-", "1,", "a.", "a'", "a+", "don't ", "a/", "'", "é", "\0"]
)
def test_ten_thousand_characters_take_no_time(text: str) -> None:
    """A backtracking pattern would take minutes (or for ever), not a fraction of a second."""
    import time

    begin = time.process_time()
    tokenize(text * (10_000 // len(text)))
    assert time.process_time() - begin < 5


def test_equal_to_the_jar_on_coco_val2017(tmp_path: Path) -> None:
    """All 25,014 human captions and the 5,989 of two systems, as coco-caption tokenises them."""
    spec = util.find_spec("pycocoevalcap.tokenizer.ptbtokenizer")
    if shutil.which("java") is None or spec is None or spec.origin is None:
        pytest.skip("no Java here to compare with")
    if not DATA.is_dir():
        pytest.skip("the real captions are not beside the project")
    captions = [
        entry["caption"].replace("\n", " ")
        for entry in [
            *json.loads((DATA / "captions_val2017.json").read_text())["annotations"],
            *json.loads((DATA / "ruizewang_fakecap_val2017.json").read_text()),
            *json.loads((DATA / "tylin_fakecap_val2014.json").read_text()),
        ]
    ]
    assert len(captions) == 25_014 + 4_989 + 1_000
    (tmp_path / "captions").write_text("\n".join(captions), "utf-8")
    jar = Path(spec.origin).parent / "stanford-corenlp-3.4.1.jar"
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", str(tmp_path / "captions")]
    java = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\n")
    different = [
        (caption, tokenize(caption), line)
        for caption, line in zip(captions, java, strict=False)
        if tokenize(caption).split()
        != " ".join(word for word in line.split(" ") if word not in PUNCTUATION).split()
    ]
    assert different == []
