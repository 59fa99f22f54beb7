"""What `cdcca doctor` prints: one object as JSON, or lines for people."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cdcca_cli.config import Runtime
from cdcca_cli.doctor import machine
from cdcca_cli.doctor.machine import in_units
from cdcca_cli.errors import SettingError
from cdcca_cli.inspection.summary import rows
from cdcca_cli.serving.address import is_address

Row = tuple[str, object]


@dataclass(frozen=True)
class Report:
    """found: as JSON. rows: for people. require: raises if something does not work."""

    found: dict[str, Any]
    rows: Iterator[Row]
    require: Callable[[], None] = lambda: None


def made(
    student: str | None,
    teacher: str | None,
    on: Runtime,
    probe: Path | None = None,
    frames: Path | None = None,
) -> Report:
    """Look at the machine, at a model, at a pair, or at a server that runs a device.

    Raises: as `checkpoint.report` and `checking.of_device`.
    """
    if student is not None and teacher is not None and is_address(teacher):
        from cdcca_cli.export import checking
        from cdcca_cli.formats.device import Device

        found = checking.of_device(Device.open(student), teacher, probe, frames)
        return Report(found.as_json(), found.rows(), partial(found.require, teacher))
    for name, value in (("probe", probe), ("frames", frames)):
        if value is not None:
            raise SettingError(name, "is for a device folder and the address of its server")
    if student is None:
        checks = machine.checks()
        require = partial(machine.require, checks)
        return Report(machine.as_json(checks), _machine_rows(checks), require)
    from cdcca_cli.doctor import checkpoint, pair  # they need torch; the machine may have none

    on.set_threads()
    if teacher is None:
        known = checkpoint.report(student, on)
        return Report(known, _checkpoint_rows(known), partial(checkpoint.require, known))
    common = pair.report(student, teacher)
    return Report(common, _pair_rows(common))


def _machine_rows(checks: list[machine.Check]) -> Iterator[Row]:
    for check in checks:
        cure = f": {check.cure}" if check.cure else ""
        if check.state == machine.OK:
            yield check.name, (check.found or check.state) + cure
        else:
            found = f" ({check.found})" if check.found else ""
            yield check.name, f"missing{found}, for {check.purpose}{cure}"


def _checkpoint_rows(found: dict[str, Any]) -> Iterator[Row]:
    for name in ("checkpoint", "family", "architecture", "language_model"):
        yield name.replace("_", " "), found[name]
    for part, number in found["parameters"].items():
        yield f"parameters: {part}", number
    for dtype, size in found["stored_bytes"].items():
        yield f"stored in {dtype}", in_units(size)
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
            f"about {in_units(needs['infer'])} to infer, {in_units(needs['train'])} to train",
        )
    yield "memory", found["memory_basis"]
    for group, number in found["groups"].items():
        yield f"trained: {group}", number
    for runtime, groups in found["takes"].items():
        parts = (name if how == "all" else f"{name} ({how})" for name, how in groups.items())
        yield f"{runtime} takes", ", ".join(parts) or "nothing"
    for text in found["exceptions"]:
        yield "exception", text
    for one in found["identities"]["tried"]:
        yield one["name"], _verdict(one)
    if found["identities"]["why_not"]:
        yield "the model itself", f"not tried: {found['identities']['why_not']}"


def _verdict(one: dict[str, Any]) -> str:
    if one["difference"] is None:
        return str(one["error"] or one["note"])
    measured = f"off by {one['difference']:.2g}, {one['allowed']:.2g} allowed"
    if one["note"]:
        return f"{measured}: {one['note']}"
    return f"{'does not hold' if one['fails'] else 'holds'} ({measured})"


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
            yield f"{kind} {name}", _reason(reason)
    yield "KL divergence", _reason(found["open"]["kl"])


def _reason(text: str) -> str:
    """Why something is closed, without the marks around names of settings."""
    return text.replace("`", "") or "open"
