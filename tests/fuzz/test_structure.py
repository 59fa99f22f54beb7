"""The fuzz over structure: 10,000 cases in every run, a million in the slow one."""

import os
import random
import time

import pytest

from cdcca_cli.errors import CdccaError
from tests.fuzz import mutations
from tests.fuzz.readers import KINDS, Kind
from tests.fuzz.structure import Outcome, rng_of, run, run_all, shares, table


@pytest.mark.parametrize("name", KINDS)
def test_every_case_is_read_or_refused(name: str) -> None:
    outcome = run(KINDS[name], 0, range(shares(10_000)[name]))
    assert outcome.faults == [], table({name: outcome})
    assert outcome.classes["read"] < outcome.cases  # some are refused


@pytest.mark.slow
def test_a_million_cases() -> None:
    found = run_all(1_000_000, seed=1, jobs=os.cpu_count() or 1)
    print(f"\n{table(found)}")  # noqa: T201 -- the figures are what this run is for
    assert [fault for outcome in found.values() for fault in outcome.faults] == []


@pytest.mark.parametrize("name", KINDS)
def test_a_case_is_the_same_every_time(name: str) -> None:
    kind = KINDS[name]
    for number in range(20):
        assert kind.change(rng_of(kind, 3, number)) == kind.change(rng_of(kind, 3, number))


def failing(fault: BaseException) -> Outcome:
    def read(*_: object) -> None:
        raise fault

    return run(Kind("it", lambda rng: b"", read), 7, [5])


@pytest.mark.parametrize(
    "fault", [ValueError("x"), RecursionError(), CdccaError("x"), AssertionError("x")]
)
def test_anything_but_a_typed_refusal_is_a_fault(fault: Exception) -> None:
    (words,) = failing(fault).faults
    assert words.startswith("--kind 'it' --seed 7 --number 5: ")
    assert type(fault).__name__ in words


def test_time_is_a_fault() -> None:
    def slow(*_: object) -> None:
        began = time.process_time()
        while time.process_time() - began < 2.1:
            pass

    assert "took" in run(Kind("it", lambda rng: b"", slow), 0, [0]).faults[0]


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of memory cannot be reset"
)
def test_memory_is_a_fault() -> None:
    def large(*_: object) -> None:
        b"x" * (300 << 20)

    assert "memory grew" in run(Kind("it", lambda rng: b"", large), 0, [0]).faults[0]


def test_records_come_apart_and_together() -> None:
    from tests.golden import make

    for data in (
        make.shard(),
        make.adaptation_2(),
        make.lessons_file(make.lesson_i8()),
        make.label_pieces() + make.label_kept(),
        make.trust(),
    ):
        parts = mutations.split_records(data)
        assert b"".join(map(mutations.join_record, parts)) == data


def test_json_that_python_cannot_hold() -> None:
    value = mutations.Pairs([("a", mutations.Raw("1e999")), ("a", [True, None, "\ud800"])])
    assert mutations.dump(value) == '{"a":1e999,"a":[true,null,"\\ud800"]}'
    changed = {
        mutations.dump(mutations.mutate_json(random.Random(number), value)) for number in range(100)
    }
    assert len(changed) > 60
