"""llama.cpp's own HTTP interface: prompts as tokens or with pictures, answers by token.

Any reply gives a value or an error: BadData for a malformed reply, for tokens other than those
asked for and for log-probabilities that are null (the server writes NaN so); Unavailable for a
server that is down. Requests that wait for a free slot are no error.

Log-probabilities are of the raw logits, whatever biases and grammars choose the token. The server
gives none for a token that ends in the middle of a character (`Step` None), so `logprobs` lets it
choose the end token, and no grammar takes such a token.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cdcca_cli.errors import BadData
from cdcca_cli.serving.address import Address
from cdcca_cli.serving.http import Client, Connection, Final

EVERY = 1 << 20
"""As a number of likeliest tokens: the whole vocabulary."""
_MOST_REPLY = 1 << 30  # bytes: some 90 for each token of a vocabulary, at each step
_MOST_IDS = 1 << 20
_FORCED = 1000.0  # a bias that no logit outweighs
_ROUNDED = 1e-3  # a log-probability this far above 0 is one of rounded numbers
_LOWEST, _UNKNOWN = -3.5e38, -1e38  # the server writes the lowest float32 for the log of 0
# What a server may have been started with that is not greedy.
_GREEDY = {
    "temperature": 0,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "dry_multiplier": 0.0,
    "ignore_eos": False,
    "stop": [],
    "stream": False,
}


@dataclass(frozen=True)
class Props:
    """What a server says of itself. marker: stands for a picture in a prompt, new at each start.

    num_slots: requests that it works on at once. file: its model's name.
    """

    num_slots: int = 1
    marker: str | None = None
    sees: bool = False
    file: str = ""

    @classmethod
    def parse(cls, value: Any) -> "Props | None":
        """None: another server, that has something else there."""
        if not isinstance(value, dict) or not _is_id(value.get("total_slots")):
            return None
        marker, path = value.get("media_marker"), value.get("model_path")
        modalities = value.get("modalities")
        sees = isinstance(modalities, dict) and modalities.get("vision") is True
        return cls(
            max(1, value["total_slots"]),
            marker if isinstance(marker, str) and marker else None,
            sees,
            path.replace("\\", "/").rpartition("/")[2] if isinstance(path, str) else "",
        )


@dataclass(frozen=True)
class Prompt:
    """What an answer follows: ids as they are, or a text with a marker for each of its pictures.

    In a text the words of special tokens are these tokens, and the server puts its own first ones
    before it. pictures: the bytes of picture files.
    """

    text: str = ""
    pictures: tuple[bytes, ...] = ()
    ids: tuple[int, ...] | None = None

    def as_json(self) -> Any:
        """What the server takes."""
        if self.ids is not None:
            return [*self.ids]
        if not self.pictures:
            return self.text
        coded = [base64.b64encode(picture).decode() for picture in self.pictures]
        return {"prompt_string": self.text, "multimodal_data": coded}


@dataclass(frozen=True)
class Step:
    """One token of an answer: its id, log-probability, and the likeliest ids with theirs."""

    id: int
    logp: float
    top: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """An answer. ids: of all its tokens, the end token too, if `has_ended`. text: without it.

    steps: of each token; None where the text up to it ends in the middle of a character.
    """

    ids: tuple[int, ...]
    steps: tuple[Step | None, ...]
    has_ended: bool
    text: str = ""


class LlamaServer:
    """A llama-server, asked from any number of threads."""

    def __init__(self, client: Client, props: Props) -> None:
        self.client, self.props = client, props
        self.close = client.close
        self._adapters: list[int] | None = None

    @classmethod
    def open(
        cls, address: Address, how: Connection | None = None, *, wait_seconds: float = 60.0
    ) -> "LlamaServer | None":
        """Find out whether it is one; None if it is another server.

        Args: wait_seconds: how long a server that is starting is waited for.
        Raises: Unavailable if nobody is there.
        """
        client = Client(address, how or Connection(), url=address.root, most=_MOST_REPLY)
        try:
            props = Props.parse(client.begin("/props", wait_seconds))
        except BaseException:
            client.close()
            raise
        if props is None:
            client.close()
            return None
        return cls(client, props)

    def tokenize(self, text: str, *, special: bool = False, begin: bool = False) -> list[int]:
        """Ids of a text.

        Args: special: whether words of special tokens are these tokens. begin: whether the server
            puts its own first tokens before it.
        """
        body = {"content": text, "parse_special": special, "add_special": begin}
        return self.client.ask("/tokenize", body, lambda value: _ids(_of(dict, value), "tokens"))

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of tokens, with the words of special ones."""

        def read(value: Any) -> str:
            return str(_of(str, _of(dict, value).get("content")))

        return self.client.ask("/detokenize", {"tokens": [*ids]}, read)

    def adapters(self) -> list[int]:
        """The ids of the LoRA adapters that it has loaded."""
        if self._adapters is None:
            self._adapters = self.client.ask(
                "/lora-adapters",
                None,
                lambda value: [_id(_of(dict, one)) for one in _of(list, value)],
            )
        return self._adapters

    def complete(
        self,
        prompt: Prompt,
        limit: int,
        *,
        num_top: int = 1,
        ids: Sequence[int] = (),
        biases: Mapping[int, float | bool] | None = None,
        scale: float | None = None,
        cache: bool = True,
    ) -> Completion:
        """A greedy answer of at most `limit` tokens.

        Args: num_top: likeliest tokens of each step. ids: what it begins with, whatever is likely.
            biases: added to logits; False: never this token. scale: of the adapters, in place of
            the server's. cache: use what is computed of another prompt with the same beginning,
            which moves the last bits.
        """
        body = {
            "prompt": prompt.as_json(),
            "n_predict": limit,
            "n_probs": num_top,
            "return_tokens": True,
            "cache_prompt": cache,
            **_GREEDY,
        }
        if ids:
            body["grammar"] = "root ::= " + " ".join(f"<[{one}]>" for one in ids)
        if biases:
            body["logit_bias"] = [[one, bias] for one, bias in biases.items()]
        if scale is not None:
            body["lora"] = [{"id": one, "scale": scale} for one in self.adapters()]
        # A grammar that cannot be followed is an error 500, each time.
        final = {500} if ids else ()
        return self.client.ask("/completion", body, lambda value: _completion(value, ids), final)

    def logprobs(
        self,
        prompt: Prompt,
        n: int,
        *,
        end: int,
        after: Sequence[int] = (),
        scale: float | None = None,
        cache: bool = False,
    ) -> dict[int, float]:
        """The `n` likeliest next tokens with their log-probabilities, the likeliest first.

        Args: end: the id of an end token. after: tokens that follow the prompt. scale, cache: as in
            `complete`.
        Raises: BadData, also where a token of `after` is a part of a character.
        """
        found = self.complete(
            prompt,
            len(after) + 1,
            num_top=n,
            ids=after,
            biases={end: _FORCED},
            scale=scale,
            cache=cache,
        )
        step = found.steps[len(after)] if len(found.steps) > len(after) else None
        if step is None:
            raise Final("the server gives no log-probabilities in the middle of a character")
        if not step.top:
            raise BadData("an answer without its likeliest tokens")
        return dict(step.top)

    def scores(
        self,
        prompt: Prompt,
        ids: Sequence[int],
        *,
        end: int,
        scale: float | None = None,
        cache: bool = False,
    ) -> list[float]:
        """The log-probability of each of `ids` after the prompt, then of the end token.

        Raises: BadData, also for a token that is a part of a character, which grammars refuse, and
            for one whose probability is 0 in float32.
        """
        found = self.complete(
            prompt, len(ids) + 1, ids=ids, biases={end: _FORCED}, scale=scale, cache=cache
        )
        if found.ids != (*ids, end):
            raise Final(f"asked for the tokens {[*ids, end]}, the server took {[*found.ids]}")
        values = [step.logp for step in found.steps if step is not None]
        if len(values) != len(found.ids):
            raise Final("the server gives no log-probabilities of parts of a character")
        if min(values) < _UNKNOWN:
            raise Final("a token is too unlikely for the server to say how unlikely")
        return values

    def score(
        self,
        prompt: Prompt,
        ids: Sequence[int],
        *,
        end: int,
        scale: float | None = None,
        cache: bool = False,
    ) -> float:
        """The log-probability of `ids` and the end token after the prompt, in nats."""
        return math.fsum(self.scores(prompt, ids, end=end, scale=scale, cache=cache))


# ---------------------------------------------------------------- replies


def _completion(value: Any, forced: Sequence[int]) -> Completion:
    reply = _of(dict, value)
    entries = reply.get("completion_probabilities")
    steps = [_step(_of(dict, one)) for one in ([] if entries is None else _of(list, entries))]
    ids = tuple(_ids(reply, "tokens")) if reply.get("tokens") else tuple(s.id for s in steps)
    if not ids:
        raise Final("an answer without tokens and log-probabilities")
    if ids[: len(forced)] != tuple(forced[: len(ids)]) or len(ids) < len(forced):
        raise Final(f"asked for the tokens {[*forced]}, the server took {[*ids]}")
    text = reply.get("content")
    if not isinstance(text, str):
        raise BadData("an answer without text")
    return Completion(ids, _aligned(ids, steps), reply.get("stop_type") == "eos", text)


def _aligned(ids: Sequence[int], steps: Sequence[Step]) -> tuple[Step | None, ...]:
    """The step of each token; None for those that were left out, which keep their order."""
    rest = list(steps)
    found: list[Step | None] = []
    for one in ids:
        found.append(rest.pop(0) if rest and rest[0].id == one else None)
    if rest:
        raise BadData("log-probabilities of other tokens than those of the answer")
    return tuple(found)


def _step(entry: dict[str, Any]) -> Step:
    listed = entry.get("top_logprobs")
    pairs = [_of(dict, one) for one in ([] if listed is None else _of(list, listed))]
    top = sorted(((_id(one), _logp(one)) for one in pairs), key=lambda pair: -pair[1])
    return Step(_id(entry), _logp(entry), dict(top))


def _logp(entry: Mapping[str, Any]) -> float:
    value = entry.get("logprob")
    if value is None:
        raise Final(
            "the server's log-probabilities are null: its model's outputs are not finite (a "
            "damaged model or adapter?)"
        )
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not _LOWEST < value <= _ROUNDED:
        raise BadData("an invalid log-probability")
    return min(float(value), 0.0)


def _ids(value: Mapping[str, Any], name: str) -> list[int]:
    found = _of(list, value.get(name))
    if len(found) > _MOST_IDS or not all(map(_is_id, found)):
        raise BadData(f"{name}: expected ids of tokens")
    return list(found)


def _id(value: Mapping[str, Any]) -> int:
    found = value.get("id")
    if not _is_id(found):
        raise BadData("an invalid id of a token")
    return int(found)  # type: ignore[arg-type]


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _of(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        names = {"dict": "an object", "list": "a list", "str": "text"}
        raise BadData(f"a malformed reply: expected {names[kind.__name__]}")
    return value
