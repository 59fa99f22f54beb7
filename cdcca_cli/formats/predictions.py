"""Predictions, version 1: what the device saw and how sure it was, as JSON lines in UTF-8.

One object a line, one line a prompt, each line ended by a newline; empty lines are skipped. Keys:

    v               1
    id              string, not empty: the ask's id
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

All numbers are finite and entropies >= 0; choice is one of choices; choice_scores is as long
as choices. A writer sorts the keys; a reader accepts any order, takes an absent key for null, and
skips keys it does not know, so that a line may carry a person's own notes through `jq`.

JSON lines can be cut at any line (`head -3` gives predictions), so this format has no end mark
and a file cut between two lines cannot be told from a shorter one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TextIO, cast

from cdcca_cli.errors import BadData, NewerFormat
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


def encode_line(prediction: Prediction) -> str:
    """One line, newline included. BadData if it is no sound prediction."""
    try:
        line = records.dump_json({"v": VERSION, **asdict(prediction)})
    except ValueError:
        raise BadData(f"ask {prediction.id}: the model gave numbers that are not finite") from None
    decode_line(line, f"ask {prediction.id}")  # what we would not read, we do not write
    return line + "\n"


def write_predictions(out: TextIO, predictions: Iterable[Prediction]) -> int:
    """Write them as they come; returns how many."""
    count = 0
    for prediction in predictions:
        out.write(encode_line(prediction))
        count += 1
    return count


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
    if version > VERSION:
        raise NewerFormat(
            f"{where}: prediction format version {version}; this cdcca reads up to {VERSION}: "
            "upgrade it"
        )
    if version < 1:
        raise BadData(f"{where}: version {version}; they begin at 1")
    name = records.field(row, "id", str, where)
    task = records.field(row, "task", str, where)
    choice = records.field(row, "choice", str, where, optional=True)
    choices = records.list_of(row, "choices", str, where, optional=True)
    scores = records.list_of(row, "choice_scores", float, where, optional=True)
    model = records.field(row, "model", str, where)
    entropies = records.field(row, "entropy", dict, where)
    entropy = {key: records.field(entropies, key, float, f"{where}: entropy") for key in ENTROPIES}
    tokens = records.list_of(row, "token_entropies", float, where, optional=True)
    if not name:
        raise BadData(f"{where}: 'id' is empty")
    if task not in ("vqa", "caption"):
        raise BadData(f"{where}: task {task[:40]!r}; expected vqa or caption")
    if choice is not None and choice not in (choices or []):
        raise BadData(f"{where}: choice {choice[:40]!r} is not among the choices")
    if scores is not None and len(scores) != len(choices or []):
        raise BadData(f"{where}: {len(scores)} choice_scores for {len(choices or [])} choices")
    if min([*entropy.values(), *(tokens or [])]) < 0:
        raise BadData(f"{where}: a negative entropy")
    if not is_digest(model):
        raise BadData(f"{where}: 'model' is not a digest")
    return Prediction(
        id=name,
        image=records.field(row, "image", str, where),
        task=cast(Task, task),
        prompt=records.field(row, "prompt", str, where, optional=True),
        answer=records.field(row, "answer", str, where),
        choice=choice,
        choices=choices,
        choice_scores=scores,
        entropy=entropy,
        token_entropies=tokens,
        model=model,
        domain=records.field(row, "domain", str, where, optional=True),
    )
