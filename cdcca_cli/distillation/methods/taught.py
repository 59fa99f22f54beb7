"""What learns from a teacher: KD, the paper's AKD (Eq. 5 and 6), pseudo-labels, PKD and CWD.

    akd           Eq. 6: query alignment, representation alignment, cross-entropy
    pseudo-label  cross-entropy on the teacher's answers alone (the paper's first ablation)
    kd            pseudo-label (sequence-level distillation, Kim and Rush 2016), and the forward KL
                  divergence from the teacher's token distributions (Hinton et al. 2015)
    pkd, cwd      the features of akd, compared by correlation or channel by channel, beside the
                  cross-entropy

The terms are in `losses`. PKD's and CWD's weights are the sources' 6 and 3, and CWD's temperature
4. phi comes before both if student and teacher differ in width.

**The representation** is the output of the language model's last attention. Eq. 6 aligns it at the
visual positions. In a decoder only the last MLP and the head follow, which read the answer's
positions, so it is also compared where the answer's tokens are predicted, with equal weight. For an
encoder-decoder, and without a common vocabulary, only the visual positions are compared.

**One scale.** Eq. 5's terms are divided by the mean square of the teacher's features. For AKD the
weight of each term is then divided by the norm of its gradient over the overlay, measured on some
examples, relative to the cross-entropy's: a weight of 1 pulls as hard as the pseudo-labels do.

There is one phi of Eq. 5 (`phi`) for the queries and for each part of the representation. With
several processes, scales, phi and gradients are the first one's, so that all minimise the same.

Shapes: B batch, E rows, L query tokens, A answer tokens, C teacher channels, S student channels, V
vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from cdcca_cli import distributed, streams
from cdcca_cli.distillation import losses
from cdcca_cli.distillation.methods import Method, MethodContext
from cdcca_cli.distillation.optimiser import Flat
from cdcca_cli.distillation.phi import initial_phi
from cdcca_cli.distillation.tops import NoDistributions, Tops
from cdcca_cli.errors import BadData, SettingError, UsageError

MEASURED = 64
"""Number of examples from which phi and the gradients are measured."""
PARTS = {"query": ("queries",), "repr": ("visual", "answer")}
"""The rows of the teacher's outputs that each alignment term compares."""


@dataclass(frozen=True)
class Features:
    """The student's features of a batch, by part: rows (B, L, S) float32, masks (B, L) bool."""

    rows: dict[str, Tensor]
    masks: dict[str, Tensor]
    logits_BAV: Tensor
    answer_BA: Tensor


class Taught(Method):
    """Learns the teacher's answers, and aligns features with the teacher's."""

    def __init__(self, context: MethodContext) -> None:
        settings = context.settings
        super().__init__(context, settings.weights(), settings.ema)
        assert context.dataset.source is not None
        self.source = context.dataset.source
        self._check_parts()
        self.aligned = {term: parts for term in PARTS if (parts := self._parts(term))}
        self.scales: dict[str, float] = {}
        self.gradients: dict[str, float] = {}
        self.phis: dict[str, nn.Module] = {}
        self._confidence = self._confidences()
        self.tops = self._open_tops()
        train = context.dataset.train
        batches = self.micro_batches(train[:: max(1, len(train) // MEASURED)][:MEASURED])
        self._make_phis(batches)
        self._balance(batches)

    # ---- before the first step

    def _parts(self, term: str) -> tuple[str, ...]:
        if term not in self.weights:
            return ()
        if term == "query":
            return PARTS["query"]
        at, student, why_not = self.settings.repr_at, self.context.student, ""
        if self.source.vocabulary != student.vocabulary_digest:
            why_not = "teacher and student have other vocabularies: their answers' tokens differ"
        elif not student.language.reads_answers:
            why_not = "an encoder-decoder's last attention does not see the answer"
        if at == "visual" or (at == "both" and why_not):
            return ("visual",)
        if why_not:
            raise SettingError("repr_at", why_not, at)
        return ("answer",) if at == "answer" else PARTS["repr"]

    def _check_parts(self) -> None:
        """Refuse labels without the features that the method compares. Raises: SettingError."""
        missing, parts = self.context.dataset.missing, {"query": "queries", "repr": "visual"}
        for term, part in parts.items():
            if term in self.weights and part in missing:
                raise SettingError(
                    "method",
                    f"the labels have no {part}, which a local teacher of a fitting pair gives: "
                    "use `method` kd",
                    self.settings.method,
                )

    def _open_tops(self) -> Tops | None:
        """The teacher's distributions, if they are learnt; without them `kl` auto leaves them out.

        Raises: NoDistributions if they were asked for, or nothing else is learnt.
        """
        if "kl" not in self.weights:
            return None
        try:
            return Tops(self.context.dataset, self.context.student)
        except NoDistributions as error:
            if self.settings.kl != "auto" or len(self.weights) == 1:
                raise
            streams.message(f"`kl` is left out: {error.fault}")
            del self.weights["kl"]
            return None

    def _confidences(self) -> list[float] | None:
        """The weight of each example's pseudo-label: in proportion to exp(-nats), 1 on average."""
        dataset = self.context.dataset
        if not self.settings.confidence:
            return None
        if "nats" in dataset.missing:
            raise SettingError("confidence", "the teacher gave no probability of its answers")
        nats = [0.0 if one is None else one for one in dataset.nats]
        sure = torch.tensor(nats, dtype=torch.float64).neg().exp()
        return (sure / sure[dataset.train].mean().clamp(min=1e-12)).tolist()

    def _make_phis(self, batches: list[Sequence[int]]) -> None:
        parts = [part for parts in self.aligned.values() for part in parts]
        found = []
        with torch.no_grad():
            for batch in batches if parts else ():
                features = self._features(batch)
                found.append(replace(features, logits_BAV=features.logits_BAV[..., :0].clone()))
        for part in parts:
            self._make_phi(part, batches, found)
        named = {
            f"{part}.{name}": parameter
            for part, phi in self.phis.items()
            for name, parameter in phi.named_parameters()
        }
        self.flats = [Flat(named)] if named else []
        for flat in self.flats:
            distributed.broadcast(flat.values)

    def _make_phi(self, part: str, batches: list[Sequence[int]], found: list[Features]) -> None:
        theirs, ours = [], []
        for batch, features in zip(batches, found, strict=True):
            mask_BL = features.masks[part]
            target_BLC = self._target(batch, part, mask_BL)
            theirs.append(target_BLC[mask_BL])
            ours.append(features.rows[part][mask_BL])
        their_EC, our_ES = torch.cat(theirs), torch.cat(ours)
        (self.scales[part],) = self._of_first([float(their_EC.double().square().mean())])
        if not self.scales[part] > 0:
            raise BadData("the teacher's queries or representation are all zero: a damaged teacher")
        if self.settings.method == "akd" or their_EC.shape[1] != our_ES.shape[1]:
            self.phis[part] = initial_phi(our_ES, their_EC)

    def _balance(self, batches: list[Sequence[int]]) -> None:
        """Bring the terms to one scale, after dropping those without a gradient.

        Without balancing one example tells whether there is a gradient, unless it has none.
        """
        one = [batch[:1] for batch in batches[:1]]
        self.gradients = self._gradient_norms(batches if self.settings.is_balanced else one)
        if not (self.settings.is_balanced or all(norm > 0 for norm in self.gradients.values())):
            self.gradients = self._gradient_norms(batches)
        given = self.settings.given_weights()
        for term in [term for term, norm in self.gradients.items() if not norm > 0]:
            what = f"the {term} term has no gradient on what is trained"
            if term in given or len(self.weights) == 1:
                raise UsageError(
                    f"{what}: teacher and student agree in it already, or nothing before it is "
                    f"trained: give `{term}_weight` 0, or train more groups"
                )
            streams.message(f"{what}: left out")
            del self.weights[term]
            self.aligned.pop(term, None)
        if self.settings.is_balanced:
            first = next(term for term in ("ce", "kl", "repr", "query") if term in self.weights)
            for term in self.weights:
                self.weights[term] *= self.gradients[first] / self.gradients[term]

    def _gradient_norms(self, batches: list[Sequence[int]]) -> dict[str, float]:
        """The norm of each term's gradient over the overlay."""
        overlay = self.context.overlay
        sums = {term: torch.zeros_like(overlay.gradient) for term in self.weights}
        for batch in batches:
            terms = self.losses(batch)
            for term in self.weights:
                self._clear()
                term_B = terms.pop(term)
                if term_B.requires_grad:
                    mean = term_B.sum() / sum(map(len, batches))
                    mean.backward(retain_graph=bool(terms))
                sums[term] += overlay.gradient
        self._clear()
        norms = self._of_first([float(gradient.norm()) for gradient in sums.values()])
        return dict(zip(sums, norms, strict=True))

    def _of_first(self, values: list[float]) -> list[float]:
        """These numbers as the first process has them."""
        shared = torch.tensor(values, dtype=torch.float64)
        if distributed.count() > 1:
            shared = shared.to(self.context.student.device)
            distributed.broadcast(shared)
        return shared.tolist()

    def _clear(self) -> None:
        for flat in (self.context.overlay, *self.flats):
            flat.clear()

    # ---- the terms

    def losses(self, batch: Sequence[int]) -> dict[str, Tensor]:
        features = self._features(batch)
        terms: dict[str, Tensor] = {}
        for term, parts in self.aligned.items():
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
        student = self.context.student
        encoded = self.context.encode(batch)
        answer_BA = student.answer_ids([self.context.dataset.answers[n] for n in batch])
        forward = student.forward(encoded.spliced, answer_BA)
        rows, masks = {}, {}
        for part, values_BLC in (("queries", encoded.queries), ("visual", forward.hidden)):
            if any(part in parts for parts in self.aligned.values()):
                kept = self._kept(batch, part, values_BLC, forward.hidden_mask)
                rows[part], masks[part] = kept[0].float(), kept[1]
        if forward.answer_hidden is not None:
            rows["answer"] = forward.answer_hidden.float()
            masks["answer"] = answer_BA != losses.IGNORED
        return Features(rows, masks, forward.logits, answer_BA)

    def _kept(
        self, batch: Sequence[int], part: str, values_BLS: Tensor, mask_BL: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The student's rows that the teacher's labels keep, and which of these exist."""
        kept_B = [self.context.dataset.teacher_kept(number, part) for number in batch]
        for kept, count in zip(kept_B, mask_BL.sum(1).tolist(), strict=True):
            if kept.count != count:
                raise UsageError(
                    f"the teacher has {kept.count} {part} vectors for an image, the student "
                    f"{count}: they cannot be aligned one by one: give `query_weight` 0 and "
                    "`repr_weight` 0, or a teacher with as many"
                )
        if all(len(kept.rows_L) == kept.count for kept in kept_B):
            return values_BLS, mask_BL
        rows = [torch.from_numpy(kept.rows_L).long() for kept in kept_B]
        rows_BK = pad_sequence(rows, batch_first=True).to(values_BLS.device)
        lengths_B = torch.tensor([len(row) for row in rows], device=values_BLS.device)
        kept_BK = torch.arange(rows_BK.shape[1], device=values_BLS.device) < lengths_B[:, None]
        width = values_BLS.shape[-1]
        kept_BKS = values_BLS.gather(1, rows_BK[..., None].expand(-1, -1, width))
        return kept_BKS * kept_BK[..., None], kept_BK

    def _distance(self, batch: Sequence[int], part: str, features: Features) -> Tensor:
        """(B,): how far student and teacher are apart in one part."""
        settings, own, mask = self.settings, features.rows[part], features.masks[part]
        target = self._target(batch, part, mask)
        phi = self.phis.get(part, nn.Identity())
        if settings.method == "pkd":
            return losses.pearson_distance(target, phi(own), mask)
        if settings.method == "cwd":
            return losses.channel_wise_divergence(target, phi(own), mask, settings.tau)
        return losses.feature_alignment(target, own, phi, mask) / self.scales[part]

    def _kl(self, batch: Sequence[int], features: Features) -> Tensor:
        """Over the likeliest tokens and the rest as one, where the teacher gave a distribution."""
        assert self.tops is not None
        is_forward = self.settings.divergence == "forward"
        kl = losses.forward_kl if is_forward else losses.reverse_kl
        top = self.tops.of(batch, features.answer_BA)
        own_BAO = losses.outcomes(features.logits_BAV, top.ids_BAK)
        return kl(top.logp_BAO, own_BAO, top.answer_BA, self.settings.kl_temperature or 1.0)

    def _target(self, batch: Sequence[int], part: str, mask_BL: Tensor) -> Tensor:
        """(B, L, C): the teacher's rows, padded on the right with zeros.

        Args: mask_BL: which rows the student has. Raises: BadData if the labels have others.
        """
        dataset = self.context.dataset
        rows = [torch.from_numpy(dataset.teacher_rows(number, part)) for number in batch]
        for number, row_LC, length in zip(batch, rows, mask_BL.sum(1).tolist(), strict=True):
            if len(row_LC) != length:
                raise BadData(
                    f"frame {dataset.examples[number].shard.frame[:80]}: its labels have "
                    f"{len(row_LC)} rows of {part} for a question, the student {length}"
                )
        return pad_sequence(rows, batch_first=True).to(self.context.student.device)

    def report(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "weights": settings.weights(),
            "effective_weights": self.weights,
            "balance": "gradients" if settings.is_balanced else "none",
            "gradients": self.gradients,
            "scales": self.scales,
            "parts": {term: list(parts) for term, parts in self.aligned.items()},
        }
