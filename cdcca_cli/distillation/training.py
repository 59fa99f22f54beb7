"""K of Equation 1 as one call: shards, a teacher and a mirror to an adaptation.

`lessons` asks the teacher, `run` trains; here they are joined. Neither file nor stream is opened
here but the work folder.
"""

from collections.abc import Iterable

from cdcca_cli import streams
from cdcca_cli.distillation import lessons
from cdcca_cli.distillation.run import METHOD, Run
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.distillation.trainable import check_overlay_names
from cdcca_cli.families import LoadedModel, load_device
from cdcca_cli.formats.adaptation import Adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.shard import Shard

__all__ = ["DistillSettings", "distill", "summary"]


def distill(
    shards: Iterable[Shard],
    teacher: LoadedModel,
    mirror: Device,
    settings: DistillSettings,
    *,
    resume: Adaptation | None = None,
    student: LoadedModel | None = None,
) -> Adaptation:
    """Teach the mirror's student what the teacher says of the shards (Eq. 6).

    Args:
        mirror: the device folder as the cloud has it; it is not changed.
        resume: go on from this adaptation's overlay, not from the mirror's.
        student: the mirror's model, if it is loaded already; it is left with the overlay trained.
    Returns: the overlay after training; its base is the mirror's current overlay.
    Raises: BadData for an empty stream, a shard of another vision tower, a teacher that answers
        with nothing, an adaptation of another student; UsageError for settings that cannot be;
        CannotWrite for the work folder.
    """
    base = mirror.read_overlay()
    if resume is not None:
        check_overlay_names(resume.overlay, base, "--resume")
    if settings.work is not None:
        streams.make_folder(settings.work)
    if student is None:
        dtype = str(teacher.dtype).removeprefix("torch.")
        student = load_device(mirror, compute=teacher.compute, dtype=dtype)
    gathered = lessons.gather(shards, teacher, student, settings)
    start = base if resume is None else resume.overlay
    run = Run(student, mirror, start, gathered, settings, teacher.digest)
    try:
        overlay = run.train()
    finally:
        student.freeze()
    student.install_overlay(overlay, mirror.lora.alpha)
    return Adaptation(
        overlay=overlay,
        base=mirror.digest,
        sequence=mirror.sequence,
        method=METHOD,
        seed=settings.seed,
        report=run.report() | {"resumed": resume is not None},
    )


def summary(adaptation: Adaptation) -> str:
    """What training came to, in one line."""
    report = adaptation.report
    trained = f"{report['num_trained']} asks trained on"
    held = report["held_out"]
    if held is None:
        return f"{trained}, none held out: the last epoch is written"
    entropy, agreement = held["cross_entropy"], held["agreement"]
    return (
        f"{trained}; of {held['num_asks']} held out the student now answers "
        f"{agreement['after']:.0%} as the teacher does (before: {agreement['before']:.0%}); "
        f"cross-entropy {entropy['before']:.3f} -> {entropy['after']:.3f} nats "
        f"(gain {held['gain']['low']:.3f} to {held['gain']['high']:.3f}), "
        f"best after epoch {report['best_epoch']} of {report['epochs']}"
    )
