"""`cdcca loop`: Algorithm 1 on one machine."""

from pathlib import Path
from typing import Annotated

import typer

from cdcca_cli import streams
from cdcca_cli.config import Runtime
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.downlink.settings import CompressSettings
from cdcca_cli.errors import SettingError
from cdcca_cli.options import (
    Anchors,
    Device,
    FramesOperand,
    Images,
    Json,
    Only,
    Quiet,
    Sign,
    Teacher,
    no_dash,
)
from cdcca_cli.teachers.settings import LabelSettings
from cdcca_cli.uplink.settings import PayloadSettings, SampleSettings


def command(
    *,
    frames: FramesOperand,
    device: Device = None,
    teacher: Teacher = None,
    student: Annotated[
        str | None,
        typer.Option(help="Mirror  [default: a copy of the device in the output folder]"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Largest number of rounds")] = 10,
    probe: Annotated[
        str | None,
        typer.Option(
            help="Labelled frames to score before and after each round; never sent",
            callback=no_dash,
        ),
    ] = None,
    probe_images: Annotated[
        Path | None, typer.Option(help="Folder that the probe's image names are relative to")
    ] = None,
    anchors: Anchors = None,
    sample: Annotated[SampleSettings, Only("sample", ("top", "keep", "seed", "batch_size"))],
    coding: Annotated[
        PayloadSettings, Only("sample", ("payload", "codec", "step", "max_loss", "quality"))
    ],
    distill: Annotated[
        DistillSettings,
        Only("distill", ("method", "labels", "epochs", "lr", "seed", "batch_size")),
    ],
    label: Annotated[LabelSettings, Only("label", ("teacher_quantize",))],
    compress: Annotated[CompressSettings, Only("compress", ("budget_bytes",))],
    sign: Sign = None,
    images: Images = None,
    on: Runtime,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the files of each round")
    ] = Path("rounds"),
    force: Annotated[
        bool, typer.Option("--force", help="Replace the rounds of an earlier run in that folder")
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Sample, distil, compress and apply, round after round, until nothing is gained.

    A round has gained if the 95 % interval of the gain on its held-out frames is above zero. The
    files of each round stay in the output folder; device and mirror end with the same digest. Other
    settings of the stages come from [sample], [label], [distill] and [compress] in cdcca.toml.

    Example: cdcca loop frames/ -m device/ --teacher t/ --rounds 3 --probe heldout/
    """
    streams.set_quiet(quiet)
    from cdcca_cli import config
    from cdcca_cli.acceptance import read_validation_set
    from cdcca_cli.datasets import read_frames
    from cdcca_cli.downlink.keys import read_private_keys
    from cdcca_cli.loop import rounds as loop
    from cdcca_cli.loop.history import COLUMNS

    if probe_images is not None and probe is None:
        raise SettingError("probe_images", "does nothing without `probe`")
    if anchors:
        distill.check_anchors(are_given=True)
    keys = read_private_keys(sign or [], at_least=0)
    source = read_frames(frames, images=images)
    labelled = None if probe is None else read_validation_set(probe, probe_images)
    work = loop.Work(output, force=force)
    on.set_threads()
    cycle = loop.Cycle(
        config.device(device),
        None if student is None else config.device(student, "student"),
        config.teacher(teacher),
        loop.RoundSettings(sample, coding, label, distill, compress, tuple(keys)),
        work,
        on,
        anchors or (),
    )
    named = {"frames": frames} | ({} if probe is None else {"probe": probe})
    history = loop.run(cycle, source, rounds, labelled, named)
    streams.summary(history.summary())
    if json or not streams.is_terminal("stdout"):
        streams.emit_json(history.as_json())
    else:
        streams.emit_table(str(probe or frames), COLUMNS, history.rows())
