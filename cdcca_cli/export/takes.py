"""Which groups of parameters arrive in which runtime, before anything is trained.

By names and types alone, without the runtime's files: the preflight of `export` can still refuse a
file that differs. "peft" is an adapter folder, which vLLM loads too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cdcca_cli.export import placing
from cdcca_cli.export.architectures import ARCHITECTURES, CONNECTORS, NO_EXPORT, connector_names
from cdcca_cli.families import Family, family_named
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.names import split_groups
from cdcca_cli.formats.overlay import Overlay

ALL = "all"
_QKV = ("q_proj", "k_proj", "v_proj")
_ATTENTION = (*_QKV, "o_proj")
_SEVEN = (*_ATTENTION, "gate_proj", "up_proj", "down_proj")
TRANSFORMERS_BIASES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "granite", "granite4_vision_text"), _SEVEN),
    **dict.fromkeys(("qwen3", "qwen3_vl_text", "qwen3_5_text", "cohere2"), _ATTENTION),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "gemma4_text"), _ATTENTION),
    **dict.fromkeys(("qwen2", "qwen2_vl_text", "qwen2_5_vl_text", "glm4v_text"), _QKV),
}
"""The linears of a kind of language model in transformers that have, or can have, a bias."""


@dataclass(frozen=True)
class Takes:
    """What one runtime takes. groups: "all" or the part that it takes, in words, by group."""

    runtime: str
    groups: Mapping[str, str]
    refused: tuple[str, ...]

    def __str__(self) -> str:
        """Such as `norm, bias (of q, k, v), lora.language; not query`."""
        if not self.groups:
            return "nothing"
        if not self.refused and set(self.groups.values()) == {ALL}:
            return ALL
        parts = [f"{one} ({how})" if how != ALL else one for one, how in self.groups.items()]
        return ", ".join(parts) + (f"; not {', '.join(self.refused)}" if self.refused else "")


def of_device(device: Device) -> list[Takes]:
    """What each runtime takes of a device. Raises: MissingInput, BadData."""
    row, profile = family_named(device.settings.family), device.profile()
    if row is None:
        return []
    linears = [name for name in profile.samples if row.in_connector(name)]
    return takes(row, profile.language.type, device.settings.groups, linears)


def as_json(found: Iterable[Takes]) -> dict[str, dict[str, str]]:
    """By runtime, the groups that it takes, each with "all" or the part."""
    return {one.runtime: dict(one.groups) for one in found}


def takes(row: Family, language: str, groups: Iterable[str], linears: Sequence[str]) -> list[Takes]:
    """What each runtime takes of a device.

    Args: language: transformers' type of its language model. groups: that it trains. linears: of
        its connector.
    """
    has_none = {"query": not row.query_names, "lora.connector": not linears}
    mine = [group for group in split_groups(groups) if not has_none.get(group)]
    lora = {"lora.language": ALL, "lora.connector": ALL}
    merged = lora | {"norm": ALL, "query": ALL}
    if biases := TRANSFORMERS_BIASES.get(language):
        merged["bias"] = ALL if biases == _SEVEN else f"of {_listed(biases)}"
    known = {
        "llama.cpp": _llama(row, language, linears),
        "peft": lora,
        "transformers": merged,
    }
    return [
        Takes(
            runtime,
            {group: taken[group] for group in mine if group in taken},
            tuple(group for group in mine if group not in taken),
        )
        for runtime, taken in known.items()
    ]


def _llama(row: Family, language: str, linears: Sequence[str]) -> dict[str, str]:
    known = [one for one in ARCHITECTURES.values() if language in one.types]
    if row.name in NO_EXPORT or not known:
        return {}
    found = {"norm": ALL, "lora.language": ALL}
    names = {end: name.rpartition(".")[2] for name, end in known[0].linears.items()}
    biases = [names[one] for one in known[0].biases if one in names]
    found["bias"] = ALL if len(biases) == len(names) else f"of {_listed(biases)}"
    placed = _connectors(linears)
    if placed:
        is_all = len(placed) == len(linears)
        found["lora.connector"] = ALL if is_all else f"{len(placed)} of {len(linears)} linears"
    return found


def _connectors(linears: Sequence[str]) -> set[str]:
    """The linears that have a place in the mmproj that fits most of them."""
    found: set[str] = set()
    for kind, endings in CONNECTORS.items():
        tensors = [
            name.replace("*", str(number))
            for name in endings.values()
            for number in range(len(linears))
        ]
        found = max(found, {*connector_names(kind, [*linears], tensors)}, key=len)
    return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name.removesuffix("_proj") for name in names)


def carried(device: Device, overlay: Overlay) -> set[str]:
    """The names of the tensors that llama.cpp takes. Raises: MissingInput, BadData."""
    row, language = family_named(device.settings.family), device.profile().language.type
    architecture = next((one for one in ARCHITECTURES.values() if language in one.types), None)
    if row is None or row.name in NO_EXPORT or architecture is None:
        return set()
    groups = placing.groups_of(device, overlay)
    connector = [name.rpartition(".")[0] for name in overlay if groups[name] == "lora.connector"]
    placed = _connectors(sorted({*connector}))
    found = set()
    for name, group in groups.items():
        module, _, _ = name.rpartition(".")
        named = architecture.named(module.removeprefix(f"{row.language_path}."))
        if group == "lora.connector":
            is_taken = module in placed
        elif group == "bias":
            is_taken = named is not None and architecture.reads_bias(named)
        else:
            is_taken = named is not None and group != "query"
        if is_taken:
            found.add(name)
    return found
