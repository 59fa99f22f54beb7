"""Where a checkpoint is: a folder, a hub id, or one of the shipped pair.

A folder never causes a request to the hub. Code in a checkpoint is never run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdcca_cli.errors import BadData, CdccaError, MissingInput, Unavailable, UsageError
from cdcca_cli.formats.names import CODEBOOK_FILE

SHIPPED = "shipped:"
ASSETS = Path(__file__).parent.parent / "assets"
_FILES = (".lessons", ".labels", ".tokens", ".safetensors", ".cdcca")  # never a hub id's ending


@dataclass(frozen=True)
class Source:
    """A checkpoint: the caller's name, its folder or hub id, and options of `from_pretrained`."""

    named: str
    path: str
    is_folder: bool
    options: dict[str, Any]

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Turn an exception of transformers or tokenizers into a CdccaError of one line."""
        try:
            yield
        except BaseException as error:
            # tokenizers, in Rust, raises this for some files; it is no Exception.
            if not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
                raise
            raise _failed(self, what, error) from error


def folder_of(checkpoint: str | Path) -> Path | None:
    """The folder of a checkpoint; None for a hub id. Raises: as `load`."""
    source = source_of(checkpoint, None, needs_weights=False)
    return Path(source.path) if source.is_folder else None


def source_of(
    checkpoint: str | Path, revision: str | None, *, needs_weights: bool = True
) -> Source:
    """Raises: UsageError, MissingInput for what is neither a folder with a checkpoint nor an id."""
    text = str(checkpoint)
    path = Path(text).expanduser()
    if text.startswith(SHIPPED):
        role = text.removeprefix(SHIPPED)
        if role not in ("teacher", "student"):
            raise UsageError(f"{text}: expected {SHIPPED}teacher or {SHIPPED}student")
        path = ASSETS / role
    elif not (path.exists() or isinstance(checkpoint, Path) or _looks_like_a_path(text)):
        options = {"trust_remote_code": False, "local_files_only": False, "revision": revision}
        return Source(text, text, False, options)
    _check_folder(path, text, needs_weights)
    return Source(text, str(path), True, {"trust_remote_code": False, "local_files_only": True})


def _looks_like_a_path(text: str) -> bool:
    """Whether it cannot be a hub id, which is `name` or `owner/name`."""
    if not text or text.startswith((".", "/", "~")) or text.endswith(("/", *_FILES)):
        return True
    return text.count("/") > 1


def _check_folder(path: Path, named: str, needs_weights: bool) -> None:
    if not path.exists():
        raise MissingInput(f"{named}: no such checkpoint folder")
    if not path.is_dir():
        raise UsageError(f"{named}: expected a checkpoint folder or a hub id, found a file")
    if not (path / "config.json").is_file():
        raise MissingInput(f"{named}: not a checkpoint folder: it has no config.json")
    has_weights = any(file.name != CODEBOOK_FILE for file in path.glob("*.safetensors"))
    if needs_weights and not has_weights:
        pickled = any(path.glob("*.bin"))
        raise MissingInput(
            f"{named}: the checkpoint has no weights: expected model.safetensors"
            + (", found only .bin files, which are never read: convert them" if pickled else "")
        )


def _failed(source: Source, what: str, error: BaseException) -> CdccaError:
    named, text = source.named, str(error)
    line = text.strip().splitlines()[0][:300] if text.strip() else type(error).__name__
    if isinstance(error, CdccaError):
        return error
    if isinstance(error, MemoryError) or ("memory" in text and "alloc" in text):
        return Unavailable(f"{named}: not enough memory for {what}: {line}")
    if isinstance(error, ImportError):
        return Unavailable(f"{named}: {what} needs a package that is not installed: {line}")
    if isinstance(error, OSError) and not source.is_folder:
        return Unavailable(
            f"{named}: not a folder here, and {what} cannot be fetched from the hub: {line}"
        )
    if isinstance(error, OSError):
        return MissingInput(f"{named}: {what} cannot be read: {line}")
    return BadData(f"{named}: {what} cannot be loaded: {line}")


def quiet_transformers() -> None:
    """No warnings and no progress bars of transformers and the hub's library."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
