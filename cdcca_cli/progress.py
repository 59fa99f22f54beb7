"""Progress on stderr, only where a person is watching: a terminal, and not --quiet.

This module measures nothing and keeps no state; without a watcher both functions do nothing.
"""

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from cdcca_cli import streams

T = TypeVar("T")


def _watched() -> bool:
    return streams.is_terminal("stderr") and not streams.is_quiet()


def track(items: Iterable[T], total: int | None = None, description: str = "") -> Iterator[T]:
    """Yield the items, with a bar on a watched terminal; `total` defaults to len(items)."""
    if not _watched():
        yield from items
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    if total is None and isinstance(items, Sized):
        total = len(items)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True) as bar:
        yield from bar.track(items, total=total, description=description)


@contextmanager
def stage(description: str) -> Iterator[None]:
    """Show that something without countable steps is under way."""
    if not _watched():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(description)):
        yield
