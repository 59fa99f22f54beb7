"""Writes the manual pages of `cdcca` into `man/`, from the package (`reference`).

    python examples/docs/man.py

They are in the repository, because what builds the wheel has no torch to ask; the wheel installs
them into share/man/man1, where `man cdcca-apply` finds them. A test holds them to the package.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import reference
from reference import Command, Row

from cdcca_cli.main import GROUPS

FOLDER = Path(__file__).parent / "man"


def pages() -> dict[str, str]:
    """Every page by the name of its file."""
    found = {"cdcca.1": _overview()}
    for command in reference.commands():
        found[f"cdcca-{command.name}.1"] = _page(command)
    return found


def main() -> None:
    """Write the pages, and remove those of commands that are no more."""
    made = pages()
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.1"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text, encoding="ascii")


def _page(command: Command) -> str:
    lines = _head(f"cdcca-{command.name}", command.purpose)
    lines += [".SH SYNOPSIS", ".B " + _literal(command.usage)]
    lines += [".SH DESCRIPTION", *_paragraphs(command.paragraphs)]
    lines += _section("OPERANDS", command.operands)
    lines += _section("OPTIONS", command.options)
    if command.tuning:
        lines += [".SH SETTINGS", "Given as", r".B \-\-set", "NAME=VALUE, or in cdcca.toml."]
        lines += _rows(command.tuning)
    lines += [".SH EXAMPLE", *_code(command.example)]
    lines += [".SH FILES", ".TP", ".B cdcca.toml"]
    tables = " and ".join(f"[{table}]" for table in command.tables)
    lines += [_text(f"In the working folder. Options and settings are read from {tables}.")]
    lines += [".SH EXIT STATUS", "0 if it is done; the others are in", r".BR cdcca (1)."]
    (group,) = (rows for rows in GROUPS.values() if command.name in rows)
    others = [f"cdcca-{name}" for name in group if name != command.name]
    lines += [".SH SEE ALSO", *_see("cdcca", *others)]
    return "\n".join(lines) + "\n"


def _overview() -> str:
    purpose = reference.group_help().rstrip(".")
    lines = _head("cdcca", purpose[0].lower() + purpose[1:])
    lines += [".SH SYNOPSIS", r".B cdcca", "COMMAND [OPTIONS] ..."]
    lines += [".SH DESCRIPTION", *_paragraphs(_introduction())]
    for title, rows in GROUPS.items():
        lines += [f".SH {title.upper()}"]
        for name, purpose in rows.items():
            lines += [".TP", rf".BR cdcca\-{name} (1)", _text(purpose)]
    lines += [".SH EXAMPLE", *_code(_pipe())]
    config = reference.module("config")
    lines += [".SH CONFIGURATION", _text(config.title), *_docstring(config.body)]
    lines += [".SH ENVIRONMENT"]
    for name, help in _variables().items():
        lines += [".TP", ".B " + name, _text(help)]
    lines += [".SH EXIT STATUS"]
    for code, meaning, _ in reference.exit_codes():
        lines += [".TP", f".B {code}", _text(meaning)]
    lines += [".SH SEE ALSO", *_see(*(f"cdcca-{command.name}" for command in reference.commands()))]
    return "\n".join(lines) + "\n"


def _introduction() -> list[str]:
    """What the README begins with, without its title."""
    text = (reference.ROOT / "README.md").read_text(encoding="utf-8")
    first = text.split("\n\n")[1]
    return [" ".join(first.split())]


def _pipe() -> str:
    """The README's commands of one round."""
    text = (reference.ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## The pipe\n")[1].split("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[0].rstrip("\n")


def _variables() -> dict[str, str]:
    """Environment variables and the help of the options that read them."""
    found: dict[str, str] = {}
    for command in reference.commands():
        for row in command.options:
            for name in re.findall(r"env var: ([A-Z_]+)", row.limits):
                found.setdefault(name, f"{row.anchor} of {command.name}: {row.help}")
    return found


# ---------------------------------------------------------------- roff


def _head(name: str, purpose: str) -> list[str]:
    title = _literal(name.upper())
    return [
        r".\" Written by examples/docs/man.py",
        f'.TH {title} 1 "" "cdcca" "cdcca manual"',
        ".nh",
        ".ad l",
        ".SH NAME",
        rf"{_literal(name)} \- {_text(purpose)}",
    ]


def _section(title: str, rows: Iterable[Row]) -> list[str]:
    found = _rows(rows)
    return [f".SH {title}", *found] if found else []


def _rows(rows: Iterable[Row]) -> list[str]:
    lines = []
    for row in rows:
        words = f"{row.help}." + (f" [{row.limits}]" if row.limits else "")
        name = _literal(row.name).replace("|", r"|\:")  # a line may end there
        lines += [".TP", ".B " + name, _text(words)]
    return lines


def _paragraphs(texts: Iterable[str]) -> list[str]:
    return [line for text in texts for line in (".PP", _text(text))][1:]


def _docstring(body: str) -> list[str]:
    """Paragraphs, lists and indented blocks."""
    lines = []
    for block in body.split("\n\n"):
        if block.startswith("    "):
            lines += _code("\n".join(line[4:] for line in block.splitlines()))
        else:
            lines += [".PP", _text(" ".join(block.split()))]
    return lines


def _code(text: str) -> list[str]:
    return [".PP", ".nf", ".RS 4", *map(_literal, text.splitlines()), ".RE", ".fi"]


def _see(*names: str) -> list[str]:
    return [f".BR {_literal(name)} (1){',' if name != names[-1] else ''}" for name in names]


def _text(text: str) -> str:
    """Prose on one line: backticks and options become bold."""
    parts = re.split(r"(`[^`]+`|(?<![\w-])--?[a-z][\w-]*)", text)
    shown = [
        rf"\fB{_escaped(part.strip('`'))}\fR" if number % 2 else _escaped(part, is_code=False)
        for number, part in enumerate(parts)
    ]
    return _guarded("".join(shown))


def _literal(text: str) -> str:
    """Text that is typed as it is."""
    return _guarded(_escaped(text))


def _escaped(text: str, *, is_code: bool = True) -> str:
    text = text.replace("\\", r"\e")
    if is_code:
        for char, name in (("-", r"\-"), ("'", r"\(aq"), ("`", r"\(ga"), ("^", r"\(ha")):
            text = text.replace(char, name)
        text = text.replace("~", r"\(ti")
    return "".join(char if char.isascii() else rf"\[u{ord(char):04X}]" for char in text)


def _guarded(line: str) -> str:
    """A line that roff does not take for a request."""
    return rf"\&{line}" if line[:1] in (".", "'") else line


if __name__ == "__main__":
    main()
