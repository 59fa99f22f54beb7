"""device.json, read and checked; `device` specifies it and writes it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from cdcca_cli.errors import BadData, MissingInput
from cdcca_cli.formats import records
from cdcca_cli.formats.digest import is_digest
from cdcca_cli.formats.names import GROUP_NAMES, GROUPS, LORA_PARTS, whole_groups
from cdcca_cli.formats.trust import Trust, is_key, parse_trust
from cdcca_cli.text import read_json

VERSION = 4
FILE_NAME = "device.json"
_MOST_BYTES = 1 << 20
OVERLAYS, CODEBOOKS = "overlay", "codebooks"
_NAME = r"/(0|[1-9][0-9]{0,15})-[0-9a-f]{16}\.safetensors"

Quantize = Literal["none", "int8", "nf4"]


@dataclass(frozen=True)
class Lora:
    """How the low-rank part starts and scales: delta = alpha / rank * B @ A."""

    rank: int
    alpha: float
    seed: int


@dataclass(frozen=True)
class DeviceSettings:
    """What `cdcca init` decided; it never changes."""

    checkpoint: str
    family: str
    tower: str
    lora: Lora
    groups: tuple[str, ...] = GROUPS
    qformer_layers: int | None = None
    quantize: Quantize = "none"
    revision: str | None = None
    model: str | None = None
    template: str | None = None

    @property
    def version(self) -> int:
        """The oldest format version that holds them."""
        is_new = self.template is not None or not set(LORA_PARTS).isdisjoint(self.groups)
        return VERSION if is_new else 3


@dataclass(frozen=True)
class Slot:
    """An overlay or codebook of the folder; `signed_by` are the trusted keys that signed it."""

    sequence: int
    digest: str
    file: str
    signed_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class State:
    """Which files count. kept: overlays, newest first, all older than the current one."""

    current: Slot
    kept: tuple[Slot, ...] = ()
    highest_sequence: int = 0
    keep: int = 1
    trust: Trust | None = None
    codebook: Slot | None = None


_SETTINGS = get_type_hints(DeviceSettings) | {"lora": dict}
_LORA = get_type_hints(Lora)
_SLOT = get_type_hints(Slot)
_OVERLAYS: dict[str, Any] = {"current": dict, "kept": list[dict], "highest_sequence": int}
_STATE: dict[str, Any] = {"keep": int, "trust": dict | None, "codebook": dict | None} | _OVERLAYS
_VERSION_4 = records.HEAD | _SETTINGS | _STATE
_VERSION_3 = {name: hint for name, hint in _VERSION_4.items() if name != "template"}
_VERSION_2 = {name: hint for name, hint in _VERSION_3.items() if name != "codebook"}
_VERSION_1 = records.HEAD | {name: _SETTINGS[name] for name in _SETTINGS if name != "template"}
_VERSION_1 |= {"current": dict, "previous": dict | None, "highest_sequence": int}
del _VERSION_1["model"]


def read_state(path: Path) -> Any:
    """What device.json holds, as JSON. MissingInput, BadData."""
    try:
        return read_json(path / FILE_NAME, _MOST_BYTES)
    except MissingInput as error:
        cure = "name a device folder, or make one with cdcca init"
        raise MissingInput(f"{error}: {cure}") from None


def parse_state(data: Any, where: str) -> tuple[DeviceSettings, State]:
    """Settings and state that JSON holds, every field checked. BadData, NewerFormat."""
    if not isinstance(data, dict) or data.get("kind") != "device":
        raise BadData(f"{where}: is not the device.json of cdcca")
    version = records.field(data, "version", int, where)
    records.check_version(version, VERSION, "device folder", where)
    if version == 1:
        data = _from_version_1(data, where)
    if version < 3:
        records.exact_keys(data, set(_VERSION_2), where)
        data = data | {"codebook": None}
    if version < 4:
        records.exact_keys(data, set(_VERSION_3), where)
        data = data | {"template": None}
    found = records.fields(data, _VERSION_4, where)
    overlays = parse_overlays({name: found[name] for name in _OVERLAYS}, where)
    keep = found["keep"]
    if keep < 1:
        raise BadData(f"{where}: 'keep' is {keep}; expected 1 or more")
    trust = None if found["trust"] is None else parse_trust(found["trust"], where)
    codebook = None if found["codebook"] is None else _slot(found["codebook"], CODEBOOKS, where)
    settings = _settings({name: found[name] for name in _SETTINGS}, where)
    if settings.version > max(version, 3):
        raise BadData(f"{where}: 'groups' of version {settings.version} in version {version}")
    return settings, replace(overlays, keep=keep, trust=trust, codebook=codebook)


def parse_overlays(data: Mapping[str, Any], where: str) -> State:
    """The part of a state that says which overlays count; the rest is as usual. BadData."""
    found = records.fields(data, _OVERLAYS, where)
    current, *kept = (_slot(slot, OVERLAYS, where) for slot in (found["current"], *found["kept"]))
    sequences = [slot.sequence for slot in (current, *kept)]
    if sequences != sorted(set(sequences), reverse=True):
        raise BadData(f"{where}: the kept overlays are not older from one to the next")
    highest = found["highest_sequence"]
    if highest < current.sequence:
        raise BadData(f"{where}: highest_sequence {highest} is below an overlay's")
    return State(current, tuple(kept), highest)


def _from_version_1(data: dict[str, Any], where: str) -> dict[str, Any]:
    records.fields(data, _VERSION_1, where)
    previous = data["previous"]
    slots = [data["current"], *([] if previous is None else [previous])]
    for slot in slots:
        records.exact_keys(slot, {"sequence", "digest", "file"}, where)
    current, *kept = [{**slot, "signed_by": []} for slot in slots]
    old = {name: value for name, value in data.items() if name != "previous"}
    return old | {"current": current, "kept": kept, "keep": 1, "model": None, "trust": None}


def _settings(found: dict[str, Any], where: str) -> DeviceSettings:
    lora = Lora(**records.fields(found["lora"], _LORA, f"{where}: lora"))
    settings = DeviceSettings(**{**found, "lora": lora})
    groups = settings.groups
    sound = {
        "checkpoint": settings.checkpoint != "",
        "family": settings.family != "",
        "qformer_layers": settings.qformer_layers is None or settings.qformer_layers >= 1,
        "groups": set(groups) <= set(GROUP_NAMES)
        and sorted(groups) == sorted(whole_groups(groups)) != [],
        "lora": lora.rank >= 1 and lora.alpha > 0 and lora.seed >= 0,
        "tower": is_digest(settings.tower),
        "model": settings.model is None or is_digest(settings.model),
    }
    if wrong := [name for name, is_sound in sound.items() if not is_sound]:
        raise BadData(f"{where}: {wrong[0]!r} cannot be {str(found[wrong[0]])[:80]}")
    return settings


def _slot(data: dict[str, Any], folder: str, where: str) -> Slot:
    slot = Slot(**records.fields(data, _SLOT, where))
    keys = slot.signed_by
    if list(keys) != sorted(set(keys)) or not all(map(is_key, keys)):
        raise BadData(f"{where}: 'signed_by' are not keys in ascending order, each once")
    file = re.fullmatch(folder + _NAME, slot.file)
    if slot.sequence < 0 or not is_digest(slot.digest) or not file:
        raise BadData(f"{where}: not a sound {folder} entry: {slot}"[:300])
    return slot
