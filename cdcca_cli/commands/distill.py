"""`cdcca distill`: token shards to an adaptation, on the cloud."""

import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from cdcca_cli import streams
from cdcca_cli.config import Runtime
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.errors import SettingError
from cdcca_cli.options import Force, Output, Quiet, Strict, Student, Teacher

if TYPE_CHECKING:
    from cdcca_cli.formats.shard import Shard
    from cdcca_cli.skipped import Skipped


def command(
    *,
    shards: Annotated[
        list[str] | None,
        typer.Argument(help="Token shards of sample  [default: stdin]", show_default=False),
    ] = None,
    teacher: Teacher = None,
    student: Student = None,
    strict: Strict = False,
    resume: Annotated[
        str | None,
        typer.Option(help="Adaptation to continue from; what its coding rounded off is sent next"),
    ] = None,
    replay: Annotated[
        list[str] | None, typer.Option(help="Earlier shards to train on again (repeatable)")
    ] = None,
    how: DistillSettings,
    on: Runtime,
    log: Annotated[Path | None, typer.Option(help="File to add one JSON line per step to")] = None,
    peft: Annotated[
        Path | None, typer.Option(help="Folder to write the LoRA part to as a PEFT adapter")
    ] = None,
    output: Output = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Train the small model towards the large one's answers to the shards, without images.

    Only norms, biases, query tokens and LoRA are trained. Part of the frames is held out, and the
    state that is best there is written, the start included. The adaptation keeps these frames, by
    which compress chooses its step.

    --method also takes the baselines of the paper, on the same shards, batches and steps. tent and
    cotta need no teacher; if one is named, it evaluates the held-out part. With --cache FILE the
    teacher runs once: the next run, method or seed reads the file, and so does --teacher FILE.

    --rate-aware 100 adds steps that train the overlay as the device will decode it, so that an
    update of --bits a parameter loses next to nothing.

    Under `accelerate launch` all processes work together (shards from files, and a --cache or
    --work): accelerate launch --num_processes 4 -m cdcca_cli distill uplink.tokens --work w ...

    --set NAME=VALUE tunes one method or one term of the loss; --set help prints these settings.

    Example: cdcca distill uplink.tokens --teacher t/ --student mirror/ | cdcca compress -o up.cdcca
    """
    streams.set_quiet(quiet)
    from cdcca_cli.distillation import distributed
    from cdcca_cli.skipped import Skipped

    is_first = distributed.announced_rank() == 0
    if not is_first:
        streams.set_quiet(True)
    if how.replay_share != DistillSettings.replay_share and not replay:
        raise SettingError("replay_share", "is of the frames of `replay`: name them")
    if replay and how.method == "none":
        raise SettingError("replay", "does nothing with `method` none")
    skipped = Skipped(strict=strict, quiet=not is_first)
    paths: list[str | None] = [*shards] if shards else [None]
    from cdcca_cli import config

    is_asked = teacher is not None or how.needs_teacher
    inputs = [*paths, *(replay or []), *([resume] if resume else [])]
    distributed.check_shared(inputs, how, config.named_teacher(teacher) if is_asked else None)
    with ExitStack() as opened:
        sources = [opened.enter_context(streams.binary_input(path)) for path in paths]
        replayed = [opened.enter_context(streams.binary_input(path)) for path in replay or []]
        out: BinaryIO = io.BytesIO()
        if is_first:
            file = streams.binary_output(output, "adaptation.safetensors", force=force)
            out = opened.enter_context(file)

        from cdcca_cli.distillation import distill as distilling
        from cdcca_cli.distillation import peft_export
        from cdcca_cli.distillation.step_log import StepLog
        from cdcca_cli.formats.adaptation import read_adaptation, write_adaptation

        earlier = None
        if resume is not None:
            with streams.binary_input(resume) as adapted:
                earlier = read_adaptation(adapted, where=streams.input_name(resume))
        mirror = config.device(student, "student")
        if peft is not None:
            peft_export.check_peft(peft, mirror, force)
        on.set_threads()
        distributed.start(on.compute)
        named = config.teacher(teacher) if is_asked else None
        large, how = distilling.load_teacher(named, how, on.compute, on.dtype)
        adaptation = distilling.distill(
            _read(paths, sources, skipped),
            large,
            mirror,
            how,
            resume=earlier,
            student=distilling.load_student(mirror, large, on.compute, on.dtype),
            earlier=_read(replay or [], replayed, skipped),
            log=opened.enter_context(closing(StepLog(log if is_first else None))),
            skipped=skipped,
            unload_teacher=True,
        )
        write_adaptation(out, adaptation)
        if peft is not None and is_first:
            peft_export.export_peft(peft, adaptation.overlay, mirror)
    *lines, last = distilling.summary(adaptation)
    for line in lines:
        streams.message(line)
    streams.summary(f"{last}{skipped}")


def _read(
    paths: Sequence[str | None], sources: Sequence[BinaryIO], skipped: "Skipped"
) -> "Iterator[Shard]":
    """The shards of several streams, without those that have values that are not finite."""
    from cdcca_cli.formats.shard_stream import read_shards

    refused = partial(skipped.add, "shard")
    for path, source in zip(paths, sources, strict=True):
        for shard in read_shards(source, where=streams.input_name(path), refused=refused):
            skipped.num_sound += 1
            yield shard
