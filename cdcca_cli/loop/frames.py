"""The shipped frames, and a copy of them. Imports nothing heavy."""

import shutil
from pathlib import Path

import cdcca_cli
from cdcca_cli.errors import CannotWrite

FRAMES = Path(cdcca_cli.__file__).parent / "assets" / "frames"


def export(folder: Path) -> None:
    """Copy the shipped frames to a new folder, as a whole or not at all. Raises: CannotWrite."""
    if folder.exists():
        raise CannotWrite(f"{folder}: exists already: name a new one")
    try:
        shutil.copytree(FRAMES, folder)
    except (OSError, KeyboardInterrupt) as error:
        shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        # copytree collects its errors as (source, target, reason).
        first = error.args[0] if error.args else ""
        reason = error.strerror or (first[0][2] if isinstance(first, list) else str(error))
        raise CannotWrite(f"{folder}: {str(reason).lower()}") from None
