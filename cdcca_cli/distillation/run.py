"""The loop over Eq. 6: a student's overlay learns from the teacher's outputs on stored tokens.

- Loss: Eq. 6. The alignment terms are divided by the mean square of what the teacher gives
  (measured on the training part), so a term of 1 means 'nothing learnt' whatever the width or scale
  of the models, about as large as a cross-entropy that is worth training; the weights' defaults
  then serve every pair.
- phi of Eq. 5 (one each for queries and representation) starts as the ridge regression of the
  teacher's outputs on the student's, before any step.
- Adam on the overlay and on phi, gradients clipped, the step size rising over the first steps and
  falling as a cosine to zero. Without a number it is LR / sqrt(width of the language model).
- A share of the frames is held out, by the hash of their ids. The cross-entropy there is taken
  before the first step and after each epoch; the state where it was lowest is the result, the start
  included, so the result is never worse there than the start. (The choice is made on the part that
  also measures the gain, which flatters it a little.)
- With a work folder, the state after each epoch is kept in `training-<key>.safetensors` (kind
  "training-state"), the key a digest of everything the result depends on. Batches depend on seed
  and epoch alone and dropout is off, so a run that was killed and started again ends with the same
  bits; one that had finished is only read.

What follows the epochs is `rate_aware`, where it is asked for.

Shapes: B batch, E examples, P parameters laid end to end, L query tokens, A answer tokens.

Does not know where shards or the adaptation live (`training`), and no other method than the
paper's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cdcca_cli import progress, streams
from cdcca_cli.distillation import losses, state
from cdcca_cli.distillation.batches import content_digest, look, prompt_length, shuffled_batches
from cdcca_cli.distillation.held_out import Judgement, comparison
from cdcca_cli.distillation.held_out_loss import FORWARD_BATCHES, Examination
from cdcca_cli.distillation.lessons import Lessons
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.distillation.trainable import Adam, Flat, initial_phi, open_overlay
from cdcca_cli.errors import BadData, UsageError
from cdcca_cli.families import LoadedModel
from cdcca_cli.formats import records
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest

METHOD = "akd"
LR = 0.0057
"""5e-4 for the shipped student (width 128), 9e-5 for 4,096. On the shipped pair four times as much
taught more in a round of six epochs (held-out DA 79.7 for 74.5) and cost more of what was known
(source DA 81.8 for 89.3, of 90.7 before)."""
WARMUP = 0.05
CLIP_NORM = 1.0
PHI_EXAMPLES = 64


@dataclass
class _Curves:
    """What is kept of each epoch: means over its examples; held_out begins before the first."""

    loss: list[float] = field(default_factory=list)
    query: list[float] = field(default_factory=list)
    representation: list[float] = field(default_factory=list)
    answer: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Step:
    """A batch through the student. queries, representation: (B, L, C) float32; mask: (B, L)
    bool; answer_B: L_CE of each."""

    queries: Tensor
    representation: Tensor
    mask: Tensor
    answer_B: Tensor


class Run:
    """One training run, from the first evaluation to the best state."""

    def __init__(
        self,
        student: LoadedModel,
        mirror: Device,
        start: Mapping[str, np.ndarray],
        lessons: Lessons,
        settings: DistillSettings,
        teacher_digest: str,
    ) -> None:
        self.student = student
        self.lessons = lessons
        self.settings = settings
        self.teacher_digest = teacher_digest
        self.lr = settings.lr or LR / math.sqrt(student.language.config.hidden_size)
        self.overlay = open_overlay(student, start, mirror.lora.alpha)
        self.lengths = [prompt_length(student, example) for example in lessons.examples]
        self.examination = Examination(
            student,
            [lessons.examples[number] for number in lessons.held_out],
            [lessons.targets[number].answer for number in lessons.held_out],
            FORWARD_BATCHES * settings.batch_size,
        )
        self.curves = _Curves()
        self.epoch = 0
        self.best_epoch = 0
        self.best_P = self.overlay.values.clone()
        self.path: Path | None = None
        if settings.work is not None:
            self.key = self._key(start, mirror)
            self.path = state.path_of(settings.work, self.key)

    def train(self) -> None:
        """All epochs that are still to do; call it in the student's training mode."""
        self._prepare()
        if not self._restore():
            self.before = self.best = self.examination.judge()
            self._note(self.before)
        while self.epoch < self.settings.epochs:
            self._train_epoch()
            self._judge()
            self._save()

    def report(self, best: Judgement) -> dict[str, Any]:
        """What the adaptation's header says of the run.

        Args: best: of the state that is written, by which it was chosen.
        """
        lessons, settings = self.lessons, self.settings
        frames = [lessons.examples[number].shard.frame for number in lessons.held_out]
        return {
            "teacher": self.teacher_digest,
            "tower": self.student.tower_digest,
            "num_frames": len({example.shard.frame for example in lessons.examples}),
            "num_asks": len(lessons.examples),
            "num_unanswered": lessons.num_unanswered,
            "num_trained": len(lessons.train),
            "epochs": settings.epochs,
            "best_epoch": self.best_epoch,
            "batch_size": settings.batch_size,
            "lr": self.lr,
            "weights": {
                "query": settings.query_weight,
                "repr": settings.repr_weight,
                "ce": settings.ce_weight,
            },
            "scales": {"query": self.query_scale, "repr": self.repr_scale},
            "curves": {
                name: [round(value, 6) for value in values]
                for name, values in asdict(self.curves).items()
            },
            "held_out": comparison(self.before, best, frames, settings.seed),
        }

    def sensitivity(self) -> dict[str, float]:
        """The mean squared gradient of each tensor, as Adam remembers it now."""
        return self.overlay.means(self.adam.mean_squares(0))

    # ---- before the first step

    def _prepare(self) -> None:
        """Scales of the alignment terms, phi, and the optimiser."""
        settings, targets = self.settings, self.lessons.targets
        queries = [targets[number].queries for number in self.lessons.train]
        representations = [targets[number].representation for number in self.lessons.train]
        self.query_scale = _mean_square(queries) if settings.query_weight else 1.0
        self.repr_scale = _mean_square(representations) if settings.repr_weight else 1.0
        if not (self.query_scale > 0 and self.repr_scale > 0):
            raise BadData("the teacher's queries or representation are all zero: a damaged teacher")
        self.weights = losses.Weights(
            query=settings.query_weight / self.query_scale,
            representation=settings.repr_weight / self.repr_scale,
            answer=settings.ce_weight,
        )
        self.phis = self._initial_phis()
        named = {
            f"{role}.{name}": parameter
            for role, phi in self.phis.items()
            for name, parameter in phi.named_parameters()
        }
        self.phi = Flat(named)
        self.adam = Adam([self.overlay, self.phi])

    @torch.no_grad()
    def _initial_phis(self) -> dict[str, nn.Module]:
        """One phi for each term that counts, from some of the training examples."""
        wanted = []
        if self.settings.query_weight:
            wanted.append("queries")
        if self.settings.repr_weight:
            wanted.append("representation")
        train, size = self.lessons.train, self.settings.batch_size
        chosen = train[:: max(1, len(train) // PHI_EXAMPLES)] if wanted else []
        batches = [chosen[at : at + size] for at in range(0, len(chosen), size)]
        steps = [self._forward(batch) for batch in batches]
        return {name: self._initial_phi(batches, steps, name) for name in wanted}

    def _initial_phi(self, batches: list[list[int]], steps: list["_Step"], name: str) -> nn.Module:
        """phi from what teacher and student give for the same tokens, as they are now."""
        theirs, ours = [], []
        for batch, step in zip(batches, steps, strict=True):
            target_BLC, output_BLC = self._target(batch, name), getattr(step, name)
            if target_BLC.shape[:2] != output_BLC.shape[:2]:
                raise UsageError(
                    f"the teacher gives {target_BLC.shape[1]} {name} vectors for a picture, the "
                    f"student {output_BLC.shape[1]}: they cannot be aligned one by one: give "
                    "--query-weight 0 --repr-weight 0, or a teacher with as many"
                )
            theirs.append(target_BLC[step.mask])
            ours.append(output_BLC[step.mask])
        return initial_phi(torch.cat(ours), torch.cat(theirs))

    # ---- steps

    def _train_epoch(self) -> None:
        settings = self.settings
        batches = self.batches(self.epoch)
        sums = torch.zeros(4, dtype=torch.float64)
        title = f"epoch {self.epoch + 1} of {settings.epochs}"
        for number, batch in enumerate(progress.track(batches, description=title)):
            done = self.epoch * len(batches) + number
            lr = self.lr * schedule(done, settings.epochs * len(batches))
            sums += self._step(batch, lr).double() * len(batch)
        means = self.means(sums, len(self.lessons.train), f"in epoch {self.epoch + 1}")
        curves = self.curves
        for curve, mean in zip(
            (curves.loss, curves.query, curves.representation, curves.answer), means, strict=True
        ):
            curve.append(mean)
        self.epoch += 1

    def batches(self, epoch: int) -> list[list[int]]:
        """The examples of each step of an epoch."""
        train, settings = self.lessons.train, self.settings
        lengths = [self.lengths[number] for number in train]
        order = shuffled_batches(lengths, settings.batch_size, settings.seed, epoch)
        return [[train[place] for place in places] for places in order]

    def means(self, sums: Tensor, count: int, when: str) -> list[float]:
        """The means of what `backward` returned. UsageError if training has diverged."""
        means: list[float] = (sums / count).tolist()
        if not all(math.isfinite(mean) for mean in means):
            raise self.diverged(when)
        return means

    def diverged(self, when: str) -> UsageError:
        """What to raise when a number is not finite."""
        return UsageError(
            f"the loss is not finite {when}: training diverged at a step size of {self.lr:g}: "
            "give a smaller --lr"
        )

    def _step(self, batch: Sequence[int], lr: float) -> Tensor:
        """One step; returns what `backward` does."""
        means = self.backward(batch)
        self.adam.step(lr, CLIP_NORM)
        return means

    def backward(self, batch: Sequence[int]) -> Tensor:
        """Gradients of a batch; returns its means of loss, L_query, L_repr (normalised), L_CE."""
        self.overlay.clear()
        self.phi.clear()
        step = self._forward(batch)
        settings = self.settings
        zero_B = step.answer_B.new_zeros(len(batch))
        query_B = representation_B = zero_B
        if settings.query_weight:
            query_B = losses.query_alignment(
                self._target(batch, "queries"), step.queries, self.phis["queries"], step.mask
            )
        if settings.repr_weight:
            representation_B = losses.representation_alignment(
                self._target(batch, "representation"),
                step.representation,
                self.phis["representation"],
                step.mask,
            )
        loss_B = losses.distillation_loss(query_B, representation_B, step.answer_B, self.weights)
        loss_B.mean().backward()
        terms = (
            loss_B,
            query_B / self.query_scale,
            representation_B / self.repr_scale,
            step.answer_B,
        )
        return torch.stack([term.detach().mean() for term in terms]).cpu()

    def _forward(self, batch: Sequence[int]) -> _Step:
        student = self.student
        seen = look(student, [self.lessons.examples[number] for number in batch])
        answers = [self.lessons.targets[number].answer for number in batch]
        answer_BA = student.answer_ids(answers)
        forward = student.forward(seen.spliced, answer_BA)
        return _Step(
            queries=seen.queries.float(),
            representation=forward.hidden.float(),
            mask=forward.hidden_mask,
            answer_B=losses.answer_cross_entropy(forward.logits, answer_BA),
        )

    def _target(self, batch: Sequence[int], name: str) -> Tensor:
        """(B, L, C): what the teacher gave, padded on the right with zeros."""
        rows = [getattr(self.lessons.targets[number], name) for number in batch]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return padded.to(self.student.device)

    # ---- which state is best

    def _judge(self) -> None:
        """Keep the present state if it is the best so far; without held-out examples, always."""
        held = self.examination.judge()
        self._note(held)
        if not len(held) or held.cross_entropy < self.best.cross_entropy:
            self.best, self.best_epoch, self.best_P = held, self.epoch, self.overlay.values.clone()

    def _note(self, held: Judgement) -> None:
        if len(held):
            self.curves.held_out.append(held.cross_entropy)

    # ---- on disk

    def _key(self, start: Mapping[str, np.ndarray], mirror: Device) -> str:
        """Digest of everything that the epochs depend on; what follows them has its own key."""
        settings = asdict(self.settings) | {"work": None}
        del settings["rate_aware"], settings["bits"]
        shards = {id(example.shard): example.shard for example in self.lessons.examples}
        said = [
            *(METHOD, self.teacher_digest, mirror.digest, overlay_digest(start)),
            *(content_digest(list(shards.values())), settings, self.lr),
            *(self.student.compute, str(self.student.dtype), self.student.tower_digest),
            asdict(mirror.settings),
            [target.answer for target in self.lessons.targets],
        ]
        return overlay_digest({"key": np.frombuffer(records.dump_json(said).encode(), np.uint8)})

    def _save(self) -> None:
        if self.path is None:
            return
        arrays = {name: tensor.cpu().numpy() for name, tensor in self._tensors().items()}
        arrays |= state.judged(before=self.before, best=self.best)
        steps, curves = self.adam.steps, asdict(self.curves)
        now = state.State(self.epoch, self.best_epoch, steps, curves, arrays)
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
        self.curves = _Curves(**kept.curves)
        streams.message(f"going on after epoch {self.epoch} of {self.settings.epochs}")
        return True

    def _tensors(self) -> dict[str, Tensor]:
        """What an epoch leaves to the next, live."""
        return {
            "best": self.best_P,
            "overlay": self.overlay.values,
            "overlay.mean": self.adam.means[0],
            "overlay.square": self.adam.squares[0],
            "phi": self.phi.values,
            "phi.mean": self.adam.means[1],
            "phi.square": self.adam.squares[1],
        }


def schedule(done: int, total: int) -> float:
    """The share of the step size after `done` of `total` steps: a short rise, a cosine to zero."""
    warmup = max(1, round(WARMUP * total))
    if done < warmup:
        return (done + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (total - warmup + 1)))


def _mean_square(rows: Sequence[Tensor]) -> float:
    """The mean of the squares of all numbers in all rows."""
    total = sum(float(row.double().square().sum()) for row in rows)
    return total / max(1, sum(row.numel() for row in rows))
