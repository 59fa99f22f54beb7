"""What each step of the shipped codebook costs and changes, with and without labels.

    python examples/benchmarks/codebook.py [--pair FOLDER] [--frames FOLDER]
        [--parts stream heldout] [--most 1000]

The shipped codebook is made from 80 `source` frames; these frames are of the target domain, so the
change of domain is inside every figure. Prints one Markdown table, a row for each step of the
codebook's curve and for int8, beside the teacher on exact tokens:

* bits an element and bytes a frame: all frames in records of 256, as a stream would hold them;
* `its own`: the curve in the codebook, relative change of the teacher's loss without labels
  (`distillation.calibration`), measured by `calibrate` on the frames it was given;
* `without labels`: the same measure on these frames;
* `labels`: relative change of the teacher's cross-entropy of the majority of the human answers,
  with 1.96 paired standard errors, frames taken as the independent units;
* agreement: share of questions whose greedy answer is token for token the same.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from cdcca_cli.config import SHIPPED_STUDENT, SHIPPED_TEACHER
from cdcca_cli.datasets import Frame, read_frames
from cdcca_cli.distillation import calibration
from cdcca_cli.distillation.evaluation import Evaluator
from cdcca_cli.formats.codebook import Codebook, read_codebook
from cdcca_cli.formats.shard import Question, Shard
from cdcca_cli.loop import demo
from cdcca_cli.models import LoadedModel, load
from cdcca_cli.models.encoding import Example
from cdcca_cli.numerics import absmax, columns
from cdcca_cli.payloads import klt
from cdcca_cli.skipped import Skipped

BATCH = 32
RECORD = 256
HEAD = ["step", "bits", "bytes", "its own", "without labels", "labels", "agreement"]


class Labels:
    """The teacher's cross-entropy of the majority answers, for tokens coded in any way."""

    def __init__(self, teacher: LoadedModel, frames: Sequence[Frame], shape: tuple[int, ...]):
        self._shards = [
            Shard(
                frame=frame.id,
                image=frame.id,
                domain=None,
                tokens=np.zeros(shape, np.float32),
                positions=np.arange(shape[0], dtype=np.int32),
                num_tokens=shape[0],
                tower=teacher.tower_digest,
            )
            for frame in frames
        ]
        asked = [
            (row, Question(one.id, one.prompt, one.task, one.choices), majority(one.answers))
            for row, frame in enumerate(frames)
            for one in frame.questions
            if one.task == "vqa" and one.answers
        ]
        self._rows_E = np.array([row for row, _, _ in asked])
        examples = [Example(self._shards[row], question) for row, question, _ in asked]
        self._evaluator = Evaluator(teacher, examples, [answer for *_, answer in asked], BATCH)

    def nats(self, tokens_FNC: np.ndarray) -> np.ndarray:
        """(E,), of each question."""
        for shard, tokens_NC in zip(self._shards, tokens_FNC, strict=True):
            shard.tokens = tokens_NC
        return self._evaluator.evaluate().nats_E.astype(np.float64)

    def change(self, nats_E: np.ndarray, exact_E: np.ndarray) -> str:
        """Relative, with 1.96 standard errors over frames."""
        sums_F = np.bincount(self._rows_E, nats_E - exact_E, len(self._shards))
        error = np.sqrt(np.square(sums_F - sums_F.mean()).sum()) / exact_E.sum()
        return f"{sums_F.sum() / exact_E.sum():+.1%} +-{1.96 * error:.1%}"

    def __len__(self) -> int:
        return len(self._rows_E)


def majority(answers: Sequence[str]) -> str:
    """The answer given most often; of equally frequent ones the last in the alphabet."""
    counts = Counter(answers)
    return max(counts, key=lambda answer: (counts[answer], answer))


def coded(tokens_FNC: np.ndarray, codebook: Codebook, step: float) -> tuple[np.ndarray, float]:
    """The tokens as the cloud decodes them, and bytes a frame."""
    every_N = np.arange(codebook.num_tokens)
    codes = [klt.encode(x_NC, every_N, codebook, step) for x_NC in tokens_FNC]
    num_bytes = sum(
        len(columns.pack(np.concatenate(codes[begin : begin + RECORD])))
        for begin in range(0, len(codes), RECORD)
    )
    decoded = [klt.decode(row, every_N, codebook, step) for row in codes]
    return np.stack(decoded), num_bytes / len(codes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pair", type=Path, help="folder with student and teacher")
    parser.add_argument("--frames", type=Path, default=demo.FRAMES)
    parser.add_argument("--parts", nargs="+", default=[demo.STREAM, demo.HELD_OUT])
    parser.add_argument("--most", type=int, default=1000, help="frames of a part")
    given = parser.parse_args()
    pair = given.pair or demo.FRAMES.parent
    names = [SHIPPED_TEACHER, SHIPPED_STUDENT]
    if given.pair:
        names = [str(pair / role) for role in ("teacher", "student")]
    teacher, student = (load(name, compute="cpu", dtype="float32") for name in names)
    with (pair / "student" / "codebook.safetensors").open("rb") as source:
        codebook = read_codebook(source)
    frames = [
        frame
        for part in given.parts
        for frame in islice(read_frames(given.frames / part), given.most)
    ]
    sample = calibration.sample_of(student, frames, Skipped())
    tokens_FNC = sample.tokens
    size = tokens_FNC[0].size
    int8 = np.stack([absmax.dequantize(*absmax.quantize(x_NC)) for x_NC in tokens_FNC])
    ways, own = {"int8": (int8, float(size + 4 * codebook.num_tokens))}, {"int8": ""}
    for point in codebook.curve.tokens:
        name = f"{point.step:.3g}"
        ways[name] = coded(tokens_FNC, codebook, point.step)
        own[name] = f"{point.loss:+.1%}, {point.agreement:.1%}"
    changes = calibration.changes(
        teacher, sample, [decoded.__getitem__ for decoded, _ in ways.values()], BATCH
    )
    labels = Labels(teacher, frames, tokens_FNC[0].shape)
    exact_E = labels.nats(tokens_FNC)
    lines = [HEAD, ["---:"] * len(HEAD)]
    for (name, (decoded, num_bytes)), change in zip(ways.items(), changes, strict=True):
        cells = [name, f"{8 * num_bytes / size:.2f}", f"{num_bytes:,.0f}", own[name]]
        cells += [f"{change.loss:+.2%}", labels.change(labels.nats(decoded), exact_E)]
        lines.append([*cells, f"{change.agreement:.1%}"])
    sys.stdout.write(
        f"{len(frames)} frames, {len(labels):,} labelled questions, {exact_E.mean():.3f} nats\n\n"
    )
    sys.stdout.write("".join(f"| {' | '.join(cells)} |\n" for cells in lines))


if __name__ == "__main__":
    main()
