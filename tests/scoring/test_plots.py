"""Pictures of reports: whole files of each format, the numbers in them, and what is refused."""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cdcca_cli.errors import CannotWrite, Unavailable, UsageError
from cdcca_cli.scoring import plots


def entry(value: float, key: str = "score", n: int = 100) -> dict[str, Any]:
    return {key: value, "interval": [value - 4.4, value + 4.4], "n": n, "missing": 0}


def scored(value: float, key: str = "score") -> dict[str, Any]:
    groups = {
        "domains": {"fog": entry(value - 3, key), "night": entry(value + 3, key, 1234)},
        "kinds": {"colour": entry(value - 1, key), "a_kind of $very$ long name": entry(value, key)},
    }
    return {**entry(value, key), **groups}


def rounds(values: list[list[float]]) -> dict[str, Any]:
    """A matrix of rounds by two domains, as `continual` has it."""
    averages = [
        {"value": sum(row) / 2, "interval": [sum(row) / 2 - 2, sum(row) / 2 + 2]} for row in values
    ]
    return {
        "metric": "mc",
        "rounds": [
            {"round": i, "adapted_to": name}
            for i, name in zip(range(len(values)), [None, "fog", "night"], strict=False)
        ],
        "domains": ["fog", "night"],
        "matrix": [[entry(value) for value in row] for row in values],
        "averages": averages,
        "average": averages[-1],
        "left_out": {},
    }


def link(*, with_frames: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = {
        "uplink": {"stored_bytes": 1_644_854, "stored_bytes_by_file": [827_788, 817_066]},
        "downlink": {"stored_bytes": 204_719, "stored_bytes_by_file": [103_232, 101_487]},
    }
    if with_frames:
        found["sent"] = {"frames": 231, "bytes": {"raw_rgb": 6_386_688, "jpeg_q75": 508_123}}
        seen = {"frames": 231, "bytes": {"raw_rgb": 600_000, "h264_crf23": 20_345}}
        found["encoder_input"] = {"size": [96, 48], "sent": seen}
    return found


FULL = {
    "v": 1,
    "kind": "scores",
    "task": "manifest",
    "scores": {"mc": scored(76.4), "da": scored(61.2), "bleu1": scored(40)},
    "against": {"mc": scored(20.2, "difference"), "da": scored(-0.3, "difference")},
    "rounds": {"mc": rounds([[40.1, 30.2], [75.3, 41.4], [73.5, 70.6]])},
    "link": link(),
}


def words_of(report: dict[str, Any], path: Path) -> list[str]:
    """Every text of the report's SVG."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    plots.draw(report, path)
    tree = ElementTree.parse(path)
    return ["".join(node.itertext()) for node in tree.iter("{http://www.w3.org/2000/svg}text")]


def test_all_at_once_in_svg(tmp_path: Path) -> None:
    words = words_of(FULL, tmp_path / "report.svg")
    assert {"MC after each round", "73.5  fog", "70.6  night", "72.0  average"} <= set(words)
    assert {"source only", "round 1", "fog", "round 2", "night"} <= set(words)
    assert {"MC against the other predictions", "DA against the other predictions"} <= set(words)
    assert {"+20.2 (+15.8 to +24.6), n = 100", "−0.3 (−4.7 to +4.1), n = 100"} <= set(words)
    assert "+23.2 (+18.8 to +27.6), n = 1,234" in words
    assert "a_kind of $very$ long n…" in words
    assert {"uplink 1,644,854: 72.0", "downlink 204,719: 72.0"} <= set(words)
    assert {"bytes of the 231 frames sent, and over the link", "508,123", "20,345"} <= set(words)
    assert {"JPEG q75", "H.264 crf 23 at 96x48"} <= set(words)
    assert not any("BLEU" in word for word in words)  # no headline of this task


def test_bytes_without_rounds(tmp_path: Path) -> None:
    """One point a direction, and the other predictions: 76.4 - 20.2."""
    report = {name: FULL[name] for name in ("task", "scores", "against")}
    words = words_of({**report, "link": link(with_frames=False)}, tmp_path / "a.svg")
    assert {"uplink 1,644,854: 76.4", "downlink 204,719: 76.4"} <= set(words)
    assert "the other predictions 56.2" in words
    assert "bytes over the link" in words


def test_files_that_are_not_one_a_round(tmp_path: Path) -> None:
    """Bytes cannot be told apart by round: the last round's score against all of them."""
    report = {**FULL, "rounds": {"mc": rounds([[40.1, 30.2], [75.3, 41.4]])}}
    assert "uplink 1,644,854: 76.4" in words_of(report, tmp_path / "a.svg")


def test_scores_alone(tmp_path: Path) -> None:
    words = words_of({"task": "caption", "scores": {"da": scored(61.2)}}, tmp_path / "a.svg")
    assert {"DA", "61.2 (56.8 to 65.6), n = 100", "fog", "colour"} <= set(words)


def test_frames_alone(tmp_path: Path) -> None:
    raw = {"frames": 20, "bytes": {"raw_rgb": 3840, "original": 1999}}
    words = words_of({"link": {"raw": raw}}, tmp_path / "a.svg")
    assert {"bytes of the 20 frames, and over the link", "3,840", "as stored"} <= set(words)


@pytest.mark.parametrize(
    "report",
    [
        {"scores": {"mc": {"score": 0.0, "interval": None, "n": 1}}},
        {"scores": {"mc": {"score": 100.0, "interval": [100.0, 100.0], "n": 1}}},
        {"link": {"uplink": {"stored_bytes": 0, "stored_bytes_by_file": [0]}}},
        {"rounds": {"mc": {**rounds([[0.0, 0.0]])}}},
        {
            "scores": {"mc": {"score": 50.0, "interval": None, "n": 1}},
            "link": {"downlink": {"stored_bytes": 0, "stored_bytes_by_file": [0]}},
        },
    ],
    ids=["one question", "all right", "an empty stream", "source alone", "no bytes"],
)
def test_degenerate(report: dict[str, Any], tmp_path: Path) -> None:
    assert words_of(report, tmp_path / "a.svg")


def test_names_are_only_words(tmp_path: Path) -> None:
    """Never mathematics, never markup, never control characters, and no warning about a font."""
    names = ["$x", "\\frac{", "霧", "a\nb\x1b[31m\ud800", "𝔣" * 50, "<&>"]
    groups = {name: entry(1, "difference") for name in names}
    found = rounds([[40.1, 30.2], [75.3, 41.4]])
    found["domains"], found["rounds"][1]["adapted_to"] = ["_fog", names[3]], names[3]
    gains = {**entry(1, "difference"), "domains": groups}
    report = {"scores": {"mc": entry(1)}, "rounds": {"mc": found}, "against": {"mc": gains}}
    words = words_of(report, tmp_path / "a.svg")
    assert {"75.3  _fog", "41.4  a b [31m "} <= set(words)
    assert {"$x", "\\frac{", "霧", "a b [31m ", "𝔣" * 23 + "…", "<&>"} <= set(words)


def test_png_and_pdf(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    plots.draw(FULL, tmp_path / "report.PNG")
    with Image.open(tmp_path / "report.PNG") as picture:
        picture.load()
        assert picture.format == "PNG" and min(picture.size) > 900
        assert len(set(picture.convert("RGB").resize((300, 300)).tobytes())) > 50
    plots.draw({"scores": FULL["scores"]}, tmp_path / "report.pdf")
    data = (tmp_path / "report.pdf").read_bytes()
    assert data.startswith(b"%PDF-") and data.rstrip().endswith(b"%%EOF")


@pytest.mark.parametrize("form", plots.FORMATS)
def test_the_same_report_gives_the_same_bytes(form: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    report = {"scores": {"mc": scored(50)}}
    for name in ("a", "b"):
        plots.draw(report, tmp_path / f"{name}.{form}")
    assert (tmp_path / f"a.{form}").read_bytes() == (tmp_path / f"b.{form}").read_bytes()


def test_refused(tmp_path: Path) -> None:
    for name in ("report", "report.jpg", "png", ".svg", "-"):
        with pytest.raises(UsageError, match=r"\.png, \.svg or \.pdf"):
            plots.draw(FULL, name)
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    with pytest.raises(UsageError, match="this report holds nothing to draw"):
        plots.draw({"v": 1, "kind": "scores"}, tmp_path / "a.png")
    with pytest.raises(CannotWrite):
        plots.draw(FULL, tmp_path / "not" / "there.svg")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(Unavailable, match=r"pip install 'cdcca\[plot\]'"):
        plots.draw(FULL, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
