"""The page without a browser: its figures are the object's, and hostile texts are texts."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from markupsafe import Markup

from cdcca_cli.reporting import figures, plain
from cdcca_cli.reporting.page import render
from tests.reporting.conftest import HOSTILE

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements, attributes and texts of a page, and whether its elements are nested soundly."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.numbers: dict[str, list[str]] = {}  # of `<data>`, by the last heading's id
        self.headings: list[str] = []
        self._open: list[str] = []
        self._section = ""
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        found = dict(attrs)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(tag)
            self._section = found.get("id") or self._section
        if tag == "data":
            self.numbers.setdefault(self._section, []).append(found.get("value") or "")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def numbers(value: Any) -> Iterator[str]:
    """Every number in an object."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield repr(value)


@pytest.fixture(scope="module")
def text(report: dict[str, Any]) -> str:
    return render(report)


SHOWN = {
    "scores": ["scores"],
    "link": ["rounds", "link"],
    "gate": ["gate"],
    "entropy": ["entropy"],
    "maps": ["maps"],
}


@pytest.mark.parametrize("section", SHOWN)
def test_the_figures_of_a_section_are_those_of_the_object(
    section: str, report: dict[str, Any], text: str
) -> None:
    """Every number that the section's part of the object holds is there, and no other."""
    shown = Counter(Page(text).numbers[f"run1-{section}"])
    run = report["runs"][0]
    held = Counter(one for part in SHOWN[section] for one in numbers(run[part]))
    pictures = {repr(one[key][side]) for one in run["maps"] for key in ("picture", "map")
                for side in ("width", "height")}  # fmt: skip
    known = {one for one in held if section != "maps" or one not in pictures}
    assert known and known <= shown.keys() and shown.keys() <= held.keys()


def test_training_shows_each_terms_ends_and_every_verdict(
    report: dict[str, Any], text: str
) -> None:
    run = report["runs"][0]
    shown = Page(text).numbers["run1-training"]
    for one in run["training"]:
        for values in one["curves"].values():
            assert repr(values[0]) in shown and repr(values[-1]) in shown
    kept = ("before", "after", "gain", "low", "high", "drift_after", "questions")
    assert {repr(one[name]) for one in run["teaching"] for name in kept} <= set(shown)


def test_words_of_examples_are_there(report: dict[str, Any], text: str) -> None:
    words = "\n".join(Page(text).texts)
    for one in report["runs"][0]["examples"][0]["questions"]:
        for said in (one["question"], one["answer_before"], one["answer_after"], *one["right"]):
            assert said in words


def test_charts_say_what_the_object_says(report: dict[str, Any], text: str) -> None:
    """The last score of each line is in its legend, and the bytes are beside their points."""
    words = Page(text).texts
    for series in report["runs"][0]["scores"]:
        last = series["metrics"][0]["points"][-1]["value"]
        assert f"{last:.1f}  {series['name']}" in words
    assert f"{report['runs'][0]['link']['uplink_bytes']:,}" in words


def test_it_can_be_read_without_being_seen(text: str) -> None:
    """Headings in order; every picture, chart and table has its words; ids are unique."""
    page = Page(text)
    assert page.headings[0] == "h1" and page.tags["h1"] == 1
    levels = [int(tag[1]) for tag in page.headings]
    assert all(b - a <= 1 for a, b in pairwise(levels))
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    pointed = [
        one
        for _, name, value in page.attributes
        if name in ("aria-labelledby", "href")
        for one in value.removeprefix("#").split()
    ]
    assert set(pointed) <= set(ids)
    inner = {one for _, _, value in page.attributes for one in re.findall(r"url\(#(.*?)\)", value)}
    assert inner and inner <= set(ids)
    assert len(re.findall('<img [^>]*alt="[^"]+', text)) == page.tags["img"] > 0
    assert page.tags["table"] == page.tags["caption"] > 0
    assert page.tags["svg"] == page.tags["title"] - 1 == page.tags["desc"]
    assert not re.search(r"<th(?![^>]*scope=)", text.replace("<thead", ""))
    assert 'lang="en"' in text and 'name="viewport"' in text


def test_it_loads_nothing_and_runs_nothing(text: str) -> None:
    page = Page(text)
    assert not {"script", "iframe", "object", "embed", "form", "link", "base"} & page.tags.keys()
    policy = next(value for _, name, value in page.attributes if value.startswith("default-src"))
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            allowed = "data:image/jpeg;base64," if tag == "img" else "#"
            assert value.startswith(allowed), (tag, name, value[:80])
    assert "url(http" not in text and "@import" not in text


def test_hostile_texts_are_only_texts(hostile: dict[str, Any], report: dict[str, Any]) -> None:
    """As many elements of each sort as their like have with harmless words, and no others."""
    made = render(hostile)
    page, usual = Page(made), Page(render(report))
    assert page.tags.keys() <= usual.tags.keys()
    for tag in ("img", "svg", "table", "title", "style"):
        allowed = usual.tags[tag]
        assert page.tags[tag] <= allowed or tag in ("img", "svg"), tag
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    for tag, name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith("data:image/jpeg;base64," if tag == "img" else "#")
    words = " ".join(page.texts)
    assert "<script>alert(1)</script>" in words and "{{ 7*7 }}" in words and "49{%" not in words
    for char in "\x1b\u202e\u2066\0":
        assert char not in made
    assert "\\x1b[31m" in words and "\\u202e" in words
    assert any("<script>" in value for tag, name, value in page.attributes if name == "alt")
    assert re.search(r"<text[^>]*>[^<]*&lt;script&gt;", made)  # in a chart's legend


PLACES = [
    *("title", "scores.0.name", "unscored.0", "gate.0.device", "gate.0.status", "gate.0.digest"),
    *("gate.0.metric", "gate.0.reason", "gate.0.time", "teaching.0.verdict", "teaching.0.method"),
    *("training.0.method", "examples.0.name", "examples.0.questions.0.question"),
    *("examples.0.questions.0.choices.0", "examples.0.questions.0.answer_before"),
    *("examples.0.questions.0.answer_after", "examples.0.questions.0.teacher"),
    *("examples.0.questions.0.right.0", "examples.0.questions.0.frame", "maps.0.frame"),
    *("maps.0.questions.0", "digests.0.codec", "digests.0.base", "sources.frames"),
    *("settings.distill.method", "versions.cdcca"),
]


@pytest.mark.parametrize("place", PLACES)
def test_each_place_that_shows_a_text_escapes_it(
    place: str, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if it had not been made plain before. Charts: the test above."""
    monkeypatch.setattr(figures, "render", lambda chart: Markup(""))
    copy = json.loads(json.dumps(report))
    *path, last = place.split(".")
    inner = copy if place == "title" else copy["runs"][0]
    if place.startswith("unscored"):
        copy["runs"][0]["unscored"] = [""]
    for key in path:
        inner = inner[int(key) if key.isdigit() else key]
    inner[int(last) if last.isdigit() else last] = HOSTILE.replace("\x1b", "")
    made = render(copy)
    page = Page(made)
    assert "script" not in page.tags
    assert "<script>" in " ".join([*page.texts, *(value for _, _, value in page.attributes)])


def test_a_number_that_is_a_text_is_escaped(report: dict[str, Any]) -> None:
    copy = json.loads(json.dumps(report))
    copy["runs"][0]["gate"][0]["sequence"] = HOSTILE
    assert "script" not in Page(render(copy)).tags


def test_an_empty_run_says_what_would_fill_it(report: dict[str, Any]) -> None:
    """A sentence for each section, with the command that leaves its data."""
    run = report["runs"][0]
    empty = {name: type(value)() for name, value in run.items() if isinstance(value, list | dict)}
    empty |= {"name": "empty", "link": None, "entropy": None}
    page = Page(render({**report, "runs": [empty]}))
    words = " ".join(page.texts)
    for cure in ("cdcca loop --probe", "sample -o uplink.tokens", "distill --log", "apply --json"):
        assert cure in words
    for cure in ("infer -o predictions.jsonl", "--references", "sample --keep", "history.json"):
        assert cure in words
    assert page.tags["svg"] == 0


def test_a_fleet(report: dict[str, Any]) -> None:
    device = {
        "device": HOSTILE,
        "group": "day",
        "digest": "sha256:" + "a" * 64,
        "last_contact": "2026-11-28T18:40:12Z",
        "damage": None,
        "sequence": 12,
        "uplink_bytes": 1234,
        "downlink_bytes": 567,
        "last_gate": {"verdict": "refused", "sequence": 11},
        "num_refusals": 3,
        "last_refusal": {"reason": "update 11 is old", "exit_code": 79},
    }
    group = {"group": HOSTILE, "devices": 200, "sequences": {"12": 199, HOSTILE: 1}}
    group |= {"num_digests": 2, "uplink_bytes": 8, "downlink_bytes": 9, "refusals": 4}
    fleet = {"num_devices": 200, "devices": [device], "groups": [group]}
    page = Page(render({**report, "runs": [], "fleet": fleet}))
    assert {"200", "12", "1234", "567", "3", "2", "8", "9", "4"} <= set(page.numbers["fleet"])
    assert "update 11 is old" in page.texts and "script" not in page.tags


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a\nb\t c", "a b c"),
        ("\x1b[0m\u202ex\u2066\ufeff\x00", "\\x1b[0m\\u202ex\\u2066\\ufeff\\x00"),
        ("half \ud800 a character", "half \\ud800 a character"),
        ("x" * 400, "x" * 299 + "…"),
        ("👩\u200d🚒 فارسی\u200cها", "👩\u200d🚒 فارسی\u200cها"),
    ],
)
def test_texts_are_made_plain(given: str, shown: str) -> None:
    """Joiners stay: emoji and Persian need them."""
    assert plain.text(given) == shown


@pytest.mark.parametrize(
    ("given", "shown"),
    [(1.23456, 1.2346), (7, 7), (True, None), ("7", None), (10**60, None), (float("nan"), None)],
)
def test_numbers_are_finite_and_short(given: object, shown: object) -> None:
    assert plain.number(given) == shown
