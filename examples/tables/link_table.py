"""Table 5 in Markdown, from what link.sh measured.

    python link_table.py FOLDER

Reads FOLDER/transfers/LINK/link.json and the results of transfer.py beside it, and what
`cdcca inspect` said of the uplinks and updates. Measures nothing.
"""

import json
import os
import platform
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEGMENT_BYTES, FRAME_BYTES = 1448, 1514  # TCP's content in a full Ethernet frame, without its FCS

HEAD = """\
## Table 5: the link, measured

| what | link | bytes | n | median s | min to max s | ideal s | times smaller | times faster |
|---|---|--:|--:|--:|--:|--:|--:|--:|
"""

PAPER = """\
| **the paper**: five frames, raw RGB | its robot's | 31.10 MB | | 0.498 | | | 1 | 1 |
| **the paper**: five frames, UTS | its robot's | 65.54 KB | | 0.001 | | | 475 | 498 |
| **the paper**: the student, 7.78 B | its robot's | 14.48 GB | | 65.490 | | | 1 | 1 |
| **the paper**: DWC, 1.65 M | its robot's | 0.791 MB | | 0.013 | | | 18,306 | 5,038 |
"""


@dataclass(frozen=True)
class Row:
    """A file that was sent, and the one it is held against."""

    file: str
    what: str
    baseline: str


ROWS = (
    Row("up-five.raw", "up: five frames, raw RGB", "up-five.raw"),
    Row("up-five.stored", "up: five frames, their files", "up-five.raw"),
    Row("up-five.jpeg", "up: five frames, JPEG q75", "up-five.raw"),
    Row("up-five.tokens", "up: **five frames, tokens** ({five} sent)", "up-five.raw"),
    Row("up-five.pictures", "up: **five frames, pictures** ({five} sent)", "up-five.raw"),
    Row("up-five.half", "up: five frames, half of the tokens, int8 ({five} sent)", "up-five.raw"),
    Row("up-stream.raw", "up: the stream, raw RGB", "up-stream.raw"),
    Row("up-stream.stored", "up: the stream, its files", "up-stream.raw"),
    Row("up-stream.jpeg", "up: the stream, JPEG q75", "up-stream.raw"),
    Row("up-stream.tokens", "up: **the stream, tokens** ({stream} sent)", "up-stream.raw"),
    Row("up-stream.pictures", "up: **the stream, pictures** ({stream} sent)", "up-stream.raw"),
    Row(
        "up-stream.half",
        "up: the stream, half of the tokens, int8 ({stream} sent)",
        "up-stream.raw",
    ),
    Row("down-student.weights", "down: the student's weights", "down-student.weights"),
    Row("down-overlay.fp32", "down: the overlay, fp32", "down-student.weights"),
    Row("down-update.usq", "down: **the update**", "down-student.weights"),
    Row("down-update.nf4", "down: the update, `--codec nf4`", "down-student.weights"),
    Row("down-update.paper", "down: the update as the paper codes it", "down-student.weights"),
    Row("up-noise.raw", "up: noise, as the paper's five frames", "up-noise.raw"),
    Row("up-noise.tokens", "up: noise, as the paper's tokens", "up-noise.raw"),
    Row("down-noise.update", "down: noise, as the paper's update", ""),
    Row("up-noise.check", "up: noise, 20 MB", ""),
)


def ideal_seconds(num_bytes: int, bits_per_second: float, one_way_seconds: float) -> float:
    """The least time that a TCP transfer can take on a link, in seconds.

    t = 4 L + 8 n (1514 / 1448) / R: a round trip to connect, the content in full frames at the
    rate, and the way of the last byte and of its acknowledgement. No slow start.

    Args: num_bytes: n >= 0. bits_per_second: R > 0. one_way_seconds: L >= 0.
    """
    on_wire = num_bytes * FRAME_BYTES / SEGMENT_BYTES
    return 4 * one_way_seconds + 8 * on_wire / bits_per_second


def rows_of(folder: Path, sent: dict[str, int]) -> Iterator[str]:
    """The rows of one link."""
    link = json.loads((folder / "link.json").read_text())
    found: dict[str, Any] = {
        path.stem: json.loads(path.read_text()) for path in folder.glob("*-*.json")
    }
    for row in ROWS:
        if row.file not in found:
            continue
        result = found[row.file]
        seconds = result["seconds"]
        ideal = ideal_seconds(result["bytes"], link["bits_per_second"], link["one_way_seconds"])
        smaller = faster = ""
        if row.baseline in found:
            against = found[row.baseline]
            smaller = times(against["bytes"] / result["bytes"])
            faster = times(statistics.median(against["seconds"]) / statistics.median(seconds))
        cells = (
            row.what.format(**sent),
            link["name"],
            f"{result['bytes']:,}",
            str(len(seconds)),
            f"{statistics.median(seconds):.4f}",
            f"{min(seconds):.4f} to {max(seconds):.4f}",
            f"{ideal:.4f}",
            smaller,
            faster,
        )
        yield f"| {' | '.join(cells)} |\n"


def times(ratio: float) -> str:
    """1, 0.85, 12.3, 475: three digits that count."""
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"


def note(folder: Path) -> str:
    """What one link was, and whether it reached its rate."""
    link = json.loads((folder / "link.json").read_text())
    results = [json.loads(path.read_text()) for path in folder.glob("*-*.json")]
    trips = [trip for result in results for trip in result["connect_seconds"]]
    said = (
        f"- {link['name']}: {link['bits_per_second'] / 1e6:,.0f} Mbit/s and "
        f"{link['one_way_seconds'] * 1e3:g} ms each way by {link['shaped']}; connect took "
        f"{_ms(trips)}. "
    )
    check = next((result for result in results if result["file"] == "noise.check"), None)
    if check is not None:
        seconds = [second - statistics.median(trips) for second in check["seconds"]]
        on_wire = 8 * check["bytes"] * FRAME_BYTES / SEGMENT_BYTES
        reached = [on_wire / second / link["bits_per_second"] for second in seconds]
        middle, best = statistics.median(reached), max(reached)
        said += f"20 MB went at {middle:.0%} of the rate (best {best:.0%}). "
    load = f"{link['load_before']} before, {link['load_after']} after"
    return said + f"Load average {load}; CPUs: {os.cpu_count()}.\n"


def _ms(seconds: list[float]) -> str:
    found = [1e3 * second for second in (statistics.median(seconds), min(seconds), max(seconds))]
    return "{:.2f} ms (median; {:.2f} to {:.2f})".format(*found)


def main() -> None:
    work = Path(sys.argv[1])
    sent = {
        name: json.loads((work / f"{name}.json").read_text())["counts"]["shards"]
        for name in ("five", "stream")
    }
    links = sorted((work / "transfers").glob("*/link.json"))
    controls = {
        json.loads(path.read_text())["congestion_control"]
        for path in (work / "transfers").glob("*/*-*.json")
    }
    out = [HEAD]
    for path in links:
        out += rows_of(path.parent, sent)
    out += [
        PAPER,
        "\nThe baselines are the raw pixels and the student's weights. Seconds run from connect() "
        "to the answer to the last byte, each transfer on a new connection and checked by SHA-256; "
        "n is less where they took too long together. `ideal` is two round trips and the bytes in "
        "full frames at the rate, without slow start. The paper's four are not of one link (62, "
        "65, 221 and 61 MB/s; a gigabit is 125). "
        f"TCP ({', '.join(sorted(controls))}) on Linux {platform.release()}.\n\n",
    ]
    out += [note(path.parent) for path in links]
    sys.stdout.write("".join(out))


if __name__ == "__main__":
    main()
