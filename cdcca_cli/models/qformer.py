"""The connector kind with a Q-Former, whose few queries read any number of visual tokens.

The prompt has L positions for the picture however many tokens were kept: dropping tokens equals
masking (not zeroing) them in the Q-Former's cross-attention. The features come first, then the
masked pads of the batch, then the text (for T5 the pads come last). The visual tokens are the
tower's `last_hidden_state` after the last norm: CLS, then the patches row by row.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cdcca_cli.errors import BadData
from cdcca_cli.formats.shard import Layout
from cdcca_cli.models import sizes
from cdcca_cli.models.decoding import right_padded
from cdcca_cli.models.language import (
    PromptTooLong,
    Seq2SeqLanguage,
    Spliced,
    image_token_id,
)
from cdcca_cli.models.model import LoadedModel, Trunk
from cdcca_cli.models.pictures import Picture, Placed, Seen

if TYPE_CHECKING:
    from PIL.Image import Image


class QFormer(LoadedModel):
    """BLIP-2, and InstructBLIP, whose Q-Former reads the prompt too."""

    @property
    def layout(self) -> Layout:
        """Patches row by row, behind the class token."""
        height, width = _pair(self.module.config.vision_config.image_size)
        patch: int = self.module.config.vision_config.patch_size
        return Layout((height // patch, width // patch))

    @property
    def picture_length(self) -> int:
        """Number of positions of a picture in the prompt, however many tokens were kept."""
        return int(self.module.query_tokens.shape[1])

    def prepare(self, images: Sequence["Image"]) -> list[Picture]:
        pictures = super().prepare(images)
        for picture in pictures:
            self._pixels(picture)  # refused at load, not at the first frame
        return pictures

    def _see(self, pictures: Sequence[Picture]) -> list[Seen]:
        pixels_B3HW = torch.cat([self._pixels(picture) for picture in pictures])
        tokens_BNC = self._through(self.tower.embeddings(pixels_B3HW), 0)
        return [Seen(tokens_NC, self.layout) for tokens_NC in tokens_BNC]

    def _pixels(self, picture: Picture) -> Tensor:
        pixels_13HW = picture.inputs["pixel_values"]
        expected = _pair(self.module.config.vision_config.image_size)
        if tuple(pixels_13HW.shape[-2:]) != expected:
            raise BadData(
                f"{self.checkpoint}: the image processor makes {pixels_13HW.shape[-2]}x"
                f"{pixels_13HW.shape[-1]} pixels, the vision tower takes {expected[0]}x"
                f"{expected[1]}"
            )
        return pixels_13HW

    def trunk(self, picture: Picture, first_block: int) -> Trunk:
        hidden: Tensor = self.tower.embeddings(self._pixels(picture))
        for block in self.blocks[:first_block]:
            hidden = block(hidden)
        return Trunk(Picture({}, size=picture.size), first_block, (hidden,))

    def tail(self, trunk: Trunk, passes: int = 1) -> tuple[Tensor, Layout]:
        (hidden_1NC,) = trunk.states
        hidden_MNC = hidden_1NC.to(self.device).expand(passes, *hidden_1NC.shape[1:])
        return self._through(hidden_MNC, trunk.first_block), self.layout

    def _through(self, hidden_BNC: Tensor, first_block: int) -> Tensor:
        for block in self.blocks[first_block:]:
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
        seen: Sequence[Placed] = (),
        *,
        mask_BN: Tensor | None = None,
        positions_BN: Tensor | None = None,
    ) -> Spliced:
        texts = self._text_ids(prompts)
        if len(texts) != features_BLD.shape[0]:
            raise ValueError(f"{features_BLD.shape[0]} pictures, but {len(texts)} prompts")
        num_features = features_BLD.shape[1]
        for row, ids in enumerate(texts):
            self.language.check_length(num_features + len(ids), "a prompt with its picture", row)
        ids_BT = self._padded(texts)
        real_BT = self._padded([[1] * len(ids) for ids in texts])
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

    def _padded(self, rows: list[list[int]]) -> Tensor:
        """(B, T): zeros before the text, so that the last position of a prompt is real.

        For an encoder they are behind it: its positions are distances, which a gap would change.
        """
        side = "right" if isinstance(self.language, Seq2SeqLanguage) else "left"
        ids = [torch.tensor(row, dtype=torch.long) for row in rows]
        return pad_sequence(ids, batch_first=True, padding_side=side)

    def _language_module(self) -> Any:
        return self.module.language_model

    @property
    def places(self) -> tuple[str, int]:
        return self.row.kind, self.picture_length

    def can_read(self, num_tokens: int, channels: int) -> bool:
        width = self.module.config.vision_config.hidden_size
        return (num_tokens, channels) == (int(self.tower.embeddings.num_positions), width)

    def check_layout(self, seen: Placed) -> None:
        """Any will do: the features have places of their own."""

    def _of_features(self, mask_BN: Tensor) -> Tensor | None:
        return None

    def prompt_ids(self, prompt: str, seen: Placed | None = None) -> list[int]:
        place = image_token_id(self.module.config)
        return [place] * self.picture_length + self._text_ids([prompt])[0]

    def prompt_length(self, prompt: str, seen: Placed | None = None) -> int:
        return len(self._text_ids([prompt])[0]) + self.picture_length

    def check_sizes(self) -> None:
        if self._instructions is None:
            return
        rows = self.module.qformer.embeddings.word_embeddings.num_embeddings
        what = f"{self.checkpoint}: the tokenizer in {self.row.instruction_tokenizer}/"
        sizes.check_ids(what, self.instruction_tokenizer, rows, "Q-Former")
        template = self.format_prompt("", "vqa")
        needed = len(self._instructions([template], with_ends=True)[0]) + sizes.LEAST_QUESTION
        most = self.module.config.qformer_config.max_position_embeddings
        if needed > most:
            raise BadData(
                f"{self.checkpoint}: the Q-Former has {most} positions; the template and a short "
                f"question need {needed}"
            )

    def _instruction(self, prompts: Sequence[str] | None, batch: int) -> dict[str, Any]:
        """The keyword arguments of a Q-Former that reads the prompts."""
        if not self.reads_prompt:
            return {}
        if prompts is None or len(prompts) != batch:
            raise ValueError("this Q-Former reads the prompts: give one for each row")
        text = self.instruction_ids(prompts)
        ids_BT = right_padded(text, 0)
        real_BT = right_padded([[1] * len(ids) for ids in text], 0)
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


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
