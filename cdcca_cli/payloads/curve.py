"""A codebook's curve: the step for a wanted loss or rate, and what a step is expected to cost.

Between two measured points everything is linear in the step. A single measurement of the loss moves
by luck, so a point counts with the largest loss of the finer steps, if that is more: the loss never
falls with the step. In the same way rate and agreement never rise.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.errors import BadData, SettingError
from cdcca_cli.formats.codebook import Codebook, PicturePoint, TokenPoint

Floats = NDArray[np.float64]


def step_for(
    codebook: Codebook, *, max_loss: float | None = None, bits: float | None = None
) -> float:
    """The largest measured step within `max_loss`, or the smallest within `bits`; a float32.

    Args: max_loss: relative change of the teacher's loss, 0.01 for 1 %. bits: an element of the
        tokens. One of them is given.
    Raises: SettingError below the least loss measured, or beyond the bits; BadData without a curve.
    """
    steps = _values(codebook, "step")
    if max_loss is not None:
        losses = np.maximum.accumulate(_values(codebook, "loss"))
        if max_loss < losses[0]:
            _expect_within("max_loss", max_loss, losses, "{:.3%}")
        return float(np.float32(_last_within(steps, losses, max_loss)))
    if bits is None:
        raise ValueError("expected max_loss or bits")
    rates = np.minimum.accumulate(_values(codebook, "bits"))[::-1]  # from the coarsest step down
    _expect_within("bits", bits, rates, "{:.3g}")
    return float(np.float32(_last_within(steps[::-1], rates, bits)))


def point_at(codebook: Codebook, step: float) -> TokenPoint:
    """What a step is expected to cost and change. Raises: SettingError outside of the curve."""
    steps = _values(codebook, "step")
    _expect_within("step", step, steps, "{:.3g}")
    falling = {
        name: np.minimum.accumulate(_values(codebook, name))
        for name in ("bits", "bytes", "agreement")
    }
    lines = falling | {"loss": np.maximum.accumulate(_values(codebook, "loss"))}
    return TokenPoint(
        step=step, **{name: float(np.interp(step, steps, line)) for name, line in lines.items()}
    )


def loss_at(codebook: Codebook, step: float) -> float:
    """The loss that any step is expected to cost: 0 at 0, beyond the curve that of its last point.

    Raises: BadData without a curve.
    """
    steps, losses = _values(codebook, "step"), _values(codebook, "loss")
    return float(np.interp(step, [0.0, *steps], np.maximum.accumulate([0.0, *losses])))


def picture_within(points: Sequence[PicturePoint], max_loss: float) -> PicturePoint:
    """The point of lowest quality from which on the loss is within `max_loss`; else the best."""
    best_first = sorted(points, key=lambda point: point.quality, reverse=True)
    found = best_first[0]
    for point in best_first:
        if point.loss > max_loss:
            break
        found = point
    return found


def _values(codebook: Codebook, name: str) -> Floats:
    points = codebook.curve.tokens
    if not points:
        raise BadData("the codebook has no curve: give a `step`, or calibrate it again")
    return np.array([getattr(point, name) for point in points])


def _expect_within(name: str, value: float, rising: Floats, form: str) -> None:
    if not rising[0] <= value <= rising[-1]:
        least, most = form.format(rising[0]), form.format(rising[-1])
        raise SettingError(name, f"the codebook was measured from {least} to {most}", value)


def _last_within(steps: Floats, rising: Floats, limit: float) -> float:
    """The last place on a rising line that is not above the limit."""
    last = int(np.searchsorted(rising, limit, side="right")) - 1
    if last + 1 == len(rising):
        return float(steps[-1])
    share = (limit - rising[last]) / (rising[last + 1] - rising[last])
    return float(steps[last] + share * (steps[last + 1] - steps[last]))
