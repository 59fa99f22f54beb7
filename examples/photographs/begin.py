"""Where training begins: at the pair that ships with cdcca, which knows drawn scenes.

From random weights a tower of this size stood at a fifth of the kinds right after 100 steps of 32
photographs, from the shipped one at a third: edges, corners and looking around need not be learnt
twice. Nothing that the shipped pair was trained on is a photograph.
"""

import copy
from functools import cache
from pathlib import Path

import beside_pair  # noqa: F401
import torch
from pair import build
from transformers import AutoTokenizer, Blip2ForConditionalGeneration, PreTrainedTokenizerFast

import cdcca_cli

ASSETS = Path(cdcca_cli.__file__).parent / "assets"


@cache
def _read(role: str) -> Blip2ForConditionalGeneration:
    return Blip2ForConditionalGeneration.from_pretrained(ASSETS / role, dtype=torch.float32)


def shipped(role: str) -> Blip2ForConditionalGeneration:
    """The shipped student or teacher in float32; one's own copy."""
    return copy.deepcopy(_read(role))


@torch.no_grad()
def begin(role: str, tokenizer: PreTrainedTokenizerFast) -> Blip2ForConditionalGeneration:
    """The shipped model of a role, made to read another tokenizer's tokens.

    Tokens that both tokenizers have keep their embeddings; those of the others are random.
    """
    model, old = build(role, tokenizer), shipped(role)
    known = AutoTokenizer.from_pretrained(ASSETS / role).get_vocab()
    rows = [(row, known[token]) for token, row in tokenizer.get_vocab().items() if token in known]
    new_rows, old_rows = (list(some) for some in zip(*rows, strict=True))
    state = old.state_dict()
    for name, values in model.state_dict().items():
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            values[new_rows] = state[name][old_rows]
            state[name] = values
    model.load_state_dict(state)
    return model
