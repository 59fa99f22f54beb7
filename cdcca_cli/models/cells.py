"""The kind of nearly all families: one place in the prompt for each visual token.

A visual token is a *cell*: what the connector reads for one place of the prompt, side by side. That
is one token of the tower (LLaVA), 2 x 2 or 4 x 4 of them (Qwen-VL, SmolVLM), or their mean (Gemma
3), with the same of each deepstack layer (Qwen3-VL). So the connector gives the feature of each
cell by itself, and dropping a token shortens the prompt by one place. The others keep their
positions, so dropping equals masking in the language model's attention.

Nothing here knows how a family cuts, windows or packs a picture. While transformers' own
`get_image_features` runs, the connector's inputs are the cells; its output is replaced by their
numbers, which come out in the order of the prompt. A place without a number has no content of the
picture: a newline's vector, `Layout.fixed`.

The queries are the connector's outputs, deepstack layers side by side.

Legend: P pictures or passes of a run, B prompts, N cells, C channels of a cell, D of a feature.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cdcca_cli.errors import BadData
from cdcca_cli.families import connectors
from cdcca_cli.formats.shard import Layout
from cdcca_cli.models import placing, watching
from cdcca_cli.models.language import Spliced
from cdcca_cli.models.model import LoadedModel, Trunk
from cdcca_cli.models.pictures import Picture, Placed, Seen, expanded, refusing
from cdcca_cli.models.prompts import Prompt


@dataclass(frozen=True)
class Run:
    """What one pass showed. reads: of each entry the tensors it read. order_PN: the numbers."""

    reads: list[list[Tensor]]
    order_PN: Tensor


class Cells(LoadedModel):
    """A model whose pictures come through `get_image_features` and `mm_encoder_outputs`."""

    def _parts(self, paths: Sequence[str]) -> list[nn.Module]:
        found: list[nn.Module] = []
        for path in paths:
            outer, is_list, inner = path.partition(".*")
            module = self.module.get_submodule(outer)
            parts = module.children() if is_list else [module]
            found += [part.get_submodule(inner.removeprefix(".")) for part in parts]
        return found

    def _bind(self) -> None:
        row = self.row
        self._entries = self._parts(row.entries)
        self._exits = self._parts(row.exits) if row.exits else self._entries
        self._readable: dict[int, bool] = {}
        self._side = int(self._setting(row.side)) if row.side else 1

    def _setting(self, path: str) -> Any:
        value = self.module.config
        for name in path.split("."):
            value = getattr(value, name)
        return value

    # ---- the picture

    def _see(self, pictures: Sequence[Picture]) -> list[Seen]:
        if self.row.is_packed:
            return [self._seen(self._run(each.inputs, 1), each)[0] for each in pictures]
        inputs = self._joined([picture.inputs for picture in pictures])
        return self._seen(self._run(inputs, len(pictures)), pictures[0])

    def trunk(self, picture: Picture, first_block: int) -> Trunk:
        if not self._can_resume(first_block):
            return Trunk(picture, 0, ())
        found: list[Tensor] = []
        reads: list[list[Tensor]] = [[] for _ in self._entries]
        block = self.blocks[first_block]
        with watching.reading(self._entries, reads), watching.stopping(block, found):
            self._features(picture.inputs)
        early = [read[0] for read in reads if read]
        hollow = {name: _hollow(value) for name, value in picture.inputs.items()}
        return Trunk(replace(picture, inputs=hollow), first_block, (found[0], *early))

    def tail(self, trunk: Trunk, passes: int = 1) -> tuple[Tensor, Layout]:
        moved = {name: value.to(self.device) for name, value in trunk.picture.inputs.items()}
        if self.row.is_packed and passes > 1:
            return self._packed_tail(trunk, moved, passes)
        seen = self._seen(self._rest(trunk, moved, passes), trunk.picture)
        return torch.stack([one.tokens for one in seen]), seen[0].layout

    def _rest(self, trunk: Trunk, moved: dict[str, Tensor], passes: int) -> Run:
        """The run from a trunk on. Args: moved: its inputs, on the device of the model."""
        inputs = self._joined([moved] * passes)
        if not trunk.states:
            return self._run(inputs, passes)
        hidden, *early = trunk.states
        with watching.resuming(self.blocks, trunk.first_block, hidden, passes):
            run = self._run(inputs, passes)
        kept = [
            [state.to(self.device).reshape(1, -1, state.shape[-1]).expand(passes, -1, -1)]
            for state in early
        ]
        return Run(self._with_early(run.reads, kept), run.order_PN)

    def _packed_tail(
        self, trunk: Trunk, inputs: dict[str, Tensor], passes: int
    ) -> tuple[Tensor, Layout]:
        """`tail` of a tower that masks pictures from each other: one, then many at its block."""
        first, found = trunk.first_block, list(trunk.states)
        if not found:
            with watching.stopping(self.blocks[first], found):
                self._features(inputs)
        reads: list[Tensor] = []
        with (
            watching.resuming(self.blocks, first, found[0], passes, as_batch=True),
            watching.stopping(self._entries[0], reads),
        ):
            self._features(inputs)
        cells_RC = self._regrouped(reads[0], self._patches(trunk.picture))
        order_PN = torch.arange(len(cells_RC), device=self.device).reshape(passes, -1)
        seen = self._seen(Run([reads], order_PN), trunk.picture)
        return torch.stack([one.tokens for one in seen]), seen[0].layout

    def _with_early(self, reads: list[list[Tensor]], kept: list[list[Tensor]]) -> Any:
        """The deepstack layers that lie before the first block are those of the trunk."""
        if not kept:
            return reads
        first = len(reads) - self._num_deep
        return [*reads[:first], *kept, *reads[first + len(kept) :]]

    def _can_resume(self, first_block: int) -> bool:
        """Whether no layer that is used lies before the block."""
        counts = self.used_layers or [len(self.blocks)]
        return 0 < first_block < min(counts)

    @property
    def _num_deep(self) -> int:
        return len(self._entries) - 1

    def _features(self, inputs: dict[str, Tensor]) -> Any:
        with refusing("the vision tower takes no such picture"), self._mixed():
            return self.module.model.get_image_features(**inputs, return_dict=True)

    def _run(self, inputs: dict[str, Tensor], count: int) -> Run:
        reads: list[list[Tensor]] = [[] for _ in self._entries]
        with watching.reading(self._entries, reads), watching.numbering(self._exits[0]):
            output = self._features(inputs)
        pooled = output.pooler_output
        if pooled is None:  # there are deepstack layers alone, each with its number
            pooled = output.deepstack_features[0][1]
        if not isinstance(pooled, Tensor):
            pooled = torch.cat([part.reshape(-1, part.shape[-1]) for part in pooled])
        order_PN = watching.numbers(pooled.reshape(-1, pooled.shape[-1])).reshape(count, -1)
        return Run(reads, order_PN)

    def _seen(self, run: Run, picture: Picture) -> list[Seen]:
        grid = self._patches(picture) if self.row.sizes else None
        cells_RC = torch.cat([self._cells(calls, grid) for calls in run.reads], dim=-1)
        fixed = (run.order_PN[0] < 0).nonzero()[:, 0].tolist()
        num_places = run.order_PN.shape[1]
        self._check_places(picture, num_places)
        marks = "" if picture.marks in (None, f"{{{num_places}}}") else picture.marks
        layout = Layout(self._lattice(picture, num_places), marks or "", tuple(fixed))
        tokens_PNC = cells_RC[run.order_PN.clamp(min=0)]
        tokens_PNC[run.order_PN < 0] = 0
        return [Seen(tokens_NC, layout) for tokens_NC in tokens_PNC]

    def _check_places(self, picture: Picture, num_places: int) -> None:
        if picture.num_tokens not in (None, num_places):
            raise BadData(
                f"{self.checkpoint}: the processor makes {picture.num_tokens} places of a "
                f"picture, the model {num_places}: they do not belong together"
            )

    def _cells(self, calls: list[Tensor], grid: tuple[int, int] | None) -> Tensor:
        """(R, C): the cells that an entry read, in the order of its calls."""
        return torch.cat([self._regrouped(read, grid) for read in calls])

    def _regrouped(self, read: Tensor, grid: tuple[int, int] | None) -> Tensor:
        side, width = self._side, read.shape[-1]
        if self.row.cell == "one":
            return read.reshape(-1, width)
        if self.row.cell == "map":
            return read.flatten(1)
        if self.row.cell == "adjacent":
            return read.reshape(-1, side * side * width)
        if grid is not None:
            read = read.reshape(-1, *grid, width)
        elif read.ndim == 3:  # a square picture's tokens, row by row
            edge = round(read.shape[1] ** 0.5)
            read = read.reshape(len(read), edge, -1, width)
        rows, columns = read.shape[1] // side, read.shape[2] // side
        parts = read.reshape(-1, rows, side, columns, side, width)
        return parts.transpose(2, 3).reshape(-1, side * side * width)

    @torch.no_grad()
    def _placed(self, trunk: Trunk, seen: Seen, crops: placing.Crops) -> NDArray[np.float64] | None:
        """Of tiles: each place of the prompt has the box of its cell, by the cells' numbers."""
        if seen.layout.grid:
            return super()._placed(trunk, seen, crops)
        moved = {name: value.to(self.device) for name, value in trunk.picture.inputs.items()}
        run = self._rest(trunk, moved, 1)
        grid = self._patches(trunk.picture) if self.row.sizes else None
        order_N = run.order_PN[0].cpu().numpy()
        has_cell = order_N >= 0
        numbers = order_N[has_cell]
        boxes_R4 = crops.cells(len(self._cells(run.reads[0], grid)))
        if boxes_R4 is None:  # the connector reads padding too, whose numbers are in no prompt
            used, numbers = np.unique(numbers, return_inverse=True)
            boxes_R4 = crops.cells(len(used))
        if boxes_R4 is None:
            return None
        boxes_N4 = np.full((len(order_N), 4), np.nan)
        boxes_N4[has_cell] = boxes_R4[numbers]
        return boxes_N4

    def _lattice(self, picture: Picture, num_places: int) -> tuple[int, ...]:
        """Rows and columns of the cells, where the picture is one lattice of them."""
        patches = self._patches(picture)
        if patches is not None:
            side = round((patches[0] * patches[1] / num_places) ** 0.5)
            rows, columns = patches[0] // side, patches[1] // side
            return (rows, columns) if rows * columns == num_places else ()
        # A class token that is a visual token, as with LLaVA's strategy `full`, comes first.
        strategy = getattr(self.module.config, "vision_feature_select_strategy", None)
        edge = int(num_places**0.5) if strategy == "full" else round(num_places**0.5)
        spare = (0, 1) if strategy == "full" else (0,)
        pixels = picture.inputs.get("pixel_values")
        num_tiles = 1 if pixels is None else pixels.shape[:-3].numel()
        num_tiles = max(num_tiles, len(placing.patch_shapes(picture.inputs)))
        return (edge, edge) if num_tiles == 1 and num_places - edge * edge in spare else ()

    def _patches(self, picture: Picture) -> tuple[int, int] | None:
        """Rows and columns of the patches of a picture of its own size, if it is one lattice."""
        if self.row.sizes:
            height, width = picture.inputs[self.row.sizes][0].tolist()
            patch = self.module.config.vision_config.patch_size
            return height // patch, width // patch
        shapes = placing.patch_shapes(picture.inputs)
        return shapes[0] if len(shapes) == 1 else None

    def _joined(self, inputs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The inputs of several pictures of one shape as those of a batch."""
        if len(inputs) == 1:
            return inputs[0]
        axes = {"pixel_values": self.row.pixel_axis}
        return {
            name: torch.cat([one[name] for one in inputs], axes.get(name, 0)) for name in inputs[0]
        }

    @property
    def places(self) -> tuple[str, int]:
        return self.row.kind, self._side

    def can_read(self, num_tokens: int, channels: int) -> bool:
        """By the connector itself; their number depends on the frame, unless the size is fixed."""
        usual = getattr(self.module.config, "image_seq_length", None)
        if usual is not None and self.preparer.has_one_size and num_tokens != usual:
            return False
        if channels not in self._readable:
            try:
                with torch.no_grad():
                    self.queries(torch.zeros(1, 1, channels))
            except (RuntimeError, ValueError):
                self._readable[channels] = False
            else:
                self._readable[channels] = True
        return self._readable[channels]

    # ---- the connector

    def queries(
        self,
        tokens_BNC: Tensor,
        mask_BN: Tensor | None = None,
        prompts: Sequence[str] | None = None,
    ) -> Tensor:
        flat_KC = tokens_BNC.reshape(-1, tokens_BNC.shape[-1]).to(self.device, self.dtype)
        with self._mixed():
            parts = flat_KC.chunk(len(self._entries), dim=-1)
            made = [
                self._connect(exit_, part) for exit_, part in zip(self._exits, parts, strict=True)
            ]
        features = torch.cat(made, dim=-1)
        return features.reshape(*tokens_BNC.shape[:2], features.shape[-1])

    def _connect(self, exit_: Any, cells_KC: Tensor) -> Tensor:
        """(K, D): the features of K cells."""
        if self.row.connect:
            connect = getattr(connectors, self.row.connect)
            made: Tensor = connect(self.module, cells_KC)
            return made.reshape(len(cells_KC), -1)
        count, area = len(cells_KC), self._side**2
        if self.row.cell == "adjacent":
            cells_KC = cells_KC.reshape(count * area, -1)
        elif self.row.cell == "square":  # each cell is a picture of its own
            cells_KC = cells_KC.reshape(count, area, -1)
        made = exit_(cells_KC)
        return made.reshape(count, -1)

    def project(self, queries_BLC: Tensor) -> Tensor:
        return queries_BLC

    # ---- the prompt

    def splice(
        self,
        features_BLD: Tensor,
        prompts: Sequence[str],
        seen: Sequence[Placed],
        *,
        mask_BN: Tensor | None = None,
        positions_BN: Tensor | None = None,
    ) -> Spliced:
        if not len(prompts) == len(seen) == len(features_BLD):
            raise ValueError(f"{len(features_BLD)} pictures, but {len(prompts)} prompts")
        rows = []
        for row, (prompt, one) in enumerate(zip(prompts, seen, strict=True)):
            num_places = self._num_places(one)
            real = slice(num_places) if mask_BN is None else mask_BN[row].to(self.device)
            features = features_BLD[row].to(self.device)[real]
            if positions_BN is None:
                kept = torch.arange(num_places, device=self.device)
            else:
                kept = positions_BN[row].to(self.device)[real]
            if len(kept) != len(features):
                raise ValueError(
                    f"{len(features)} of {one.num_tokens} visual tokens, but no positions"
                )
            features = self._with_fixed(features, kept, one.layout)
            rows.append((*self._places(prompt, one, kept, row), features))
        return self.language.joined(rows)

    def _num_places(self, seen: Placed) -> int:
        """Number of places in the prompt for the tokens of a picture."""
        return seen.num_tokens

    def _with_fixed(self, features_LD: Tensor, kept_L: Tensor, layout: Layout) -> Tensor:
        """The features with the newline's vector at places without content."""
        if not layout.fixed:
            return features_LD
        fixed = torch.tensor(layout.fixed, device=self.device)
        newline = self.newline().to(features_LD.dtype)
        newline = newline.repeat(features_LD.shape[-1] // len(newline))
        return torch.where(torch.isin(kept_L, fixed)[:, None], newline, features_LD)

    def newline(self) -> Tensor:
        """(D,): the feature of places without content."""
        found: Tensor = self.module.get_parameter(self.row.newline)
        return found

    def _places(self, prompt: str, seen: Placed, kept_L: Tensor, row: int) -> tuple[Tensor, Tensor]:
        """Ids (S,) of a prompt with the kept places of its picture, and their positions."""
        ids = self.prompt_ids(prompt, seen)
        self.language.check_length(len(ids), "a prompt with its picture", row)
        ids_S = torch.tensor(ids, device=self.device)
        is_place_S = ids_S == self.place_id
        places = is_place_S.nonzero()[:, 0]
        expected = self._num_places(seen)
        if len(places) != expected:
            raise BadData(
                f"{self.checkpoint}: a prompt needs {expected} places for its picture, found "
                f"{len(places)}"
            )
        columns = torch.cat([(~is_place_S).nonzero()[:, 0], places[kept_L]]).sort().values
        return ids_S[columns], self._positions(ids_S, seen)[..., columns]

    def _positions(self, ids_S: Tensor, seen: Placed) -> Tensor:
        """Positions (S,) of the whole prompt, or (3, S)."""
        if not self.row.is_mrope:
            return torch.arange(len(ids_S), device=self.device)
        if len(seen.layout.grid) != 2 or math.prod(seen.layout.grid) != seen.num_tokens:
            raise BadData(
                f"{self.checkpoint}: {seen.num_tokens} tokens of a picture without its rows and "
                "columns, which the positions need"
            )
        rows, columns = seen.layout.grid
        grid = torch.tensor([[1, rows * self._side, columns * self._side]], device=self.device)
        types = (ids_S == self.place_id).int()
        positions, _ = self.module.model.get_rope_index(
            ids_S[None], image_grid_thw=grid, mm_token_type_ids=types[None]
        )
        found: Tensor = positions[:, 0]
        return found

    def prompt_ids(self, prompt: str, seen: Placed | None = None) -> list[int]:
        """The tokens of a prompt with its picture; without one, of the usual number of tokens."""
        usual = getattr(self.module.config, "image_seq_length", 1)
        marks = f"{{{usual}}}" if seen is None else seen.layout.marks or f"{{{seen.num_tokens}}}"
        found = Layout(marks=marks).num_places
        if seen is not None and found != (expected := self._num_places(seen)):
            raise BadData(
                f"{self.checkpoint}: a picture of {expected:,} tokens, whose text in the prompt "
                f"has {found:,} places"
            )
        text = expanded(marks, self.preparer.image_token)
        whole = prompt if isinstance(prompt, Prompt) else Prompt(prompt, "", "")
        return self._text_ids([whole.with_picture(self.preparer.mark, text)])[0]

    def check_layout(self, seen: Placed) -> None:
        if seen.layout.fixed and not self.row.newline:
            raise BadData(f"{self.checkpoint}: a picture with places without content")
        every = torch.arange(self._num_places(seen), device=self.device)
        self._places(self.format_prompt("", "vqa"), seen, every, 0)

    def prompt_length(self, prompt: str, seen: Placed | None = None) -> int:
        return len(self.prompt_ids(prompt, seen))

    def _language_module(self) -> Any:
        return self.module

    def check_sizes(self) -> None:
        count = len(self._all_blocks())
        if any(not 0 <= layer <= count for layer in self.used_layers):
            raise BadData(
                f"{self.checkpoint}: vision_feature_layer is {self._feature_layers()}, the vision "
                f"tower has {count} layers"
            )
        found = self.preparer.image_token
        if self.tokenizer.convert_tokens_to_ids(found) != self.place_id:
            raise BadData(f"{self.checkpoint}: {found} is not token {self.place_id}")


def _hollow(value: Tensor) -> Tensor:
    """An input of which the remaining pass needs the shape alone, or that holds one number.

    Pixels are ones, because all zeros would be taken for padding (Idefics).
    """
    if value.is_floating_point():
        return value.new_ones(1).expand(value.shape)
    first = value.flatten()[:1]
    return first.expand(value.shape) if bool((value == first).all()) else value
