"""What the uplink's payload and the choice of questions cost, and what they teach.

    python examples/benchmarks/uplink.py --out runs.jsonl [--payloads P ...] [--tops T ...]
    python examples/benchmarks/uplink.py --out runs.jsonl --table

Each run is the loop of `cdcca loop`: rounds of sample, distill, compress and apply from a new
device and its mirror, then the device's scores on `heldout` frames, which are never sent, and on
`source` frames. Payloads: `0.3`, the defaults of that version (int8, half of the tokens, by
variance); `int8` and `klt STEP`, all tokens; `avif QUALITY` and other pictures. A run that is in
the file is not made again. The shipped pair and frames are used unless `--pair` and `--frames`
name folders.

`--table` prints bytes a round and scores, each against `0.3` at 50 % (paired by frame over the mean
of the seeds, 95 % bootstrap intervals; seeds themselves move MC by some 1.5 points).
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cdcca_cli.acceptance import ValidationSet, read_validation_set, score_predictions
from cdcca_cli.config import SHIPPED_STUDENT, SHIPPED_TEACHER, Runtime
from cdcca_cli.datasets import read_frames
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.downlink.settings import CompressSettings
from cdcca_cli.loop import demo
from cdcca_cli.loop.rounds import Cycle, RoundSettings, Work
from cdcca_cli.models.initial import create_device
from cdcca_cli.scoring.measures import counts_for
from cdcca_cli.text import parse_amount
from cdcca_cli.uplink.settings import PayloadSettings, SampleSettings

PAYLOADS = ("0.3", "int8", "klt 1", "klt 1.5", "klt 2.5", "avif 30", "avif 50", "avif 70")
TOPS = ("10%", "25%", "50%")
BASELINE = ("0.3", "50%", "entropy")
METRICS = ("mc", "da", "cider")
RESAMPLES = 4000


def settings_of(payload: str, top: str, select: str, seed: int) -> RoundSettings:
    """The settings of a run."""
    codec, _, point = payload.partition(" ")
    keep = parse_amount("50%") if payload == "0.3" else None
    if codec in ("avif", "webp", "jpeg"):
        how = PayloadSettings(payload="frame", media=codec, quality=int(point))
    elif codec == "klt":
        how = PayloadSettings(payload="tokens", codec="klt", step=float(point))
    else:
        how = PayloadSettings(payload="tokens", codec="int8")
    return RoundSettings(
        sample=SampleSettings(
            top=parse_amount(top), keep=keep, select=select, batch_size=64, seed=1000 * seed
        ),
        payload=how,
        distill=DistillSettings(seed=1000 * seed),
        compress=CompressSettings(),
    )


def run(args: argparse.Namespace, payload: str, top: str, select: str, seed: int) -> dict[str, Any]:
    """One run: bytes of each round, and the scores of every frame at the end."""
    student = str(args.pair / "student") if args.pair else SHIPPED_STUDENT
    teacher = str(args.pair / "teacher") if args.pair else SHIPPED_TEACHER
    start = time.process_time()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        devices = [create_device(folder / name, student) for name in ("device", "mirror")]
        how = settings_of(payload, top, select, seed)
        cycle = Cycle(*devices, teacher, how, Work(folder / "work"), Runtime("cpu", "float32"))
        frames = read_frames(args.frames / demo.STREAM)
        rounds = [cycle.round(number + 1, frames)[0] for number in range(args.rounds)]
        scores = {}
        for name in (demo.HELD_OUT, demo.SOURCE):
            probe = read_validation_set(args.frames / name)
            scores[name] = each_question(cycle, probe)
    return {
        "payload": payload,
        "top": top,
        "select": select,
        "seed": seed,
        "uplink_bytes": [done.uplink_bytes for done in rounds],
        "frames": [done.num_frames for done in rounds],
        "scores": scores,
        "seconds": round(time.process_time() - start, 1),
    }


def each_question(cycle: Cycle, probe: ValidationSet) -> dict[str, Any]:
    """By metric: the frame and the score of each question or image, in the order of ids."""
    scored = score_predictions(cycle.predict(probe.frames, "scores"), probe.references)
    found: dict[str, Any] = {}
    for metric in METRICS:
        score = scored.all(metric)
        if score is not None and score.each_A is not None:
            pairs = sorted(
                (question.id, frame.id)
                for frame in probe.frames
                for question in frame.questions
                if counts_for(metric, question)
            )
            if len(pairs) != len(score.each_A):
                raise ValueError(f"{metric}: {len(pairs)} questions, {len(score.each_A)} scores")
            values = [round(float(value), 3) for value in score.each_A]
            found[metric] = {"frames": [frame for _, frame in pairs], "values": values}
    return found


# ---------------------------------------------------------------- the table


def rows(runs: list[dict[str, Any]]) -> Iterator[list[str]]:
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for one in runs:
        groups.setdefault((one["payload"], one["top"], one["select"]), []).append(one)
    base = groups.get(BASELINE, [])
    for (payload, top, select), found in groups.items():
        per_round = np.mean([np.mean(one["uplink_bytes"]) for one in found])
        frames = np.mean([np.mean(one["frames"]) for one in found])
        cells = [payload, top, select, str(len(found)), f"{per_round:,.0f}"]
        cells.append(f"{per_round / frames:,.0f}")
        for name in (demo.HELD_OUT, demo.SOURCE):
            for metric in METRICS:
                cells.append(difference(found, base, name, metric))
        yield cells


def difference(
    found: list[dict[str, Any]], base: list[dict[str, Any]], name: str, metric: str
) -> str:
    """The score, and its difference to the baseline with the same seeds, with its interval."""
    if any(metric not in one["scores"][name] for one in found):
        return ""
    value = np.mean([np.mean(one["scores"][name][metric]["values"]) for one in found])
    seeds = {one["seed"] for one in found} & {one["seed"] for one in base}
    if found is base or not seeds:
        return f"{value:.1f}"
    mine, other = (
        np.mean([one["scores"][name][metric]["values"] for one in side if one["seed"] in seeds], 0)
        for side in (found, base)
    )
    units = np.unique(found[0]["scores"][name][metric]["frames"], return_inverse=True)[1]
    sums, counts = np.bincount(units, mine - other), np.bincount(units)
    drawn = np.random.default_rng(0).integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{value:.1f}: {np.mean(mine - other):+.1f} ({low:+.1f} to {high:+.1f})"


def read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="file of the runs, JSON lines")
    parser.add_argument("--pair", type=Path, help="folder with student and teacher")
    parser.add_argument("--frames", type=Path, default=demo.FRAMES)
    parser.add_argument("--payloads", nargs="+", default=PAYLOADS)
    parser.add_argument("--tops", nargs="+", default=TOPS)
    parser.add_argument("--selects", nargs="+", default=["entropy"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table:
        titles = ["payload", "top", "select", "seeds", "bytes a round", "a frame"]
        names = [metric.upper() for metric in METRICS]
        titles += [*(f"target {name}" for name in names), *(f"source {name}" for name in names)]
        table = [titles, ["---"] * len(titles), *rows(read(args.out))]
        sys.stdout.write("".join(f"| {' | '.join(row)} |\n" for row in table))
        return

    def key(one: Mapping[str, Any]) -> tuple[Any, ...]:
        return one["payload"], one["top"], one["select"], one["seed"]

    done = {key(one) for one in read(args.out)}
    for seed in args.seeds:
        for top in args.tops:
            for select in args.selects:
                for payload in args.payloads:
                    if (payload, top, select, seed) not in done:
                        found = run(args, payload, top, select, seed)
                        with args.out.open("a") as file:
                            file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
