"""Results in the order of the items."""

import time
from collections.abc import Iterator

import pytest

from cdcca_cli.errors import BadData
from cdcca_cli.serving.in_order import AHEAD, in_order


def test_results_come_in_the_order_of_the_items() -> None:
    def work(number: int) -> int:
        time.sleep(0.02 * (number % 3 == 0))
        return number * number

    found = [*in_order(work, range(50), 5)]
    assert found == [(number, number * number) for number in range(50)]


def test_items_are_taken_a_limited_number_ahead() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(1000):
            taken = number + 1
            yield number

    for seen, _ in enumerate(in_order(lambda number: number, items(), 2), 1):
        assert taken - seen <= AHEAD * 2


def test_an_error_of_one_item_is_its_own_and_any_other_ends_the_run() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise BadData("three")
        if number == 6:
            raise ValueError("six")
        return number

    found = []
    with pytest.raises(ValueError, match="six"):
        for item, result in in_order(work, range(9), 2):
            found.append((item, str(result)))
    assert found == [(n, "three" if n == 3 else str(n)) for n in range(6)]
