"""Language first, then pictures: the training of student and teacher.

`train_text` teaches a language model to read: captions, questions on them, facts; of all kinds,
so that the student knows the words. `train_queries` teaches a Q-Former what lies where, as BLIP-2
trains its own before it meets a language model. `train_pictures` teaches both on stored visual
tokens, with some reading mixed in. The student sees the source domain alone, the teacher both.
Of half of the pictures a random part of the tokens is hidden, as it will be from the cloud.

Shapes: B batch, N visual tokens, C channels.
"""

from pathlib import Path

import numpy as np
import torch
from language import Packed, Packer, scene_segments, text_batch
from measure import Frames, direct_answers
from pair import build, query_features, query_outputs, token_losses
from torch import Tensor, nn
from train_tower import COLOUR_NAMES, cell_labels, label_loss, scene_of
from training import Log, Plan, Schedule, load_checkpoint, make_optimizer, save_checkpoint
from transformers import Blip2ForConditionalGeneration, PreTrainedTokenizerFast
from world import KINDS

DOMAINS = {"student": ("source",), "teacher": ("source", "target")}
TEXT_EVERY = 5
LOG_EVERY = 250
QUESTIONS_PER_PICTURE = 4


def mean_loss(
    model: Blip2ForConditionalGeneration, packed: Packed, features_BLC: Tensor | None
) -> Tensor:
    """Mean over texts of their mean over tokens, so that a one-word answer counts as a caption."""
    losses, rows, segments = token_losses(model, packed, features_BLC)
    texts = rows * (int(packed.segment.max()) + 1) + segments
    _, text, lengths = texts.unique(return_inverse=True, return_counts=True)
    return (losses / lengths[text]).sum() / len(lengths)


def train_text(
    work: Path, role: str, tokenizer: PreTrainedTokenizerFast, log: Log, plan: Plan
) -> None:
    """Teach a role's language model to read; its checkpoint is left in the work folder."""
    torch.manual_seed(plan.seed)
    model = build(role, tokenizer)
    language_model: nn.Module = model.language_model
    packer = Packer(tokenizer)
    optimizer = make_optimizer(language_model, plan.peak_rate)
    schedule = Schedule(optimizer, plan)
    checkpoint = work / f"{role}_text.pt"
    for step in range(load_checkpoint(checkpoint, language_model, optimizer), plan.steps):
        packed = text_batch(packer, plan.batch_size, np.random.default_rng((plan.seed, step)))
        loss = mean_loss(model, packed, None)
        schedule.step(step, loss, language_model)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == plan.steps:
            log.write(f"{role} text", step + 1, loss=round(loss.item(), 4))
            save_checkpoint(checkpoint, language_model, optimizer, step + 1)


class Pictures:
    """Stored visual tokens with their scenes, of one or two domains in equal parts."""

    def __init__(self, work: Path, domains: tuple[str, ...]) -> None:
        self.domains = domains
        self.tokens = {
            domain: np.load(work / f"{domain}_tokens.npy", mmap_mode="r") for domain in domains
        }
        self.cells = {domain: np.load(work / f"{domain}_cells.npy") for domain in domains}

    def batch(self, rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor, np.ndarray, list]:
        """Visual tokens (B, N, C), which are kept (B, N), cells (B, 9, 2), and the domains."""
        domains = [self.domains[rng.integers(len(self.domains))] for _ in range(size)]
        rows = [int(rng.integers(len(self.tokens[domain]))) for domain in domains]
        where = list(zip(domains, rows, strict=True))
        tokens_BNC = torch.from_numpy(np.stack([self.tokens[d][row] for d, row in where])).float()
        cells = np.stack([self.cells[d][row] for d, row in where])
        share_B1 = np.where(rng.random((size, 1)) < 0.5, 1.0, rng.uniform(0.4, 1.0, (size, 1)))
        kept_BN = torch.from_numpy(rng.random(tokens_BNC.shape[:2]) < share_B1)
        kept_BN[:, 0] = True
        return tokens_BNC, kept_BN, cells, domains


class CellReader(nn.Module):
    """A model's Q-Former with two heads: query c tells the kind and the colour in cell c."""

    def __init__(self, model: Blip2ForConditionalGeneration) -> None:
        super().__init__()
        self.query_tokens = model.query_tokens
        self.qformer = model.qformer
        width = model.config.qformer_config.hidden_size
        self.kind_head = nn.Linear(width, len(KINDS) + 1)
        self.colour_head = nn.Linear(width, len(COLOUR_NAMES) + 1)

    def loss(self, tokens_BNC: Tensor, kept_BN: Tensor, cells: np.ndarray) -> Tensor:
        """Mean cross-entropy of kinds and colours over the cells."""
        queries_BLC = query_outputs(self.qformer, self.query_tokens, tokens_BNC, kept_BN)
        kinds, colours = cell_labels(torch.from_numpy(cells))
        read = queries_BLC[:, : kinds.shape[1]]
        return label_loss(self.kind_head(read), kinds) + label_loss(self.colour_head(read), colours)


def train_queries(
    work: Path, role: str, tokenizer: PreTrainedTokenizerFast, log: Log, plan: Plan
) -> None:
    """Teach a role's Q-Former what lies where, before any language; heads are thrown away."""
    torch.manual_seed(plan.seed + 1)
    reader = CellReader(build(role, tokenizer))
    pictures = Pictures(work, DOMAINS[role])
    optimizer = make_optimizer(reader, plan.peak_rate)
    schedule = Schedule(optimizer, plan)
    checkpoint = work / f"{role}_queries.pt"
    for step in range(load_checkpoint(checkpoint, reader, optimizer), plan.steps):
        rng = np.random.default_rng((plan.seed, step, 2))
        tokens_BNC, kept_BN, cells, _ = pictures.batch(rng, plan.batch_size)
        loss = reader.loss(tokens_BNC, kept_BN, cells)
        schedule.step(step, loss, reader)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == plan.steps:
            log.write(f"{role} queries", step + 1, loss=round(loss.item(), 4))
            save_checkpoint(checkpoint, reader, optimizer, step + 1)


def train_pictures(
    work: Path,
    role: str,
    tokenizer: PreTrainedTokenizerFast,
    log: Log,
    plan: Plan,
    watched: dict[str, Frames],
) -> Blip2ForConditionalGeneration:
    """Teach a role to answer and to caption; scores on the `watched` frames go to the log."""
    torch.manual_seed(plan.seed + 1)
    model = build(role, tokenizer)
    reader = CellReader(model)
    reader.load_state_dict(torch.load(work / f"{role}_queries.pt", weights_only=True)["model"])
    state = torch.load(work / f"{role}_text.pt", weights_only=True)["model"]
    model.language_model.load_state_dict(state)
    model.vision_model.requires_grad_(False)
    packer = Packer(tokenizer)
    pictures = Pictures(work, DOMAINS[role])
    optimizer = make_optimizer(model, plan.peak_rate)
    schedule = Schedule(optimizer, plan)
    checkpoint = work / f"{role}.pt"
    for step in range(load_checkpoint(checkpoint, model, optimizer), plan.steps):
        rng = np.random.default_rng((plan.seed, step))
        tokens_BNC, kept_BN, cells, domains = pictures.batch(rng, plan.batch_size)
        segments = [
            scene_segments(scene_of(some), domain, QUESTIONS_PER_PICTURE, rng)
            for some, domain in zip(cells, domains, strict=True)
        ]
        packed = packer([packer.image_prefix] * plan.batch_size, segments)
        loss = mean_loss(model, packed, query_features(model, tokens_BNC, kept_BN))
        picture_loss = loss.item()
        if step % TEXT_EVERY == 0:
            text = text_batch(
                packer, plan.batch_size // 2, np.random.default_rng((plan.seed, step, 1))
            )
            loss = loss + mean_loss(model, text, None)
        schedule.step(step, loss, model)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == plan.steps:
            scores = {
                name: round(direct_answers(model, tokenizer, frames)[0], 2)
                for name, frames in watched.items()
            }
            log.write(role, step + 1, loss=round(picture_loss, 4), **scores)
            save_checkpoint(checkpoint, model, optimizer, step + 1)
    return model.eval()
