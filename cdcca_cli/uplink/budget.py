"""Meeting a byte budget: as many questions, or as fine a step, as fit into the whole stream."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import exp, log
from typing import Any

from cdcca_cli import streams
from cdcca_cli.errors import SettingError
from cdcca_cli.formats import shard_stream
from cdcca_cli.uplink.coding import Coded, Coder
from cdcca_cli.uplink.picked import questions_of

LEAST_FRAME_BYTES = 32
"""The fewest bytes that a frame of a stream is taken to need."""
FINEST_STEP, COARSEST_STEP = 1 / 16, 16.0
_BISECTIONS = 6


def finest(
    budget_bytes: int, picked: Mapping[int, Sequence[int]], make: Callable[..., Any], coder: Coder
) -> Coder:
    """The coder with the finest step of klt at which the picked frames fit the budget."""
    fine, coarse = log(FINEST_STEP), log(COARSEST_STEP)

    def fits(step: float) -> bool:
        other = coder.with_step(exp(step))
        made = (make(order, questions, other) for order, questions in picked.items())
        return _stream_bytes(coded for coded in made if coded is not None) <= budget_bytes

    if not fits(coarse):
        raise SettingError(
            "budget_bytes", f"too few for {len(picked):,} frames: lower `top`", budget_bytes
        )
    for _ in range(_BISECTIONS):
        middle = (fine + coarse) / 2
        fine, coarse = (fine, middle) if fits(middle) else (middle, coarse)
    return coder.with_step(exp(coarse))


def longest(
    budget_bytes: int,
    ranked: Sequence[tuple[int, int]],
    waiting: Mapping[int, Any],
    make: Callable[[int, Sequence[int]], Coded | None],
) -> Iterator[Coded]:
    """The longest prefix of the ranking whose stream fits the budget, in the order of the input.

    Args: ranked: (frame, question), the best first. waiting: the frames, with their entropies.
    """
    made: dict[int, Coded | None] = {}

    def first(count: int) -> list[Coded]:
        places: dict[int, list[int]] = {}
        for order, place in ranked[:count]:
            places.setdefault(order, []).append(place)
        found = []
        for order in sorted(places):
            if order not in made:
                made[order] = make(order, places[order])
            coded, item = made[order], waiting[order]
            if coded is not None:
                questions = questions_of(item.frame, item.entropies_K, sorted(places[order]))
                found.append(replace(coded, shard=replace(coded.shard, questions=questions)))
        return found

    fitting, beyond = 0, 1
    while beyond <= len(ranked) and _stream_bytes(first(beyond)) <= budget_bytes:
        fitting, beyond = beyond, 2 * beyond
    beyond = min(beyond, len(ranked) + 1)
    while beyond - fitting > 1:
        middle = (fitting + beyond) // 2
        if _stream_bytes(first(middle)) <= budget_bytes:
            fitting = middle
        else:
            beyond = middle
    if not fitting:
        streams.message(f"a budget of {budget_bytes:,} bytes holds no shard: nothing is sent")
    return iter(first(fitting))


def _stream_bytes(coded: Iterable[Coded]) -> int:
    with shard_stream.writer(io.BytesIO()) as write:
        for one in coded:
            write(one.shard, one.picture)
    return write.num_bytes
