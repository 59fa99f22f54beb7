"""The system calls by which Python changes files, so that a test can stand between.

Every function of `os` that can change a file or make its change durable is in CALLS. Files that are
read are opened in C and not seen. A test that patches them checks that nothing went by unseen.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

CALLS = ("open", "write", "fsync", "replace", "unlink", "mkdir")
UNUSED = (
    *("rename", "renames", "link", "symlink", "remove", "rmdir", "truncate", "ftruncate"),
    *("pwrite", "pwritev", "writev", "fdatasync", "sendfile", "copy_file_range", "mknod"),
)

Real = Callable[..., Any]
Between = Callable[[str, Real, tuple[Any, ...], dict[str, Any]], Any]


@contextmanager
def between(what: Between) -> Iterator[None]:
    """Call `what(name, real function, arguments, options)` in place of every call.

    One that is not in CALLS is a fault of the test, which has to learn of it.
    """
    with mock.patch.multiple(
        os,
        **{name: _through(what, name) for name in CALLS},
        **{name: _unknown(name) for name in UNUSED},
    ):
        yield


def _through(what: Between, name: str) -> Callable[..., Any]:
    real = getattr(os, name)

    def call(*arguments: Any, **options: Any) -> Any:
        return what(name, real, arguments, options)

    return call


def _unknown(name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        raise AssertionError(f"os.{name}{arguments}: these tests do not know it")

    return call


class Killed(BaseException):
    """Ends the process, as far as its files can tell: no call after it does anything."""


def killed_at(number: int, work: Callable[[], object]) -> None:
    """Do the work up to its `number`-th call, which is not made, 1 being the first; then Killed.

    Raises: Killed, unless the work has fewer calls.
    """
    count = 0

    def kill(_: str, real: Real, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        nonlocal count
        count += 1
        if count >= number:
            raise Killed
        return real(*arguments, **options)

    with between(kill):
        work()


def not_synced(name: str, real: Real, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The call itself, but for fsync, which no test can see and every disk is slow at."""
    return os.fstat(arguments[0]) and None if name == "fsync" else real(*arguments, **options)


@contextmanager
def unsynced() -> Iterator[None]:
    """Do everything but fsync."""
    with between(not_synced):
        yield
