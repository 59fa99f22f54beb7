"""One process at a time: `flock` on an open file."""

import fcntl
from typing import BinaryIO

from cdcca_cli import streams
from cdcca_cli.errors import CannotWrite


def lock(file: BinaryIO | int, where: str) -> None:
    """Wait for the lock of an open file. CannotWrite if its file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        streams.message(f"{where}: waiting for another process that is changing it")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CannotWrite(f"{where}: cannot be locked ({reason}): name another place") from None
