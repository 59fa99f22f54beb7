"""Train the pair: `python train.py --world WORLD --photographs MODEL --work WORK -o OUT`.

WORLD is a world of `../photographs`, MODEL a model of it, for its tower. The stages `student` and
`teacher` run in order, leave checkpoints in the work folder and go on from them when started again.
OUT gets the folders `student` and `teacher`, ordinary checkpoints with a tokenizer, a chat template
and processors. The log, with wall and CPU seconds, is WORK/log.jsonl.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import beside_photographs  # noqa: F401
import torch
from checkpoints import build, load, read_tower, save
from prompts import IMAGES, Packer, read_frames
from smollm2 import language_model, tokenizer
from train_roles import train_role
from training import Log, Plan

SEED = 2024
PLANS = {
    "student-names": Plan(steps=300, batch_size=32, peak_rate=2e-3, seed=SEED),
    "student": Plan(steps=120, batch_size=8, peak_rate=1e-3, seed=SEED),
    "teacher-names": Plan(steps=300, batch_size=32, peak_rate=5e-4, seed=SEED),
    "teacher": Plan(steps=140, batch_size=8, peak_rate=1e-3, seed=SEED + 1),
}
STAGES = ("student", "teacher")
WATCHED = {"source": 30, "heldout": 60}


class TimedLog(Log):
    """The log of `../pair`, with the CPU seconds of this process beside the wall's."""

    def write(self, stage: str, step: int, **values: Any) -> None:
        """Append one line."""
        super().write(stage, step, **values, cpu_seconds=round(time.process_time()))


def run(stage: str, options: argparse.Namespace) -> None:
    """Run one stage."""
    words = tokenizer()
    log = TimedLog(options.work / "log.jsonl")
    if stage == "student":
        model = build(options.family, read_tower(options.photographs), language_model(), words)
    else:
        model = load(options.output / "student")
    watched = {name: read_frames(options.world / name)[:n] for name, n in WATCHED.items()}
    packer = Packer(words, options.family)
    train_role(model, packer, stage, options.world, options.work, log, PLANS, watched)
    save(model, words, options.output / stage)
    log.write("done", PLANS[stage].steps, what=stage)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", type=Path, required=True, help="of ../photographs")
    parser.add_argument("--photographs", type=Path, required=True, help="a model of ../photographs")
    parser.add_argument("--family", choices=sorted(IMAGES), default="llava")
    parser.add_argument("--work", type=Path, required=True, help="for checkpoints and the log")
    parser.add_argument("-o", "--output", type=Path, required=True, help="for the two models")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "stages", nargs="*", default=STAGES, metavar="stage", help=f"of: {', '.join(STAGES)}"
    )
    options = parser.parse_args()
    if unknown := set(options.stages) - set(STAGES):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}")
    torch.set_num_threads(options.threads)
    for folder in (options.work, options.output):
        folder.mkdir(parents=True, exist_ok=True)
    for stage in options.stages:
        run(stage, options)


if __name__ == "__main__":
    main()
