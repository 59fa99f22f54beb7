"""How much memory a model needs, estimated from its sizes.

Legend: P parameters, S positions of a prompt with its picture, A of an answer, B prompts at once,
L layers of the language model, D its channels, F those inside its MLP, K of its keys or values, V
vocabulary, N visual tokens of C channels; b bytes of a number (4 in float32, 2 in 16 bits).

    weights     P b; in int8 and nf4 the language model's linears take 1 and 0.5625 bytes a weight
    cache       2 L K S b
    tower       14 N C b                    what one of its blocks holds: 6 C and 2 * 4 C a token
    one block   S (6 D + 3 F) b             of the language model
    trained     16 T                        T trained parameters: value, gradient and two moments
    kept        B (S + A) (L D b + (16 D + 6 F) b)   hidden states of all layers, one layer's inside
    logits      3 * 4 B A V                 of the answers, their softmax and its gradient

    to infer    weights + cache + the larger of tower and one block
    to train    weights + trained + kept + logits

Python and its libraries take 0.5 GB more. The figures were compared with measured peaks of real
sizes (tests/doctor/test_memory.py has one); they are not promises.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from cdcca_cli.models import LoadedModel
from cdcca_cli.models.skeleton import part_of

NUM_BYTES = {"float32": 4, "bfloat16": 2, "int8": 2, "nf4": 2}
"""Bytes of a number that is not quantised, by format."""
_QUANTISED = {"int8": 1.0, "nf4": 0.5 + 4 / 64}  # a scale of 32 bits for each 64 weights
LIBRARIES = 500_000_000
ANSWER = 16
TRAINED_AT_ONCE = 8


@dataclass(frozen=True)
class Sizes:
    """What the formulas read of a model and a frame, in the names of the legend."""

    parameters: int
    linears: int
    trained: int
    layers: int
    width: int
    inner: int
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
        return LIBRARIES + self._weights(form) + cache + max(tower, block)

    def to_train(self, form: str) -> int:
        """Bytes to train on TRAINED_AT_ONCE questions at a time."""
        num_bytes, rows = NUM_BYTES[form], TRAINED_AT_ONCE
        a_place = self.layers * self.width + 16 * self.width + 6 * self.inner
        kept = rows * (self.positions + ANSWER) * a_place * num_bytes
        logits = 3 * 4 * rows * ANSWER * self.vocabulary
        return LIBRARIES + self._weights(form) + 16 * self.trained + kept + logits

    def _weights(self, form: str) -> int:
        rest = (self.parameters - self.linears) * NUM_BYTES[form]
        return rest + int(self.linears * _QUANTISED.get(form, NUM_BYTES[form]))


def sizes(model: LoadedModel, *, positions: int, tokens: int, channels: int, trained: int) -> Sizes:
    """The sizes of a model, which may be an outline."""
    config = model.module.config.get_text_config()
    head = model.module.get_output_embeddings()
    parameters = dict(model.module.named_parameters())
    linears = {
        f"{name}.weight"
        for name, part in model.module.named_modules()
        if isinstance(part, nn.Linear) and part is not head
    }
    heads = config.num_attention_heads
    width = int(config.hidden_size)
    keys = getattr(config, "num_key_value_heads", None) or heads
    channels_of_head = getattr(config, "head_dim", None) or width // heads
    return Sizes(
        parameters=sum(one.numel() for one in parameters.values()),
        linears=sum(
            one.numel()
            for name, one in parameters.items()
            if name in linears and part_of(name, model.row) == "language model"
        ),
        trained=trained,
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
