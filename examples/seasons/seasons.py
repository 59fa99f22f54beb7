"""Rounds in a world that changes and comes back: day, night, fog, day.

Each variant is a chain of rounds of its own, through what `cdcca loop` does in a round, on new
frames each time; after each round the device answers held-out frames of every season and of the
source domain. Everything made lies in the output folder, and a chain that is complete there is not
run again; `report.py` makes table and figure of it.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from weather import SEASONS, SOURCE, draw_frames, season_of, without_captions

from cdcca_cli import files, models, streams
from cdcca_cli.config import SHIPPED_STUDENT, SHIPPED_TEACHER, Runtime
from cdcca_cli.datasets import read_frames
from cdcca_cli.distillation.anchors import open_anchors
from cdcca_cli.distillation.drift import Drift
from cdcca_cli.distillation.optimiser import open_overlay
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.downlink.settings import CompressSettings
from cdcca_cli.formats import shard_stream
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.predictions import encode_line
from cdcca_cli.formats.shard import Shard
from cdcca_cli.loop.rounds import Cycle, RoundSettings, Work
from cdcca_cli.models import LoadedModel
from cdcca_cli.models.initial import create_device
from cdcca_cli.payloads.opening import Opener
from cdcca_cli.skipped import Skipped
from cdcca_cli.teachers.settings import LabelSettings
from cdcca_cli.text import parse_amount
from cdcca_cli.uplink.answers import answer_frames
from cdcca_cli.uplink.coding import Coder
from cdcca_cli.uplink.sampling import sample_frames
from cdcca_cli.uplink.settings import AnswerSettings, PayloadSettings, SampleSettings

PROBES = (*dict.fromkeys(SEASONS), SOURCE)
PROBE_SEED, ANCHOR_SEED, STREAM_SEED = 77_000_000, 78_000_000, 80_000_000
BATCH_SIZE = 64
ON = Runtime("cpu", "float32")
VARIANTS = ("plain", "anchors and replay", "anchors", "replay")


class World:
    """The frames of all rounds, those that are scored, and the anchors."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.out, self.options = options.output, options
        folders = {
            probe: draw_frames(self.out / "probes" / probe, probe, options.probe, PROBE_SEED + at)
            for at, probe in enumerate(PROBES)
        }
        self.probes = {probe: without_captions(folder) for probe, folder in folders.items()}
        self.anchors = self.out / "anchors.tokens"
        self.drift = self.out / "drift.tokens"
        drawn = draw_frames(self.out / "anchors", SOURCE, options.anchors, ANCHOR_SEED)
        device = create_device(self.out / "sampler", options.student, force=True)
        student = models.load_device(device, compute=ON.compute, dtype=ON.dtype)
        coder = Coder(student, PayloadSettings("tokens"), device.codebook())
        for path, frames in ((self.anchors, drawn), (self.drift, self.probes[SOURCE])):
            if not path.exists():
                self._sample(path, frames, student, coder)

    def stream(self, seed: int, number: int) -> Path:
        """The new frames of a round."""
        season = season_of(number, self.options.rounds)
        folder = self.out / f"seed-{seed}" / "stream" / f"r{number:02d}"
        return draw_frames(folder, season, self.options.frames, STREAM_SEED + 1000 * seed + number)

    def score(self, model: LoadedModel, folder: Path) -> None:
        """Write a model's answers to the questions about every probe."""
        how = AnswerSettings(batch_size=BATCH_SIZE)
        folder.mkdir(parents=True, exist_ok=True)
        for probe, manifest in self.probes.items():
            if not (path := folder / f"{probe}.jsonl").exists():
                answers = answer_frames(model, read_frames(str(manifest)), how)
                path.write_text("".join(map(encode_line, answers)))

    def drift_of(self, student: LoadedModel, mirror: Device, how: DistillSettings) -> float:
        """The drift on source frames that are no anchors, in nats an answer token."""
        skipped = Skipped(strict=True)
        shards = Opener(student, mirror.codebook_of).open_all(read_shards(self.drift), skipped)
        probe = open_anchors(shards, student, mirror, replace(how, holdout=0), skipped).dataset
        overlay = open_overlay(student, mirror.read_overlay(), mirror.lora.alpha)
        (found,) = Drift(student, overlay, SOURCE, probe, probe.train).of(overlay.values)
        student.freeze()
        return found

    def _sample(self, path: Path, frames: Path, student: LoadedModel, coder: Coder) -> None:
        """Shards of frames, with all tokens and all questions."""
        every = SampleSettings(top=parse_amount("100%"), keep=parse_amount("100%"))
        with files.output(path) as file, shard_stream.writer(file) as write:
            items = sample_frames(student, read_frames(str(frames)), every, None, Skipped(), coder)
            for item in items:
                write(item.shard, item.picture)


def read_shards(path: Path) -> Iterator[Shard]:
    """The shards of a file."""
    with path.open("rb") as file:
        yield from shard_stream.read_shards(file, where=str(path))


def run_chain(world: World, seed: int, variant: str) -> None:
    """All rounds of a variant, unless its last one is there."""
    options = world.options
    folder = world.out / f"seed-{seed}" / variant
    if (folder / f"round-{options.rounds}" / "round.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    device = create_device(folder / "device", options.student)
    how = RoundSettings(
        sample=SampleSettings(top=parse_amount("50%"), batch_size=BATCH_SIZE, seed=100 * seed),
        payload=PayloadSettings("tokens"),
        label=LabelSettings(),
        distill=DistillSettings(
            epochs=options.epochs,
            seed=100 * seed,
            labels=(str(world.out / f"seed-{seed}" / "teacher.labels"),),
            replay_share=float("replay" in variant),
        ),
        compress=CompressSettings(),
    )
    anchors = [world.anchors] if "anchors" in variant else []
    cycle = Cycle(device, None, options.teacher, how, Work(folder), ON, anchors)
    for number in range(1, options.rounds + 1):
        done, _ = cycle.round(number, read_frames(str(world.stream(seed, number))))
        inner = folder / f"round-{number}"
        world.score(cycle.student, inner)
        made = done.as_json() | {
            "season": season_of(number, options.rounds),
            "source_drift": world.drift_of(cycle.student, cycle.mirror, how.distill),
        }
        (inner / "round.json").write_text(json.dumps(made, indent=1) + "\n")
        streams.message(f"{variant}, seed {seed}: {done.summary()}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Rounds through day, night, fog and day again.")
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("-o", "--output", type=Path, default=Path("seasons"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rounds", type=int, default=20, help="a quarter a season  [20]")
    parser.add_argument("--frames", type=int, default=60, help="new ones in each round  [60]")
    parser.add_argument("--probe", type=int, default=100, help="scored of each season  [100]")
    parser.add_argument("--anchors", type=int, default=300, help="source frames to keep to  [300]")
    parser.add_argument("--epochs", type=int, help="of training in a round  [as usual]")
    parser.add_argument("--student", default=SHIPPED_STUDENT)
    parser.add_argument("--teacher", default=SHIPPED_TEACHER)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if unknown := sorted(set(options.variants) - set(VARIANTS)):
        parser.error(f"{', '.join(unknown)}: there are {', '.join(VARIANTS)}")
    Runtime("cpu", "float32", threads=options.threads).set_threads()
    world = World(options)
    for name, where in (("start", options.student), ("teacher", options.teacher)):
        model = models.load(where, compute=ON.compute, dtype=ON.dtype)
        world.score(model, world.out / name)
    for seed in options.seeds:
        for variant in options.variants or VARIANTS:
            run_chain(world, seed, variant)


if __name__ == "__main__":
    main()
