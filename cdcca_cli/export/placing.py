"""Which tensors of an overlay a target carries, and what is lost with the others.

How large a change is: the Frobenius norm, of new minus old values, or of alpha / rank B A.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.errors import SettingError
from cdcca_cli.families import family_named
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.names import GROUP_NAMES, LORA_A, LORA_B, split_groups
from cdcca_cli.formats.overlay import Overlay
from cdcca_cli.text import counted


def groups_of(device: Device, overlay: Overlay) -> dict[str, str]:
    """The group of each tensor of a device's overlay, by name."""
    return {name: _group(device, overlay, name) for name in overlay}


def _group(device: Device, overlay: Overlay, name: str) -> str:
    row = family_named(device.settings.family)
    if row is not None and name in row.query_names:
        return "query"
    if name.endswith((LORA_A, LORA_B)):
        is_connector = row is not None and row.in_connector(name)
        return "lora.connector" if is_connector else "lora.language"
    module, _, own = name.rpartition(".")
    has_norms = "norm" in device.settings.groups
    # A norm has a weight and perhaps a bias; of a linear, an overlay has the bias alone.
    return "norm" if has_norms and (own != "bias" or f"{module}.weight" in overlay) else "bias"


def sizes_of_changes(device: Device, overlay: Overlay, start: Overlay) -> dict[str, float]:
    """How much each tensor changes; a LoRA's change is at its B, and 0 at its A.

    Args: start: the values before, of norms, biases and queries; a bias that is not in it was zero.
        LoRA needs none.
    Returns: by name, without those whose start is unknown.
    """
    found = {}
    for name, group in groups_of(device, overlay).items():
        if name.endswith(LORA_A):
            found[name] = 0.0
        elif name.endswith(LORA_B):
            a_RI = overlay[name.removesuffix(LORA_B) + LORA_A]
            found[name] = device.lora.alpha / len(a_RI) * product_norm(overlay[name], a_RI)
        elif name in start or group == "bias":
            before: Any = start.get(name, np.float32(0))
            found[name] = float(np.linalg.norm((overlay[name] - before).astype(np.float64)))
    return found


def product_norm(b_OR: NDArray[np.float32], a_RI: NDArray[np.float32]) -> float:
    """|B A|, from the R x R products: tr(A A' B' B)."""
    wide_b, wide_a = b_OR.astype(np.float64), a_RI.astype(np.float64)
    square = float(((wide_b.T @ wide_b) * (wide_a @ wide_a.T)).sum())
    return sqrt(max(square, 0.0))


def changes(device: Device, overlay: Overlay, start: Overlay) -> dict[str, float]:
    """The norm of each group's change, without groups whose start is unknown."""
    groups = groups_of(device, overlay)
    sizes = sizes_of_changes(device, overlay, start)
    known = set(groups.values()) - {groups[name] for name in overlay if name not in sizes}
    return {
        group: sqrt(sum(sizes[name] ** 2 for name in overlay if groups[name] == group))
        for group in GROUP_NAMES
        if group in known
    }


def require_placed(
    device: Device,
    overlay: Overlay,
    carried: Collection[str],
    drop: Collection[str],
    start: Overlay,
    why: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """What stays behind, as export.json has it under "dropped".

    Args:
        carried: names of the tensors that arrive.
        drop: groups that may stay behind.
        start: as in `sizes_of_changes`.
        why: by group, why it cannot be carried, or the cure.
    Raises: SettingError for `drop` if a tensor that has changed stays behind and its group may not.
    """
    groups, sizes = groups_of(device, overlay), sizes_of_changes(device, overlay, start)
    whole = sum(sizes.values())
    left: dict[str, list[str]] = {}
    for name, group in groups.items():
        is_changed = sizes.get(_half(name), 1.0) != 0
        if name not in carried and is_changed:
            left.setdefault(group, []).append(name)
    found: dict[str, dict[str, Any]] = {}
    for group in GROUP_NAMES:
        if names := left.get(group):
            is_known = len(sizes) == len(overlay)
            lost = sum(sizes[name] for name in names) / whole if is_known else None
            found[group] = {
                "tensors": sorted(names),
                "share": None if lost is None else round(lost, 6),
            }
    allowed = split_groups(drop)
    if refused := [group for group in found if group not in allowed]:
        raise SettingError("drop", _refusal(refused, found, why or {}))
    return found


def placed(device: Device, overlay: Overlay, carried: Collection[str]) -> dict[str, int]:
    """How many tensors of each group arrive."""
    groups = groups_of(device, overlay)
    counts = Counter(groups[name] for name in overlay if name in carried)
    return {group: counts[group] for group in GROUP_NAMES if group in counts}


def _half(name: str) -> str:
    """Where a tensor's change is noted: a LoRA's at its B."""
    return name.removesuffix(LORA_A) + LORA_B if name.endswith(LORA_A) else name


def _refusal(
    refused: list[str],
    found: Mapping[str, Mapping[str, Any]],
    why: Mapping[str, str],
) -> str:
    parts = []
    for group in refused:
        names, share = found[group]["tensors"], found[group]["share"]
        size = "" if share is None else f", {share:.1%} of the change"
        reason = f" ({why[group]})" if group in why else ""
        shown = f"{counted(len(names), 'tensor')}{size}, such as {names[0]}"
        parts.append(f"{group}: {shown}{reason}")
    named = ",".join(refused)
    return f"would stay behind: {'; '.join(parts)}; `drop` {named} allows it"
