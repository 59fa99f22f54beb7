"""The profile, version 1: what is known of a frozen model where torch and its checkpoint are not.

`cdcca init` writes it into the device folder, as profile.json: JSON in UTF-8, one object, all keys
always present. With it a device prepares pictures and prompts for a server that runs its model, and
compares the files of another runtime with the checkpoint. It never changes; a folder of cdcca 0.7
or before has none.

    kind "profile", version 1
    model     digest of the frozen model, as in device.json
    tower     digest of the vision tower, as in device.json
    language  the language model, from its config: "type" (transformers' model_type), and numbers,
              null where it has none: "blocks", "width", "heads", "kv_heads", "head_width",
              "inner_width", "vocabulary" (rows of the head), "epsilon" (of its norms),
              "rope_theta"
    norms     {name: [mean, root of the mean square]} of each weight and bias of its norms
    samples   {name: {"shape": [rows, columns], "values": base64 of float16, "rows": R}}: the first
              32 columns of the first R rows of some linears: the attention's first projections of
              block 0 (two heads), and the connector's linears (four rows)
    has_class_token  whether the vision tower has one beside its patches
    prompts   {"vqa": text, "caption": text}: the text around a question, with {prompt} and at most
              one {picture} in their places
    said      {"vqa": text, "caption": text}: the words around a question without its picture and
              the marks of a chat, for a server that puts those in itself
    caption_prompt   the words of a caption that has none of its own
    begin     ids that stand before a prompt of text
    end       ids that end an answer; the first ends a choice
    suppressed       ids that are never chosen
    stub      [text, joint]: a choice is tokenised as text + joint + choice, and the tokens of text
              are cut off
    special   words that are tokens of the template and must stay text in a question
    picture   how a frame is made for the tower, or null where it depends on the frame's size:
              {"crops": whether the shortest side is scaled to "edge" and the centre is cut out,
              "edge": pixels or null, "size": [height, width], "resample": Pillow's number}
    layout    how a frame becomes tokens (`shard.Layout`), where that is the same for every frame,
              or null: {"num_tokens": N, "grid": [...], "marks": text, "fixed": [...]}
"""

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray

from cdcca_cli import files
from cdcca_cli.errors import BadData, MissingInput
from cdcca_cli.formats import records
from cdcca_cli.formats.digest import is_digest
from cdcca_cli.formats.shard import Layout
from cdcca_cli.text import read_json

VERSION = 1
FILE_NAME = "profile.json"
SAMPLE_COLUMNS = 32
_MOST_BYTES = 1 << 24
TASKS = ("vqa", "caption")
RESAMPLING = range(6)
"""Pillow's filters: nearest, lanczos, bilinear, bicubic, box, hamming."""


@dataclass(frozen=True)
class LanguageShape:
    """Sizes of a language model, as its config has them; `type` is transformers' model_type."""

    type: str
    blocks: int
    width: int
    heads: int | None
    kv_heads: int | None
    head_width: int | None
    inner_width: int | None
    vocabulary: int
    epsilon: float | None
    rope_theta: float | None


@dataclass(frozen=True)
class PictureRule:
    """How a frame is made for the vision tower. size: height and width, in pixels."""

    crops: bool
    edge: int | None
    size: tuple[int, int]
    resample: int


@dataclass(frozen=True, eq=False)
class Sample:
    """A corner of a linear's weight. shape: of all of it. values: (R, at most 32) float32."""

    shape: tuple[int, int]
    values: NDArray[np.float32]

    @classmethod
    def of(cls, weight_OI: NDArray[Any], num_rows: int) -> "Sample":
        """Take it from a weight of O outputs and I inputs."""
        corner = weight_OI[:num_rows, :SAMPLE_COLUMNS]
        return cls((weight_OI.shape[0], weight_OI.shape[1]), corner.astype("<f2").astype("<f4"))


@dataclass(frozen=True, eq=False)
class Profile:
    """What is known of a frozen model without it; the module's docstring says what each is."""

    model: str | None
    tower: str
    language: LanguageShape
    norms: Mapping[str, tuple[float, float]]
    samples: Mapping[str, Sample]
    has_class_token: bool
    prompts: Mapping[str, str]
    said: Mapping[str, str]
    caption_prompt: str
    begin: tuple[int, ...]
    end: tuple[int, ...]
    suppressed: tuple[int, ...]
    stub: tuple[str, str]
    special: tuple[str, ...]
    picture: PictureRule | None
    layout: Layout | None
    num_tokens: int | None

    def as_json(self) -> dict[str, Any]:
        """What profile.json holds."""
        found = {name: getattr(self, name) for name in _HINTS if name not in ("kind", "version")}
        layout = None if self.layout is None else asdict(self.layout)
        if layout is not None:
            del layout["boxes"]
        return found | {
            "kind": "profile",
            "version": VERSION,
            "language": asdict(self.language),
            "norms": dict(self.norms),
            "samples": {name: _sample_json(one) for name, one in self.samples.items()},
            "prompts": dict(self.prompts),
            "said": dict(self.said),
            "picture": None if self.picture is None else asdict(self.picture),
            "layout": layout and {"num_tokens": self.num_tokens, **layout},
        }


_LAYOUT = {"num_tokens": int} | get_type_hints(Layout)
del _LAYOUT["boxes"]  # which depend on the frame
_SAMPLE = {"shape": tuple[int, int], "values": str, "rows": int}
_HINTS: dict[str, Any] = {**records.HEAD, **get_type_hints(Profile)}
_HINTS |= {"language": dict, "norms": dict, "samples": dict, "prompts": dict, "said": dict}
_HINTS |= {"picture": dict | None, "layout": dict | None}
del _HINTS["num_tokens"]


def _sample_json(sample: Sample) -> dict[str, Any]:
    values = base64.b64encode(sample.values.astype("<f2").tobytes()).decode()
    return {"shape": list(sample.shape), "rows": len(sample.values), "values": values}


def moments(values: NDArray[Any]) -> tuple[float, float]:
    """The mean and the root of the mean square, as `norms` has them."""
    wide = values.astype(np.float64)
    return float(wide.mean()), float(np.sqrt(np.square(wide).mean()))


def write_profile(folder: Path, profile: Profile) -> None:
    """Write profile.json into a device folder. Raises: CannotWrite."""
    text = records.dump_json(profile.as_json())
    files.atomic_write_bytes(folder / FILE_NAME, f"{text}\n".encode())


def read_profile(folder: Path, model: str | None = None) -> Profile:
    """The profile in a device folder. Args: model: digest that it must be of.

    Raises: MissingInput if there is none; BadData, NewerFormat.
    """
    path = folder / FILE_NAME
    try:
        value = read_json(path, _MOST_BYTES)
    except MissingInput as error:
        raise MissingInput(
            f"{error}: copy it from a folder that cdcca 0.8 or newer made with `init`, of the same "
            "checkpoint and with the same options"
        ) from None
    found = parse_profile(value, str(path))
    if model is not None and found.model != model:
        raise BadData(f"{path}: is of another model than this device folder: copy the right one")
    return found


def parse_profile(value: Any, where: str) -> Profile:
    """The profile that JSON holds, every field checked. Raises: BadData, NewerFormat."""
    if not isinstance(value, dict) or value.get("kind") != "profile":
        raise BadData(f"{where}: is no profile of a model")
    version = records.field(value, "version", int, where)
    records.check_version(version, VERSION, "profile format", where)
    found = records.fields(value, _HINTS, where)
    shape = records.fields(found["language"], get_type_hints(LanguageShape), f"{where}: language")
    if not is_digest(found["tower"]) or not (found["model"] is None or is_digest(found["model"])):
        raise BadData(f"{where}: 'model' or 'tower' is not a digest")
    prompts, said = (
        records.fields(found[name], dict.fromkeys(TASKS, str), f"{where}: {name}")
        for name in ("prompts", "said")
    )
    for text in (*prompts.values(), *said.values()):
        if text.count("{prompt}") != 1 or text.count("{picture}") > 1:
            raise BadData(f"{where}: prompts without one {{prompt}}, or with several {{picture}}")
    if len(found["stub"]) != 2:
        raise BadData(f"{where}: stub: expected two texts")
    if not found["end"]:
        raise BadData(f"{where}: no id ends an answer")
    layout, num_tokens = None, None
    if found["layout"] is not None:
        made = records.fields(found["layout"], _LAYOUT, f"{where}: layout")
        num_tokens = made.pop("num_tokens")
        if not 0 < num_tokens <= 1 << 20:
            raise BadData(f"{where}: a frame of {num_tokens} tokens")
        layout = Layout(**made)
    rule = None
    if found["picture"] is not None:
        hints = get_type_hints(PictureRule)
        rule = PictureRule(**records.fields(found["picture"], hints, f"{where}: picture"))
        if len(rule.size) != 2 or not all(
            0 < side <= 1 << 14 for side in (*rule.size, rule.edge or 1)
        ):
            raise BadData(f"{where}: a picture of a size that cannot be")
        if rule.crops == (rule.edge is None) or rule.resample not in RESAMPLING:
            raise BadData(f"{where}: a picture with an edge, or resampling, that cannot be")
    del found["kind"], found["version"]
    return Profile(
        **{
            **found,
            "language": LanguageShape(**shape),
            "norms": {name: _pair(pair, where) for name, pair in found["norms"].items()},
            "samples": {name: _sample(one, where) for name, one in found["samples"].items()},
            "prompts": prompts,
            "said": said,
            "picture": rule,
            "layout": layout,
            "num_tokens": num_tokens,
        }
    )


def _pair(value: Any, where: str) -> tuple[float, float]:
    pair = {"pair": tuple[float, ...]}
    found = records.fields({"pair": value}, pair, f"{where}: norms")["pair"]
    if len(found) != 2:
        raise BadData(f"{where}: norms: expected a mean and a root of the mean square")
    return found


def _sample(value: Any, where: str) -> Sample:
    found = records.fields(value, _SAMPLE, f"{where}: samples")
    rows, shape = found["rows"], found["shape"]
    try:
        data = base64.b64decode(found["values"], validate=True)
    except ValueError:
        data = b""
    columns = min(shape[-1], SAMPLE_COLUMNS) if len(shape) == 2 else 0
    if columns <= 0 or not 0 < rows <= shape[0] or len(data) != 2 * rows * columns:
        raise BadData(f"{where}: a sample of other sizes than it says")
    values = np.frombuffer(data, "<f2").reshape(rows, columns).astype(np.float32)
    return Sample(shape, values)
