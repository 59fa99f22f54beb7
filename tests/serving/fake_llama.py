"""A llama-server without a model: its words depend on the prompt and the picture alone.

Tokens are bytes: id 10 + byte; 0, 1 and 2 are <pad>, <s> and </s>, as in `tests.tiny`.
"""

import hashlib
import json
import math
import re
from contextlib import AbstractContextManager
from typing import Any

from tests.teachers.server import Fault, Served, responding

FIRST, SPECIAL, NUM_WORDS = 10, ("<pad>", "<s>", "</s>"), 320
END = 2
MARKER = "<__media_fake__>"
WORDS = ("yes", "two dogs", "a small boat", "caf\u00e9", "7")


def ids_of(text: str, *, special: bool) -> list[int]:
    parts = re.split("(<pad>|<s>|</s>)", text) if special else [text]
    found: list[int] = []
    for part in parts:
        if special and part in SPECIAL:
            found.append(SPECIAL.index(part))
        else:
            found += [FIRST + byte for byte in part.encode()]
    return found


def text_of(ids: list[int]) -> str:
    parts = [SPECIAL[one].encode() if one < len(SPECIAL) else bytes([one - FIRST]) for one in ids]
    return b"".join(parts).decode("utf-8", "replace")


class FakeLlama:
    """Args: slots: that it says it has. is_llama: whether it has /props."""

    def __init__(self, slots: int = 2) -> None:
        self.slots = slots

    def __call__(self, path: str, body: dict[str, Any] | None) -> dict[str, Any] | None:
        if body is None:
            props = {"total_slots": self.slots, "media_marker": MARKER, "model_path": "/x/m.gguf"}
            return {**props, "modalities": {"vision": True}} if path == "/props" else None
        if path == "/tokenize":
            return {"tokens": ids_of(body["content"], special=body["parse_special"])}
        if path == "/detokenize":
            return {"content": text_of(body["tokens"])}
        return completion(body) if path == "/completion" else None


def completion(body: dict[str, Any]) -> dict[str, Any]:
    """An answer; the end token behind it, unless it is cut."""
    key = json.dumps(body["prompt"], sort_keys=True).encode()
    digest = hashlib.sha256(key).digest()
    forced = [int(one) for one in re.findall(r"<\[(\d+)\]>", body.get("grammar", ""))]
    said = forced or ids_of(WORDS[digest[0] % len(WORDS)], special=False)
    ids = [*said, END][: body["n_predict"]]
    entries = []
    for place, one in enumerate(ids):
        draw = hashlib.sha256(digest + bytes(ids[:place][-8:] or [0]) + bytes([place])).digest()
        share = 0.3 + 0.5 * draw[0] / 255
        num_others = min(body["n_probs"], NUM_WORDS) - 1
        others = [(one + 1 + step) % NUM_WORDS for step in range(num_others)]
        top = [(one, math.log(share))]
        top += [
            (other, math.log((1 - share) * 0.5 ** (rank + 1))) for rank, other in enumerate(others)
        ]
        listed = [{"id": each, "token": "", "bytes": [], "logprob": logp} for each, logp in top]
        whole = text_of(ids[: place + 1])
        if not whole.endswith("\ufffd"):  # llama.cpp leaves out the first part of a character
            entries.append({**listed[0], "top_logprobs": listed[: body["n_probs"]]})
    return {
        "content": text_of([one for one in ids if one != END]),
        "tokens": ids,
        "stop_type": "eos" if ids[-1] == END else "limit",
        "completion_probabilities": entries,
    }


def faking(
    fault: Fault | None = None, *, seconds: float = 0.0, slots: int = 2
) -> AbstractContextManager[Served]:
    """Serve it on loopback; the fault is of answers alone."""

    def only_answers(handler: Any, reply: dict[str, Any], number: int) -> bool:
        return handler.path == "/completion" and fault is not None and fault(handler, reply, number)

    return responding(FakeLlama(slots), only_answers, seconds=seconds)
