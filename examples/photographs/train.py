"""Train the pair: `python train.py --world WORLD --work WORK -o OUT`, on a world of make_world.py.

Stages run in order, leave checkpoints in the work folder and go on from them when started again;
naming stages runs only those, so that two can run side by side: `tower` beside the texts, `student`
beside `teacher`. OUT gets the folders `student` and `teacher`, ordinary checkpoints. The log, with
wall and CPU seconds, is WORK/log.jsonl.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import beside_pair  # noqa: F401
import torch
from make_world import read_kinds
from measure import load_frames
from pair import save, set_tower
from report import report
from tower import store_tokens, train_tower
from train_roles import FOLDERS, train_pictures, train_queries, train_text
from training import Log, Plan
from transformers import Blip2VisionModel
from words import Vocabulary, make_tokenizer

SEED = 2024
PLANS = {
    "tower": Plan(steps=4200, batch_size=32, peak_rate=1e-3, seed=SEED),
    "student-text": Plan(steps=300, batch_size=32, peak_rate=2e-3, seed=SEED),
    "teacher-text": Plan(steps=200, batch_size=32, peak_rate=2e-3, seed=SEED),
    "student-queries": Plan(steps=400, batch_size=64, peak_rate=2e-3, seed=SEED),
    "teacher-queries": Plan(steps=400, batch_size=64, peak_rate=2e-3, seed=SEED),
    "student": Plan(steps=400, batch_size=32, peak_rate=1.5e-3, seed=SEED),
    "teacher": Plan(steps=600, batch_size=32, peak_rate=1.5e-3, seed=SEED),
}
STAGES = (
    "tower",
    "tokens",
    "student-text",
    "teacher-text",
    "student-queries",
    "teacher-queries",
    "student",
    "teacher",
    "report",
)
WATCHED = ("source", "heldout")


class TimedLog(Log):
    """The log of `../pair`, with the CPU seconds of this process beside the wall's."""

    def write(self, stage: str, step: int, **values: Any) -> None:
        """Append one line."""
        super().write(stage, step, **values, cpu_seconds=round(time.process_time()))


def run(stage: str, world: Path, work: Path, output: Path) -> None:
    """Run one stage."""
    log = TimedLog(work / "log.jsonl")
    vocabulary = Vocabulary(*read_kinds(world))

    def tower() -> Blip2VisionModel:
        # With its weights as the float16 files will hold them.
        return train_tower(world, work, log, PLANS["tower"]).half().float()

    if stage == "tower":
        tower()
    elif stage == "tokens":
        for name in FOLDERS["teacher"]:
            store_tokens(world, work, tower(), name)
    elif stage == "report":
        report(world, output, log)
    else:
        tokenizer = make_tokenizer(vocabulary, SEED)
        role = stage.split("-")[0]
        if stage.endswith("-text"):
            train_text(work, role, vocabulary, tokenizer, log, PLANS[stage])
        elif stage.endswith("-queries"):
            train_queries(world, work, role, vocabulary, tokenizer, log, PLANS[stage])
        else:
            watched = {name: load_frames(world / name, tower()) for name in WATCHED}
            model = train_pictures(
                world, work, role, vocabulary, tokenizer, log, PLANS[stage], watched
            )
            set_tower(model, tower())
            save(model, tokenizer, output / role)
    log.write("done", PLANS[stage].steps if stage in PLANS else 0, what=stage)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", type=Path, required=True, help="the folder of make_world.py")
    parser.add_argument("--work", type=Path, required=True, help="for tokens and checkpoints")
    parser.add_argument("-o", "--output", type=Path, required=True, help="for the two models")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=SEED, help="another one trains another pair")
    parser.add_argument(
        "stages", nargs="*", default=STAGES, metavar="stage", help=f"of: {', '.join(STAGES)}"
    )
    options = parser.parse_args()
    if unknown := set(options.stages) - set(STAGES):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}")
    if not (options.world / "world.json").exists():
        parser.error(f"{options.world}: no world.json: make a world with make_world.py first")
    PLANS.update({name: replace(plan, seed=options.seed) for name, plan in PLANS.items()})
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    for stage in options.stages:
        run(stage, options.world, options.work, options.output)


if __name__ == "__main__":
    main()
