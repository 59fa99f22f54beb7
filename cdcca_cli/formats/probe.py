"""The probe, version 1: what an exported model answers, as cdcca computes it.

The effect check of an export compares a server with it. JSON: the value of "probe" in export.json,
or a file of its own in UTF-8. All keys are always present.

    kind "probe", version 1
    model     digest of the frozen model, as in device.json
    overlay   digest of the overlay that is exported
    arrives   digest of those of its tensors that arrive; the states below have no others
    end       ids that end an answer
    questions list of objects:
        "prompt"   what is asked, without the family's template
        "ids"      all tokens of the prompt where there is no picture, else null
        "picture"  null or {"seed", "size": [height, width]}: `export.probe.picture` makes it
        "next"     {state: {"ids": [...], "logp": [...]}}: the likeliest next tokens, first the
                   likeliest, and their log-probabilities in nats
        "answer"   {"ids": [...], "nats": {state: number}}: plausible tokens that the export makes
                   much likelier, and the mean over them of -log p

    states    "start": nothing is exported. "unscaled": all that arrives but the LoRA of the
              language model, as a server has it at scale 0. "whole": all that arrives.

The computation is in float32, of weights that are not quantised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdcca_cli import files
from cdcca_cli.errors import BadData, WrongBase
from cdcca_cli.formats import records
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import is_digest, short
from cdcca_cli.text import read_json

VERSION = 1
FILE_NAME = "probe.json"
STATES = ("start", "unscaled", "whole")
_MOST_BYTES = 1 << 24
_MOST_SIDE = 1 << 14


@dataclass(frozen=True)
class Likeliest:
    """Next tokens and their log-probabilities in nats, the likeliest first."""

    ids: tuple[int, ...]
    logp: tuple[float, ...]


@dataclass(frozen=True)
class Question:
    """One question of a probe; the module's docstring says what each is."""

    prompt: str
    ids: tuple[int, ...] | None
    picture: tuple[int, int, int] | None  # seed, height, width
    next: Mapping[str, Likeliest]
    answer: tuple[int, ...]
    nats: Mapping[str, float]


@dataclass(frozen=True)
class Probe:
    """What an exported model answers."""

    model: str | None
    overlay: str
    arrives: str
    end: tuple[int, ...]
    questions: tuple[Question, ...]

    def as_json(self) -> dict[str, Any]:
        """The object of the module's docstring."""
        return {
            "kind": "probe",
            "version": VERSION,
            "model": self.model,
            "overlay": self.overlay,
            "arrives": self.arrives,
            "end": list(self.end),
            "questions": [_question_json(one) for one in self.questions],
        }

    def check(self, device: Device, arrives: str | None = None) -> None:
        """Refuse a probe of another model or overlay. Raises: WrongBase."""
        if self.model != device.model:
            raise WrongBase("the probe is of another model than this device folder")
        if self.overlay != device.digest:
            raise WrongBase(
                f"the probe is of overlay {short(self.overlay)}, this device is at "
                f"{short(device.digest)}: make it again from a folder at that sequence"
            )
        if arrives not in (None, self.arrives):
            raise WrongBase(
                "the probe is of an export in which other tensors arrive: make it again with the "
                "same `drop`"
            )


def _question_json(one: Question) -> dict[str, Any]:
    picture = one.picture and {"seed": one.picture[0], "size": list(one.picture[1:])}
    return {
        "prompt": one.prompt,
        "ids": None if one.ids is None else list(one.ids),
        "picture": picture,
        "next": {
            state: {"ids": list(found.ids), "logp": [round(value, 6) for value in found.logp]}
            for state, found in one.next.items()
        },
        "answer": {
            "ids": list(one.answer),
            "nats": {state: round(value, 6) for state, value in one.nats.items()},
        },
    }


# ---------------------------------------------------------------- reading and writing


def write_probe(folder: Path, probe: Probe) -> None:
    """Write probe.json into a folder. Raises: CannotWrite."""
    text = records.dump_json(probe.as_json())
    files.atomic_write_bytes(folder / FILE_NAME, f"{text}\n".encode())


def read_probe(path: Path) -> Probe:
    """The probe in probe.json or export.json, or in a folder that has one of them.

    Raises: MissingInput, BadData, NewerFormat.
    """
    if path.is_dir():
        path = path / (FILE_NAME if (path / FILE_NAME).exists() else "export.json")
    value = read_json(path, _MOST_BYTES)
    if isinstance(value, dict) and value.get("kind") == "export":
        value = value.get("probe")
        if value is None:
            raise BadData(f"{path}: this export has no probe: name one made where torch is")
    return parse_probe(value, str(path))


_QUESTION: dict[str, Any] = {"prompt": str, "ids": list[int] | None, "picture": dict | None}
_QUESTION |= {"next": dict, "answer": dict}
_HINTS = records.HEAD | {"model": str | None, "overlay": str, "arrives": str}
_HINTS |= {"end": tuple[int, ...], "questions": list[dict]}


def parse_probe(value: Any, where: str) -> Probe:
    """The probe that JSON holds, every field checked. Raises: BadData, NewerFormat."""
    if not isinstance(value, dict) or value.get("kind") != "probe":
        raise BadData(f"{where}: is no probe of cdcca")
    version = records.field(value, "version", int, where)
    records.check_version(version, VERSION, "probe format", where)
    found = records.fields(value, _HINTS, where)
    digests = [found["overlay"], found["arrives"], *([found["model"]] if found["model"] else [])]
    if not all(map(is_digest, digests)):
        raise BadData(f"{where}: 'model', 'overlay' or 'arrives' is not a digest")
    _check_ids(found["end"], where)
    if not found["end"]:
        raise BadData(f"{where}: no id ends an answer")
    questions = tuple(_question(one, where) for one in found["questions"])
    if not questions:
        raise BadData(f"{where}: a probe without questions")
    del found["kind"], found["version"]
    return Probe(**(found | {"questions": questions}))


def _question(value: Any, where: str) -> Question:
    found = records.fields(value, _QUESTION, f"{where}: questions")
    ids, picture = found["ids"], None
    if found["picture"] is not None:
        hints = {"seed": int, "size": tuple[int, ...]}
        made = records.fields(found["picture"], hints, f"{where}: picture")
        if len(made["size"]) != 2 or not all(0 < side <= _MOST_SIDE for side in made["size"]):
            raise BadData(f"{where}: a picture of a size that cannot be")
        if not 0 <= made["seed"] < 1 << 32:
            raise BadData(f"{where}: a seed that cannot be")
        picture = (made["seed"], *made["size"])
    if (ids is None) == (picture is None):
        raise BadData(f"{where}: a question has either ids or a picture")
    states = records.fields(found["next"], dict.fromkeys(STATES, dict), f"{where}: next")
    answer = records.fields(found["answer"], {"ids": tuple[int, ...], "nats": dict}, where)
    nats = records.fields(answer["nats"], dict.fromkeys(STATES, float), f"{where}: nats")
    _check_ids([*(ids or ()), *answer["ids"]], where)
    if ids == [] or not answer["ids"]:
        raise BadData(f"{where}: a question without tokens, or without an answer's")
    return Question(
        prompt=found["prompt"],
        ids=None if ids is None else tuple(ids),
        picture=picture,
        next={state: _likeliest(one, where) for state, one in states.items()},
        answer=answer["ids"],
        nats=nats,
    )


def _likeliest(value: Any, where: str) -> Likeliest:
    hints = {"ids": tuple[int, ...], "logp": tuple[float, ...]}
    found = Likeliest(**records.fields(value, hints, f"{where}: next"))
    _check_ids(found.ids, where)
    if not found.ids or len(found.ids) != len(found.logp) or len({*found.ids}) != len(found.ids):
        raise BadData(f"{where}: next tokens without one log-probability each")
    return found


def _check_ids(ids: Sequence[int], where: str) -> None:
    if not all(0 <= one < 1 << 31 for one in ids):
        raise BadData(f"{where}: an id that is none")
