"""The vision tower: trained to tell, for each patch, what its picture shows, in which shift, where.

It stands for a tower trained on the web: it has seen all kinds in all shifts, but no question and
no sentence, and none of the pictures of stream, heldout and source. Its heads are thrown away;
teacher and student share it, frozen, bit for bit. It begins as the tower of the shipped pair.

Shapes: B batch, N visual tokens (37: CLS and 36 patches), P patches (36), C channels, K kinds.
"""

import json
from pathlib import Path

import beside_pair  # noqa: F401
import numpy as np
import torch
from begin import shipped
from drawing import from_jpeg
from make_world import read_kinds
from pictures import SOURCE, TARGETS, UNSEEN
from scenes import WHOLE, Scene
from torch import Tensor, nn
from train_tower import PLACES, TOWER, label_loss, to_pixels
from training import Log, Plan, Schedule, load_checkpoint, make_optimizer, save_checkpoint
from transformers import Blip2VisionModel

DOMAINS = [SOURCE, *TARGETS]
CELL_OF_PATCH = torch.tensor(
    [2 * (row // 3) + column // 3 for row in range(6) for column in range(6)]
)
LOG_EVERY = 100
SOURCE_SHARE = 0.4
FIRST_SOURCE_SHARE = 0.75
KEPT_PATCHES = 22
WHOLE_FROM = 0.8
PHOTOGRAPHS_UNTIL = 0.25
PLACE_WEIGHT = 0.2
SHIFT_WEIGHT = 0.2


class Labelled:
    """The frames of a folder with what they show.

    images: (M, 96, 96, 3), uint8; cells: (M, 4), the kind in each corner, K where it is empty;
    domains: (M,), indices into DOMAINS; scenes: M of them.
    """

    def __init__(
        self, images: np.ndarray, scenes: list[Scene], domains: list[str], names: list[str]
    ) -> None:
        self.images = images
        self.scenes = scenes
        self.domains = np.array([DOMAINS.index(domain) for domain in domains])
        self.cells = np.full((len(scenes), 4), len(names))
        for row, scene in enumerate(scenes):
            for cell, name in scene.items():
                self.cells[row, slice(None) if cell == WHOLE else cell] = names.index(name)

    def __len__(self) -> int:
        return len(self.scenes)

    def domain(self, row: int) -> str:
        """The domain of a frame."""
        return DOMAINS[self.domains[row]]


def load_labelled(world: Path, name: str, work: Path | None = None) -> Labelled:
    """Read a folder of the world; with `work`, its pixels are kept there and mapped."""
    folder = world / name
    images: dict[str, tuple[Scene, str]] = {}
    for line in map(json.loads, (folder / "frames.jsonl").read_text().splitlines()):
        scene = {int(cell): kind for cell, kind in line["scene"].items()}
        images[line["image"]] = (scene, line["domain"])
    pixels = None if work is None else work / f"{name}_images.npy"
    if pixels is not None and pixels.exists():
        data = np.load(pixels, mmap_mode="r")
    else:
        data = np.stack([from_jpeg((folder / image).read_bytes()) for image in images])
        if pixels is not None:
            np.save(pixels, data)
    names = [kind.name for kinds in read_kinds(world) for kind in kinds]
    scenes, domains = zip(*images.values(), strict=True)
    return Labelled(data, list(scenes), list(domains), names)


class DenseTower(nn.Module):
    """The tower with three heads on its patch tokens."""

    def __init__(self, num_kinds: int) -> None:
        super().__init__()
        self.tower = shipped("student").vision_model
        self.kind_head = nn.Linear(TOWER.hidden_size, num_kinds + 1)
        self.shift_head = nn.Linear(TOWER.hidden_size, len(DOMAINS))
        self.place_head = nn.Linear(TOWER.hidden_size, len(PLACES))

    def forward(
        self, pixels_BCHW: Tensor, kept_BP: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of kind (B, P, K + 1), shift (B, P, 7) and place (B, P, 36).

        With kept_BP, the places of the patches to look at, the tower sees those and CLS alone.
        """
        hidden_BNC = self.tower.embeddings(pixels_BCHW)
        if kept_BP is not None:
            rows_B1 = torch.arange(len(kept_BP))[:, None]
            hidden_BNC = torch.cat([hidden_BNC[:, :1], hidden_BNC[rows_B1, kept_BP + 1]], dim=1)
        hidden_BNC = self.tower.encoder(inputs_embeds=hidden_BNC).last_hidden_state
        patches_BPC = self.tower.post_layernorm(hidden_BNC)[:, 1:]
        return (
            self.kind_head(patches_BPC),
            self.shift_head(patches_BPC),
            self.place_head(patches_BPC),
        )


@torch.no_grad()
def accuracy(model: DenseTower, frames: Labelled) -> dict[str, float]:
    """Share of corners whose kind is right (the sum of its patches' logits), by domain."""
    logits_BPK, _, _ = model(to_pixels(np.asarray(frames.images)))
    truth = torch.from_numpy(frames.cells)
    corners = torch.stack(
        [logits_BPK[:, corner == CELL_OF_PATCH].sum(1) for corner in range(4)], dim=1
    )
    whole = torch.tensor([WHOLE in scene for scene in frames.scenes])
    corners[whole] = logits_BPK[whole].sum(1, keepdim=True)
    right, there = corners.argmax(-1) == truth, truth != logits_BPK.shape[-1] - 1
    shares = {
        DOMAINS[index]: right[there & torch.from_numpy(frames.domains == index)[:, None]]
        for index in sorted(set(frames.domains.tolist()))
    }
    return {name: round(100 * share.float().mean().item(), 1) for name, share in shares.items()}


def _batch(
    parts: list[Labelled], size: int, shifted: bool, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (B, 3, 96, 96), kinds of patches (B, P) and domains (B,); some mirrored, relit."""
    share = SOURCE_SHARE if shifted else FIRST_SOURCE_SHARE
    chosen = [parts[0] if rng.random() < share else parts[1] for _ in range(size)]
    rows = [int(rng.integers(len(part))) for part in chosen]
    if not shifted:
        unseen = np.flatnonzero(parts[1].domains == DOMAINS.index(UNSEEN))
        rows = [
            row if part is parts[0] else int(rng.choice(unseen))
            for part, row in zip(chosen, rows, strict=True)
        ]
    where = list(zip(chosen, rows, strict=True))
    images = np.stack([part.images[row] for part, row in where])
    cells = np.stack([part.cells[row] for part, row in where])
    flipped = rng.random(size) < 0.5
    images[flipped] = images[flipped][:, :, ::-1]
    cells[flipped] = cells[flipped][:, [1, 0, 3, 2]]
    gain = torch.from_numpy(rng.uniform(0.8, 1.2, (size, 3, 1, 1))).float()
    offset = torch.from_numpy(rng.uniform(-0.1, 0.1, (size, 1, 1, 1))).float()
    domains = torch.tensor([part.domains[row] for part, row in where])
    pixels = to_pixels(images) * gain + offset
    return pixels, torch.from_numpy(cells)[:, CELL_OF_PATCH], domains


def train_tower(world: Path, work: Path, log: Log, plan: Plan) -> Blip2VisionModel:
    """Train the tower on both training folders, or load it if it is done.

    Photographs come first, shifts later. It sees 22 of the 36 patches of a frame, and all of them
    in the last fifth: that is quicker, and a part of a thing must do, as it must in the cloud.
    """
    torch.manual_seed(plan.seed)
    model = DenseTower(sum(map(len, read_kinds(world))))
    optimizer = make_optimizer(model, plan.peak_rate)
    schedule = Schedule(optimizer, plan)
    checkpoint = work / "tower.pt"
    start = load_checkpoint(checkpoint, model, optimizer)
    if start == plan.steps:
        return model.tower.eval().requires_grad_(False)
    parts = [load_labelled(world, name, work) for name in ("train-source", "train-target")]
    watched = [load_labelled(world, name) for name in ("source", "heldout")]
    for step in range(start, plan.steps):
        rng = np.random.default_rng((plan.seed, step))
        shifted = step >= PHOTOGRAPHS_UNTIL * plan.steps
        pixels, kinds, domains = _batch(parts, plan.batch_size, shifted, rng)
        places, kept_BP = PLACES.expand_as(kinds), None
        if step < WHOLE_FROM * plan.steps:
            kept_BP = torch.from_numpy(rng.random(kinds.shape).argsort(1)[:, :KEPT_PATCHES])
            kinds, places = kinds.gather(1, kept_BP), kept_BP
        kind_logits, shift_logits, place_logits = model(pixels, kept_BP)
        shifts = domains[:, None].expand_as(kinds).flatten()
        shift_loss = nn.functional.cross_entropy(shift_logits.flatten(0, 1), shifts)
        place_loss = nn.functional.cross_entropy(place_logits.flatten(0, 1), places.flatten())
        loss = label_loss(kind_logits, kinds) + SHIFT_WEIGHT * shift_loss
        loss = loss + PLACE_WEIGHT * place_loss
        schedule.step(step, loss, model)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == plan.steps:
            scores: dict[str, float] = {}
            for frames in watched:
                scores |= accuracy(model, frames)
            log.write("tower", step + 1, loss=round(loss.item(), 4), kinds_right=scores)
            save_checkpoint(checkpoint, model, optimizer, step + 1)
    return model.tower.eval().requires_grad_(False)


@torch.no_grad()
def store_tokens(world: Path, work: Path, tower: Blip2VisionModel, name: str) -> None:
    """Store the tokens of a folder's frames, (M, N, C), float16, unless they are there."""
    target = work / f"{name}_tokens.npy"
    if target.exists():
        return
    images = load_labelled(world, name, work).images
    tokens = [
        tower(to_pixels(np.array(images[i : i + 250]))).last_hidden_state.half()
        for i in range(0, len(images), 250)
    ]
    np.save(target, torch.cat(tokens).numpy())
