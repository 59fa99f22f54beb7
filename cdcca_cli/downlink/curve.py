"""Rate against loss for one change: what each step, and each other codec, would cost and lose.

A JSON object:

    kind "curve", version 2
    parameters  whole number: in tensors that changed
    loss        {"base", "adaptation"}: held-out losses, nats per answer token; null if not measured
    points      list of {"codec", "step", "bytes", "bits", "relative_error", "loss",
                "loss_change", "gain_kept", "chosen"}; "chosen" is true for one of them. bytes: of
                the whole file; bits: a parameter; step: null but for usq; loss_change: the share by
                which coding makes the loss larger; gain_kept: the share of what was learnt that is
                left; the last three null if not measured

The steps of `usq` are half octaves around the change's root mean square; the other codecs are as
they are by default. The picture shows the same: bits to the right, upwards the change of the loss
(or the relative error). (Version 1, of cdcca 0.3, also had a "gain" for each point.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from cdcca_cli import streams
from cdcca_cli.downlink import codecs
from cdcca_cli.downlink.codecs import exact, usq
from cdcca_cli.downlink.encode import Choice, Measured, file_bytes
from cdcca_cli.downlink.rate import around_rms
from cdcca_cli.downlink.settings import CODECS, CompressSettings
from cdcca_cli.formats.records import dump_json
from cdcca_cli.formats.update import Update

VERSION = 2
_HALF_OCTAVES = range(-4, 5)


@dataclass(frozen=True)
class Point:
    """One way of coding, and what came of it."""

    codec: str
    num_bytes: int
    bits: float
    relative_error: float
    measured: Measured | None
    step: float | None = None
    chosen: bool = False

    def as_json(self) -> dict[str, Any]:
        found = self.measured
        return {
            "codec": self.codec,
            "step": self.step,
            "bytes": self.num_bytes,
            "bits": self.bits,
            "relative_error": self.relative_error,
            "loss": None if found is None else found.coded,
            "loss_change": None if found is None else found.change,
            "gain_kept": None if found is None else found.gain_kept,
            "chosen": self.chosen,
        }


@dataclass(frozen=True)
class Curve:
    """The points of one change: coarse steps first, then other codecs, last the chosen one."""

    num_parameters: int
    points: Sequence[Point]

    def as_json(self) -> dict[str, Any]:
        """The object that the module's docstring describes."""
        measured = self.points[-1].measured if self.points else None
        return {
            "kind": "curve",
            "version": VERSION,
            "parameters": self.num_parameters,
            "loss": None
            if measured is None
            else {"base": measured.base, "adaptation": measured.adaptation},
            "points": [point.as_json() for point in self.points],
        }

    def write(self, path: Path) -> None:
        """JSON at `path`, and a picture beside it if matplotlib is there. Raises: CannotWrite."""
        with streams.text_output(path) as out:
            out.write(dump_json(self.as_json()) + "\n")
        try:
            picture = self.picture()
        except ImportError:
            streams.message(f"{path}: no picture of it (matplotlib is not installed)")
            return
        with streams.binary_output(path.with_suffix(".png"), "curve.png") as file:
            file.write(picture)

    def picture(self) -> bytes:
        """A PNG of it. Raises: ImportError where matplotlib is not installed."""
        from matplotlib.figure import Figure

        def height(point: Point) -> float:
            if point.measured is None:
                return point.relative_error
            return 100 * point.measured.change

        is_measured = all(point.measured is not None for point in self.points)
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        steps = [point for point in self.points if point.step is not None and not point.chosen]
        axes.plot([p.bits for p in steps], [height(p) for p in steps], "o-", label=usq.CODEC)
        for point in self.points:
            if point.chosen or point.step is None:
                mark = "*" if point.chosen else "s"
                name = f"this update ({point.codec})" if point.chosen else point.codec
                axes.plot([point.bits], [height(point)], mark, markersize=9, label=name)
        axes.set_xlabel("bits a parameter, whole file")
        axes.set_ylabel("change of the held-out loss, %" if is_measured else "relative error")
        if is_measured:
            axes.set_yscale("symlog", linthresh=1.0)
            axes.axhline(0.0, color="0.7", linewidth=0.8)
        axes.set_title(f"{self.num_parameters:,} parameters")
        axes.legend()
        out = BytesIO()
        figure.savefig(out, format="png", dpi=120, metadata={"Software": None})
        return out.getvalue()


def measure(choice: Choice, made: Update) -> Curve:
    """Code the same change in every way, and measure the loss of each if there is one to measure.

    Args: choice: how `made` came about; its change, its base, its loss.
    """
    change = choice.change
    if not change.num_changed:
        return Curve(0, [])

    def point(update: Update, step: float | None = None, is_chosen: bool = False) -> Point:
        decoded = codecs.decode(update, change.base)
        size = file_bytes(update, choice.settings.num_signatures)
        return Point(
            codec=update.codec,
            num_bytes=size,
            bits=8 * size / change.num_changed,
            relative_error=change.relative_error(decoded),
            measured=choice.measured(decoded, always=True),
            step=step,
            chosen=is_chosen,
        )

    steps = [around_rms(change, exponent / 2) for exponent in reversed(_HALF_OCTAVES)]
    points = [point(choice.uniform(step), step) for step in steps]
    for codec in CODECS:
        if codec not in (usq.CODEC, exact.CODEC):
            plain = CompressSettings(codec=codec, select=choice.settings.select)
            points.append(point(choice.with_settings(plain).update()))
    points.append(point(made, choice.step, is_chosen=True))
    return Curve(change.num_changed, points)
