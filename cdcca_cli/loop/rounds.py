"""Algorithm 1 on one machine: device and cloud take turns, joined by the files they would send.

    repeat: the device answers the frames and samples (U); the cloud distils (K) and compresses (C);
            device and mirror apply the update

Each round leaves the files of its stages in a folder of its own, the labels lie beside them, and it
trains on what the rounds before sent too (`replay_share`, at most `replay_questions`): the cloud
has it, so it costs no uplink. The rounds have converged when the 95 % interval of the gain on the
held-out part of the uplink reaches zero. No label is trained on. With anchors, every round holds
the student to what it said at sequence 0. The history and the answers to labelled frames lie beside
the rounds, for `cdcca report` (`reporting.gather`).
"""

import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cdcca_cli import files, packages, progress, settings, streams
from cdcca_cli.acceptance import ValidationSet, score_predictions
from cdcca_cli.config import Runtime
from cdcca_cli.datasets import Frames
from cdcca_cli.distillation.distill import distill
from cdcca_cli.distillation.evaluation import HeldOutLoss
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.distillation.step_log import StepLog
from cdcca_cli.downlink import receiver, sender, signatures
from cdcca_cli.downlink.settings import CompressSettings
from cdcca_cli.errors import BadData, CannotWrite
from cdcca_cli.formats import device_log, shard_stream
from cdcca_cli.formats.adaptation import Adaptation, write_adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.export_record import file_digest
from cdcca_cli.formats.history import write_history
from cdcca_cli.formats.predictions import Prediction, encode_line
from cdcca_cli.formats.shard import Shard
from cdcca_cli.formats.update import Update, write_update
from cdcca_cli.loop.history import History, Round
from cdcca_cli.models import load_device
from cdcca_cli.scoring.scores import Scores
from cdcca_cli.skipped import Skipped
from cdcca_cli.teachers.opening import open_teacher
from cdcca_cli.teachers.settings import LabelSettings, ServerSettings
from cdcca_cli.text import parse_amount
from cdcca_cli.uplink.answers import answer_frames
from cdcca_cli.uplink.coding import Coder
from cdcca_cli.uplink.sampling import sample_frames
from cdcca_cli.uplink.settings import AnswerSettings, PayloadSettings, SampleSettings


@dataclass(frozen=True)
class RoundSettings:
    """How each stage works; the seeds of sampling and training go up by 1 with each round."""

    sample: SampleSettings
    payload: PayloadSettings
    label: LabelSettings
    distill: DistillSettings
    compress: CompressSettings
    keys: tuple[signatures.PrivateKey, ...] = ()


class Work:
    """The folder of a run: `round-1`, `round-2` and so on, and `mirror` if none was named."""

    def __init__(self, path: Path, *, force: bool = False) -> None:
        """Raises: CannotWrite if there is an earlier run, unless `force` is given."""
        self.path = path
        if path.exists() and not path.is_dir():
            raise CannotWrite(f"{path}: is a file: name a folder")
        self._earlier = [one for one in path.glob("round-*") if re.fullmatch(r"\d+", one.name[6:])]
        if self._earlier and not force:
            raise CannotWrite(
                f"{self._earlier[0]}: belongs to an earlier run: name another folder with "
                "`output`, or give `force` to replace it"
            )

    def clear(self) -> None:
        """Remove the rounds of an earlier run. Raises: CannotWrite."""
        start = [self.path / "start"] if self._earlier and (self.path / "start").is_dir() else []
        for folder in (*self._earlier, *start):
            try:
                shutil.rmtree(folder)
            except OSError as error:
                raise CannotWrite(files.reason(folder, error)) from None

    def round(self, number: int) -> Path:
        """The folder of a round; of 0, what was measured before the first. Raises: CannotWrite."""
        folder = self.path / (f"round-{number}" if number else "start")
        files.make_folder(folder)
        return folder

    def mirror(self, device: Device) -> Device:
        """A copy of a device folder. Raises: CannotWrite."""
        folder = self.path / "mirror"
        files.make_folder(self.path)
        try:
            if self._earlier and folder.exists():  # of the run whose rounds were replaced
                shutil.rmtree(folder)
            shutil.copytree(device.path, folder)
        except OSError as error:
            reason = "exists already: name another folder" if folder.exists() else error.strerror
            raise CannotWrite(f"{folder}: {reason}") from None
        return Device.open(folder)


class Cycle:
    """A device, its mirror and a teacher, and the rounds between them."""

    def __init__(
        self,
        device: Device,
        mirror: Device | None,
        teacher: str,
        settings: RoundSettings,
        work: Work,
        on: Runtime,
        anchors: Sequence[str | Path] = (),
    ) -> None:
        """Load both models.

        Args: mirror: None for a copy of the device in the work folder. anchors: files of shards,
            read in each round.
        """
        if mirror is not None:
            _check_alike(device, mirror)
        for path in anchors:  # refused before the work if there is none
            with streams.binary_input(path):
                pass
        signed = replace(settings.compress, num_signatures=len(settings.keys))
        # Of replayed frames and of anchors the teacher and the student were asked before.
        labels = settings.distill.labels or (str(work.path / "teacher.labels"),)
        asked_once = replace(settings.distill, labels=labels)
        self.settings = replace(settings, compress=signed, distill=asked_once)
        self.device, self.work, self._anchors = device, work, list(anchors)
        self._named = streams.input_name(teacher)
        with progress.stage("loading the models"):
            self.teacher = open_teacher(teacher, settings.label, ServerSettings(), on)
            self.student = load_device(device, compute=on.compute, dtype=on.dtype)
        work.clear()
        self.mirror = work.mirror(device) if mirror is None else mirror
        self._last: Adaptation | None = None
        self._uplinks: list[Path] = []  # of the rounds before

    def predict(
        self, frames: Frames, description: str, skipped: Skipped | None = None
    ) -> list[Prediction]:
        """The device's answers to all questions about `frames`; None: a bad frame is an error."""
        how = AnswerSettings(batch_size=self.settings.sample.batch_size)
        tracked = progress.track(frames, description=description)
        return list(answer_frames(self.student, tracked, how, skipped))

    def score(self, name: str, probe: ValidationSet, after: int, description: str) -> Scores:
        """The device's scores on labelled frames; its answers go into the folder of that round."""
        predictions = self.predict(probe.frames, description)
        _write_predictions(self.work.round(after) / f"{name}.jsonl", predictions)
        return score_predictions(predictions, probe.references)

    def about(self, **sources: str) -> dict[str, Any]:
        """What the history says of how the run was made. sources: names of frames."""
        how = self.settings
        stages = ("sample", "payload", "label", "distill", "compress")
        device = self.device.settings
        num_parameters = sum(one.numel() for one in self.student.module.parameters())
        return {
            "settings": {stage: settings.as_json(getattr(how, stage)) for stage in stages},
            "sources": {**sources, "teacher": self._named, "checkpoint": device.checkpoint},
            "parameters": num_parameters if device.quantize == "none" else None,
            "versions": packages.versions(),
        }

    def write(self, history: History) -> None:
        """Replace the history in the work folder. Raises: CannotWrite."""
        write_history(self.work.path, history.as_json())

    def hold_to(self, frames: Frames) -> None:
        """Make anchors of all questions about these frames, for all rounds to come."""
        path = self.work.path / "anchors.tokens"
        every = replace(self.settings.sample, top=parse_amount("100%"))
        self._sample(path, frames, self.predict(frames, "the anchors"), every)
        self._anchors = [path]

    def round(self, number: int, frames: Frames) -> tuple[Round, list[Prediction]]:
        """Run one round. Returns: also the device's answers before it."""
        start = time.monotonic()
        folder = self.work.round(number)
        skipped = Skipped()
        predictions = self.predict(frames, f"round {number}: infer", skipped)
        skipped.refuse_if_all()
        _write_predictions(folder / "predictions.jsonl", predictions)
        uplink = folder / "uplink.tokens"
        how = replace(self.settings.sample, seed=self.settings.sample.seed + number - 1)
        num_questions = self._sample(uplink, frames, predictions, how)
        adaptation = self._distill(uplink, folder, number)
        num_bytes, update = self._compress(adaptation)
        with files.output(folder / "update.cdcca") as file:
            write_update(file, update)
        applied = receiver.apply(self.device, update)
        with streams.text_output(folder / "apply.jsonl") as lines:
            path = folder / "update.cdcca"
            sent = {"name": path.name, "bytes": path.stat().st_size, "content": file_digest(path)}
            line = device_log.line("apply", self.device.path, 0, **applied.as_json(), file=sent)
            lines.write(json.dumps(line, allow_nan=False) + "\n")
        receiver.apply(self.mirror, update)
        self.student.install_overlay(self.device.read_overlay(), self.device.lora.alpha)
        done = Round(
            number=number,
            num_frames=len(num_questions),
            num_questions=sum(num_questions),
            uplink_bytes=uplink.stat().st_size,
            downlink_bytes=num_bytes,
            seconds=time.monotonic() - start,
            digest=applied.digest,
            held_out=adaptation.report["held_out"],
            drift=adaptation.report["drift"],
        )
        return done, predictions

    def _sample(
        self, path: Path, frames: Frames, predictions: list[Prediction], how: SampleSettings
    ) -> list[int]:
        """Write shards. Returns: the number of questions of each frame in them."""
        coder = Coder(self.student, self.settings.payload, self.device.codebook())
        num_questions = []
        with files.output(path) as file, shard_stream.writer(file) as write:
            for item in sample_frames(self.student, frames, how, predictions, Skipped(), coder):
                write(item.shard, item.picture)
                num_questions.append(len(item.shard.questions))
        return num_questions

    def _distill(self, uplink: Path, folder: Path, number: int) -> Adaptation:
        """Train from the last adaptation, so that what its coding rounded off is sent now."""
        how = replace(self.settings.distill, seed=self.settings.distill.seed + number - 1)
        with closing(StepLog(folder / "steps.jsonl")) as log:
            adaptation = distill(
                _read([uplink]),
                self.teacher,
                self.mirror,
                how,
                asking=self.settings.label,
                resume=self._last,
                student=self.student,
                earlier=_read(self._uplinks),
                anchors=_read(self._anchors) if self._anchors else None,
                log=log,
            )
        self._uplinks.append(uplink)
        with files.output(folder / "adaptation.safetensors") as out:
            write_adaptation(out, adaptation)
        self._last = adaptation
        return adaptation

    def _compress(self, adaptation: Adaptation) -> tuple[int, Update]:
        held_out, alpha = adaptation.held_out, self.mirror.lora.alpha
        size = self.settings.distill.batch_size
        loss = None if held_out is None else HeldOutLoss(self.student, held_out, alpha, size)
        made = sender.compress(adaptation, self.mirror, self.settings.compress, loss=loss)
        for note in made.notes:
            streams.message(note)
        return made.num_bytes, signatures.sign(made.update, self.settings.keys)


def _read(paths: Sequence[str | Path]) -> Iterator[Shard]:
    for path in paths:
        with streams.binary_input(path) as file:
            yield from shard_stream.read_shards(file, where=streams.input_name(path))


def _write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    with streams.text_output(path) as out:
        out.writelines(map(encode_line, predictions))


def run(
    cycle: Cycle,
    frames: Frames,
    most: int,
    probe: ValidationSet | None = None,
    sources: Mapping[str, str] = MappingProxyType({}),
) -> History:
    """Run at most `most` rounds, until one shows no gain; score `probe` before and after each.

    sources: the names of the frames and of the probe, for the history.
    """
    history = History("probe", about=cycle.about(**sources))
    if probe is not None:
        history.add("probe", cycle.score("probe", probe, 0, "source only"))
    for number in range(1, most + 1):
        done, _ = cycle.round(number, frames)
        history.rounds.append(done)
        if probe is not None:
            history.add("probe", cycle.score("probe", probe, number, f"round {number}: eval"))
        cycle.write(history)
        streams.message(done.summary())
        if not done.has_gained:
            streams.message(f"converged: round {number} shows no gain on its held-out part")
            break
    return history


def _check_alike(device: Device, mirror: Device) -> None:
    if replace(device.settings, quantize=mirror.settings.quantize) != mirror.settings:
        raise BadData(
            f"{mirror.path}: was not made as {device.path} was (checkpoint, Q-Former layers, "
            "groups, LoRA): run init for both with the same options"
        )
    if device.digest != mirror.digest:
        raise BadData(
            f"{mirror.path}: the mirror is at {mirror.digest}, the device at {device.digest}: "
            "both must start from the same overlay"
        )
