"""The loop: a student's overlay learns on stored tokens, by any of the methods.

- Adam on what is trained of the overlay (and on phi), gradients clipped, the step size rising over
  the first steps and falling as a cosine to zero. Without a number it is LR / sqrt(width of the
  language model).
- A share of the frames is held out, by the hash of their ids. The cross-entropy there is taken
  before the first step and after each epoch; of a method with a teacher the state where it was
  lowest is the result, the start included, so the result is never worse there than the start. (The
  choice is made on the part that also measures the gain, which flatters it a little.) Of a method
  without one the last state is, and the held-out part, if a teacher judges it, tells how it did.
- A batch can go through in smaller parts; several processes take its parts by turns and step by the
  sum of their gradients (`processes`).
- With a work folder, the state after each epoch is kept in `training-<key>.safetensors` (kind
  "training-state"), the key a digest of everything the result depends on. Batches depend on seed
  and epoch alone and dropout is off, so a run that was killed and started again ends with the same
  bits; one that had finished is only read.

What a step minimises is the method's (`methods`); what follows the epochs is `rate_aware`, where
it is asked for.

Shapes: B batch, E examples, P parameters laid end to end.

Does not know where shards or the adaptation live (`training`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdcca_cli import progress, streams
from cdcca_cli.distillation import processes, state
from cdcca_cli.distillation.batches import Looker, prompt_length, shuffled_batches
from cdcca_cli.distillation.cotta import Cotta
from cdcca_cli.distillation.held_out import Judgement, comparison
from cdcca_cli.distillation.held_out_loss import FORWARD_BATCHES, Examination
from cdcca_cli.distillation.lessons import Lessons
from cdcca_cli.distillation.losses import distillation_loss
from cdcca_cli.distillation.methods import Course, Method
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.distillation.step_log import StepLog
from cdcca_cli.distillation.taught import Taught
from cdcca_cli.distillation.tent import Tent
from cdcca_cli.distillation.trainable import Adam, is_connector_frozen, open_overlay
from cdcca_cli.errors import UsageError
from cdcca_cli.formats import records
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.lessons import key_of
from cdcca_cli.models import LoadedModel

LR = 0.0057
"""5e-4 for the shipped student (width 128), 9e-5 for 4,096. On the shipped pair four times as much
taught more in a round of six epochs (held-out DA 79.7 for 74.5) and cost more of what was known
(source DA 81.8 for 89.3, of 90.7 before)."""
WARMUP = 0.05
CLIP_NORM = 1.0

Source = Callable[[], Mapping[str, np.ndarray]]


class Run:
    """One training run, from the first evaluation to the best state."""

    def __init__(
        self,
        student: LoadedModel,
        mirror: Device,
        start: Mapping[str, np.ndarray],
        lessons: Lessons,
        settings: DistillSettings,
        *,
        source: Source,
        log: StepLog | None = None,
    ) -> None:
        """Args: source: the overlay of sequence 0, made again where a method asks for it."""
        self.student = student
        self.lessons = lessons
        self.settings = settings
        self.lr = settings.lr or LR / math.sqrt(student.language.config.hidden_size)
        self.overlay = open_overlay(student, start, mirror.lora.alpha, settings.trained_groups)
        self.lengths = [prompt_length(student, example) for example in lessons.examples]
        looker = Looker(student, is_connector_frozen(student, self.overlay.names))
        course = Course(student, self.overlay, lessons, settings, looker, source)
        self.method = _method(course)
        self.examination = Examination(
            student,
            [lessons.examples[number] for number in lessons.held_out],
            [lessons.answers[number] for number in lessons.held_out],
            FORWARD_BATCHES * settings.batch_size,
        )
        self.curves: dict[str, list[float]] = {}
        self.log = log or StepLog(None)
        self.epoch = 0
        self.best_epoch = 0
        self.best_P = self.overlay.values.clone()
        self.path: Path | None = None
        if settings.work is not None:
            self.key = self._key(start, mirror)
            self.path = state.path_of(settings.work, self.key)

    def train(self) -> None:
        """All epochs that are still to do; call it in the student's training mode."""
        self.log.start()
        if self.method is not None:
            self.method.prepare()
        self.adam = Adam([self.overlay, *([] if self.method is None else self.method.flats)])
        self.curves = {name: [] for name in ("loss", *self.terms, "held_out")}
        self.log.begin(self.settings, self.lr, self.terms)
        if not self._restore():
            self.before = self.best = self.examine()
            self._note(self.before)
        if self.method is None:
            return
        steps = len(self.batches(0))
        total = self.settings.epochs * steps
        with progress.steps(total, done=self.epoch * steps) as advance:
            while self.epoch < self.settings.epochs and not self._has_stalled():
                self._train_epoch(self.method, total, advance)
                self._judge(self.method)
                self._save()
        if self.epoch < self.settings.epochs:
            streams.message(
                f"no gain on the held-out part since epoch {self.best_epoch}: stopped after "
                f"{self.epoch} of {self.settings.epochs}"
            )

    @property
    def terms(self) -> list[str]:
        """The terms of the loss, by name."""
        return [] if self.method is None else list(self.method.weights)

    def report(self, best: Judgement) -> dict[str, Any]:
        """What the adaptation's header says of the run.

        Args: best: of the state that is written.
        """
        lessons, settings = self.lessons, self.settings
        frames = [lessons.examples[number].shard.frame for number in lessons.held_out]
        return {
            "teacher": None if lessons.said is None else lessons.said.teacher,
            "tower": self.student.tower_digest,
            "num_frames": len({example.shard.frame for example in lessons.examples}),
            "num_asks": len(lessons.examples),
            "num_unanswered": lessons.num_unanswered,
            "num_replayed": lessons.num_replayed,
            "num_trained": len(lessons.train) if self.method is not None else 0,
            "epochs": settings.epochs,
            "epochs_done": self.epoch,
            "best_epoch": self.best_epoch,
            "batch_size": settings.batch_size,
            "lr": self.lr,
            "groups": settings.trained_groups and list(settings.trained_groups),
            "ema": settings.ema,
            "confidence": settings.confidence,
            "curves": {
                name: [round(value, 6) for value in values] for name, values in self.curves.items()
            },
            "held_out": comparison(self.before, best, frames, settings.seed),
            **({} if self.method is None else self.method.report()),
        }

    def sensitivity(self) -> dict[str, float]:
        """The mean squared gradient of each trained tensor, as Adam remembers it now."""
        return self.overlay.means(self.adam.mean_squares(0))

    # ---- steps

    def _train_epoch(self, method: Method, total: int, advance: Callable[[str], None]) -> None:
        """Args: total: steps of all epochs. advance: called with words after each."""
        settings = self.settings
        batches = self.batches(self.epoch)
        sums = torch.zeros(1 + len(self.terms), dtype=torch.float64)
        for number, batch in enumerate(batches):
            done = self.epoch * len(batches) + number
            lr = self.lr * schedule(done, total)
            means, norm = self._step(method, batch, done, lr)
            sums += means.double() * len(batch)
            named = dict(zip(("loss", *self.terms), means.tolist(), strict=True))
            place = {"epoch": self.epoch + 1}
            self.log.step(done + 1, total, place, lr, named, norm, len(batch))
            words = ", ".join(f"{name} {value:.3f}" for name, value in named.items())
            advance(f"epoch {self.epoch + 1} of {settings.epochs}: {words}")
        for name, mean in self.means(sums, len(self.lessons.train), f"in epoch {self.epoch + 1}"):
            self.curves[name].append(mean)
        self.epoch += 1
        processes.share(self.overlay.values)

    def _step(
        self, method: Method, batch: Sequence[int], number: int, lr: float
    ) -> tuple[Tensor, Tensor]:
        """Step `number` of all epochs; returns what `backward` does, and the gradients' norm."""
        means = self.backward(batch)
        norm = self.adam.step(lr, CLIP_NORM)
        method.after_step(number)
        return means, norm

    def batches(self, epoch: int) -> list[list[int]]:
        """The examples of each step of an epoch."""
        train, settings = self.lessons.train, self.settings
        lengths = [self.lengths[number] for number in train]
        order = shuffled_batches(lengths, settings.batch_size, settings.seed, epoch)
        return [[train[place] for place in places] for places in order]

    def means(self, sums: Tensor, count: int, when: str) -> list[tuple[str, float]]:
        """The means of what `backward` returned, named. UsageError if training has diverged."""
        means: list[float] = (sums / count).tolist()
        if not all(math.isfinite(mean) for mean in means):
            raise self.diverged(when)
        return list(zip(("loss", *self.terms), means, strict=True))

    def diverged(self, when: str) -> UsageError:
        """What to raise when a number is not finite."""
        return UsageError(
            f"the loss is not finite {when}: training diverged at a step size of {self.lr:g}: "
            "give a smaller --lr"
        )

    def backward(self, batch: Sequence[int]) -> Tensor:
        """Gradients of a batch; returns its means of the loss and of each term, on the CPU.

        In parts (`Method.asks_at_once`), one after the other or shared by the processes.
        """
        method = self.method
        assert method is not None
        size = method.asks_at_once(processes.count())
        flats = [self.overlay, *method.flats]
        for flat in flats:
            flat.clear()
        parts = [batch[at : at + size] for at in range(0, len(batch), size)]
        sums = torch.zeros(1 + len(method.weights), device=self.student.device)
        for part in parts[processes.rank() :: processes.count()]:
            terms = method.losses(part)
            loss = distillation_loss(terms, method.weights).sum()
            (loss / len(batch)).backward()
            sums += torch.stack([loss, *(term_B.sum() for term_B in terms.values())]).detach()
        for flat in flats:
            processes.add_up(flat.gradient)
        processes.add_up(sums)
        return (sums / len(batch)).cpu()

    # ---- which state is best

    def examine(self) -> Judgement:
        """The held-out part under the overlay as it is: the first process's, for all."""
        held = self.examination.judge()
        for array_E in (held.nats_E, held.agrees_E):
            values_E = torch.from_numpy(array_E).to(self.student.device)
            processes.share(values_E)
            array_E[:] = values_E.cpu().numpy()
        return held

    def _judge(self, method: Method) -> None:
        """Keep the present state if it is the best so far; where nothing can tell, always."""
        with self.overlay.holding(method.result()):
            held = self.examine()
        self._note(held)
        is_better = not len(held) or held.cross_entropy < self.best.cross_entropy
        if is_better or not self.settings.needs_teacher:
            self.best, self.best_epoch, self.best_P = held, self.epoch, method.result().clone()

    def _note(self, held: Judgement) -> None:
        if len(held):
            self.curves["held_out"].append(held.cross_entropy)
            self.log.judged({"epoch": self.epoch}, held)

    def _has_stalled(self) -> bool:
        patience = self.settings.patience
        if patience is None or not len(self.best):
            return False
        return self.epoch - self.best_epoch >= patience

    # ---- on disk

    def _key(self, start: Mapping[str, np.ndarray], mirror: Device) -> str:
        """Digest of everything that the epochs depend on; what follows them has its own key."""
        settings = asdict(self.settings)
        for name in ("work", "cache", "cache_bits", "rate_aware", "bits"):
            del settings[name]
        lessons = self.lessons
        shards = {id(example.shard): example.shard for example in lessons.examples}
        everything = [
            None if (said := lessons.said) is None else [said.teacher, said.dtype, said.bits],
            *(mirror.digest, overlay_digest(start)),
            *([key_of(shard) for shard in shards.values()], settings, self.lr),
            *(self.student.compute, str(self.student.dtype), self.student.tower_digest),
            asdict(mirror.settings),
            [lessons.answers, lessons.train, lessons.held_out],
        ]
        text = np.frombuffer(records.dump_json(everything).encode(), np.uint8)
        return overlay_digest({"key": text})

    def _save(self) -> None:
        if self.path is None or not processes.is_first():
            return
        arrays = {name: tensor.cpu().numpy() for name, tensor in self._tensors().items()}
        arrays |= state.judged(before=self.before, best=self.best)
        now = state.State(self.epoch, self.best_epoch, self.adam.steps, self.curves, arrays)
        state.save(self.path, self.key, now)

    def _restore(self) -> bool:
        """Take up the state on disk, if there is one of this run."""
        if self.path is None:
            return False
        num_held = len(self.lessons.held_out)
        shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors().items()}
        shapes |= state.judged_shapes(num_held, "before", "best")
        kept = state.restore(self.path, self.key, shapes)
        if kept is None:
            return False
        for name, tensor in self._tensors().items():
            tensor.copy_(torch.from_numpy(kept.arrays[name]))
        self.adam.steps = kept.steps
        self.before, self.best = kept.judgement("before"), kept.judgement("best")
        self.epoch, self.best_epoch = kept.epoch, kept.best_epoch
        self.curves = kept.curves
        streams.message(f"going on after epoch {self.epoch} of {self.settings.epochs}")
        return True

    def _tensors(self) -> dict[str, Tensor]:
        """What an epoch leaves to the next, live."""
        tensors = {"best": self.best_P} | self.adam_tensors(self.overlay.values)
        if self.method is not None:
            tensors |= self.method.tensors()
        return tensors

    def adam_tensors(self, overlay_P: Tensor) -> dict[str, Tensor]:
        """What is trained and what Adam remembers of it, live.

        Args: overlay_P: the overlay's values.
        """
        tensors = {
            "overlay": overlay_P,
            "overlay.mean": self.adam.means[0],
            "overlay.square": self.adam.squares[0],
        }
        if self.method is not None and self.method.flats:
            (phi,) = self.method.flats
            tensors |= {
                "phi": phi.values,
                "phi.mean": self.adam.means[1],
                "phi.square": self.adam.squares[1],
            }
        return tensors


def _method(course: Course) -> Method | None:
    """The method that the settings name; None: the source model as it is."""
    name = course.settings.method
    if name == "none":
        return None
    if name == "tent":
        return Tent(course)
    return Cotta(course) if name == "cotta" else Taught(course)


def schedule(done: int, total: int) -> float:
    """The share of the step size after `done` of `total` steps: a short rise, a cosine to zero."""
    warmup = max(1, round(WARMUP * total))
    if done < warmup:
        return (done + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (total - warmup + 1)))
