"""Size and loss of the shipped pair's updates, for each codec.

    python examples/benchmarks/downlink.py [--seeds 0 1 2] [--rounds 3] [--json FILE]
    python examples/benchmarks/downlink.py --chain 50 [--seeds 0]

**Updates.** For each seed there are three chains of rounds on the shipped stream, like those of
`cdcca loop`: the device samples, the teacher labels, the update is made against the mirror and
applied to both, and both must have the same digest. All groups are trained. `plain` has the default
training, and its adaptations are coded by every codec. The others train their last steps through
the quantiser, at an entropy of 1.2 and 0.7 bits, and are compared with the same adaptation after as
many more steps at 16 bits. Every chain continues from its own updates. `gain kept` is the share of
the adaptation's own gain that remains, `of all` that of the gain since the source model.

Columns: bits per parameter of the whole file; `held out`, the change of the loss on the
adaptation's own held-out frames (about fifty questions), which chose the step; `probe`, the change
on 544 questions about frames that are never sent, against the teacher's answers, and both shares of
the gain there; bits above the Gaussian bound for the same squared error. Losses are relative to the
adaptation before coding: means over all rounds and seeds, and the worst. The bound is reverse
water-filling over the rank rows of LoRA (rows of A, columns of B) and all other tensors, as
Gaussian sources.

**A chain** (`--chain N`): N rounds of one short epoch each over parts of the stream, coded at about
2.1 bits, and the same in fp32 (`exact`). Checks for equal digests in each round, and prints the
losses on the probe at the end.

Prints tables; `--json` also writes all figures. A round takes about two minutes on one core.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from cdcca_cli import streams
from cdcca_cli.datasets import Frame, read_frames
from cdcca_cli.distillation.distill import distill
from cdcca_cli.distillation.evaluation import HeldOutLoss
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.downlink import codecs, receiver, sender
from cdcca_cli.downlink.change import group_of
from cdcca_cli.downlink.settings import CompressSettings
from cdcca_cli.formats.adaptation import Adaptation, HeldOut
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.label_stream import ShardKey
from cdcca_cli.formats.shard import Shard
from cdcca_cli.loop import demo
from cdcca_cli.models import load, load_device
from cdcca_cli.models.initial import create_device
from cdcca_cli.skipped import Skipped
from cdcca_cli.teachers.labelling import labelled
from cdcca_cli.teachers.local import LocalTeacher
from cdcca_cli.text import parse_amount
from cdcca_cli.uplink.answers import answer_frames
from cdcca_cli.uplink.coding import Coder
from cdcca_cli.uplink.sampling import sample_frames
from cdcca_cli.uplink.settings import AnswerSettings, PayloadSettings, SampleSettings

Overlay = Mapping[str, np.ndarray]
CHECKPOINT = "shipped:student"
RATE_AWARE = {"rate-aware, 1.2": (1.2, 60), "rate-aware, 0.7": (0.7, 200)}
"""Bits by entropy, and steps through the quantiser."""
LOSSLESS_BITS = 16.0
COMPARED = {
    "usq, <= 1 % loss": CompressSettings(max_loss=0.01),
    "usq, 2.2 bits": CompressSettings(bits=2.2),
    "usq, 1.25 bits": CompressSettings(bits=1.25),
    "usq, 0.75 bits": CompressSettings(bits=0.75),
    "nf4": CompressSettings(codec="nf4"),
    "ternary": CompressSettings(codec="ternary"),
    "sign": CompressSettings(codec="sign"),
}
CHUNKS = 10
"""A round of a chain sees every tenth frame of the stream."""


# ---------------------------------------------------------------- one update


@dataclass(frozen=True)
class Coded:
    """A coded adaptation in figures. Losses in nats per answer token: of the base, of the
    adaptation before coding, of what is decoded; first on its held-out part, then on the probe."""

    name: str
    bits: float
    bound: float
    held_out: tuple[float, float, float]
    probe: tuple[float, float, float]
    source: float
    """The source model's loss on the probe."""


def change(losses: tuple[float, float, float]) -> float:
    """The relative growth of the loss by coding."""
    return losses[2] / losses[1] - 1


def gain_kept(losses: tuple[float, float, float]) -> float:
    """The share of the gain that remains; NaN without a gain."""
    before, learnt, decoded = losses
    return (before - decoded) / (before - learnt) if before != learnt else float("nan")


def gaussian_bound(delta: Overlay, decoded: Overlay) -> float:
    """R(D) in bits a parameter at the mean squared error of `decoded`, rank rows water-filled.

    D = mean_i min(w, s_i^2), R = mean_i max(0, 1/2 log2(s_i^2 / w)), s_i^2 a row's mean square.
    """
    rows = [row for name in sorted(delta) for row in rank_rows(name, delta[name])]
    sizes = np.array([row.size for row in rows], np.float64)
    powers = np.array([np.mean(row.astype(np.float64) ** 2) for row in rows])
    errors = sum(
        float(np.sum((decoded[name].astype(np.float64) - delta[name]) ** 2)) for name in delta
    )
    target = errors / sizes.sum()
    low, high = 0.0, float(powers.max())
    for _ in range(200):
        level = (low + high) / 2
        reached = float((sizes * np.minimum(level, powers)).sum() / sizes.sum())
        low, high = (level, high) if reached < target else (low, level)
    if high <= 0:
        return float("inf")
    rates = 0.5 * np.log2(np.maximum(powers / high, 1.0))
    return float((sizes * rates).sum() / sizes.sum())


def rank_rows(name: str, values: np.ndarray) -> list[np.ndarray]:
    """The rows of a LoRA's A, the columns of its B; other tensors whole."""
    if name.endswith(".lora_A"):
        return list(values)
    if name.endswith(".lora_B"):
        return list(values.T)
    return [values]


class Bench:
    """The models, the stream and the probe, loaded once; and a working folder."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.teacher = load("shipped:teacher", compute="cpu", dtype="float32")
        start = self.device("start")
        self.alpha = start.lora.alpha
        self.student = load_device(start, compute="cpu", dtype="float32")
        self.stream = list(read_frames(demo.FRAMES / demo.STREAM))
        self.probe = HeldOutLoss(self.student, self._probe(), self.alpha)
        self.source = self.probe(start.read_overlay())
        self._sampled: dict[tuple[str, int], list[Shard]] = {}

    def device(self, name: str) -> Device:
        return create_device(self.work / name, CHECKPOINT)

    def sampled(self, frames: list[Frame], seed: int, top: str) -> list[Shard]:
        """The shards that the device sends of these frames."""
        predictions = list(answer_frames(self.student, frames, AnswerSettings(batch_size=64)))
        how = SampleSettings(
            top=parse_amount(top),
            keep=parse_amount("50%"),
            batch_size=64,
            seed=seed,
            repeats=True,
        )
        coder = Coder(self.student, PayloadSettings(payload="tokens", codec="int8"), None)
        found = sample_frames(self.student, frames, how, predictions, coder=coder)
        return [coded.shard for coded in found]

    def sampled_by(self, mirror: Device, seed: int) -> list[Shard]:
        """The shards that a device in the mirror's state sends of the whole stream."""
        key = (mirror.digest, seed)
        if key not in self._sampled:
            self.student.install_overlay(mirror.read_overlay(), self.alpha)
            self._sampled[key] = self.sampled(self.stream, seed, "50%")
        return self._sampled[key]

    def _probe(self) -> HeldOut:
        """All questions about the shipped frames that are never sent, and the teacher's answers."""
        frames = list(read_frames(demo.FRAMES / demo.HELD_OUT))
        shards = self.sampled(frames, 0, "100%")
        labels = labelled(shards, LocalTeacher(self.teacher), [], 16, Skipped(strict=True))
        held = HeldOut([], [])
        for shard in shards:
            found = [
                labels.read(ShardKey.of(shard), place) for place in range(len(shard.questions))
            ]
            answers = ["" if one is None else one[0].answer for one in found]
            questions = [
                one for one, answer in zip(shard.questions, answers, strict=True) if answer
            ]
            if questions:
                held.shards.append(replace(shard, questions=questions))
                held.answers.append([answer for answer in answers if answer])
        return held

    def learn(
        self, mirror: Device, shards: list[Shard], how: DistillSettings, last: Adaptation | None
    ) -> Adaptation:
        return distill(shards, self.teacher, mirror, how, resume=last, student=self.student)


class Scale:
    """One adaptation, with which its coded forms are compared.

    Args: reference: the adaptation whose loss is the reference; the same one, or another.
    """

    def __init__(
        self, bench: Bench, mirror: Device, adaptation: Adaptation, reference: Adaptation
    ) -> None:
        assert adaptation.held_out is not None
        self._mirror, self._adaptation = mirror, adaptation
        self._probe, self._source = bench.probe, bench.source
        self.base = mirror.read_overlay()
        self._held_out = HeldOutLoss(bench.student, adaptation.held_out, bench.alpha)
        states = (self.base, reference.overlay)
        self._held_out_losses = [self._held_out(state) for state in states]
        self._probe_losses = [bench.probe(state) for state in states]
        self.delta = {key: adaptation.overlay[key] - self.base[key] for key in self.base}

    def compressed(self, how: CompressSettings) -> sender.Compressed:
        return sender.compress(self._adaptation, self._mirror, how, loss=self._held_out)

    def coded(self, name: str, made: sender.Compressed) -> Coded:
        """A whole file, decoded and measured."""
        bits = 8 * made.num_bytes / made.update.num_parameters
        return self.measured(name, bits, codecs.decode(made.update, self.base))

    def measured(self, name: str, bits: float, decoded: Overlay) -> Coded:
        arrived = {key: decoded[key] - self.base[key] for key in self.base}
        first, second = self._held_out_losses
        before, learnt = self._probe_losses
        return Coded(
            name,
            bits,
            gaussian_bound(self.delta, arrived),
            (first, second, self._held_out(decoded)),
            (before, learnt, self._probe(decoded)),
            self._source,
        )


def apply_to_both(device: Device, mirror: Device, made: sender.Compressed) -> None:
    """Device and mirror take the update; SystemExit where they would differ."""
    applied = [receiver.apply(folder, made.update) for folder in (device, mirror)]
    if len({result.digest for result in applied} | {made.update.target}) != 1:
        raise SystemExit(f"digests differ after update {made.update.sequence}: {applied}")


# ---------------------------------------------------------------- three rounds


def plain_chain(bench: Bench, seed: int, rounds: int) -> Iterator[Coded]:
    """Default adaptations in every codec; the chain continues with the default codec."""
    device, mirror = bench.device(f"plain-{seed}/device"), bench.device(f"plain-{seed}/mirror")
    last: Adaptation | None = None
    for number in range(1, rounds + 1):
        shards = bench.sampled_by(mirror, seed + number - 1)
        how = DistillSettings(seed=seed + number - 1, work=bench.work)
        last = bench.learn(mirror, shards, how, last)
        scale = Scale(bench, mirror, last, last)
        streams.message(f"plain, seed {seed}, round {number}: {spread(scale.delta)}")
        made = {name: scale.compressed(settings) for name, settings in COMPARED.items()}
        yield from (scale.coded(name, one) for name, one in made.items())
        yield scale.measured("fp16 + zstd -19", *halves(scale.delta, scale.base))
        apply_to_both(device, mirror, made[next(iter(COMPARED))])


def halves(delta: Overlay, base: Overlay) -> tuple[float, Overlay]:
    """The change in fp16, in zstd's strongest level; without a header. Bits, and the overlay."""
    names = sorted(base)
    small = {name: delta[name].astype(np.float16) for name in names}
    packed = zstandard.ZstdCompressor(level=19).compress(
        b"".join(small[n].tobytes() for n in names)
    )
    decoded = {name: base[name] + small[name].astype(np.float32) for name in names}
    bits = 8 * len(packed) / sum(small[name].size for name in names)
    return bits, decoded


def spread(deltas: Overlay) -> str:
    """The root mean square of the change, group by group."""
    energies: dict[str, list[float]] = {}
    for name, delta in deltas.items():
        own = energies.setdefault(group_of(name, deltas.keys()), [0.0, 0.0])
        own[0] += float((delta.astype(np.float64) ** 2).sum())
        own[1] += delta.size
    words = [f"{group} {(e / n) ** 0.5:.3g}" for group, (e, n) in sorted(energies.items())]
    return f"rms of the change: {', '.join(words)}"


def rate_aware_chain(bench: Bench, name: str, seed: int, rounds: int) -> Iterator[Coded]:
    """Adaptations trained through the quantiser, and as many steps without it to compare with."""
    bits, steps = RATE_AWARE[name]
    slug = f"{bits}-{seed}"
    device, mirror = bench.device(f"{slug}/device"), bench.device(f"{slug}/mirror")
    last: Adaptation | None = None
    for number in range(1, rounds + 1):
        shards = bench.sampled_by(mirror, seed + number - 1)
        how = DistillSettings(seed=seed + number - 1, rate_aware=steps, bits=bits, work=bench.work)
        reference = bench.learn(mirror, shards, replace(how, bits=LOSSLESS_BITS), last)
        last = bench.learn(mirror, shards, how, last)
        scale = Scale(bench, mirror, last, reference)
        made = scale.compressed(CompressSettings())
        yield scale.coded(name, made)
        apply_to_both(device, mirror, made)


def table(coded: list[Coded]) -> str:
    """A line for each codec."""
    names = list(dict.fromkeys(one.name for one in coded))
    lines = [
        "| codec | bits (most) | held out (worst) | probe (worst) | gain kept (least) "
        "| of all (least) | R(D) gap |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        own = [one for one in coded if one.name == name]
        bits, gaps = [one.bits for one in own], [one.bits - one.bound for one in own]
        held, probe = [change(one.held_out) for one in own], [change(one.probe) for one in own]
        kept = [gain_kept(one.probe) for one in own]
        of_all = [gain_kept((one.source, *one.probe[1:])) for one in own]
        lines.append(
            f"| {name} | {np.mean(bits):.3f} ({max(bits):.3f}) "
            f"| {np.mean(held):+.2%} ({max(held):+.2%}) | {np.mean(probe):+.2%} "
            f"({max(probe):+.2%}) | {np.nanmean(kept):.2%} ({np.nanmin(kept):.2%}) "
            f"| {np.mean(of_all):.2%} ({min(of_all):.2%}) | {np.mean(gaps):.2f} |"
        )
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- a long chain


def long_chain(bench: Bench, seed: int, rounds: int, settings: CompressSettings) -> dict[str, Any]:
    """Many short rounds over parts of the stream; the loss on the probe along the way."""
    slug = f"chain-{settings.codec}-{seed}"
    device, mirror = bench.device(f"{slug}/device"), bench.device(f"{slug}/mirror")
    chunks = [bench.stream[chunk::CHUNKS] for chunk in range(CHUNKS)]
    last: Adaptation | None = None
    losses, num_bytes = [bench.probe(mirror.read_overlay())], []
    for number in range(rounds):
        bench.student.install_overlay(device.read_overlay(), bench.alpha)
        shards = bench.sampled(chunks[number % CHUNKS], seed + number, "50%")
        how = DistillSettings(epochs=1, holdout=0, seed=seed + number)
        last = bench.learn(mirror, shards, how, last)
        made = sender.compress(last, mirror, settings)
        apply_to_both(device, mirror, made)
        num_bytes.append(made.num_bytes)
        losses.append(bench.probe(mirror.read_overlay()))
        streams.message(f"{slug}, round {number + 1}: {made.num_bytes:,} bytes, {losses[-1]:.4f}")
    parameters = sum(value.size for value in mirror.read_overlay().values())
    return {
        "codec": settings.codec,
        "seed": seed,
        "rounds": rounds,
        "bits": 8 * float(np.mean(num_bytes)) / parameters,
        "losses": losses,
        "digest": mirror.digest,
    }


def all_updates(bench: Bench, options: argparse.Namespace) -> None:
    """The table, again after each seed."""
    measured: list[Coded] = []
    for seed in options.seeds:
        measured += plain_chain(bench, seed, options.rounds)
        for name in RATE_AWARE:
            measured += rate_aware_chain(bench, name, seed, options.rounds)
        sys.stdout.write(f"After seed {seed}:\n{table(measured)}\n")
        sys.stdout.flush()
        save(options.json, {"updates": [vars(one) for one in measured]})


def all_chains(bench: Bench, options: argparse.Namespace) -> None:
    """A line for each seed."""
    chains: list[dict[str, Any]] = []
    for seed in options.seeds:
        coded, exact = (
            long_chain(bench, seed, options.chain, settings)
            for settings in (CompressSettings(), CompressSettings(codec="exact"))
        )
        first, last = coded["losses"][-1], exact["losses"][-1]
        sys.stdout.write(
            f"seed {seed}: {options.chain} updates of {coded['bits']:.2f} bits, equal digests "
            f"after each; loss on the probe {coded['losses'][0]:.4f} -> {first:.4f}, in fp32 "
            f"{last:.4f}: {first / last - 1:+.2%}\n"
        )
        chains += [coded, exact]
        save(options.json, {"chains": chains})


def save(path: Path | None, result: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(result, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chain", type=int, default=0, help="measure a chain of so many rounds")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        (all_chains if options.chain else all_updates)(bench, options)


if __name__ == "__main__":
    main()
