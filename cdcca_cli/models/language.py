"""The language-model side of a family: causal (LLaMA, OPT, ...) or encoder-decoder (T5).

From a spliced prompt both kinds give the logits of an answer, of the next token (with a cache), and
of many short continuations.

Shapes: B batch, S prompt, A answer, R rows of continuations, V vocabulary, D channels. A prompt's
pads may be anywhere and are masked; answers are padded on the right. The caller gives the
positions, so that the tokens of a shortened picture keep theirs.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from cdcca_cli.errors import BadData, UsageError
from cdcca_cli.families import Family, connectors, text_model


class PromptTooLong(BadData):
    """A prompt (`row` in the batch) needs more positions than a part of the model has."""

    def __init__(self, what: str, needed: int, part: str, most: int, row: int = 0) -> None:
        super().__init__(
            f"{what} takes {needed} positions, the {part} has {most}: ask a shorter question"
        )
        self.row, self.needed, self.most = row, needed, most


@dataclass(frozen=True)
class Spliced:
    """A batch of prompts with their pictures, as the language model takes it.

    attention_mask: (B, S), 1 for real positions; for a causal language model the last one is always
        real. position_ids: (B, S), or (3, B, S) for positions with three axes; 0 where padded.
    visual_mask: (B, S) bool, True where the picture is.
    inputs_embeds: (B, S, D) of a language model that takes embeddings; else input_ids: (B, S), and
        features: of each row (L, D), deepstack layers side by side.
    """

    attention_mask: Tensor
    position_ids: Tensor
    visual_mask: Tensor
    inputs_embeds: Tensor | None = None
    input_ids: Tensor | None = None
    features: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.attention_mask)


class Language(ABC):
    """One language model.

    attentions: the self-attentions that read the prompt, first one first.
    last_attention: the last self-attention whose output at the visual positions reaches an answer.
    reads_answers: whether the answer's tokens go through it too, behind the prompt.
    max_positions: most positions of a prompt with its answer; None without a limit.
    suppressed: ids that are never chosen for an answer.
    """

    reads_answers: bool
    max_positions: int | None = None
    suppressed: tuple[int, ...] = ()

    def __init__(self, model: nn.Module, embeddings: nn.Module, config: Any) -> None:
        self.model: Any = model
        self.embeddings: Any = embeddings
        self.config = config
        # transformers 5.24 calls `cache` what was `past_key_values`, and warns of the old name.
        named = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in named else "past_key_values"
        attentions = self._attentions()
        if not attentions:
            raise UsageError(
                f"language model {config.model_type!r}: cdcca finds no self-attention in it by the "
                "names that LLaMA, OPT and T5 use"
            )
        self.attentions = tuple(attentions)
        self.last_attention: nn.Module = attentions[-1]

    def _cache_of(self, output: Any) -> Any:
        return getattr(output, self._cache_name)

    def check_length(self, needed: int, what: str, row: int = 0) -> None:
        """Raises: PromptTooLong if `needed` positions are too many."""
        if self.max_positions is not None and needed > self.max_positions:
            raise PromptTooLong(what, needed, "language model", self.max_positions, row)

    def check_room(self, spliced: Spliced, answer_length: int | Tensor) -> None:
        """Raises: PromptTooLong if a prompt leaves no room for its answer.

        Args: answer_length: in tokens, the end token included; of all rows, or (B,).
        """
        if self.max_positions is None:
            return
        last_B = spliced.position_ids.reshape(-1, *spliced.attention_mask.shape).amax((0, 2))
        needed_B = last_B + answer_length  # the last token is never read
        row = int(needed_B.argmax())
        self.check_length(int(needed_B[row]), "a prompt with its picture and answer", row)

    @abstractmethod
    def _attentions(self) -> list[nn.Module]:
        """The self-attentions that read the prompt, first one first."""

    def joined(self, rows: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Spliced:
        """Only of a language model that takes input ids (`CausalLanguage`)."""
        raise NotImplementedError

    @abstractmethod
    def answer_logits(self, spliced: Spliced, answer_BA: Tensor) -> Tensor:
        """(B, A, V): row j predicts answer token j. `answer_BA` is padded with -100."""

    @abstractmethod
    def begin(self, spliced: Spliced, max_new_tokens: int) -> tuple[Tensor, Any]:
        """Read the prompts. Returns: the next token's logits (B, V), a state for `advance`."""

    @abstractmethod
    def advance(self, state: Any, ids_B: Tensor) -> Tensor:
        """Append one token to each row; returns the next token's logits (B, V)."""

    @abstractmethod
    def continuation_logits(self, spliced: Spliced, rows_R: Tensor, ids_RA: Tensor) -> Tensor:
        """(R, A, V): logits of `ids_RA` after prompt `rows_R`; each prompt is read once."""


@dataclass
class _CausalState:
    cache: Any
    attention_mask: Tensor  # (B, S + room), sliced as the sequence grows
    next_position: Tensor  # (B,) or (3, B)
    length: int


class CausalLanguage(Language):
    """A decoder that reads prompt and answer as one sequence.

    It is given embeddings, or input ids with the features of the pictures (`joined`): several
    families make more of an id than its embedding (Gemma 3n), or take more of a picture than one
    feature a place (Qwen3-VL).
    """

    reads_answers = True

    def __init__(self, model: nn.Module, embeddings: nn.Module, config: Any, row: Family) -> None:
        self._row = row
        super().__init__(model, embeddings, config)
        self.max_positions = getattr(config, "max_position_embeddings", None)
        # A part of the positions is not contiguous, and would be multiplied row by row of a batch.
        head: nn.Module = self.model.get_output_embeddings()
        head.register_forward_pre_hook(lambda _head, args: (args[0].contiguous(),))
        takes = inspect.signature(self.model.forward).parameters
        self._keeps = "logits_to_keep" in takes
        self._layers = _feature_layers(self.model.config, row.deep)
        self.suppressed = _special_places(self.model.config)

    def _attentions(self) -> list[nn.Module]:
        ending = text_model(self.config.model_type).attention
        path = "" if self._row.kind == "qformer" else f"{self._row.language_path}."
        return [
            part
            for name, part in self.model.named_modules()
            if name.endswith(ending) and name.startswith(path)
            # Gemma's last layers attend to the keys and values of earlier ones.
            if not getattr(part, "is_kv_shared_layer", False)
        ]

    def joined(self, rows: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Spliced:
        """Prompts of several lengths as one batch, padded on the left.

        Args: rows: of each prompt its ids (S,), positions (S,) or (3, S), and the features (L, D)
            of its places for the picture, whose id is the config's `image_token_id`.
        """

        def padded(parts: list[Tensor]) -> Tensor:
            return pad_sequence(parts, batch_first=True, padding_side="left")

        ids, positions, features = zip(*rows, strict=True)
        place = image_token_id(self.model.config)
        position_ids = padded([each.movedim(-1, 0) for each in positions])
        return Spliced(
            attention_mask=padded([torch.ones_like(each) for each in ids]),
            position_ids=position_ids.movedim(-1, 0) if position_ids.ndim == 3 else position_ids,
            visual_mask=padded([each == place for each in ids]),
            input_ids=padded(list(ids)),
            features=tuple(features),
        )

    def answer_logits(self, spliced: Spliced, answer_BA: Tensor) -> Tensor:
        num_answer = answer_BA.shape[1]
        self.check_room(spliced, (answer_BA != -100).sum(1))
        fed_BA = answer_BA[:, :-1]
        real_BA = (fed_BA != -100).to(spliced.attention_mask.dtype)
        following = self._following(spliced.position_ids, num_answer - 1)
        return self._logits(
            num_answer,
            **self._prompt(spliced, fed_BA.clamp(min=0)),
            attention_mask=torch.cat([spliced.attention_mask, real_BA], dim=1),
            position_ids=torch.cat([spliced.position_ids, following], dim=-1),
            use_cache=False,
        )

    def begin(self, spliced: Spliced, max_new_tokens: int) -> tuple[Tensor, Any]:
        logits_B1V, cache = self._read(spliced)
        room = spliced.attention_mask.new_ones(len(spliced), max_new_tokens)
        state = _CausalState(
            cache=cache,
            attention_mask=torch.cat([spliced.attention_mask, room], dim=1),
            next_position=spliced.position_ids[..., -1] + 1,
            length=spliced.attention_mask.shape[1],
        )
        return logits_B1V[:, -1], state

    def advance(self, state: _CausalState, ids_B: Tensor) -> Tensor:
        state.length += 1
        logits_B1V = self._logits(
            1,
            input_ids=ids_B[:, None],
            attention_mask=state.attention_mask[:, : state.length],
            position_ids=state.next_position[..., None],
            **{self._cache_name: state.cache},
            use_cache=True,
        )
        state.next_position = state.next_position + 1
        return logits_B1V[:, -1]

    def continuation_logits(self, spliced: Spliced, rows_R: Tensor, ids_RA: Tensor) -> Tensor:
        num_fed = ids_RA.shape[1] - 1
        lengths_B = rows_R.new_zeros(len(spliced))
        lengths_B.scatter_reduce_(0, rows_R, (ids_RA != -100).sum(1), "amax")
        self.check_room(spliced, lengths_B)
        logits_B1V, cache = self._read(spliced)
        first_R1V = logits_B1V[rows_R]
        if num_fed == 0:
            return first_R1V
        cache.reorder_cache(rows_R)
        fed = ids_RA[:, :-1]
        mask = spliced.attention_mask[rows_R]
        logits_RAV = self._logits(
            num_fed,
            input_ids=fed.clamp(min=0),
            attention_mask=torch.cat([mask, (fed != -100).to(mask.dtype)], dim=1),
            position_ids=self._following(spliced.position_ids[..., rows_R, :], num_fed),
            **{self._cache_name: cache},
            use_cache=True,
        )
        return torch.cat([first_R1V, logits_RAV], dim=1)

    def _read(self, spliced: Spliced) -> tuple[Tensor, Any]:
        """The logits (B, 1, V) behind each prompt, and a cache of the prompts."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.config)
        logits_B1V = self._logits(
            1,
            **self._prompt(spliced),
            attention_mask=spliced.attention_mask,
            position_ids=spliced.position_ids,
            **{self._cache_name: cache},
            use_cache=True,
        )
        return logits_B1V, cache

    def _logits(self, count: int, **arguments: Any) -> Tensor:
        """(B, count, V): the last logits of a forward pass."""
        if self._keeps:
            arguments["logits_to_keep"] = count
        logits: Tensor = self.model(**arguments).logits[:, -count:]
        return logits

    def _prompt(self, spliced: Spliced, fed_BA: Tensor | None = None) -> dict[str, Any]:
        """The prompts as arguments, followed by `fed_BA`. Made anew, since models change them."""
        if spliced.inputs_embeds is not None:
            parts = [spliced.inputs_embeds]
            if fed_BA is not None:
                parts.append(self.embeddings(fed_BA).to(spliced.inputs_embeds.dtype))
            return {"inputs_embeds": torch.cat(parts, dim=1)}
        assert spliced.input_ids is not None
        fed_BA = spliced.input_ids[:, :0] if fed_BA is None else fed_BA
        found = {"input_ids": torch.cat([spliced.input_ids, fed_BA], dim=1)}
        if self._row.types is not None:
            name, of_pictures, of_answers = self._row.types
            before = spliced.visual_mask.long() * of_pictures
            found[name] = torch.cat([before, torch.full_like(fed_BA, of_answers)], dim=1)
        return found | {"mm_encoder_outputs": {"image": self._outputs(spliced.features)}}

    def _outputs(self, features: Sequence[Tensor]) -> Any:
        """The features as transformers' towers give them."""
        module = import_module(type(self.model).__module__)
        made = getattr(module, self._row.features)()
        parts = zip(*(each.chunk(len(self._layers), dim=-1) for each in features), strict=True)
        layers = [list(part) for part in parts]
        if self._row.deep == "alone":
            made.deepstack_features = list(zip(self._layers, layers, strict=True))
            return made
        main, *deep = layers
        made.pooler_output = torch.cat(main)[None] if self._row.is_stacked else main
        if deep:
            made.deepstack_features = deep
        if self._row.extra:
            for name, value in getattr(connectors, self._row.extra)(self.model).items():
                made[name] = value
        return made

    def _following(self, position_ids_BS: Tensor, count: int) -> Tensor:
        """(B, count) or (3, B, count): the positions after each row's last one.

        Clamped, because the pads behind a short answer may lie past the last position.
        """
        steps = torch.arange(1, count + 1, device=position_ids_BS.device)
        following = position_ids_BS[..., -1:] + steps
        if self.max_positions is None:
            return following
        return following.clamp(max=self.max_positions - 1)


def image_token_id(config: Any) -> int:
    """The id that fills the places of a picture in a prompt."""
    found = getattr(config, "image_token_id", None)
    return int(config.image_token_index if found is None else found)


def _feature_layers(config: Any, deep: str) -> list[int]:
    """The layers of the language model that features enter, the prompt as -1."""
    if deep == "alone":  # Granite
        return [layer for _, layer in config.deepstack_layer_map] + [*config.spatial_target_layers]
    if deep == "beside":  # Qwen3-VL: the first ones
        return [-1, *range(len(config.vision_config.deepstack_visual_indexes))]
    return [-1]


def _special_places(config: Any) -> tuple[int, ...]:
    """Ids of places for pictures, videos and sound, which no answer may hold."""
    names = [
        f"{kind}_token_{end}" for kind in ("image", "video", "audio") for end in ("id", "index")
    ]
    found = (getattr(config, name, None) for name in names)
    return tuple({value for value in found if isinstance(value, int) and value >= 0})


@dataclass
class _EncodedState:
    encoded: Any
    attention_mask: Tensor
    cache: Any = None


class Seq2SeqLanguage(Language):
    """An encoder that reads the prompt and a decoder that writes the answer."""

    reads_answers = False

    def __init__(self, model: nn.Module, embeddings: nn.Module, config: Any, row: Family) -> None:
        super().__init__(model, embeddings, config)
        start = config.decoder_start_token_id
        self._start_id = config.pad_token_id if start is None else start
        rows = self.embeddings.num_embeddings
        if not isinstance(self._start_id, int) or not 0 <= self._start_id < rows:
            raise BadData(
                f"decoder_start_token_id is {self._start_id}, the language model's embedding has "
                f"{rows} rows: config.json and the weights do not belong together"
            )

    def _attentions(self) -> list[nn.Module]:
        ending = text_model(self.config.model_type).attention
        encoder = self.model.get_encoder()
        return [part for name, part in encoder.named_modules() if name.endswith(ending)]

    def answer_logits(self, spliced: Spliced, answer_BA: Tensor) -> Tensor:
        output = self.model(
            encoder_outputs=self._encode(spliced),
            attention_mask=spliced.attention_mask,
            decoder_input_ids=self._shifted(answer_BA),
            use_cache=False,
        )
        return output.logits

    def begin(self, spliced: Spliced, max_new_tokens: int) -> tuple[Tensor, Any]:
        state = _EncodedState(self._encode(spliced), spliced.attention_mask)
        start_B = torch.full((len(spliced),), self._start_id, device=spliced.attention_mask.device)
        return self.advance(state, start_B), state

    def advance(self, state: _EncodedState, ids_B: Tensor) -> Tensor:
        output = self.model(
            encoder_outputs=state.encoded,
            attention_mask=state.attention_mask,
            decoder_input_ids=ids_B[:, None],
            **{self._cache_name: state.cache},
            use_cache=True,
        )
        state.cache = self._cache_of(output)
        return output.logits[:, -1]

    def continuation_logits(self, spliced: Spliced, rows_R: Tensor, ids_RA: Tensor) -> Tensor:
        from transformers.modeling_outputs import BaseModelOutput

        encoded = self._encode(spliced).last_hidden_state
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded[rows_R]),
            attention_mask=spliced.attention_mask[rows_R],
            decoder_input_ids=self._shifted(ids_RA),
            use_cache=False,
        )
        return output.logits

    def _encode(self, spliced: Spliced) -> Any:
        return self.model.get_encoder()(
            inputs_embeds=spliced.inputs_embeds,
            attention_mask=spliced.attention_mask,
            return_dict=True,
        )

    def _shifted(self, ids_BA: Tensor) -> Tensor:
        """What the decoder is fed to predict `ids_BA`: the start token, then all but the last."""
        start = ids_BA.new_full((ids_BA.shape[0], 1), self._start_id)
        return torch.cat([start, ids_BA[:, :-1].clamp(min=0)], dim=1)
