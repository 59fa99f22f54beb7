"""The vision tower: trained to tell, for each patch, the kind and colour of what its cell holds.

It stands for a tower trained on the web: it has seen all kinds in all lights, but no question and
no sentence. Its heads are thrown away; teacher and student share it, frozen, bit for bit.

Shapes: B batch, N visual tokens (37: CLS and 36 patches), P patches (36), C channels.
"""

import multiprocessing
from pathlib import Path

import numpy as np
import torch
from drawing import COLOURS, draw_scene, from_jpeg, to_jpeg
from torch import Tensor, nn
from training import Log, Plan, Schedule, load_checkpoint, make_optimizer, save_checkpoint
from transformers import Blip2VisionConfig, Blip2VisionModel
from world import KINDS, Scene, make_scene

COLOUR_NAMES = list(COLOURS)
NOTHING = -1
CHUNK = 1000
LOG_EVERY = 100
STORED_PICTURES = 12_000
HELD_OUT_PICTURES = 500
CELL_OF_PATCH = torch.tensor(
    [3 * (row // 2) + column // 2 for row in range(6) for column in range(6)]
)
EMPTY_WEIGHT = 0.3
PLACES = torch.arange(36)
TOWER = Blip2VisionConfig(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=5,
    num_attention_heads=4,
    image_size=96,
    patch_size=16,
    initializer_range=0.02,
)


def _draw_chunk(job: tuple[str, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw pictures (count, 96, 96, 3), uint8, and their cells (count, 9, 2): kind and colour."""
    domain, count, seed = job
    rng = np.random.default_rng(seed)
    images = np.empty((count, 96, 96, 3), np.uint8)
    cells = np.full((count, 9, 2), NOTHING, np.int8)
    for index in range(count):
        scene = make_scene(domain, rng)
        images[index] = from_jpeg(to_jpeg(draw_scene(scene, domain, rng)))
        for cell, (kind, colour) in scene.items():
            cells[index, cell] = KINDS.index(kind), COLOUR_NAMES.index(colour)
    return images, cells


def draw_pictures(folder: Path, domain: str, count: int, seed: int, processes: int) -> None:
    """Draw and store pictures of a domain, through JPEG as frames are, unless they are there."""
    target = folder / f"{domain}_cells.npy"
    if target.exists():
        return
    jobs = [(domain, min(CHUNK, count - start), seed + start) for start in range(0, count, CHUNK)]
    with multiprocessing.Pool(processes) as pool:
        chunks = pool.map(_draw_chunk, jobs, chunksize=1)
    np.save(folder / f"{domain}_images.npy", np.concatenate([images for images, _ in chunks]))
    np.save(target, np.concatenate([cells for _, cells in chunks]))


def load_pictures(folder: Path, domain: str) -> tuple[np.ndarray, np.ndarray]:
    """The stored pictures (M, 96, 96, 3) and cells (M, 9, 2) of a domain."""
    return np.load(folder / f"{domain}_images.npy"), np.load(folder / f"{domain}_cells.npy")


def scene_of(cells: np.ndarray) -> Scene:
    """The scene that a (9, 2) array of cells stands for."""
    return {
        cell: (KINDS[kind], COLOUR_NAMES[colour])
        for cell, (kind, colour) in enumerate(cells)
        if kind != NOTHING
    }


def to_pixels(images: np.ndarray) -> Tensor:
    """(B, 96, 96, 3) uint8 to (B, 3, 96, 96) in [-1, 1], as the shipped image processor does."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


class DenseTower(nn.Module):
    """The tower with two heads on its patch tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = Blip2VisionModel(TOWER)
        nn.init.normal_(self.tower.embeddings.position_embedding, std=0.02)
        self.kind_head = nn.Linear(TOWER.hidden_size, len(KINDS) + 1)
        self.colour_head = nn.Linear(TOWER.hidden_size, len(COLOUR_NAMES) + 1)
        self.place_head = nn.Linear(TOWER.hidden_size, len(CELL_OF_PATCH))

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of kind (B, P, 16) and colour (B, P, 8), "nothing" last, and place (B, P, 36)."""
        patches_BPC = self.tower(pixels_BCHW).last_hidden_state[:, 1:]
        return (
            self.kind_head(patches_BPC),
            self.colour_head(patches_BPC),
            self.place_head(patches_BPC),
        )


def cell_labels(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Kinds and colours (B, 9) each, from cells (B, 9, 2), "nothing" as the last class."""
    kinds, colours = cells.long().unbind(-1)
    return (
        kinds.masked_fill(kinds == NOTHING, len(KINDS)),
        colours.masked_fill(colours == NOTHING, len(COLOUR_NAMES)),
    )


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over cells or patches, empty ones counting less."""
    weights = torch.ones(logits.shape[-1])
    weights[-1] = EMPTY_WEIGHT
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), weights)


@torch.no_grad()
def accuracy(
    model: DenseTower, images: np.ndarray, cells: np.ndarray
) -> tuple[float, float, float]:
    """Share of occupied patches whose kind, and whose colour, is right; share of right places."""
    kinds, colours = cell_labels(torch.from_numpy(cells)[:, CELL_OF_PATCH])
    occupied = kinds != len(KINDS)
    kind_logits, colour_logits, place_logits = model(to_pixels(images))
    return (
        (kind_logits.argmax(-1) == kinds)[occupied].float().mean().item(),
        (colour_logits.argmax(-1) == colours)[occupied].float().mean().item(),
        (place_logits.argmax(-1) == PLACES).float().mean().item(),
    )


def train_tower(
    work: Path,
    log: Log,
    plan: Plan,
    stage: str,
    begin: str | None = None,
    place_weight: float = 0.0,
) -> Blip2VisionModel:
    """Train the tower on both domains, from the stage `begin` if any, or load it if it is done."""
    torch.manual_seed(plan.seed)
    model = DenseTower()
    optimizer = make_optimizer(model, plan.peak_rate)
    schedule = Schedule(optimizer, plan)
    checkpoint = work / f"{stage}.pt"
    if begin is not None and not checkpoint.exists():
        state = torch.load(work / f"{begin}.pt", weights_only=True)["model"]
        model.load_state_dict(state, strict=False)
    start = load_checkpoint(checkpoint, model, optimizer)
    if start == plan.steps:
        return model.tower.eval().requires_grad_(False)
    pictures = [load_pictures(work, domain) for domain in ("source", "target")]
    held_out = [
        (images[-HELD_OUT_PICTURES:], cells[-HELD_OUT_PICTURES:]) for images, cells in pictures
    ]
    images = np.concatenate([images[:-HELD_OUT_PICTURES] for images, _ in pictures])
    cells = np.concatenate([cells[:-HELD_OUT_PICTURES] for _, cells in pictures])
    for step in range(start, plan.steps):
        rng = np.random.default_rng((plan.seed, step))
        rows = rng.integers(0, len(images), plan.batch_size)
        batch_images, batch_cells = images[rows], cells[rows]
        if rng.random() < 0.5:
            batch_images = batch_images[:, :, ::-1].copy()
            batch_cells = batch_cells.reshape(-1, 3, 3, 2)[:, :, ::-1].reshape(-1, 9, 2).copy()
        kinds, colours = cell_labels(torch.from_numpy(batch_cells)[:, CELL_OF_PATCH])
        kind_logits, colour_logits, place_logits = model(to_pixels(batch_images))
        loss = label_loss(kind_logits, kinds) + 0.5 * label_loss(colour_logits, colours)
        places = PLACES.expand(len(kinds), -1).flatten()
        place_loss = nn.functional.cross_entropy(place_logits.flatten(0, 1), places)
        loss = loss + place_weight * place_loss
        schedule.step(step, loss, model)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == plan.steps:
            scores: dict[str, float] = {}
            for domain, (some_images, some_cells) in zip(
                ("source", "target"), held_out, strict=True
            ):
                kind, colour, place = accuracy(model, some_images, some_cells)
                scores |= {
                    f"{domain}_kind": round(kind, 4),
                    f"{domain}_colour": round(colour, 4),
                    f"{domain}_place": round(place, 4),
                }
            log.write(stage, step + 1, loss=round(loss.item(), 4), **scores)
            save_checkpoint(checkpoint, model, optimizer, step + 1)
    return model.tower.eval().requires_grad_(False)


@torch.no_grad()
def store_tokens(work: Path, tower: Blip2VisionModel, domain: str) -> None:
    """Store the tokens of a domain's first pictures, (M, N, C), float16, unless they are there."""
    target = work / f"{domain}_tokens.npy"
    if target.exists():
        return
    images, _ = load_pictures(work, domain)
    tokens = [
        tower(to_pixels(images[i : i + 250])).last_hidden_state.half()
        for i in range(0, STORED_PICTURES, 250)
    ]
    np.save(target, torch.cat(tokens).numpy())
