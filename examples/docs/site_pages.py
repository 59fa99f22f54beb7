"""The pages of the site that are made: from the package (`reference`) and from the READMEs.

A hook of MkDocs (`mkdocs.yml`): `on_config` writes the whole navigation, `on_files` adds the pages.
"""

import posixpath
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import reference
from docstrings import code, docstring, escaped, fenced, prose, table
from mkdocs.structure.files import File
from reference import Command, Module, Row

from cdcca_cli.main import GROUPS

ROOT = reference.ROOT
READERS = {"On a device": "device.md", "In the cloud": "cloud.md", "To compare": "comparing.md"}
"""The pages that are written by hand, one for each sort of reader."""
_REFERENCED = ("config", "remote", "streams", "files", "settings", "options", "packages", "errors")
_FORMATS_OF_OTHERS = ("kind", "names", "locks", "device_files", "device_state")


def on_config(config: Any) -> Any:
    """The navigation: every page has one place in it."""
    config.nav = [
        {"Home": "index.md"},
        *({title: page} for title, page in READERS.items()),
        {
            "Commands": [
                "commands/index.md",
                *({title: [_path(name) for name in rows]} for title, rows in GROUPS.items()),
            ]
        },
        {"Settings": "settings.md"},
        {"Exit codes": "exit-codes.md"},
        {"Formats": ["formats/index.md", *(f"formats/{one.name}.md" for one in _formats())]},
        {"Examples": ["examples/index.md", *map(_page_of, _readmes())]},
        {"Modules": ["modules/index.md", *(f"modules/{name}.md" for name in reference.folders())]},
        {"Changes": "changes.md"},
    ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """The pages, and the pictures that READMEs show."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    for picture in sorted(_pictures):
        place = picture.relative_to(ROOT).as_posix()
        files.append(File.generated(config, place, abs_src_path=str(picture)))
    return files


def pages() -> dict[str, str]:
    """Every page that is made, by its path."""
    made = {
        "index.md": _readme(ROOT / "README.md"),
        "changes.md": _readme(ROOT / "CHANGELOG.md"),
        "commands/index.md": _commands(),
        "settings.md": _settings(),
        "exit-codes.md": _exit_codes(),
        "formats/index.md": _format_index(),
        "modules/index.md": _module_index(),
        "examples/index.md": _example_index(),
    }
    made |= {_path(command.name): _command(command) for command in reference.commands()}
    made |= {f"formats/{one.name}.md": _format(one) for one in _formats()}
    made |= {_page_of(path): _readme(path) for path in _readmes()}
    made |= {f"modules/{name}.md": _folder(name) for name in reference.folders()}
    return made


# ---------------------------------------------------------------- commands


def _path(name: str) -> str:
    return f"commands/{name}.md"


def _commands() -> str:
    lines = ["# Commands", "", reference.group_help(), ""]
    for title, rows in GROUPS.items():
        lines += [f"## {title}", ""]
        lines += table(
            ("command", "does"),
            ((f"[`cdcca {name}`]({name}.md)", escaped(purpose)) for name, purpose in rows.items()),
        )
    lines += ["## In common", ""]
    lines += ["The same text is in `man cdcca`, and in `man cdcca-apply` for a command.", ""]
    lines += _module_text(reference.module("config"), "Configuration", "configuration")
    lines += _module_text(reference.module("remote"), "Addresses", "addresses")
    lines += _module_text(reference.module("streams"), "Streams", "streams")
    return "\n".join(lines)


def _command(command: Command) -> str:
    lines = [f"# cdcca {command.name}", "", *fenced(command.usage, "")]
    lines += [prose(one) + "\n" for one in command.paragraphs]
    lines += fenced(command.example, "sh")
    for title, rows in (("Operands", command.operands), ("Options", command.options)):
        if rows:
            lines += [f"## {title}", "", *_rows(rows)]
    if command.tuning:
        lines += ["## Settings", "", "Given as `--set NAME=VALUE`.", "", *_rows(command.tuning)]
    tables = " and ".join(f"`[{table}]`" for table in command.tables)
    lines += ["## Elsewhere", ""]
    lines += [f"- In `cdcca.toml`, options and settings are read from {tables}."]
    lines += [f"- `man cdcca-{command.name}` is this page.", "- [Exit codes](../exit-codes.md)"]
    return "\n".join(lines) + "\n"


def _rows(rows: Iterable[Row]) -> list[str]:
    return table(
        ("name", "what it is", "default and range"),
        (
            (
                f'<a id="{row.anchor}"></a>' + code(row.name),
                escaped(row.help),
                escaped(row.limits),
            )
            for row in rows
        ),
    )


# ---------------------------------------------------------------- settings and exit codes


def _settings() -> str:
    lines = ["# Settings", ""]
    lines += [
        "Every setting is an option, or is given by `--set NAME=VALUE`; all can be set in "
        "[`cdcca.toml`](commands/index.md#configuration).",
        "",
    ]
    for group in reference.groups():
        users = ", ".join(f"[{name}](commands/{name}.md)" for name in group.users)
        lines += [f"## {group.name}", "", prose(group.summary), "", f"Used by {users}.", ""]
        spelled = next(iter(group.users.values()))
        lines += table(
            ("setting", "given by", "what it is", "default", "values", "for"),
            (
                (
                    f'<a id="{group.name}.{row.name}"></a>`{row.name}`',
                    code(spelled[row.name].removesuffix(f" {row.name}")),
                    *map(escaped, (row.help, row.default, row.allowed, row.methods)),
                )
                for row in group.rows
            ),
        )
    return "\n".join(lines)


def _exit_codes() -> str:
    lines = ["# Exit codes", "", prose(reference.module("errors").title), ""]
    lines += table(
        ("code", "means", "class"),
        (
            (f'<a id="{code}"></a>{code}', escaped(meaning), f"`{name}`" if name else "")
            for code, meaning, name in reference.exit_codes()
        ),
    )
    return "\n".join(lines)


# ---------------------------------------------------------------- formats and modules


def _formats() -> list[Module]:
    """The modules that specify something; the others say so in a line."""
    found = []
    for one in reference.modules("formats")[1:]:
        name = one.name.removeprefix("formats.")
        if one.body and name not in _FORMATS_OF_OTHERS:
            found.append(Module(name, one.title, one.body))
    return found


def _format_index() -> str:
    every = {one.name.removeprefix("formats."): one for one in reference.modules("formats")[1:]}
    own = {one.name for one in _formats()}
    lines = ["# Formats", "", prose(reference.modules("formats")[0].title), ""]
    lines += table(
        ("module", "specifies"),
        ((f"[`{name}`]({name}.md)", prose(every[name].title)) for name in every if name in own),
    )
    lines += ["The other modules of the folder read and write these:", ""]
    lines += table(
        ("module", "does"),
        ((f"`{name}`", prose(one.title)) for name, one in every.items() if name not in own),
    )
    return "\n".join(lines)


def _format(one: Module) -> str:
    known = {other.name for other in _formats()} - {one.name}

    def linked(name: str) -> str:
        return f"[`{name}`]({name}.md)" if name in known else f"`{name}`"

    lines = [f"# {one.name}", "", prose(one.title, linked), "", docstring(one.body, linked), ""]
    lines += [f"This is the docstring of `cdcca_cli/formats/{one.name}.py`."]
    return "\n".join(lines) + "\n"


def _module_index() -> str:
    lines = ["# Modules", "", "The docstrings of the package, for those who read or change it.", ""]
    lines += table(
        ("folder", "holds"),
        (
            (f"[`{name}`]({name}.md)", prose(reference.modules(name)[0].title))
            for name in reference.folders()
        ),
    )
    for name in _REFERENCED:
        one = reference.module(name)
        lines += _module_text(one, f"{name}.py", name)
    return "\n".join(lines)


def _folder(name: str) -> str:
    first, *others = reference.modules(name)
    lines = [f"# {name}", "", prose(first.title), "", docstring(first.body), ""]
    for one in others:
        lines += _module_text(one, one.name.removeprefix(f"{name}."), one.name)
    return "\n".join(lines)


def _module_text(one: Module, title: str, anchor: str) -> list[str]:
    heading = f"## {title} {{ #{anchor.replace('.', '-')} }}"
    return [heading, "", prose(one.title), "", docstring(one.body), ""]


# ---------------------------------------------------------------- READMEs


_pictures: set[Path] = set()


def _readmes() -> list[Path]:
    """The examples' pages: READMEs, and results beside them."""
    return [path for path in sorted(ROOT.glob("examples/*/*.md")) if path.parent.name != "docs"]


def _page_of(path: Path) -> str:
    """The page of a Markdown file of the repository."""
    top = {ROOT / "README.md": "index.md", ROOT / "CHANGELOG.md": "changes.md"}
    if path in top:
        return top[path]
    folder = path.parent.relative_to(ROOT).as_posix()
    return f"{folder}.md" if path.name == "README.md" else f"{folder}-{path.stem.lower()}.md"


def _readme(path: Path) -> str:
    """A README as a page: links lead to other pages and pictures, or become plain text."""
    here = posixpath.dirname(_page_of(path))

    def link(found: re.Match[str]) -> str:
        mark, words, target = found[1], found[2], found[3]
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        name, hash_, anchor = target.partition("#")
        there = (path.parent / name).resolve()
        if mark:
            _pictures.add(there)
            return f"![{words}]({posixpath.relpath(there.relative_to(ROOT).as_posix(), here)})"
        if there.suffix != ".md":
            return words
        return f"[{words}]({posixpath.relpath(_page_of(there), here)}{hash_}{anchor})"

    text = path.read_text(encoding="utf-8")
    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", link, text)


def _example_index() -> str:
    """The README's table of examples, each linked to its page."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("## Examples\n")[1].split("\n## ")[0].strip()
    own = {path.parent.name: _page_of(path) for path in _readmes() if path.name == "README.md"}

    def link(found: re.Match[str]) -> str:
        page = own.get(found[1])
        return found[0] if page is None else f"[{found[0]}]({posixpath.basename(page)})"

    linked = re.sub(r"`examples/([\w-]+)/`", link, table)
    return f"# Examples\n\n{linked}\n"
