"""Pictures of a report's JSON object (`scoring.report`) by matplotlib, as PNG, SVG or PDF.

One row of panels under the other, for the task's headline metrics, or for all if it has none:

    rounds   the score of each domain after each round, and their average
    gains    the difference to the other predictions, over everything, by domain, by kind of
             question; the marker is filled where the interval excludes 0
    bytes    the score against the bytes it took: cumulated over the rounds if there is one file for
             each, else one point for each direction, with the other predictions' score as a line
    link     bytes over the link, and of the frames themselves
    scores   the score of each group, where none of the first three can be drawn

Intervals are 95 %. Nothing is computed here. `charts` has the style.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdcca_cli import streams
from cdcca_cli.errors import SettingError, Unavailable
from cdcca_cli.scoring import charts, tasks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("png", "svg", "pdf")
_WIDTH = 6.4  # inches, of a panel
_MOST_ACROSS = 3
_DATES: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
_FORM_NAMES = {
    "raw_rgb": "raw pixels",
    "original": "as stored",
    "jpeg_q75": "JPEG q75",
    "webp_q75": "WebP q75",
    "avif_q50": "AVIF q50",
    "h264_crf23": "H.264 crf 23",
}


@dataclass(frozen=True)
class Panel:
    """One pair of axes: its height in inches, and what is drawn on it."""

    height: float
    draw: Callable[["Axes"], None]


def check(path: str | Path) -> str:
    """The format that a file's name ends in. Raises: SettingError (2), Unavailable (69)."""
    suffix = Path(path).suffix.removeprefix(".").lower()
    if suffix not in FORMATS:
        raise SettingError("plot", "expected a file name that ends in .png, .svg or .pdf", path)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise Unavailable("drawing needs matplotlib: pip install 'cdcca[plot]'") from None
    return suffix


def draw(report: Mapping[str, Any], path: str | Path) -> None:
    """Draw a report to a file; the same report gives the same bytes. Raises: as `check`."""
    form = check(path)
    rows = [row for row in panels(report) if row]
    if not rows:
        raise SettingError("plot", "this report holds nothing to draw")
    picture = _render(rows, form)
    with streams.binary_output(str(path), "report.png") as out:
        out.write(picture)


def panels(report: Mapping[str, Any]) -> Iterator[list[Panel]]:
    """The rows of panels for what a report holds, from top to bottom."""
    scores, link = report.get("scores", {}), report.get("link", {})
    rounds, against = report.get("rounds", {}), report.get("against", {})
    task = tasks.TASKS.get(report.get("task", ""))
    metrics = [name for name in task.headlines if name in scores] if task else []
    metrics = metrics or list(scores)
    sent = [part for part in ("uplink", "downlink") if part in link]
    yield [_rounds_panel(metric, found) for metric, found in rounds.items()]
    compared = [metric for metric in metrics if metric in against]
    yield [_forest_panel(metric, against[metric], "difference") for metric in compared]
    if sent:
        yield [_bytes_panel(metric, report, sent) for metric in metrics]
    if sent or "raw" in link:
        yield [_link_panel(link)]
    if not (rounds or against or sent):
        yield [_forest_panel(metric, scores[metric], "score") for metric in metrics]


def _render(rows: Sequence[list[Panel]], form: str) -> bytes:
    """Each panel is a figure of its own, so that long labels in one do not narrow the others."""
    import matplotlib
    from matplotlib.figure import Figure

    across = min(_MOST_ACROSS, max(map(len, rows)))
    lines = [row[i : i + across] for row in rows for i in range(0, len(row), across)]
    heights = [max(panel.height for panel in line) for line in lines]
    with matplotlib.rc_context(charts.STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a name in a script that the font lacks
        figure = Figure((_WIDTH * across, sum(heights)), layout="constrained")
        bands = figure.subfigures(len(lines), 1, squeeze=False, height_ratios=heights)[:, 0]
        for line, band in zip(lines, bands, strict=True):
            parts = band.subfigures(1, 1 if len(line) == 1 else across, squeeze=False)[0]
            for panel, part in zip(line, parts, strict=False):
                panel.draw(part.subplots())
        picture = io.BytesIO()
        figure.savefig(picture, format=form, dpi=150, metadata=_DATES.get(form))
    return picture.getvalue()


def _rounds_panel(metric: str, found: Mapping[str, Any]) -> Panel:
    lines = [
        charts.Line(charts.short(name), [row[j] for row in found["matrix"]], "score", j)
        for j, name in enumerate(found["domains"])
    ]
    if len(lines) > 1:
        lines.insert(0, charts.Line("average", found["averages"], "value", width=2))
    ticks = [_round_label(one) for one in found["rounds"]]

    def draw(axes: "Axes") -> None:
        for number, line in enumerate(lines):
            shift = 0.05 * (number - (len(lines) - 1) / 2)
            line.draw(axes, [place + shift for place in range(len(ticks))])
        handles, labels = axes.get_legend_handles_labels()
        order = sorted(range(len(lines)), key=lambda i: -lines[i].values[-1])
        axes.legend(
            [handles[i] for i in order],
            [labels[i] for i in order],
            title=f"at the end, {ticks[-1].splitlines()[0]}",
            loc="upper left",
            bbox_to_anchor=(1.0, 1.03),
            frameon=False,
            alignment="left",
        )
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set_xlim(-0.4, len(ticks) - 0.6)
        axes.set_ylabel(f"{_title(metric)} x100")
        axes.set_title(f"{_title(metric)} after each round")

    return Panel(max(2.9, 0.8 + 0.2 * len(lines)), draw)


def _round_label(one: Mapping[str, Any]) -> str:
    label = "source only" if one["round"] == 0 else f"round {one['round']}"
    return label if one["adapted_to"] is None else f"{label}\n{charts.short(one['adapted_to'])}"


def _forest_panel(metric: str, found: Mapping[str, Any], key: str) -> Panel:
    """One row for each group, the first on top: a point, its interval, and both as words."""
    title, unit, form = _title(metric), f"{_title(metric)} x100", "{:.1f}"
    if key == "difference":
        title, unit, form = f"{title} against the other predictions", f"gain, {unit}", "{:+.1f}"
    rows = list(_groups(found))
    places = [place for _, _, place in rows]

    def draw(axes: "Axes") -> None:
        if key == "difference":
            axes.axvline(0, color=charts.GREY, linewidth=0.8, zorder=1)
        for name, entry, place in rows:
            value, interval = entry[key], entry["interval"]
            is_apart = interval is not None and not interval[0] <= 0 <= interval[1]
            axes.errorbar(
                [value],
                [place],
                xerr=charts.errors([value], [entry]),
                color=charts.BLACK if name == "all" else charts.COLOURS[0],
                marker="o",
                markersize=5.5,
                markerfacecolor=None if is_apart else "white",
                linewidth=1.4,
            )
        words = [_words(entry, key, form) for _, entry, _ in rows]
        charts.label_rows(axes, places, [name for name, _, _ in rows], words)
        axes.margins(x=0.08)
        axes.set_xlabel(f"{unit}, with 95 % interval")
        axes.set_title(title)

    return Panel(1.05 + 0.22 * (places[-1] + 1), draw)


def _groups(found: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], float]]:
    """Name, entry and place of each row; a gap between the sorts of groups."""
    yield "all", found, 0.0
    place = 1.0
    if "mean_of_domains" in found:
        yield "mean of domains", found["mean_of_domains"], place
        place += 1
    for group in ("domains", "kinds"):
        place += 0.4
        for name, entry in found.get(group, {}).items():
            yield charts.short(name), entry, place
            place += 1


def _words(entry: Mapping[str, Any], key: str, form: str) -> str:
    """Like: +20.2 (+15.8 to +24.6), n = 1,234; with true minus signs, as wide as the plus."""
    words = form.format(entry[key])
    if entry["interval"] is not None:
        words += " ({} to {})".format(*(form.format(end) for end in entry["interval"]))
    return words.replace("-", "\N{MINUS SIGN}") + f", n = {entry['n']:,}"


def _bytes_panel(metric: str, report: Mapping[str, Any], sent: Sequence[str]) -> Panel:
    """Against the bytes so far of each direction with a file for each round, or else all bytes."""
    link, rounds = report["link"], report.get("rounds", {}).get(metric)
    series: list[tuple[charts.Line, list[int]]] = []
    for number, part in enumerate(sent):
        sizes = link[part]["stored_bytes_by_file"]
        if rounds is not None and len(sizes) == len(rounds["rounds"]) - 1:
            line = charts.Line(part, rounds["averages"], "value", number, width=2)
            series.append((line, [sum(sizes[:i]) for i in range(len(sizes) + 1)]))
    is_of_rounds = bool(series)
    entry = report["scores"][metric]
    if not series:
        series = [
            (charts.Line(part, [entry], "score", number), [link[part]["stored_bytes"]])
            for number, part in enumerate(sent)
        ]
    found = report.get("against", {}).get(metric)

    def draw(axes: "Axes") -> None:
        for number, (line, x) in enumerate(series):
            line.draw(axes, x)
            axes.annotate(  # the first above, the second below: close together they would overlap
                f"{line.name} {x[-1]:,}: {line.values[-1]:.1f}",
                xy=(x[-1], line.values[-1]),
                xytext=(8, -12 if number else 6),
                textcoords="offset points",
                color=charts.COLOURS[number],
                annotation_clip=False,
            )
        sizes = [x[-1] for _, x in series]
        if is_of_rounds:
            axes.set_xlim(left=-0.02 * max(sizes))
        else:
            axes.set_xscale("log")
            axes.set_xlim(max(1, min(sizes)) / 3, max(1, *sizes) * 3)
            axes.margins(y=0.25)
            if found is not None:
                other = entry["score"] - found["difference"]
                axes.axhline(other, color=charts.GREY, linestyle="--", linewidth=1)
                axes.annotate(
                    f"the other predictions {other:.1f}",
                    xy=(0.0, other),
                    xycoords=("axes fraction", "data"),
                    xytext=(4, 3),
                    textcoords="offset points",
                    color=charts.GREY,
                )
        axes.set_xlabel("bytes over the link" + (" so far" if is_of_rounds else ""))
        axes.set_ylabel(f"{_title(metric)} x100{', average' if is_of_rounds else ''}")
        axes.set_title(f"{_title(metric)} against the bytes it took")
        charts.comma_ticks(axes)

    return Panel(2.7, draw)


def _link_panel(link: Mapping[str, Any]) -> Panel:
    rows = [
        (part, link[part]["stored_bytes"], colour)
        for part, colour in zip(("uplink", "downlink"), charts.COLOURS, strict=False)
        if part in link
    ]
    which = "sent" if "sent" in link else "raw"
    seen = link.get("encoder_input", {})
    for place in (link, seen):
        for form, num_bytes in place.get(which, {}).get("bytes", {}).items():
            at = " at {}x{}".format(*seen["size"]) if place is seen else ""
            rows.append((f"{_FORM_NAMES.get(form, form)}{at}", num_bytes, charts.BLACK))
    title = "bytes over the link"
    if which in link and len(rows) > 1:
        frames = f"{link[which]['frames']:,} frames" + (" sent" if which == "sent" else "")
        title = f"bytes of the {frames}, and over the link"

    def draw(axes: "Axes") -> None:
        charts.draw_bytes(axes, rows)
        axes.set_title(title)

    return Panel(0.95 + 0.22 * len(rows), draw)


def _title(metric: str) -> str:
    return tasks.METRICS[metric].title if metric in tasks.METRICS else metric
