"""Rate against loss for one change: the cost and loss of each step and of each other codec.

A JSON object:

    kind "curve", version 2
    parameters  whole number: in tensors that changed
    loss        {"base", "adaptation"}: held-out losses, nats per answer token; null if not measured
    points      list of {"codec", "step", "bytes", "bits", "relative_error", "loss",
                "loss_change", "gain_kept", "chosen"}; "chosen" is true for one of them. bytes: of
                the whole file; bits: per parameter; step: null except for usq; loss_change: the
                relative growth of the loss by coding; gain_kept: the share of the adaptation's gain
                that remains; the last three are null if not measured

The steps of `usq` are half octaves around the change's root mean square; the other codecs have
their default settings. (Version 1, of cdcca 0.3, also had a "gain" for each point.)
"""

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from cdcca_cli import streams
from cdcca_cli.downlink import codecs
from cdcca_cli.downlink.codecs import exact, usq
from cdcca_cli.downlink.encode import Choice, file_bytes
from cdcca_cli.downlink.rate import around_rms
from cdcca_cli.downlink.settings import CODECS, CompressSettings
from cdcca_cli.formats.records import dump_json
from cdcca_cli.formats.update import Update

VERSION = 2
_HALF_OCTAVES = range(-4, 5)


def measure(choice: Choice, made: Update) -> dict[str, Any]:
    """Code the same change in every way, and measure the loss of each if possible.

    Returns: the module docstring's object: coarse steps first, then other codecs, then `made`.
    """
    change = choice.change

    def point(update: Update, step: float | None = None, is_chosen: bool = False) -> dict[str, Any]:
        decoded = codecs.decode(update, change.base)
        size = file_bytes(update, choice.settings.num_signatures)
        measured = choice.measured(decoded, always=True)
        return {
            "codec": update.codec,
            "step": step,
            "bytes": size,
            "bits": 8 * size / change.num_changed,
            "relative_error": change.relative_error(decoded),
            "loss": measured and measured.coded,
            "loss_change": measured and measured.change,
            "gain_kept": measured and measured.gain_kept,
            "chosen": is_chosen,
        }

    points = []
    if change.num_changed:
        for exponent in reversed(_HALF_OCTAVES):
            step = around_rms(change, exponent / 2)
            points.append(point(choice.uniform(step), step))
        for codec in CODECS:
            if codec not in (usq.CODEC, exact.CODEC):
                plain = CompressSettings(codec=codec, select=choice.settings.select)
                points.append(point(replace(choice, settings=plain).update()))
        points.append(point(made, choice.step, is_chosen=True))
    losses = choice.losses if points else None
    return {
        "kind": "curve",
        "version": VERSION,
        "parameters": change.num_changed,
        "loss": losses and dict(zip(("base", "adaptation"), losses, strict=True)),
        "points": points,
    }


def write(curve: dict[str, Any], path: Path) -> None:
    """Write JSON to `path`, and a picture beside it if matplotlib is there. Raises: CannotWrite."""
    with streams.text_output(path) as out:
        out.write(dump_json(curve) + "\n")
    try:
        drawn = picture(curve)
    except ImportError:
        streams.message(f"{path}: no picture was drawn: matplotlib is not installed")
        return
    with streams.binary_output(path.with_suffix(".png"), "curve.png") as file:
        file.write(drawn)


def picture(curve: dict[str, Any]) -> bytes:
    """A PNG of the curve. Raises: ImportError if matplotlib is not installed."""
    from matplotlib.figure import Figure

    def height(point: dict[str, Any]) -> float:
        if point["loss_change"] is None:
            return float(point["relative_error"])
        return 100 * float(point["loss_change"])

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    points = curve["points"]
    steps = [point for point in points if point["step"] is not None and not point["chosen"]]
    axes.plot([p["bits"] for p in steps], [height(p) for p in steps], "o-", label=usq.CODEC)
    for point in points:
        if point["chosen"] or point["step"] is None:
            mark = "*" if point["chosen"] else "s"
            name = f"this update ({point['codec']})" if point["chosen"] else point["codec"]
            axes.plot([point["bits"]], [height(point)], mark, markersize=9, label=name)
    axes.set_xlabel("bits per parameter, whole file")
    axes.set_ylabel("change of the held-out loss, %" if curve["loss"] else "relative error")
    if curve["loss"]:
        axes.set_yscale("symlog", linthresh=1.0)
        axes.axhline(0.0, color="0.7", linewidth=0.8)
    axes.set_title(f"{curve['parameters']:,} parameters")
    axes.legend()
    out = BytesIO()
    figure.savefig(out, format="png", dpi=120, metadata={"Software": None})
    return out.getvalue()
