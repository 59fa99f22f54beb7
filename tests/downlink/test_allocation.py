from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdcca_cli.downlink import allocation
from cdcca_cli.downlink.allocation import Option
from cdcca_cli.errors import UsageError

OPTIONS = st.lists(
    st.tuples(
        st.integers(1, 100),
        st.lists(st.tuples(st.integers(0, 100), st.integers(1, 40)), min_size=3, max_size=3),
    ).map(
        lambda drawn: [
            Option(0, float(drawn[0]), 0),
            *(
                Option(bits, float(min(error, drawn[0])), num_bytes)
                for bits, (error, num_bytes) in zip((2, 4, 8), drawn[1], strict=True)
            ),
        ]
    ),
    min_size=1,
    max_size=3,
)
HEADER = 10


def size(options: list[list[Option]], bits: tuple[int, ...] | list[int]) -> int:
    return HEADER + sum(
        next(option.num_bytes for option in choices if option.bits == b)
        for choices, b in zip(options, bits, strict=True)
    )


def error(options: list[list[Option]], bits: tuple[int, ...] | list[int]) -> float:
    return sum(
        next(option.squared_error for option in choices if option.bits == b)
        for choices, b in zip(options, bits, strict=True)
    )


@settings(max_examples=60)
@given(OPTIONS)
def test_no_other_choice_beats_a_start_of_the_ladder(options: list[list[Option]]) -> None:
    """Against all 4**n choices: none has less error in as many bytes."""
    steps = allocation.ladder(options)
    everything = list(product((0, 2, 4, 8), repeat=len(options)))
    for count in range(len(steps) + 1):
        bits = allocation.climbed(steps[:count], len(options))
        for other in everything:
            if size(options, other) <= size(options, bits):
                assert error(options, other) >= error(options, bits) - 1e-9


@given(OPTIONS, st.integers(0, 200))
def test_the_budget_holds_or_its_cure_is_told(options: list[list[Option]], budget: int) -> None:
    def file_bytes(bits: list[int] | tuple[int, ...]) -> int:
        return size(options, bits)

    try:
        bits = allocation.within_budget(options, budget, file_bytes)
    except UsageError as refusal:
        needed = int(str(refusal).split("give ")[1].split()[0].replace(",", ""))
        assert needed > budget
        assert size(options, allocation.within_budget(options, needed, file_bytes)) <= needed
    else:
        assert size(options, bits) <= budget
        assert any(bits) or not allocation.ladder(options)


@given(OPTIONS, st.floats(0, 1))
def test_the_error_holds_or_is_told(options: list[list[Option]], share: float) -> None:
    most = share * error(options, [0] * len(options))
    try:
        assert error(options, allocation.within_error(options, most)) <= most + 1e-9
    except UsageError as refusal:
        assert "cannot be reached" in str(refusal)
        least = [min(choices, key=lambda option: option.squared_error) for choices in options]
        assert sum(option.squared_error for option in least) > most - 1e-9


def test_a_worked_choice() -> None:
    """Tensor 0 loses 9 a byte for 10 bytes, tensor 1 loses 5 for 10, then tensor 0 1 for 10: a
    file of 30 holds the header (10) and the first two; 29 the first only; 19 none of them.
    """
    options = [
        [Option(0, 100, 0), Option(2, 10, 10), Option(4, 0, 20)],
        [Option(0, 50, 0), Option(2, 0, 10)],
    ]
    for budget, bits in ((40, [4, 2]), (30, [2, 2]), (29, [2, 0]), (20, [2, 0])):
        found = allocation.within_budget(options, budget, lambda bits: size(options, bits))
        assert found == bits
    with pytest.raises(UsageError, match="give 20 or more"):
        allocation.within_budget(options, 19, lambda bits: size(options, bits))


def test_what_the_first_steps_leave_over_is_filled() -> None:
    """The best step (100 bytes) does not fit in 50; the next one (20 bytes) does."""
    options = [[Option(0, 1000, 0), Option(2, 0, 100)], [Option(0, 1, 0), Option(2, 0, 20)]]
    assert allocation.within_budget(options, 50, lambda bits: size(options, bits)) == [0, 2]


def test_negligible_tensors_are_not_sent() -> None:
    """Of a sum of 1,000,001 the millionth is 1.000001: 0 and 0.4 and 0.6 are left out together,
    a second 0.6 no more.
    """
    rest = 1_000_001 - 1.6
    assert allocation.all_alike([0.6, rest, 0.0, 0.4, 0.6], 4) == [0, 4, 0, 0, 4]
    assert allocation.all_alike([0.0, 0.0], 4) == [0, 0]
    assert allocation.all_alike([], 4) == []
