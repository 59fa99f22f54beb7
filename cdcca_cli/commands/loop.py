"""`cdcca loop`: Algorithm 1 on one machine."""

from pathlib import Path
from typing import Annotated

import typer

from cdcca_cli import streams


def command(
    frames: Annotated[
        Path,
        typer.Argument(
            help="A folder of images, an image, a manifest, an annotation file or a video.",
            show_default=False,
        ),
    ],
    device: Annotated[
        str | None, typer.Option("--device", "-m", help="The device folder to adapt.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="The teacher: a checkpoint folder or a hub id.")
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(help="The mirror of the device.  [default: a copy in the output folder]"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Stop after so many rounds at most.")] = 10,
    probe: Annotated[
        Path | None,
        typer.Option(help="Labelled frames to score before and after each round; never sent."),
    ] = None,
    probe_images: Annotated[
        Path | None, typer.Option(help="The folder that the probe's image names start from.")
    ] = None,
    top: Annotated[str, typer.Option(help="Send the asks of highest entropy: 10%, or 12.")] = "10%",
    keep: Annotated[str, typer.Option(help="Keep the best tokens of a frame: 50%, or 18.")] = "50%",
    method: Annotated[
        str, typer.Option(help="akd, pseudo-label, pkd, cwd, tent, cotta or none.")
    ] = "akd",
    cache: Annotated[
        Path | None,
        typer.Option(help="Keep what the teacher says in this file; ask only for what it lacks."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Times over the shards in a round.")] = 3,
    lr: Annotated[float | None, typer.Option(help="Step size.  [default: by width]")] = None,
    budget: Annotated[
        str | None, typer.Option(help="The most that an update may have, such as 800KB.")
    ] = None,
    sign: Annotated[
        list[Path] | None,
        typer.Option(help="Sign updates with this private key (repeatable).", envvar="CDCCA_SIGN"),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="The folder that a manifest's image names start from.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder for every round's files.")
    ] = Path("rounds"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling and training.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Asks at once.")] = 16,
    compute: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads to compute with.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Sample, distil, compress and apply, round after round, until nothing is gained.

    A round has gained if the 95 % interval of its held-out part's gain lies above zero. The files
    of each round stay in the output folder; device and mirror end with the same digest.

    Example: cdcca loop frames/ -m device/ --teacher t/ --rounds 3 --probe heldout/
    """
    streams.set_quiet(quiet)
    from cdcca_cli import text
    from cdcca_cli.commands import settings
    from cdcca_cli.datasets import read_frames
    from cdcca_cli.distillation.settings import DistillSettings
    from cdcca_cli.downlink import signing
    from cdcca_cli.downlink.settings import CompressSettings
    from cdcca_cli.loop import rounds as cycles
    from cdcca_cli.loop.history import COLUMNS
    from cdcca_cli.probe import read_probe
    from cdcca_cli.uplink.sampling import SampleSettings

    keys = tuple(signing.read_private_keys(sign or [], at_least=0))
    source = read_frames(frames, images=images)
    runtime = settings.runtime(compute, dtype, threads)
    how = cycles.RoundSettings(
        sample=SampleSettings(
            top=text.parse_amount(top, "--top"),
            keep=text.parse_amount(keep, "--keep"),
            batch_size=batch_size,
            seed=seed,
        ),
        distill=DistillSettings(
            method=method, epochs=epochs, lr=lr, batch_size=batch_size, seed=seed, cache=cache
        ),
        compress=CompressSettings(
            budget_bytes=None if budget is None else text.parse_bytes(budget, "--budget"),
            num_signatures=len(keys),
        ),
        keys=keys,
    )
    labelled = None if probe is None else read_probe(probe, probe_images)
    folder = settings.device(device)
    cycle = cycles.Cycle(
        folder,
        None if student is None else settings.device(student, "student"),
        settings.teacher(teacher),
        how,
        output,
        compute=runtime.compute,
        dtype=runtime.dtype,
    )
    history = cycles.follow(cycle, source, rounds, labelled)
    if json or not streams.is_terminal("stdout"):
        streams.emit_json(history.as_json())
    else:
        streams.emit_table(str(probe or frames), COLUMNS, history.rows())
