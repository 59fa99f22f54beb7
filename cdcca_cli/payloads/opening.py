"""From what a device sent to its visual tokens: codes through a codebook, pictures through a tower.

A picture goes through the mirror's tower, which is the device's, one at a time, so that the tokens
do not depend on the batch. Decoded codes are equal to the last bit on one machine only.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cdcca_cli.errors import BadData
from cdcca_cli.formats.codebook import Codebook
from cdcca_cli.formats.digest import short
from cdcca_cli.formats.shard import Layout, Picture, Shard, Unusable
from cdcca_cli.payloads import klt, pictures
from cdcca_cli.skipped import Skipped

if TYPE_CHECKING:
    from cdcca_cli.models import LoadedModel

CodebookOf = Callable[[str], Codebook]
"""A codebook by its digest; raises BadData or MissingInput."""


class Opener:
    """Fills in the tokens of shards, as one model's tower makes them."""

    def __init__(
        self,
        model: "LoadedModel",
        codebook_of: CodebookOf,
        *,
        any_tower: bool = False,
    ) -> None:
        """Args: any_tower: look with this model's tower at pictures that were made for another one,
        as a teacher does.
        """
        self._model, self._codebook_of = model, codebook_of
        self._any_tower = any_tower
        self._codebooks: dict[str, Codebook] = {}
        self._sound: set[tuple[int, Layout]] = set()

    def open(self, shard: Shard) -> Shard:
        """The shard with its tokens, whose layout fits the model's prompts.

        Raises: Unusable for a fault of this frame alone; BadData for another tower's shard or
            codebook; MissingInput for a codebook that is not there.
        """
        is_own, is_open = shard.tower == self._model.tower_digest, shard.is_open
        if is_own and (is_open or shard.picture is None):
            self._check_layout(shard)
        if is_open and (is_own or shard.picture is None):
            return shard
        if shard.picture is not None:
            if not (is_own or self._any_tower):
                raise BadData(
                    f"frame {shard.frame[:80]}: its picture is for the vision tower "
                    f"{short(shard.tower)}, the mirror's is {short(self._model.tower_digest)}"
                )
            return self._seen(shard, shard.picture)
        digest, step = shard.coding.codebook, shard.coding.step
        if shard.codes is None or digest is None or step is None:
            raise BadData(f"frame {shard.frame[:80]}: has neither tokens, codes nor a picture")
        codebook = self._codebooks.get(digest) or self._codebook_of(digest)
        self._codebooks[digest] = codebook
        if (codebook.tower, codebook.num_tokens) != (shard.tower, shard.num_tokens):
            raise BadData(
                f"frame {shard.frame[:80]}: coded with the codebook {short(digest)}, which is of "
                f"{codebook.num_tokens} tokens of the tower {short(codebook.tower)}"
            )
        try:
            tokens_NC = klt.decode(shard.codes, shard.positions, codebook, step)
        except BadData as error:
            raise Unusable(f"frame {shard.frame[:80]}: {error}") from None
        return replace(shard, tokens=tokens_NC)

    def _check_layout(self, shard: Shard) -> None:
        layout = shard.num_tokens, shard.layout
        if layout in self._sound:
            return
        try:
            self._model.check_layout(shard)
        except BadData as error:
            raise Unusable(f"frame {shard.frame[:80]}: {error}") from None
        self._sound.add(layout)

    def _seen(self, shard: Shard, picture: Picture) -> Shard:
        """The shard as if this model's tower had looked at the frame."""
        import torch

        model = self._model
        try:
            with torch.no_grad():
                (seen,) = model.see(model.prepare([pictures.decode(picture)]))
        except BadData as error:
            raise Unusable(f"frame {shard.frame[:80]}: {error}") from None
        tokens_NC = seen.tokens.float().cpu().numpy()
        every = np.arange(len(tokens_NC), dtype=np.int32)
        return replace(
            shard,
            tokens=tokens_NC,
            positions=every,
            num_tokens=len(tokens_NC),
            layout=seen.layout,
            tower=model.tower_digest,
        )

    def open_all(self, shards: Iterable[Shard], skipped: Skipped) -> Iterator[Shard]:
        """The shards with their tokens, without unusable ones. Raises: BadData, MissingInput."""
        for shard in shards:
            try:
                yield self.open(shard)
            except Unusable as error:
                skipped.add("shard", error)
