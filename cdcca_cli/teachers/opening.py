"""A teacher by its name: a checkpoint, an address, or a file of answers."""

from pathlib import Path
from typing import TYPE_CHECKING

from cdcca_cli.errors import BadData, UsageError
from cdcca_cli.formats import kind
from cdcca_cli.payloads.opening import CodebookOf
from cdcca_cli.teachers.labelling import Teacher
from cdcca_cli.teachers.settings import LabelSettings

if TYPE_CHECKING:
    from cdcca_cli.config import Runtime


def is_local(name: str) -> bool:
    """Whether a teacher is a checkpoint, which is loaded here."""
    return not name.startswith(("http://", "https://")) and not Path(name).is_file()


def check_not_loaded(settings: LabelSettings) -> None:
    """Refuse settings of loading where no teacher is loaded. Raises: UsageError."""
    if settings.teacher_quantize != "none" or settings.teacher_device_map is not None:
        raise UsageError(
            "`teacher_quantize` and `teacher_device_map` are for loading a teacher, and none is "
            "loaded: leave them out"
        )


def open_teacher(
    name: str, settings: LabelSettings, on: "Runtime", codebook_of: CodebookOf | None = None
) -> Teacher:
    """The teacher of this name. Args: codebook_of: of coded tokens; None: they are decoded before.

    Raises: what loading raises; UsageError for settings of a local teacher with another one.
    """
    if not is_local(name):
        check_not_loaded(settings)
        with open(name, "rb") as file:
            found = kind.describe(file.read(kind.HEAD_BYTES))
        raise BadData(
            f"{name}: expected a checkpoint, an address or a file of answers, found {found}: give "
            "labels as `labels`"
        )
    from cdcca_cli.models import load
    from cdcca_cli.teachers.local import LocalTeacher

    model = load(
        name,
        compute=on.compute,
        dtype=on.dtype,
        quantize=settings.teacher_quantize,
        device_map=settings.teacher_device_map,
    )
    return LocalTeacher(model, settings, codebook_of)
