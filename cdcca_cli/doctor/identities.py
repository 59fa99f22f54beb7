"""The equalities that cdcca rests on, tried on a loaded model with small frames.

    stored = pixels    stored visual tokens give the logits of transformers' own call with pixels
    batch = single     two frames with questions of two lengths, together and one by one
    dropped = masked   half of the visual tokens left out, and masked

Each is a difference of logits of an answer's first token, compared with how far those logits spread
over the vocabulary: a thousandth of it is allowed in float32, a tenth in 16 bits or quantised.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cdcca_cli.doctor.frame import like_a_photograph
from cdcca_cli.models import LoadedModel
from cdcca_cli.models.from_pixels import next_logits
from cdcca_cli.models.language import Spliced
from cdcca_cli.models.pictures import Picture, Seen

SIZES = ((112, 84), (84, 112))
QUESTIONS = ("What is it?", "How many people stand in front of the house on the left?")
SECONDS = 60.0
EXPLAINED = (
    "the language model has layers that are no attention: they see the neighbours of a dropped "
    "token close up, so dropping is not masking"
)
_ANSWER = "yes"
_SHARE, _COARSE_SHARE = 1e-3, 0.1


@dataclass(frozen=True)
class Identity:
    """One equality. difference: the largest of two logits; None if it could not be measured.

    note: why it was not tried, or why it need not hold. error: why it failed.
    """

    name: str
    difference: float | None = None
    allowed: float = 0.0
    note: str = ""
    error: str = ""

    @property
    def fails(self) -> bool:
        """Whether it was tried, and does not hold, and nothing explains that."""
        is_off = self.difference is not None and self.difference > self.allowed
        return bool(self.error) or (is_off and not self.note)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"fails": self.fails}


def tried(model: LoadedModel, seconds: float = SECONDS) -> Iterator[Identity]:
    """Each equality, one after another; none is begun after so many seconds."""
    begun = time.monotonic()
    frames = _Frames(model)
    for name, trial in (
        ("stored = pixels", frames.from_pixels),
        ("batch = single", frames.together),
        ("dropped = masked", frames.dropped),
    ):
        note = EXPLAINED if name == "dropped = masked" and is_recurrent(model) else ""
        if time.monotonic() - begun > seconds:
            yield Identity(name, note=f"not tried: {seconds:.0f} seconds had passed")
            continue
        try:
            with torch.no_grad():
                yield Identity(name, trial(), frames.allowed, note)
        except Exception as error:  # transformers raises whatever it likes
            words = " ".join(str(error).split())[:200]
            yield Identity(name, note=note, error=f"{type(error).__name__}: {words}")


def is_recurrent(model: LoadedModel) -> bool:
    """Whether the language model has convolutions or recurrences between its attentions."""
    layers = getattr(model.module.config.get_text_config(), "layer_types", None) or ()
    return not {*layers} <= {"full_attention", "sliding_attention", "chunked_attention"}


class _Frames:
    """Two small frames, each with its question, and the logits (V,) of the first one's answer."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._prompts = [model.format_prompt(question, "vqa") for question in QUESTIONS]

    @cached_property
    def _pictures(self) -> list[Picture]:
        return self._model.prepare([like_a_photograph(*size) for size in SIZES])

    @cached_property
    def _seen(self) -> list[Seen]:
        return self._model.see(self._pictures)

    @cached_property
    def _single_V(self) -> Tensor:
        return self._logits(self._model.read(self._seen[:1], self._prompts[:1]))

    @property
    def allowed(self) -> float:
        module, dtype = self._model.module, self._model.dtype
        is_exact = dtype == torch.float32 and not getattr(module, "is_quantized", False)
        return float(self._single_V.std()) * (_SHARE if is_exact else _COARSE_SHARE)

    def from_pixels(self) -> float:
        picture, seen, prompt = self._pictures[0], self._seen[0], self._prompts[0]
        return self._off(next_logits(self._model, picture, seen, prompt))

    def together(self) -> float:
        return self._off(self._logits(self._model.read(self._seen, self._prompts)))

    def dropped(self) -> float:
        model, seen, prompt = self._model, self._seen[0], self._prompts[0]
        kept_N = torch.arange(seen.num_tokens, device=seen.tokens.device) % 2 == 0
        kept_N[list(seen.layout.fixed)] = True
        places_K = kept_N.nonzero()[:, 0]
        features = model.project(model.queries(seen.tokens[kept_N][None], None, [prompt]))
        few = model.splice(features, [prompt], [seen], positions_BN=places_K[None])
        if model.row.kind != "cells":
            features = model.project(model.queries(seen.tokens[None], kept_N[None], [prompt]))
            whole = model.splice(features, [prompt], [seen])
        else:
            whole = model.read([seen], [prompt])
            mask_1S = whole.attention_mask.clone()
            mask_1S[whole.visual_mask] = kept_N.to(mask_1S)
            whole = replace(whole, attention_mask=mask_1S)
        return float((self._logits(few) - self._logits(whole)).abs().max())

    def _off(self, logits_V: Tensor) -> float:
        return float((self._single_V - logits_V.float()).abs().max())

    def _logits(self, spliced: Spliced) -> Tensor:
        """(V,): logits of the first token of the answer in the first row."""
        answers = self._model.answer_ids([_ANSWER] * len(spliced))
        return self._model.forward(spliced, answers).logits[0, 0].float()
