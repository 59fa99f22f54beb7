"""Student and teacher: a connector learns to speak to a language model that hardly changes.

The tower is frozen. The language model is frozen in bfloat16, with LoRA that is merged into it at
the end: the student's on all its linears, the teacher's on those of its attentions (a third less to
compute). The student sees the source domain alone; the teacher begins as the student and sees both.

Shapes: B batch, T tokens, N visual tokens, C channels, M labelled tokens.
"""

import copy
from pathlib import Path
from typing import Any

import beside_photographs  # noqa: F401
import numpy as np
import torch
from checkpoints import Model, parts, see
from language import IGNORE, Packed
from naming import learn_names
from peft import LoraConfig, PeftModel, get_peft_model
from prompts import Frame, Packer, pixels, read_frames, said
from torch import Tensor, nn
from training import Log, Plan, Schedule, load_checkpoint, make_optimizer, save_checkpoint

FOLDERS = {"student": ["train-source"], "teacher": ["train-source", "train-target"]}
SOURCE_SHARE = 0.3
LORA_RANK = 16
LORA_ON = {"student": "all-linear", "teacher": ["q_proj", "k_proj", "v_proj", "o_proj"]}
SORTED_TOGETHER = 4  # batches whose frames are sorted by length, so that little is padded
LOG_EVERY = 20
SAVE_EVERY = 20
WATCH_EVERY = 100


def answer_losses(
    language: nn.Module, connector: nn.Module, packer: Packer, packed: Packed, seen_BNC: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each label: its negative log-likelihood (M,), whether it is likeliest, its text's number.

    A label is predicted by the token before it; the first token of a segment is never a label.
    """
    words = language.get_input_embeddings()
    embedded_BTC = words(packed.input_ids)
    places = (packed.input_ids == packer.image_id)[:, :, None].expand_as(embedded_BTC)
    features = connector(seen_BNC).to(embedded_BTC.dtype)
    hidden_BTC = language(
        inputs_embeds=embedded_BTC.masked_scatter(places, features),
        attention_mask=packed.mask,
        position_ids=packed.position_ids,
        use_cache=False,
    ).last_hidden_state
    labelled = packed.labels != IGNORE
    rows, columns = labelled.nonzero(as_tuple=True)
    logits = nn.functional.linear(hidden_BTC[rows, columns - 1], words.weight).float()
    labels = packed.labels[labelled]
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    texts = rows * (int(packed.segment.max()) + 1) + packed.segment[labelled]
    return losses, logits.argmax(-1) == labels, texts


def mean_loss(losses: Tensor, texts: Tensor) -> Tensor:
    """Mean over texts of their mean over tokens, so that a one-word answer counts as a caption."""
    _, text, lengths = texts.unique(return_inverse=True, return_counts=True)
    return (losses / lengths[text]).sum() / len(lengths)


@torch.no_grad()
def answered(language: nn.Module, model: Model, packer: Packer, frames: list[Frame]) -> float:
    """Percent of the questions whose main answer is the likeliest at every token."""
    right: list[bool] = []
    for start in range(0, len(frames), 10):
        some = frames[start : start + 10]
        lines = [[line for line in frame.lines if "choices" in line] for frame in some]
        rows = [
            packer.row(part, [line["choices"][line["correct_choice_idx"]] for line in part])
            for part in lines
        ]
        seen = see(model, pixels(some))
        _, hits, texts = answer_losses(language, parts(model)[1], packer, packer(rows), seen)
        right += [bool(hits[texts == text].all()) for text in texts.unique()]
    return round(100 * float(np.mean(right)), 1)


class Batches:
    """Batches of frames of some pools, those of like length together; the same at each start."""

    def __init__(self, pools: list[list[Frame]], packer: Packer, plan: Plan) -> None:
        self._pools, self._packer, self._plan = pools, packer, plan

    def __call__(self, step: int) -> tuple[list[Frame], Packed]:
        """The batch of a step."""
        group, place = divmod(step, SORTED_TOGETHER)
        rng = np.random.default_rng((self._plan.seed, group))
        size = self._plan.batch_size
        frames: list[Frame] = []
        rows: list[Any] = []
        for _ in range(SORTED_TOGETHER * size):
            pool = self._pools[0 if rng.random() < SOURCE_SHARE else -1]
            frame = pool[int(rng.integers(len(pool)))]
            frames.append(frame)
            rows.append(self._packer.row(frame.lines, [said(line, rng) for line in frame.lines]))
        order = np.argsort([sum(len(ids) for ids, _ in row) for row in rows], kind="stable")
        turn = int(rng.permutation(SORTED_TOGETHER)[place])
        chosen = order[turn * size : (turn + 1) * size]
        return [frames[i] for i in chosen], self._packer([rows[i] for i in chosen])


def train_role(
    model: Model,
    packer: Packer,
    role: str,
    world: Path,
    work: Path,
    log: Log,
    plans: dict[str, Plan],
    watched: dict[str, list[Frame]],
) -> None:
    """Train a model's connector and language model to be a role; `model` is changed.

    It goes on from its checkpoint in the work folder, and leaves one there.
    """
    torch.manual_seed(plans[role].seed)
    pools = [read_frames(world / name) for name in FOLDERS[role]]
    _, connector, language = parts(model)
    model.requires_grad_(False)
    connector.requires_grad_(True)
    half: PeftModel = get_peft_model(
        copy.deepcopy(language).to(torch.bfloat16),
        LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=LORA_ON[role]),
    )
    trained = [p for p in (*connector.parameters(), *half.parameters()) if p.requires_grad]
    learner = nn.ParameterList(trained)
    plan = plans[role]
    optimizer = make_optimizer(learner, plan.peak_rate)
    schedule = Schedule(optimizer, plan)
    checkpoint = work / f"{role}.pt"
    start = load_checkpoint(checkpoint, learner, optimizer)
    if start == 0:
        is_new = role == "student"
        learn_names(model, packer.tokenizer, world, pools, is_new, log, plans[f"{role}-names"])
    batches = Batches(pools, packer, plan)
    for step in range(start, plan.steps):
        frames, packed = batches(step)
        losses, hits, texts = answer_losses(
            half, connector, packer, packed, see(model, pixels(frames))
        )
        loss = mean_loss(losses, texts)
        schedule.step(step, loss, learner)
        done = step + 1 == plan.steps
        if (step + 1) % LOG_EVERY == 0 or done:
            scores = {}
            if (step + 1) % WATCH_EVERY == 0 or done:
                scores = {
                    name: answered(half, model, packer, some) for name, some in watched.items()
                }
            tokens_right = round(100 * hits.float().mean().item(), 1)
            log.write(role, step + 1, loss=round(loss.item(), 4), tokens=tokens_right, **scores)
        if (step + 1) % SAVE_EVERY == 0 or done:
            save_checkpoint(checkpoint, learner, optimizer, step + 1)
    language.load_state_dict(half.float().merge_and_unload().state_dict())
