"""Watching a vision tower at work: where a pass begins and stops, and what its modules read.

A tower is run through `get_image_features` as transformers wrote it, whatever its embeddings,
windows and positions; hooks on its blocks are all that differs. To go on from an earlier pass, the
blocks before the first one to run hand on what they get, and that block is given the kept hidden
states: what came before it is of no consequence.

Legend: P pictures or passes of one run, N' tokens inside the tower, C channels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Blocks = Sequence[nn.Module]


class Stopped(Exception):
    """A pass was stopped at a block; nothing is wrong."""


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The tensor that a module reads, wherever its caller put it."""
    return next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))


def with_first(
    args: tuple[Any, ...], kwargs: dict[str, Any], tensor: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with another tensor in its place."""
    for place, value in enumerate(args):
        if isinstance(value, Tensor):
            return (*args[:place], tensor, *args[place + 1 :]), kwargs
    name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
    return args, kwargs | {name: tensor}


@contextmanager
def stopping(block: nn.Module, found: list[Tensor]) -> Iterator[None]:
    """Inside, a pass stops when it reaches `block`, whose input is added to `found`."""

    def stop(_module: Any, args: Any, kwargs: Any) -> None:
        found.append(first_tensor(args, kwargs))
        raise Stopped

    handle = block.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with _ignoring_stops():
            yield
    finally:
        handle.remove()


@contextmanager
def _ignoring_stops() -> Iterator[None]:
    try:
        yield
    except Stopped:
        return


@contextmanager
def resuming(blocks: Blocks, first: int, hidden_PNC: Tensor) -> Iterator[None]:
    """Inside, a pass begins at block `first` with these hidden states, in the pictures' order.

    The blocks before it are still called, because transformers counts them to number the hidden
    states, but their `forward` is replaced on the instance: a hook cannot keep a module from
    computing.
    """

    def give(_module: Any, args: Any, kwargs: Any) -> Any:
        expected = first_tensor(args, kwargs)
        return with_first(args, kwargs, hidden_PNC.to(expected).reshape(expected.shape))

    handle = blocks[first].register_forward_pre_hook(give, with_kwargs=True)
    for block in blocks[:first]:
        block.forward = lambda *args, **kwargs: first_tensor(args, kwargs)
    try:
        yield
    finally:
        handle.remove()
        for block in blocks[:first]:
            del block.forward


@contextmanager
def reading(modules: Sequence[nn.Module], found: list[list[Tensor]]) -> Iterator[None]:
    """Inside, what each module reads is added to its list in `found`, call by call."""

    def note(place: int) -> Callable[..., None]:
        return lambda _module, args, kwargs: found[place].append(first_tensor(args, kwargs))

    with ExitStack() as stack:
        for place, module in enumerate(modules):
            hook = module.register_forward_pre_hook(note(place), with_kwargs=True)
            stack.callback(hook.remove)
        yield


_DIGIT = 128
_MARKER = 64.0


@contextmanager
def numbering(module: nn.Module) -> Iterator[None]:
    """Inside, the rows of what `module` gives are their numbers, counted over all calls.

    Three channels hold the digits of a number to base 128, which every floating type holds
    exactly, the fourth a marker, the others too. `numbers` reads them.
    """
    count = 0

    def number(_module: Any, _args: Any, output: Tensor) -> Tensor:
        nonlocal count
        rows = output.numel() // output.shape[-1]
        numbers = torch.arange(count, count + rows, device=output.device)
        count += rows
        coded = torch.full((rows, output.shape[-1]), _MARKER, device=output.device)
        for place in range(3):
            coded[:, place] = numbers // _DIGIT**place % _DIGIT
        return coded.to(output.dtype).view(output.shape)

    handle = module.register_forward_hook(number)
    try:
        yield
    finally:
        handle.remove()


def numbers(coded_ND: Tensor) -> Tensor:
    """(N,) int64: the row's number; -1 for a row that is no number, such as a newline's vector."""
    coded_ND = coded_ND.float()
    digits_N3, rest = coded_ND[:, :3], coded_ND[:, 3:]
    is_coded_N = (rest == _MARKER).all(1) & (digits_N3 == digits_N3.round()).all(1)
    is_coded_N &= ((digits_N3 >= 0) & (digits_N3 < _DIGIT)).all(1)
    weights = torch.tensor([1.0, _DIGIT, _DIGIT**2], device=coded_ND.device)
    found_N = (digits_N3 * weights).sum(1).long()
    return torch.where(is_coded_N, found_N, -1)
