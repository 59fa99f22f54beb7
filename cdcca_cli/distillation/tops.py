"""The teacher's distributions of answer tokens, in the student's vocabulary.

A local teacher gives ids: they are the student's if the vocabularies are equal. A served teacher
gives pieces of text: each answer is cut by the student's tokenizer, and where the pieces are the
same the tokens are. Other answers have no distribution; they are learnt as text.

Shapes: B batch, A answer tokens, K likeliest tokens, O = K + 1 outcomes, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cdcca_cli import streams
from cdcca_cli.distillation.dataset import Dataset
from cdcca_cli.distillation.losses import IGNORED
from cdcca_cli.errors import BadData, SettingError
from cdcca_cli.families import pairs
from cdcca_cli.formats.digest import short
from cdcca_cli.formats.label_tops import LOWEST, Top
from cdcca_cli.models import LoadedModel

FEWEST_SHARED = 0.5
"""Share of the answers that must be cut alike for two vocabularies to count as one."""


@dataclass(frozen=True)
class BatchTops:
    """ids_BAK: -1 where there are fewer. logp_BAO: the rest is last. answer_BA: ids, padded."""

    ids_BAK: Tensor
    logp_BAO: Tensor
    answer_BA: Tensor


class NoDistributions(SettingError):
    """There is nothing to learn by `kl`. fault: why, without the cure."""

    def __init__(self, fault: str, cure: str = "leave `kl` out", details: str = "") -> None:
        super().__init__("kl", f"{fault}: {cure}{details}")
        self.fault = f"{fault}{details}"


class Tops:
    """The distributions of a dataset's labels."""

    def __init__(self, dataset: Dataset, student: LoadedModel) -> None:
        """Raises: NoDistributions if the vocabularies differ, or no label has a distribution."""
        self._dataset, self._student = dataset, student
        self._pieces = _Pieces(student)
        self._num_words = int(student.module.get_output_embeddings().weight.shape[0])
        assert dataset.source is not None
        theirs, ours = dataset.source.vocabulary, student.vocabulary_digest
        if theirs is not None and theirs != ours:
            found = f" (the labels' is {short(theirs)}, the student's {short(ours)})"
            raise NoDistributions(pairs.OTHER_DISTRIBUTIONS, details=found)
        with_top = [n for n in dataset.train if dataset.label(n).top is not None]
        if not with_top:
            raise NoDistributions(
                "the labels have no distributions of answer tokens",
                "leave it out, or label again with a teacher that gives them",
            )
        shared = sum(self._of(number, self._ids(number)) is not None for number in with_top)
        if shared < FEWEST_SHARED * len(with_top):
            raise NoDistributions(
                pairs.OTHER_DISTRIBUTIONS,
                details=f": only {shared} of {len(with_top)} answers are cut into the same tokens",
            )
        if shared < len(dataset.train):
            streams.message(
                f"distributions of {shared} of {len(dataset.train)} answers are learnt; "
                "the others are learnt as text"
            )

    def of(self, batch: Sequence[int], answer_BA: Tensor) -> BatchTops:
        """The distributions of some examples. Args: answer_BA: the student's ids, padded."""
        rows = [[one for one in row if one != IGNORED] for row in answer_BA.tolist()]
        found = [self._of(number, ids) for number, ids in zip(batch, rows, strict=True)]
        width = max((top.logp_AK.shape[1] for top in found if top is not None), default=1)
        ids_BAK = torch.full((*answer_BA.shape, width), -1)
        logp_BAO = torch.full((*answer_BA.shape, width + 1), LOWEST)
        logp_BAO[..., -1] = 0
        masked_BA = torch.full_like(answer_BA, IGNORED)
        for b, top in enumerate(found):
            if top is None or top.ids_AK is None:
                continue
            length, count = top.ids_AK.shape
            ids_BAK[b, :length, :count] = torch.from_numpy(top.ids_AK.astype(np.int64))
            logp_BAO[b, :length, :count] = torch.from_numpy(top.logp_AK)
            logp_BAO[b, :length, -1] = torch.from_numpy(top.rest_A)
            masked_BA[b, :length] = answer_BA[b, :length]
        device = self._student.device
        return BatchTops(ids_BAK.to(device), logp_BAO.to(device), masked_BA.to(device))

    def _ids(self, number: int) -> list[int]:
        """The student's tokens of an example's answer."""
        (row,) = self._student.answer_ids([self._dataset.answers[number]]).tolist()
        return [one for one in row if one != IGNORED]

    def _of(self, number: int, ids: Sequence[int]) -> Top | None:
        """An example's distributions, of the tokens that the student has; None without.

        Args: ids: the student's tokens of the answer.
        """
        top = self._dataset.label(number).top
        if top is None:
            return None
        if top.pieces_AK is not None:
            return self._pieces.translated(top, ids)
        if top.ids_AK is not None and (top.ids_AK >= self._num_words).any():
            frame = self._dataset.examples[number].shard.frame[:80]
            raise BadData(f"frame {frame}: its labels have ids that the vocabulary does not have")
        return top if len(top.rest_A) == len(ids) else None


class _Pieces:
    """The student's tokens by their text."""

    def __init__(self, student: LoadedModel) -> None:
        self._student = student
        self._texts: list[bytes] | None = None
        self._ids: dict[bytes, int] = {}

    def translated(self, top: Top, ids: Sequence[int]) -> Top | None:
        """A distribution of pieces as one of ids; None if the answer is cut otherwise.

        Args: ids: the student's tokens of the answer, the end token last. The teacher's likeliest
            piece at each token is the answer's, since it answers greedily.
        """
        assert top.pieces_AK is not None
        self._read()
        assert self._texts is not None
        length = len(top.pieces_AK)
        if length not in (len(ids) - 1, len(ids)):
            return None
        for number, pieces in zip(ids[:-1], top.pieces_AK, strict=False):
            if pieces[0] and not _is_same(self._texts[number], pieces[0]):
                return None
        rows = [[self._id(piece, ids[-1]) for piece in row] for row in top.pieces_AK]
        for number, row, pieces in zip(ids, rows, top.pieces_AK, strict=False):
            if pieces[0]:  # several tokens may have one text
                row[0] = number
        if length == len(ids):  # the end token may have another text
            rows[-1][0] = ids[-1]
        # Of two pieces that are one token the likelier stays.
        rows = [
            [-1 if one in row[:place] else one for place, one in enumerate(row)] for row in rows
        ]
        ids_AK = np.array(rows, np.int32).reshape(top.logp_AK.shape)
        ids_AK[top.logp_AK <= LOWEST] = -1
        gone_AK = ids_AK < 0
        p_AK = np.exp(top.logp_AK.astype(np.float64))
        rest_A = np.exp(top.rest_A.astype(np.float64)) + (p_AK * gone_AK).sum(1)
        with np.errstate(divide="ignore"):
            logrest_A = np.maximum(np.log(rest_A), LOWEST).astype(np.float32)
        logp_AK = np.where(gone_AK, np.float32(LOWEST), top.logp_AK)
        return Top(logp_AK, logrest_A, ids_AK)

    def _id(self, piece: bytes, end: int) -> int:
        """Some servers leave out the blank with which a token begins."""
        return self._ids.get(piece, self._ids.get(b" " + piece, -1)) if piece else end

    def _read(self) -> None:
        if self._texts is None:
            self._texts = self._student.token_texts()
            for number, text in enumerate(self._texts):
                if text:
                    self._ids.setdefault(text, number)


def _is_same(text: bytes, piece: bytes) -> bool:
    """Whether a piece is the student's token of this text, b"" for a part of a character.

    Some servers leave out the blank with which a token begins.
    """
    if text:
        return text in (piece, b" " + piece)
    return "\ufffd" in piece.decode("utf-8", "replace")
