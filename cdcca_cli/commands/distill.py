"""`cdcca distill`: token shards to an adaptation, on the cloud."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from cdcca_cli import streams


def command(
    shards: Annotated[
        list[str] | None,
        typer.Argument(help="Token shards of sample.  [default: stdin]", show_default=False),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="The large model: a checkpoint folder or a hub id.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="The mirror: the device folder as the cloud has it.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(help="Go on from this adaptation: what coding rounded off is sent next."),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Times over the shards.")] = 3,
    lr: Annotated[
        float | None,
        typer.Option(help="Step size.  [default: by the width of the language model]"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Asks in a step.")] = 16,
    query_weight: Annotated[float, typer.Option(help="Weight of the query alignment.")] = 1.0,
    repr_weight: Annotated[
        float, typer.Option(help="Weight of the representation alignment.")
    ] = 1.0,
    ce_weight: Annotated[
        float, typer.Option(help="Weight of the cross-entropy on the teacher's answers.")
    ] = 1.0,
    holdout: Annotated[str, typer.Option(help="The share of the frames that only judges.")] = "10%",
    rate_aware: Annotated[
        int,
        typer.Option(help="So many more steps, seen as few bits say them: a smaller update."),
    ] = 0,
    bits: Annotated[
        float | None,
        typer.Option(help="Bits a parameter that --rate-aware trains for.  [default: 1.2]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order in which asks are taken.")] = 0,
    work: Annotated[
        Path | None,
        typer.Option(help="Keep teacher outputs and each epoch here, to go on after a stop."),
    ] = None,
    peft: Annotated[
        Path | None, typer.Option(help="Write the LoRA part as a PEFT adapter, too.")
    ] = None,
    compute: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads to compute with.")] = None,
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

    --rate-aware 100 adds steps in which the student sees the overlay as the device will decode it,
    so that an update of --bits a parameter loses next to nothing.

    Example: cdcca distill uplink.tokens --teacher t/ --student mirror/ | cdcca compress -o up.cdcca
    """
    streams.set_quiet(quiet)
    paths: list[str | None] = [*shards] if shards else [None]
    with ExitStack() as opened:
        sources = [opened.enter_context(streams.binary_input(path)) for path in paths]
        out = opened.enter_context(
            streams.binary_output(output, "adaptation.safetensors", force=force)
        )

        from cdcca_cli.amounts import parse_share
        from cdcca_cli.commands import settings
        from cdcca_cli.distillation import trainable, training
        from cdcca_cli.distillation.settings import LARGEST_HOLDOUT
        from cdcca_cli.errors import UsageError
        from cdcca_cli.families import load
        from cdcca_cli.formats.adaptation import read_adaptation, write_adaptation
        from cdcca_cli.formats.shard import read_shards

        if bits is not None and not rate_aware:
            raise UsageError("--bits says what --rate-aware trains for: give both or neither")
        how = training.DistillSettings(
            epochs=epochs,
            lr=lr,
            batch_size=batch_size,
            query_weight=query_weight,
            repr_weight=repr_weight,
            ce_weight=ce_weight,
            holdout=parse_share(holdout, "--holdout", LARGEST_HOLDOUT),
            rate_aware=rate_aware,
            bits=training.DistillSettings.bits if bits is None else bits,
            seed=seed,
            work=work,
        )
        earlier = None
        if resume is not None:
            with streams.binary_input(resume) as source:
                earlier = read_adaptation(source, where=streams.input_name(resume))
        mirror = settings.device(student, "student")
        if peft is not None:
            trainable.check_peft(peft, mirror, force)
        runtime = settings.runtime(compute, dtype, threads)
        large = load(settings.teacher(teacher), compute=runtime.compute, dtype=runtime.dtype)
        stream = (
            shard
            for path, source in zip(paths, sources, strict=True)
            for shard in read_shards(source, where=streams.input_name(path))
        )
        adaptation = training.distill(stream, large, mirror, how, resume=earlier)
        write_adaptation(out, adaptation)
        if peft is not None:
            trainable.export_peft(peft, adaptation.overlay, mirror)
    streams.message(training.summary(adaptation))
