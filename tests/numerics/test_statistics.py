"""The bootstrap's draws and its interval."""

import numpy as np
import pytest

from cdcca_cli.numerics.statistics import percentile_interval, resampled_totals


def test_percentiles_by_hand() -> None:
    """Of 0, 1, ..., 1000 the lowest 2.5 % end at 25 and the highest begin at 975; the lowest 5 % at
    50 and the highest at 950."""
    values = np.random.default_rng(0).permutation(1001).astype(float)
    assert percentile_interval(values) == pytest.approx((25, 975))
    assert percentile_interval(values, 0.9) == pytest.approx((50, 950))


@pytest.mark.parametrize("chunk", [1, 70, 1 << 20])
def test_totals_are_those_of_the_units_drawn(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow form: the same generator's draws at once, and sums of picked rows."""
    monkeypatch.setattr("cdcca_cli.numerics.statistics.DRAWS_AT_ONCE", chunk)
    rows = np.random.default_rng(1).normal(size=(7, 3))
    totals = np.concatenate(list(resampled_totals(rows, np.random.default_rng(2), 25)))
    drawn = np.random.default_rng(2).integers(7, size=(25, 7))
    assert totals == pytest.approx(np.array([rows[units].sum(0) for units in drawn]))
