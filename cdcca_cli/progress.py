"""Progress bars on stderr, shown on a terminal only and not with --quiet.

Elsewhere these functions show nothing; `streams.end_stage` writes one line at the end instead.
"""

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

from cdcca_cli import streams

T = TypeVar("T")


def _watched() -> bool:
    return streams.is_terminal("stderr") and not streams.is_quiet()


def _columns() -> tuple[Any, ...]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    words = TextColumn("{task.description}", markup=False)
    return words, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()


def track(items: Iterable[T], total: int | None = None, description: str = "") -> Iterator[T]:
    """Yield the items, with a bar on a watched terminal; `total` defaults to len(items)."""
    if not _watched():
        yield from items
        return
    from rich.console import Console
    from rich.progress import Progress

    if total is None and isinstance(items, Sized):
        total = len(items)
    console = Console(stderr=True)
    with Progress(*_columns(), console=console, transient=True) as bar:
        yield from bar.track(items, total=total, description=description)


@contextmanager
def steps(total: int, done: int = 0) -> Iterator[Callable[[str], None]]:
    """Yield a function to call after each step, with the text to show beside the bar.

    Args: total: number of steps. done: number of steps before this run.
    """
    if not _watched():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(*_columns(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda words: bar.update(task, advance=1, description=words)


@contextmanager
def stage(description: str) -> Iterator[None]:
    """Show that work without countable steps is under way."""
    if not _watched():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(description)):
        yield
