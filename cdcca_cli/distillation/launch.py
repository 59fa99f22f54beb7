"""What `cdcca distill` prepares before it trains: inputs, teacher, and the other processes."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from cdcca_cli import streams
from cdcca_cli.distillation import processes
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.errors import SettingError, UsageError

if TYPE_CHECKING:
    from cdcca_cli.formats.adaptation import Adaptation
    from cdcca_cli.formats.shard import Shard
    from cdcca_cli.models import LoadedModel


class Together:
    """Several processes of one `accelerate launch`: only the first writes and prints."""

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
        """UsageError unless there is a place where all find the teacher's labels."""
        if self.count > 1 and folder is None:
            raise UsageError(
                f"{self.count} processes share the teacher's labels in a file: give `cache` or "
                "`work`, where all of them can read it"
            )

    @contextmanager
    def output(self, path: str | None, force: bool) -> Iterator[BinaryIO]:
        """The adaptation's file; for all processes but the first, nothing."""
        if not self.is_first:
            yield io.BytesIO()
            return
        with streams.binary_output(path, "adaptation.safetensors", force=force) as out:
            yield out

    def first_only(self, path: Path | None) -> Path | None:
        """The path for the first process, None for the others."""
        return path if self.is_first else None

    def start(self, compute: str) -> None:
        """Join the others. Unavailable (69)."""
        if compute == "auto":
            import torch

            compute = "cuda" if torch.cuda.is_available() else "cpu"
        processes.start(compute)


def check(how: DistillSettings, replayed: Sequence[str]) -> None:
    """Refuse a setting of something that was not asked for. Raises: SettingError."""
    if how.bits != DistillSettings.bits and not how.rate_aware:
        raise SettingError("bits", "is what `rate_aware` steps train for: give both or neither")
    if how.replay_share != DistillSettings.replay_share and not replayed:
        raise SettingError("replay_share", "is of the frames of `replay`: name them")
    if replayed and how.method == "none":
        raise SettingError("replay", "does nothing with `method` none")


def adaptation(path: str | None) -> "Adaptation | None":
    """The adaptation to resume from."""
    if path is None:
        return None
    from cdcca_cli.formats.adaptation import read_adaptation

    with streams.binary_input(path) as source:
        return read_adaptation(source, where=streams.input_name(path))


def asks_a_teacher(named: str | None, how: DistillSettings) -> bool:
    """Whether one is named, or the method needs one."""
    return named is not None or how.needs_teacher


def labels_file(named: str | None) -> Path | None:
    """The file of labels that is named as the teacher, if one is."""
    return Path(named) if named is not None and Path(named).is_file() else None


def teacher(
    named: str | None, how: DistillSettings, compute: str, dtype: str
) -> "tuple[LoadedModel | None, DistillSettings]":
    """The teacher, and how to ask it: no model for a file of labels, and where none is named."""
    file = labels_file(named)
    quantize, device_map = how.teacher_quantize, how.teacher_device_map
    if (named is None or file is not None) and (quantize != "none" or device_map):
        raise UsageError(
            "`teacher_quantize` and `teacher_device_map` are for a teacher that is loaded: "
            "leave them out"
        )
    if named is None:
        return None, how
    if file is not None:
        if how.cache is not None or how.cache_bits is not None:
            raise SettingError(
                "teacher", "is a file of labels itself: leave out `cache` and `cache_bits`", named
            )
        return None, replace(how, cache=file)
    from cdcca_cli.models import load

    model = load(named, compute=compute, dtype=dtype, quantize=quantize, device_map=device_map)
    return model, how


def shards(paths: Sequence[str | None], sources: Sequence[BinaryIO]) -> "Iterator[Shard]":
    """The shards of several streams; one with values that are not finite is named and left out."""
    from cdcca_cli.formats.shard import read_shards

    for path, source in zip(paths, sources, strict=True):
        yield from read_shards(source, where=streams.input_name(path), refused=streams.message)
