"""What `compress` needs of the other side of the house: the held-out loss, the start, a picture.

Models are loaded when the loss is first asked for, and not before: most ways of compressing need
none. Decides nothing (`downlink.sender`).
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdcca_cli import streams
from cdcca_cli.commands.settings import Runtime
from cdcca_cli.errors import UsageError

if TYPE_CHECKING:
    from cdcca_cli.downlink.curve import Curve
    from cdcca_cli.formats.adaptation import Adaptation
    from cdcca_cli.formats.device import Device

Overlay = Mapping[str, Any]
MOST_AT_ONCE = 1024
"""A batch size of an adaptation's report above this is not believed."""


def loss_of(
    adaptation: "Adaptation", mirror: "Device", runtime: Runtime
) -> Callable[[Overlay], float] | None:
    """The loss of an overlay on the adaptation's held-out frames; None if it has none."""
    held_out = adaptation.held_out
    if held_out is None or not held_out.num_asks:
        return None

    @cache
    def loaded() -> Callable[[Overlay], float]:
        from cdcca_cli.distillation.evaluation import HeldOutLoss
        from cdcca_cli.distillation.settings import DistillSettings
        from cdcca_cli.models import load_device

        student = load_device(mirror, compute=runtime.compute, dtype=runtime.dtype)
        size = adaptation.report.get("batch_size")  # what others wrote may be anything
        if type(size) is not int or not 1 <= size <= MOST_AT_ONCE:
            size = DistillSettings.batch_size
        return HeldOutLoss(student, held_out, mirror.lora.alpha, size)

    return lambda overlay: loaded()(overlay)


def start_of(mirror: "Device") -> Callable[[], Overlay]:
    """The overlay that `cdcca init` gave the mirror, made again from its checkpoint and seed."""

    def start() -> Overlay:
        from cdcca_cli.models.initial import start_of as made_again

        return made_again(mirror)

    return start


def check_curve(path: Path, adaptation: str | None, is_catch_up: bool) -> None:
    """Say before anything is made whether there can be a curve. Raises: UsageError."""
    if adaptation is None and is_catch_up:
        raise UsageError("--curve: without an adaptation there is nothing to choose")
    if path.suffix == ".png":
        raise UsageError(f"--curve {path}: that is the picture's name: name the JSON file (.json)")


def write_curve(path: Path, curve: "Curve") -> None:
    """A curve as JSON at `path`, and as a picture beside it if matplotlib is there.

    Raises: CannotWrite.
    """
    from cdcca_cli.formats.records import dump_json

    with streams.text_output(path) as out:
        out.write(dump_json(curve.as_json()) + "\n")
    try:
        picture = curve.picture()
    except ImportError:
        streams.message(f"{path}: no picture of it (matplotlib is not installed)")
        return
    with streams.binary_output(path.with_suffix(".png"), "curve.png") as file:
        file.write(picture)
