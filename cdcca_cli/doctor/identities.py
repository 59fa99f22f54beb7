"""The equalities that cdcca rests on, tried on a loaded model with small frames.

    stored = pixels    stored visual tokens give the logits of transformers' own call with pixels
    batch = single     two frames with questions of two lengths, together and one by one
    dropped = masked   half of the visual tokens left out, and masked

Each is a difference of logits of an answer's first token, compared with how far those logits spread
over the vocabulary: a thousandth of it is allowed in float32, a tenth in 16 bits or quantised.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
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
    """One equality. difference: the largest of two logits; None if it was not tried.

    note: why it was not tried, or why it need not hold.
    """

    name: str
    difference: float | None
    allowed: float = 0.0
    note: str = ""

    @property
    def fails(self) -> bool:
        """Whether it was tried, and does not hold, and nothing explains that."""
        return self.difference is not None and not self.note and self.difference > self.allowed

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"fails": self.fails}


@torch.no_grad()
def tried(model: LoadedModel, seconds: float = SECONDS) -> Iterator[Identity]:
    """Each equality, one after another; none is begun after so many seconds."""
    begun = time.monotonic()
    pictures = model.prepare([like_a_photograph(*size) for size in SIZES])
    seen = model.see(pictures)
    prompts = [model.format_prompt(question, "vqa") for question in QUESTIONS]
    single = _first_logits(model, model.read(seen[:1], prompts[:1]))
    is_exact = model.dtype == torch.float32 and not getattr(model.module, "is_quantized", False)
    allowed = float(single.std()) * (_SHARE if is_exact else _COARSE_SHARE)
    trials: dict[str, Callable[[], float]] = {
        "stored = pixels": lambda: _off(
            single, next_logits(model, pictures[0], seen[0], prompts[0])
        ),
        "batch = single": lambda: _off(single, _first_logits(model, model.read(seen, prompts))),
        "dropped = masked": lambda: _dropped(model, pictures[0], seen[0], prompts[0]),
    }
    for name, trial in trials.items():
        note = EXPLAINED if name == "dropped = masked" and is_recurrent(model) else ""
        if time.monotonic() - begun > seconds:
            yield Identity(name, None, allowed, f"not tried: {seconds:.0f} seconds had passed")
        else:
            yield Identity(name, trial(), allowed, note)


def is_recurrent(model: LoadedModel) -> bool:
    """Whether the language model has convolutions or recurrences between its attentions."""
    layers = getattr(model.module.config.get_text_config(), "layer_types", None) or ()
    return not {*layers} <= {"full_attention", "sliding_attention", "chunked_attention"}


def _first_logits(model: LoadedModel, spliced: Spliced) -> Tensor:
    """(V,): logits of the first token of the answer in the first row."""
    answers = model.answer_ids([_ANSWER] * len(spliced))
    return model.forward(spliced, answers).logits[0, 0].float()


def _off(ours_V: Tensor, theirs_V: Tensor) -> float:
    return float((ours_V - theirs_V.float()).abs().max())


def _dropped(model: LoadedModel, picture: Picture, seen: Seen, prompt: str) -> float:
    kept_N = torch.arange(seen.num_tokens) % 2 == 0
    kept_N[list(seen.layout.fixed)] = True
    places_1N = kept_N.nonzero()[:, 0][None]
    features = model.project(model.queries(seen.tokens[places_1N[0]][None], None, [prompt]))
    few = model.splice(features, [prompt], [seen], positions_BN=places_1N)
    if model.row.kind == "qformer":
        features = model.project(model.queries(seen.tokens[None], kept_N[None], [prompt]))
        whole = model.splice(features, [prompt], [seen])
    else:
        whole = model.read([seen], [prompt])
        mask_1S = whole.attention_mask.clone()
        mask_1S[whole.visual_mask] = kept_N.to(mask_1S)
        whole = replace(whole, attention_mask=mask_1S)
    return _off(_first_logits(model, few), _first_logits(model, whole))
