"""What a stream of tokens shows of a scene, at each coarseness: pictures made again from it.

    python examples/benchmarks/inversion.py -m DEVICE --known PICTURES --victim PICTURES
        [--training 1000] [--most 3000] [--picture FILE.png]

The attacker has the vision tower (checkpoints are public), the device's codebook, and pictures of
his own (--known). On them he trains a small convolutional decoder from visual tokens to pixels, and
gives it the tokens of pictures that he has never seen (--victim), coded in each of several ways.
One decoder is trained on exact tokens alone. Another is trained on what he sees: tokens coded in a
way that is drawn for each batch, with the step as an input; tokens that were not kept are gaps.

Prints one Markdown table. PSNR in dB and SSIM (Wang et al. 2004; grey, windows of 7 x 7) are means
over the victims; `found` is the share of victims whose picture is, of all victims' pictures, the
nearest to what was made of it. Beside the ways: the mean of the known pictures, which shows
nothing, and the victims' own pictures at one colour a patch, as a mosaic.
"""

import argparse
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from cdcca_cli.datasets import load_image, read_frames
from cdcca_cli.formats.codebook import Codebook
from cdcca_cli.formats.device import Device
from cdcca_cli.models import load_device
from cdcca_cli.models.model import LoadedModel
from cdcca_cli.numerics import absmax
from cdcca_cli.payloads import klt

STEPS = (0.5, 1.0, 1.5, 2.5, 4.5)
BATCH = 32
SHOWN = 8
Way = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From exact tokens (n, C) and their positions (n,) to what the cloud has of them."""


class Decoder(nn.Module):
    """Tokens (B, C + 2, H, W), with which are there and the step, to pixels in [0, 1]."""

    def __init__(self, channels: int, patch: int, width: int = 384) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels + 2, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 3 * patch * patch, 1),
            nn.PixelShuffle(patch),
        )

    def forward(self, seen: Tensor) -> Tensor:
        return self.layers(seen)


def look(model: LoadedModel, folder: Path, most: int) -> tuple[np.ndarray, Tensor]:
    """Tokens (F, N, C) and the pixels (F, 3, h, w) that the tower saw."""
    tokens, pixels = [], []
    for frame in islice(read_frames(folder), most):
        image = model.seen_as_picture(load_image(frame))
        pixels.append(torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)
        with torch.no_grad():
            (seen,) = model.see(model.prepare([image]))
        tokens.append(seen.tokens.float().numpy())
    return np.stack(tokens), torch.stack(pixels)


def ways_of(codebook: Codebook) -> dict[str, tuple[Way, float, float]]:
    """By name: the way, the share of tokens kept, and the step (0: none)."""

    def int8(tokens_nC: np.ndarray, _: np.ndarray) -> np.ndarray:
        return absmax.dequantize(*absmax.quantize(tokens_nC))

    def coded(step: float) -> Way:
        return lambda tokens_nC, positions_n: klt.decode(
            klt.encode(tokens_nC, positions_n, codebook, step), positions_n, codebook, step
        )

    ways: dict[str, tuple[Way, float, float]] = {
        "float32": (lambda tokens_nC, _: tokens_nC, 1.0, 0.0),
        "int8": (int8, 1.0, 0.0),
    }
    ways |= {f"klt {step:g}": (coded(step), 1.0, step) for step in STEPS}
    ways["int8, half of the tokens"] = (int8, 0.5, 0.0)
    ways["klt 1.5, half of the tokens"] = (coded(1.5), 0.5, 1.5)
    return ways


class Attacker:
    """Knows pictures and their tokens, and trains on them."""

    def __init__(self, tokens_FNC: np.ndarray, pixels: Tensor, seed: int) -> None:
        self._tokens, self._pixels = tokens_FNC, pixels
        self._mean, self._deviation = tokens_FNC.mean((0, 1)), tokens_FNC.std((0, 1)) + 1e-6
        self._side = int(tokens_FNC.shape[1] ** 0.5)
        self.patch = pixels.shape[-1] // self._side
        self._random = np.random.default_rng(seed)

    def seen(self, tokens_FNC: np.ndarray, way: Way, keep: float, step: float) -> Tensor:
        """(F, C + 2, H, W), without CLS."""
        count, num_cells = tokens_FNC.shape[1], self._side**2
        found = []
        for tokens_NC in tokens_FNC:
            positions = np.sort(self._random.permutation(count)[: round(keep * count)])
            each_NC = np.zeros((count, tokens_NC.shape[1] + 2), np.float32)
            each_NC[:, -1] = step
            values = way(tokens_NC[positions], positions)
            each_NC[positions, :-2] = (values - self._mean) / self._deviation
            each_NC[positions, -2] = 1
            found.append(each_NC[count - num_cells :])
        cells = np.stack(found).transpose(0, 2, 1).reshape(len(found), -1, self._side, self._side)
        return torch.from_numpy(cells)

    def train(self, ways: list[tuple[Way, float, float]], num_batches: int) -> Decoder:
        decoder = Decoder(self._tokens.shape[-1], self.patch)
        adam = torch.optim.AdamW(decoder.parameters(), 1e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, num_batches)
        for _ in range(num_batches):
            rows = self._random.integers(len(self._tokens), size=BATCH)
            seen = self.seen(self._tokens[rows], *ways[self._random.integers(len(ways))])
            loss = (decoder(seen) - self._pixels[rows]).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
        return decoder


def scores(made: Tensor, true: Tensor) -> list[str]:
    """PSNR, SSIM and the share found, for pictures (F, 3, h, w)."""
    made = made.clamp(0, 1)
    errors = (made - true).square().flatten(1).mean(1).clamp_min(1e-10)
    nearest = torch.cdist(made.flatten(1), true.flatten(1)).argmin(1)
    found = (nearest == torch.arange(len(true))).float().mean()
    return [f"{-10 * errors.log10().mean():.1f}", f"{ssim(made, true):.2f}", f"{found:.0%}"]


def ssim(first: Tensor, second: Tensor) -> float:
    def mean(image: Tensor) -> Tensor:
        return functional.avg_pool2d(image, 7, 1)

    x, y = (image.mean(1, keepdim=True) for image in (first, second))
    mx, my = mean(x), mean(y)
    vx, vy, both = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    light = (2 * mx * my + 1e-4) / (mx * mx + my * my + 1e-4)
    return float((light * (2 * both + 9e-4) / (vx + vy + 9e-4)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-m", "--device", type=Path, required=True)
    parser.add_argument("--known", type=Path, required=True)
    parser.add_argument("--victim", type=Path, required=True)
    parser.add_argument("--training", type=int, default=1000, help="batches of 32 pictures")
    parser.add_argument("--most", type=int, default=3000, help="known pictures")
    parser.add_argument("--victims", type=int, default=300)
    parser.add_argument("--picture", type=Path, help="file for some victims and what was made")
    given = parser.parse_args()
    torch.manual_seed(0)
    device = Device.open(given.device)
    model, codebook = load_device(device, compute="cpu"), device.codebook()
    if codebook is None:
        parser.error("the device has no codebook")
    attacker = Attacker(*(known := look(model, given.known, given.most)), seed=0)
    tokens_FNC, victims = look(model, given.victim, given.victims)
    ways = ways_of(codebook)
    naive = attacker.train([ways["float32"]], given.training)
    informed = attacker.train([*ways.values()], given.training)
    flat = functional.avg_pool2d(victims, attacker.patch)
    mosaic = functional.interpolate(flat, scale_factor=attacker.patch, mode="nearest")
    head = ["tokens", *("PSNR", "SSIM", "found") * 2]
    lines, rows = [head, ["---", *["---:"] * 6]], [victims]
    for name, (way, keep, step) in ways.items():
        with torch.no_grad():
            exact = attacker.seen(tokens_FNC, way, keep, 0.0)
            known_step = attacker.seen(tokens_FNC, way, keep, step)
            made = [naive(exact), informed(known_step)]
        rows.append(made[1])
        lines.append([name, *scores(made[0], victims), *scores(made[1], victims)])
    mean = known[1].mean(0).expand_as(victims)
    for name, other in (("mean picture", mean), ("mosaic of patches", mosaic)):
        lines.append([name, *scores(other, victims), "", "", ""])
    sys.stdout.write(f"{len(known[1]):,} known, {len(victims):,} victims\n\n")
    sys.stdout.write("".join(f"| {' | '.join(cells)} |\n" for cells in lines))
    if given.picture:
        places = np.linspace(0, len(victims) - 1, min(SHOWN, len(victims))).round().astype(int)
        shown = torch.cat([torch.cat([*side[places]], 2) for side in rows], 1)
        array = (shown.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(given.picture)


if __name__ == "__main__":
    main()
