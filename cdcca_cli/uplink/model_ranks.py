"""The ranks of questions that need the model: `bald`, `k-center` and `entropy*k-center`.

A frame's own questions are the only batch here, so the batch size changes no bit of them.

Legend: K questions of a frame, M passes, A answer tokens, V vocabulary, N visual tokens,
C channels.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from cdcca_cli.datasets import Frame
from cdcca_cli.errors import BadData
from cdcca_cli.models import LoadedModel, Seen, Trunk
from cdcca_cli.uplink import uncertainty
from cdcca_cli.uplink.questions import Point, Rank
from cdcca_cli.uplink.settings import SPREAD_RULES, SampleSettings

_MOST_CHANNELS = 256


def ranks_of(
    model: LoadedModel,
    frame: Frame,
    answers_K: Sequence[str | None],
    scores_K: Sequence[float | None],
    trunk: Trunk | None,
    settings: SampleSettings,
) -> list[Rank | None]:
    """The rank of each question of a frame, by `select`.

    Args: answers_K: for `bald`; None leaves a question out. scores_K: of `score_of`, likewise.
        trunk: for `bald`, `k-center` and `entropy*k-center`.
    """
    if settings.select == "bald":
        assert trunk is not None, "bald needs the trunk's output"
        return [*answer_information(model, frame, answers_K, trunk, settings)]
    if settings.select not in SPREAD_RULES:
        return [*scores_K]
    assert trunk is not None, "k-center needs the trunk's output"
    with torch.no_grad():
        tokens_1NC, _ = model.tail(trunk)
    vectors = iter(pooled_queries(model, frame, [s is not None for s in scores_K], tokens_1NC))
    return [None if score is None else Point(round(score, 6), next(vectors)) for score in scores_K]


@torch.no_grad()
def pooled_queries(
    model: LoadedModel, frame: Frame, asked_K: Sequence[bool], tokens_1NC: Tensor
) -> np.ndarray:
    """The mean of the student's queries for each asked question of a frame, (K_asked, C), float32.

    Of a connector that does not read the question all are alike. More than 256 channels are mixed
    into 256 by fixed random signs, which keep distances to about 5 % (Achlioptas 2003).
    """
    texts = [
        model.format_prompt(question.prompt, question.task)
        for question, asked in zip(frame.questions, asked_K, strict=True)
        if asked
    ]
    if not texts:
        return np.empty((0, 0), np.float32)
    shown = texts if model.reads_prompt else texts[:1]
    queries_KLC = model.queries(tokens_1NC.expand(len(shown), -1, -1), prompts=shown)
    vectors_KC = queries_KLC.float().mean(1).cpu().numpy()
    if not np.isfinite(vectors_KC).all():
        raise BadData(f"{frame.id}: the connector gave values that are not finite")
    if vectors_KC.shape[1] > _MOST_CHANNELS:
        vectors_KC = vectors_KC @ _signs(vectors_KC.shape[1])
    return np.repeat(vectors_KC, len(texts) // len(shown), axis=0)


@cache
def _signs(channels: int) -> np.ndarray:
    """(C, 256), entries +-1/16, the same on every machine."""
    drawn = np.random.Generator(np.random.Philox(key=channels)).random((channels, _MOST_CHANNELS))
    return np.where(drawn < 0.5, -1.0, 1.0).astype(np.float32) / math.sqrt(_MOST_CHANNELS)


def mutual_information(logits_MAV: Tensor) -> Tensor:
    """Mutual information of each answer token with the mask of the pass, in nats: (A,) float32.

    I_a = H(1/M sum_m p_ma) - 1/M sum_m H(p_ma),   p_ma = softmax(logits_ma), in [0, log M]

    (Houlsby et al. 2011, Eq. 2; Gal et al. 2017). It is computed as the mean Kullback-Leibler
    divergence of the p_ma from their mean, which does not cancel.
    """
    logs_MAV = logits_MAV.float().log_softmax(-1)
    mean_AV = logs_MAV.logsumexp(0) - math.log(len(logs_MAV))
    terms_MAV = torch.where(logs_MAV == -math.inf, 0.0, logs_MAV.exp() * (logs_MAV - mean_AV))
    return terms_MAV.sum(-1).mean(0).clamp(min=0)


@torch.no_grad()
def answer_information(
    model: LoadedModel,
    frame: Frame,
    answers_K: Sequence[str | None],
    trunk: Trunk,
    settings: SampleSettings,
) -> list[float | None]:
    """BALD of each question: the mean mutual information of its greedy answer's tokens.

    The answer is given token by token, so that every mask judges the same words.
    Raises: BadData for values that are not finite.
    """
    tokens_BNC, layout = uncertainty.dropout_tokens(
        model,
        trunk,
        frame.id,
        blocks=settings.blocks,
        passes=settings.passes,
        rate=settings.dropout,
        seed=settings.seed,
    )
    seen = [Seen(tokens_NC, layout) for tokens_NC in tokens_BNC[1:]]
    found: list[float | None] = []
    for question, answer in zip(frame.questions, answers_K, strict=True):
        if answer is None:
            found.append(None)
            continue
        texts = [model.format_prompt(question.prompt, question.task)] * settings.passes
        spliced = model.read(seen, texts)
        logits_MAV = model.forward(spliced, model.answer_ids([answer] * settings.passes)).logits
        information = float(mutual_information(logits_MAV).mean())
        if not math.isfinite(information):
            raise BadData(f"{frame.id}: the model's outputs under dropout are not finite")
        found.append(information)
    return found
