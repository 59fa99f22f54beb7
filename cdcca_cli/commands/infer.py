"""`cdcca infer`: frames to predictions."""

import time
from pathlib import Path
from typing import Annotated

import typer

from cdcca_cli import progress, streams


def command(
    frames: Annotated[
        Path,
        typer.Argument(
            help="A folder of images, an image, a manifest, an annotation file or a video.",
            show_default=False,
        ),
    ],
    device: Annotated[
        str | None, typer.Option("--device", "-m", help="The device folder to answer with.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Ask this of every frame, not what the source asks.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="vqa or caption: only the asks of this task.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="The folder that a manifest's image names start from.")
    ] = None,
    per_token: Annotated[
        bool, typer.Option("--per-token", help="Give the entropy of each answer token too.")
    ] = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Longest answer, in tokens.  [default: 16; captions 40]"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Asks answered at once.")] = 32,
    compute: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads to compute with.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first bad frame or question.")
    ] = False,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="The predictions' file; - is stdout.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr.")] = False,
) -> None:
    """Answer the questions about each frame, with the entropy of each answer.

    Predictions are JSON lines, one per question, in the order of the frames: a free answer, the
    entropy of its tokens in nats, and with choices the likelihood of each of them. A frame that
    cannot be read is named and left out.

    Example: cdcca infer frames/ -m device/ --prompt 'What is on the road?' | jq .answer
    """
    streams.set_quiet(quiet)
    from cdcca_cli.commands import settings
    from cdcca_cli.datasets import read_frames
    from cdcca_cli.formats.predictions import encode_line

    source = read_frames(frames, images=images, prompt=prompt, task=task)
    runtime = settings.runtime(compute, dtype, threads)

    from cdcca_cli.models import load_device
    from cdcca_cli.skipped import Skipped
    from cdcca_cli.text import counted
    from cdcca_cli.uplink.answers import answer_frames
    from cdcca_cli.uplink.settings import AnswerSettings

    how = AnswerSettings(batch_size, max_new_tokens, per_token)
    skipped = Skipped(strict=strict or len(source) == 1)
    started = time.monotonic()
    folder = settings.device(device)
    model = load_device(folder, compute=runtime.compute, dtype=runtime.dtype)
    with streams.text_output(output) as out:
        tracked = progress.track(source, description="infer")
        for prediction in answer_frames(model, tracked, how, skipped):
            out.write(encode_line(prediction))
            out.flush()  # the reader of a pipe gets it now, not 64 KiB later
        skipped.refuse_if_all()
    if skipped.count or time.monotonic() - started > 1:
        streams.message(
            f"{counted(skipped.num_sound, 'question')} answered about "
            f"{counted(len(source), 'frame')}{skipped}"
        )
