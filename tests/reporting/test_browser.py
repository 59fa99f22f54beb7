"""The page in a real browser: a Chromium of this machine, without a window, driven by Playwright.

Needs the package playwright and a Chromium on the path; the tests say what they miss.
"""

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdcca_cli.reporting.page import render
from tests.reporting.test_page import SHOWN, numbers

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install playwright"
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
if CHROMIUM is None:
    pytest.skip(f"no {', '.join(NAMES)} on the path", allow_module_level=True)
LUMINANCE = """(css) => {
  const part = css.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
    .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
}"""
PHONE, DESKTOP = 360, 1280


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page that was opened from the disk, and everything that it said, asked for or began."""

    def __init__(self, chromium: Any, path: Path, width: int, scheme: str, **more: Any) -> None:
        size = {"width": width, "height": 800}
        self.context = chromium.new_context(viewport=size, color_scheme=scheme, **more)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", lambda dialog: self.faults.append(dialog.message))
        self.page.on("request", self._asked)
        self.page.goto(path.as_uri())

    def _asked(self, request: Any) -> None:
        if not request.url.startswith("data:") and not request.is_navigation_request():
            self.faults.append(request.url)

    def open_all(self) -> None:
        self.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")

    def luminance(self, selector: str, what: str) -> float:
        css = self.page.locator(selector).first.evaluate(f"one => getComputedStyle(one).{what}")
        return float(self.page.evaluate(LUMINANCE, css))


@pytest.fixture(scope="module")
def written(report: dict[str, Any], hostile: dict[str, Any], tmp_path_factory: Any) -> Path:
    """A folder with `report.html` and `hostile.html`."""
    folder = Path(tmp_path_factory.mktemp("pages"))
    for name, made in (("report", report), ("hostile", hostile)):
        (folder / f"{name}.html").write_text(render(made), encoding="utf-8")
    return folder


@pytest.fixture(params=[(PHONE, "dark"), (DESKTOP, "light")], ids=["phone, dark", "desktop, light"])
def opened(request: Any, chromium: Any, written: Path) -> Iterator[Opened]:
    width, scheme = request.param
    found = Opened(chromium, written / "report.html", width, scheme)
    yield found
    found.context.close()


@pytest.mark.parametrize("name", ["report", "hostile"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_no_error_no_request_and_no_sideways_scroll(
    name: str, width: int, chromium: Any, written: Path
) -> None:
    """With everything unfolded; tables that are too wide scroll by themselves."""
    found = Opened(chromium, written / f"{name}.html", width, "light")
    found.open_all()
    assert found.page.evaluate("document.documentElement.scrollWidth") <= width
    assert found.page.evaluate("document.scripts.length") == 0
    assert found.page.evaluate("[...document.images].every(one => one.naturalWidth > 0)")
    assert found.page.evaluate("document.images.length") > 0
    assert found.faults == []
    found.context.close()


def test_the_figures_are_the_objects(opened: Opened, report: dict[str, Any]) -> None:
    """Each section's values, and what is seen is each value rounded."""
    opened.open_all()
    run = report["runs"][0]
    for section, parts in SHOWN.items():
        where = f"section[aria-labelledby=run1-{section}] data"
        pairs = opened.page.locator(where).evaluate_all(
            "all => all.map(one => [one.getAttribute('value'), one.innerText])"
        )
        held = Counter(one for part in parts for one in numbers(run[part]))
        assert pairs and {value for value, _ in pairs} <= held.keys()
        for value, seen in pairs:
            plain = seen.replace(",", "").replace("\N{MINUS SIGN}", "-")
            places = len(plain.partition(".")[2])
            assert float(plain) == pytest.approx(float(value), abs=0.51 * 10**-places), section


def test_dark_and_light(opened: Opened) -> None:
    """Text and charts stand out from the paper by a contrast of 7 or more."""
    scheme = opened.page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    paper = opened.luminance("body", "backgroundColor")
    assert (paper < 0.05) == scheme
    for selector, what in (("body", "color"), ("svg.chart text", "fill")):
        ink = opened.luminance(selector, what)
        dark, light = sorted((ink, paper))
        assert (light + 0.05) / (dark + 0.05) >= 7, selector


def test_it_prints_on_white_paper(chromium: Any, written: Path) -> None:
    found = Opened(chromium, written / "report.html", DESKTOP, "dark")
    found.page.emulate_media(media="print")
    assert found.luminance("body", "backgroundColor") > 0.9
    assert found.page.pdf()[:5] == b"%PDF-"
    found.context.close()


def test_what_a_screen_reader_finds(opened: Opened) -> None:
    """Roles and names, as the browser computes them."""
    page = opened.page
    opened.open_all()
    assert page.get_by_role("heading", level=1).count() == 1
    for name in ("Scores by round", "Bytes up and down", "Frames that got better and worse"):
        assert page.get_by_role("heading", name=name).is_visible()
    assert page.get_by_role("img", name=re.compile("MC after each round")).count() == 1
    assert page.get_by_role("table", name=re.compile("Each score after each round")).count() == 1
    assert page.get_by_role("navigation").count() >= 1
    for image in page.get_by_role("img").all():
        assert image.evaluate("one => one.ariaLabel || one.alt || one.ariaLabelledByElements")


def test_without_scripts_it_is_the_same(chromium: Any, written: Path) -> None:
    found = Opened(chromium, written / "report.html", DESKTOP, "light", java_script_enabled=False)
    assert found.page.locator("svg.chart").count() > 0
    assert found.page.locator("details summary").first.is_visible()
    assert found.faults == []
    found.context.close()
