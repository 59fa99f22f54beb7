"""Language first, then pictures: the training of student and teacher.

`train_text` teaches a language model to read: captions, questions on them, facts; of all kinds,
so that the student knows the words. `train_pictures` teaches Q-Former and language model on stored
visual tokens, with some reading mixed in: the student on the source domain alone, the teacher on
both. For half of the pictures a random part of the tokens is hidden, as the cloud will see them.

Shapes: B batch, N visual tokens, C channels.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Blip2ForConditionalGeneration, PreTrainedTokenizerFast

from language import Packed, Packer, scene_segments, text_batch
from measure import Frames, direct_answers
from pair import build, query_features, token_losses
from train_tower import scene_of
from training import Log, Plan, Schedule, load_checkpoint, make_optimizer, save_checkpoint

DOMAINS = {"student": ("source",), "teacher": ("source", "target")}
TEXT_EVERY = 5
LOG_EVERY = 250
QUESTIONS_PER_PICTURE = 4


def _mean_loss(
    model: Blip2ForConditionalGeneration, packed: Packed, features_BLC: Tensor | None
) -> Tensor:
    losses, _, _ = token_losses(model, packed, features_BLC)
    return losses.mean()


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
        loss = _mean_loss(model, packed, None)
        schedule.step(step, loss, language_model)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == plan.steps:
            log.write(f"{role} text", step + 1, loss=round(loss.item(), 4))
            save_checkpoint(checkpoint, language_model, optimizer, step + 1)


class Pictures:
    """Stored visual tokens with their scenes, of one or two domains in equal parts."""

    def __init__(self, work: Path, domains: tuple[str, ...], seed: int) -> None:
        self.domains = domains
        self.seed = seed
        self.tokens = {
            domain: np.load(work / f"{domain}_tokens.npy", mmap_mode="r") for domain in domains
        }
        self.cells = {domain: np.load(work / f"{domain}_cells.npy") for domain in domains}

    def batch(self, step: int, size: int, packer: Packer) -> tuple[Tensor, Tensor, Packed]:
        """Visual tokens (B, N, C), which are kept (B, N), and the packed texts."""
        rng = np.random.default_rng((self.seed, step))
        tokens, segments = [], []
        for _ in range(size):
            domain = self.domains[rng.integers(len(self.domains))]
            row = rng.integers(len(self.tokens[domain]))
            tokens.append(self.tokens[domain][row])
            scene = scene_of(self.cells[domain][row])
            segments.append(scene_segments(scene, domain, QUESTIONS_PER_PICTURE, rng))
        tokens_BNC = torch.from_numpy(np.stack(tokens)).float()
        share_B1 = np.where(rng.random((size, 1)) < 0.5, 1.0, rng.uniform(0.4, 1.0, (size, 1)))
        kept_BN = torch.from_numpy(rng.random(tokens_BNC.shape[:2]) < share_B1)
        kept_BN[:, 0] = True
        return tokens_BNC, kept_BN, packer([packer.image_prefix] * size, segments)


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
    state = torch.load(work / f"{role}_text.pt", weights_only=True)["model"]
    model.language_model.load_state_dict(state)
    model.vision_model.requires_grad_(False)
    packer = Packer(tokenizer)
    pictures = Pictures(work, DOMAINS[role], plan.seed)
    optimizer = make_optimizer(model, plan.peak_rate)
    schedule = Schedule(optimizer, plan)
    checkpoint = work / f"{role}.pt"
    for step in range(load_checkpoint(checkpoint, model, optimizer), plan.steps):
        tokens_BNC, kept_BN, packed = pictures.batch(step, plan.batch_size, packer)
        loss = _mean_loss(model, packed, query_features(model, tokens_BNC, kept_BN))
        picture_loss = loss.item()
        if step % TEXT_EVERY == 0:
            text = text_batch(
                packer, plan.batch_size // 2, np.random.default_rng((plan.seed, step, 1))
            )
            loss = loss + _mean_loss(model, text, None)
        schedule.step(step, loss, model)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == plan.steps:
            scores = {
                name: round(direct_answers(model, tokenizer, frames)[0], 2)
                for name, frames in watched.items()
            }
            log.write(role, step + 1, loss=round(picture_loss, 4), **scores)
            save_checkpoint(checkpoint, model, optimizer, step + 1)
    return model.eval()
