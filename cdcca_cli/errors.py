"""One class, one exit code, one message.

Raise one of these for everything that is not a bug. The message is one line: what is wrong, where,
what was expected, what was found, and the cure. `main.py` prints it and exits.
"""

from collections.abc import Mapping
from types import MappingProxyType


class CdccaError(Exception):
    """Anything that cdcca knows how to name; raised itself only for what has no class below."""

    exit_code: int = 1
    meaning: str = "a bug in cdcca"
    report: Mapping[str, object] = MappingProxyType({})
    """What was refused, as far as it is known, for --json."""


class BelowMark(CdccaError):
    exit_code = 3
    meaning = "a score is below its mark, or a server does not act as the device was trained"


class UsageError(CdccaError):
    exit_code = 2
    meaning = "the command line is wrong, or no input was named"


class SettingError(UsageError):
    """A setting cannot have this value, alone or together with another.

    Args: name: the setting. reason: what was expected, or what it conflicts with; it names other
        settings in backticks, too. value: what was given, where that helps.
    """

    def __init__(self, name: str, reason: str, value: object = None) -> None:
        shown = "" if value is None else f" {str(value)[:80]}"
        super().__init__(f"`{name}`{shown}: {reason}")
        self.name, self.reason, self.value = name, reason, value


class BadData(CdccaError):
    exit_code = 65
    meaning = "the input is malformed, damaged or cut short"


class MissingInput(CdccaError):
    exit_code = 66
    meaning = "an input file or folder is missing or cannot be read"


class Unavailable(CdccaError):
    exit_code = 69
    meaning = "something needed is not here (CUDA, PyAV, memory)"


class CannotWrite(CdccaError):
    exit_code = 73
    meaning = "the output cannot be written (exists, disk full, not permitted)"


class NewerFormat(CdccaError):
    exit_code = 76
    meaning = "the file was made by a newer format: upgrade cdcca"


class SignatureRefused(CdccaError):
    exit_code = 77
    meaning = "not signed by enough of the keys that the device trusts"


class WrongBase(CdccaError):
    exit_code = 78
    meaning = "the update is sound, but for another base or another model"


class StaleUpdate(CdccaError):
    exit_code = 79
    meaning = "the update is older than what the device has seen, or has expired"


class MadeWorse(CdccaError):
    """report: what was measured, for --json."""

    exit_code = 80
    meaning = "the update made the device worse on its own frames, or moved it too far"

    def __init__(self, message: str, report: Mapping[str, object]) -> None:
        super().__init__(message)
        self.report = report


class NotifyFailed(CdccaError):
    """report: what the device has now, for --json."""

    exit_code = 81
    meaning = "the command after the change failed; the device is back at the overlay before"

    def __init__(self, message: str, report: Mapping[str, object]) -> None:
        super().__init__(message)
        self.report = report


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived; no Exception, like KeyboardInterrupt. Exit code 128 + signal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.exit_code = 128 + signal_number


INTERRUPTED = 130
CLOSED_PIPE = 141


def exit_codes() -> list[tuple[int, str]]:
    """Every exit code with its meaning, in order: the README's table."""
    classes: list[type[CdccaError]] = [CdccaError, *CdccaError.__subclasses__()]
    codes = {error.exit_code: error.meaning for error in classes}
    codes[0] = "done"
    codes[INTERRUPTED] = "interrupted (Ctrl-C); SIGTERM gives 143, SIGHUP 129"
    codes[CLOSED_PIPE] = "the reader of the output went away"
    return sorted(codes.items())
