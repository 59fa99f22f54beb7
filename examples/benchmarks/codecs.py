"""Size, error and time of each codec, for an update of the paper's size.

    python examples/benchmarks/codecs.py [--runs 7]
    python examples/benchmarks/codecs.py --adaptation FILE --mirror FOLDER
    python examples/benchmarks/codecs.py --lora-parameters 40000000

The first draws a change of the paper's 1,650,688 parameters in their shapes (LLaMA-2-7B: norms
266,240, biases 1,359,872; query tokens 24,576), with the statistics of each group after a round of
the shipped pair: root mean square, its spread over the tensors, and the kurtosis (after some
hundred steps of Adam the tails are lighter than a Gaussian's). The second takes a real change, and
measures the held-out loss under each codec if the adaptation has held-out frames. The third
compresses a LoRA overlay of that size, and prints time and memory.

Prints one JSON object. Each row: bytes and bits per parameter of the whole file, without signatures
(each one adds about 230 bytes); relative error; R(D), the bits that a Gaussian source of the same
variance in each tensor needs at that error (reverse water-filling; real changes have lighter tails
and can be below it), and the gap to it; for usq the order-0 entropy of the codes; the fastest run
in milliseconds: encoding with a given step, decoding to the float32 changes (usq), decoding to the
new overlay with all checks (every codec). `in_the_same_run` describes the machine: copying the
overlay, and zstd's default level on the fp32 change.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from io import BytesIO
from math import gamma
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from apply import paper_shapes, settings

from cdcca_cli.downlink import codecs, sender
from cdcca_cli.downlink.change import Change, group_of
from cdcca_cli.downlink.codecs import bitdelta, nf4, ternary, usq
from cdcca_cli.downlink.rate import Loss, Steps
from cdcca_cli.downlink.settings import CompressSettings
from cdcca_cli.formats.adaptation import Adaptation, read_adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.update import Update, write_update
from cdcca_cli.numerics.uniform import entropy_bits, quantize

Overlay = Mapping[str, np.ndarray]

# Of each group, after a round of the shipped demo: root mean square of a typical tensor, standard
# deviation of its logarithm over the tensors, kurtosis within one (a Gaussian's is 3).
STATISTICS = {
    "norm": (5.3e-3, 0.14, 2.34),
    "bias": (6.2e-3, 0.25, 2.26),
    "query": (5.0e-3, 0.00, 2.77),
    "lora": (5.6e-3, 0.24, 2.39),
}
# Bits a parameter of the whole file: NF4's, without retraining, with rate-aware steps, the least.
USQ_BITS = (4.0, 3.0, 2.2, 1.25, 0.75)
DIGEST = "sha256:" + 64 * "0"


def drawn(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> Change:
    """A change of these tensors with STATISTICS, from a base of unit variance."""
    source = np.random.default_rng(seed)
    base, after = {}, {}
    for name in sorted(shapes):
        rms, spread, kurtosis = STATISTICS[group_of(name, shapes)]
        size = rms * np.exp(spread * source.standard_normal())
        base[name] = source.standard_normal(shapes[name], np.float32)
        after[name] = base[name] + np.float32(size) * light_tailed(source, shapes[name], kurtosis)
    return Change.between(after, base, set(base))


def light_tailed(
    source: np.random.Generator, shape: tuple[int, ...], kurtosis: float
) -> np.ndarray:
    """Generalised normal numbers of unit variance: density exp(-|x|^b), b from the kurtosis."""
    low, high = 1.0, 20.0  # the kurtosis falls from 6 to 1.9
    for _ in range(40):
        b = (low + high) / 2
        found = gamma(5 / b) * gamma(1 / b) / gamma(3 / b) ** 2
        low, high = (b, high) if found > kurtosis else (low, b)
    magnitudes = source.standard_gamma(1 / b, shape, np.float32) ** np.float32(1 / b)
    unit = np.float32((gamma(1 / b) / gamma(3 / b)) ** 0.5)
    signs = source.integers(0, 2, shape, np.int8) * np.int8(2) - np.int8(1)
    return np.asarray(unit * magnitudes * signs, np.float32)


def gaussian_bound(change: Change, relative_error: float) -> float:
    """R(D) in bits a parameter: Gaussian tensors of these variances, reverse water-filling.

    D = sum_t n_t min(w, v_t), R = sum_t n_t max(0, log2(v_t / w) / 2), w the water level.
    """
    sizes = np.array([delta.size for delta in change.deltas], float)
    variances = np.array(change.energies) / np.maximum(sizes, 1)
    wanted = relative_error**2 * change.energy
    low, high = 0.0, float(variances.max())
    for _ in range(100):
        water = (low + high) / 2
        low, high = (
            (water, high) if (sizes * np.minimum(water, variances)).sum() < wanted else (low, water)
        )
    above = variances > high
    bits = 0.5 * np.log2(variances[above] / high) * sizes[above]
    return max(float(bits.sum() / sizes.sum()), 0.0)


def fastest(call: Callable[[], Any], runs: int) -> float:
    """Milliseconds of processor time of the fastest run; everything runs in one thread."""
    found = []
    for _ in range(runs):
        begin = time.process_time()
        call()
        found.append(time.process_time() - begin)
    return round(1000 * min(found), 3)


class Table:
    """Rows for one change."""

    def __init__(self, change: Change, runs: int, loss: Loss | None) -> None:
        self._change = change
        self._runs = runs
        self._loss = loss
        self._losses = None
        if loss is not None:
            whole = {
                name: change.base[name] + delta
                for name, delta in zip(change.names, change.deltas, strict=True)
            }
            self._losses = loss(change.base), loss(whole)
        self.rows: list[dict[str, Any]] = []

    def add(self, name: str, codec: str, encode: Callable[[], bytes], **more: Any) -> None:
        """A codec of cdcca's."""
        update = Update(
            base=DIGEST,
            target=DIGEST,
            sequence=1,
            codec=codec,
            coding=more.pop("coding", {}),
            num_parameters=self._change.num_parameters,
            payload=encode(),
            model=DIGEST,
        )
        more["encode_ms"] = fastest(encode, self._runs)
        more["new_overlay_ms"] = fastest(
            lambda: codecs.decode(update, self._change.base), self._runs
        )
        num_bytes = write_update(BytesIO(), update)
        self._row(name, num_bytes, codecs.decode(update, self._change.base), more)

    def add_other(self, name: str, num_bytes: int, deltas: list[np.ndarray]) -> None:
        """Another coding, of this many bytes without a header, and its decoded changes."""
        decoded = {
            key: self._change.base[key] + delta
            for key, delta in zip(self._change.names, deltas, strict=True)
        }
        self._row(name, num_bytes, decoded, {})

    def _row(self, name: str, num_bytes: int, decoded: Overlay, more: dict[str, Any]) -> None:
        bits = 8 * num_bytes / self._change.num_changed
        error = self._change.relative_error(decoded)
        bound = gaussian_bound(self._change, error) if 0 < error < 1 else None
        row = {
            "codec": name,
            "bytes": num_bytes,
            "bits": round(bits, 4),
            "relative_error": round(error, 5),
            "gaussian_bound": None if bound is None else round(bound, 4),
            "gap": None if bound is None else round(bits - bound, 4),
            **more,
        }
        if self._loss is not None and self._losses is not None:
            before, learnt = self._losses
            loss = self._loss(decoded)
            row["loss_change"] = round(loss / learnt - 1, 5)
            row["gain_kept"] = round((before - loss) / (before - learnt), 5)
        self.rows.append(row)


def table(change: Change, runs: int, loss: Loss | None = None) -> list[dict[str, Any]]:
    """All rows."""
    found = Table(change, runs, loss)
    deltas = list(change.deltas)
    every = np.concatenate([delta.reshape(-1) for delta in deltas])
    search = Steps(change, 1)
    header = 700
    for bits in USQ_BITS:
        budget = int(bits * change.num_changed / 8) - header
        step = search.within_bytes(budget, len)
        codes = quantize(every, step)
        found.add(
            f"usq {bits:g}",
            usq.CODEC,
            lambda step=step: search.payload(step),  # type: ignore[misc]
            entropy=round(entropy_bits(codes), 4),
            decode_ms=changes_ms(change, search.payload(step), runs),
            over_entropy=round(
                8 * len(search.payload(step)) / codes.size / entropy_bits(codes) - 1, 5
            ),
        )
    bits_of, _ = nf4.encode(deltas, change.energies, 1)
    found.add(
        "nf4",
        nf4.CODEC,
        lambda: nf4.encode(deltas, change.energies, 1)[1],
        coding={"bits": bits_of},
    )
    for density in (0.1, ternary.DENSITY, 0.5):
        found.add(
            f"ternary {density:g}",
            ternary.CODEC,
            lambda density=density: ternary.encode(deltas, 1, density, 1.5),  # type: ignore[misc]
        )
    found.add("sign", bitdelta.CODEC, lambda: bitdelta.encode(deltas, 1))
    halves = [delta.astype(np.float16) for delta in deltas]
    packed = zstandard.ZstdCompressor(level=19).compress(b"".join(h.tobytes() for h in halves))
    found.add_other("fp16 + zstd 19", len(packed), [half.astype(np.float32) for half in halves])
    return found.rows


def changes_ms(change: Change, payload: bytes, runs: int) -> float:
    """Milliseconds from a payload of usq to the float32 changes."""
    sizes = [delta.size for delta in change.deltas]
    return fastest(lambda: list(usq.changes(payload, 1, sizes)), runs)


def machine(change: Change, runs: int) -> dict[str, float]:
    """The machine's speed on the same bytes, in milliseconds."""
    every = np.concatenate([delta.reshape(-1) for delta in change.deltas])
    copy = np.empty_like(every)
    frame = zstandard.ZstdCompressor().compress(every.tobytes())
    return {
        "copy_ms": fastest(lambda: np.copyto(copy, every), runs),
        "zstd_encode_ms": fastest(lambda: zstandard.ZstdCompressor().compress(every), runs),
        "zstd_decode_ms": fastest(lambda: zstandard.ZstdDecompressor().decompress(frame), runs),
    }


def lora_shapes(num_parameters: int) -> dict[str, tuple[int, ...]]:
    """Rank-16 pairs on linear layers of 4096 x 4096, up to this many parameters."""
    pairs = max(num_parameters // (2 * 16 * 4096), 1)
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(pairs):
        shapes[f"layers.{number // 7}.linear{number % 7}.lora_A"] = (16, 4096)
        shapes[f"layers.{number // 7}.linear{number % 7}.lora_B"] = (4096, 16)
    return shapes


def large(num_parameters: int) -> dict[str, Any]:
    """Seconds and memory of `sender.compress` at 2.2 bits, and of decoding, for a large overlay."""
    with tempfile.TemporaryDirectory() as folder:
        change = drawn(lora_shapes(num_parameters))
        device = Device.create(Path(folder) / "mirror", settings(("lora",)), change.base)
        after = {
            name: change.base[name] + delta
            for name, delta in zip(change.names, change.deltas, strict=True)
        }
        del change
        begin = time.perf_counter()
        learnt = Adaptation(after, device.digest, 0, "akd", 0)
        made = sender.compress(learnt, device, CompressSettings(bits=2.2))
        middle = time.perf_counter()
        peak = peak_bytes()
        base = device.read_overlay()
        begin_decode = time.perf_counter()
        codecs.decode(made.update, base)
        return {
            "parameters": made.update.num_parameters,
            "bytes": made.num_bytes,
            "bits": round(made.bits_per_parameter, 4),
            "compress_seconds": round(middle - begin, 2),
            "compress_peak_bytes": peak,
            "decode_seconds": round(time.perf_counter() - begin_decode, 2),
        }


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def real(adaptation: str, mirror: str) -> tuple[Change, Loss | None]:
    """A real change, and its loss if the adaptation has held-out frames."""
    with Path(adaptation).open("rb") as source:
        learnt = read_adaptation(source)
    device = Device.open(mirror)
    base = device.read_overlay()
    loss = None
    if learnt.held_out is not None:
        from cdcca_cli.distillation.evaluation import HeldOutLoss
        from cdcca_cli.models import load_device

        student = load_device(device, compute="cpu")
        loss = HeldOutLoss(student, learnt.held_out, device.lora.alpha)
    return Change.between(learnt.overlay, base, set(base)), loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--adaptation")
    parser.add_argument("--mirror")
    parser.add_argument("--lora-parameters", type=int)
    options = parser.parse_args()
    result: dict[str, Any]
    if options.lora_parameters:
        result = large(options.lora_parameters)
    else:
        change, loss = drawn(paper_shapes()), None
        if options.adaptation:
            change, loss = real(options.adaptation, options.mirror)
        result = {
            "parameters": change.num_parameters,
            "rows": table(change, options.runs, loss),
            "in_the_same_run": machine(change, options.runs),
        }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
