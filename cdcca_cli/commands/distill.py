"""`cdcca distill`: token shards to an adaptation, on the cloud."""

import io
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from cdcca_cli import streams

_LOSS, _TEACHER = "The loss", "The teacher and its lessons"
_STEPS, _WITHOUT, _RUN = "Steps", "Without a teacher", "This run"


def command(
    shards: Annotated[
        list[str] | None,
        typer.Argument(help="Token shards of sample.  [default: stdin]", show_default=False),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="The large model: a checkpoint folder, a hub id, or a --cache it has filled."
        ),
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="The mirror: the device folder as the cloud has it.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="akd, pseudo-label, pkd, cwd, tent, cotta or none.")
    ] = "akd",
    resume: Annotated[
        str | None,
        typer.Option(help="Go on from this adaptation: what coding rounded off is sent next."),
    ] = None,
    query_weight: Annotated[
        float | None,
        typer.Option(
            help="Of the query alignment.  [default: akd 0.03, pkd 6, cwd 3]", rich_help_panel=_LOSS
        ),
    ] = None,
    repr_weight: Annotated[
        float | None,
        typer.Option(
            help="Of the representation alignment.  [default: akd 0.1, pkd 6, cwd 3]",
            rich_help_panel=_LOSS,
        ),
    ] = None,
    ce_weight: Annotated[
        float | None,
        typer.Option(
            help="Of the cross-entropy on the teacher's answers.  [default: 1]",
            rich_help_panel=_LOSS,
        ),
    ] = None,
    balance: Annotated[
        str | None,
        typer.Option(
            help="gradients: a weight of 1 pulls as hard as the cross-entropy; none: terms as "
            "they are.  [default: akd gradients, others none]",
            rich_help_panel=_LOSS,
        ),
    ] = None,
    repr_at: Annotated[
        str | None,
        typer.Option(
            help="Compare representations at visual positions, at the answer's, or both.  "
            "[default: both]",
            rich_help_panel=_LOSS,
        ),
    ] = None,
    tau: Annotated[
        float | None, typer.Option(help="Temperature of cwd.  [default: 4]", rich_help_panel=_LOSS)
    ] = None,
    kl: Annotated[
        str,
        typer.Option(
            help="Learn the teacher's distributions, too: none, forward or reverse.",
            rich_help_panel=_LOSS,
        ),
    ] = "none",
    kl_weight: Annotated[
        float | None, typer.Option(help="Of that.  [default: 1]", rich_help_panel=_LOSS)
    ] = None,
    kl_temperature: Annotated[
        float | None,
        typer.Option(help="Of both distributions.  [default: 1]", rich_help_panel=_LOSS),
    ] = None,
    confidence: Annotated[
        bool,
        typer.Option(
            "--confidence",
            help="Weigh each answer by the teacher's own probability of it.",
            rich_help_panel=_LOSS,
        ),
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Keep what the teacher says in this file; ask only for what it lacks.",
            rich_help_panel=_TEACHER,
        ),
    ] = None,
    cache_bits: Annotated[
        int | None,
        typer.Option(
            help="32, 16 or 8: how a new file keeps numbers.  [default: 16]",
            rich_help_panel=_TEACHER,
        ),
    ] = None,
    teacher_quantize: Annotated[
        str,
        typer.Option(
            help="Load its language model as none, int8 or nf4.", rich_help_panel=_TEACHER
        ),
    ] = "none",
    teacher_device_map: Annotated[
        str | None,
        typer.Option(
            help="auto: spread it over all GPUs, and over memory.", rich_help_panel=_TEACHER
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Times over the shards.", rich_help_panel=_STEPS)] = 3,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Step size.  [default: by the width of the language model]",
            rich_help_panel=_STEPS,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Asks in a step.", rich_help_panel=_STEPS)] = 16,
    micro_batch_size: Annotated[
        int | None,
        typer.Option(
            help="Asks in one pass; gradients add up to a step. pkd's and cotta's statistics are "
            "of a pass.  [default: 8 or fewer, one pass a process; pkd, cotta: all]",
            rich_help_panel=_STEPS,
        ),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            help="Train these groups alone: norm, bias, query, lora.  [default: all; tent: norm]",
            rich_help_panel=_STEPS,
        ),
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(
            help="Write a running mean of the overlay, of this decay.", rich_help_panel=_STEPS
        ),
    ] = None,
    replay: Annotated[
        list[str] | None,
        typer.Option(
            help="Learn some of these earlier shards again (repeatable).", rich_help_panel=_STEPS
        ),
    ] = None,
    replay_share: Annotated[
        str | None,
        typer.Option(help="How many of their frames.  [default: 25%]", rich_help_panel=_STEPS),
    ] = None,
    holdout: Annotated[
        str,
        typer.Option(help="The share of the frames that only judges.", rich_help_panel=_STEPS),
    ] = "10%",
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop after so many epochs without a gain there.", rich_help_panel=_STEPS
        ),
    ] = None,
    rate_aware: Annotated[
        int,
        typer.Option(
            help="So many more steps, seen as few bits say them: a smaller update.",
            rich_help_panel=_STEPS,
        ),
    ] = 0,
    bits: Annotated[
        float | None,
        typer.Option(
            help="Bits a parameter that --rate-aware trains for.  [default: 1.2]",
            rich_help_panel=_STEPS,
        ),
    ] = None,
    cotta_ema: Annotated[
        float | None,
        typer.Option(
            help="Decay of cotta's mean teacher.  [default: 0.999]", rich_help_panel=_WITHOUT
        ),
    ] = None,
    cotta_restore: Annotated[
        float | None,
        typer.Option(
            help="Share of parameters that a step puts back to the source.  [default: 0.01]",
            rich_help_panel=_WITHOUT,
        ),
    ] = None,
    cotta_threshold: Annotated[
        float | None,
        typer.Option(
            help="Average views where the source model is less sure.  [default: 0.92]",
            rich_help_panel=_WITHOUT,
        ),
    ] = None,
    cotta_views: Annotated[
        int | None, typer.Option(help="How many views.  [default: 32]", rich_help_panel=_WITHOUT)
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            help="Seed of the order of asks, of replay, and of cotta's draws.",
            rich_help_panel=_RUN,
        ),
    ] = 0,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Keep the teacher's lessons and each epoch here, to go on after a stop.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(help="One JSON line a step, added to this file.", rich_help_panel=_RUN),
    ] = None,
    peft: Annotated[
        Path | None,
        typer.Option(help="Write the LoRA part as a PEFT adapter, too.", rich_help_panel=_RUN),
    ] = None,
    compute: Annotated[
        str, typer.Option(help="cpu, cuda, mps or auto.", rich_help_panel=_RUN)
    ] = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16 or auto.", rich_help_panel=_RUN)
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads to compute with.", rich_help_panel=_RUN)
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="The adaptation's file; - is stdout.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the usual file, where no -o is given.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr.")] = False,
) -> None:
    """Teach the small model what the large one says of the shards; no image is needed.

    Only norms, biases, query tokens and LoRA are trained, towards the teacher's queries, its
    representation and its own answers. Part of the frames is held out and decides which state is
    written, the start included: never worse than before, on that part. It is kept in the
    adaptation, for compress to choose its step by.

    --method takes the baselines of the paper, on the same shards, batches and steps. tent and cotta
    ask no teacher; one that is named judges the held-out part. --cache FILE asks a teacher once:
    the next run, method or seed reads it, and --teacher FILE needs no teacher any more.

    --rate-aware 100 adds steps in which the student sees the overlay as the device will decode it,
    so that an update of --bits a parameter loses next to nothing.

    Under `accelerate launch` all processes work together (shards from files, and a --cache or
    --work): accelerate launch --num_processes 4 -m cdcca_cli distill uplink.tokens --work w ...

    Example: cdcca distill uplink.tokens --teacher t/ --student mirror/ | cdcca compress -o up.cdcca
    """
    streams.set_quiet(quiet)
    paths: list[str | None] = [*shards] if shards else [None]
    from cdcca_cli.commands import settings
    from cdcca_cli.distillation import distributed
    from cdcca_cli.distillation.settings import DistillSettings
    from cdcca_cli.errors import SettingError, UsageError
    from cdcca_cli.settings import refuse_idle, value_of

    is_first = distributed.announced_rank() == 0
    if not is_first:
        streams.set_quiet(True)
    said = {
        "holdout": holdout,
        "replay_share": replay_share,
        "train": train,
    }
    given = {
        **{name: value_of(DistillSettings, name, text) for name, text in said.items() if text},
        **{
            name: value
            for name, value in {
                "query_weight": query_weight,
                "repr_weight": repr_weight,
                "ce_weight": ce_weight,
                "kl_weight": kl_weight,
                "kl_temperature": kl_temperature,
                "balance": balance,
                "repr_at": repr_at,
                "tau": tau,
                "cache": cache,
                "cache_bits": cache_bits,
                "teacher_device_map": teacher_device_map,
                "lr": lr,
                "micro_batch_size": micro_batch_size,
                "ema": ema,
                "patience": patience,
                "bits": bits,
                "cotta_ema": cotta_ema,
                "cotta_restore": cotta_restore,
                "cotta_threshold": cotta_threshold,
                "cotta_views": cotta_views,
                "work": work,
            }.items()
            if value is not None
        },
    }
    if bits is not None and not rate_aware:
        raise SettingError("bits", "is what `rate_aware` trains for: give both or neither")
    if replay_share is not None and not replay:
        raise SettingError("replay_share", "is of the frames of `replay`: name them")
    if log == Path("-"):
        raise UsageError("`log` -: expected a file; /dev/stderr is one")
    if train == "":
        raise SettingError("train", "expected some of norm, bias, query, lora", train)
    how = DistillSettings(
        method=method,
        epochs=epochs,
        batch_size=batch_size,
        kl=kl,
        confidence=confidence,
        teacher_quantize=teacher_quantize,
        rate_aware=rate_aware,
        seed=seed,
        **given,
    )
    refuse_idle(DistillSettings, method, {*given, *(["replay_share"] if replay else [])})
    distributed.check_shared(paths, how, teacher)
    with ExitStack() as opened:
        sources = [opened.enter_context(streams.binary_input(path)) for path in paths]
        replayed = [opened.enter_context(streams.binary_input(path)) for path in replay or []]
        out: BinaryIO = io.BytesIO()
        if is_first:
            opening = streams.binary_output(output, "adaptation.safetensors", force=force)
            out = opened.enter_context(opening)

        from cdcca_cli.distillation import peft_export
        from cdcca_cli.distillation.distill import (
            distill,
            load_student,
            load_teacher,
            summary,
        )
        from cdcca_cli.distillation.step_log import StepLog
        from cdcca_cli.formats.adaptation import read_adaptation, write_adaptation
        from cdcca_cli.formats.shard import Shard, read_shards

        def read(names: list[str | None], opened: list[BinaryIO]) -> Iterator[Shard]:
            for name, source in zip(names, opened, strict=True):
                where = streams.input_name(name)
                yield from read_shards(source, where=where, refused=streams.message)

        earlier = None
        if resume is not None:
            with streams.binary_input(resume) as file:
                earlier = read_adaptation(file, where=streams.input_name(resume))
        mirror = settings.device(student, "student")
        if peft is not None:
            peft_export.check_peft(peft, mirror, force)
        runtime = settings.runtime(compute, dtype, threads)
        is_asked = teacher is not None or how.needs_teacher
        named = settings.teacher(teacher) if is_asked else None
        distributed.start(runtime.compute)
        large, how = load_teacher(named, how, runtime.compute, runtime.dtype)
        steps = opened.enter_context(closing(StepLog(log if is_first else None)))
        adaptation = distill(
            read(paths, sources),
            large,
            mirror,
            how,
            resume=earlier,
            student=load_student(mirror, large, runtime.compute, runtime.dtype),
            earlier=read([*(replay or [])], replayed),
            log=steps,
        )
        write_adaptation(out, adaptation)
        if peft is not None and is_first:
            peft_export.export_peft(peft, adaptation.overlay, mirror)
    for line in summary(adaptation):
        streams.message(line)
