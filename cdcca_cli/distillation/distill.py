"""K of Equation 1 as one call: shards, a teacher and a mirror to an adaptation.

dataset (teachers)  ->  Trainer (methods)  ->  Epochs  ->  RateAwareSteps  ->  adaptation
"""

from collections.abc import Iterable, Mapping
from copy import copy

import numpy as np

from cdcca_cli import files, models
from cdcca_cli.distillation.anchors import TERM, open_anchors
from cdcca_cli.distillation.dataset import Dataset, build_dataset
from cdcca_cli.distillation.drift import drift_of
from cdcca_cli.distillation.epochs import Epochs
from cdcca_cli.distillation.rate_aware import RateAwareSteps
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.distillation.step_log import StepLog
from cdcca_cli.distillation.trainer import Trainer
from cdcca_cli.errors import BadData, SettingError
from cdcca_cli.families import pairs
from cdcca_cli.formats.adaptation import HELD_OUT_BYTES, Adaptation, HeldOut
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel
from cdcca_cli.models.initial import start_of
from cdcca_cli.numerics import uniform
from cdcca_cli.payloads.opening import Opener
from cdcca_cli.skipped import Skipped
from cdcca_cli.teachers.labelling import Teacher
from cdcca_cli.teachers.local import LocalTeacher
from cdcca_cli.teachers.settings import LabelSettings


def distill(
    shards: Iterable[Shard],
    teacher: LoadedModel | Teacher | None,
    mirror: Device,
    settings: DistillSettings,
    *,
    asking: LabelSettings | None = None,
    resume: Adaptation | None = None,
    student: LoadedModel | None = None,
    earlier: Iterable[Shard] = (),
    anchors: Iterable[Shard] | None = None,
    log: StepLog | None = None,
    skipped: Skipped | None = None,
    unload_teacher: bool = False,
) -> Adaptation:
    """Train the mirror's student on the shards, towards the teacher's outputs or by itself.

    Args:
        teacher: None if its labels are in `settings.labels`, or the method needs none.
        asking: what is kept of the teacher's outputs.
        mirror: the device folder as the cloud has it; it is not changed.
        resume: start from this adaptation's overlay (quantised, if it is rate-aware), not the
            mirror's.
        student: the mirror's model, if loaded already; it keeps the trained overlay.
        earlier: shards of earlier rounds, of which `settings.replay_share` is trained on again, at
            most `settings.replay_questions`.
        anchors: shards of source frames, at which the student keeps to what it said at sequence 0.
        log: where each step is written.
        skipped: counts bad pictures, and questions that teacher or student cannot read, which are
            left out; None: they are errors.
        unload_teacher: free its weights once its labels are there.
    Returns: the overlay after training; its base is the mirror's current overlay.
    Raises: BadData for an adaptation of another student, and as `build_dataset`; UsageError for
        settings in conflict; CannotWrite for the work folder.
    """
    base = mirror.read_overlay()
    if resume is not None:
        check_overlay_names(resume.overlay, base, "`resume`")
    if settings.work is not None:
        files.make_folder(settings.work)
    if isinstance(teacher, LoadedModel):
        teacher = LocalTeacher(teacher, asking)
    model = teacher.model if isinstance(teacher, LocalTeacher) else None
    if student is None:
        student = load_student(mirror, model)
    if model is not None:
        check_pair(model, student, settings)
    opener, skipped = Opener(student, mirror.codebook_of), skipped or Skipped(strict=True)
    fresh, earlier = opener.open_all(shards, skipped), opener.open_all(earlier, skipped)
    dataset = build_dataset(
        fresh, teacher, student, settings, earlier=earlier, asking=asking, skipped=skipped
    )
    if teacher is not None and unload_teacher:
        teacher.close()
    start = _start(base, mirror, resume)
    last: RateAwareSteps | None = None
    try:
        with student.training_mode():
            held_to = None
            if anchors is not None:
                opened = opener.open_all(anchors, skipped)
                held_to = open_anchors(opened, student, mirror, settings, skipped)
            trainer = Trainer(
                student,
                mirror,
                start,
                dataset,
                settings,
                source=lambda: start_of(mirror),
                log=log,
                anchors=held_to,
            )
            drift = drift_of(trainer)
            epochs = Epochs(trainer, start, mirror)
            epochs.train()
            if settings.rate_aware:
                last = RateAwareSteps(trainer, epochs, base)
                last.train()
            final = last or epochs
            written_P, moved = final.best_P, None
            if drift is not None:
                written_P, moved = drift.limited(start, written_P, settings.max_drift)
    finally:
        student.freeze()
    overlay = dict(start) | trainer.overlay.arrays(written_P)
    student.install_overlay(overlay, mirror.lora.alpha)
    held_out = kept_for_compress(dataset)
    return Adaptation(
        overlay=overlay,
        base=mirror.digest,
        sequence=mirror.sequence,
        method=settings.method,
        seed=settings.seed,
        report=epochs.report(final.best)
        | {
            "resumed": resume is not None,
            "rate_aware": None if last is None else last.report(),
            "drift": moved,
            "num_frames_kept": 0 if held_out is None else len(held_out.shards),
        },
        held_out=held_out,
        rate_aware=None if last is None else last.quantiser(),
    )


def check_pair(teacher: LoadedModel, student: LoadedModel, settings: DistillSettings) -> None:
    """Refuse what this pair cannot do. Raises: SettingError with the method that can."""
    kinds, counts = zip(*(model.places for model in (student, teacher)), strict=True)
    same_tower = student.tower_digest == teacher.tower_digest
    found = pairs.open_methods(
        same_tower=same_tower,
        same_vocabulary=student.vocabulary_digest == teacher.vocabulary_digest,
        same_places=pairs.same_places(kinds, counts, same_tower=same_tower),
    )
    aligned = settings.needs_teacher and {"query", "repr"} & settings.weights().keys()
    if aligned and (reason := found.methods[settings.method]):
        raise SettingError("method", reason, settings.method)
    if settings.needs_teacher and settings.kl not in ("auto", "none") and found.kl:
        raise SettingError("kl", found.kl, settings.kl)


def load_student(
    mirror: Device, teacher: LoadedModel | None, compute: str = "auto", dtype: str = "auto"
) -> LoadedModel:
    """The mirror's model, on the teacher's hardware and with its dtype if there is a teacher."""
    if teacher is not None:
        compute, dtype = teacher.compute, str(teacher.dtype).removeprefix("torch.")
    return models.load_device(mirror, compute=compute, dtype=dtype)


def _start(
    base: Mapping[str, np.ndarray], mirror: Device, resume: Adaptation | None
) -> Mapping[str, np.ndarray]:
    """The overlay where training begins.

    What coding rounds off a rate-aware adaptation is dropped, not sent later: the student was never
    trained with it, and may be far worse with it.
    """
    if resume is None or resume.rate_aware is None:
        return base if resume is None else resume.overlay
    if resume.base != mirror.digest:
        return base  # the mirror has its update, or a later one
    step, learnt = resume.rate_aware.step, resume.overlay
    return {
        name: base[name] + uniform.restore(uniform.quantize(learnt[name] - base[name], step), step)
        for name in base
    }


def kept_for_compress(dataset: Dataset) -> HeldOut | None:
    """The held-out frames with the teacher's answers, as many as an adaptation holds."""
    numbers_of: dict[int, list[int]] = {}
    for number in dataset.held_out:
        numbers_of.setdefault(id(dataset.examples[number].shard), []).append(number)
    kept, num_bytes = HeldOut([], []), 0
    for numbers in numbers_of.values():
        examples = [dataset.examples[number] for number in numbers]
        shard = examples[0].shard
        num_bytes += shard.tokens.nbytes
        if num_bytes > HELD_OUT_BYTES:
            break
        kept.shards.append(copy(shard))  # which leaves its tokens in their file
        kept.shards[-1].questions = [one.question for one in examples]
        kept.answers.append([dataset.answers[number] for number in numbers])
    return kept if kept.shards else None


def summary(adaptation: Adaptation) -> list[str]:
    """The result of training: a line with each term's curve, and one of the held-out part."""
    report = adaptation.report
    weights = dict(report.get("effective_weights", {}))
    if report["anchors"] is not None:
        weights[TERM] = report["anchors"]["weight"]
    curves = [
        f"{name}{f' (weight {weights[name]:.3g})' if name in weights else ''} "
        + " ".join(f"{value:.3f}" for value in values)
        for name, values in report["curves"].items()
        if values and name not in ("loss", "held_out")
    ]
    lines = [f"epoch by epoch: {', '.join(curves)}"] if curves else []
    trained = f"{report['num_trained']} questions trained on"
    if report["num_unanswered"]:
        trained += f", {report['num_unanswered']} left out because the teacher's answer is empty"
    if report["num_unlabelled"]:
        trained += f", {report['num_unlabelled']} left out without a label"
    held, moved = report["held_out"], report["drift"]
    drift = "" if moved is None else f"; drift {moved['before']:.3g} -> {moved['after']:.3g} nats"
    if held is None:
        return [*lines, f"{trained}, none held out: the last epoch is written{drift}"]
    chosen = "best" if report["choose"] == "best" else "written"
    entropy, agreement = held["cross_entropy"], held["agreement"]
    last, verdict = report["rate_aware"], held["verdict"]
    coded = "" if last is None else f"; as coded at {last['bits']:.2f} bits a parameter"
    return [
        *lines,
        f"{trained}; of {held['num_asks']} held out the student now answers "
        f"{agreement['after']:.0%} as the teacher does (before: {agreement['before']:.0%}); "
        f"cross-entropy {entropy['before']:.3f} -> {entropy['after']:.3f} nats "
        f"(gain {held['gain']['low']:.3f} to {held['gain']['high']:.3f}: "
        f"{verdict}{' here' if verdict == 'not measurable' else ''}), "
        f"{chosen} after epoch {report['best_epoch']} of {report['epochs']}{coded}{drift}",
    ]


def check_overlay_names(
    found: Mapping[str, np.ndarray], mirror: Mapping[str, np.ndarray], where: str
) -> None:
    """Refuse an overlay of another student. Raises: BadData naming a parameter that differs."""
    for name in sorted(set(found) | set(mirror)):
        shapes = [list(side[name].shape) if name in side else None for side in (found, mirror)]
        if shapes[0] != shapes[1]:
            has = ["nothing" if shape is None else str(shape) for shape in shapes]
            raise BadData(
                f"{where}: {name} is {has[0]} there, {has[1]} in the student's overlay: it is an "
                "adaptation of another student: name the one it was made for"
            )
