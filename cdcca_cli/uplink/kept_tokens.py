"""Stage 2 of `sample`: the tokens of a picked frame that are kept, and its shard.

With fewer than all tokens kept, `token_rules` chooses them, by default those of highest variance
over Monte Carlo dropout (Eq. 3, 4); the tokens themselves come from the pass without dropout.

Legend: K questions of a frame, N visual tokens, C channels.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from cdcca_cli.datasets import Frame, image_name, load_image
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel, Picture, Seen, Trunk, attention
from cdcca_cli.uplink import token_rules, uncertainty
from cdcca_cli.uplink.picked import questions_of
from cdcca_cli.uplink.settings import DEFAULT_KEEP, VARIANCE_RULES, SampleSettings


def make_shard(
    model: LoadedModel,
    frame: Frame,
    entropies_K: Sequence[float | None],
    questions: Sequence[int],
    settings: SampleSettings,
    trunk: Trunk | None = None,
    *,
    with_scores: bool = False,
) -> Shard:
    """Stage 2 of one frame: its best tokens and its picked questions.

    Args: entropies_K: of all its questions, in nats. questions: the places of the picked ones,
        ascending. trunk: halfway through the tower; None: it runs now. with_scores: give the
        score of each kept token, where its rule has one.
    Raises: BadData, MissingInput for a bad picture; BadData if a value is not finite or no token
        varies.
    """
    if trunk is None:
        (picture,) = model.prepare([load_image(frame)])
        trunk = trunk_of(model, picture, settings)
    keep = settings.keep or DEFAULT_KEEP
    if keep.is_all and settings.beta is None and not with_scores:
        seen = tail(model, trunk)
        layout = seen.layout
        tokens_NC = seen.tokens.float().cpu().numpy()
        chosen = token_rules.Chosen(np.arange(len(tokens_NC), dtype=np.int32), tokens_NC, None)
    else:
        seen, scores_N = _scored(model, frame, trunk, settings)
        layout = replace(seen.layout, boxes=model.boxes(trunk, seen))
        tokens_NC = seen.tokens.float().cpu().numpy()
        num_kept = keep.of(len(tokens_NC))
        if settings.beta is not None and scores_N is not None:
            num_kept = token_rules.count_above(scores_N, settings.beta)
        chosen = token_rules.choose(
            settings.by,
            tokens_NC,
            num_kept,
            scores_N=scores_N,
            grid=seen.layout.grid,
            fixed=seen.layout.fixed,
        )
    return Shard(
        frame=frame.id,
        image=image_name(frame),
        domain=frame.domain,
        tokens=chosen.tokens,
        positions=chosen.positions,
        scores=chosen.scores if with_scores else None,
        num_tokens=len(tokens_NC),
        layout=layout,
        time=frame.time,
        tower=model.tower_digest,
        questions=questions_of(frame, entropies_K, questions),
    )


def _scored(
    model: LoadedModel, frame: Frame, trunk: Trunk, settings: SampleSettings
) -> tuple[Seen, np.ndarray | None]:
    """What the tower made of one frame and, if its rule has them, the scores (N,), float32."""
    if settings.by in VARIANCE_RULES:
        seen, variance_N = uncertainty.token_variance(
            model,
            trunk,
            frame.id,
            blocks=settings.blocks,
            passes=settings.passes,
            rate=settings.dropout,
            seed=settings.seed,
        )
        return seen, variance_N.cpu().numpy()
    if settings.by == "received":
        seen, received_N = attention.received(model, trunk)
        return seen, received_N.cpu().numpy()
    seen = tail(model, trunk)
    if settings.by == "norm":
        return seen, token_rules.token_norm(seen.tokens.float().cpu().numpy())
    if settings.by == "random":
        generator = uncertainty.frame_generator(settings.seed, frame.id)
        return seen, generator.random(seen.num_tokens, dtype=np.float32)
    return seen, None


@torch.no_grad()
def trunk_of(model: LoadedModel, picture: Picture, settings: SampleSettings) -> Trunk:
    """A picture up to the blocks that may have dropout."""
    return model.trunk(picture, max(0, model.num_blocks - settings.blocks))


@torch.no_grad()
def tail(model: LoadedModel, trunk: Trunk) -> Seen:
    """The visual tokens of a frame from there."""
    tokens_1NC, layout = model.tail(trunk)
    return Seen(tokens_1NC[0], layout)
