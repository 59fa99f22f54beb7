"""`cdcca distill`: token shards to an adaptation, on the cloud."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from cdcca_cli import streams
from cdcca_cli.config import Runtime
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.options import Force, Output, Quiet, Student, Teacher


def command(
    *,
    shards: Annotated[
        list[str] | None,
        typer.Argument(help="Token shards of sample  [default: stdin]", show_default=False),
    ] = None,
    teacher: Teacher = None,
    student: Student = None,
    resume: Annotated[
        str | None,
        typer.Option(help="Adaptation to go on from; what its coding rounded off is sent next"),
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
    """Teach the small model what the large one answers to the shards; no image is needed.

    Only norms, biases, query tokens and LoRA are trained, towards the teacher's queries, its
    representation and its own answers. Part of the frames is held out and decides which state is
    written, the start included: on that part, the result is never worse than before. It is kept in
    the adaptation, for compress to choose its step by.

    --method takes the baselines of the paper, on the same shards, batches and steps. tent and cotta
    need no teacher; one that is named judges the held-out part. With --cache FILE a teacher is
    asked once: the next run, method or seed reads the file, and so does --teacher FILE.

    --rate-aware 100 adds steps in which the student sees the overlay as the device will decode it,
    so that an update of --bits a parameter loses next to nothing.

    Under `accelerate launch` all processes work together (shards from files, and a --cache or
    --work): accelerate launch --num_processes 4 -m cdcca_cli distill uplink.tokens --work w ...

    What tunes one method or one term of the loss is given with --set NAME=VALUE, such as
    --set kl_weight=0.5. cdcca distill --set help prints all of these settings.

    Example: cdcca distill uplink.tokens --teacher t/ --student mirror/ | cdcca compress -o up.cdcca
    """
    streams.set_quiet(quiet)
    paths: list[str | None] = [*shards] if shards else [None]
    from cdcca_cli.distillation import launch

    together = launch.Together(paths)
    if launch.asks_a_teacher(teacher, how):
        together.check_folder(how.work or how.cache or launch.labels_file(teacher))
    with ExitStack() as opened:
        sources = [opened.enter_context(streams.binary_input(path)) for path in paths]
        replayed = [opened.enter_context(streams.binary_input(path)) for path in replay or []]
        out = opened.enter_context(together.output(output, force))

        from cdcca_cli import config
        from cdcca_cli.distillation import trainable, training
        from cdcca_cli.distillation.step_log import StepLog
        from cdcca_cli.formats.adaptation import write_adaptation

        launch.check(how, replay or [])
        earlier = launch.adaptation(resume)
        mirror = config.device(student, "student")
        if peft is not None:
            trainable.check_peft(peft, mirror, force)
        on.set_threads()
        together.start(on.compute)
        named = config.teacher(teacher) if launch.asks_a_teacher(teacher, how) else None
        large, how = launch.teacher(named, how, on.compute, on.dtype)
        adaptation = training.distill(
            launch.shards(paths, sources),
            large,
            mirror,
            how,
            resume=earlier,
            student=training.load_student(mirror, large, on.compute, on.dtype),
            earlier=launch.shards(replay or [], replayed),
            log=StepLog(together.first_only(log)),
        )
        write_adaptation(out, adaptation)
        if peft is not None and together.is_first:
            trainable.export_peft(peft, adaptation.overlay, mirror)
    *lines, last = training.summary(adaptation)
    for line in lines:
        streams.message(line)
    streams.summary(last)
