"""Stage 2 of `sample`: the tokens of a picked frame that are kept, and its shard.

With fewer than all tokens kept, `token_rules` chooses them, by default those of highest variance
over Monte Carlo dropout (Eq. 3, 4); the tokens themselves come from the pass without dropout.

Legend: K questions of a frame, N visual tokens, C channels.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from cdcca_cli.datasets import Frame, load_image
from cdcca_cli.formats.shard import Layout, Question, Shard
from cdcca_cli.models import LoadedModel, attention
from cdcca_cli.uplink import token_rules, uncertainty
from cdcca_cli.uplink.answers import image_name
from cdcca_cli.uplink.settings import DEFAULT_KEEP, VARIANCE_RULES, SampleSettings


def make_shard(
    model: LoadedModel,
    frame: Frame,
    entropies_K: Sequence[float | None],
    questions: Sequence[int],
    settings: SampleSettings,
    hidden_1NC: Tensor | None = None,
    *,
    with_scores: bool = False,
) -> Shard:
    """Stage 2 of one frame: its best tokens and its picked questions.

    Args: entropies_K: of all its questions, in nats. questions: the places of the picked ones,
        ascending. hidden_1NC: the trunk's output; None: the trunk runs now. with_scores: give the
        score of each kept token, where its rule has one.
    Raises: BadData, MissingInput for a bad picture; BadData if a value is not finite or no token
        varies.
    """
    if hidden_1NC is None:
        hidden_1NC = trunk(model, model.preprocess([load_image(frame)]), settings)
    num_kept = (settings.keep or DEFAULT_KEEP).of(model.num_tokens)
    hidden_1NC = hidden_1NC.to(model.device)
    if num_kept == model.num_tokens and settings.beta is None and not with_scores:
        tokens_NC = tail(model, hidden_1NC, settings)[0].float().cpu().numpy()
        chosen = token_rules.Chosen(np.arange(num_kept, dtype=np.int32), tokens_NC, None)
    else:
        tokens_NC, scores_N = _scored(model, frame, hidden_1NC, settings)
        if settings.beta is not None and scores_N is not None:
            num_kept = token_rules.count_above(scores_N, settings.beta)
        chosen = token_rules.choose(
            settings.by, tokens_NC, num_kept, scores_N=scores_N, grid=model.grid
        )
    return Shard(
        frame=frame.id,
        image=image_name(frame),
        domain=frame.domain,
        tokens=chosen.tokens,
        positions=chosen.positions,
        scores=chosen.scores if with_scores else None,
        num_tokens=len(tokens_NC),
        layout=Layout(grid=model.grid),
        time=frame.time,
        tower=model.tower_digest,
        questions=questions_of(frame, entropies_K, questions),
    )


def questions_of(
    frame: Frame, entropies_K: Sequence[float | None], places: Iterable[int]
) -> list[Question]:
    """The picked questions without their labels, which stay on the device."""
    picked = [(frame.questions[place], entropies_K[place]) for place in places]
    return [
        Question(question.id, question.prompt, question.task, question.choices, entropy)
        for question, entropy in picked
    ]


def _scored(
    model: LoadedModel, frame: Frame, hidden_1NC: Tensor, settings: SampleSettings
) -> tuple[np.ndarray, np.ndarray | None]:
    """The tokens (N, C) of one frame and, if its rule has them, the scores (N,), both float32."""
    if settings.by in VARIANCE_RULES:
        tokens_NC, variance_N = uncertainty.token_variance(
            model,
            hidden_1NC,
            frame.id,
            blocks=settings.blocks,
            passes=settings.passes,
            rate=settings.dropout,
            seed=settings.seed,
        )
        return tokens_NC.float().cpu().numpy(), variance_N.cpu().numpy()
    if settings.by == "received":
        first_block = model.num_blocks - settings.blocks
        tokens_1NC, received_1N = attention.received(model, hidden_1NC, first_block)
        return tokens_1NC[0].float().cpu().numpy(), received_1N[0].cpu().numpy()
    tokens = tail(model, hidden_1NC, settings)[0].float().cpu().numpy()
    if settings.by == "norm":
        return tokens, token_rules.token_norm(tokens)
    if settings.by == "random":
        generator = uncertainty.frame_generator(settings.seed, frame.id)
        return tokens, generator.random(len(tokens), dtype=np.float32)
    return tokens, None


@torch.no_grad()
def trunk(model: LoadedModel, pixels_13HW: Tensor, settings: SampleSettings) -> Tensor:
    """The hidden states before the blocks that may have dropout."""
    return model.trunk(pixels_13HW, model.num_blocks - settings.blocks)


@torch.no_grad()
def tail(model: LoadedModel, hidden_1NC: Tensor, settings: SampleSettings) -> Tensor:
    """The visual tokens of those hidden states."""
    return model.tail(hidden_1NC, model.num_blocks - settings.blocks)
