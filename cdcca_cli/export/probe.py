"""A probe (`formats.probe`), made: what cdcca's own model answers with what an export carries.

In float32, of the checkpoint as it is, not quantised. `write` is the target `probe`, for a mirror:
an export on a device without torch takes the file that it makes.
"""

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cdcca_cli import streams
from cdcca_cli.errors import CdccaError, Unavailable
from cdcca_cli.export import placing, takes
from cdcca_cli.export.settings import ExportSettings
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.names import LORA_B
from cdcca_cli.formats.overlay import Overlay
from cdcca_cli.formats.probe import STATES, Likeliest, Probe, Question, read_probe, write_probe

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from cdcca_cli.models import LoadedModel, Seen

TEXTS = ("What is the capital of France?", "How many legs does a spider have?", "Name a colour.")
ABOUT_PICTURES = ("What is in the picture?", "What colour is it?")
NUM_NEXT, NUM_ANSWER = 64, 4
_PLAUSIBLE = 4.0
"""How much less likely than the likeliest token one of an answer is at most, in nats."""


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


def arrives(overlay: Overlay, carried: Iterable[str]) -> str:
    """The digest of the tensors that arrive."""
    return overlay_digest({name: overlay[name] for name in carried})


def write(
    folder: Path, device: Device, overlay: Overlay, settings: ExportSettings
) -> dict[str, Any]:
    """The target probe: answers of a mirror, for an export to gguf where no torch is.

    Raises: SettingError for a change that llama.cpp does not take, unless its group is dropped; as
    `make`.
    """
    carried = takes.carried(device, overlay)
    groups = placing.groups_of(device, overlay)
    if "lora.connector" in settings.dropped:  # an export without mmproj
        carried -= {name for name in overlay if groups[name] == "lora.connector"}
    dropped = placing.require_placed(device, overlay, carried, settings.dropped, {})
    write_probe(folder, make(device, overlay, carried))
    return {"placed": placing.placed(device, overlay, carried), "dropped": dropped}


def recorded(
    device: Device, overlay: Overlay, carried: set[str], wanted: str
) -> dict[str, Any] | None:
    """The probe that an export records.

    Args: wanted: auto (made where torch and the checkpoint are), made, none, or a file's name.
    Raises: WrongBase for a probe of something else; as `read_probe` and `make`.
    """
    if wanted == "none":
        return None
    if wanted not in ("auto", "made"):
        found = read_probe(Path(wanted))
        found.check(device, arrives(overlay, carried))
        return found.as_json()
    if wanted == "auto" and (reason := why_not(device)):
        streams.message(f"no probe for an effect check: {reason}")
        return None
    try:
        return make(device, overlay, carried).as_json()
    except CdccaError as error:
        if wanted == "made":
            raise
        streams.message(f"no probe for an effect check: {error}")
        return None


def why_not(device: Device) -> str:
    """Why no probe can be made here, without a look at the hub; empty if one can."""
    checkpoint = device.settings.checkpoint
    if importlib.util.find_spec("torch") is None:
        return "torch is not here"
    is_here = checkpoint.startswith("shipped:") or Path(checkpoint).is_dir()
    return "" if is_here else f"the checkpoint {checkpoint} is not here"


def load_model(device: Device) -> "LoadedModel":
    """The checkpoint in float32, not quantised. Raises: as `models.load`; Unavailable."""
    try:
        from cdcca_cli.models.loading import load
    except ModuleNotFoundError as error:
        raise Unavailable(f"a probe needs {error.name}: make it where the mirror is") from None
    made = device.settings
    return load(
        made.checkpoint,
        compute="auto",
        dtype="float32",
        qformer_layers=made.qformer_layers,
        revision=made.revision,
        template=made.template,
    )


def unscaled(device: Device, overlay: Overlay) -> dict[str, NDArray[np.float32]]:
    """The overlay as a server has it at scale 0: without the LoRA of the language model."""
    groups = placing.groups_of(device, overlay)
    return {
        name: np.zeros_like(value)
        if name.endswith(LORA_B) and groups[name] == "lora.language"
        else value
        for name, value in overlay.items()
    }


def make(device: Device, overlay: Overlay, carried: set[str]) -> Probe:
    """Ask cdcca's own model, of which the tensors `carried` have changed.

    Raises: as `load_model`; Unavailable for families that only transformers has.
    """
    made, model = device.settings, load_model(device)
    if model.row.kind == "qformer":
        raise Unavailable(f"{made.family}: no runtime but transformers has this family")
    start = model.initial_overlay(made.groups, made.lora.rank, made.lora.seed)
    whole = start | {name: overlay[name] for name in carried}
    states = {"start": start, "unscaled": unscaled(device, whole), "whole": whole}
    asked = [*_of_text(model), *_of_pictures(model, device)]
    seen = [_seen(model, ask) for ask in asked]
    answers: list[list[int]] = [[] for _ in asked]
    steps: list[dict[str, list[Tensor]]] = []
    for step in range(NUM_ANSWER):
        rows: dict[str, list[Tensor]] = {}
        for state, values in states.items():
            model.install_overlay(values, made.lora.alpha)
            rows[state] = [_logp(model, *one) for one in zip(asked, seen, answers, strict=True)]
        for place, answer in enumerate(answers):
            against = ("unscaled", "start")[step % 2]
            answer.append(_chosen(model, rows["whole"][place], rows[against][place]))
        steps.append(rows)
    questions = []
    for place, (ask, answer) in enumerate(zip(asked, answers, strict=True)):
        pairs = [*zip(steps, answer, strict=True)]
        found = Question(
            prompt=ask.prompt,
            ids=ask.ids,
            picture=ask.picture,
            next={state: _likeliest(steps[0][state][place]) for state in STATES},
            answer=tuple(answer),
            nats={
                state: -float(np.mean([rows[state][place][one] for rows, one in pairs]))
                for state in STATES
            },
        )
        questions.append(found)
    return Probe(
        model=device.model,
        overlay=overlay_digest(overlay),
        arrives=arrives(overlay, carried),
        end=tuple(model.end_ids),
        questions=tuple(questions),
    )


@dataclass(frozen=True)
class _Ask:
    prompt: str
    ids: tuple[int, ...] | None
    picture: tuple[int, int, int] | None


def _of_text(model: "LoadedModel") -> list[_Ask]:
    """Questions in the family's template, with nothing in place of the picture."""
    from cdcca_cli.models.prompts import Prompt

    template = model.templates["vqa"]
    if model.preparer.mark:
        template = template.replace(model.preparer.mark, "", 1)
    prompts = [Prompt.of(template, text) for text in TEXTS]
    rows = model.plain_tokenizer(prompts, with_ends=model.templates.adds_ends)
    return [
        _Ask(text, tuple(ids), None)
        for text, ids in zip(TEXTS, rows, strict=True)
        if model.place_id not in ids
    ]


def _of_pictures(model: "LoadedModel", device: Device) -> list[_Ask]:
    """Questions about pictures of the tower's size, where every frame is one such picture."""
    rule = device.profile().picture
    if rule is None:
        return []
    return [_Ask(text, None, (seed, *rule.size)) for seed, text in enumerate(ABOUT_PICTURES)]


def _seen(model: "LoadedModel", ask: _Ask) -> "list[Seen]":
    return [] if ask.picture is None else model.see(model.prepare([picture(*ask.picture)]))


def _logp(model: "LoadedModel", ask: _Ask, seen: "list[Seen]", answer: Sequence[int]) -> "Tensor":
    """Log-probabilities (V,) of the token behind an answer's beginning."""
    import torch

    with torch.no_grad():
        if ask.ids is not None:
            ids = torch.tensor([[*ask.ids, *answer]], device=model.device)
            logits_V = model.module(input_ids=ids).logits[0, -1]
        else:
            spliced = model.read(seen, [model.format_prompt(ask.prompt, "vqa")])
            logits_V = model.forward(spliced, torch.tensor([[*answer, 0]])).logits[0, -1]
    found: Tensor = logits_V.double().log_softmax(-1).cpu()
    return found


def _likeliest(logp_V: "Tensor") -> Likeliest:
    top = logp_V.topk(min(NUM_NEXT, len(logp_V)))
    return Likeliest(tuple(top.indices.tolist()), tuple(top.values.tolist()))


def _chosen(model: "LoadedModel", whole_V: "Tensor", other_V: "Tensor") -> int:
    """The token that the export makes likelier by most, among those that it finds plausible.

    So the gain is large against what quantisation does, whatever was trained. No end tokens, and no
    parts of a character, which llama-server does not score.
    """
    never = {*model.language.suppressed, *model.end_ids}
    likely = (whole_V >= whole_V.max() - _PLAUSIBLE).nonzero()[:, 0].tolist()
    gains_V = whole_V - other_V
    ranked = sorted(likely, key=lambda one: float(gains_V[one]), reverse=True)
    others = whole_V.argsort(descending=True).tolist()  # for whom none of them is text
    found = (one for one in (*ranked, *others) if one not in never)
    return next(one for one in found if "\ufffd" not in model.tokenizer.decode([one]))
