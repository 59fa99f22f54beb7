"""How many bits each tensor of an update gets: more where they take away the most error.

Every tensor has options: 0 bits (not sent: its whole change is error), 2, 4, 8, each with the
squared error it leaves and the bytes it takes, both measured. Going up in bits is a step; on the
lower hull of a tensor's options each step takes away less error a byte than the one before. All
steps of all tensors, sorted by that, are the ladder: its first k steps are, for every k, the choice
of least error for their bytes (a Lagrangian's, without a multiplier). Squared error is taken over
all parameters alike: measured weights by importance made a round's result worse as often as better.

Knows sizes and errors, neither tensors nor codes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from cdcca_cli.errors import UsageError

_ATTEMPTS = 24  # steps tried in vain at the end before the rest of the budget is left over

# The share of the squared change that tensors may hold together and still not be sent: what NF4
# itself rounds off is 8,000 times as much, and what is left out here the next round finds again.
NEGLIGIBLE = 1e-6

FileBytes = Callable[[Sequence[int]], int]
"""The size of the whole update for these bits, one number for each tensor."""


@dataclass(frozen=True)
class Option:
    """One choice for one tensor."""

    bits: int
    squared_error: float
    num_bytes: int


@dataclass(frozen=True)
class Step:
    """One tensor going up to more bits."""

    tensor: int
    from_bits: int
    to_bits: int
    error_less: float
    num_bytes: int


def all_alike(energies: Sequence[float], bits: int) -> list[int]:
    """The same bits for every tensor that matters, 0 for the others.

    Tensors do not matter whose squared changes (`energies`) are the smallest and come to no more
    than `NEGLIGIBLE` of the sum of all; unchanged ones are among them.
    """
    allowed = NEGLIGIBLE * sum(energies)
    chosen = [bits] * len(energies)
    left_out = 0.0
    for tensor in sorted(range(len(energies)), key=energies.__getitem__):
        left_out += energies[tensor]
        if left_out > allowed:
            break
        chosen[tensor] = 0
    return chosen


def ladder(options: Sequence[Sequence[Option]]) -> list[Step]:
    """All steps worth taking, the one with the most error taken away a byte first.

    Args: options: for each tensor; the first is 0 bits and alone takes no bytes.
    """
    steps = [
        Step(
            tensor,
            lower.bits,
            upper.bits,
            lower.squared_error - upper.squared_error,
            upper.num_bytes - lower.num_bytes,
        )
        for tensor, choices in enumerate(options)
        for lower, upper in pairwise(_hull(choices))
    ]
    return sorted(steps, key=lambda step: (-step.error_less / step.num_bytes, step.tensor))


def _hull(options: Sequence[Option]) -> list[Option]:
    """The options that no mixture of two others beats, from 0 bits on."""
    hull = [options[0]]
    while True:
        at = hull[-1]
        better = [
            option
            for option in options
            if option.num_bytes > at.num_bytes and option.squared_error < at.squared_error
        ]
        if not better:
            return hull
        rates = [
            (at.squared_error - option.squared_error) / (option.num_bytes - at.num_bytes)
            for option in better
        ]
        hull.append(better[rates.index(max(rates))])


def climbed(steps: Sequence[Step], num_tensors: int) -> list[int]:
    """The bits of each tensor after these steps."""
    bits = [0] * num_tensors
    for step in steps:
        bits[step.tensor] = step.to_bits
    return bits


def within_error(options: Sequence[Sequence[Option]], largest_squared_error: float) -> list[int]:
    """The fewest steps up the ladder that leave no more squared error than this.

    Raises: UsageError, with the relative error that can be reached, if all steps leave more.
    """
    steps = ladder(options)
    energy = sum(choices[0].squared_error for choices in options)
    left = list(accumulate((-step.error_less for step in steps), initial=energy))
    for count, error in enumerate(left):
        if error <= largest_squared_error:
            return climbed(steps[:count], len(options))
    raise UsageError(
        f"--max-error {(largest_squared_error / energy) ** 0.5:g} cannot be reached: with 8 bits "
        f"everywhere it is {(left[-1] / energy) ** 0.5:.3g}: give that or more"
    )


def within_budget(
    options: Sequence[Sequence[Option]], budget_bytes: int, file_bytes: FileBytes
) -> list[int]:
    """The bits of each tensor for which the whole file has at most `budget_bytes`.

    The longest start of the ladder that fits, then whichever later steps still do.

    Raises: UsageError, with the smallest budget that works, if not one changed tensor fits.
    """
    steps = ladder(options)
    count = _longest(steps, len(options), budget_bytes, file_bytes)
    bits = climbed(steps[:count], len(options))
    room = budget_bytes - file_bytes(bits)
    failed = 0
    for step in steps[count:]:
        if failed == _ATTEMPTS:
            break
        if bits[step.tensor] != step.from_bits or step.num_bytes > 2 * room + 64:
            continue
        tried = [*bits]
        tried[step.tensor] = step.to_bits
        if (left := budget_bytes - file_bytes(tried)) >= 0:
            bits, room = tried, left
        else:
            failed += 1
    if not any(bits):
        bits = _smallest(steps, len(options))
    if (needed := file_bytes(bits)) > budget_bytes:
        raise UsageError(
            f"a budget of {budget_bytes:,} bytes is too small for any of what changed: "
            f"give {needed:,} or more"
        )
    return bits


def _longest(
    steps: Sequence[Step], num_tensors: int, budget_bytes: int, file_bytes: FileBytes
) -> int:
    """How many steps fit, by bisection: sizes rise with them, but for a few bytes of zstd's."""
    fits, too_many = 0, len(steps) + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if file_bytes(climbed(steps[:middle], num_tensors)) <= budget_bytes:
            fits = middle
        else:
            too_many = middle
    return fits


def _smallest(steps: Sequence[Step], num_tensors: int) -> list[int]:
    """The update that sends something and is smallest; nothing if nothing changed."""
    first = [step for step in steps if step.from_bits == 0]
    return climbed(sorted(first, key=lambda step: step.num_bytes)[:1], num_tensors)
