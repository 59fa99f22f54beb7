"""`cdcca.toml` in the working folder, and the folders and hardware that a command works with.

    device = "device"              # for every command that has this option
    student = "mirror"
    teacher = "Salesforce/instructblip-vicuna-13b"

    [distill]                      # a table for each command
    epochs = 5                     # any of its options
    kl_weight = 0.5                # any setting that its --set takes

Names are those of the options, with underscores. `loop` reads [sample], [distill] and [compress]
too. A folder is looked for on the command line, in an environment variable (`CDCCA_DEVICE`,
`CDCCA_STUDENT`, `CDCCA_TEACHER`), in the command's table, and at the top of cdcca.toml; else the
shipped pair is used, with a message on stderr.
"""

import atexit
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdcca_cli import files, remote, streams
from cdcca_cli.errors import MissingInput, SettingError, UsageError
from cdcca_cli.settings import check, no_such, setting

if TYPE_CHECKING:
    from cdcca_cli.formats.device import Device

TOML = "cdcca.toml"
FOLDERS = ("device", "student", "teacher")
SHIPPED_STUDENT = "shipped:student"
SHIPPED_TEACHER = "shipped:teacher"
_MOST_BYTES = 1 << 14  # the parser takes quadratic time for dotted keys


@dataclass(frozen=True)
class Runtime:
    """The hardware and number format that a model is computed with."""

    compute: str = setting("auto", "Hardware to compute on", choices=("auto", "cpu", "cuda", "mps"))
    dtype: str = setting(
        "auto",
        "Number format to compute in",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    threads: int | None = setting(None, "Number of CPU threads", at_least=1, usually="all cores")

    def __post_init__(self) -> None:
        check(self)

    def set_threads(self) -> None:
        """Set the number of threads of torch."""
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)


@dataclass(frozen=True)
class Toml:
    """cdcca.toml. top: the folders. tables: by command. lines: by table and key, from 1."""

    top: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    lines: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def refusal(self, table: str, name: str, reason: str, value: object = None) -> UsageError:
        """The error for a name or a value; table "" means the top of the file."""
        line = self.lines.get((table, name)) or self.lines.get((table, ""))
        place = f"{TOML}:{line}" if line else TOML
        found = "" if value is None else f", found {str(as_text(value))[:80]!r}"
        where = (f"[{table}] " if table else "") + (f"{name}: " if name else "")
        return UsageError(f"{place}: {where}{reason}{found}")

    def check_names(self, table: str, names: Collection[str]) -> None:
        """Raises: UsageError for a key that is not one of `names`, or has no value."""
        for name, value in self.tables.get(table, {}).items():
            if name not in names:
                raise self.refusal(table, name, no_such("setting", name, names))
            if value == "" or isinstance(value, dict):
                raise self.refusal(table, name, "expected a value", value)


def as_text(value: object) -> str:
    """A value of cdcca.toml as it is written on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(as_text, value)) if isinstance(value, list) else str(value)


def read(commands: Collection[str]) -> Toml:
    """The working folder's cdcca.toml, empty if missing; `commands` are the tables allowed.

    Raises: MissingInput if it cannot be read, UsageError if its content is wrong.
    """
    import tomllib

    try:
        with open(TOML, "rb") as source:
            data = source.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return Toml()
    except OSError as error:
        raise MissingInput(files.reason(TOML, error)) from None
    if len(data) > _MOST_BYTES:
        raise UsageError(f"{TOML}: expected at most {_MOST_BYTES:,} bytes")
    try:
        text = data.decode()
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        words = "nested too deep" if isinstance(error, RecursionError) else str(error)
        at = re.search(r" \(at line (\d+), column \d+\)$", words)
        place = f"{TOML}:{at[1]}" if at else TOML
        raise UsageError(f"{place}: not valid TOML: {words[: at.start() if at else 200]}") from None
    tables = {name: value for name, value in content.items() if isinstance(value, dict)}
    top = {name: value for name, value in content.items() if name not in tables}
    toml = Toml(top, tables, _lines(text))
    for name in tables:
        if name not in commands:
            raise toml.refusal(name, "", no_such("table", name, commands))
    for name, value in top.items():
        if name not in FOLDERS:
            known = [*FOLDERS, *(f"[{command}]" for command in commands)]
            raise toml.refusal("", name, no_such("setting", name, known))
        if not isinstance(value, str) or not value:
            raise toml.refusal("", name, "expected a path in quotes", value)
    return toml


_current = Toml()


def use(toml: Toml) -> None:
    """Set what `current` returns."""
    global _current
    _current = toml


def current() -> Toml:
    """The file that `main` has read."""
    return _current


def _lines(text: str) -> dict[tuple[str, str], int]:
    """The line of each table and key, from 1."""
    found: dict[tuple[str, str], int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*[\"']?([\w-]+)[\"']?\s*\]", line):
            table = header[1]
            found.setdefault((table, ""), number)
        elif key := re.match(r"\s*[\"']?([\w-]+)[\"']?\s*=", line):
            found.setdefault((table, key[1]), number)
    return found


def device(option: str | None, role: str = "device") -> "Device":
    """The device folder named by the option or the top of cdcca.toml, under the key `role`.

    If neither names one, a new one of the shipped student, removed at exit.
    """
    from cdcca_cli.formats.device import Device

    named = option or _current.top.get(role)
    if named is not None:
        if remote.is_address(named):
            raise SettingError(role, remote.NOT_HERE, named)
        return Device.open(Path(named))
    streams.message(f"no {role} folder named: using the shipped student")
    import shutil
    import tempfile

    from cdcca_cli.models.initial import create_device

    folder = Path(tempfile.mkdtemp(prefix="cdcca-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return create_device(folder / role, SHIPPED_STUDENT)


def named_teacher(option: str | None) -> str | None:
    """The teacher that the option, CDCCA_TEACHER or cdcca.toml names, in this order."""
    return option or os.environ.get("CDCCA_TEACHER") or _current.top.get("teacher")


def teacher(option: str | None) -> str:
    """The teacher's checkpoint: a folder, a hub id, or the shipped one."""
    named = named_teacher(option)
    if named is not None:
        return named
    streams.message("no teacher named: using the shipped teacher")
    return SHIPPED_TEACHER
