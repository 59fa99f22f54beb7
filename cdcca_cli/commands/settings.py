"""Where the folders of a command come from, and what it computes on.

A folder option is looked for in this order: the command line, an environment variable,
`cdcca.toml` in the working folder, and last the shipped pair, which is said on stderr.

| option      | variable        | key in cdcca.toml | is                              |
|-------------|-----------------|-------------------|---------------------------------|
| `--device`  | `CDCCA_DEVICE`  | `device`          | a device folder                 |
| `--student` | `CDCCA_STUDENT` | `student`         | a device folder, the mirror     |
| `--teacher` | `CDCCA_TEACHER` | `teacher`         | a checkpoint folder or a hub id |

Does not read the device folder's own settings (`formats.device`) nor load any model, but for
the shipped student, whose first overlay has to be drawn from its seed.
"""

import atexit
import os
import shutil
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdcca_cli import streams
from cdcca_cli.errors import SettingError, UsageError

if TYPE_CHECKING:
    from cdcca_cli.formats.device import Device

SHIPPED_STUDENT = "shipped:student"
SHIPPED_TEACHER = "shipped:teacher"
TOML = "cdcca.toml"
KEYS = ("device", "student", "teacher")
COMPUTES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Runtime:
    """What a model is computed on: the arguments of `models.load`."""

    compute: str
    dtype: str


def parsed(name: str, parse: Callable[[str], Any], text: str | None) -> Any:
    """The value of an option's text; None for an option that was not given. SettingError."""
    try:
        return None if text is None else parse(text)
    except ValueError as error:
        raise SettingError(name, str(error), text) from None


def runtime(compute: str, dtype: str, threads: int | None) -> Runtime:
    """Check `--compute` and `--dtype`, and set torch's number of threads."""
    if compute not in COMPUTES:
        raise UsageError(f"--compute {compute}: expected one of {', '.join(COMPUTES)}")
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: expected one of {', '.join(DTYPES)}")
    if threads is not None:
        if threads < 1:
            raise UsageError(f"--threads {threads}: expected 1 or more")
        import torch

        torch.set_num_threads(threads)
    return Runtime(compute, dtype)


def device(option: str | None, role: str = "device") -> "Device":
    """The device folder that `option`, the environment or cdcca.toml names.

    Args:
        option: what the command line said, or None.
        role: `device` or `student`: the variable and the key that are looked up.
    Returns: the open folder; the shipped student's, in a temporary folder, when none is named.
    """
    from cdcca_cli.formats.device import Device

    named = _named(option, role)
    if named is not None:
        return Device.open(Path(named))
    streams.message(f"no {role} folder named: using the shipped student")
    from cdcca_cli.models.initial import create_device

    folder = Path(tempfile.mkdtemp(prefix="cdcca-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return create_device(folder / role, SHIPPED_STUDENT)


def teacher(option: str | None) -> str:
    """The teacher's checkpoint: a folder, a hub id, or the shipped one."""
    named = _named(option, "teacher")
    if named is not None:
        return named
    streams.message("no teacher named: using the shipped teacher")
    return SHIPPED_TEACHER


def _named(option: str | None, role: str) -> str | None:
    return option or os.environ.get(f"CDCCA_{role.upper()}") or _from_toml(role)


def _from_toml(role: str) -> str | None:
    path = Path(TOML)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{TOML}: not valid TOML: {error}") from error
    if unknown := sorted(table.keys() - KEYS):
        raise UsageError(f"{TOML}: no key {unknown[0]!r}: expected {', '.join(KEYS)}")
    value = table.get(role)
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{TOML}: {role}: expected a path in quotes, found {value!r}")
    return value
