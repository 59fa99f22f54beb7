"""Several processes as one: `accelerate launch` starts them, the gradients are added up here.

Each process holds the whole student, takes every n-th part of a batch, and steps by the sum of all
gradients, so all overlays stay equal. Without `accelerate launch` (no WORLD_SIZE in the
environment) there is one process, accelerate is not imported, and every function does nothing.
"""

import os
from typing import TYPE_CHECKING, Any, TypeVar

from cdcca_cli.errors import Unavailable, UsageError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

MOST_PROCESSES = 1 << 16
_state: Any = None


def announced() -> int:
    """The number of processes in the environment. Raises: UsageError if it is not a number."""
    return _variable("WORLD_SIZE", 1, 1, MOST_PROCESSES)


def announced_rank() -> int:
    """This process's number in the environment; 0 for a single one. Raises: UsageError."""
    size = announced()
    return 0 if size == 1 else _variable("RANK", 0, 0, size - 1)


def _variable(name: str, default: int, least: int, most: int) -> int:
    text = os.environ.get(name) or str(default)
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
    if not least <= number <= most:
        raise UsageError(
            f"the environment variable {name} is {text[:40]!r}: expected a whole number from "
            f"{least} to {most}: start the processes with accelerate launch, or unset it"
        )
    return number


def start(compute: str) -> None:
    """Join the other processes, if any; each has a device of its own. Raises: Unavailable."""
    global _state
    if announced() == 1 or _state is not None:
        return
    import torch
    from accelerate import PartialState

    on_cpu = compute == "cpu" or (compute == "auto" and not torch.cuda.is_available())
    try:
        _state = PartialState(cpu=on_cpu)
    except (RuntimeError, ValueError, OSError) as error:
        first = (str(error).splitlines() or ["no reason given"])[0]
        raise Unavailable(f"the other processes cannot be joined: {first}") from None


def count() -> int:
    """The number of processes that work together."""
    return 1 if _state is None else int(_state.num_processes)


def rank() -> int:
    """This process's number, from 0."""
    return 0 if _state is None else int(_state.process_index)


def is_first() -> bool:
    """Whether this process reads, writes and reports for all."""
    return rank() == 0


def wait() -> None:
    """Wait until all processes are here."""
    if _state is not None:
        _state.wait_for_everyone()


def gather(value: T) -> list[T]:
    """The values of all processes, in order, at the first of them; an empty list elsewhere."""
    if count() == 1:
        return [value]
    import torch.distributed as distributed

    gathered: list[Any] = [None] * count() if is_first() else []
    distributed.gather_object(value, gathered or None)
    return gathered


def add_up(values: "Tensor") -> None:
    """Replace a tensor by the sum of all processes' tensors."""
    if count() > 1:
        import torch.distributed as distributed

        distributed.all_reduce(values)


def broadcast(values: "Tensor") -> None:
    """Replace a tensor by the first process's."""
    if count() > 1:
        import torch.distributed as distributed

        distributed.broadcast(values, 0)
