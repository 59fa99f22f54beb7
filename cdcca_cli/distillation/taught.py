"""The methods with a teacher: AKD (paper, Eq. 5 and 6), pseudo-labels alone, PKD and CWD.

    akd           Eq. 6: query alignment, representation alignment, cross-entropy
    pseudo-label  cross-entropy on the teacher's answers alone (the paper's first ablation)
    pkd, cwd      the same features as akd, compared by correlation or channel by channel, beside
                  the cross-entropy

PKD and CWD come from dense prediction; what they leave open is decided here: the features are the
connector's queries and the representation, as in AKD; the task's loss beside them is the
cross-entropy on the teacher's answers, since there are no labels (`--ce-weight 0` leaves it out);
weights are the sources' 6 and 3, and CWD's temperature 4. phi stands before both where student and
teacher differ in width, and nowhere else.

**The representation** is the output of the language model's last attention. At the visual
positions it is what Eq. 6 aligns, but nothing reads it there in a decoder: the next layers are the
last MLP and the head, which look at the answer's positions. So it is also compared where the
answer's tokens are predicted, where the last attention has gathered the picture and the question;
the mean over the visual positions and the mean over the answer's count alike. For that both must
speak of the same tokens; else, and for an encoder-decoder, the visual positions stand alone.

**One scale.** Eq. 5's terms are divided by the mean square of what the teacher gives, so that a
term of 1 means 'nothing learnt'. Then, for AKD, every term's gradient over the overlay is measured
on some examples, and its weight divided by that gradient's length, relative to the cross-entropy's:
a weight of 1 pulls as hard as the pseudo-labels do, whatever the family. The defaults, 0.03 and
0.1, let the alignment guide and not lead: at 0.1 and 1 the shipped student learnt the answers more
slowly in as many steps (DA on the stream after a round 72.2 for 75.4). The other methods' terms
stay as their sources have them.

phi of Eq. 5 (one each for queries and both parts of the representation) starts as the ridge
regression of the teacher's outputs on the student's.

Shapes: B batch, L query tokens, A answer tokens, C teacher channels, S student channels, V
vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from cdcca_cli import streams
from cdcca_cli.distillation import feature_losses, logit_losses, losses
from cdcca_cli.distillation.methods import Course, Method
from cdcca_cli.distillation.trainable import Flat, initial_phi
from cdcca_cli.errors import BadData, UsageError

MEASURED = 64
"""Examples by which phi starts and gradients are measured."""
PARTS = {"query": ("queries",), "repr": ("visual", "answer")}
"""What each alignment term compares: rows of a lesson, by name."""


@dataclass(frozen=True)
class Features:
    """What a batch gives. rows: (B, L, S) float32 by part; masks: (B, L) bool of each."""

    rows: dict[str, Tensor]
    masks: dict[str, Tensor]
    logits_BAV: Tensor
    answer_BA: Tensor


class Taught(Method):
    """Learns what the teacher says."""

    def __init__(self, course: Course) -> None:
        super().__init__(course, course.settings.weights())
        self.is_of_the_batch = course.settings.method == "pkd"
        self.parts = {term: parts for term in ("query", "repr") if (parts := self._parts(term))}
        self.scales: dict[str, float] = {}
        self.gradients: dict[str, float] = {}
        self.phis: dict[str, nn.Module] = {}
        self._confidence = self._confidences()

    def _parts(self, term: str) -> tuple[str, ...]:
        if term not in self.weights:
            return ()
        if term == "query":
            return PARTS["query"]
        at = self.course.settings.repr_at
        if at == "visual" or (at == "both" and self._why_no_answers()):
            return ("visual",)
        if why := self._why_no_answers():
            raise UsageError(f"--repr-at answer: {why}")
        return ("answer",) if at == "answer" else PARTS["repr"]

    def _why_no_answers(self) -> str | None:
        """Why representations cannot be compared at the answer's positions."""
        course = self.course
        assert course.lessons.said is not None
        if course.lessons.said.vocabulary != course.student.vocabulary_digest:
            return "teacher and student have other vocabularies: their answers' tokens differ"
        if not course.student.language.reads_answers:
            return "an encoder-decoder's last attention does not see the answer"
        return None

    def _confidences(self) -> list[float] | None:
        """The weight of each example's pseudo-label, 1 on average over those trained on.

        In proportion to exp(-nats), the geometric mean of the teacher's token probabilities.
        """
        lessons = self.course.lessons
        if not self.course.settings.confidence:
            return None
        sure = torch.tensor(lessons.nats, dtype=torch.float64).neg().exp()
        return (sure / sure[lessons.train].mean().clamp(min=1e-12)).tolist()

    # ---- before the first step

    def prepare(self) -> None:
        """Scales, phi, and the gradients that weights are relative to."""
        train, size = self.course.lessons.train, self.asks_at_once()
        chosen = train[:: max(1, len(train) // MEASURED)][:MEASURED]
        batches = [chosen[at : at + size] for at in range(0, len(chosen), size)]
        if "kl" in self.weights:
            self._check_vocabulary()
        with torch.no_grad():
            seen = [self._features(batch) for batch in batches] if self.parts else []
        for parts in self.parts.values():
            for part in parts:
                self._prepare_part(part, batches, seen)
        del seen
        named = {
            f"{part}.{name}": parameter
            for part, phi in self.phis.items()
            for name, parameter in phi.named_parameters()
        }
        self.flats = [Flat(named)] if named else []
        self._measure_gradients(batches)

    def _check_vocabulary(self) -> None:
        course = self.course
        assert course.lessons.said is not None
        ours, theirs = course.student.vocabulary_digest, course.lessons.said.vocabulary
        if ours != theirs:
            raise UsageError(
                f"--kl {course.settings.kl}: the teacher's tokens are not the student's (its "
                f"vocabulary is {theirs[:17]}, the student's {ours[:17]}): a distribution over one "
                "says nothing about the other; leave --kl out"
            )

    def _prepare_part(self, part: str, batches: list[list[int]], seen: list[Features]) -> None:
        """The scale and phi of one part, from what both give for the same tokens."""
        theirs, ours = [], []
        for batch, features in zip(batches, seen, strict=True):
            target_BLC, mask_BL = self._target(batch, part), features.masks[part]
            if target_BLC.shape[:2] != features.rows[part].shape[:2]:
                raise UsageError(
                    f"the teacher gives {target_BLC.shape[1]} {part} vectors for a picture, the "
                    f"student {features.rows[part].shape[1]}: they cannot be aligned one by one: "
                    "give --query-weight 0 --repr-weight 0, or a teacher with as many"
                )
            theirs.append(target_BLC[mask_BL])
            ours.append(features.rows[part][mask_BL])
        their_EC, our_ES = torch.cat(theirs), torch.cat(ours)
        self.scales[part] = float(their_EC.double().square().mean())
        if not self.scales[part] > 0:
            raise BadData("the teacher's queries or representation are all zero: a damaged teacher")
        is_akd = self.course.settings.method == "akd"
        if is_akd or their_EC.shape[1] != our_ES.shape[1]:
            self.phis[part] = initial_phi(our_ES, their_EC)

    def _measure_gradients(self, batches: list[list[int]]) -> None:
        """How long each term's gradient over the overlay is, and the weights that follow.

        A term of a weight that was asked for must have one; another is left out, and said so.
        """
        course = self.course
        sums = {term: torch.zeros_like(course.overlay.gradient) for term in self.weights}
        for batch in batches:
            terms = self.losses(batch)
            for term in self.weights:
                self._clear()
                term_B = terms.pop(term)
                if term_B.requires_grad:
                    mean = term_B.sum() / sum(map(len, batches))
                    mean.backward(retain_graph=bool(terms))
                sums[term] += course.overlay.gradient
        self._clear()
        self.gradients = {term: float(gradient.norm()) for term, gradient in sums.items()}
        given = course.settings.given_weights()
        for term in [term for term, length in self.gradients.items() if not length > 0]:
            what = f"the {term} term has no gradient on what is trained"
            if given[term] is not None or len(self.weights) == 1:
                raise UsageError(
                    f"{what}: teacher and student agree in it already, or nothing before it is "
                    f"trained: give --{term}-weight 0, or train more groups"
                )
            streams.message(f"{what}: left out")
            del self.weights[term]
            self.parts.pop(term, None)
        if course.settings.balanced:
            first = next(term for term in ("ce", "kl", "repr", "query") if term in self.weights)
            for term in self.weights:
                self.weights[term] *= self.gradients[first] / self.gradients[term]

    def _clear(self) -> None:
        for flat in (self.course.overlay, *self.flats):
            flat.clear()

    # ---- the terms

    def losses(self, batch: Sequence[int]) -> dict[str, Tensor]:
        features = self._features(batch)
        terms: dict[str, Tensor] = {}
        for term, parts in self.parts.items():
            values = [self._distance(batch, part, features) for part in parts]
            terms[term] = torch.stack(values).mean(0)
        if "ce" in self.weights:
            terms["ce"] = losses.answer_cross_entropy(features.logits_BAV, features.answer_BA)
            if self._confidence is not None:
                weights = [self._confidence[number] for number in batch]
                terms["ce"] = terms["ce"] * terms["ce"].new_tensor(weights)
        if "kl" in self.weights:
            terms["kl"] = self._kl(batch, features)
        return {term: terms[term] for term in self.weights}

    def _features(self, batch: Sequence[int]) -> Features:
        student = self.course.student
        seen = self.course.look(batch)
        answer_BA = student.answer_ids([self.course.lessons.answers[n] for n in batch])
        forward = student.forward(seen.spliced, answer_BA)
        mask_BL = forward.hidden_mask
        rows = {"queries": seen.queries.float(), "visual": forward.hidden.float()}
        masks = {"queries": mask_BL, "visual": mask_BL}
        if forward.answer_hidden is not None:
            rows["answer"] = forward.answer_hidden.float()
            masks["answer"] = answer_BA != losses.IGNORED
        return Features(rows, masks, forward.logits, answer_BA)

    def _distance(self, batch: Sequence[int], part: str, features: Features) -> Tensor:
        """(B,): how far student and teacher are apart in one part."""
        settings = self.course.settings
        target, own, mask = self._target(batch, part), features.rows[part], features.masks[part]
        phi = self.phis.get(part, _identity)
        if settings.method == "pkd":
            return feature_losses.pearson_distance(target, phi(own), mask)
        if settings.method == "cwd":
            return feature_losses.channel_wise_divergence(target, phi(own), mask, settings.tau)
        aligned = losses.query_alignment if part == "queries" else losses.representation_alignment
        return aligned(target, own, phi, mask) / self.scales[part]

    def _kl(self, batch: Sequence[int], features: Features) -> Tensor:
        settings = self.course.settings
        kl: Callable[..., Tensor] = getattr(logit_losses, f"{settings.kl}_kl")
        target_BAV = self._target(batch, "logits")
        return kl(
            target_BAV, features.logits_BAV, features.answer_BA, settings.kl_temperature or 1.0
        )

    def _target(self, batch: Sequence[int], part: str) -> Tensor:
        """(B, L, C): what the teacher gave, padded on the right with zeros."""
        lessons = self.course.lessons
        rows = [torch.from_numpy(lessons.rows(number, part)) for number in batch]
        return pad_sequence(rows, batch_first=True).to(self.course.student.device)

    def report(self) -> dict[str, Any]:
        settings = self.course.settings
        return {
            "weights": settings.weights(),
            "effective_weights": self.weights,
            "balance": "gradients" if settings.balanced else "none",
            "gradients": self.gradients,
            "scales": self.scales,
            "parts": {term: list(parts) for term, parts in self.parts.items()},
        }


def _identity(values: Tensor) -> Tensor:
    return values
