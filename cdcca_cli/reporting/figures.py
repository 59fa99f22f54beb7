"""The charts of the page, by matplotlib, as SVG that stands in HTML.

What matplotlib writes is made fit for a page with others like it: ids are unique or gone, colours
are variables of the page's style sheet (so that it has a dark form), texts stay texts in the page's
font, and a title and a description are there for those who cannot see it. `scoring.charts` has the
style that all of cdcca's charts share.
"""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from cdcca_cli.errors import Unavailable
from cdcca_cli.scoring import charts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FEW = 12  # rounds that can be told apart
_WIDTH = 4.6  # inches, so that the text can be read at the width of a phone
_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"
_CUSTOM = "--"  # what the names of a style sheet's variables begin with
_NAMES = {charts.BLACK: "ink", charts.GREY: "muted", charts.LIGHT: "line"}
_NAMES |= {"#ffffff": "paper", "#cccccc": "line"}
_NAMES |= {colour.lower(): f"c{i}" for i, colour in enumerate(charts.COLOURS)}
_COLOUR = re.compile("#[0-9a-fA-F]{6}")
_FONT = re.compile(r"font: ((?:\w+ )*[\d.]+px)[^;]*")
Points = Sequence[Mapping[str, Any]]
_BANDS = (("q10", "q90", 0.15), ("q25", "q75", 0.3))


@dataclass(frozen=True)
class Chart:
    """What is drawn: its name, unique on the page, and what it shows in words."""

    name: str
    title: str
    words: str
    height: float
    draw: Callable[["Axes"], None]


def require() -> None:
    """Raises: Unavailable (69) without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise Unavailable("a report needs matplotlib: pip install 'cdcca[plot]'") from None


def render(chart: Chart) -> Markup:
    """The SVG element. Raises: as `require`."""
    require()
    import matplotlib
    from matplotlib.figure import Figure

    style = charts.STYLE | {"svg.hashsalt": chart.name}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a name in a script that the font lacks
        figure = Figure((_WIDTH, chart.height), layout="constrained")
        axes = figure.subplots()
        chart.draw(axes)
        _legend(figure, axes)
        written = io.BytesIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return _inline(written.getvalue(), chart)


def _legend(figure: "Figure", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        columns = 2 if max(map(len, labels)) > 12 else 3
        figure.legend(handles, labels, loc="outside lower left", ncols=columns, frameon=False)


def _inline(written: bytes, chart: Chart) -> Markup:
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(written)
    for parent in root.iter():
        for child in [*parent]:
            if child.tag.endswith("}metadata") or child.tag.endswith("}style"):
                parent.remove(child)
    used = {
        name
        for element in root.iter()
        for value in element.attrib.values()
        for name in re.findall(r"#([\w-]+)(?=\)|$)", value)
    }
    for element in root.iter():
        _mend(element, chart.name, used)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    labels = [f"{chart.name}-title", f"{chart.name}-words"]
    root.attrib |= {"class": "chart", "role": "img", "aria-labelledby": " ".join(labels)}
    for place, (tag, label, words) in enumerate(
        [("title", labels[0], chart.title), ("desc", labels[1], chart.words)]
    ):
        element = ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": label})
        element.text = words
        root.insert(place, element)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _mend(element: ElementTree.Element, prefix: str, used: set[str]) -> None:
    own = element.attrib.pop("id", None)
    if own in used:
        element.set("id", f"{prefix}-{own}")
    for name, value in [*element.attrib.items()]:
        if name == _HREF:
            del element.attrib[name]
            element.set("href", f"#{prefix}-{value[1:]}")
            continue
        value = re.sub(r"url\(#([\w-]+)\)", rf"url(#{prefix}-\1)", value)
        if name in ("style", "fill", "stroke"):
            value = _COLOUR.sub(_variable, value)
            value = _FONT.sub(rf"font: \1 var({_CUSTOM}font)", value)
        element.set(name, value)


def _variable(colour: re.Match[str]) -> str:
    name = _NAMES.get(colour[0].lower())
    return colour[0] if name is None else f"var({_CUSTOM}{name})"


# ---------------------------------------------------------------- what is drawn


def scores(prefix: str, title: str, lines: Sequence[tuple[str, Points]]) -> Chart:
    """One metric after each round, of each name of frames, with 95 % intervals."""

    def draw(axes: "Axes") -> None:
        last = 0
        for number, (name, points) in enumerate(lines):
            cells = [
                {**one, "interval": None if one["low"] is None else (one["low"], one["high"])}
                for one in points
            ]
            x = [one["round"] + 0.04 * (number - (len(lines) - 1) / 2) for one in points]
            size = 5 if len(points) <= _FEW else 2.5
            line = charts.Line(charts.short(name), cells, "value", number, marker_size=size)
            line.draw(axes, x)
            last = max(last, *(one["round"] for one in points))
        _round_ticks(axes, last)
        axes.set_xlabel("after round (0: source only)")
        axes.set_ylabel(f"{title} x100")
        axes.set_title(f"{title} after each round")

    words = "; ".join(
        f"{charts.short(name)} from {points[0]['value']:.1f} to {points[-1]['value']:.1f}"
        for name, points in lines
    )
    return Chart(f"{prefix}-scores", f"{title} after each round", words, 2.7, draw)


def _round_ticks(axes: "Axes", last: int) -> None:
    axes.set_xticks(range(0, last + 1, last // 10 + 1))
    axes.set_xlim(-0.4, last + 0.4)


def link(prefix: str, rows: Sequence[tuple[str, int, str]]) -> Chart:
    """Bytes of each row, with the number of its colour."""

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import EngFormatter

        charts.draw_bytes(axes, rows)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # in full they would touch

    words = "; ".join(f"{name} {size:,} bytes" for name, size, _ in rows)
    return Chart(f"{prefix}-link", "Bytes over the link", words, 0.9 + 0.22 * len(rows), draw)


def training(prefix: str, term: str, rounds: Points) -> Chart:
    """One term of the loss over the steps of all rounds; a line where a round begins."""

    def draw(axes: "Axes") -> None:
        begin = 0
        for one in rounds:
            values = [float("nan") if v is None else v for v in one["curves"].get(term, [])]
            if begin and len(rounds) <= _FEW:
                axes.axvline(begin, color=charts.LIGHT, linewidth=0.8, zorder=0)
            if values:
                x = [begin + step for step in one["steps"]]
                axes.plot(x, values, color=charts.COLOURS[0], linewidth=1)
            begin += max(one["steps"], default=0)
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.set_xlabel("step, all rounds")
        axes.set_ylabel("nats" if term in ("ce", "kl", "anchor") else term)
        axes.set_title(charts.short(term))

    known = [v for one in rounds for v in one["curves"].get(term, []) if v is not None]
    words = f"from {known[0]:.3g} to {known[-1]:.3g}" if known else "no finite value"
    return Chart(f"{prefix}-training", f"{charts.short(term)} by step", words, 1.9, draw)


def entropy(prefix: str, points: Points, *, over_time: bool) -> Chart:
    """The median of the answers' entropy, and the middle 50 and 80 percent of answers."""
    key, what = ("from", "over time") if over_time else ("round", "before each round")

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import MaxNLocator

        x = [*range(len(points))] if over_time else [one[key] for one in points]
        for low, high, opacity in _BANDS:
            under, over = ([one[name] for one in points] for name in (low, high))
            axes.fill_between(x, under, over, color=charts.COLOURS[0], alpha=opacity, linewidth=0)
        median = [one["q50"] for one in points]
        axes.plot(x, median, color=charts.COLOURS[0], marker="o", markersize=3)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("nats a token")
        if over_time:
            ends = sorted({0, len(points) - 1})
            axes.set_xticks(ends, [points[i]["from"] for i in ends])
            axes.get_xticklabels()[0].set_horizontalalignment("left")
            axes.get_xticklabels()[-1].set_horizontalalignment("right")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
            axes.set_xlabel("round")
        axes.set_title(f"Entropy of the stream {what}")

    first, last = points[0]["q50"], points[-1]["q50"]
    words = f"the median goes from {first:.3g} to {last:.3g} nats a token"
    return Chart(f"{prefix}-entropy", f"Entropy of the stream {what}", words, 2.4, draw)
