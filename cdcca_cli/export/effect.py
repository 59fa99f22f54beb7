"""Whether a server acts as the device was trained: its answers against those of a `probe`.

The server is asked with the LoRA of its adapters at scale 0 and at scale 1.

- Where its base is in float32 or float16, log-probabilities are compared: the largest difference
  over the probe's likeliest tokens is at most 0.02, 0.05 where a picture is read.
- A quantised base moves log-probabilities by more than that: the *gain* is compared, by how many
  nats a token the LoRA makes the probe's answers likelier, and all of the export together. A third
  is allowed, or 0.05, by which the base's own rounding moves it.

What that cannot see on a quantised base: rows of q and k in the wrong order, which keep most of the
gain (0.451 of 0.495 nats a token) and change answers as the right ones do (a cosine of 0.587
against 0.600); nor a missing part that gains less than a third. The preflight of `export` compares
these rows with the checkpoint's, and lists what stays behind.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cdcca_cli.errors import BadData, BelowMark
from cdcca_cli.export import probe as probes
from cdcca_cli.formats.probe import Likeliest, Probe, Question
from cdcca_cli.formats.profile import Profile

if TYPE_CHECKING:
    from cdcca_cli.serving.llama import LlamaServer, Prompt

Verdict = Literal["acts as trained", "acts, but differs", "has no effect", "cannot be judged"]
TOLERANCE = {"text": 0.02, "picture": 0.05}
"""The largest difference of log-probabilities on a base that is not quantised, in nats."""
GAIN_TOLERANCE = 1 / 3
NOISE = 0.05
"""How far a gain is off on a quantised base, in nats a token: 0.041 at most on SmolLM2 in Q4_1."""
_STILL = 2e-3  # nats: how far a server's answers move between two requests
_NUM_ASKED = 4 * probes.NUM_NEXT
_CANNOT_SEE = (
    "on a quantised base this shows neither rows of q and k in the wrong order nor a missing part "
    "that gains less than a third: the preflight and the digests of export do"
)


@dataclass(frozen=True)
class Served:
    """A server's answers to one question, without LoRA ("unscaled") and with it ("whole").

    next: log-probabilities by id. nats: mean of -log p over the probe's answer; None if the server
    gives none.
    """

    next: Mapping[str, Mapping[int, float]]
    nats: Mapping[str, float] | None


@dataclass(frozen=True)
class Effect:
    """What was found. numbers: in nats; by what they are, see `as_json`."""

    verdict: Verdict
    by: Literal["log-probabilities", "gain"]
    why: str
    numbers: Mapping[str, float | None]

    @property
    def is_sound(self) -> bool:
        return self.verdict in ("acts as trained", "cannot be judged")

    @property
    def cannot_see(self) -> str:
        """What such a comparison does not show, in words."""
        return _CANNOT_SEE if self.by == "gain" else ""

    def as_json(self) -> dict[str, Any]:
        """difference_text, difference_picture: the largest, with LoRA; ..._unscaled: without.

        gain, gain_expected: of the LoRA; gain_whole...: of all that was exported;
        gain_held_out...: of the LoRA on labelled frames (`held_out`).
        """
        return {"kind": "effect", **asdict(self), "cannot_see": self.cannot_see}

    def summary(self) -> str:
        """In one line."""
        off = [self.numbers["difference_text"], self.numbers["difference_picture"]]
        measured = f"log-probabilities off by at most {max(one or 0.0 for one in off):.4f}"
        if self.by == "gain" and self.numbers.get("gain_whole") is not None:
            gain, expected = (self.numbers[f"gain_whole{end}"] for end in ("", "_expected"))
            measured = f"a gain of {gain:.3f} nats a token, {expected:.3f} expected"
        return f"the export {self.verdict}" + (f": {self.why}" if self.why else f" ({measured})")

    def rows(self) -> Iterator[tuple[str, object]]:
        """What people read."""
        yield "effect", f"{self.verdict}{self.why and f': {self.why}'}"
        yield "compared by", self.by
        for name, number in self.numbers.items():
            if number is not None:
                yield name.replace("_", " "), f"{number:.4f} nats"
        if self.cannot_see:
            yield "not seen", self.cannot_see

    def require(self, url: str) -> None:
        """Raises: BelowMark unless the server acts as trained, as far as that can be told."""
        if not self.is_sound:
            raise BelowMark(f"{url}: the export {self.verdict}: {self.why}")


# ---------------------------------------------------------------- asking


def ask(server: "LlamaServer", probe: Probe, profile: Profile) -> list[Served]:
    """Put the probe's questions to a server. Raises: Unavailable, BadData."""
    from cdcca_cli.datasets import LabelledQuestion
    from cdcca_cli.formats.pictures import Picture
    from cdcca_cli.serving.llama import Prompt
    from cdcca_cli.uplink.asked import LlamaAsked

    found = []
    asked = LlamaAsked(server, profile) if any(one.picture for one in probe.questions) else None
    for one in probe.questions:
        prompt = Prompt(ids=one.ids)
        if one.picture is not None:
            assert asked is not None
            _, height, width = one.picture
            png = probes.encoded(probes.picture(*one.picture))
            question = LabelledQuestion("probe", one.prompt, "vqa")
            prompt = asked.prompt(Picture(png, "image/png", (width, height)), question)
        found.append(_ask(server, prompt, probe.end[0], one.answer))
    return found


def _ask(server: "LlamaServer", prompt: "Prompt", end: int, answer: Sequence[int]) -> Served:
    next_tokens = {
        state: server.logprobs(prompt, _NUM_ASKED, end=end, scale=scale)
        for state, scale in scales(server).items()
    }
    return Served(next_tokens, nats(server, prompt, end, answer))


def scales(server: "LlamaServer") -> dict[str, float | None]:
    """The scale of the adapters in the states that a server can be asked in."""
    if not server.adapters():
        return {"unscaled": None, "whole": None}
    return {"unscaled": 0.0, "whole": 1.0}


def nats(
    server: "LlamaServer", prompt: "Prompt", end: int, answer: Sequence[int]
) -> dict[str, float] | None:
    """The mean of -log p over an answer, by state; None for one with parts of a character."""
    ids = answer[:-1] if answer[-1] == end else answer
    try:
        return {
            state: -float(np.mean(server.scores(prompt, ids, end=end, scale=scale)[: len(answer)]))
            for state, scale in scales(server).items()
        }
    except BadData:
        return None


# ---------------------------------------------------------------- judging


def judge(probe: Probe, served: Sequence[Served], is_exact: bool | None = None) -> Effect:
    """Compare a server's answers with the probe's.

    Args: is_exact: whether the server's base is in float32 or float16; None: by how far its
        answers without LoRA are from the probe's.
    """
    pairs = [*zip(probe.questions, served, strict=True)]
    off = {state: _differences(pairs, state) for state in ("unscaled", "whole")}
    numbers: dict[str, float | None] = {
        "difference_text": off["whole"]["text"],
        "difference_text_unscaled": off["unscaled"]["text"],
        "difference_picture": off["whole"]["picture"],
        "difference_picture_unscaled": off["unscaled"]["picture"],
    }
    changes = max(_apart(one.next["whole"], one.next["start"]) for one in probe.questions)
    of_lora = max(_apart(one.next["whole"], one.next["unscaled"]) for one in probe.questions)
    moved = max(_moved(one, answers) for one, answers in pairs)
    found = _by_gain(pairs, numbers)
    if changes <= _STILL:
        return Effect(
            "cannot be judged", "log-probabilities", "the overlay changes nothing", numbers
        )
    if _fits(off["whole"]) and changes > TOLERANCE["text"]:
        return Effect("acts as trained", "log-probabilities", "", numbers)
    if of_lora > TOLERANCE["text"] and moved <= min(_STILL, of_lora / 10):
        why = "answers are the same with and without the adapter: it is not loaded, or empty"
        return Effect("has no effect", "log-probabilities", why, numbers)
    before = [_difference(answers.next["whole"], one.next["start"]) for one, answers in pairs]
    if max(before) <= TOLERANCE["text"] < changes:
        why = "the server answers as before the export: it has other files"
        return Effect("has no effect", "log-probabilities", why, numbers)
    if is_exact or (is_exact is None and _fits(off["unscaled"])):
        if _fits(off["whole"]):
            why = "the overlay changes less than is compared"
            return Effect("cannot be judged", "log-probabilities", why, numbers)
        return Effect("acts, but differs", "log-probabilities", _reason(pairs, off), numbers)
    return found


def _by_gain(pairs: Sequence[tuple[Question, Served]], numbers: dict[str, float | None]) -> Effect:
    """The verdict by how much likelier the probe's answers become; adds to `numbers`."""
    known = [(one, answers.nats) for one, answers in pairs if answers.nats is not None]
    if not known:
        why = "the server scores none of the probe's answers"
        return Effect("cannot be judged", "gain", why, numbers)

    def mean(values: Iterator[float]) -> float:
        return float(np.mean([*values]))

    lora = mean(one.nats["unscaled"] - one.nats["whole"] for one, _ in known)
    whole = mean(one.nats["start"] - one.nats["whole"] for one, _ in known)
    lora_served = mean(nats["unscaled"] - nats["whole"] for _, nats in known)
    whole_served = mean(one.nats["start"] - nats["whole"] for one, nats in known)
    numbers |= {"gain": lora_served, "gain_expected": lora}
    numbers |= {"gain_whole": whole_served, "gain_whole_expected": whole}
    if whole < 2 * NOISE:
        why = "the overlay makes the probe's answers hardly likelier"
        return Effect("cannot be judged", "gain", why, numbers)
    for name, mine, theirs in (("LoRA", lora, lora_served), ("export", whole, whole_served)):
        if abs(theirs - mine) > max(GAIN_TOLERANCE * abs(mine), NOISE):
            why = f"the {name} gains {theirs:.3f} nats a token, {mine:.3f} expected"
            return Effect("acts, but differs", "gain", why, numbers)
    return Effect("acts as trained", "gain", "", numbers)


def _differences(pairs: Sequence[tuple[Question, Served]], state: str) -> dict[str, float | None]:
    """The largest difference over questions without and with a picture."""
    found: dict[str, float | None] = dict.fromkeys(TOLERANCE)
    for one, answers in pairs:
        kind = "text" if one.picture is None else "picture"
        found[kind] = max(found[kind] or 0.0, _difference(answers.next[state], one.next[state]))
    return found


def _fits(off: Mapping[str, float | None]) -> bool:
    return all((off[kind] or 0.0) <= most for kind, most in TOLERANCE.items())


def _difference(served: Mapping[int, float], expected: Likeliest) -> float:
    """The largest difference of log-probabilities among the probe's tokens, in nats.

    Both are of these tokens alone (they sum to one), because a GGUF file may lack rows that the
    checkpoint has. A token that the server does not name is at most as likely as its last.
    """
    least = min(served.values(), default=-np.inf)
    theirs = np.array([served.get(one, least) for one in expected.ids])
    return float(np.abs(_among(theirs) - _among(np.array(expected.logp))).max())


def _among(logp_N: Any) -> Any:
    return logp_N - np.logaddexp.reduce(logp_N)


def _apart(one: Likeliest, other: Likeliest) -> float:
    """How far two states are apart on the tokens of the first."""
    return _difference(dict(zip(other.ids, other.logp, strict=True)), one)


def _moved(question: Question, answers: Served) -> float:
    """How far the server's answers with LoRA are from those without."""
    with_lora = answers.next["whole"]
    kept = [one for one in question.next["whole"].ids if one in with_lora]
    listed = Likeliest(tuple(kept), tuple(with_lora[one] for one in kept))
    return _difference(answers.next["unscaled"], listed) if kept else np.inf


def _reason(pairs: Sequence[tuple[Question, Served]], off: Mapping[str, Any]) -> str:
    """What the differences point to, in words."""
    text, picture = off["whole"]["text"] or 0.0, off["whole"]["picture"] or 0.0
    shown = f"off by {max(text, picture):.2f} nats"
    if _fits(off["unscaled"]):
        strength = _strength(pairs)
        return (
            f"{shown} with LoRA, as expected without: about {strength:.1f} of its strength arrives"
        )
    if text <= TOLERANCE["text"]:
        return f"{shown} with pictures, as expected without: mmproj.gguf is not that of the export"
    return f"{shown}, also without LoRA: norms, biases or the base are not those of the export"


def _strength(pairs: Sequence[tuple[Question, Served]]) -> float:
    """How much of the LoRA's change the server's change has in its direction."""
    own, both = 0.0, 0.0
    for one, answers in pairs:
        states: list[Mapping[int, float]] = []
        for named in (one.next["whole"], one.next["unscaled"]):
            states.append(dict(zip(named.ids, named.logp, strict=True)))
        states += [answers.next["whole"], answers.next["unscaled"]]
        if not (kept := sorted(set(states[0]).intersection(*states[1:]))):
            continue
        whole, unscaled, whole_served, unscaled_served = (
            _among(np.array([state[token] for token in kept])) for state in states
        )
        change = whole - unscaled
        own += float(change @ change)
        both += float(change @ (whole_served - unscaled_served))
    return both / own if own else 0.0
