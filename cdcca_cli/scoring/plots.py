"""Pictures of a report: rounds, gains, bytes against score; PNG, SVG or PDF.

Drawn from the report's own JSON object (`scoring.report`), so a stored report gives the same
picture later. What it holds decides what is drawn, one panel under the other, for the task's
headline metrics (all that are there, if none of those is):

    rounds   the score of each domain after each round, and their average, with 95 % intervals
    gains    against the other predictions: difference and interval over all, by domain, by kind of
             question; filled where the interval leaves out 0
    bytes    the score against the bytes that it took: cumulated over the rounds where there is one
             token stream or update for each, else one point for each direction, with the other
             predictions' score as a line
    link     what went over the link, and what the frames themselves would take
    scores   score and interval of each group, where none of the first three can be drawn

Colours are Okabe and Ito's, with a marker and a word for each, so none carries a meaning alone. In
SVG text stays text. matplotlib is imported when something is drawn (`pip install 'cdcca[plot]'`).
Nothing is computed here.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdcca_cli import streams
from cdcca_cli.errors import SettingError, Unavailable
from cdcca_cli.scoring import tasks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

FORMATS = ("png", "svg", "pdf")
_BLACK, _GREY = "#000000", "#6b6b6b"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", ":")  # where there are more domains than colours
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "text.parse_math": False,  # a domain may be named $fog$
    "svg.fonttype": "none",
    "svg.hashsalt": "cdcca",
    "pdf.fonttype": 42,
}
_WIDTH = 6.4  # inches, of a panel
_ACROSS = {1: 1, 2: 2, 4: 2}  # so many panels beside each other, otherwise three
_DATES: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


@dataclass(frozen=True)
class Panel:
    """One pair of axes: its height in inches, and what is drawn on it."""

    height: float
    draw: Callable[["Axes"], None]


def check(path: str | Path) -> str:
    """The format that a file's name ends in, checked before anything is scored.

    Raises: SettingError (2) if it is none of FORMATS; Unavailable (69) without matplotlib.
    """
    suffix = Path(path).suffix.removeprefix(".").lower()
    if suffix not in FORMATS:
        raise SettingError("plot", "expected a file name that ends in .png, .svg or .pdf", path)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise Unavailable("drawing needs matplotlib: pip install 'cdcca[plot]'") from None
    return suffix


def draw(report: Mapping[str, Any], path: str | Path) -> None:
    """Draw a report to a file, which is replaced as a whole; the format is that of its name.

    The same report gives the same bytes.
    Raises: as `check`; SettingError (2) if there is nothing to draw; CannotWrite (73).
    """
    form = check(path)
    rows = [row for row in panels(report) if row]
    if not rows:
        raise SettingError("plot", "this report holds nothing to draw")
    picture = _render(rows, form)
    with streams.binary_output(str(path), "report.png") as out:
        out.write(picture)


def panels(report: Mapping[str, Any]) -> Iterator[list[Panel]]:
    """What a report holds, as the module's docstring tells, in rows from top to bottom."""
    scores, link = report.get("scores", {}), report.get("link", {})
    rounds, against = report.get("rounds", {}), report.get("against", {})
    task = tasks.TASKS.get(report.get("task", ""))
    metrics = [name for name in task.headlines if name in scores] if task else []
    metrics = metrics or list(scores)
    sent = [part for part in ("uplink", "downlink") if part in link]
    yield [_rounds_panel(metric, found) for metric, found in rounds.items()]
    yield [_gains_panel(metric, against[metric]) for metric in metrics if metric in against]
    if sent:
        yield [_bytes_panel(metric, report, sent) for metric in metrics]
    if sent or "raw" in link:
        yield [_link_panel(link)]
    if not (rounds or against or sent):
        yield [_scores_panel(metric, scores[metric]) for metric in metrics]


def _render(rows: Sequence[list[Panel]], form: str) -> bytes:
    """Each panel is a figure of its own, so that long labels in one do not narrow the others."""
    import matplotlib
    from matplotlib.figure import Figure

    across = max(_ACROSS.get(len(row), 3) for row in rows)
    lines = [row[i : i + across] for row in rows for i in range(0, len(row), across)]
    alone = [len(row) == 1 for row in rows for _ in range(0, len(row), across)]
    heights = [max(panel.height for panel in line) for line in lines]
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a name in a script that the font has not
        figure = Figure((_WIDTH * across, sum(heights)), layout="constrained")
        bands = figure.subfigures(len(lines), 1, squeeze=False, height_ratios=heights)[:, 0]
        for line, band, height, is_alone in zip(lines, bands, heights, alone, strict=True):
            parts = band.subfigures(1, 1 if is_alone else across, squeeze=False)[0]
            for panel, part in zip(line, parts, strict=False):
                if panel.height < height:  # not stretched to its neighbours' height
                    ratios = [panel.height, height - panel.height]
                    part = part.subfigures(2, 1, height_ratios=ratios)[0]
                panel.draw(part.subplots())
        picture = io.BytesIO()
        figure.savefig(picture, format=form, dpi=150, metadata=_DATES.get(form))
    return picture.getvalue()


# ---------------------------------------------------------------- rounds


def _rounds_panel(metric: str, found: Mapping[str, Any]) -> Panel:
    domains, matrix = found["domains"], found["matrix"]
    lines = []
    if len(domains) > 1:
        lines.append(_Line("average", found["averages"], "value", _BLACK, "o"))
    for j, name in enumerate(domains):
        cells = [row[j] for row in matrix]
        turn, own = divmod(j, len(_COLOURS))
        style = _DASHES[turn % len(_DASHES)]
        lines.append(_Line(_short(name), cells, "score", _COLOURS[own], _MARKERS[own], style))
    ticks = [_round_label(one) for one in found["rounds"]]

    def draw(axes: "Axes") -> None:
        handles = []
        for number, line in enumerate(lines):
            shift = 0.05 * (number - (len(lines) - 1) / 2)
            x = [place + shift for place in range(len(ticks))]
            handles.append(line.draw(axes, x, is_main=number == 0))
        order = sorted(range(len(lines)), key=lambda i: -lines[i].values[-1])
        legend = axes.legend(
            [handles[i] for i in order],
            [f"{lines[i].values[-1]:.1f}  {lines[i].name}" for i in order],
            title=f"at the end, {ticks[-1].splitlines()[0]}",
            loc="upper left",
            bbox_to_anchor=(1.0, 1.03),
            frameon=False,
            alignment="left",
        )
        for text, i in zip(legend.get_texts(), order, strict=True):
            text.set_color(lines[i].colour)
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set_xlim(-0.4, len(ticks) - 0.6)
        axes.set_ylabel(_unit(metric))
        axes.set_title(f"{_title(metric)} after each round")

    return Panel(max(2.9, 0.8 + 0.2 * len(lines)), draw)


@dataclass(frozen=True)
class _Line:
    """A value after each round, with its interval."""

    name: str
    cells: Sequence[Mapping[str, Any]]
    key: str
    colour: str
    marker: str
    style: str = "-"

    @property
    def values(self) -> list[float]:
        return [cell[self.key] for cell in self.cells]

    def draw(self, axes: "Axes", x: Sequence[float], *, is_main: bool) -> "Line2D":
        drawn = axes.errorbar(
            x,
            self.values,
            yerr=_errors(self.values, self.cells),
            color=self.colour,
            marker=self.marker,
            markersize=5,
            linewidth=2 if is_main else 1.1,
            elinewidth=1.4 if is_main else 0.8,
            zorder=3 if is_main else 2,
            linestyle=self.style,
            markerfacecolor=self.colour if self.style == "-" else "white",
        )
        line: Line2D = drawn[0]
        return line


def _round_label(one: Mapping[str, Any]) -> str:
    label = "source only" if one["round"] == 0 else f"round {one['round']}"
    return label if one["adapted_to"] is None else f"{label}\n{_short(one['adapted_to'])}"


# ---------------------------------------------------------------- gains and scores


def _gains_panel(metric: str, found: Mapping[str, Any]) -> Panel:
    rows = list(_groups(found))

    def draw(axes: "Axes") -> None:
        axes.axvline(0, color=_GREY, linewidth=0.8, zorder=1)
        _forest(axes, rows, "difference", "{:+.1f}")
        axes.set_xlabel(f"gain, {_unit(metric)}, with 95 % interval")
        axes.set_title(f"{_title(metric)} against the other predictions")

    return Panel(_forest_height(rows), draw)


def _scores_panel(metric: str, found: Mapping[str, Any]) -> Panel:
    rows = list(_groups(found))

    def draw(axes: "Axes") -> None:
        _forest(axes, rows, "score", "{:.1f}")
        axes.set_xlabel(f"{_unit(metric)}, with 95 % interval")
        axes.set_title(_title(metric))

    return Panel(_forest_height(rows), draw)


Row = tuple[str, Mapping[str, Any], float]


def _groups(found: Mapping[str, Any]) -> Iterator[Row]:
    """Name, entry and place of each row; a gap between the sorts of groups."""
    yield "all", found, 0.0
    place = 1.0
    if "mean_of_domains" in found:
        yield "mean of domains", found["mean_of_domains"], place
        place += 1
    for group in ("domains", "kinds"):
        place += 0.4
        for name, entry in found.get(group, {}).items():
            yield _short(name), entry, place
            place += 1


def _forest_height(rows: Sequence[Row]) -> float:
    return 1.05 + 0.22 * (rows[-1][2] + 1)


def _forest(axes: "Axes", rows: Sequence[Row], key: str, form: str) -> None:
    """One row a group, first on top: a point, its interval, and both as words at the right."""
    for name, entry, place in rows:
        value, interval = entry[key], entry["interval"]
        is_apart = interval is not None and not interval[0] <= 0 <= interval[1]
        axes.errorbar(
            [value],
            [place],
            xerr=_errors([value], [entry]),
            color=_BLACK if name == "all" else _COLOURS[0],
            marker="o",
            markersize=5.5,
            markerfacecolor=None if is_apart else "white",
            linewidth=1.4,
        )
        _beside(axes, place, 38, "right", _number(form, value))
        if interval is not None:
            low, high = (_number(form, end) for end in interval)
            _beside(axes, place, 46, "left", f"{low} to {high}")
        _beside(axes, place, 188, "right", f"n = {entry['n']:,}", _GREY)
    axes.set_yticks([place for _, _, place in rows], [name for name, _, _ in rows])
    axes.set_ylim(rows[-1][2] + 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)


def _beside(
    axes: "Axes", place: float, points: float, side: str, words: str, colour: str = _BLACK
) -> None:
    """Words to the right of the axes, at the height of a row, so many points away."""
    axes.annotate(
        words,
        xy=(1.0, place),
        xycoords=("axes fraction", "data"),
        xytext=(points, 0),
        textcoords="offset points",
        ha=side,
        va="center",
        color=colour,
        annotation_clip=False,
    )


def _number(form: str, value: float) -> str:
    """With a true minus sign, which is as wide as the plus sign."""
    return form.format(value).replace("-", "\N{MINUS SIGN}")


# ---------------------------------------------------------------- bytes


def _bytes_panel(metric: str, report: Mapping[str, Any], sent: Sequence[str]) -> Panel:
    rounds = report.get("rounds", {}).get(metric)
    series = [] if rounds is None else _cumulated(rounds, report["link"], sent)

    def draw(axes: "Axes") -> None:
        if series:
            _lines_of_bytes(axes, metric, rounds, series)
        else:
            _points_of_bytes(axes, metric, report, sent)
        axes.set_title(f"{_title(metric)} against the bytes it took")

    return Panel(2.7, draw)


def _cumulated(
    rounds: Mapping[str, Any], link: Mapping[str, Any], sent: Sequence[str]
) -> list[tuple[str, list[int]]]:
    """Bytes so far at each round, of each direction that has a file for each round."""
    found = []
    for part in sent:
        sizes = link[part]["stored_bytes_by_file"]
        if len(sizes) == len(rounds["rounds"]) - 1:
            found.append((part, [sum(sizes[:number]) for number in range(len(sizes) + 1)]))
    return found


def _lines_of_bytes(
    axes: "Axes", metric: str, rounds: Mapping[str, Any], series: Sequence[tuple[str, list[int]]]
) -> None:
    for number, (part, x) in enumerate(series):
        line = _Line(part, rounds["averages"], "value", _COLOURS[number], _MARKERS[number])
        line.draw(axes, x, is_main=True)
        axes.annotate(
            f"{part} {x[-1]:,}: {line.values[-1]:.1f}",
            xy=(x[-1], line.values[-1]),
            xytext=(8, -3),
            textcoords="offset points",
            color=line.colour,
            annotation_clip=False,
        )
    axes.set_xlim(left=-0.02 * max(x[-1] for _, x in series))
    axes.set_xlabel("bytes over the link so far")
    axes.set_ylabel(f"{_unit(metric)}, average")
    _comma_ticks(axes, most=4)


def _points_of_bytes(
    axes: "Axes", metric: str, report: Mapping[str, Any], sent: Sequence[str]
) -> None:
    entry = report["scores"][metric]
    score = entry["score"]
    low, high = entry["interval"] or (score, score)
    for number, part in enumerate(sent):
        num_bytes = report["link"][part]["stored_bytes"]
        axes.errorbar(
            [num_bytes],
            [score],
            yerr=_errors([score], [entry]),
            color=_COLOURS[number],
            marker=_MARKERS[number],
            markersize=6,
            linewidth=1.4,
        )
        # The first above, the second below: close together they would cover each other.
        axes.annotate(
            f"{part} {num_bytes:,}: {score:.1f}",
            xy=(num_bytes, low if number else high),
            xytext=(0, -6 if number else 6),
            textcoords="offset points",
            ha="center",
            va="top" if number else "bottom",
            color=_COLOURS[number],
        )
    found = report.get("against", {}).get(metric)
    if found is not None:
        other = score - found["difference"]
        axes.axhline(other, color=_GREY, linestyle="--", linewidth=1)
        axes.annotate(
            f"the other predictions {other:.1f}",
            xy=(0.0, other),
            xycoords=("axes fraction", "data"),
            xytext=(4, 3),
            textcoords="offset points",
            color=_GREY,
        )
    sizes = [report["link"][part]["stored_bytes"] for part in sent]
    axes.set_xscale("log")
    axes.set_xlim(max(1, min(sizes)) / 3, max(1, *sizes) * 3)
    axes.margins(y=0.25)
    axes.set_xlabel("bytes over the link")
    axes.set_ylabel(_unit(metric))
    _comma_ticks(axes)


def _link_panel(link: Mapping[str, Any]) -> Panel:
    rows: list[tuple[str, int, str]] = []
    for number, part in enumerate(("uplink", "downlink")):
        if part in link:
            rows.append((part, link[part]["stored_bytes"], _COLOURS[number]))
    which = "sent" if "sent" in link else "raw"
    seen = link.get("encoder_input", {})
    for place in (link, seen):
        for form, num_bytes in place.get(which, {}).get("bytes", {}).items():
            name = _FORM_NAMES.get(form, form)
            at = " at {}x{}".format(*seen["size"]) if place is seen else ""
            rows.append((f"{name}{at}", num_bytes, _BLACK))
    title = "bytes over the link"
    if which in link:
        frames = f"{link[which]['frames']:,} frames" + (" sent" if which == "sent" else "")
        title = f"bytes of the {frames}, and over the link" if len(rows) > 1 else title

    def draw(axes: "Axes") -> None:
        for place, (_, num_bytes, colour) in enumerate(rows):
            axes.axhline(place, color="#e4e4e4", linewidth=0.8, zorder=0)
            axes.plot([num_bytes], [place], "o", color=colour, markersize=6)
            _beside(axes, place, 68, "right", f"{num_bytes:,}", colour)
        sizes = [max(1, num_bytes) for _, num_bytes, _ in rows]
        axes.set_xscale("log")
        axes.set_xlim(min(sizes) / 2, max(sizes) * 2)
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("bytes")
        axes.set_title(title)
        _comma_ticks(axes)

    return Panel(0.95 + 0.22 * len(rows), draw)


_FORM_NAMES = {
    "raw_rgb": "raw pixels",
    "original": "as stored",
    "jpeg_q75": "JPEG q75",
    "webp_q75": "WebP q75",
    "h264_crf23": "H.264 crf 23",
}


# ---------------------------------------------------------------- small things


def _comma_ticks(axes: "Axes", most: int = 5) -> None:
    """Bytes in full, and only so many of them that they stand apart."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if axes.get_xscale() == "log":
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high < 100 * low else (1,)))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(most))


def _errors(
    values: Sequence[float], entries: Sequence[Mapping[str, Any]]
) -> list[list[float]] | None:
    """Distances down and up to the ends of the intervals; nothing where there is none."""
    ends = [
        entry["interval"] or [value, value] for value, entry in zip(values, entries, strict=True)
    ]
    low = [max(0.0, value - end[0]) for value, end in zip(values, ends, strict=True)]
    high = [max(0.0, end[1] - value) for value, end in zip(values, ends, strict=True)]
    return [low, high]


def _title(metric: str) -> str:
    return tasks.METRICS[metric].title if metric in tasks.METRICS else metric


def _unit(metric: str) -> str:
    return f"{_title(metric)} x100"


def _short(name: str) -> str:
    """A name from a file, fit for a picture: no control characters, which SVG may not hold."""
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    return name if len(name) <= 24 else f"{name[:23]}…"
