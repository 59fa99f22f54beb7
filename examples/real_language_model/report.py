"""What rounds.sh gave, as two Markdown tables: `python report.py OUT`.

Scores are those of `cdcca eval`, differences to round 0 with paired 95 % intervals over frames.
Seconds are of a CPU; a stage's are the mean of its runs, memory the largest of them.
"""

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

METRICS = {"mc": "MC", "da": "DA", "cider": "CIDEr"}


def evaluate(out: Path, what: str, number: int) -> dict[str, Any]:
    """The report of `cdcca eval` on the answers of a round."""
    command = ["cdcca", "eval", str(out / str(number) / f"{what}.jsonl")]
    command += ["--references", str(out / f"{what}.jsonl"), "--json", "--quiet"]
    if number:
        command += ["--against", str(out / "0" / f"{what}.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def cell(report: dict[str, Any], metric: str) -> str:
    """A score, and its difference with the interval."""
    text = f"{report['scores'][metric]['score']:.1f}"
    if "against" in report:
        found = report["against"][metric]
        low, high = found["interval"]
        text += f" ({found['difference']:+.1f}: {low:+.1f} to {high:+.1f})"
    return text


def print_row(*cells: Any) -> None:
    """One line of a table."""
    sys.stdout.write("| " + " | ".join(map(str, cells)) + " |\n")


def main() -> None:
    """The command line."""
    out = Path(sys.argv[1])
    rounds = sorted(int(path.name) for path in out.iterdir() if path.name.isdecimal())
    print_row(
        "round",
        *[f"{w} {m}" for w in ("held-out", "source") for m in METRICS.values()],
        "up",
        "down",
    )
    print_row(*["---"] * (3 + 2 * len(METRICS)))
    for number in rounds:
        reports = [evaluate(out, what, number) for what in ("heldout", "source")]
        cells = [cell(report, metric) for report in reports for metric in METRICS]
        folder = out / str(number)
        up = ", ".join(
            f"{path.stem} {path.stat().st_size:,}" for path in sorted(folder.glob("*.shards"))
        )
        update = folder / "update.cdcca"
        print_row(number, *cells, up, f"{update.stat().st_size:,}" if update.exists() else "")
    took = defaultdict(list)
    for line in map(json.loads, (out / "stages.jsonl").read_text().splitlines()):
        took[line["stage"]].append(line)
    sys.stdout.write("\n")
    print_row("stage", "runs", "CPU seconds", "memory in MB")
    print_row(*["---"] * 4)
    for name, lines in took.items():
        seconds = sum(line["cpu_seconds"] for line in lines) / len(lines)
        print_row(name, len(lines), f"{seconds:.0f}", max(line["megabytes"] for line in lines))


if __name__ == "__main__":
    main()
