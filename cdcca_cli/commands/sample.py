"""`cdcca sample`: frames to token shards, the uplink."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdcca_cli import streams

if TYPE_CHECKING:
    from cdcca_cli.formats.predictions import Prediction


def command(
    frames: Annotated[
        Path,
        typer.Argument(
            help="A folder of images, an image, a manifest, an annotation file or a video.",
            show_default=False,
        ),
    ],
    device: Annotated[
        str | None, typer.Option("--device", "-m", help="The device folder to sample with.")
    ] = None,
    predictions: Annotated[
        str | None,
        typer.Option(help="Take entropies from this file of infer (- is stdin), do not answer."),
    ] = None,
    top: Annotated[
        str | None,
        typer.Option(help="Send the asks of highest entropy: 10% of them, or 12.  [default: 10%]"),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Send the asks of at least so many nats.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Send from the highest entropy down what fits in, say, 64KiB."),
    ] = None,
    entropy: Annotated[
        str, typer.Option(help="An answer's entropy over its tokens: mean, sum, max or first.")
    ] = "mean",
    keep: Annotated[
        str | None,
        typer.Option(help="Keep the best tokens of a frame: 50% of them, or 18.  [default: 50%]"),
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help="Keep the tokens whose variance is above this.")
    ] = None,
    by: Annotated[
        str, typer.Option(help="What makes a token good: vis (dropout variance), norm or random.")
    ] = "vis",
    passes: Annotated[int, typer.Option(help="Passes with dropout.")] = 8,
    dropout: Annotated[float, typer.Option(help="The rate of dropout.")] = 0.1,
    blocks: Annotated[int, typer.Option(help="Last vision blocks that get dropout.")] = 2,
    bits: Annotated[int, typer.Option(help="Send tokens in 8, 16 or 32 bits a number.")] = 8,
    state: Annotated[
        Path | None,
        typer.Option(help="Remember the frames looked at in this file, and skip them next time."),
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
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Longest answer, in tokens.  [default: 16; captions 40]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of dropout, and of --by random.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Asks answered at once.")] = 32,
    compute: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads to compute with.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first bad frame or question.")
    ] = False,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="The shards' file; - is stdout.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the usual file, where no -o is given.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr.")] = False,
) -> None:
    """Pick the uncertain tokens of the uncertain frames, for the cloud.

    Shards go out in the order of the frames, with the questions that were picked and no labels. A
    frame that cannot be read is named and left out. With --state, frames that were sampled before
    are skipped; nothing new gives an empty stream.

    Example: cdcca sample frames/ -m device/ --budget 64KiB | ssh cloud cdcca distill
    """
    streams.set_quiet(quiet)
    from cdcca_cli import text
    from cdcca_cli.commands import settings
    from cdcca_cli.datasets import read_frames
    from cdcca_cli.formats import shard
    from cdcca_cli.skipped import Skipped
    from cdcca_cli.uplink.seen import Seen

    source = Seen(read_frames(frames, images=images, prompt=prompt, task=task), state)
    runtime = settings.runtime(compute, dtype, threads)

    from cdcca_cli.models import load_device
    from cdcca_cli.uplink.sampling import sample_frames
    from cdcca_cli.uplink.settings import SampleSettings

    how = SampleSettings(
        top=settings.parsed("top", text.parse_amount, top),
        threshold=threshold,
        budget_bytes=settings.parsed("budget", text.parse_bytes, budget),
        keep=settings.parsed("keep", text.parse_amount, keep),
        beta=beta,
        by=by,
        entropy=entropy,
        passes=passes,
        dropout=dropout,
        blocks=blocks,
        bits=bits,
        seed=seed,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
    )
    skipped = Skipped(strict=strict or (state is None and len(source) == 1))
    folder = settings.device(device)
    with (
        streams.binary_output(output, "uplink.tokens", force=force) as out,
        shard.writer(out) as write,
    ):
        sizes = []
        if len(source):
            model = load_device(folder, compute=runtime.compute, dtype=runtime.dtype)
            earlier = None if predictions is None else _read(predictions)
            sizes = [write(item) for item in sample_frames(model, source, how, earlier, skipped)]
            if state is None:  # with it a job goes on: these frames are remembered as bad
                skipped.refuse_if_all()
    source.save()
    streams.message(
        f"{len(sizes):,} of {len(source):,} frames picked, {sum(sizes):,} bytes of shards{skipped}"
    )


def _read(path: str) -> "Iterator[Prediction]":
    from cdcca_cli.formats.predictions import read_predictions

    with streams.text_input(path) as lines:
        yield from read_predictions(lines, where=streams.input_name(path))
