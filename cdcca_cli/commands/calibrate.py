"""`cdcca calibrate`: frames to a codebook, by which sample codes tokens."""

from typing import TYPE_CHECKING, Annotated

import typer

from cdcca_cli import remote, streams
from cdcca_cli.config import Runtime
from cdcca_cli.distillation.settings import CalibrationSettings
from cdcca_cli.options import (
    Force,
    FramesOperand,
    Images,
    Output,
    Prompt,
    Quiet,
    Sign,
    Strict,
    Student,
    Task,
    Teacher,
    no_dash,
)

if TYPE_CHECKING:
    from cdcca_cli.datasets import Frame
    from cdcca_cli.formats.shard import Shard


def command(
    *,
    source: FramesOperand,
    teacher: Teacher = None,
    student: Student = None,
    evaluate: Annotated[
        str | None,
        typer.Option(
            help="Frames to measure the curve on, instead of a part of the others",
            callback=no_dash,
        ),
    ] = None,
    strict: Strict = False,
    prompt: Prompt = None,
    task: Task = None,
    images: Images = None,
    how: CalibrationSettings,
    sign: Sign = None,
    on: Runtime,
    output: Output = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Make a codebook, by which sample codes the tokens of a device in few bits.

    It codes finely what the large model looks at, and coarsely the rest. Needed are frames like the
    device's, about 200, with questions and without labels, or the shards that a device sent. What
    each step costs, and how much it changes the large model's answers, is measured on frames that
    the codebook is not made from; the nearer these are to what the device will see, the truer. It
    gets the sequence after the mirror's codebook, so apply it to the device and to the mirror.

    Example: cdcca calibrate frames/ --student mirror/ --teacher t/ -o tokens.codebook
    """
    streams.set_quiet(quiet)
    from cdcca_cli import config
    from cdcca_cli.datasets import read_frames
    from cdcca_cli.downlink import keys, signatures
    from cdcca_cli.formats.codebook import write_codebook
    from cdcca_cli.formats.kind import sniff
    from cdcca_cli.formats.shard_stream import read_shards
    from cdcca_cli.skipped import Skipped

    def read(name: str) -> "list[Frame | Shard]":
        if (path := remote.local(name)).is_file():
            with streams.binary_input(path) as file:
                kind, stream = sniff(file, str(path))
                if kind == "shards":
                    return list(read_shards(stream, where=str(path)))
        return list(read_frames(name, images=images, prompt=prompt, task=task))

    frames, others = read(source), None if evaluate is None else read(evaluate)
    private = keys.read_private_keys(sign or [], at_least=0)
    mirror = config.device(student, "student")
    on.set_threads()
    with streams.binary_output(output, "tokens.codebook", force=force) as out:
        from cdcca_cli.distillation import calibration
        from cdcca_cli.models import load, load_device
        from cdcca_cli.payloads.opening import Opener

        made_from, measured = calibration.divide(frames, others, calibration.name_of, how)
        skipped = Skipped(strict=strict)
        small = load_device(mirror, compute=on.compute, dtype=on.dtype)
        opener, qualities = Opener(small, mirror.codebook_of), calibration.QUALITIES
        first = calibration.sample_of(small, made_from, skipped, opener)
        second = calibration.sample_of(small, measured, skipped, opener, qualities=qualities)
        large = load(config.teacher(teacher), compute=on.compute, dtype=on.dtype)
        made = calibration.calibrate(large, small, first, second, how, mirror.next_codebook)
        num_bytes = write_codebook(out, signatures.sign(made, private))
    streams.summary(f"{calibration.summary(made)}, {num_bytes:,} bytes{skipped}")
