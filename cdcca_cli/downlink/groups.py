"""The four groups of an overlay, told from its names alone, and the choice of some of them.

- `lora`: ends in `.lora_A` or `.lora_B`;
- `norm`: a `.weight`, and a `.bias` beside one: linears have their weights frozen, so a weight in
  an overlay is a normalisation's;
- `bias`: any other `.bias`;
- `query`: the rest.
"""

from collections.abc import Collection, Iterable

from cdcca_cli.errors import UsageError
from cdcca_cli.formats.names import GROUPS, LORA_A, LORA_B

# The paper sends 266,240 + 1,359,872 + 24,576 = 1,650,688 parameters: all groups but LoRA.
PAPER = ("norm", "bias", "query")


def group_of(name: str, names: Collection[str]) -> str:
    """The group of one name of the overlay that holds `names`."""
    if name.endswith((LORA_A, LORA_B)):
        return "lora"
    stem, _, own = name.rpartition(".")
    if own == "weight" or (own == "bias" and f"{stem}.weight" in names):
        return "norm"
    return "bias" if own == "bias" else "query"


def selected(names: Collection[str], groups: Iterable[str] | None) -> frozenset[str]:
    """The names that belong to one of the groups; all of them for None.

    Raises: UsageError for an unknown group, or if nothing is selected.
    """
    if groups is None:
        return frozenset(names)
    wanted = set(groups)
    if not wanted or not wanted <= set(GROUPS):
        raise UsageError(
            f"--select {','.join(sorted(wanted))}: expected some of {', '.join(GROUPS)}"
        )
    chosen = frozenset(name for name in names if group_of(name, names) in wanted)
    if not chosen:
        held = sorted({group_of(name, names) for name in names})
        raise UsageError(
            f"--select {','.join(sorted(wanted))}: the base has only {', '.join(held)}"
        )
    return chosen
