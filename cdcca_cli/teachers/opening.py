"""A teacher by its name: a checkpoint, an address, or a file of answers."""

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from cdcca_cli import remote
from cdcca_cli.errors import BadData, UsageError
from cdcca_cli.formats import kind
from cdcca_cli.payloads.opening import CodebookOf
from cdcca_cli.serving.address import Address, is_address
from cdcca_cli.skipped import Skipped
from cdcca_cli.teachers.batch import Answers
from cdcca_cli.teachers.labelling import Teacher, refusing
from cdcca_cli.teachers.settings import LabelSettings, ServerSettings

if TYPE_CHECKING:
    from cdcca_cli.config import Runtime


def check_not_loaded(settings: LabelSettings) -> None:
    """Refuse settings of loading where no teacher is loaded. Raises: UsageError."""
    if settings.teacher_quantize != "none" or settings.teacher_device_map is not None:
        raise UsageError(
            "`teacher_quantize` and `teacher_device_map` are for loading a teacher, and none is "
            "loaded: leave them out"
        )


def open_teacher(
    name: str,
    settings: LabelSettings,
    server: ServerSettings,
    on: "Runtime",
    codebook_of: CodebookOf | None = None,
    skipped: Skipped | None = None,
) -> Teacher:
    """The teacher of this name.

    Args: codebook_of: of coded tokens; None: they are decoded before. skipped: counts bad lines of
        a file of answers; None: they are errors.
    Raises: what loading raises; UsageError for settings of a local teacher with another one.
    """
    path = remote.local(name) if remote.is_file_address(name) else Path(name)
    is_file = path.is_file()
    is_served = is_address(name)
    if is_file or is_served:
        check_not_loaded(settings)
        from cdcca_cli.teachers import served

        if is_served:
            return served.ServedTeacher(Address.parse(name), server)
        file = open(path, "rb")  # noqa: SIM115 -- the teacher reads answers from it
        found = kind.describe(file.read(kind.HEAD_BYTES))
        if not _is_json_lines(file):
            file.close()
            raise BadData(
                f"{name}: expected a checkpoint, an address or a file of answers, found "
                f"{found or 'something else'}; labels are given as `labels`"
            )
        refused = refusing(skipped or Skipped(strict=True))
        assert refused is not None
        return served.AnsweredTeacher(Answers(file, name, refused), server)
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


def _is_json_lines(file: BinaryIO) -> bool:
    """Whether a file begins with a JSON object; left at its beginning."""
    file.seek(0)
    head = file.read(64)
    file.seek(0)
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"
