"""The connector kind with a perceiver (Idefics2), whose latents read any number of visual tokens.

The visual tokens are the tower's. As with a Q-Former, the prompt has as many places as there are
latents, however many tokens were kept, and dropping tokens equals masking them. But the features go
into the prompt as those of `cells` do.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cdcca_cli.formats.shard import Layout
from cdcca_cli.models.cells import Cells, Run
from cdcca_cli.models.language import Spliced
from cdcca_cli.models.pictures import Picture, Placed, Seen


class Perceiver(Cells):
    """Idefics2, of one tile."""

    def _seen(self, run: Run, picture: Picture) -> list[Seen]:
        (tokens_PNC,) = run.reads[0]
        self._check_places(picture, run.order_PN.shape[1])
        patch = self.module.config.vision_config.patch_size
        rows, columns = (side // patch for side in picture.inputs["pixel_values"].shape[-2:])
        layout = Layout((rows, columns), picture.marks or "")
        return [Seen(tokens_NC, layout) for tokens_NC in tokens_PNC]

    def queries(
        self,
        tokens_BNC: Tensor,
        mask_BN: Tensor | None = None,
        prompts: Sequence[str] | None = None,
    ) -> Tensor:
        tokens_BNC = tokens_BNC.to(self.device, self.dtype)
        real_BN = torch.ones(tokens_BNC.shape[:2], dtype=torch.bool) if mask_BN is None else mask_BN
        (connector,) = self._entries
        with self._mixed():
            made: Tensor = connector(tokens_BNC, attention_mask=real_BN.to(self.device))
        return made

    def splice(
        self,
        features_BLD: Tensor,
        prompts: Sequence[str],
        seen: Sequence[Placed],
        *,
        mask_BN: Tensor | None = None,
        positions_BN: Tensor | None = None,
    ) -> Spliced:
        return super().splice(features_BLD, prompts, seen)

    @property
    def places(self) -> tuple[str, int]:
        return self.row.kind, self._num_latents

    @property
    def _num_latents(self) -> int:
        return int(self.module.config.perceiver_config.resampler_n_latents)

    def _num_places(self, seen: Placed) -> int:
        return self._num_latents

    def _of_features(self, mask_BN: Tensor) -> Tensor | None:
        return None
