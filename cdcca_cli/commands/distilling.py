"""What `distill` needs before it makes its one call: teacher, student, shards, other processes."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from cdcca_cli import streams
from cdcca_cli.commands import settings
from cdcca_cli.distillation import processes
from cdcca_cli.distillation.settings import DEFAULTS
from cdcca_cli.errors import UsageError

if TYPE_CHECKING:
    from cdcca_cli.distillation.settings import DistillSettings
    from cdcca_cli.formats.adaptation import Adaptation
    from cdcca_cli.formats.shard import Shard
    from cdcca_cli.models import LoadedModel


class Together:
    """Several processes of one `accelerate launch`: the first of them writes and speaks."""

    def __init__(self, paths: Sequence[str | None]) -> None:
        """Args: paths: of the shards. Raises: UsageError for a pipe."""
        self.count = processes.announced()
        self.is_first = processes.announced_rank() == 0
        if self.count == 1:
            return
        if any(path in (None, "-") for path in paths):
            raise UsageError(
                f"{self.count} processes cannot share one pipe: name the shards' files"
            )
        if not self.is_first:
            streams.set_quiet(True)

    def check_folder(self, folder: Path | None) -> None:
        """UsageError unless there is a place where all find the teacher's lessons."""
        if self.count > 1 and folder is None:
            raise UsageError(
                f"{self.count} processes share the teacher's lessons in a file: give --cache or "
                "--work, where all of them can read it"
            )

    @contextmanager
    def output(self, path: str | None, force: bool) -> Iterator[BinaryIO]:
        """The adaptation's file; of all processes but the first, nothing."""
        if not self.is_first:
            yield io.BytesIO()
            return
        with streams.binary_output(path, "adaptation.safetensors", force=force) as out:
            yield out

    def first_only(self, path: Path | None) -> Path | None:
        """The path for the first process, None for the others."""
        return path if self.is_first else None

    def start(self, runtime: settings.Runtime) -> None:
        """Join the others. Unavailable (69)."""
        compute = runtime.compute
        if compute == "auto":
            import torch

            compute = "cuda" if torch.cuda.is_available() else "cpu"
        processes.start(compute)


def groups(option: str | None) -> tuple[str, ...] | None:
    """The names of `--train`; None if nothing was said."""
    if option is None:
        return None
    return tuple(name.strip() for name in option.split(",") if name.strip()) or ("",)


def adaptation(path: str | None) -> "Adaptation | None":
    """The adaptation of `--resume`."""
    if path is None:
        return None
    from cdcca_cli.formats.adaptation import read_adaptation

    with streams.binary_input(path) as source:
        return read_adaptation(source, where=streams.input_name(path))


def asks_a_teacher(option: str | None, method: str) -> bool:
    """Whether one is named, or the method needs one."""
    return option is not None or method not in DEFAULTS or DEFAULTS[method].needs_teacher


def lessons_file(option: str | None) -> Path | None:
    """The file of lessons that is named as the teacher, if one is."""
    return Path(option) if option is not None and Path(option).is_file() else None


def given(**options: Any) -> dict[str, Any]:
    """The options that were given: those that are not None."""
    return {name: value for name, value in options.items() if value is not None}


_TAUGHT = tuple(name for name, usual in DEFAULTS.items() if usual.needs_teacher)
_OF_METHODS = {
    "--repr-at": ("akd", "pkd", "cwd"),
    "--balance": _TAUGHT,
    "--tau": ("cwd",),
    "--replay": tuple(name for name in DEFAULTS if name != "none"),
    "--cotta-ema": ("cotta",),
    "--cotta-restore": ("cotta",),
    "--cotta-threshold": ("cotta",),
    "--cotta-views": ("cotta",),
}
"""Which methods an option is for, where it is not for all."""


def refuse_idle(method: str, given: Mapping[str, object]) -> None:
    """UsageError for an option that was given (is not None) and does nothing with this method."""
    for option, methods in _OF_METHODS.items():
        if given[option] is not None and method not in methods:
            raise UsageError(
                f"{option} does nothing with --method {method}: it is for {', '.join(methods)}"
            )


def teacher(
    option: str | None,
    how: "DistillSettings",
    runtime: settings.Runtime,
    quantize: str,
    device_map: str | None,
) -> "tuple[LoadedModel | None, DistillSettings]":
    """The teacher, and how to ask it: None for a file of lessons, and where nobody is asked."""
    is_asked = asks_a_teacher(option, how.method)
    named = settings.teacher(option) if is_asked else ""
    if (not is_asked or Path(named).is_file()) and (quantize != "none" or device_map):
        raise UsageError(
            "--teacher-quantize and --teacher-device-map say how to load a teacher, and none is"
        )
    if not is_asked:
        return None, how
    if Path(named).is_file():
        if how.cache is not None or how.cache_bits is not None:
            raise UsageError(
                f"--teacher {named}: is a file of lessons itself: leave --cache out, and its bits"
            )
        return None, replace(how, cache=Path(named))
    from cdcca_cli.models import load

    return load(
        named,
        compute=runtime.compute,
        dtype=runtime.dtype,
        quantize=quantize,
        device_map=device_map,
    ), how


def shards(paths: Sequence[str | None], sources: Sequence[BinaryIO]) -> "Iterator[Shard]":
    """The shards of several streams; one with values that are no numbers is said and left out."""
    from cdcca_cli.formats.shard import read_shards

    for path, source in zip(paths, sources, strict=True):
        yield from read_shards(source, where=streams.input_name(path), refused=streams.message)
