"""Make the shipped models and frames from nothing: `python make_pair.py --work DIR --output DIR`.

Stages run in order, leave checkpoints in the work folder and go on from them when started again.
Naming stages runs only those, so that two can run side by side: `tower` beside the texts,
`student` beside `teacher`.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from gap import report
from language import make_tokenizer
from measure import load_frames
from pair import save, set_tower
from train_pair import train_pictures, train_queries, train_text
from train_tower import draw_pictures, store_tokens, train_tower
from training import Log, Plan
from transformers import Blip2VisionModel
from world import write_frames

SEED = 2024
PLANS = {
    "tower": Plan(steps=4000, batch_size=64, peak_rate=1e-3, seed=SEED),
    "tower-places": Plan(steps=700, batch_size=64, peak_rate=5e-4, seed=SEED),
    "student-text": Plan(steps=1750, batch_size=32, peak_rate=2e-3, seed=SEED),
    "teacher-text": Plan(steps=250, batch_size=32, peak_rate=2e-3, seed=SEED),
    "student-queries": Plan(steps=1500, batch_size=64, peak_rate=2e-3, seed=SEED),
    "teacher-queries": Plan(steps=1500, batch_size=64, peak_rate=2e-3, seed=SEED),
    "student": Plan(steps=2000, batch_size=32, peak_rate=1.5e-3, seed=SEED),
    "teacher": Plan(steps=4000, batch_size=32, peak_rate=1.5e-3, seed=SEED),
}
WATCHED = ("source", "heldout")
PICTURES = {"source": (16_000, 10_000_000), "target": (32_000, 20_000_000)}
FRAMES = {
    "stream": ("t", "target", 240, 31_000_000),
    "heldout": ("h", "target", 120, 32_000_000),
    "source": ("s", "source", 80, 33_000_000),
    "anchors": ("a", "source", 300, 34_000_000),
}
STAGES = (
    "frames",
    "pictures",
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


def _tower(work: Path, log: Log) -> Blip2VisionModel:
    """The shared tower, with its weights as the float16 files will hold them.

    Left to itself the tower forgets where a patch lies, and no query can look at a place; the
    second stage has it keep that too.
    """
    train_tower(work, log, PLANS["tower"], "tower")
    plan = PLANS["tower-places"]
    return train_tower(work, log, plan, "tower-places", "tower", place_weight=1.0).half().float()


def run(stage: str, work: Path, output: Path, threads: int) -> None:
    """Run one stage."""
    log = Log(work / "log.jsonl")
    if stage == "frames":
        for name, (prefix, domain, count, seed) in FRAMES.items():
            write_frames(output / "frames" / name, prefix, domain, count, seed)
    elif stage == "pictures":
        for domain, (count, seed) in PICTURES.items():
            draw_pictures(work, domain, count, seed, threads)
    elif stage == "tower":
        _tower(work, log)
    elif stage == "tokens":
        tower = _tower(work, log)
        for domain in PICTURES:
            store_tokens(work, tower, domain)
    elif stage.endswith("-text"):
        role = stage.removesuffix("-text")
        train_text(work, role, make_tokenizer(SEED), log, PLANS[stage])
    elif stage.endswith("-queries"):
        role = stage.removesuffix("-queries")
        train_queries(work, role, make_tokenizer(SEED), log, PLANS[stage])
    elif stage == "report":
        report(output, log, SEED)
    else:
        tokenizer, tower = make_tokenizer(SEED), _tower(work, log)
        watched = {name: load_frames(output / "frames" / name, tower) for name in WATCHED}
        model = train_pictures(work, stage, tokenizer, log, PLANS[stage], watched)
        set_tower(model, tower)
        save(model, tokenizer, output / stage)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for pictures, tokens and checkpoints"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for the models and the frames"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=SEED, help="another one trains another pair")
    parser.add_argument(
        "stages", nargs="*", default=STAGES, metavar="stage", help=f"of: {', '.join(STAGES)}"
    )
    options = parser.parse_args()
    if unknown := set(options.stages) - set(STAGES):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}")
    PLANS.update({name: replace(plan, seed=options.seed) for name, plan in PLANS.items()})
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    for stage in options.stages:
        run(stage, options.work, options.output, options.threads)


if __name__ == "__main__":
    main()
