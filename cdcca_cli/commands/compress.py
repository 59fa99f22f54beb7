"""`cdcca compress`: an adaptation to an update, the downlink."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdcca_cli import streams
from cdcca_cli.config import Runtime
from cdcca_cli.downlink.settings import CompressSettings
from cdcca_cli.errors import SettingError, UsageError
from cdcca_cli.options import Base, Force, Output, Quiet, Sign

if TYPE_CHECKING:
    from cdcca_cli.formats.adaptation import Adaptation
    from cdcca_cli.formats.device import Device

_LARGEST_BATCH = 1024


def command(
    *,
    adaptation: Annotated[
        str | None,
        typer.Argument(help="Adaptation of distill  [default: stdin]", show_default=False),
    ] = None,
    base: Base = None,
    how: CompressSettings,
    on: Runtime,
    sign: Sign = None,
    curve: Annotated[
        Path | None,
        typer.Option(help="JSON file for rate against loss, with a picture beside it (.png)"),
    ] = None,
    no_measure: Annotated[
        bool, typer.Option("--no-measure", help="Do not load the model to measure the loss")
    ] = False,
    output: Output = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Code what changed, against what the device holds, in few bytes.

    Without a limit, steps get coarser while the loss on the adaptation's held-out frames grows by
    at most 1%; after --rate-aware training, the step is the one trained for. Apply the update to
    the mirror too: the next one is taken against it. With --codec exact, --since and no ADAPTATION,
    a device that missed updates, or a new one (--since 0), gets exactly what the mirror holds.

    Example: cdcca compress adaptation.safetensors --base mirror/ --budget 200KB -o update.cdcca
    """
    streams.set_quiet(quiet)
    from cdcca_cli import config
    from cdcca_cli.downlink import keys as key_files
    from cdcca_cli.downlink import sender, signatures
    from cdcca_cli.formats.adaptation import read_adaptation
    from cdcca_cli.formats.update import write_update

    keys = key_files.read_private_keys(sign or [], at_least=0)
    how = replace(how, num_signatures=len(keys))
    is_catch_up = adaptation is None and how.is_catch_up
    if curve is not None and is_catch_up:
        raise SettingError("curve", "without an adaptation there is nothing to choose")
    if curve is not None and curve.suffix == ".png":
        raise SettingError("curve", "that is the picture's name: name the JSON file (.json)", curve)
    on.set_threads()
    drawn = None
    if is_catch_up:
        if streams.has_piped_data():
            raise UsageError(
                "an adaptation on standard input, which a catch-up would ignore: name it - to code "
                "it exactly against `since`, or take it away (< /dev/null) for the catch-up"
            )
        mirror = config.device(base, "student")
        made = sender.catch_up(mirror, how, start=partial(_start_of, mirror))
    else:
        with streams.binary_input(adaptation) as source:
            learnt = read_adaptation(source, where=streams.input_name(adaptation))
        mirror = config.device(base, "student")
        loss = None if no_measure else _loss_of(learnt, mirror, on)
        choice = sender.choose(learnt, mirror, how, loss=loss, start=partial(_start_of, mirror))
        made = sender.finished(choice, choice.update())
        drawn = None if curve is None else sender.curve(choice, made)
    if curve is not None and drawn is not None:
        drawn.write(curve)
    with streams.binary_output(output, "update.cdcca", force=force) as out:
        write_update(out, signatures.sign(made.update, keys))
    for line in (*made.notes, *key_files.missing(mirror.trust, keys)):
        streams.message(line)
    streams.summary(made.summary())


def _loss_of(
    adaptation: "Adaptation", mirror: "Device", on: Runtime
) -> Callable[[Mapping[str, Any]], float] | None:
    """The loss of an overlay on the held-out frames, with the model loaded at the first call.

    None if the adaptation holds no frames out.
    """
    held_out = adaptation.held_out
    if held_out is None or not held_out.num_questions:
        return None

    @cache
    def loaded() -> Callable[[Mapping[str, Any]], float]:
        from cdcca_cli.distillation.evaluation import HeldOutLoss
        from cdcca_cli.distillation.settings import DistillSettings
        from cdcca_cli.models import load_device

        student = load_device(mirror, compute=on.compute, dtype=on.dtype)
        size = adaptation.report.get("batch_size")  # a file from elsewhere may hold anything
        if type(size) is not int or not 1 <= size <= _LARGEST_BATCH:
            size = DistillSettings.batch_size
        return HeldOutLoss(student, held_out, mirror.lora.alpha, size)

    return lambda overlay: loaded()(overlay)


def _start_of(mirror: "Device") -> Mapping[str, Any]:
    """The overlay that `cdcca init` gave the mirror, made again from its checkpoint and seed."""
    from cdcca_cli.models.initial import start_of

    return start_of(mirror)
