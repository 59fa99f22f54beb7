"""`cdcca report`: a page or its object, as a whole or not at all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cdcca_cli.main import main
from tests.reporting import runs
from tests.reporting.conftest import small  # noqa: F401 (a fixture, and the parts of its report)
from tests.reporting.test_page import Page, numbers

pytest.importorskip("matplotlib", reason="matplotlib is not installed")


@pytest.fixture
def words(small: Path) -> list[str]:  # noqa: F811
    return ["report", str(small / "run"), "--references", str(small / "heldout"), "--quiet"]


def test_the_page_and_the_object_are_of_the_same_numbers(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    assert main([*words, "-o", str(page)]) == 0
    assert main([*words, "--json"]) == 0
    (run,) = json.loads(capfd.readouterr().out)["runs"]
    shown = Page(page.read_text(encoding="utf-8")).numbers["run1-scores"]
    assert set(shown) <= set(numbers(run["scores"])) and len(shown) > 10


def test_an_object_goes_to_a_file_and_a_page_to_a_pipe(
    words: list[str], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main([*words, "--json", "-o", str(tmp_path / "report.json")]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["kind"] == "report"
    assert capfdbinary.readouterr().out == b""
    assert main([*words, "-o", "-"]) == 0
    assert capfdbinary.readouterr().out.startswith(b"<!doctype html>")


def test_the_same_run_gives_the_same_page(words: list[str], tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        assert main([*words, "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_page_that_fails_leaves_the_one_before(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "report.html"
    page.write_text("before")

    def fails(report: object) -> str:
        raise MemoryError("of the test")

    monkeypatch.setattr("cdcca_cli.reporting.page.render", fails)
    assert main([*words, "-o", str(page)]) == 69
    assert page.read_text() == "before" and [*tmp_path.iterdir()] == [page]


def test_a_page_that_cannot_be_written_is_refused_before_the_work(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gathers(*_: object) -> None:
        pytest.fail("it began to read")

    monkeypatch.setattr("cdcca_cli.reporting.gather.gather", gathers)
    assert main([*words, "-o", str(tmp_path / "nosuch" / "report.html")]) == 73


def test_a_damaged_file_is_named_and_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = runs.run(tmp_path / "run")
    (run / "round-1" / "update.cdcca").write_bytes(b"damaged")
    assert main(["report", str(run), "-o", str(tmp_path / "report.html")]) == 0
    said = capfd.readouterr().err
    assert f"left out: {run}/round-1/update.cdcca" in said
    assert "2 rounds shown, 1 file left out" in said
    assert "round-1/update.cdcca" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("high", [None, 1e16])
def test_an_interval_without_an_end_stops_no_page(high: float | None, tmp_path: Path) -> None:
    run = runs.run(tmp_path / "run", rounds=1)
    history = json.loads((run / "history.json").read_text())
    history["scores"]["heldout"][0]["mc"]["high"] = high
    (run / "history.json").write_text(json.dumps(history))
    assert main(["report", str(run), "-o", str(tmp_path / "report.html")]) == 0


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--examples", "201"], 2, "--examples 201: expected 0 to 200"),
        (["--references", "nowhere/"], 66, "nowhere"),
        (["-o", "nowhere/report.html"], 73, "there is no folder"),
    ],
)
def test_what_is_refused(
    more: list[str], code: int, said: str, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, *more]) == code
    assert said in capfd.readouterr().err


def test_a_folder_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "nowhere", "-o", "x.html"]) == 66
    assert "nowhere: no such file or folder" in capfd.readouterr().err


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_without_a_package_it_says_which(missing: str, words: list[str], tmp_path: Path) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; from cdcca_cli.main import main; "
    program += f"sys.exit(main({[*words, '-o', str(tmp_path / 'report.html')]!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 69, done.stderr
    assert missing in done.stderr and "pip install" in done.stderr
    assert not (tmp_path / "report.html").exists()
