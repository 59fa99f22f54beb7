"""Markdown of docstrings and of tables: what is no markup in a docstring is none on the site."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(cell or " " for cell in row) + " |" for row in rows]
    return [*lines, ""]


def fenced(text: str, language: str) -> list[str]:
    return [f"```{language}", text, "```", ""]


def code(text: str) -> str:
    """Text in a cell of a table that is typed as it is."""
    shown = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return (
        f"<code>{shown.replace('|', '&#124;').replace('*', '&#42;').replace('_', '&#95;')}</code>"
    )


def escaped(text: str) -> str:
    """Prose without markup, also in a cell of a table."""
    for char in "\\`*_[]<>|":
        text = text.replace(char, f"\\{char}" if char not in "<>|" else f"&#{ord(char)};")
    return text


def same(name: str) -> str:
    return f"`{name}`"


def prose(text: str, linked: Callable[[str], str] = same) -> str:
    """A docstring's paragraph: backticks, ** and options. linked: what a name becomes."""
    parts = re.split(r"(`[^`]+`|\*\*[^*]+\*\*|(?<![\w-])--[a-z][\w-]*)", text)
    shown = (_marked(part, linked) if n % 2 else escaped(part) for n, part in enumerate(parts))
    return "".join(shown)


def _marked(part: str, linked: Callable[[str], str]) -> str:
    if part.startswith("**"):
        return f"**{escaped(part.strip('*'))}**"
    return same(part) if part.startswith("--") else linked(part.strip("`"))


def docstring(body: str, linked: Callable[[str], str] = same) -> str:
    """A docstring as Markdown: paragraphs, lists with `- `, and indented blocks as they are."""
    return "\n\n".join(_blocks(body, linked))


def _blocks(body: str, linked: Callable[[str], str]) -> Iterator[str]:
    code: list[str] = []
    for block in body.split("\n\n"):
        if block.startswith("    "):
            code.append(block)
            continue
        if code:
            yield _dedented(code)
            code = []
        if block.startswith("- "):
            items = re.split(r"^- ", block, flags=re.MULTILINE)[1:]
            yield "\n".join(f"- {prose(' '.join(item.split()), linked)}" for item in items)
        else:
            yield from _mixed(block, linked)
    if code:
        yield _dedented(code)


def _mixed(block: str, linked: Callable[[str], str]) -> Iterator[str]:
    """A paragraph with indented lines right below it."""
    for is_code, lines in groupby(block.splitlines(), lambda line: line.startswith("    ")):
        text = "\n".join(lines)
        yield _dedented([text]) if is_code else prose(" ".join(text.split()), linked)


def _dedented(blocks: list[str]) -> str:
    lines = "\n\n".join(blocks).splitlines()
    return "\n".join(("```text", *(line[4:] for line in lines), "```"))
