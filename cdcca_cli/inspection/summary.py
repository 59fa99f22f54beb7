"""What a reader found in a file or folder, as JSON and as lines for people."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_MOST_NAMES = 1000  # different domains, towers or models that are counted separately


@dataclass
class Summary:
    """What is in a file or folder. The ledger adds up to its length; `rest` names what is left."""

    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    digests: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    ledger: dict[str, int] = field(default_factory=dict)
    rest: str = "header"

    def as_json(self) -> dict[str, Any]:
        """One object; `bytes` has the ledger with its total."""
        result: dict[str, Any] = {"kind": self.kind, **self.facts}
        result |= {"digests": self.digests, "counts": self.counts}
        if self.ledger:
            result["bytes"] = {**self.ledger, "total": sum(self.ledger.values())}
        return result


class Names(Counter[str]):
    """Counts by name, for a bounded number of names."""

    def add(self, name: object) -> None:
        text = "(none)" if name is None else str(name)
        known = text in self or len(self) < _MOST_NAMES
        self[text if known else "(others)"] += 1

    def sorted(self) -> dict[str, int]:
        return dict(sorted(self.items()))


def rows(value: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Nested objects as lines, `bytes: payload` and its number; a line for each of a list."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if str(key).startswith("sha256:"):
                yield prefix, f"{key} ({inner} times)"
            else:
                yield from rows(inner, f"{prefix}: {key}" if prefix else str(key))
    elif isinstance(value, list) and value and all(isinstance(inner, dict) for inner in value):
        for inner in value:
            words = [f"{name} {_short(one)}" for name, one in inner.items() if one != []]
            yield prefix.replace("_", " "), ", ".join(words)
    elif value is not None and value != []:
        yield prefix.replace("_", " "), _short(value) if isinstance(value, list) else value


def _short(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
