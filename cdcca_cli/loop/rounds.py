"""Algorithm 1 on one machine: device and cloud by turns, joined by the very files they would send.

    repeat: the device answers the frames and samples (U); the cloud distils (K) and compresses (C);
            device and mirror apply the update

Each round leaves its files in a folder of its own (`predictions.jsonl`, `uplink.tokens`,
`adaptation.safetensors`, `update.cdcca`), which are what the same stages leave in a shell. The
rounds have converged when the held-out part of the uplink shows no gain: the 95 % interval of its
cross-entropy's gain reaches zero. No label of the frames is used; where they have some, the
predictions are scored for the report.

Does not parse options, and prints nothing (`commands`).
"""

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from cdcca_cli import files, progress, streams
from cdcca_cli.datasets import Frames
from cdcca_cli.distillation.distill import DistillSettings, distill
from cdcca_cli.distillation.evaluation import HeldOutLoss
from cdcca_cli.downlink import receiver, sender, signing
from cdcca_cli.errors import BadData, CannotWrite
from cdcca_cli.formats import shard
from cdcca_cli.formats.adaptation import Adaptation, write_adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.predictions import Prediction, write_predictions
from cdcca_cli.formats.update import write_update
from cdcca_cli.loop.history import History, Round
from cdcca_cli.models import load, load_device
from cdcca_cli.probe import Probe, scored
from cdcca_cli.scoring.scores import Scores
from cdcca_cli.uplink.answers import AnswerSettings, answer_frames
from cdcca_cli.uplink.sampling import SampleSettings, sample_frames


@dataclass(frozen=True)
class RoundSettings:
    """How each stage works; the seeds of sampling and training go up with each round.

    keys: what updates are signed with, for devices that ask for it.
    """

    sample: SampleSettings
    distill: DistillSettings
    compress: sender.CompressSettings
    keys: tuple[signing.PrivateKey, ...] = ()


class Cycle:
    """A device, its mirror and a teacher, and the rounds between them."""

    def __init__(
        self,
        device: Device,
        mirror: Device | None,
        teacher: str,
        settings: RoundSettings,
        work: Path,
        *,
        compute: str = "auto",
        dtype: str = "auto",
    ) -> None:
        """Load both models.

        Args: mirror: None: a copy of the device, as `mirror` in the work folder.
        Raises: BadData if device and mirror do not hold the same overlay, and what `load` raises.
        """
        if mirror is not None:
            _check_alike(device, mirror)
        self.device = device
        self.settings = settings
        self.work = work
        with progress.stage("loading the models"):
            self.teacher = load(teacher, compute=compute, dtype=dtype)
            self.student = load_device(device, compute=compute, dtype=dtype)
        self.mirror = mirror_of(device, work) if mirror is None else mirror
        self._last: Adaptation | None = None

    def predict(self, frames: Frames, description: str) -> list[Prediction]:
        """The device's answers to all that is asked of `frames`."""
        how = AnswerSettings(batch_size=self.settings.sample.batch_size)
        tracked = progress.track(frames, description=description)
        return list(answer_frames(self.student, tracked, how))

    def score(self, probe: Probe, description: str) -> Scores:
        """The device's scores on labelled frames."""
        return scored(self.predict(probe.frames, description), probe.references)

    def round(self, number: int, frames: Frames) -> tuple[Round, list[Prediction]]:
        """One round; also the device's answers at its start, made on the way."""
        start = time.monotonic()
        folder = self.work / f"round-{number}"
        files.make_folder(folder)
        predictions = self.predict(frames, f"round {number}: infer")
        with streams.text_output(str(folder / "predictions.jsonl")) as out:
            write_predictions(out, predictions)
        uplink = folder / "uplink.tokens"
        shards = self._sample(uplink, frames, predictions, number)
        adaptation = self._distill(uplink, folder / "adaptation.safetensors", number)
        made = self._compress(adaptation)
        update = signing.sign(made.update, self.settings.keys)
        with streams.binary_output(str(folder / "update.cdcca"), "update.cdcca") as file:
            write_update(file, update)
        receiver.apply(self.device, update)
        applied = receiver.apply(self.mirror, update)
        self.student.install_overlay(self.device.read_overlay(), self.device.lora.alpha)
        done = Round(
            number=number,
            num_frames=len(shards),
            num_asks=sum(shards),
            uplink_bytes=uplink.stat().st_size,
            downlink_bytes=made.num_bytes,
            seconds=time.monotonic() - start,
            digest=applied.digest,
            held_out=adaptation.report["held_out"],
        )
        return done, predictions

    def _compress(self, adaptation: Adaptation) -> sender.Compressed:
        """The update, its step chosen by the loss on the adaptation's held-out frames."""
        held_out, alpha = adaptation.held_out, self.mirror.lora.alpha
        size = self.settings.distill.batch_size
        loss = None if held_out is None else HeldOutLoss(self.student, held_out, alpha, size)
        made = sender.compress(adaptation, self.mirror, self.settings.compress, loss=loss)
        for note in made.notes:
            streams.message(note)
        return made

    def _sample(
        self, path: Path, frames: Frames, predictions: list[Prediction], number: int
    ) -> list[int]:
        """Write the uplink; returns how many asks went with each frame."""
        how = replace(self.settings.sample, seed=self.settings.sample.seed + number - 1)
        asks = []
        with (
            streams.binary_output(str(path), "uplink.tokens") as file,
            shard.writer(file) as write,
        ):
            for item in sample_frames(self.student, frames, how, predictions):
                write(item)
                asks.append(len(item.asks))
        return asks

    def _distill(self, uplink: Path, path: Path, number: int) -> Adaptation:
        """Go on from the last adaptation: what its coding rounded off is sent now."""
        how = replace(self.settings.distill, seed=self.settings.distill.seed + number - 1)
        with streams.binary_input(str(uplink)) as file:
            adaptation = distill(
                shard.read_shards(file, where=str(uplink)),
                self.teacher,
                self.mirror,
                how,
                resume=self._last,
                student=self.student,
            )
        with streams.binary_output(str(path), "adaptation.safetensors") as out:
            write_adaptation(out, adaptation)
        self._last = adaptation
        return adaptation


def follow(cycle: Cycle, frames: Frames, most: int, probe: Probe | None = None) -> History:
    """Rounds until one shows no gain on its held-out part, or `most` of them.

    Args: probe: labelled frames to score before the first round and after each.
    """
    history = History("probe")
    if probe is not None:
        history.add("probe", cycle.score(probe, "source only"))
    for number in range(1, most + 1):
        done, _ = cycle.round(number, frames)
        history.rounds.append(done)
        if probe is not None:
            history.add("probe", cycle.score(probe, f"round {number}: eval"))
        streams.message(done.summary())
        if not done.has_gained:
            streams.message(f"converged: round {number} shows no gain on its held-out part")
            break
    return history


def _check_alike(device: Device, mirror: Device) -> None:
    if replace(device.settings, quantize=mirror.quantize) != mirror.settings:
        raise BadData(
            f"{mirror.path}: was not made as {device.path} was (checkpoint, Q-Former layers, "
            "groups, LoRA): run init for both with the same options"
        )
    if device.digest != mirror.digest:
        raise BadData(
            f"{mirror.path}: the mirror is at {mirror.digest}, the device at {device.digest}: "
            "both must start from the same overlay"
        )


def mirror_of(device: Device, work: Path) -> Device:
    """A copy of a device folder, as `mirror` in the work folder. Raises: CannotWrite."""
    folder = work / "mirror"
    files.make_folder(work)
    try:
        shutil.copytree(device.path, folder)
    except OSError as error:
        reason = "exists already: name another -o" if folder.exists() else str(error.strerror)
        raise CannotWrite(f"{folder}: {reason}") from None
    return Device.open(folder)
