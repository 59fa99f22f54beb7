"""The manual pages and the site say what the package says, and every link leads somewhere."""

import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from cdcca_cli.errors import exit_codes
from cdcca_cli.main import COMMANDS, build, expanded, main
from cdcca_cli.settings import described

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "examples" / "docs"
MAN = DOCS / "man"
CURE = "run python examples/docs/man.py"
# These load something from elsewhere as soon as the page is opened.
LOADING = {
    ("script", "src"),
    ("img", "src"),
    ("iframe", "src"),
    ("link", "href"),
    ("source", "src"),
}


@pytest.fixture
def man(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    import importlib

    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module("man")


def names_of(name: str) -> set[str]:
    """What a command is given: its options, and the settings that `--set` takes."""
    command = expanded(name)
    params = build(command).commands[name].params
    options = {one for param in params for one in param.opts if one.startswith("--")}
    return options | {setting for part in command.tuned for setting in part.tuning}


# ---------------------------------------------------------------- manual pages


def test_the_manual_is_that_of_the_package(man: ModuleType) -> None:
    pages = man.pages()
    assert pages.keys() == {path.name for path in MAN.iterdir()}, CURE
    for name, text in pages.items():
        assert (MAN / name).read_text(encoding="ascii") == text, f"{name} is not current: {CURE}"


def test_the_wheel_installs_the_manual() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert shared == {MAN.relative_to(ROOT).as_posix(): "share/man/man1"}


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_a_page_is_set_without_a_warning(name: str) -> None:
    """At the width of a terminal, with every option and setting of the command in it."""
    page = MAN / (f"cdcca-{name}.1" if name else "cdcca.1")
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-P-cbou", "-rLL=78n", str(page)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and done.stderr == ""
    shown = done.stdout
    for title in ("NAME", "SYNOPSIS", "DESCRIPTION", "EXAMPLE", "EXIT STATUS", "SEE ALSO"):
        assert f"\n{title}\n" in shown
    if not name:
        assert all(f"cdcca-{command}(1)" in shown for command in COMMANDS)
        assert all(re.search(rf"^ +{code} +\S", shown, re.M) for code, _ in exit_codes())
        return
    for spelled in names_of(name):
        assert re.search(rf"(?<![\w-]){spelled}(?![\w-])", shown), spelled


@pytest.mark.parametrize("name", COMMANDS)
def test_help_points_to_the_manual_and_leaves_the_details_to_it(
    name: str, man: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    shown = capfd.readouterr().out
    assert shown.endswith(f"\n  Manual: man cdcca-{name}\n")
    short, _, long = (expanded(name).command.__doc__ or "").partition("\f")
    assert "Example:" in short
    page = " ".join((MAN / f"cdcca-{name}.1").read_text().split())
    for paragraph in filter(None, map(str.strip, long.split("\n\n"))):
        words = " ".join(paragraph.split())
        assert words[:40] not in " ".join(shown.split())
        assert man._text(words) in page


def test_roff_takes_nothing_in_a_text_for_a_request(man: ModuleType) -> None:
    assert man._text(".TH is no request") == r"\&.TH is no request"
    assert man._literal("'a\\b -c ~^`") == r"\(aqa\eb \-c \(ti\(ha\(ga"
    assert (
        man._text("`x-y` and --set, at most é") == r"\fBx\-y\fR and \fB\-\-set\fR, at most \[u00E9]"
    )


# ---------------------------------------------------------------- the site


class Page(HTMLParser):
    """Names of places in a page, and where its links lead. loads: what is fetched with it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.text = path, path.read_text(encoding="utf-8")
        self.names: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        self.names |= {known[name] for name in ("id", "name") if name in known}
        for name in ("href", "src"):
            if name in known:
                self.links.append(known[name])
                is_fetched = (tag, name) in LOADING and known.get("rel") != "canonical"
                self.loads += [known[name]] if is_fetched else []

    @property
    def content(self) -> str:
        """The text of the article, without markup."""
        article = self.text.split("<article")[1].split("</article>")[0]
        return " ".join(_unescape(re.sub(r"<[^>]*>", "", article)).split())


def _unescape(text: str) -> str:
    import html

    return html.unescape(text)


def faults(site: dict[Path, Page]) -> list[str]:
    """Links that lead nowhere, and whatever would ask the network."""
    found = []
    for path, page in site.items():
        found += [f"{path.name} loads {one}" for one in page.loads if urlsplit(one).netloc]
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if parts.scheme not in ("http", "https") or "." not in parts.netloc:
                    found.append(f"{path.name}: {link}: no address")
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if there.is_dir() or not there.exists():
                found.append(f"{path.name}: {link}: no such page")
            elif parts.fragment and there in site and parts.fragment not in site[there].names:
                found.append(f"{path.name}: {link}: no such place")
    return found


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "b.html").write_text('<h1 id="here">b</h1>')
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">1</a><a href="b.html#gone">2</a><a href="c.html">3</a>'
        '<a href="#a">4</a><a id="a" href="https://x.org">5</a><a href="https:///x">6</a>'
        '<script src="https://cdn.org/x.js"></script><img src="b.html">'
    )
    site = {path: Page(path) for path in tmp_path.iterdir()}
    assert faults(site) == [
        "a.html loads https://cdn.org/x.js",
        "a.html: b.html#gone: no such place",
        "a.html: c.html: no such page",
        "a.html: https:///x: no address",
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """The built site. Skips where it cannot be built."""
    if find_spec("mkdocs") is None or find_spec("material") is None:
        pytest.skip("needs MkDocs and its theme: pip install 'cdcca[docs]'")
    folder = tmp_path_factory.mktemp("site")
    config = str(DOCS / "mkdocs.yml")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", config, "-d", folder],
        capture_output=True,
        text=True,
        timeout=300,
        env={"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1", "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return {path.resolve(): Page(path) for path in folder.rglob("*.html") if path.stem != "404"}


def test_every_link_of_the_site_leads_somewhere_and_nothing_is_fetched(
    site: dict[Path, Page],
) -> None:
    assert len(site) > 60
    assert faults(site) == []


def page_of(site: dict[Path, Page], place: str) -> Page:
    (page,) = (page for path, page in site.items() if path.as_posix().endswith(f"/{place}.html"))
    return page


def test_everything_has_its_place_in_the_site(site: dict[Path, Page]) -> None:
    """Commands, options, settings, exit codes, formats and READMEs."""
    settings_page = page_of(site, "settings")
    for name in COMMANDS:
        command, page = expanded(name), page_of(site, f"commands/{name}")
        assert page.names >= names_of(name), name
        for part in command.parts.values():
            for setting in described(part.owner):
                assert f"{part.owner.__name__}.{setting}" in settings_page.names
        for paragraph in (command.command.__doc__ or "").replace("\f", "").split("\n\n"):
            words = " ".join(paragraph.replace("`", "").split()).removeprefix("Example: ")
            assert words in page.content, (name, words)
    codes = page_of(site, "exit-codes")
    for code, meaning in exit_codes():
        assert str(code) in codes.names and meaning in codes.content
    formats = [path.stem for path in (ROOT / "cdcca_cli" / "formats").glob("[a-z]*.py")]
    index = page_of(site, "formats/index").content
    assert all(name in index for name in formats)
    pages = {path.stem for path in site if path.parent.name == "formats"}
    assert {"shard", "update", "device", "labels", "records", "digest", "trust"} <= pages
    readmes = [path for path in ROOT.glob("examples/*/README.md") if path.parent != DOCS]
    examples = {path.stem for path in site if path.parent.name == "examples"}
    assert {path.parent.name for path in readmes} <= examples


def test_a_specification_is_in_the_site_to_the_letter(site: dict[Path, Page]) -> None:
    """Every line of a docstring that is set as it is stands in its page."""
    import ast

    for name in ("shard", "device", "update", "codebook", "labels"):
        source = (ROOT / "cdcca_cli" / "formats" / f"{name}.py").read_text(encoding="utf-8")
        content = _unescape(re.sub(r"<[^>]*>", "", page_of(site, f"formats/{name}").text))
        for line in (ast.get_docstring(ast.parse(source)) or "").splitlines():
            if line.startswith("    "):
                assert line[4:] in content, (name, line)


def test_the_pages_written_by_hand_show_options_that_exist(
    capfd: pytest.CaptureFixture[str],
) -> None:
    for page in (DOCS / "pages").glob("*.md"):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
            for words in re.findall(r"cdcca ([a-z]+)([^|\n]*)", block):
                assert_shown(*words, capfd)


def assert_shown(name: str, rest: str, capfd: Any) -> None:
    assert main([name, "--help"]) == 0
    shown = capfd.readouterr().out
    for option in re.findall(r"(?<![\w-])--?[a-z][\w-]*", rest):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", shown), (name, option)
