"""What token shards show of a scene: pictures made again from the uplink alone.

    python examples/benchmarks/inversion.py --known PICTURES --victim PICTURES
        [--keep 1.0] [--steps 1500] [--picture FILE.png] [-m DEVICE]

The attacker knows the vision tower (checkpoints are public) and has pictures of his own (--known).
He trains a small convolutional decoder from visual tokens to pixels on them, and gives it the
tokens of pictures he has never seen (--victim) as a shard holds them: 8 bits, and with --keep below
1 only that share of each picture's tokens, chosen at random; dropped ones he sees as gaps. Prints
one JSON object: PSNR in dB of the pictures made again, beside that of the known pictures' mean
picture and of the victims' own pictures at one colour a patch (what a mosaic would show). --picture
writes some victims above what was made of them.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cdcca_cli.datasets import load_image, read_frames
from cdcca_cli.formats.device import Device
from cdcca_cli.models import load_device
from cdcca_cli.models.model import LoadedModel

SHOWN = 8


class Decoder(nn.Module):
    """Tokens (B, C + 1, H, W), the last channel saying which are there, to pixels in [0, 1]."""

    def __init__(self, channels: int, patch: int, width: int = 384) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels + 1, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 3 * patch * patch, 1),
            nn.PixelShuffle(patch),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(tokens)


def look(model: LoadedModel, folder: str, most: int) -> tuple[Tensor, Tensor]:
    """Tokens (B, C, H, W) at 8 bits a value, and the pixels (B, 3, h, w) the tower saw."""
    tokens, pixels = [], []
    for frame in list(read_frames(folder))[:most]:
        picture = load_image(frame)
        seen = model.preprocess([picture])
        height, width = seen.shape[-2:]
        small = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
        pixels.append(torch.from_numpy(small.copy()).permute(2, 0, 1) / 255)
        with torch.no_grad():
            found_NC = model.vision_tokens(seen)[0]
        side = int(len(found_NC) ** 0.5)
        found_NC = found_NC[len(found_NC) - side**2 :].float()  # without CLS
        step = found_NC.abs().amax(1, keepdim=True) / 127
        tokens.append(((found_NC / step).round() * step).T.reshape(-1, side, side))
    return torch.stack(tokens), torch.stack(pixels)


def gapped(tokens: Tensor, keep: float, generator: torch.Generator) -> Tensor:
    """Only a share of each picture's tokens, and which ones."""
    batch, _, height, width = tokens.shape
    order = torch.rand(batch, height * width, generator=generator).argsort(1)
    there = (order < round(keep * height * width)).float().view(batch, 1, height, width)
    return torch.cat([tokens * there, there], 1)


def psnr(made: Tensor, true: Tensor) -> float:
    """Mean over pictures, in dB."""
    errors = (made.clamp(0, 1) - true).square().flatten(1).mean(1)
    return float((-10 * errors.clamp_min(1e-10).log10()).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--known", required=True)
    parser.add_argument("--victim", required=True)
    parser.add_argument("-m", "--device", required=True)
    parser.add_argument("--keep", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--most", type=int, default=4000, help="pictures of a side")
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = load_device(Device.open(given.device), compute="cpu")
    known_tokens, known = look(model, given.known, given.most)
    victim_tokens, victim = look(model, given.victim, given.most)
    mean = known_tokens.mean((0, 2, 3), keepdim=True)
    deviation = known_tokens.std((0, 2, 3), keepdim=True) + 1e-6
    known_tokens, victim_tokens = (
        (tokens - mean) / deviation for tokens in (known_tokens, victim_tokens)
    )
    patch = known.shape[-1] // known_tokens.shape[-1]
    decoder = Decoder(known_tokens.shape[1], patch)
    adam = torch.optim.AdamW(decoder.parameters(), 1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, given.steps)
    for _ in range(given.steps):
        chosen = torch.randint(len(known), (32,), generator=generator)
        seen = gapped(known_tokens[chosen], given.keep, generator)
        loss = (decoder(seen) - known[chosen]).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    with torch.no_grad():
        seen = gapped(victim_tokens, given.keep, generator)
        made = torch.cat([decoder(part) for part in seen.split(64)])
    mosaic = nn.functional.interpolate(
        nn.functional.avg_pool2d(victim, patch), scale_factor=patch, mode="nearest"
    )
    print(  # noqa: T201
        json.dumps(
            {
                "known": len(known),
                "victims": len(victim),
                "keep": given.keep,
                "psnr_db": {
                    "made again": round(psnr(made, victim), 2),
                    "mean picture": round(psnr(known.mean(0).expand_as(victim), victim), 2),
                    "one colour a patch": round(psnr(mosaic, victim), 2),
                },
            }
        )
    )
    if given.picture:
        places = np.linspace(0, len(victim) - 1, min(SHOWN, len(victim))).round().astype(int)
        rows = [torch.cat(list(side[places]), 2) for side in (victim, made)]
        array = (torch.cat(rows, 1).clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(given.picture)


if __name__ == "__main__":
    main()
