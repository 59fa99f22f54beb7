"""What `cdcca doctor` prints: one object as JSON, or tables for people."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from cdcca_cli import streams
from cdcca_cli.config import Runtime
from cdcca_cli.doctor import checkpoint, machine, pair
from cdcca_cli.doctor.machine import in_units
from cdcca_cli.inspection.summary import rows

Row = tuple[str, object]


@dataclass(frozen=True)
class Report:
    """found: as JSON. show: print it for people. require: raise if something does not work."""

    found: dict[str, Any]
    show: Callable[[], None]
    require: Callable[[], None]


def made(student: str | None, teacher: str | None, on: Runtime) -> Report:
    """Look at the machine, at a model, or at a pair. Raises: as `checkpoint.report`."""
    on.set_threads()
    if student is None:
        checks = machine.checks()
        require = partial(machine.require, checks)
        return Report(machine.as_json(checks), partial(_show_machine, checks), require)
    if teacher is None:
        found = checkpoint.report(student, on)
        require = partial(checkpoint.require, found)
        return Report(found, lambda: streams.emit_facts(_checkpoint_rows(found)), require)
    found = pair.report(student, teacher)
    return Report(found, lambda: streams.emit_facts(_pair_rows(found)), lambda: None)


def _show_machine(checks: list[machine.Check]) -> None:
    lines = [(check.name, check.state, check.found, check.purpose, check.cure) for check in checks]
    streams.emit_table("", ("", "state", "found", "for", "how to get it"), lines)


def _checkpoint_rows(found: dict[str, Any]) -> Iterator[Row]:
    for name in ("checkpoint", "family", "architecture", "language_model"):
        yield name.replace("_", " "), found[name]
    for part, number in found["parameters"].items():
        yield f"parameters: {part}", number
    if found["stored"] is not None:
        yield (
            "stored",
            f"{in_units(found['stored']['bytes'])} ({', '.join(found['stored']['dtypes'])})",
        )
    yield from rows({"digest": found["digests"]})
    shape = found["frame"]
    yield (
        "a frame of 1080p",
        (
            f"{shape['tokens']:,} tokens of {shape['channels']:,} channels, {shape['positions']:,} "
            "positions of a prompt"
        ),
    )
    for name, size in shape["bytes"].items():
        kind = "tokens" if name in ("int8", "float16") else "picture"
        yield f"a frame of 1080p: {kind} in {name}", in_units(size)
    for form, needs in found["memory_bytes"].items():
        yield (
            f"memory in {form}",
            (f"about {in_units(needs['infer'])} to infer, {in_units(needs['train'])} to train"),
        )
    for group, number in found["groups"].items():
        yield f"trained: {group}", number
    for text in found["exceptions"]:
        yield "exception", text
    for one in found["identities"]["tried"]:
        yield one["name"], _verdict(one)
    if found["identities"]["why_not"]:
        yield "the model itself", f"not tried: {found['identities']['why_not']}"


def _verdict(one: dict[str, Any]) -> str:
    if one["difference"] is None:
        return str(one["note"])
    holds = "does not hold" if one["fails"] else "holds" if not one["note"] else one["note"]
    return f"{holds} (within {one['difference']:.2g} of {one['allowed']:.2g})"


def _pair_rows(found: dict[str, Any]) -> Iterator[Row]:
    for role in ("student", "teacher"):
        one = found[role]
        yield role, f"{one['checkpoint']} ({one['family']})"
        yield (
            f"{role}: vocabulary",
            (
                f"{one['words']:,} words, {one['head_rows']:,} rows, ends with "
                f"{', '.join(map(str, one['end_tokens']))}"
            ),
        )
    tower = found["tower"]
    yield "same vision tower", "yes" if tower["is_shared"] else f"no ({tower['difference']})"
    yield "same vocabulary", "yes" if found["vocabulary"]["is_shared"] else "no"
    yield "vectors at the same places", "yes" if found["places"]["are_common"] else "no"
    for kind, one in (("payload", found["open"]["payloads"]), ("method", found["open"]["methods"])):
        for name, reason in one.items():
            yield f"{kind} {name}", reason or "open"
    yield "KL divergence", found["open"]["kl"] or "open"
