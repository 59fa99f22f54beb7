"""Predictions, version 1: what the device answered and how sure it was, as JSON lines in UTF-8.

One object a line, one line a prompt, each line ended by a newline; empty lines are skipped. Keys:

    v               1
    id              string, not empty: the question's id
    image           string: the image's path
    task            "vqa" or "caption"
    prompt          string or null
    answer          string: the generated text, also where there are choices
    choice          string or null: the choice with the highest score
    choices         list of strings or null
    choice_scores   list of numbers or null: summed log-likelihood (nats) of each choice
    entropy         {"first": x, "max": x, "mean": x, "sum": x}: of the answer's tokens, in nats
    token_entropies list of numbers or null: each answer token's entropy, in nats
    model           digest of the model that answered
    domain          string or null
    margin          number from 0 to 1: mean over the answer's tokens of p1 - p2, the probabilities
                    of the two likeliest tokens; absent in files of cdcca 0.3 and before
    entropy_of      "top" and a number: of how many likeliest tokens of each step the entropies are,
                    as a server lists them, with the rest spread flat over the vocabulary, which is
                    the most that they can be; absent: of all tokens, exact
    entropy_least   as `entropy`: the least that they can be; with entropy_of alone

All numbers are finite and entropies >= 0; choice is one of choices; choice_scores is as long as
choices. A writer sorts the keys; a reader accepts any order, takes an absent key for null, and
skips unknown keys. There is no end mark: a file cut between two lines is a sound, shorter one.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import get_type_hints

from cdcca_cli.errors import BadData
from cdcca_cli.formats import records
from cdcca_cli.formats.digest import is_digest
from cdcca_cli.formats.shard import Task
from cdcca_cli.text import load_json

VERSION = 1
ENTROPIES = ("mean", "sum", "max", "first")


@dataclass(frozen=True)
class Prediction:
    """One answer; entropy has the keys of ENTROPIES, in nats."""

    id: str
    image: str
    task: Task
    prompt: str | None
    answer: str
    choice: str | None
    choices: list[str] | None
    choice_scores: list[float] | None
    entropy: dict[str, float]
    token_entropies: list[float] | None
    model: str
    domain: str | None
    margin: float | None = None
    entropy_of: str | None = None
    entropy_least: dict[str, float] | None = None


_HINTS = get_type_hints(Prediction) | {"entropy_least": dict | None}
_ABSENT = ("margin", "entropy_of", "entropy_least")
"""Keys that are left out where there is nothing to say."""


def encode_line(prediction: Prediction) -> str:
    """One line, newline included. BadData if it is not sound."""
    row = {"v": VERSION, **asdict(prediction)}
    for name in _ABSENT:
        if row[name] is None:
            del row[name]
    try:
        line = records.dump_json(row)
    except ValueError:
        raise BadData(
            f"question {prediction.id}: the model gave numbers that are not finite"
        ) from None
    decode_line(line, f"question {prediction.id}")  # never write what the reader would refuse
    return line + "\n"


def read_predictions(text: Iterable[str], *, where: str = "predictions") -> Iterator[Prediction]:
    """Predictions one after the other, each checked; memory holds one. BadData, NewerFormat."""
    for number, line in enumerate(text, start=1):
        if line.strip():
            yield decode_line(line, f"{where}: line {number}")


def decode_line(line: str, where: str) -> Prediction:
    """One line's prediction. BadData, NewerFormat."""
    row = load_json(line, where)
    if not isinstance(row, dict) or "v" not in row:
        raise BadData(f"{where}: not a prediction (an object with a version 'v'): see cdcca infer")
    version = records.field(row, "v", int, where)
    records.check_version(version, VERSION, "prediction format", where)
    values = records.fields(row, _HINTS, where, exact=False)
    hints = dict.fromkeys(ENTROPIES, float)
    entropy = records.fields(values["entropy"], hints, f"{where}: entropy", exact=False)
    least = values["entropy_least"]
    if least is not None:
        least = records.fields(least, hints, f"{where}: entropy_least", exact=False)
    found = Prediction(**{**values, "entropy": entropy, "entropy_least": least})
    choices, scores = found.choices or [], found.choice_scores
    if not found.id:
        raise BadData(f"{where}: 'id' is empty")
    if found.choice is not None and found.choice not in choices:
        raise BadData(f"{where}: choice {found.choice[:40]!r} is not among the choices")
    if scores is not None and len(scores) != len(choices):
        raise BadData(f"{where}: {len(scores)} choice_scores for {len(choices)} choices")
    if min([*entropy.values(), *(found.token_entropies or [])]) < 0:
        raise BadData(f"{where}: a negative entropy")
    kind = found.entropy_of
    if kind is not None and re.fullmatch(r"top[1-9][0-9]{0,6}", kind) is None:
        raise BadData(f"{where}: entropy_of {kind[:40]!r}: expected top20, say")
    if (kind is None) != (least is None):
        raise BadData(f"{where}: entropy_of and entropy_least are given together")
    if least is not None and not all(0 <= least[name] <= entropy[name] for name in ENTROPIES):
        raise BadData(f"{where}: entropy_least is not between 0 and the entropy")
    if not 0 <= (found.margin or 0) <= 1:
        raise BadData(f"{where}: a margin of {found.margin}")
    if not is_digest(found.model):
        raise BadData(f"{where}: 'model' is not a digest")
    return found
