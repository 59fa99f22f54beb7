"""`cdcca distill`: token shards to an adaptation, on the cloud."""

import io
from contextlib import ExitStack
from typing import Annotated, BinaryIO

import typer

from cdcca_cli import streams
from cdcca_cli.config import Runtime
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.errors import SettingError, UsageError
from cdcca_cli.options import Anchors, Force, Output, Quiet, Shards, Strict, Student, Teacher
from cdcca_cli.teachers.settings import LabelSettings, ServerSettings


def command(
    *,
    shards: Shards = None,
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
    anchors: Anchors = None,
    how: DistillSettings,
    asking: LabelSettings,
    server: ServerSettings,
    on: Runtime,
    log: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<file>",
            help="File to add one JSON line per step to, or tensorboard:FOLDER, trackio:PROJECT, "
            "mlflow:URI or wandb:PROJECT (repeatable)",
        ),
    ] = None,
    output: Output = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Train the small model towards the large one's answers to the shards, without images.

    Only norms, biases, query tokens and LoRA are trained. Part of the frames is held out, on which
    the result is measured. The adaptation keeps these frames, by which compress chooses its step.

    Example: cdcca distill uplink.tokens --teacher t/ --student mirror/ | cdcca compress -o up.cdcca
    \f

    --method also takes the paper's method (akd) and its baselines, on the same shards, batches and
    steps. tent and cotta need no teacher; if one is named, it evaluates the held-out part. With
    --labels FILE the teacher is asked once: the next run, method or seed reads the file, which
    cdcca label makes too.

    --anchors holds the student to its first answers on frames of its source domain, so that it
    forgets less of it, and learns at twice the rate.

    --rate-aware 100 adds steps that train the overlay as the device will decode it, so that an
    update of --bits a parameter loses next to nothing.

    Under `accelerate launch` all processes work together (shards from files, and --labels or
    --work): accelerate launch --num_processes 4 -m cdcca_cli distill uplink.tokens --work w ...

    --log takes a file, which gets JSON lines, or a tracker: tensorboard:FOLDER, trackio:PROJECT,
    mlflow:URI (a server, a database or a folder) or wandb:PROJECT, each an extra (pip install
    'cdcca[tensorboard]'). A file of such a name is ./wandb:x. A tracker gets the same figures at
    the same steps, and the settings. If it fails later on, it is named, and training goes on.

    --set NAME=VALUE tunes one method or one term of the loss; --set help prints these settings.
    """
    streams.set_quiet(quiet)
    from cdcca_cli import distributed
    from cdcca_cli.distillation import trackers
    from cdcca_cli.skipped import Skipped

    logged = trackers.places(log or [])
    is_first = distributed.announced_rank() == 0
    if not is_first:
        streams.set_quiet(True)
    for name in () if replay else ("replay_share", "replay_questions"):
        if getattr(how, name) != getattr(DistillSettings, name):
            raise SettingError(name, "is of the frames of `replay`: name them")
    if replay and how.method == "none":
        raise SettingError("replay", "does nothing with `method` none")
    how.check_anchors(are_given=bool(anchors))
    skipped = Skipped(strict=strict, quiet=not is_first)
    paths: list[str | None] = [*shards] if shards else [None]
    from cdcca_cli import config

    named = config.named_teacher(teacher) if teacher is not None or how.needs_teacher else None
    is_asked = named is not None or (how.needs_teacher and not how.labels)
    if not is_asked:
        from cdcca_cli.teachers.opening import check_not_loaded

        check_not_loaded(asking)
    inputs = [*paths, *(replay or []), *(anchors or []), *([resume] if resume else [])]
    num_processes = distributed.announced()
    if num_processes > 1 and any(path in (None, "-") for path in inputs):
        raise UsageError(f"{num_processes} processes cannot share one pipe: name the shards' files")
    if num_processes > 1 and is_asked and not (how.work or how.labels):
        raise UsageError(
            f"{num_processes} processes share the teacher's labels in a file: give `labels` or "
            "`work`, where all of them can read it"
        )
    with ExitStack() as opened:
        sources, replayed, held_to = (
            [
                (streams.input_name(path), opened.enter_context(streams.binary_input(path)))
                for path in each
            ]
            for each in (paths, replay or [], anchors or [])
        )
        out: BinaryIO = io.BytesIO()
        if is_first:
            file = streams.binary_output(output, "adaptation.safetensors", force=force)
            out = opened.enter_context(file)

        from cdcca_cli.distillation import distill as distilling
        from cdcca_cli.distillation.step_log import StepLog
        from cdcca_cli.formats.adaptation import read_adaptation, write_adaptation
        from cdcca_cli.formats.shard_stream import read_all
        from cdcca_cli.teachers.local import LocalTeacher
        from cdcca_cli.teachers.opening import open_teacher

        earlier = None
        if resume is not None:
            with streams.binary_input(resume) as adapted:
                earlier = read_adaptation(adapted, where=streams.input_name(resume))
        mirror = config.device(student, "student")
        on.set_threads()
        distributed.start(on.compute)
        asked = (
            open_teacher(config.teacher(teacher), asking, server, on, skipped=skipped)
            if is_asked
            else None
        )
        large = asked.model if isinstance(asked, LocalTeacher) else None
        adaptation = distilling.distill(
            read_all(sources, skipped),
            asked,
            mirror,
            how,
            asking=asking,
            resume=earlier,
            student=distilling.load_student(mirror, large, on.compute, on.dtype),
            earlier=read_all(replayed, skipped),
            anchors=read_all(held_to, skipped) if held_to else None,
            log=opened.enter_context(StepLog(*(logged if is_first else []), run=how.method)),
            skipped=skipped,
            unload_teacher=True,
        )
        write_adaptation(out, adaptation)
    *lines, last = distilling.summary(adaptation)
    for line in lines:
        streams.message(line)
    streams.summary(f"{last}{skipped}")
