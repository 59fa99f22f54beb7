"""The connector kind with a projector and one position in the prompt for each visual token: LLaVA.

Dropping tokens shortens the prompt. The others keep their position ids, so dropping equals masking
in the language model's attention. The visual tokens are the hidden states of the layer that the
checkpoint names (LLaVA-1.5: the last but one), without CLS if its strategy is `default`. The
queries are the projector's outputs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cdcca_cli.errors import BadData, UsageError
from cdcca_cli.families import IMAGE_MARK
from cdcca_cli.models.language import Spliced
from cdcca_cli.models.model import LoadedModel


class TokenPerPatch(LoadedModel):
    """LLaVA with a CLIP or SigLIP tower."""

    @property
    def num_blocks(self) -> int:
        layer: int = self.module.config.vision_feature_layer
        return layer if layer >= 0 else len(self._blocks()) + 1 + layer

    @property
    def num_tokens(self) -> int:
        return int(self._inner().embeddings.num_positions) - self._num_cut()

    @property
    def picture_length(self) -> int:
        return self.num_tokens

    def trunk(self, pixels_B3HW: Tensor, first_block: int) -> Tensor:
        inner = self._inner()
        hidden: Tensor = inner.embeddings(pixels_B3HW.to(self.device))
        if hasattr(inner, "pre_layrnorm"):
            hidden = inner.pre_layrnorm(hidden)
        for block in self._blocks()[: min(first_block, self.num_blocks)]:
            hidden = block(hidden, attention_mask=None)
        return hidden

    def tail(self, hidden_BNC: Tensor, first_block: int) -> Tensor:
        for block in self._blocks()[first_block : self.num_blocks]:
            hidden_BNC = block(hidden_BNC, attention_mask=None)
        return hidden_BNC[:, self._num_cut() :]

    def queries(
        self,
        tokens_BNC: Tensor,
        mask_BN: Tensor | None = None,
        prompts: Sequence[str] | None = None,
    ) -> Tensor:
        with self._mixed():
            projector = self.module.model.multi_modal_projector
            queries: Tensor = projector(tokens_BNC.to(self.device, self.dtype))
        return queries

    def project(self, queries_BLC: Tensor) -> Tensor:
        return queries_BLC

    def splice(
        self,
        features_BLD: Tensor,
        prompts: Sequence[str],
        *,
        mask_BN: Tensor | None = None,
        positions_BN: Tensor | None = None,
    ) -> Spliced:
        batch, num_features = features_BLD.shape[:2]
        if len(prompts) != batch:
            raise ValueError(f"{batch} pictures, but {len(prompts)} prompts")
        if positions_BN is None:
            if num_features != self.num_tokens:
                raise ValueError(
                    f"{num_features} of {self.num_tokens} visual tokens, but no positions"
                )
            positions_BN = torch.arange(num_features).expand(batch, -1)
        rows = []
        for row, ids in enumerate(self._text_ids(prompts)):
            needed = len(ids) - 1 + self.num_tokens
            self.language.check_length(needed, "a prompt with its picture", row)
            kept = slice(None) if mask_BN is None else mask_BN[row].to(features_BLD.device)
            places = positions_BN[row].to(self.device)[kept]
            rows.append(self._row(features_BLD[row][kept], ids, places))
        padded = [
            pad_sequence(list(parts), batch_first=True, padding_side="left")
            for parts in zip(*rows, strict=True)
        ]
        return Spliced(*padded)

    def _row(self, features_LD: Tensor, ids: list[int], places_L: Tensor) -> tuple[Tensor, ...]:
        """The fields of `Spliced` for one prompt, without pads."""
        place_id = self.module.config.image_token_id
        if ids.count(place_id) != 1:
            raise BadData(
                f"{self.checkpoint}: a prompt needs exactly one {IMAGE_MARK} (token {place_id}), "
                f"found {ids.count(place_id)}"
            )
        at = ids.index(place_id)
        words = [*ids[:at], 0, *ids[at + 1 :]]  # the mark may have no embedding of its own
        embeds = self.language.embeddings(torch.tensor(words, device=self.device))
        after = torch.arange(at + 1, len(ids), device=self.device) + self.num_tokens - 1
        positions = torch.cat([torch.arange(at, device=self.device), at + places_L, after])
        visual = torch.zeros(len(positions), dtype=torch.bool, device=self.device)
        visual[at : at + len(places_L)] = True
        spliced = torch.cat([embeds[:at], features_LD.to(embeds.dtype), embeds[at + 1 :]])
        return spliced, torch.ones_like(positions), positions, visual

    def _language_module(self) -> Any:
        return self.module  # with the head, which is beside the language model

    def check_sizes(self) -> None:
        config = self.module.config
        if not isinstance(config.vision_feature_layer, int):
            raise UsageError(
                f"{self.checkpoint}: its visual tokens are from the vision layers "
                f"{config.vision_feature_layer}: expected a single layer"
            )
        found = self.plain_tokenizer.mark_ids[IMAGE_MARK]
        if found != config.image_token_id:
            raise BadData(
                f"{self.checkpoint}: {IMAGE_MARK} is token {config.image_token_id} in config.json, "
                f"{'no token' if found is None else found} in the tokenizer"
            )
        count = len(self._blocks())
        if not 1 <= self.num_blocks <= count:
            raise BadData(
                f"{self.checkpoint}: vision_feature_layer is {config.vision_feature_layer}, the "
                f"vision tower has {count} layers"
            )

    def _inner(self) -> Any:
        return getattr(self.tower, "vision_model", self.tower)

    def _blocks(self) -> Any:
        return self._inner().encoder.layers

    def _num_cut(self) -> int:
        return 1 if self.module.config.vision_feature_select_strategy == "default" else 0
