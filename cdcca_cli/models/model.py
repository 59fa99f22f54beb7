"""A loaded vision-language model: the interface for the rest of the package.

A picture goes through it in steps, each a method, so that the output of any step can be stored,
sent or reduced:

    pictures = model.prepare(images)                     what the tower takes, of each frame
    seen = model.see(pictures)                           visual tokens (N, C) of each, and layout
    queries = model.queries(tokens, mask, prompts)       (B, L, C')   compared by an alignment
    features = model.project(queries)                    (B, L, D)    for the language model
    spliced = model.splice(features, prompts, seen)      prompts with their pictures
    model.forward(spliced, answer_ids) | model.generate(spliced) | model.score_choices(spliced, c)

`trunk` and `tail` are `see` in two steps, for one frame: up to a block of the tower, and from there
as many passes at once as are wanted.

Each connector kind is a subclass (`qformer`, `cells`), each family a row of `families`.

Shapes: B batch, N visual tokens, L visual features in the prompt, S prompt, A answer, C/D channels,
M passes, V vocabulary. Steps up to `forward` keep gradients; `generate` and `score_choices` do not.
"""

import gc
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cdcca_cli.errors import BadData, SettingError, UsageError
from cdcca_cli.families import Family
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.names import LORA_A
from cdcca_cli.formats.places import grid_of, packed
from cdcca_cli.formats.shard import Layout
from cdcca_cli.models import decoding, digests, overlay, placing, preprocessing, quantization
from cdcca_cli.models.checkpointing import checkpointed
from cdcca_cli.models.decoding import Generated
from cdcca_cli.models.language import (
    CausalLanguage,
    Language,
    Seq2SeqLanguage,
    Spliced,
    image_token_id,
)
from cdcca_cli.models.pictures import Picture, Placed, Preparer, Seen, alike, padded, refusing
from cdcca_cli.models.prompts import PlainTokenizer, Prompt, Templates

if TYPE_CHECKING:
    from PIL.Image import Image

_ATTENTIONS = ("self_attn", "attn", "attention")
_MLPS = ("mlp", "feed_forward", "ffn")
_MOST_SIZES = 1000  # of frames, whose tokens' places are kept


@dataclass(frozen=True)
class Trunk:
    """A frame halfway through the vision tower.

    picture: with the shapes of its inputs; their values no longer count if there are states.
    states: the hidden states before block `first_block`, then what deepstack layers before it read.
    """

    picture: Picture
    first_block: int
    states: tuple[Tensor, ...]


@dataclass(frozen=True)
class Forward:
    """Output of `forward`.

    logits: (B, A, V); logits[:, j] predicts answer token j.
    hidden: (B, L, D), output of the last attention at the visual positions (before the residual
        is added), zeros where a row has fewer than L. hidden_mask: (B, L) bool.
    answer_hidden: (B, A, D), the same output where each answer token is predicted, zeros behind a
        row's last; None for an encoder-decoder, whose encoder reads the prompt alone.
    """

    logits: Tensor
    hidden: Tensor
    hidden_mask: Tensor
    answer_hidden: Tensor | None


class LoadedModel(ABC):
    """A frozen model in eval mode, perhaps with a device's overlay on it."""

    def __init__(
        self,
        row: Family,
        module: Any,
        tokenizer: Any,
        preparer: Preparer,
        *,
        checkpoint: str,
        compute: str,
        dtype: torch.dtype,
        tower_digest: str,
        instruction_tokenizer: Any = None,
        template: str | None = None,
    ) -> None:
        """Args: instruction_tokenizer: of a Q-Former that reads the prompt. template: of prompts,
        in place of the checkpoint's own.
        """
        self.row = row
        self.module: Any = module
        self.tokenizer = tokenizer
        self.plain_tokenizer = PlainTokenizer(tokenizer)
        self.instruction_tokenizer = instruction_tokenizer
        self._instructions = (
            None if instruction_tokenizer is None else PlainTokenizer(instruction_tokenizer)
        )
        self.preparer = preparer
        self.templates = Templates(row, tokenizer, preparer.mark, checkpoint, template)
        self.checkpoint = checkpoint
        self.compute = compute
        self.device = torch.device(compute)
        self.dtype = dtype
        self.tower_digest = tower_digest
        self.tower: Any = module.get_submodule(row.tower_path)
        self.place_id = image_token_id(module.config) if preparer.mark else -1
        self._bind()
        self.language: Language = self._build_language()
        generation_config = getattr(self.language.model, "generation_config", None)
        self.end_ids = decoding.end_ids(generation_config, self.language.config, tokenizer)
        if not self.end_ids:
            raise BadData(f"{checkpoint}: neither config nor tokenizer names an end token")
        self._overlay_names: list[str] = []
        self._first: dict[str, NDArray[np.float32]] = {}  # before any overlay, by name
        self._digest: str | None = None
        self._boxes: dict[tuple[tuple[int, int], Layout], tuple[int, ...]] = {}
        self.is_checkpointed = False  # `forward` keeps the layers' inputs alone for its gradients
        # Tokenised before an answer, then cut off: some tokenizers mark the beginning of a text, so
        # that an answer alone would get another first token.
        last = self.templates["vqa"][-1]
        self._stub, self._joint = ("Answer:\n", "") if last in " \n\t>]|" else ("Answer:", " ")
        self._stub_ids: list[int] = self._plain_ids([self._stub])[0]

    @property
    def family(self) -> str:
        """The family's name, as in device.json."""
        return self.row.name

    @property
    def reads_prompt(self) -> bool:
        """Whether the connector reads the prompt, so that queries depend on the question."""
        return self.row.instruction_tokenizer is not None

    # The picture, step by step.

    @property
    def blocks(self) -> list[nn.Module]:
        """The tower's blocks between pixels and visual tokens; empty if it has none."""
        found = self._all_blocks()
        return found[: max(self.used_layers, default=len(found))]

    @property
    def used_layers(self) -> list[int]:
        """The numbers of blocks behind which the tower's states are used; empty: the last."""
        count = len(self._all_blocks())
        if not count:
            return []
        return [layer if layer >= 0 else count + 1 + layer for layer in self._feature_layers()]

    def _feature_layers(self) -> list[int]:
        config = self.module.config
        if self.row.deep == "alone":  # Granite, whose `vision_feature_layer` is of no use
            deep = [layer for layer, _ in config.deepstack_layer_map]
            return [*deep, config.spatial_vision_layer]
        names = ("vision_feature_layer", "vision_feature_layers")
        values = [getattr(config, name, None) for name in names]
        found: Any = next((value for value in values if value is not None), [])
        return [found] if isinstance(found, int) else list(found)

    def _all_blocks(self) -> list[nn.Module]:
        if not self.row.blocks:
            return []
        return list(self._inner_tower().get_submodule(self.row.blocks).children())

    @property
    def num_blocks(self) -> int:
        """Number of vision blocks between pixels and visual tokens."""
        return len(self.blocks)

    def prepare(self, images: Sequence["Image"]) -> list[Picture]:
        """What the tower takes of each image, by the checkpoint's own processor."""
        return [self.preparer(image, self.device) for image in images]

    def see(self, pictures: Sequence[Picture]) -> list[Seen]:
        """The visual tokens (N, C) of each picture; N may differ. Equal shapes run together."""
        found: dict[int, Seen] = {}
        for places in alike(pictures):
            with refusing("the vision tower takes no such picture"):
                seen = self._see([pictures[place] for place in places])
            found.update(zip(places, seen, strict=True))
        return [found[place] for place in range(len(pictures))]

    @abstractmethod
    def _see(self, pictures: Sequence[Picture]) -> list[Seen]:
        """`see` for pictures whose inputs have one shape and one layout."""

    @abstractmethod
    def trunk(self, picture: Picture, first_block: int) -> Trunk:
        """A picture up to vision block `first_block`."""

    @abstractmethod
    def tail(self, trunk: Trunk, passes: int = 1) -> tuple[Tensor, Layout]:
        """Visual tokens (M, N, C) of M passes through the remaining blocks, and their layout."""

    def boxes(self, trunk: Trunk, seen: Seen) -> tuple[int, ...]:
        """Where the visual tokens lie in the frame that they were made of (`Layout.boxes`)."""
        size, layout = trunk.picture.size, seen.layout
        if size is None:
            return ()
        if (size, layout) not in self._boxes:
            if len(self._boxes) >= _MOST_SIZES:
                self._boxes.clear()
            found = self._placed(trunk, seen, placing.crops(self.preparer, size))
            self._boxes[size, layout] = () if found is None else packed(found, layout)
        return self._boxes[size, layout]

    def _placed(self, trunk: Trunk, seen: Seen, crops: placing.Crops) -> NDArray[np.float64] | None:
        """(N, 4): the box of each visual token, NaN for one without a place; None if unknown."""
        if len(crops.boxes) != 1 or not seen.layout.grid:
            return None
        rows, columns = seen.layout.grid
        boxes_N4 = np.full((seen.num_tokens, 4), np.nan)
        boxes_N4[-rows * columns :] = grid_of(crops.boxes[0].tolist(), rows, columns)
        return boxes_N4

    @abstractmethod
    def queries(
        self,
        tokens_BNC: Tensor,
        mask_BN: Tensor | None = None,
        prompts: Sequence[str] | None = None,
    ) -> Tensor:
        """The queries (B, L, C') that an alignment compares.

        Args: tokens_BNC: all visual tokens or some of them, padded on the right. mask_BN: bool,
            True where a token is real; None: all. prompts: formatted, for connectors that read the
            question.
        """

    @abstractmethod
    def project(self, queries_BLC: Tensor) -> Tensor:
        """The features (B, L, D) of the picture in the prompt."""

    @abstractmethod
    def splice(
        self,
        features_BLD: Tensor,
        prompts: Sequence[str],
        seen: Sequence[Placed],
        *,
        mask_BN: Tensor | None = None,
        positions_BN: Tensor | None = None,
    ) -> Spliced:
        """Put the features of each row into its formatted and tokenised prompt.

        Args: seen: how each row's picture lies in its prompt (`Seen`, or a shard). mask_BN,
            positions_BN: which features are real, and the positions of their visual tokens in
            [0, num_tokens), for connectors with one place for each token; None: all.
        """

    @property
    @abstractmethod
    def places(self) -> tuple[str, int]:
        """The kind of connector, and what decides how many vectors it makes of a picture: the
        query tokens of a Q-Former, or how many of the tower's tokens become one, by side."""

    @abstractmethod
    def can_read(self, num_tokens: int, channels: int) -> bool:
        """Whether the tower makes frames of so many tokens, each of so many channels."""

    @abstractmethod
    def check_layout(self, seen: Placed) -> None:
        """Refuse a frame whose layout cannot be put into a prompt. Raises: BadData."""

    def read(self, seen: Sequence[Seen], prompts: Sequence[str]) -> Spliced:
        """Prompts with all tokens of their pictures."""
        tokens_BNC, mask_BN = padded([one.tokens for one in seen])
        real_BN = None if bool(mask_BN.all()) else mask_BN
        features_BLD = self.project(self.queries(tokens_BNC, real_BN, prompts))
        return self.splice(features_BLD, prompts, seen, mask_BN=self._of_features(mask_BN))

    def seen_as_picture(self, image: "Image", size: tuple[int, int] | None = None) -> "Image":
        """What the tower sees, 8-bit RGB; `size`: larger (`preprocessing.seen`)."""
        return preprocessing.seen(self.preparer, image, size)

    def block_modules(self, count: int) -> list[nn.Module]:
        """Attention and MLP of the last `count` vision blocks, or the blocks, first block first.

        The output of each is a tensor, or a tuple whose first entry is one, of channels last.
        """
        if not 1 <= count <= self.num_blocks:
            raise UsageError(f"expected 1 to {self.num_blocks} vision blocks, found {count}")
        found = []
        for block in self.blocks[-count:]:
            parts = [getattr(block, name, None) for name in _ATTENTIONS + _MLPS]
            found += [part for part in parts if part is not None] or [block]
        return found

    # The language.

    def format_prompt(self, prompt: str | None, task: str) -> str:
        """A question, or the words before a caption, in the family's template for the task."""
        if task not in ("vqa", "caption"):
            raise UsageError(f"task {task!r}: expected vqa or caption")
        if prompt is None and task == "vqa":
            raise SettingError("prompt", "the task vqa needs a question, found none")
        text = self.row.caption_prompt if prompt is None else prompt
        return Prompt.of(self.templates[task], text)

    def check_prompt(
        self,
        prompt: str | None,
        task: str,
        max_new_tokens: int = 1,
        choices: Sequence[str] | None = None,
        seen: Placed | None = None,
    ) -> None:
        """Refuse a question that is too long to be answered or scored. Raises: PromptTooLong.

        Args: seen: the frame that it is about; None: any, if its tokens take one number of places.
        """
        formatted = self.format_prompt(prompt, task)
        self.instruction_ids([formatted])
        lengths = [max_new_tokens, *(len(ids) for ids in self._answers(choices or []))]
        needed = self.prompt_length(formatted, seen) + max(lengths) - 1
        self.language.check_length(needed, "a prompt with its picture and answer")

    def forward(self, spliced: Spliced, answer_BA: Tensor) -> Forward:
        """Logits of given answers (teacher forcing) and the last attention's visual outputs.

        Args: answer_BA: (B, A), padded on the right with -100 (`answer_ids`).
        """
        seen: list[Tensor] = []
        handle = self.language.last_attention.register_forward_hook(
            lambda _module, _args, output: seen.append(
                output[0] if isinstance(output, tuple) else output
            )
        )
        try:
            with self._mixed(), self._checkpointed():
                logits = self.language.answer_logits(spliced, answer_BA.to(self.device))
        finally:
            handle.remove()
        counts_B = spliced.visual_mask.sum(1)
        most = int(counts_B.max())
        places_BL = spliced.visual_mask.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        mask_BL = torch.arange(most, device=self.device) < counts_B[:, None]
        width = seen[0].shape[-1]
        hidden = seen[0].gather(1, places_BL[..., None].expand(-1, -1, width))
        answer_hidden = None
        if self.language.reads_answers:
            answer_hidden = seen[0][:, -answer_BA.shape[1] :]
            answer_hidden = answer_hidden * (answer_BA != -100).to(self.device)[..., None]
        return Forward(logits, hidden * mask_BL[..., None], mask_BL, answer_hidden)

    def generate(self, spliced: Spliced, max_new_tokens: int = 16) -> Generated:
        """Greedy answers, each token with the entropy of the pass that chose it."""
        with self._mixed():
            return decoding.greedy(self.language, spliced, max_new_tokens, self.end_ids)

    def score_choices(
        self, spliced: Spliced, choices: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Summed log-likelihood of each prompt's choices, with the end token, in nats."""
        if len(choices) != len(spliced):
            raise ValueError(f"{len(spliced)} prompts, but choices for {len(choices)}")
        flat = iter(self._answers([choice for row in choices for choice in row]))
        nested = [[next(flat) for _ in row] for row in choices]
        with self._mixed():
            return decoding.choice_scores(self.language, spliced, nested)

    @property
    def begin_ids(self) -> list[int]:
        """The tokenizer's own special tokens before a prompt, unless its template has them."""
        if not self.templates.adds_ends:
            return []
        around = self.plain_tokenizer(["a"], with_ends=True)[0]
        return around[: around.index(self._plain_ids(["a"])[0][0])]

    @property
    def stub(self) -> tuple[str, str]:
        """A text to tokenise before an answer, then cut off, and what joins them."""
        return self._stub, self._joint

    def instruction_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """The tokens of each prompt that the connector reads. Raises: PromptTooLong."""
        return [[] for _ in prompts]

    def answer_ids(self, texts: Sequence[str]) -> Tensor:
        """(B, A): tokens of each answer and the end token, padded on the right with -100."""
        return decoding.right_padded(self._answers(texts)).to(self.device)

    @property
    def vocabulary_digest(self) -> str:
        """Digest of the tokenizer's table, the number of the head's rows and the end tokens."""
        rows = int(self.module.get_output_embeddings().weight.shape[0])
        return digests.of_vocabulary(self.tokenizer.get_vocab(), rows, self.end_ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The answer's text, without special tokens and surrounding blanks."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()

    def token_texts(self) -> list[bytes]:
        """The text of each token as it stands inside of an answer, in UTF-8; b"" for none.

        A token that is a part of a character has no text.
        """
        table = range(len(self.tokenizer))
        anchor = self.tokenizer("a", add_special_tokens=False).input_ids[-1:]
        before = self.tokenizer.decode(anchor)
        texts = self.tokenizer.batch_decode([[*anchor, number] for number in table])
        pieces = [text.removeprefix(before) for text in texts]
        return [b"" if "\ufffd" in piece else piece.encode() for piece in pieces]

    # The overlay.

    def trainable_groups(self) -> dict[str, list[str]]:
        """Names by group: `norm`, `bias`, `query` of parameters, `lora.*` of linears."""
        return overlay.trainable_groups(self.module, self.row)

    def attention_linears(self) -> list[str]:
        """Those of the group `lora.language` in the self-attentions that read the prompt."""
        inside = {id(part) for each in self.language.attentions for part in each.modules()}
        linears = self.trainable_groups()["lora.language"]
        return [name for name in linears if id(self.module.get_submodule(name)) in inside]

    def initial_overlay(
        self, groups: Iterable[str], rank: int, seed: int
    ) -> dict[str, NDArray[np.float32]]:
        """The overlay that changes nothing (`overlay.initial_overlay`)."""
        return overlay.initial_overlay(self.module, self.trainable_groups(), groups, rank, seed)

    def install_overlay(self, values: Mapping[str, NDArray[np.float32]], alpha: float) -> None:
        """Put an overlay on, or replace the values of the present one."""
        if not self._overlay_names:
            own = dict(self.module.named_parameters())
            self._first = {name: overlay.as_array(own[name]) for name in values if name in own}
        overlay.install(self.module, values, alpha)
        quantization.guard_biases(self.module)
        self._overlay_names = sorted(values)
        self._digest = None

    def overlay(self) -> dict[str, NDArray[np.float32]]:
        """The present values of the overlay, float32."""
        return overlay.read_back(self.module, self._overlay_names)

    def source_overlay(self) -> dict[str, NDArray[np.float32]]:
        """An overlay of the present names under which the model is the checkpoint's.

        It acts as that of sequence 0 does: LoRA's A, which a B of zeros multiplies, is the present
        one.
        """
        return {
            name: value if name.endswith(LORA_A) else self._first.get(name, np.zeros_like(value))
            for name, value in self.overlay().items()
        }

    def trainable(self) -> dict[str, nn.Parameter]:
        """The float32 parameters of the overlay, by name; from now on they need gradients."""
        parameters = dict(self.module.named_parameters())
        return {name: parameters[name].requires_grad_(True) for name in self._overlay_names}

    def freeze(self) -> None:
        """Make all parameters need no gradients."""
        self.module.requires_grad_(False)

    def unload(self) -> None:
        """Free the weights, whoever still holds the model, which can do nothing afterwards."""
        vars(self).clear()
        gc.collect()

    def training_mode(self) -> AbstractContextManager[None]:
        """Inside, gradients are right, on a quantised model too; dropout stays off."""
        return quantization.training_mode(self.module)

    @property
    def digest(self) -> str:
        """Digest of the overlay; without one, of all parameters."""
        if self._digest is None and self._overlay_names:
            self._digest = overlay_digest(self.overlay())
        elif self._digest is None:
            self._digest = digests.of_parameters(self.module)
        return self._digest

    # For the connector kinds to define.

    def _bind(self) -> None:  # noqa: B027 -- not every kind has any
        """Find the parts of the module that this kind uses."""

    @abstractmethod
    def _language_module(self) -> Any:
        """The language model inside `module`, with its head."""

    @abstractmethod
    def check_sizes(self) -> None:
        """Raises: BadData if parts of this kind do not fit together (`sizes`)."""

    @abstractmethod
    def prompt_ids(self, prompt: str, seen: Placed | None = None) -> list[int]:
        """The tokens of a prompt with its picture's places, as transformers' own call takes it."""

    @abstractmethod
    def prompt_length(self, prompt: str, seen: Placed | None = None) -> int:
        """Number of positions of a prompt with its picture."""

    def _of_features(self, mask_BN: Tensor) -> Tensor | None:
        """Which features are real, where these visual tokens are."""
        return mask_BN

    def _inner_tower(self) -> Any:
        return getattr(self.tower, "vision_model", self.tower)

    def _mixed(self) -> AbstractContextManager[Any]:
        """Autocast for a float32 overlay on a model of another type."""
        if self.dtype == torch.float32 or not self._overlay_names:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def _checkpointed(self) -> AbstractContextManager[Any]:
        if not self.is_checkpointed or not torch.is_grad_enabled():
            return nullcontext()
        return checkpointed(self.language.model)

    def _build_language(self) -> Language:
        config = self.module.config.get_text_config()
        model = self._language_module()
        kind = Seq2SeqLanguage if config.is_encoder_decoder else CausalLanguage
        return kind(model, model.get_input_embeddings(), config, self.row)

    def _plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.plain_tokenizer([Prompt("", text, "") for text in texts], with_ends=False)

    def _answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each answer as they follow a prompt, with the end token."""
        plain = [text.strip() for text in texts]
        end = self.end_ids[0]
        if isinstance(self.language, Seq2SeqLanguage):
            return [[*ids, end] for ids in self._plain_ids(plain)]
        stub = self._stub_ids
        behind = self._plain_ids([f"{self._stub}{self._joint}{text}" for text in plain])
        if all(ids[: len(stub)] == stub for ids in behind):
            return [[*ids[len(stub) :], end] for ids in behind]
        return [[*ids, end] for ids in self._plain_ids([f"{self._joint}{text}" for text in plain])]

    def _text_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Tokens of the prompts, with the tokenizer's own special tokens unless they have them."""
        return self.plain_tokenizer(prompts, with_ends=self.templates.adds_ends)
