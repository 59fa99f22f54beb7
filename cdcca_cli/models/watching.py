"""Watching a vision tower at work: where a pass begins and stops, and what its modules read.

A tower is run through `get_image_features` as transformers wrote it, whatever its embeddings,
windows and positions; hooks on its blocks are all that differs. To go on from an earlier pass, the
blocks before the first one to run hand on what they get, and that block is given the kept hidden
states: what came before it is of no consequence.

Legend: P pictures or passes of one run, N' tokens inside the tower, C channels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from cdcca_cli.errors import BadData


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
        with suppress(Stopped):
            yield
    finally:
        handle.remove()


@contextmanager
def resuming(
    blocks: Sequence[nn.Module], first: int, hidden: Tensor, passes: int, *, as_batch: bool = False
) -> Iterator[None]:
    """Inside, `passes` equal passes begin at block `first` > 0 with these hidden states of one.

    `as_batch`: the pass is of one picture, and goes on with a batch of them.

    The blocks before it are still called, because transformers counts them to number the hidden
    states, but their `forward` is replaced on the instance: a hook cannot keep a module from
    computing. They hand on what they get, for modules between blocks (MiniCPM-V's merger); but the
    last one of a tower of convolutions gives the hidden states, at which the tower may look back.
    """

    def repeated(given: Tensor) -> Tensor:
        if as_batch:
            return torch.cat([hidden.to(given)] * passes)
        along = 0 if len(given) % passes == 0 else 1  # packed pictures lie along one sequence
        made = torch.cat([hidden.to(given)] * passes, along)
        # With the strides of what it replaces, on which sums depend in their last bit.
        return torch.empty_like(given).copy_(made) if made.shape == given.shape else made

    def give(_module: Any, args: Any, kwargs: Any) -> Any:
        return with_first(args, kwargs, repeated(first_tensor(args, kwargs)))

    handle = blocks[first].register_forward_pre_hook(give, with_kwargs=True)
    for block in blocks[:first]:
        block.forward = lambda *args, **kwargs: first_tensor(args, kwargs)
    if hidden.ndim == 4:
        blocks[first - 1].forward = lambda *args, **kwargs: repeated(first_tensor(args, kwargs))
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
    """(N,) int64: the row's number; -1 for a row that is no number, such as a newline's vector.

    Raises: BadData for a row that was made of several numbers.
    """
    coded_ND = coded_ND.float()
    digits_N3, rest = coded_ND[:, :3], coded_ND[:, 3:]
    is_marked_N = ((rest - _MARKER).abs() < 1).all(1)
    is_coded_N = (rest == _MARKER).all(1) & (digits_N3 == digits_N3.round()).all(1)
    is_coded_N &= ((digits_N3 >= 0) & (digits_N3 < _DIGIT)).all(1)
    if not torch.equal(is_marked_N, is_coded_N):
        raise BadData("the model mixes the features of several places of this picture into one")
    weights = torch.tensor([1.0, _DIGIT, _DIGIT**2], device=coded_ND.device)
    found_N = (digits_N3 * weights).sum(1).long()
    return torch.where(is_coded_N, found_N, -1)
