"""What the package says of itself, for the manual pages and the site: read from it, never written.

- commands: the docstring of each `cdcca_cli/commands/NAME.py`, and the rows of its `--help`. What
  follows a form feed in the docstring is here and not in `--help`.
- settings: the fields of the dataclasses that the commands take (`cdcca_cli.settings`).
- exit codes: the classes of `cdcca_cli/errors.py`.
- modules: docstrings, read without importing anything.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import Any

import cdcca_cli
from cdcca_cli import errors, settings
from cdcca_cli.main import COMMANDS, build, expanded
from cdcca_cli.options import Expanded

PACKAGE = Path(cdcca_cli.__file__).parent
ROOT = PACKAGE.parent
_EXAMPLE = "Example: "
_HELP = "Show this message and exit."


@dataclass(frozen=True)
class Row:
    """An operand, option or setting. limits: default, range and methods, as `--help` has them."""

    name: str
    help: str
    limits: str

    @property
    def anchor(self) -> str:
        """The name without its value: `--max-loss`, `passes`."""
        found = re.search(r"--[\w-]+", self.name) or re.search(r"\w+", self.name)
        return found[0] if found else self.name


@dataclass(frozen=True)
class Command:
    """One command. paragraphs: its description. tuning: what `--set` takes."""

    name: str
    purpose: str
    usage: str
    paragraphs: tuple[str, ...]
    example: str
    operands: tuple[Row, ...]
    options: tuple[Row, ...]
    tuning: tuple[Row, ...]
    variables: tuple[str, ...]
    tables: tuple[str, ...]

    @property
    def summary(self) -> str:
        return self.paragraphs[0]


@cache
def command(name: str) -> Command:
    """Everything about a command, in the order of its `--help`."""
    known = expanded(name)
    made = build(known).commands[name]
    context = _context(made)
    params = [one for one in made.get_params(context) if _HELP not in (one.help or "")]
    paragraphs = [" ".join(one.split()) for one in _described(known).split("\n\n")]
    (example,) = (one for one in paragraphs if one.startswith(_EXAMPLE))
    return Command(
        name,
        COMMANDS[name],
        " ".join(["cdcca", name, *made.collect_usage_pieces(context)]),
        tuple(one for one in paragraphs if one and one != example),
        example.removeprefix(_EXAMPLE),
        tuple(_row(one, context) for one in params if one.param_type_name == "argument"),
        tuple(_row(one, context) for one in params if one.param_type_name == "option"),
        tuple(_tuning(known)),
        tuple(sorted(_variables(params))),
        tuple(sorted(known.tables)),
    )


def commands() -> list[Command]:
    """All of them, in the order of `cdcca --help`."""
    return [command(name) for name in COMMANDS]


def group_help() -> str:
    """What cdcca is, in a sentence."""
    return str(build(None).help)


def _context(made: Any) -> Any:
    return made.make_context(made.name, [], resilient_parsing=True)


def _described(known: Expanded) -> str:
    return cleandoc(known.command.__doc__ or "").replace("\f", "\n\n")


def _row(param: Any, context: Any) -> Row:
    """A row of `--help`, its notes in brackets apart."""
    name, words = param.get_help_record(context)
    name = re.sub(r"<list\[(\w+)\]>", lambda found: f"<{found[1].lower()}>", name)
    found = re.match(r"(.*?)(?:  \[(.*)\])?$", words, re.S)
    assert found is not None
    return Row(name, found[1].strip(), found[2] or "")


def _tuning(known: Expanded) -> Iterator[Row]:
    for part in known.tuned:
        usual = settings.defaults(part.owner)
        for name in part.tuning:
            one = part.settings[name]
            help, _, limits = one.line(usual.get(name), with_choices=True).partition("  [")
            yield Row(name, help, limits.removesuffix("]"))


def _variables(params: list[Any]) -> set[str]:
    """The environment variables that options are read from."""
    found = set()
    for param in params:
        named = param.envvar or re.findall(r"\[env var: (\w+)\]", param.help or "")
        found |= {named} if isinstance(named, str) else {*named}
    return found


# ---------------------------------------------------------------- settings


@dataclass(frozen=True)
class Group:
    """A settings dataclass. users: the commands that take it, each with its prefix of spelling."""

    name: str
    summary: str
    users: dict[str, dict[str, str]]
    rows: tuple["SettingRow", ...]


@dataclass(frozen=True)
class SettingRow:
    name: str
    help: str
    default: str
    allowed: str  # in its unit
    methods: str


def groups() -> list[Group]:
    """The settings dataclasses of all commands, each once."""
    users: dict[type, dict[str, dict[str, str]]] = {}
    for name in COMMANDS:
        known = expanded(name)
        for part in known.parts.values():
            spelled = known.spelling()
            mine = {one: spelled[one] for one in part.settings}
            users.setdefault(part.owner, {})[name] = mine
    return [_group(owner, named) for owner, named in users.items()]


def _group(owner: type, users: dict[str, dict[str, str]]) -> Group:
    usual, rows = settings.defaults(owner), []
    for name, one in settings.described(owner).items():
        default = usual.get(name)
        is_plain = default is None or default is False or default == ()
        plain = "" if is_plain else str(default)
        is_bounded = one.choices is not None or "finite" not in one.expected()
        allowed = ", ".join(map(str, one.choices)) if one.choices else one.expected()
        rows.append(
            SettingRow(
                name,
                one.help,
                one.usually or plain,
                allowed if is_bounded else "",
                ", ".join(one.methods or ()),
            )
        )
    summary = cleandoc(owner.__doc__ or "").split("\n\n")[0]
    return Group(owner.__name__, " ".join(summary.split()), users, tuple(rows))


# ---------------------------------------------------------------- errors and modules


def exit_codes() -> list[tuple[int, str, str]]:
    """Every exit code, its meaning, and the class that has it, if any."""
    classes = {
        one.exit_code: one.__name__
        for one in (errors.CdccaError, *errors.CdccaError.__subclasses__())
    }
    return [(code, meaning, classes.get(code, "")) for code, meaning in errors.exit_codes()]


@dataclass(frozen=True)
class Module:
    """A module by its name below the package, `formats.shard`, and its docstring."""

    name: str
    title: str
    body: str


def modules(folder: str) -> list[Module]:
    """The modules of a folder of the package, the folder's own docstring first."""
    found = []
    for path in sorted((PACKAGE / folder).rglob("*.py"), key=_by_folder):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        title, _, body = text.partition("\n\n")
        name = ".".join(part for part in parts if part != "__init__")
        found.append(Module(name, " ".join(title.split()), body))
    return found


def folders() -> list[str]:
    """The folders of the package that hold modules."""
    return sorted(
        path.parent.name
        for path in PACKAGE.glob("*/__init__.py")
        if path.parent.name not in ("assets", "commands")
    )


def module(name: str) -> Module:
    """A module at the top of the package, such as `config`."""
    text = ast.get_docstring(ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))) or ""
    title, _, body = text.partition("\n\n")
    return Module(name, " ".join(title.split()), body)


def _by_folder(path: Path) -> tuple[str, bool, str]:
    return str(path.parent), path.name != "__init__.py", path.name
