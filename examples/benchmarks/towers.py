"""What tokens of the sizes of real vision towers cost: codebook, bytes, error and time.

    python examples/benchmarks/towers.py [--towers shipped ViT-g CLIP-L-336 CLIP-L-224] [--all]
        [--alpha 1.0] [--outliers none undone felt] [--components 256] [--steps 0.5 1 1.5 2.5]

No real ViT's weights were at hand: the tokens are drawn, with what papers report of real ones.

* Eigenvalues of the covariance over channels fall as j^-alpha, in a random basis. Trained encoders
  have an alpha near 1 (Agrawal et al. 2022, alpha-ReQ).
* Neighbours on the grid are alike: correlation exp(-d / 4) at d patches. CLS stands alone. Each
  position has a mean, of the same spectrum and half of the variance.
* Massive activations (Sun et al. 2024; Darcet et al. 2024): in 2 % of the tokens, two channels, the
  same in each picture, are nearly constant at 60 and 1000 deviations of an ordinary channel. They
  are `undone` if the teacher scales these channels to an ordinary size, and else `felt`.
* The sensitivity W, which only a teacher can tell, is drawn: eigenvalues 1 / j in a random basis.

So times and codebooks are as real, and bytes are as good as these assumptions. No teacher means no
loss: `error` is the share of the weighted variance, tr(e' W e) / tr(x' W x), that coding changes;
the shipped pair's rows show the error at steps of which its codebook knows the loss. Bytes are of a
frame in records of 1, 16 and 64 frames that the codebook was not made from. Times are CPU time on
one core, of a frame in a record of 16: transform and rounding, entropy coding (`pack`), and back.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

from cdcca_cli.config import SHIPPED_STUDENT, SHIPPED_TEACHER
from cdcca_cli.datasets import read_frames
from cdcca_cli.distillation import calibration, transform
from cdcca_cli.distillation.settings import CalibrationSettings
from cdcca_cli.formats.codebook import Codebook, write_codebook
from cdcca_cli.loop import demo
from cdcca_cli.numerics import absmax, columns
from cdcca_cli.payloads import klt
from cdcca_cli.skipped import Skipped

SHAPES = {"ViT-g": (257, 1408), "CLIP-L-336": (577, 1024), "CLIP-L-224": (257, 1024)}
RECORDS = (1, 16, 64)
FITTED = 80
_TIMED, _RUNS = 16, 3
_REACH = 4.0  # patches over which the correlation falls by e
_MASSIVE, _MASSIVE_SHARE = np.array([60.0, 1000.0]), 0.02
_DIGEST = "sha256:" + 64 * "0"
HEAD = ["tower", "outliers", "K", "codebook", "codec", "bits", "error"]
HEAD += [*(f"B, {count}" for count in RECORDS), "code", "pack", "unpack", "decode ms"]


@dataclass
class Tokens:
    """Tokens to make a codebook of and to code, (F, N, C), float32, and W (C, C)."""

    fitted: np.ndarray
    coded: np.ndarray
    weight: np.ndarray

    def error(self, decoded_FNC: np.ndarray) -> float:
        """Share of the weighted variance around the positions' means."""
        shown_FNC, mean_NC = self.coded[: len(decoded_FNC)], self.fitted.mean(0)
        weight_CC = self.weight.astype(np.float32)

        def power(x_FNC: np.ndarray) -> float:
            return float(sum(np.einsum("nc,nc->", x_NC @ weight_CC, x_NC) for x_NC in x_FNC))

        return power(decoded_FNC - shown_FNC) / power(shown_FNC - mean_NC)


def drawn(shape: tuple[int, int], alpha: float, outliers: str) -> Tokens:
    num_tokens, channels = shape
    random = np.random.default_rng(0)
    side = int(num_tokens**0.5)
    cells = np.indices((side, side)).reshape(2, -1).T
    near_NN = np.eye(num_tokens)
    near_NN[1:, 1:] = np.exp(-np.linalg.norm(cells[:, None] - cells, axis=-1) / _REACH)
    mix_NN = np.linalg.cholesky(near_NN).astype(np.float32)
    roots = np.arange(1, channels + 1) ** (-alpha / 2)
    roots /= np.sqrt(np.mean(roots**2))
    basis_CC = (rotation(channels, random) * roots).T.astype(np.float32)

    def one() -> np.ndarray:
        return np.asarray(mix_NN @ (random.standard_normal(shape, np.float32) @ basis_CC))

    mean_NC, massive = one(), random.choice(channels, len(_MASSIVE), replace=False)

    def some(count: int) -> np.ndarray:
        found = np.stack([mean_NC + one() for _ in range(count)])
        if outliers != "none":
            for x_NC in found:
                rows = np.flatnonzero(random.uniform(size=num_tokens) < _MASSIVE_SHARE)
                around = 1 + 0.1 * random.standard_normal((len(rows), len(massive)))
                x_NC[np.ix_(rows, massive)] = around * _MASSIVE
        return found

    half_CC = rotation(channels, random) / np.sqrt(np.arange(1, channels + 1))
    if outliers == "undone":
        half_CC[massive] /= (_MASSIVE * _MASSIVE_SHARE**0.5)[:, None]
    return Tokens(some(FITTED), some(max(RECORDS)), half_CC @ half_CC.T)


def rotation(size: int, random: np.random.Generator) -> np.ndarray:
    return np.asarray(np.linalg.qr(random.standard_normal((size, size)))[0])


def shipped() -> Tokens:
    """Tokens of the shipped student's tower, and the W of its teacher."""
    from cdcca_cli.models import load

    teacher, student = (load(name, compute="cpu") for name in (SHIPPED_TEACHER, SHIPPED_STUDENT))
    source, stream = (
        calibration.sample_of(student, list(read_frames(demo.FRAMES / name))[:FITTED], Skipped())
        for name in (demo.SOURCE, demo.STREAM)
    )
    weight_CC = calibration.sensitivity(teacher, source, CalibrationSettings())
    return Tokens(source.tokens, stream.tokens[: max(RECORDS)], weight_CC)


def fastest(call: Callable[[], Any]) -> str:
    """Milliseconds of processor time a frame, of the fastest run."""
    least = float("inf")
    for _ in range(_RUNS):
        begin = time.process_time()
        call()
        least = min(least, time.process_time() - begin)
    return f"{1000 * least / _TIMED:.2f}"


def made(tokens: Tokens, components: int | None) -> Codebook:
    arrays: dict[str, Any] = transform.fit(tokens.fitted, tokens.weight, components).arrays()
    return Codebook(_DIGEST, _DIGEST, len(tokens.fitted), **arrays)


def klt_row(tokens: Tokens, codebook: Codebook, step: float) -> list[str]:
    """From K on."""
    every_N = np.arange(codebook.num_tokens)

    def encode(tokens_FNC: np.ndarray) -> np.ndarray:
        return np.concatenate([klt.encode(x_NC, every_N, codebook, step) for x_NC in tokens_FNC])

    def decode(codes_FK: np.ndarray) -> np.ndarray:
        return np.stack([klt.decode(row[None], every_N, codebook, step) for row in codes_FK])

    codes, shown = encode(tokens.coded), tokens.coded[:_TIMED]
    sizes = [len(columns.pack(codes[:count])) / count for count in RECORDS]
    part, packed = codes[:_TIMED], columns.pack(codes[:_TIMED])
    return [
        str(codebook.components),
        f"{write_codebook(BytesIO(), codebook) / 1e6:.2f} MB",
        f"klt {step:g}",
        f"{8 * sizes[-1] / tokens.coded[0].size:.2f}",
        f"{tokens.error(decode(part)):.4f}",
        *(f"{each:,.0f}" for each in sizes),
        fastest(lambda: encode(shown)),
        fastest(lambda: columns.pack(part)),
        fastest(lambda: columns.unpack(packed, *part.shape)),
        fastest(lambda: decode(part)),
    ]


def plain_rows(tokens: Tokens) -> list[list[str]]:
    """int8 and float16, which need no codebook."""
    shown = tokens.coded[:_TIMED]
    back = np.stack([absmax.dequantize(*absmax.quantize(x_NC)) for x_NC in shown])
    half = shown.astype(np.float16).astype(np.float32)
    found = []
    sizes = (shown[0].size + 4 * len(shown[0]), 2 * shown[0].size)
    for name, size, decoded in zip(("int8", "float16"), sizes, (back, half), strict=True):
        cells = ["", "", name, f"{8 * size / shown[0].size:.2f}", f"{tokens.error(decoded):.4f}"]
        found.append([*cells, *[f"{size:,}"] * len(RECORDS), *[""] * 4])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--towers", nargs="+", default=["shipped", *SHAPES])
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--outliers", nargs="+", default=["undone"])
    parser.add_argument("--components", type=int, default=256)
    parser.add_argument("--all", action="store_true", help="all components too")
    parser.add_argument("--steps", nargs="+", type=float, default=[0.5, 1.0, 1.5, 2.5])
    given = parser.parse_args()
    lines = [HEAD, ["---"] * 2 + ["---:"] * (len(HEAD) - 2)]
    for tower in given.towers:
        for outliers in ["none"] if tower == "shipped" else given.outliers:
            is_real = tower == "shipped"
            tokens = shipped() if is_real else drawn(SHAPES[tower], given.alpha, outliers)
            widths = [None] if is_real else [given.components, *[10**6] * given.all]
            books = [made(tokens, width) for width in widths]
            found = [klt_row(tokens, book, step) for book in books for step in given.steps]
            lines += [[tower, outliers, *cells] for cells in found + plain_rows(tokens)]
    sys.stdout.write("".join(f"| {' | '.join(cells)} |\n" for cells in lines))


if __name__ == "__main__":
    main()
