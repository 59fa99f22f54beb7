"""What the charts of `plots` and of `cdcca report` share: style, lines with intervals, labels.

Colours are Okabe and Ito's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLACK, GREY, LIGHT = "#000000", "#6b6b6b", "#e4e4e4"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", ":")  # where there are more domains than colours
STYLE = {
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


@dataclass(frozen=True)
class Line:
    """Values with their intervals: of a domain after each round, or against bytes."""

    name: str
    cells: Sequence[Mapping[str, Any]]
    key: str
    number: int | None = None  # of the colour and the marker; None: black and round
    width: float = 1.1
    marker_size: float = 5

    @property
    def values(self) -> list[float]:
        return [cell[self.key] for cell in self.cells]

    def draw(self, axes: "Axes", x: Sequence[float]) -> None:
        colour, marker, dashes = BLACK, "o", "-"
        if self.number is not None:
            turn, own = divmod(self.number, len(COLOURS))
            colour, marker, dashes = COLOURS[own], MARKERS[own], _DASHES[turn % len(_DASHES)]
        axes.errorbar(
            x,
            self.values,
            yerr=errors(self.values, self.cells),
            color=colour,
            marker=marker,
            markersize=self.marker_size,
            linewidth=self.width,
            linestyle=dashes,
            markerfacecolor=colour if dashes == "-" else "white",
            label=f"{self.values[-1]:.1f}  {self.name}",
        )


def label_rows(
    axes: "Axes", places: Sequence[float], names: Sequence[str], words: Sequence[str]
) -> None:
    axes.set_yticks(places, names)
    axes.set_ylim(places[-1] + 0.5, -0.5)
    right = axes.secondary_yaxis("right")
    right.set_yticks(places, words)
    for side in (axes, right):
        side.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    right.spines["right"].set_visible(False)


def draw_bytes(axes: "Axes", rows: Sequence[tuple[str, int, str]]) -> None:
    """Name, bytes and colour of each row, on a logarithmic scale."""
    places = list(range(len(rows)))
    sizes = [num_bytes for _, num_bytes, _ in rows]
    axes.hlines(places, 0, 1, LIGHT, transform=axes.get_yaxis_transform(), zorder=0)
    axes.scatter(sizes, places, color=[colour for _, _, colour in rows])
    axes.set_xscale("log")
    axes.set_xlim(max(1, min(sizes)) / 2, max(1, *sizes) * 2)
    label_rows(axes, places, [name for name, _, _ in rows], [f"{size:,}" for size in sizes])
    axes.set_xlabel("bytes")
    comma_ticks(axes)


def comma_ticks(axes: "Axes") -> None:
    """Bytes in full, and so few of them that they do not touch."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_xlim()
    if axes.get_xscale() == "log":
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high < 100 * low else (1,)))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))


def errors(values: Sequence[float], entries: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Distances down and up to the ends of the intervals; 0 where there is none."""
    low, high = [], []
    for value, entry in zip(values, entries, strict=True):
        begin, end = entry["interval"] or (value, value)
        low.append(max(0.0, value - begin))
        high.append(max(0.0, end - value))
    return [low, high]


def short(name: str) -> str:
    """A name for a picture: short, without control characters, which SVG may not hold."""
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    return name if len(name) <= 24 else f"{name[:23]}…"
