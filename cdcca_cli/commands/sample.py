"""`cdcca sample`: frames to token shards, the uplink."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdcca_cli import streams
from cdcca_cli.config import Runtime
from cdcca_cli.errors import Unavailable, UsageError
from cdcca_cli.options import (
    Device,
    Force,
    Images,
    Json,
    LiveOperand,
    Output,
    Prompt,
    Quiet,
    Strict,
    Task,
)
from cdcca_cli.uplink.settings import CaptureSettings, PayloadSettings, SampleSettings

if TYPE_CHECKING:
    from cdcca_cli.formats.device import Device as DeviceFolder
    from cdcca_cli.formats.predictions import Prediction
    from cdcca_cli.models import LoadedModel
    from cdcca_cli.uplink.picked import KnownModel


def command(
    *,
    frames: LiveOperand,
    device: Device = None,
    strict: Strict = False,
    predictions: Annotated[
        str | None,
        typer.Option(help="File of infer to take entropies from, instead of answering; - is stdin"),
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="File that records what was seen and sent, to go on from it")
    ] = None,
    prompt: Prompt = None,
    task: Task = None,
    images: Images = None,
    how: SampleSettings,
    take: CaptureSettings,
    coding: PayloadSettings,
    on: Runtime,
    output: Output = None,
    append: Annotated[
        bool, typer.Option("--append", help="Add the shards to those in the output file")
    ] = False,
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Pick the questions that the device is least sure of, and code their frames for the cloud.

    A frame goes up as its visual tokens, coded with the device's codebook, or as a picture,
    whichever takes fewer bytes for the same loss. Shards have the order of the frames, and no
    answers. A frame that cannot be read is named and left out. With --state, frames seen before
    are skipped; nothing new gives an empty stream. With --predictions and --payload frame no model
    is loaded, so that torch is not needed. --json prints a line for the log that inspect reads,
    also of a fault.

    Example: cdcca sample frames/ -m device/ --budget 64KiB | ssh cloud cdcca distill
    """
    streams.set_quiet(quiet)
    if json and streams.goes_to_stdout(output):
        raise UsageError("the shards go to standard output: `json` needs `output` FILE")
    from cdcca_cli import config, files
    from cdcca_cli.datasets import num_frames, open_frames
    from cdcca_cli.formats import device_log, shard_stream
    from cdcca_cli.skipped import Skipped
    from cdcca_cli.uplink.seen import Seen

    folder = config.device(device)
    with device_log.noting("sample", folder.path) if json else nullcontext():
        opened = open_frames(
            frames,
            images=images,
            prompt=prompt,
            task=task,
            every=take.every,
            duration=take.duration,
        )
        source = Seen(opened, state)
        new = source.frames

        from cdcca_cli.uplink.coding import Coder
        from cdcca_cli.uplink.sampling import sample_frames

        skipped = Skipped(strict=strict or (state is None and num_frames(new) == 1))
        name = output or "uplink.tokens"  # the shards' file; standard output has no size
        before = files.size_of(name) if append else 0
        load_model = None
        if num_frames(new) != 0:
            load_model = _model(folder, how, coding, on, has_predictions=predictions is not None)
        with (
            streams.binary_output(
                output,
                "uplink.tokens",
                force=force,
                append=shard_stream.expect_whole if append else None,
            ) as out,
            shard_stream.writer(out) as write,
        ):
            num_picked = num_questions = 0
            if load_model is not None:
                model = load_model()
                earlier = None if predictions is None else _read(predictions)
                coder = Coder(model, coding, folder.codebook())
                for coded in sample_frames(
                    model, new, how, earlier, skipped, coder, source.running, source.sent
                ):
                    write(coded.shard, coded.picture)
                    num_picked += 1
                    num_questions += len(coded.shard.questions)
                # With a state file a bad frame is recorded there, and a cron job continues.
                if state is None or skipped.is_models_fault:
                    skipped.refuse_if_all()
                if coder.note:
                    streams.message(coder.note)
        source.save()
        if json:
            facts = {
                "frames": num_frames(new),
                "picked": num_picked,
                "questions": num_questions,
                "bytes": (files.size_of(name) or before + write.num_bytes) - before,
                "output": name,
                "left_out": skipped.count,
            }
            streams.emit_json(device_log.line("sample", folder.path, 0, **facts))
        streams.summary(
            f"{num_picked:,} of {num_frames(new) or 0:,} frames picked, "
            f"{write.num_bytes:,} bytes of shards{source.sent}{skipped}"
        )


def _model(
    device: "DeviceFolder",
    how: SampleSettings,
    coding: PayloadSettings,
    on: Runtime,
    *,
    has_predictions: bool,
) -> "Callable[[], LoadedModel | KnownModel]":
    """Loads the device's model, where its profile is not enough. Raises: Unavailable."""
    from cdcca_cli import packages
    from cdcca_cli.uplink.picked import known_model

    found = known_model(device, how, coding, has_predictions=has_predictions)
    if not isinstance(found, str):
        return lambda: found
    if packages.is_light():
        cure = packages.cure_for(ModuleNotFoundError(name="torch"))
        raise Unavailable(f"sampling needs the model here: {found}; the model {cure}")
    on.set_threads()
    from cdcca_cli.models import load_device

    return lambda: load_device(device, compute=on.compute, dtype=on.dtype)


def _read(path: str) -> "Iterator[Prediction]":
    from cdcca_cli.formats.predictions import read_predictions

    with streams.text_input(path) as lines:
        yield from read_predictions(lines, where=streams.input_name(path))
