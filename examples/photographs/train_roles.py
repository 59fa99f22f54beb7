"""Language first, then pictures: student and teacher, on stored tokens of the shared tower.

The stages and their reasons are those of `../pair/train_pair.py`: read, then let the Q-Former tell
what stands in each corner, then both together on questions and captions, captions in every batch.
The student sees the source domain alone, the teacher all. Of half of the frames a random part of
the tokens is hidden, as it will be from the cloud.

Shapes: B batch, N visual tokens, L query tokens, C channels, K kinds.
"""

from pathlib import Path

import beside_pair  # noqa: F401
import numpy as np
import torch
from begin import begin
from language import Packer
from measure import Frames, direct_answers
from pair import query_features, query_outputs
from torch import Tensor, nn
from tower import Labelled, load_labelled
from train_pair import mean_loss
from train_tower import label_loss
from training import Log, Plan, Schedule, load_checkpoint, make_optimizer, save_checkpoint
from transformers import Blip2ForConditionalGeneration, PreTrainedTokenizerFast
from words import Vocabulary, scene_segments, text_batch

FOLDERS = {"student": ("train-source",), "teacher": ("train-source", "train-target")}
SOURCE_SHARE = 0.3
TEXT_EVERY = 5
LOG_EVERY = 300
SAVE_EVERY = 100


def train_text(
    work: Path,
    role: str,
    vocabulary: Vocabulary,
    tokenizer: PreTrainedTokenizerFast,
    log: Log,
    plan: Plan,
) -> None:
    """Teach a role's language model to read; its checkpoint is left in the work folder."""
    torch.manual_seed(plan.seed)
    model = begin(role, tokenizer)
    language_model: nn.Module = model.language_model
    packer = Packer(tokenizer)
    optimizer = make_optimizer(language_model, plan.peak_rate)
    schedule = Schedule(optimizer, plan)
    checkpoint = work / f"{role}_text.pt"
    for step in range(load_checkpoint(checkpoint, language_model, optimizer), plan.steps):
        rng = np.random.default_rng((plan.seed, step))
        loss = mean_loss(model, text_batch(packer, vocabulary, plan.batch_size, rng), None)
        schedule.step(step, loss, language_model)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == plan.steps:
            log.write(f"{role} text", step + 1, loss=round(loss.item(), 4))
            save_checkpoint(checkpoint, language_model, optimizer, step + 1)


class Stored:
    """The stored visual tokens of one or two folders, with what the frames show."""

    def __init__(self, world: Path, work: Path, role: str) -> None:
        self.parts: list[tuple[np.ndarray, Labelled]] = [
            (np.load(work / f"{name}_tokens.npy", mmap_mode="r"), load_labelled(world, name, work))
            for name in FOLDERS[role]
        ]

    def batch(
        self, rng: np.random.Generator, size: int
    ) -> tuple[Tensor, Tensor, list[tuple[Labelled, int]]]:
        """Visual tokens (B, N, C), which of them are kept (B, N), and the frames' labels."""
        last = len(self.parts) - 1
        chosen = [self.parts[0 if rng.random() < SOURCE_SHARE else last] for _ in range(size)]
        where = [(tokens, labels, int(rng.integers(len(labels)))) for tokens, labels in chosen]
        tokens_BNC = torch.from_numpy(np.stack([tokens[row] for tokens, _, row in where])).float()
        share_B1 = np.where(rng.random((size, 1)) < 0.5, 1.0, rng.uniform(0.4, 1.0, (size, 1)))
        kept_BN = torch.from_numpy(rng.random(tokens_BNC.shape[:2]) < share_B1)
        kept_BN[:, 0] = True
        return tokens_BNC, kept_BN, [(labels, row) for _, labels, row in where]


class CornerReader(nn.Module):
    """A model's Q-Former with a head: query c tells the kind in corner c, or that it is empty."""

    def __init__(self, model: Blip2ForConditionalGeneration, num_kinds: int) -> None:
        super().__init__()
        self.query_tokens = model.query_tokens
        self.qformer = model.qformer
        self.kind_head = nn.Linear(model.config.qformer_config.hidden_size, num_kinds + 1)
        self.whole_head = nn.Linear(model.config.qformer_config.hidden_size, 2)

    def loss(self, tokens_BNC: Tensor, kept_BN: Tensor, cells: Tensor, whole: Tensor) -> Tensor:
        """Mean cross-entropy of the corners' kinds (B, 4), and of whole or tiled (B,)."""
        queries_BLC = query_outputs(self.qformer, self.query_tokens, tokens_BNC, kept_BN)
        kinds = label_loss(self.kind_head(queries_BLC[:, :4]), cells)
        return kinds + nn.functional.cross_entropy(self.whole_head(queries_BLC[:, 4]), whole)


def train_queries(
    world: Path,
    work: Path,
    role: str,
    vocabulary: Vocabulary,
    tokenizer: PreTrainedTokenizerFast,
    log: Log,
    plan: Plan,
) -> None:
    """Teach a role's Q-Former what stands where, before any language; its heads are thrown away."""
    torch.manual_seed(plan.seed + 1)
    reader = CornerReader(begin(role, tokenizer), len(vocabulary.kinds))
    stored = Stored(world, work, role)
    optimizer = make_optimizer(reader, plan.peak_rate)
    schedule = Schedule(optimizer, plan)
    checkpoint = work / f"{role}_queries.pt"
    for step in range(load_checkpoint(checkpoint, reader, optimizer), plan.steps):
        rng = np.random.default_rng((plan.seed, step, 2))
        tokens_BNC, kept_BN, labels = stored.batch(rng, plan.batch_size)
        cells = torch.from_numpy(np.stack([part.cells[row] for part, row in labels]))
        whole = torch.tensor([len(part.scenes[row]) == 1 for part, row in labels]).long()
        loss = reader.loss(tokens_BNC, kept_BN, cells, whole)
        schedule.step(step, loss, reader)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == plan.steps:
            log.write(f"{role} queries", step + 1, loss=round(loss.item(), 4))
            save_checkpoint(checkpoint, reader, optimizer, step + 1)


def train_pictures(
    world: Path,
    work: Path,
    role: str,
    vocabulary: Vocabulary,
    tokenizer: PreTrainedTokenizerFast,
    log: Log,
    plan: Plan,
    watched: dict[str, Frames],
) -> Blip2ForConditionalGeneration:
    """Teach a role to answer and to caption; scores on the `watched` frames go to the log."""
    torch.manual_seed(plan.seed + 1)
    model = begin(role, tokenizer)
    reader = CornerReader(model, len(vocabulary.kinds))
    reader.load_state_dict(torch.load(work / f"{role}_queries.pt", weights_only=True)["model"])
    state = torch.load(work / f"{role}_text.pt", weights_only=True)["model"]
    model.language_model.load_state_dict(state)
    model.vision_model.requires_grad_(False)
    packer = Packer(tokenizer)
    stored = Stored(world, work, role)
    optimizer = make_optimizer(model, plan.peak_rate)
    schedule = Schedule(optimizer, plan)
    checkpoint = work / f"{role}.pt"
    for step in range(load_checkpoint(checkpoint, model, optimizer), plan.steps):
        rng = np.random.default_rng((plan.seed, step))
        tokens_BNC, kept_BN, labels = stored.batch(rng, plan.batch_size)
        segments = [
            scene_segments(part.scenes[row], vocabulary, part.domain(row), rng)
            for part, row in labels
        ]
        packed = packer([packer.image_prefix] * plan.batch_size, segments)
        loss = mean_loss(model, packed, query_features(model, tokens_BNC, kept_BN))
        picture_loss = loss.item()
        if step % TEXT_EVERY == 0:
            rng = np.random.default_rng((plan.seed, step, 1))
            text = text_batch(packer, vocabulary, plan.batch_size // 2, rng)
            loss = loss + mean_loss(model, text, None)
        schedule.step(step, loss, model)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == plan.steps:
            scores = {
                name: round(direct_answers(model, tokenizer, frames)[0], 2)
                for name, frames in watched.items()
            }
            log.write(role, step + 1, loss=round(picture_loss, 4), **scores)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == plan.steps:
            save_checkpoint(checkpoint, model, optimizer, step + 1)
    return model.eval()
