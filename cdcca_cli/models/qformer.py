"""The connector kind with a Q-Former, whose few queries read any number of visual tokens.

BLIP-2 and InstructBLIP. The prompt holds L places for the picture however many tokens were kept:
dropping tokens is the same as masking them in the Q-Former's cross-attention (not the same as
zeroing them). Features stand first, then the text, as transformers' processors have it; the pads of
a batch, masked, are between them (for T5 behind both).

The visual tokens are the tower's `last_hidden_state`: CLS first, then the patches row by row, after
the last norm.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cdcca_cli.errors import BadData
from cdcca_cli.models import sizes
from cdcca_cli.models.language import Language, PromptTooLong, Seq2SeqLanguage, Spliced
from cdcca_cli.models.model import LoadedModel


class QFormer(LoadedModel):
    """BLIP-2, and InstructBLIP, whose Q-Former reads the prompt too."""

    @property
    def num_blocks(self) -> int:
        return len(self._blocks())

    @property
    def num_tokens(self) -> int:
        return int(self.tower.embeddings.num_positions)

    @property
    def picture_length(self) -> int:
        return int(self.module.query_tokens.shape[1])

    def trunk(self, pixels_B3HW: Tensor, first_block: int) -> Tensor:
        hidden: Tensor = self.tower.embeddings(pixels_B3HW.to(self.device))
        for block in self._blocks()[:first_block]:
            hidden = block(hidden)
        return hidden

    def tail(self, hidden_BNC: Tensor, first_block: int) -> Tensor:
        for block in self._blocks()[first_block:]:
            hidden_BNC = block(hidden_BNC)
        tokens: Tensor = self.tower.post_layernorm(hidden_BNC)
        return tokens

    def queries(
        self,
        tokens_BNC: Tensor,
        mask_BN: Tensor | None = None,
        prompts: Sequence[str] | None = None,
    ) -> Tensor:
        batch = tokens_BNC.shape[0]
        query_tokens = self.module.query_tokens
        with self._mixed():
            output = self.module.qformer(
                query_embeds=query_tokens.expand(batch, -1, -1),
                encoder_hidden_states=tokens_BNC.to(self.device, self.dtype),
                encoder_attention_mask=None if mask_BN is None else mask_BN.to(self.device),
                **self._instruction(prompts, batch),
            )
        queries: Tensor = output.last_hidden_state[:, : query_tokens.shape[1]]
        return queries

    def project(self, queries_BLC: Tensor) -> Tensor:
        with self._mixed():
            features: Tensor = self.module.language_projection(queries_BLC.to(self.dtype))
        return features

    def splice(
        self,
        features_BLD: Tensor,
        prompts: Sequence[str],
        *,
        mask_BN: Tensor | None = None,
        positions_BN: Tensor | None = None,
    ) -> Spliced:
        texts = self._text_ids(prompts)
        if len(texts) != features_BLD.shape[0]:
            raise ValueError(f"{features_BLD.shape[0]} pictures, but {len(texts)} prompts")
        num_features = features_BLD.shape[1]
        width = max(len(ids) for ids in texts)
        for row, ids in enumerate(texts):
            self._check_room(num_features + len(ids), "a prompt with its picture", row)
        ids_BT = torch.tensor([self._padded(ids, width) for ids in texts])
        real_BT = torch.tensor([self._padded([1] * len(ids), width) for ids in texts])
        embeds_BTD = self.language.embeddings(ids_BT.to(self.device))
        real_BL = real_BT.new_ones(len(texts), num_features)
        mask_BS = torch.cat([real_BL, real_BT], dim=1).to(self.device)
        visual_BS = torch.zeros_like(mask_BS, dtype=torch.bool)
        visual_BS[:, :num_features] = True
        return Spliced(
            inputs_embeds=torch.cat([features_BLD.to(embeds_BTD.dtype), embeds_BTD], dim=1),
            attention_mask=mask_BS,
            position_ids=(mask_BS.cumsum(1) - 1) * mask_BS,
            visual_mask=visual_BS,
        )

    def _padded(self, row: list[int], width: int) -> list[int]:
        """Zeros before the text, so that a prompt's last position is real; for an encoder behind
        it: its positions are distances, which a gap after the picture would change."""
        pad = [0] * (width - len(row))
        return row + pad if isinstance(self.language, Seq2SeqLanguage) else pad + row

    def _build_language(self) -> Language:
        return self._language_of(self.module.language_model, self.module.config.text_config)

    def _blocks(self) -> Any:
        return self.tower.encoder.layers

    def check_sizes(self) -> None:
        config = self.module.config.qformer_config
        if self._instructions is None:
            return
        rows = self.module.qformer.embeddings.word_embeddings.num_embeddings
        what = f"{self.checkpoint}: the tokenizer in {self.row.instruction_tokenizer}/"
        sizes.check_ids(what, self.instruction_tokenizer, rows, "Q-Former")
        template = self.format_prompt("", "vqa")
        needed = len(self._instructions([template], with_ends=True)[0]) + sizes.LEAST_QUESTION
        if needed > config.max_position_embeddings:
            raise BadData(
                f"{self.checkpoint}: the Q-Former has {config.max_position_embeddings} positions; "
                f"the template and a short question need {needed}"
            )

    def _instruction(self, prompts: Sequence[str] | None, batch: int) -> dict[str, Any]:
        """What else the Q-Former reads, as its keyword arguments."""
        if not self.reads_prompt:
            return {}
        if prompts is None or len(prompts) != batch:
            raise ValueError("this Q-Former reads the prompts: give one for each row")
        text = self.instruction_ids(prompts)
        width = max(len(ids) for ids in text)
        ids_BT = torch.tensor([ids + [0] * (width - len(ids)) for ids in text])
        real_BT = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in text])
        num_queries = self.module.query_tokens.shape[1]
        real = torch.cat([real_BT.new_ones(batch, num_queries), real_BT], dim=1)
        return {"input_ids": ids_BT.to(self.device), "attention_mask": real.to(self.device)}

    def instruction_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        if self._instructions is None:
            return super().instruction_ids(prompts)
        text = self._instructions(prompts, with_ends=True)
        most = self.module.config.qformer_config.max_position_embeddings
        for row, ids in enumerate(text):
            if len(ids) > most:
                raise PromptTooLong("a prompt", len(ids), "Q-Former", most, row)
        return text
