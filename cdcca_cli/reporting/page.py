"""The page of a report (`gather`): HTML by the template page.html, with charts as inline SVG.

Jinja2 escapes everything that the object holds. Markup is made here and in `figures` alone, of
numbers, each with its value as the object has it, and of charts. The page has no script and loads
nothing.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from cdcca_cli import streams
from cdcca_cli.reporting import figures
from cdcca_cli.scoring import charts

_NONE = Markup('<span class="none" aria-label="not known">–</span>')
_MOST_TERMS = 6


def require() -> None:
    """Raises: Unavailable (69) without matplotlib; what imports this module needs Jinja2."""
    figures.require()


def render(report: Mapping[str, Any]) -> str:
    """The whole page. Raises: Unavailable without matplotlib."""
    environment = Environment(
        loader=PackageLoader("cdcca_cli.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"num": _num, "signed": _signed, "short": _short}
    environment.filters |= {"times": _times, "minute": _minute}
    drawn = [_charts(run, f"run{i}") for i, run in enumerate(report["runs"], 1)]
    return environment.get_template("page.html").render(report=report, drawn=drawn)


def write(
    report: Mapping[str, Any], output: str | None, *, as_json: bool = False, force: bool = False
) -> None:
    """Write the page, or its object, as a whole. Raises: CannotWrite, and as `render`."""
    if as_json:
        text = json.dumps(report, ensure_ascii=False, allow_nan=False) + "\n"
        with streams.text_output(output) as lines:
            lines.write(text)
        return
    page = render(report).encode("utf-8", "backslashreplace")
    with streams.binary_output(output, "report.html", force=force) as out:
        out.write(page)


def _charts(run: Mapping[str, Any], prefix: str) -> dict[str, list[Markup]]:
    """The charts of a run, by section."""
    found: dict[str, list[figures.Chart]] = {
        "scores": [],
        "link": [],
        "training": [],
        "entropy": [],
    }
    by_metric: dict[str, list[tuple[str, Sequence[Mapping[str, Any]]]]] = {}
    titles = {}
    for series in run["scores"]:
        for metric in series["metrics"]:
            titles[metric["metric"]] = metric["title"]
            by_metric.setdefault(metric["metric"], []).append((series["name"], metric["points"]))
    for metric, lines in by_metric.items():
        found["scores"].append(figures.scores(f"{prefix}-{metric}", titles[metric], lines))
    if run["link"] is not None:
        found["link"].append(figures.link(prefix, _sizes(run["link"])))
    logs = [one for one in run["training"] if one["steps"]]
    terms = list(dict.fromkeys(term for one in logs for term in one["curves"]))[:_MOST_TERMS]
    for i, term in enumerate(terms):
        found["training"].append(figures.training(f"{prefix}-term{i}", term, logs))
    if run["entropy"] is not None:
        rounds, times = run["entropy"]["rounds"], run["entropy"]["times"]
        found["entropy"].append(figures.entropy(f"{prefix}-rounds", rounds, over_time=False))
        if times:
            found["entropy"].append(figures.entropy(f"{prefix}-times", times, over_time=True))
    return {section: [figures.render(one) for one in made] for section, made in found.items()}


def _sizes(link: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """The rows of the chart of bytes: what was sent in colour, what it is compared with black."""
    jpeg = link["jpeg"]
    rows = [
        ("uplink", link["uplink_bytes"], charts.COLOURS[0]),
        ("frames as JPEG", None if jpeg is None else jpeg["bytes"], charts.BLACK),
        ("downlink", link["downlink_bytes"], charts.COLOURS[1]),
        ("changed in float32", link["changed_float32_bytes"], charts.BLACK),
        ("model in float16", link["model_float16_bytes"], charts.BLACK),
    ]
    return [(name, size, colour) for name, size, colour in rows if size is not None]


def _num(value: object, places: int | None = None, sign: str = "") -> Markup:
    """A number as `<data>`, with its value as the object has it; a dash for None."""
    if value is None:
        return _NONE
    if isinstance(value, bool) or not isinstance(value, int | float):
        return escape(value)
    if isinstance(value, int):
        shown = format(value, f"{sign},")
    else:
        shown = format(value, f"{sign}.4g" if places is None else f"{sign},.{places}f")
    shown = shown.replace("-", "\N{MINUS SIGN}")
    return Markup('<data value="{}">{}</data>').format(repr(value), shown)


def _signed(value: object, places: int = 1) -> Markup:
    """As `num`, with the sign of what is above zero."""
    return _num(value, places, "+")


def _short(digest: str) -> str:
    """A digest's first characters."""
    return f"{digest[:19]}…" if digest.startswith("sha256:") and len(digest) > 20 else digest


def _minute(time: str) -> str:
    """A time without its seconds: `2026-11-28 18:40`."""
    return time[:16].replace("T", " ")


def _times(one: int | None, other: int | None) -> str:
    """How many times as large: `5.9 times`."""
    return "" if not one or not other else f"{one / other:,.1f} times"
