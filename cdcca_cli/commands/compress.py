"""`cdcca compress`: an adaptation to an update, the downlink."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
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
        typer.Option(
            help="JSON file to write rate against loss to, with a picture beside it (.png)"
        ),
    ] = None,
    no_measure: Annotated[
        bool, typer.Option("--no-measure", help="Do not load the model to measure the loss")
    ] = False,
    output: Output = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Code the difference between an adaptation and the mirror as a small update.

    Without a limit, the update gets smaller while the loss on the adaptation's held-out frames
    grows by at most 1%; after --rate-aware training, it has the step used in training. Apply the
    update to the mirror too, because the next one starts from there. The paper's update is --codec
    nf4 --select norm,bias,query. With --codec exact, --since and no ADAPTATION, a device that
    missed updates, or a new one (--since 0), gets exactly the mirror's overlay.

    Example: cdcca compress adaptation.safetensors --base mirror/ --budget 200KB -o update.cdcca
    """
    streams.set_quiet(quiet)
    from cdcca_cli import config
    from cdcca_cli.downlink import curve as curves
    from cdcca_cli.downlink import keys as key_files
    from cdcca_cli.downlink import sender, signatures
    from cdcca_cli.formats.adaptation import read_adaptation
    from cdcca_cli.formats.update import write_update

    keys = key_files.read_private_keys(sign or [], at_least=0)
    how = replace(how, num_signatures=len(keys))
    is_catch_up = adaptation is None and how.is_catch_up
    if curve is not None and is_catch_up:
        raise SettingError("curve", "needs an adaptation")
    if curve is not None and curve.suffix == ".png":
        raise SettingError("curve", "is the picture's name: give the name of the JSON file", curve)
    on.set_threads()

    def start() -> Mapping[str, Any]:
        from cdcca_cli.models.initial import start_of

        return start_of(mirror)

    if is_catch_up:
        if streams.has_piped_data():
            raise UsageError(
                "standard input has data, which a catch-up would ignore: give ADAPTATION as - to "
                "code it exactly against `since`, or give no input (< /dev/null) for the catch-up"
            )
        mirror = config.device(base, "student")
        made = sender.catch_up(mirror, how, start=start)
    else:
        with streams.binary_input(adaptation) as source:
            learnt = read_adaptation(source, where=streams.input_name(adaptation))
        mirror = config.device(base, "student")
        loss = None if no_measure else _loss_of(learnt, mirror, on)
        made = sender.compress(learnt, mirror, how, loss=loss, start=start)
    if curve is not None and made.choice is not None:
        curves.write(curves.measure(made.choice, made.update), curve)
    with streams.binary_output(output, "update.cdcca", force=force) as out:
        write_update(out, signatures.sign(made.update, keys))
    for line in (*made.notes, *key_files.missing(mirror.trust, keys)):
        streams.message(line)
    streams.summary(made.summary())


def _loss_of(
    adaptation: "Adaptation", mirror: "Device", on: Runtime
) -> Callable[[Mapping[str, Any]], float] | None:
    """The loss of an overlay on the held-out frames; None if there are none.

    The model is loaded at the first call.
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
