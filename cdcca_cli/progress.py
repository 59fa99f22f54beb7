"""Progress bars on stderr, shown on a terminal only and not with --quiet."""

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from cdcca_cli import streams

T = TypeVar("T")


def _watched() -> bool:
    return streams.is_terminal("stderr") and not streams.is_quiet()


@contextmanager
def steps(
    total: int | None, done: int = 0, description: str = ""
) -> Iterator[Callable[[str], None]]:
    """Yield a function to call after each step with a text; `done`: steps before this run."""
    if not _watched():
        yield lambda _: None
        return
    from rich import progress as shown
    from rich.console import Console

    columns = (
        shown.TextColumn("{task.description}", markup=False),
        shown.BarColumn(),
        shown.MofNCompleteColumn(),
        shown.TimeRemainingColumn(),
    )
    with shown.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total, completed=done)
        yield lambda words: bar.update(task, advance=1, description=words)


def track(items: Iterable[T], total: int | None = None, description: str = "") -> Iterator[T]:
    """Yield the items, with a bar on a watched terminal; `total` defaults to len(items)."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with steps(total, description=description) as step:
        for item in items:
            yield item
            step(description)


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
