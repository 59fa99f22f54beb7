"""Many items in work at a time, their results in the order of the items."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from cdcca_cli.errors import BadData

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 8
"""Items that may be ahead of the one whose result is next, for each worker."""


@dataclass(eq=False)
class _Slot(Generic[T, R]):
    item: T
    is_done: threading.Event = field(default_factory=threading.Event)
    result: R | None = None
    error: BaseException | None = None

    def outcome(self) -> tuple[T, R | BadData]:
        """Wait for it. Raises: what the work raised, but for BadData."""
        self.is_done.wait()
        if isinstance(self.error, BadData):
            return self.item, self.error
        if self.error is not None:
            raise self.error
        return self.item, self.result  # type: ignore[return-value]


def in_order(
    work: Callable[[T], R], items: Iterable[T], num_workers: int
) -> Iterator[tuple[T, R | BadData]]:
    """Do `work` on several items at a time; yield each with its result or its BadData, in order.

    At most AHEAD * num_workers items are held. The threads do not outlive the program, so that it
    can be interrupted while they wait for a server.
    """
    todo: SimpleQueue[_Slot[T, R] | None] = SimpleQueue()
    pending: deque[_Slot[T, R]] = deque()

    def run() -> None:
        while (slot := todo.get()) is not None:
            try:
                slot.result = work(slot.item)
            except BaseException as error:  # for the one who waits
                slot.error = error
            slot.is_done.set()

    threads: list[threading.Thread] = []
    try:
        for item in items:
            slot = _Slot[T, R](item)
            pending.append(slot)
            todo.put(slot)
            if len(threads) < num_workers:
                threads.append(threading.Thread(target=run, daemon=True))
                threads[-1].start()
            while pending and (pending[0].is_done.is_set() or len(pending) >= AHEAD * num_workers):
                yield pending.popleft().outcome()
        while pending:
            yield pending.popleft().outcome()
    finally:
        with suppress(Empty):
            while True:
                todo.get_nowait()
        for _ in threads:
            todo.put(None)
