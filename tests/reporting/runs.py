"""Run folders as `cdcca loop` leaves them, made quickly: the same numbers every time.

`words` stands in every place where a run's files hold a text that somebody else wrote.
"""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cdcca_cli.formats import shard_stream
from cdcca_cli.formats.adaptation import Adaptation, write_adaptation
from cdcca_cli.formats.history import write_history
from cdcca_cli.formats.predictions import ENTROPIES, Prediction, encode_line
from cdcca_cli.formats.shard import Coding, Layout, Question, Shard
from cdcca_cli.formats.update import Update, write_update
from tests.downlink import worlds

MODEL = "sha256:" + "7" * 64
CHOICES = ["cat", "dog"]
HELD_OUT = {
    "num_asks": 30,
    "num_frames": 20,
    "verdict": "better",
    "cross_entropy": {"before": 2.5, "after": 1.25},
    "gain": {"mean": 1.25, "low": 0.75, "high": 1.75, "level": 0.95},
    "agreement": {"before": 0.5, "after": 0.75},
}
DRIFT = {"where": "anchors", "num_asks": 9, "before": 0.0, "after": 0.0125, "share": 1.0}


def image(number: int, words: str = "") -> str:
    """The name of a frame's file; as hostile as a file system allows."""
    return f"\"'><script>{number:05}<!-- &lt;.png" if words else f"{number:05}.png"


def frames(folder: Path, count: int, words: str = "") -> Path:
    """A labelled folder: even frames show a dog, odd ones a cat."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        name = image(number, words)
        Image.new("RGB", (48, 32), (number * 40 % 256, 90, 160)).save(folder / name)
        question = {
            "id": f"q{number}",
            "image": name,
            "prompt": f"Which animal? {words}".strip(),
            "choices": [*CHOICES, *([words] if words else [])],
            "correct_choice_idx": (number + 1) % 2,
            "domain": words or "fog",
        }
        lines.append(json.dumps(question))
    (folder / "frames.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def prediction(number: int, choice: str, entropy: float, words: str = "") -> Prediction:
    return Prediction(
        id=f"q{number}",
        image=image(number, words),
        task="vqa",
        prompt=f"Which animal? {words}".strip(),
        answer=f"{choice} {words}".strip(),
        choice=choice,
        choices=[*CHOICES, *([words] if words else [])],
        choice_scores=None,
        entropy=dict.fromkeys(ENTROPIES, entropy),
        token_entropies=None,
        model=MODEL,
        domain=words or "fog",
    )


def answers(path: Path, count: int, right: int, words: str = "", entropy: float = 0.5) -> None:
    """Predictions of which the first `right` are right; entropies rise from 0 to `entropy`."""
    with path.open("w") as out:
        for number in range(count):
            truth = CHOICES[(number + 1) % 2]
            wrong = words or CHOICES[number % 2]
            chosen = truth if number < right else wrong
            level = entropy * number / max(count - 1, 1)
            out.write(encode_line(prediction(number, chosen, level, words)))


def shard(number: int, words: str = "", time: float | None = None) -> Shard:
    return Shard(
        frame=image(number, words),
        image=image(number, words),
        domain=words or "fog",
        tokens=np.full((4, 3), number, np.float32),
        positions=np.arange(4, dtype=np.int32),
        num_tokens=4,
        tower=worlds.SETTINGS.tower,
        questions=[Question(f"q{number}", words or "Which animal?", "vqa", CHOICES, 0.5)],
        scores=np.arange(4, dtype=np.float32),
        coding=Coding("float16"),
        layout=Layout((2, 2)),
        time=time,
    )


def shards(path: Path, count: int, words: str = "", begin: float | None = None) -> None:
    with path.open("wb") as out, shard_stream.writer(out) as write:
        for number in range(count):
            write(shard(number, words, None if begin is None else begin + number))


def steps(path: Path, count: int, words: str = "") -> None:
    """A log of training: a loss that falls from 2 towards 0."""
    lines: list[dict[str, Any]] = [
        {"what": "begin", "method": words or "kd", "terms": ["ce"], "seed": 0}
    ]
    for number in range(1, count + 1):
        line = {"what": "step", "step": number, "of": count, "epoch": 1, "lr": 1e-3}
        lines.append({**line, "loss": 2 / number, words or "ce": 2 / number, "seconds": 1.0})
    lines.append({"what": "held_out", "epoch": 1, "cross_entropy": 1.25, "agreement": 0.75})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def adaptation(path: Path, words: str = "") -> None:
    report = {"teacher": words or "the teacher", "num_trained": 80}
    report |= {"held_out": {**HELD_OUT, "verdict": words or "better"}, "drift": DRIFT}
    overlay = {"norm.weight": np.ones(4, np.float32)}
    with path.open("wb") as out:
        write_adaptation(out, Adaptation(overlay, MODEL, 0, words or "kd", 0, report))


def update(folder: Path) -> Update:
    """A sound update, of the device in a folder; it is made once."""
    device = worlds.device(folder)
    return worlds.next_update(device)


def history(count: int, rounds: int, words: str = "") -> dict[str, Any]:
    """A history with the scores of `heldout` after each round and `source` at both ends."""
    entries = [
        {
            "round": number,
            "frames": count,
            "questions": count,
            "uplink_bytes": 1000 + number,
            "downlink_bytes": 200 + number,
            "seconds": 12.5,
            "digest": MODEL,
            "held_out": HELD_OUT,
            "drift": DRIFT,
        }
        for number in range(1, rounds + 1)
    ]

    def point(value: float) -> dict[str, Any]:
        return {"mc": {"value": value, "low": value - 4.25, "high": value + 4.5, "n": count}}

    ends = [0, rounds] if rounds else [0]
    return {
        "rounds": entries,
        "scores": {
            words or "heldout": [point(50.25 + number) for number in range(rounds + 1)],
            "source": [point(90.5) for _ in ends],
        },
        "scored_after": {words or "heldout": list(range(rounds + 1)), "source": ends},
        "gains": {words or "heldout": point(float(rounds))},
        "settings": {"distill": {"method": words or "kd", "epochs": 5, words or "x": [words]}},
        "sources": {"frames": words or "frames/", "teacher": words or "t"},
        "parameters": 2_000_000,
        "versions": {"cdcca": words or "0.10.0"},
    }


def run(
    folder: Path, count: int = 20, rounds: int = 2, words: str = "", *, has_history: bool = True
) -> Path:
    """A whole run. Of the answers to `heldout` half are right before, and one more each round."""
    (folder / "start").mkdir(parents=True)
    answers(folder / "start" / "heldout.jsonl", count, count // 2, words)
    coded = BytesIO()
    write_update(coded, update(folder / "device"))
    for number in range(1, rounds + 1):
        here = folder / f"round-{number}"
        here.mkdir()
        answers(here / "predictions.jsonl", count, count // 2, words, 1 / number)
        answers(here / "heldout.jsonl", count, count // 2 + number, words)
        shards(here / "uplink.tokens", count, words, 1_700_000_000.0 + 1000 * number)
        steps(here / "steps.jsonl", 100, words)
        adaptation(here / "adaptation.safetensors", words)
        (here / "update.cdcca").write_bytes(coded.getvalue())
        verdict = {"device": words or "device", "status": "refused", "sequence": number}
        verdict |= {"digest": words or MODEL, "measured": {"metric": words or "mc"}}
        verdict["measured"] |= {"before": 60.5, "after": 55.25}  # type: ignore[operator, index]
        (here / "apply.jsonl").write_text(json.dumps(verdict) + "\n")
    if has_history:
        write_history(folder, history(count, rounds, words))
    return folder
