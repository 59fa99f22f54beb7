"""What device.json says, read and checked; `device` specifies it and changes it.

Nothing here writes, and no overlay is read.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from cdcca_cli.errors import BadData, MissingInput, NewerFormat
from cdcca_cli.formats import records
from cdcca_cli.formats.digest import is_digest
from cdcca_cli.formats.trust import Trust, is_key, parse_trust
from cdcca_cli.text import load_json

VERSION = 2
FILE_NAME = "device.json"
GROUPS = ("norm", "bias", "query", "lora")
QUANTIZATIONS = ("none", "int8", "nf4")
_COMMON_KEYS = {
    *("kind", "version", "checkpoint", "revision", "family", "qformer_layers", "quantize"),
    *("groups", "lora", "tower", "current", "highest_sequence"),
}
_KEYS = {1: _COMMON_KEYS | {"previous"}, 2: _COMMON_KEYS | {"model", "kept", "keep", "trust"}}
_FILE = re.compile(r"overlay/(0|[1-9][0-9]{0,15})-[0-9a-f]{16}\.safetensors")

Quantize = Literal["none", "int8", "nf4"]


@dataclass(frozen=True)
class Lora:
    """How the low-rank part starts and scales: delta = alpha / rank * B @ A."""

    rank: int
    alpha: float
    seed: int


@dataclass(frozen=True)
class DeviceSettings:
    """What `cdcca init` decided, for ever."""

    checkpoint: str
    family: str
    tower: str
    lora: Lora
    groups: tuple[str, ...] = GROUPS
    qformer_layers: int | None = None
    quantize: Quantize = "none"
    revision: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class Slot:
    """One overlay of the folder; `signed_by` are the trusted keys that signed its update."""

    sequence: int
    digest: str
    file: str
    signed_by: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "signed_by": list(self.signed_by)}


@dataclass(frozen=True)
class State:
    """Which overlays there are (`kept`: newest first, all older than the current one)."""

    current: Slot
    kept: tuple[Slot, ...] = ()
    highest_sequence: int = 0
    keep: int = 1
    trust: Trust | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "current": self.current.as_json(),
            "kept": [slot.as_json() for slot in self.kept],
            "highest_sequence": self.highest_sequence,
            "keep": self.keep,
            "trust": None if self.trust is None else self.trust.as_json(),
        }


def read_state(path: Path) -> Any:
    file = path / FILE_NAME
    if path.is_dir() and not file.exists():
        raise MissingInput(f"{path}: no device folder (no {FILE_NAME}): make one with cdcca init")
    try:
        with file.open("rb") as source:
            text = source.read((1 << 20) + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise MissingInput(
            f"{path}: cannot be opened as a device folder ({(reason or '').lower()}): "
            "make one with cdcca init"
        ) from None
    if len(text) > 1 << 20:
        raise BadData(f"{file}: larger than {1 << 20:,} bytes")
    return load_json(text, str(file))


def parse_state(data: Any, where: str) -> tuple[DeviceSettings, State]:
    if not isinstance(data, dict) or data.get("kind") != "device":
        raise BadData(f"{where}: is not the device.json of cdcca")
    version = records.field(data, "version", int, where)
    if version > VERSION:
        raise NewerFormat(
            f"{where}: device folder version {version}; this cdcca reads up to {VERSION}: "
            "upgrade it"
        )
    if version < 1:
        raise BadData(f"{where}: version {version}; they begin at 1")
    records.exact_keys(data, _KEYS[version], where)
    if version == 1:
        data = _from_version_1(data, where)
    current = _slot(records.field(data, "current", dict, where), where)
    kept = tuple(_slot(slot, where) for slot in records.list_of(data, "kept", dict, where) or ())
    sequences = [current.sequence, *(slot.sequence for slot in kept)]
    if sequences != sorted(set(sequences), reverse=True):
        raise BadData(f"{where}: the kept overlays are not older from one to the next")
    highest = records.field(data, "highest_sequence", int, where)
    if highest < current.sequence:
        raise BadData(f"{where}: highest_sequence {highest} is below an overlay's")
    if (keep := records.field(data, "keep", int, where)) < 1:
        raise BadData(f"{where}: 'keep' is {keep}")
    trust = None if data["trust"] is None else parse_trust(data["trust"], where)
    return _settings(data, where), State(current, kept, highest, keep, trust)


def _from_version_1(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The same state in version 2."""
    previous = records.field(data, "previous", dict, where, optional=True)
    slots = [records.field(data, "current", dict, where), *([previous] if previous else [])]
    for slot in slots:
        records.exact_keys(slot, {"sequence", "digest", "file"}, where)
    current, *kept = [{**slot, "signed_by": []} for slot in slots]
    return {**data, "current": current, "kept": kept, "keep": 1, "model": None, "trust": None}


def _settings(data: Mapping[str, Any], where: str) -> DeviceSettings:
    lora = records.field(data, "lora", dict, where)
    records.exact_keys(lora, {"rank", "alpha", "seed"}, f"{where}: lora")
    settings = DeviceSettings(
        checkpoint=records.field(data, "checkpoint", str, where),
        revision=records.field(data, "revision", str, where, optional=True),
        family=records.field(data, "family", str, where),
        qformer_layers=records.field(data, "qformer_layers", int, where, optional=True),
        quantize=cast(Quantize, records.field(data, "quantize", str, where)),
        groups=tuple(records.list_of(data, "groups", str, where) or ()),
        lora=Lora(
            rank=records.field(lora, "rank", int, where),
            alpha=records.field(lora, "alpha", float, where),
            seed=records.field(lora, "seed", int, where),
        ),
        tower=records.field(data, "tower", str, where),
        model=records.field(data, "model", str, where, optional=True),
    )
    groups = settings.groups
    sound = {
        "checkpoint": settings.checkpoint != "",
        "family": settings.family != "",
        "quantize": settings.quantize in QUANTIZATIONS,
        "qformer_layers": settings.qformer_layers is None or settings.qformer_layers >= 1,
        "groups": set(groups) <= set(GROUPS) and len(set(groups)) == len(groups) > 0,
        "lora": settings.lora.rank >= 1 and settings.lora.alpha > 0 and settings.lora.seed >= 0,
        "tower": is_digest(settings.tower),
        "model": settings.model is None or is_digest(settings.model),
    }
    if wrong := [name for name, is_sound in sound.items() if not is_sound]:
        raise BadData(f"{where}: {wrong[0]!r} cannot be {str(data[wrong[0]])[:80]}")
    return settings


def _slot(data: Mapping[str, Any], where: str) -> Slot:
    records.exact_keys(data, {"sequence", "digest", "file", "signed_by"}, where)
    slot = Slot(
        records.field(data, "sequence", int, where),
        records.field(data, "digest", str, where),
        records.field(data, "file", str, where),
        tuple(records.list_of(data, "signed_by", str, where) or ()),
    )
    keys = slot.signed_by
    if list(keys) != sorted(set(keys)) or not all(map(is_key, keys)):
        raise BadData(f"{where}: 'signed_by' are not keys in ascending order, each once")
    if slot.sequence < 0 or not is_digest(slot.digest) or not _FILE.fullmatch(slot.file):
        raise BadData(f"{where}: no sound overlay entry: {slot}"[:300])
    return slot
