"""How much memory a model needs, estimated from its sizes.

Legend: P parameters, S positions of a prompt with its picture, A of an answer, B prompts at once,
L layers of the language model, D its channels, F those inside its MLP, K of its keys or values, V
vocabulary, W inputs and outputs of all its linears, N visual tokens of C channels; b bytes of a
number (4 in float32, 2 in 16 bits).

    weights     P b; in int8 and nf4 the language model's linears take 1 and 0.5625 bytes a weight
    cache       2 L K S b
    tower       14 N C b                    what one of its blocks holds: 6 C and 2 * 4 C a token
    one block   S (6 D + 3 F) b             of the language model
    trained     16 T                        T trained parameters: value, gradient and two moments
    kept        2.4 B (S + A) W b           of the forward and the backward pass
    kept least  B (S + A) (L D + 2.4 W / L) b   if only the layers' inputs are kept
    logits      3 * 4 B A V                 of the answers, their softmax and its gradient

    to load     weights + the stored weights, if they are in another format
    to infer    weights + cache + the larger of tower and one block; or to load, if that is more
    to train    weights + trained + kept + logits; or to load

Python and its libraries take 0.5 GB more. These are estimates. 2.4 and 0.5 GB were measured with a
LLaVA of 249 M parameters and LoRA on all linears: it took 1.4 GB to infer and 4.8 GB to train in
float32, 1.9 and 3.0 GB in bfloat16; the formulas give 1.5, 4.8, 2.0 and 2.7.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from cdcca_cli.distillation.settings import MICRO_BATCH_SIZE, TRAINING_POSITIONS
from cdcca_cli.models import LoadedModel
from cdcca_cli.models.skeleton import part_of

NUM_BYTES = {"float32": 4, "bfloat16": 2, "int8": 2, "nf4": 2}
"""Bytes of a number that is not quantised, by format."""
_QUANTISED = {"int8": 1.0, "nf4": 0.5 + 4 / 64}  # a scale of 32 bits for each 64 weights
BASIS = (
    "estimated from sizes; what training adds is scaled by one model that was measured, a LLaVA of "
    "249 M parameters: another one may need more"
)
LIBRARIES = 500_000_000
ANSWER = 16
KEPT = 2.4


@dataclass(frozen=True)
class Sizes:
    """What the formulas read of a model and a frame, in the names of the legend.

    linears: those parameters that can be quantised. ends: W. stored: bytes of the weights by dtype.
    """

    parameters: int
    linears: int
    stored: Mapping[str, int]
    trained: int
    layers: int
    width: int
    inner: int
    ends: int
    keys: int
    vocabulary: int
    positions: int
    tokens: int
    channels: int

    def to_infer(self, form: str) -> int:
        """Bytes to answer one question of one frame."""
        num_bytes = NUM_BYTES[form]
        cache = 2 * self.layers * self.keys * self.positions * num_bytes
        tower = 14 * self.tokens * self.channels * num_bytes
        block = self.positions * (6 * self.width + 3 * self.inner) * num_bytes
        return self._at_least_loading(form, self._weights(form) + cache + max(tower, block))

    def to_train(self, form: str, *, least: bool = False) -> int:
        """Bytes to train on as many questions at a time as `distill` usually does.

        least: keep the layers' inputs alone, as `distill` does where memory is short.
        """
        rows = max(1, min(MICRO_BATCH_SIZE, TRAINING_POSITIONS // self.positions))
        a_place = KEPT * self.ends
        if least:
            a_place = self.layers * self.width + a_place / self.layers
        kept = int(rows * (self.positions + ANSWER) * a_place * NUM_BYTES[form])
        logits = 3 * 4 * rows * ANSWER * self.vocabulary
        return self._at_least_loading(form, self._weights(form) + 16 * self.trained + kept + logits)

    def _at_least_loading(self, form: str, num_bytes: int) -> int:
        others = (size for dtype, size in self.stored.items() if dtype != form)
        return LIBRARIES + max(num_bytes, self._weights(form) + sum(others))

    def _weights(self, form: str) -> int:
        rest = (self.parameters - self.linears) * NUM_BYTES[form]
        return rest + int(self.linears * _QUANTISED.get(form, NUM_BYTES[form]))


def sizes(
    model: LoadedModel,
    *,
    stored: Mapping[str, int],
    positions: int,
    tokens: int,
    channels: int,
    trained: int,
) -> Sizes:
    """The sizes of a model, which may be an outline."""
    config = model.module.config.get_text_config()
    head = model.module.get_output_embeddings()
    parameters = dict(model.module.named_parameters())
    linears = [
        part
        for name, part in model.module.named_modules()
        if isinstance(part, nn.Linear)
        and part is not head
        and part_of(f"{name}.weight", model.row) == "language model"
    ]
    heads = config.num_attention_heads
    width = int(config.hidden_size)
    keys = getattr(config, "num_key_value_heads", None) or heads
    channels_of_head = getattr(config, "head_dim", None) or width // heads
    return Sizes(
        parameters=sum(one.numel() for one in parameters.values()),
        linears=sum(part.weight.numel() for part in linears),
        ends=sum(part.in_features + part.out_features for part in linears),
        trained=trained,
        stored=stored,
        layers=int(config.num_hidden_layers) + (getattr(config, "num_decoder_layers", None) or 0),
        width=width,
        inner=_inner(config, width),
        keys=int(keys) * int(channels_of_head),
        vocabulary=int(head.weight.shape[0]),
        positions=positions,
        tokens=tokens,
        channels=channels,
    )


def _inner(config: Any, width: int) -> int:
    """Channels inside an MLP: the name, and a list with one for each layer, are a family's own."""
    for name in ("intermediate_size", "ffn_dim", "d_ff"):
        found = getattr(config, name, None)
        if found is not None:
            return int(max(found)) if isinstance(found, list | tuple) else int(found)
    return 4 * width
