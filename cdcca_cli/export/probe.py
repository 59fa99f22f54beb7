"""What the exported model answers, by cdcca's own computation: the effect check compares with it.

A probe, version 1, is JSON: the value of "probe" in export.json, or a file of its own in UTF-8. All
keys are always present.

    kind "probe", version 1
    model     digest of the frozen model, as in device.json
    overlay   digest of the overlay that is exported
    arrives   digest of those of its tensors that arrive; the states below have no others
    begin     ids that stand before a prompt with a picture; `ids` have them already
    end       ids that end an answer
    questions list of objects:
        "prompt"   text, with {picture} where the picture is
        "ids"      its tokens where there is no picture, else null
        "picture"  null or {"seed", "size": [height, width]}: `picture` makes it
        "next"     {state: {"ids": [...], "logp": [...]}}: the likeliest next tokens, first the
                   likeliest, and their log-probabilities in nats
        "answer"   {"ids": [...], "nats": {state: number}}: the greedy answer of the state "whole",
                   and the mean over its tokens of -log p

    states    "start": nothing is exported. "unscaled": all that arrives but the LoRA of the
              language model, as a server has it at scale 0. "whole": all that arrives.

The computation is in float32, of weights that are not quantised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cdcca_cli import files
from cdcca_cli.errors import BadData, Unavailable, WrongBase
from cdcca_cli.export import placing
from cdcca_cli.formats import records
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import is_digest, overlay_digest, short
from cdcca_cli.formats.names import LORA_B
from cdcca_cli.formats.overlay import Overlay
from cdcca_cli.text import read_json

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from cdcca_cli.models import LoadedModel

VERSION = 1
FILE_NAME = "probe.json"
STATES = ("start", "unscaled", "whole")
TEXTS = ("What is the capital of France?", "How many legs does a spider have?", "Name a colour.")
ABOUT_PICTURES = ("What is in the picture?", "What colour is it?")
NUM_NEXT, NUM_ANSWER = 64, 8
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
    begin: tuple[int, ...]
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
            "begin": list(self.begin),
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
    """The probe in a file of its own or in export.json. MissingInput, BadData, NewerFormat."""
    value = read_json(path, _MOST_BYTES)
    if isinstance(value, dict) and value.get("kind") == "export":
        value = value.get("probe")
        if value is None:
            raise BadData(f"{path}: this export has no probe: name one made where torch is")
    return parse_probe(value, str(path))


_QUESTION: dict[str, Any] = {"prompt": str, "ids": list[int] | None, "picture": dict | None}
_QUESTION |= {"next": dict, "answer": dict}
_HINTS = records.HEAD | {"model": str | None, "overlay": str, "arrives": str}
_HINTS |= {"begin": tuple[int, ...], "end": tuple[int, ...], "questions": list[dict]}


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
    _check_ids([*found["begin"], *found["end"]], where)
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
    if picture is not None and found["prompt"].count("{picture}") != 1:
        raise BadData(f"{where}: a prompt without the place of its picture")
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


# ---------------------------------------------------------------- making


def picture(seed: int, height: int, width: int) -> "Image":
    """A picture of 8 x 8 coloured squares with finer stripes, the same on every machine."""
    from PIL import Image

    raw = np.random.Philox(key=seed).random_raw(8 * 8 * 3).reshape(8, 8, 3) % np.uint64(224)
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    squares = raw[rows * 8 // height, columns * 8 // width].astype(np.int64)
    stripes = (rows * 3 + columns * 5) % 32
    return Image.fromarray((squares + stripes[..., None]).astype(np.uint8))


def encoded(image: "Image") -> bytes:
    """A picture as a PNG file."""
    out = BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def arrives(overlay: Overlay, carried: Sequence[str] | set[str]) -> str:
    """The digest of the tensors that arrive."""
    return overlay_digest({name: overlay[name] for name in carried})


def make(device: Device, overlay: Overlay, carried: set[str], compute: str = "auto") -> Probe:
    """Ask cdcca's own model, of which the tensors `carried` have changed.

    Raises: as `models.load`; Unavailable without torch, and for families that have no probe.
    """
    try:
        from cdcca_cli.models.loading import load
    except ModuleNotFoundError as error:
        raise Unavailable(f"a probe needs {error.name}: make it where the mirror is") from None
    made = device.settings
    model = load(
        made.checkpoint,
        compute=compute,
        dtype="float32",
        qformer_layers=made.qformer_layers,
        revision=made.revision,
        template=made.template,
    )
    if model.row.kind == "qformer":
        raise Unavailable(f"{made.family}: no runtime but transformers has this family")
    start = model.initial_overlay(made.groups, made.lora.rank, made.lora.seed)
    whole = start | {name: overlay[name] for name in carried}
    groups = placing.groups_of(device, whole)
    unscaled = {
        name: np.zeros_like(value)
        if name.endswith(LORA_B) and groups[name] == "lora.language"
        else value
        for name, value in whole.items()
    }
    asked = [*_of_text(model), *_of_pictures(model, device)]
    answers: list[list[int]] = []
    found: list[dict[str, tuple[Likeliest, float]]] = [{} for _ in asked]
    for state, values in (("whole", whole), ("unscaled", unscaled), ("start", start)):
        model.install_overlay(values, made.lora.alpha)
        for place, ask in enumerate(asked):
            if state == "whole":
                answers.append(_greedy(model, ask))
            logp_AV = _logp(model, ask, answers[place])
            top = logp_AV[0].topk(min(NUM_NEXT, logp_AV.shape[1]))
            likeliest = Likeliest(tuple(top.indices.tolist()), tuple(top.values.tolist()))
            picked = logp_AV[range(len(answers[place])), answers[place]]
            found[place][state] = likeliest, -float(picked.mean())
    questions = [
        Question(
            prompt=ask.prompt,
            ids=ask.ids,
            picture=ask.picture,
            next={state: one[state][0] for state in STATES},
            answer=tuple(answer),
            nats={state: one[state][1] for state in STATES},
        )
        for ask, answer, one in zip(asked, answers, found, strict=True)
    ]
    return Probe(
        model=device.model,
        overlay=overlay_digest(overlay),
        arrives=arrives(overlay, carried),
        begin=tuple(model.begin_ids),
        end=tuple(model.end_ids),
        questions=tuple(questions),
    )


@dataclass(frozen=True)
class _Ask:
    prompt: str
    ids: tuple[int, ...] | None
    picture: tuple[int, int, int] | None
    formatted: str = ""


def _of_text(model: "LoadedModel") -> list[_Ask]:
    """Questions in the family's template, with nothing in place of the picture."""
    from cdcca_cli.models.prompts import Prompt

    template = model.templates["vqa"]
    if model.preparer.mark:
        template = template.replace(model.preparer.mark, "", 1)
    prompts = [Prompt.of(template, text) for text in TEXTS]
    rows = model.plain_tokenizer(prompts, with_ends=model.templates.adds_ends)
    return [
        _Ask(prompt, tuple(ids), None)
        for prompt, ids in zip(prompts, rows, strict=True)
        if model.place_id not in ids
    ]


def _of_pictures(model: "LoadedModel", device: Device) -> list[_Ask]:
    """Questions about pictures of the tower's size, where every frame is one such picture."""
    profile = device.profile()
    if profile.picture is None or "{picture}" not in profile.prompts["vqa"]:
        return []
    height, width = profile.picture.size
    return [
        _Ask(
            profile.prompts["vqa"].replace("{prompt}", text),
            None,
            (seed, height, width),
            model.format_prompt(text, "vqa"),
        )
        for seed, text in enumerate(ABOUT_PICTURES)
    ]


def _logp(model: "LoadedModel", ask: _Ask, answer: Sequence[int]) -> "Tensor":
    """Log-probabilities (A, V) of the tokens of an answer."""
    import torch

    with torch.no_grad():
        if ask.picture is None:
            assert ask.ids is not None
            ids = torch.tensor([[*ask.ids, *answer[:-1]]], device=model.device)
            logits = model.module(input_ids=ids).logits[0, len(ask.ids) - 1 :]
        else:
            seen = model.see(model.prepare([picture(*ask.picture)]))
            spliced = model.read(seen, [ask.formatted])
            logits = model.forward(spliced, torch.tensor([answer])).logits[0]
    found: Tensor = logits.double().log_softmax(-1).cpu()
    return found


def _greedy(model: "LoadedModel", ask: _Ask) -> list[int]:
    """The likeliest tokens, up to an end token, at most NUM_ANSWER."""
    suppressed = list(model.language.suppressed)
    answer: list[int] = []
    while len(answer) < NUM_ANSWER and (not answer or answer[-1] not in model.end_ids):
        logp_V = _logp(model, ask, [*answer, 0])[-1]
        logp_V[suppressed] = -np.inf
        answer.append(int(logp_V.argmax()))
    return answer
