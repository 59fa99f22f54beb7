"""Greedy answers with their entropies, and the likelihood of given choices.

Shapes: B batch, V vocabulary, R rows of choices, A answer tokens. Entropy (Eq. 2) is in nats, of
the unmodified logits (no processor, no temperature) in the pass that chooses the token.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cdcca_cli.models.language import Language, Spliced


@dataclass(frozen=True)
class Generated:
    """Per row the chosen tokens, with the end token if reached, and of each its entropy in nats
    and its margin."""

    ids: list[list[int]]
    entropies: list[list[float]]
    margins: list[list[float]]


def step_entropy(logits_BV: Tensor) -> Tensor:
    """Predictive entropy (B,) in nats (Eq. 2): H = - sum_v p_v log p_v; logits may be -inf."""
    return torch.special.entr(logits_BV.float().softmax(-1)).sum(-1)


def step_margin(logits_BV: Tensor) -> Tensor:
    """How much likelier the first token is than the second, (B,): p_1 - p_2, in [0, 1]."""
    return logits_BV.float().softmax(-1).topk(2).values.diff(dim=-1).neg().squeeze(-1)


@torch.no_grad()
def greedy(
    language: Language, spliced: Spliced, max_new_tokens: int, end_ids: tuple[int, ...]
) -> Generated:
    """Take the most likely tokens, at most `max_new_tokens` a row. Raises: PromptTooLong."""
    language.check_room(spliced, max_new_tokens)
    logits_BV, state = language.begin(spliced, max_new_tokens)
    ends = torch.tensor(end_ids, device=logits_BV.device)
    ended_B = torch.zeros(len(spliced), dtype=torch.bool, device=logits_BV.device)
    suppressed = torch.tensor(language.suppressed, dtype=torch.long, device=logits_BV.device)
    ids: list[Tensor] = []
    entropies: list[Tensor] = []
    margins: list[Tensor] = []
    while True:
        ids_B = logits_BV.index_fill(-1, suppressed, -torch.inf).argmax(-1)
        ids.append(ids_B)
        entropies.append(step_entropy(logits_BV))
        margins.append(step_margin(logits_BV))
        ended_B = ended_B | torch.isin(ids_B, ends)
        if len(ids) == max_new_tokens or bool(ended_B.all()):
            break
        logits_BV = language.advance(state, ids_B)
    rows = torch.stack(ids, dim=1).tolist()
    # The first end token of a row belongs to its answer.
    lengths = [
        next((i + 1 for i, token in enumerate(row) if token in end_ids), len(row)) for row in rows
    ]

    def cut(steps: list[Tensor]) -> list[list[float]]:
        found = torch.stack(steps, dim=1).tolist()
        return [row[:length] for row, length in zip(found, lengths, strict=True)]

    return Generated(
        ids=[row[:length] for row, length in zip(rows, lengths, strict=True)],
        entropies=cut(entropies),
        margins=cut(margins),
    )


@torch.no_grad()
def choice_scores(
    language: Language, spliced: Spliced, choice_ids: list[list[list[int]]]
) -> list[list[float]]:
    """Summed log-likelihood of each choice after its prompt, in nats, in the same nesting.

    score(c) = sum_j log p(c_j | prompt, c_<j)

    Args: choice_ids: tokens of each choice of each prompt, with the end token.
    """
    flat = [ids for choices in choice_ids for ids in choices]
    if not flat:
        return [[] for _ in choice_ids]
    device = spliced.attention_mask.device
    rows_R = torch.tensor(
        [row for row, choices in enumerate(choice_ids) for _ in choices], device=device
    )
    ids_RA = right_padded(flat).to(device)
    logits_RAV = language.continuation_logits(spliced, rows_R, ids_RA)
    real_RA = ids_RA != -100
    picked_RA = logits_RAV.float().log_softmax(-1).gather(-1, ids_RA.clamp(min=0)[..., None])
    scores = picked_RA.squeeze(-1).masked_fill(~real_RA, 0.0).sum(-1).tolist()
    remaining = iter(scores)
    return [[next(remaining) for _ in choices] for choices in choice_ids]


def right_padded(rows: list[list[int]], fill: int = -100) -> Tensor:
    """(R, A) int64: rows of different lengths, padded on the right with `fill`."""
    width = max((len(row) for row in rows), default=0)
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows], dtype=torch.long)


def special_ids(*values: Any) -> tuple[int, ...]:
    """The distinct ids in several values, each an int, a list of ints or None; in their order."""
    lists = [value if isinstance(value, (list, tuple)) else [value] for value in values]
    return tuple(dict.fromkeys(int(token) for row in lists for token in row if token is not None))


def end_ids(*sources: Any) -> tuple[int, ...]:
    """The end tokens of the first source that has any, as in transformers' `generate`."""
    found = (special_ids(getattr(source, "eos_token_id", None)) for source in sources)
    return next((ids for ids in found if ids), ())
