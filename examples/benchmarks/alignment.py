"""What the alignment of features (Eq. 5, 6) could teach a student, and what it does teach.

    python examples/benchmarks/alignment.py [--pair FOLDER] [--frames FOLDER] [--most 240]

A student is trained on `stream`, on the teacher's answers (pseudo-label), with alignment too (akd),
and by alignment alone. Each is measured on the questions of `heldout`, never trained on:

* linear maps: what of the teacher's features is not a linear function of the student's. The map is
  a ridge regression on half of the frames, the error of the others: as a share of the features'
  mean square (Eq. 5 as `distill` shows it), and of what differs between pictures, without each
  position's mean, which a map of its own may fit. Beside it the phi that was trained;
* replaced queries: KL from the teacher's distributions, nats a token, if it answers from others
  than its own queries: k directions around each position's mean, or phi(student). Directions of
  the largest variance, which Eq. 5 weighs most; of the largest sensitivity, the eigenvectors of
  F = E[g g'], the Fisher information of an answer in one query; and of both, those of S F S with S
  the root of the covariance;
* the student's reading: its own answers, with its queries and with the best linear map of the
  teacher's in their place: what the closest alignment of the queries alone would give it;
* where the error lies: the share of Eq. 5's error in the directions with 90 % of F's trace;
* gradients: of each term on batches of `stream`; their cosine with that of the cross-entropy of the
  human answers to `heldout`, and the gain there, to first order, of a step of one length.

Intervals (95 %) resample frames, those of gradients batches. Prints Markdown tables, then each row
as a line of JSON. B batch, L queries, C channels, P parameters, E rows, A answer tokens.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from codebook import majority
from torch import Tensor, nn

from cdcca_cli import streams
from cdcca_cli.config import SHIPPED_STUDENT, SHIPPED_TEACHER
from cdcca_cli.datasets import Frame, load_image, read_frames
from cdcca_cli.distillation.dataset import Dataset, build_dataset
from cdcca_cli.distillation.epochs import Epochs
from cdcca_cli.distillation.evaluation import agreement, bootstrap_interval
from cdcca_cli.distillation.losses import IGNORED, answer_cross_entropy, forward_kl
from cdcca_cli.distillation.phi import initial_phi
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.distillation.trainer import Trainer
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.shard import Question, Shard
from cdcca_cli.loop import demo
from cdcca_cli.models import LoadedModel, load, load_device
from cdcca_cli.models.encoding import encode
from cdcca_cli.models.initial import create_device, start_of
from cdcca_cli.teachers.local import LocalTeacher

METHODS: dict[str, dict[str, Any]] = {
    "pseudo-label": {"method": "pseudo-label"},
    "akd": {"method": "akd"},
    "alignment alone": {"method": "akd", "ce_weight": 0.0},
}
PARTS = {"queries": "queries", "visual": "repr, visual", "answer": "repr, answer"}
COUNTS = (1, 2, 4, 8, 16, 32, 64)
BATCH, BATCHES, CARRIED, SMALLEST = 32, 24, 0.9, 1e-9
RIDGES = tuple(10.0**exponent for exponent in range(-6, 2))
Overlay = dict[str, np.ndarray]
Row = dict[str, Any]


def shards_of(model: LoadedModel, frames: Sequence[Frame]) -> list[Shard]:
    """All tokens of the frames, with their questions."""
    shards = []
    for frame in frames:
        (seen,) = model.see(model.prepare([load_image(frame)]))
        tokens_NC = seen.tokens.float().cpu().numpy()
        shard = Shard(
            frame=frame.id,
            image=frame.id,
            domain=None,
            tokens=tokens_NC,
            positions=np.arange(len(tokens_NC), dtype=np.int32),
            num_tokens=seen.num_tokens,
            tower=model.tower_digest,
            layout=seen.layout,
        )
        asked = [one for one in frame.questions if one.task == "vqa" and one.answers]
        shard.questions = [Question(one.id, one.prompt, one.task, one.choices) for one in asked]
        shards.append(shard)
    return shards


def batches_of(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    yield from (numbers[at : at + BATCH] for at in range(0, len(numbers), BATCH))


# ---------------------------------------------------------------- linear maps


@torch.no_grad()
def features(model: LoadedModel, dataset: Dataset) -> dict[str, list[Tensor]]:
    """The rows (L, C) of each part, for each example with its answer."""
    found: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    for batch in batches_of(range(len(dataset.examples))):
        encoded = encode(model, [dataset.examples[n] for n in batch])
        answer_BA = model.answer_ids([dataset.answers[n] for n in batch])
        forward = model.forward(encoded.spliced, answer_BA)
        found["queries"] += encoded.queries.float()
        for part, rows_BLC, mask_BL in (
            ("visual", forward.hidden, forward.hidden_mask),
            ("answer", forward.answer_hidden, answer_BA != IGNORED),
        ):
            for place in range(0 if rows_BLC is None else len(batch)):
                found[part].append(rows_BLC[place][mask_BL[place]].float())
    return {part: rows for part, rows in found.items() if rows}


def centred(rows: Sequence[Tensor]) -> Tensor:
    """(E, C), float64, without the mean of each position; of all for one example, or several with
    other numbers of rows."""
    if len(rows) > 1 and len({len(row) for row in rows}) == 1:
        stacked_BLC = torch.stack(list(rows)).double()
        return (stacked_BLC - stacked_BLC.mean(0)).flatten(0, 1)
    rows_EC = torch.cat(list(rows)).double()
    return rows_EC - rows_EC.mean(0)


@torch.no_grad()
def errors(phi: nn.Module, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> tuple[float, float]:
    """|| t - phi(s) ||^2 as a share of || t ||^2, and of what differs between pictures."""
    target_EC = torch.cat(list(theirs)).double()
    error = (target_EC - phi(torch.cat(list(ours))).double()).square().sum()
    return float(error / target_EC.square().sum()), float(error / centred(theirs).square().sum())


# ---------------------------------------------------------------- what the answers depend on


def logits_from(
    model: LoadedModel, dataset: Dataset, batch: Sequence[int], queries_BLC: Tensor
) -> tuple[Tensor, Tensor]:
    """The logits (B, A, V) of the dataset's answers (B, A), if the model's queries were these."""
    examples = [dataset.examples[n] for n in batch]
    prompts = [model.format_prompt(one.question.prompt, one.question.task) for one in examples]
    answer_BA = model.answer_ids([dataset.answers[n] for n in batch])
    spliced = model.splice(model.project(queries_BLC), prompts, [one.shard for one in examples])
    return model.forward(spliced, answer_BA).logits.float(), answer_BA


@torch.no_grad()
def answered(
    model: LoadedModel, dataset: Dataset, numbers: Sequence[int], queries: Sequence[Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    """(E,): whether the model gives the dataset's answer from these queries; its nats a token."""
    right, nats = [], []
    for batch in batches_of(numbers):
        queries_BLC = torch.stack([queries[n] for n in batch])
        logits_BAV, answer_BA = logits_from(model, dataset, batch, queries_BLC)
        right.append(agreement(logits_BAV, answer_BA))
        nats.append(answer_cross_entropy(logits_BAV, answer_BA))
    return torch.cat(right).double().numpy(), torch.cat(nats).double().numpy()


def sensitivity(
    teacher: LoadedModel,
    dataset: Dataset,
    numbers: Sequence[int],
    queries: Sequence[Tensor],
    seed: int,
) -> Tensor:
    """F (C, C): E[g g'], summed over queries, g the gradient of log p(y), y drawn from p.

    To second order the KL divergence is 1/2 sum_l d_l' F d_l after a change d of the queries,
    without what two queries do together.
    """
    generator = torch.Generator().manual_seed(seed)
    total_CC = torch.zeros(queries[0].shape[1], queries[0].shape[1], dtype=torch.float64)
    for batch in batches_of(numbers):
        queries_BLC = torch.stack([queries[n] for n in batch]).requires_grad_(True)
        logits_BAV, answer_BA = logits_from(teacher, dataset, batch, queries_BLC)
        logp_BAV = logits_BAV.log_softmax(-1)
        drawn_E1 = torch.multinomial(logp_BAV.detach().exp().flatten(0, 1), 1, generator=generator)
        own_BA = logp_BAV.gather(2, drawn_E1.view(*answer_BA.shape, 1))[..., 0]
        real_BA = answer_BA != IGNORED
        # The root, because an answer's tokens are independent draws, and the KL is their mean.
        own_B = (own_BA * real_BA).sum(1) / real_BA.sum(1).sqrt()
        (gradient_BLC,) = torch.autograd.grad(own_B.sum(), queries_BLC)
        gradient_EC = gradient_BLC.flatten(0, 1).double()
        total_CC += gradient_EC.T @ gradient_EC
    return total_CC / len(numbers)


def eigenvectors(matrix_CC: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (C,), the largest first, and their vectors as columns."""
    values_C, vectors_CC = torch.linalg.eigh(matrix_CC)
    return values_C.flip(0).clamp(min=0), vectors_CC.flip(1)


def carrying(fisher_CC: Tensor, share: float = CARRIED) -> Tensor:
    """(C, k): the fewest eigenvectors that carry a share of the trace."""
    values_C, vectors_CC = eigenvectors(fisher_CC)
    return vectors_CC[:, : int((values_C.cumsum(0) < share * values_C.sum()).sum()) + 1]


def projections(covariance_CC: Tensor, fisher_CC: Tensor) -> dict[str, Callable[[int], Tensor]]:
    """By name: the matrix (C, C) that keeps k directions of a row, x @ matrix."""
    values_C, variance_CC = eigenvectors(covariance_CC)
    root_C = values_C.clamp(min=SMALLEST * float(values_C[0])).sqrt()
    root_CC = variance_CC * root_C @ variance_CC.T
    inverse_CC = variance_CC / root_C @ variance_CC.T
    (_, sensitive_CC), (_, both_CC) = map(eigenvectors, (fisher_CC, root_CC @ fisher_CC @ root_CC))
    return {
        "variance": lambda k: variance_CC[:, :k] @ variance_CC[:, :k].T,
        "sensitivity": lambda k: sensitive_CC[:, :k] @ sensitive_CC[:, :k].T,
        "both": lambda k: inverse_CC @ both_CC[:, :k] @ both_CC[:, :k].T @ root_CC,
    }


@torch.no_grad()
def divergence(
    teacher: LoadedModel,
    dataset: Dataset,
    numbers: Sequence[int],
    own: Sequence[Tensor],
    other: Mapping[int, Tensor],
) -> tuple[np.ndarray, np.ndarray]:
    """(E,): KL(from its own queries || from others), nats a token; whether the answer stays."""
    kl, stays = [], []
    for batch in batches_of(numbers):
        of_own, of_other = (
            logits_from(teacher, dataset, batch, torch.stack([rows[n] for n in batch]))
            for rows in (own, other)
        )
        answer_BA = of_own[1]
        kl.append(forward_kl(of_own[0], of_other[0], answer_BA))
        greedy_BA = of_own[0].argmax(-1).where(answer_BA != IGNORED, answer_BA)
        stays.append(agreement(of_other[0], greedy_BA))
    return torch.cat(kl).double().numpy(), torch.cat(stays).double().numpy()


# ---------------------------------------------------------------- gradients


def gradients_of(trainer: Trainer, batch: Sequence[int], terms: Sequence[str]) -> dict[str, Tensor]:
    """The gradient (P,) of each term's mean over some examples, over the overlay."""
    overlay, method = trainer.overlay, trainer.method
    sums = {term: torch.zeros_like(overlay.gradient) for term in terms}
    for part in method.micro_batches(batch):
        found = method.losses(part)
        for term in terms:
            overlay.clear()
            (found[term].sum() / len(batch)).backward(retain_graph=term != terms[-1])
            sums[term] += overlay.gradient
    return sums


def cosine(one_P: Tensor, other_P: Tensor) -> float:
    return float(torch.cosine_similarity(one_P, other_P, dim=0))


# ---------------------------------------------------------------- the whole


class Pair:
    """A teacher, a student's device folder, and the questions of both sets of frames."""

    def __init__(
        self,
        teacher: LoadedModel,
        mirror: Device,
        stream: Sequence[Frame],
        heldout: Sequence[Frame],
        epochs: int = 3,
        seed: int = 0,
    ) -> None:
        self.teacher, self.mirror, self.epochs, self.seed = teacher, mirror, epochs, seed
        self.student = load_device(mirror, compute="cpu", dtype="float32")
        self.stream, self.heldout = (
            build_dataset(
                shards_of(self.student, frames),
                LocalTeacher(teacher),
                self.student,
                self.settings("akd"),
            )
            for frames in (stream, heldout)
        )
        human = {one.id: one.answers for frame in heldout for one in frame.questions}
        answers = [majority(human[one.question.id] or []) for one in self.heldout.examples]
        self.labelled = replace(self.heldout, answers=answers)
        self.frames = [one.shard.frame for one in self.heldout.examples]
        names = list(dict.fromkeys(self.frames))
        first = set(names[::2])
        self.fit = [n for n, frame in enumerate(self.frames) if frame in first]
        self.rest = [n for n, frame in enumerate(self.frames) if frame not in first]

    def settings(self, name: str) -> DistillSettings:
        return DistillSettings(
            epochs=self.epochs, seed=self.seed, choose="last", holdout=0.0, **METHODS[name]
        )

    def trainer(self, name: str, start: Overlay, dataset: Dataset) -> Trainer:
        """One that has done no step."""
        settings, mirror = self.settings(name), self.mirror
        return Trainer(
            self.student, mirror, start, dataset, settings, source=lambda: start_of(mirror)
        )

    def trained(self, name: str) -> tuple[Overlay, dict[str, nn.Module]]:
        """The overlay after all epochs on the stream, and the phi of each part."""
        start = self.mirror.read_overlay()
        with self.student.training_mode():
            trainer = self.trainer(name, start, self.stream)
            Epochs(trainer, start, self.mirror).train()
        return trainer.overlay.arrays(trainer.overlay.values), trainer.method.phis

    def measured(self) -> dict[str, list[Row]]:
        """The rows of each table."""
        states: dict[str, tuple[Overlay, dict[str, nn.Module]]]
        states = {"source": (self.mirror.read_overlay(), {})}
        states |= {name: self.trained(name) for name in METHODS}
        theirs, maps, reading = features(self.teacher, self.heldout), [], []
        read: dict[str, Callable[[int], Tensor]] = {}
        for name, (overlay, phis) in states.items():
            self.student.freeze()
            self.student.install_overlay(overlay, self.mirror.lora.alpha)
            ours = features(self.student, self.heldout)
            reading.append({"student": name} | self.reading(ours["queries"], theirs["queries"]))
            for part in ours:
                (our_fit, our_rest), (their_fit, their_rest) = (
                    [[side[part][n] for n in half] for half in (self.fit, self.rest)]
                    for side in (ours, theirs)
                )
                best = initial_phi(torch.cat(our_fit), torch.cat(their_fit), RIDGES)
                known = {"best map": best} | ({"its phi": phis[part]} if part in phis else {})
                row: Row = {"part": PARTS[part], "student": name}
                for of, phi in known.items():
                    row[of], row[f"{of}, pictures"] = errors(phi, our_rest, their_rest)
                    if part == "queries":
                        read[f"{of} of {name}"] = lambda n, phi=phi, rows=ours[part]: phi(rows[n])
                varying = initial_phi(centred(our_fit).float(), centred(their_fit).float(), RIDGES)
                _, row["best of pictures"] = errors(
                    varying, [centred(our_rest).float()], [centred(their_rest).float()]
                )
                maps.append(row)
        needs, lies = self.needs(theirs["queries"], read)
        gradients = [row for name in states for row in self.gradients(name, states[name][0])]
        maps.sort(key=lambda row: list(PARTS.values()).index(row["part"]))
        return {
            "Linear maps": maps,
            "Replaced queries": needs,
            "The student's reading": reading,
            "Where the error lies": lies,
            "Gradients": gradients,
        }

    def reading(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Row:
        """The student's answers as it is: as the human ones, their nats, as the teacher's."""
        sides = [torch.cat([rows[n] for n in self.fit]) for rows in (theirs, ours)]
        best, row = initial_phi(*sides, RIDGES), {}
        with torch.no_grad():
            mapped = [best(rows) for rows in theirs]
        rights = []
        for of, queries in {"own": ours, "the teacher's": mapped}.items():
            right_E, nats_E = answered(self.student, self.labelled, self.rest, queries)
            same_E, _ = answered(self.student, self.heldout, self.rest, queries)
            row |= {
                f"{of}: {name}": float(values_E.mean())
                for name, values_E in (
                    ("correct", right_E),
                    ("nats", nats_E),
                    ("as teacher", same_E),
                )
            }
            rights.append(right_E)
        gain_E = rights[1] - rights[0]
        low, high = bootstrap_interval(gain_E, [self.frames[n] for n in self.rest], self.seed)
        return row | {"gain": float(gain_E.mean()), "low": low, "high": high}

    def needs(
        self, own: Sequence[Tensor], read: Mapping[str, Callable[[int], Tensor]]
    ) -> tuple[list[Row], list[Row]]:
        """Replaced queries, and where their error lies.

        Args: own: the teacher's queries. read: phi(student) of an example, by name.
        """
        fit, rest, width = self.fit, self.rest, own[0].shape[1]
        centre_LC = torch.stack([own[n] for n in fit]).mean(0)
        around_EC = centred([own[n] for n in fit])
        fisher_CC = sensitivity(self.teacher, self.heldout, fit, own, self.seed)
        vectors_CK = carrying(fisher_CC)
        ways: dict[str, Callable[[int], Tensor]] = {"mean of each position": lambda n: centre_LC}
        kept = projections(around_EC.T @ around_EC / len(around_EC), fisher_CC)
        for by, keep in kept.items():
            for k in (count for count in COUNTS if count < width):
                ways[f"{k} of {width} directions, {by}"] = lambda n, keep_CC=keep(k).float(): (
                    centre_LC + (own[n] - centre_LC) @ keep_CC
                )
        ways |= read
        needs, lies = [], []
        for name, way in ways.items():
            with torch.no_grad():
                other = {n: way(n) for n in rest}
            kl_E, stays_E = divergence(self.teacher, self.heldout, rest, own, other)
            low, high = bootstrap_interval(kl_E, [self.frames[n] for n in rest], self.seed)
            error_EC = torch.cat([other[n] - own[n] for n in rest]).double()
            error = float(error_EC.square().sum() / centred([own[n] for n in rest]).square().sum())
            row: Row = {"queries": name, "error, pictures": error, "KL": float(kl_E.mean())}
            needs.append(row | {"low": low, "high": high, "same answer": float(stays_E.mean())})
            if name in read or len(needs) == 1:
                share = float((error_EC @ vectors_CK).square().sum() / error_EC.square().sum())
                row = {"error of": name, "sensitive directions": vectors_CK.shape[1], "of": width}
                lies.append(row | {"share of the error there": share})
        return needs, lies

    def gradients(self, name: str, overlay: Overlay) -> list[Row]:
        """What a step of each term gains on the human answers to the held-out questions."""
        with self.student.training_mode():
            goal = self.trainer("pseudo-label", overlay, self.labelled)
            goal_P = gradients_of(goal, self.labelled.train, ["ce"])["ce"]
            taught = self.trainer("akd", overlay, self.stream)
            terms = list(taught.method.weights)
            found = [gradients_of(taught, one, terms) for one in taught.batches(0)[:BATCHES]]
        length, rows = taught.lr * len(taught.overlay) ** 0.5, []
        cosines = {term: np.array([cosine(one[term], goal_P) for one in found]) for term in terms}
        for term, cosines_E in cosines.items():
            low, high = bootstrap_interval(cosines_E, ["all"] * len(found), self.seed)
            mean = float(cosines_E.mean())
            row: Row = {"student": name, "term": term, "cosine": mean, "low": low, "high": high}
            together_P = torch.stack([one[term] for one in found]).sum(0)
            row["of all batches"] = cosine(together_P, goal_P)
            row["with its batch's ce"] = float(np.mean([cosine(o[term], o["ce"]) for o in found]))
            row["gain, nats"] = length * float(goal_P.norm()) * mean
            rows.append(row | {"of ce's gain": mean / float(cosines["ce"].mean())})
        return rows


def table(title: str, rows: Sequence[Row]) -> str:
    """Markdown, with every column that a row has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns)]
    for row in rows:
        cells = (row.get(name, "") for name in columns)
        lines.append([f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells])
    return f"### {title}\n\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pair", type=Path, help="folder with student and teacher")
    parser.add_argument("--frames", type=Path, default=demo.FRAMES)
    parser.add_argument("--most", type=int, default=1000, help="frames of a part")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    streams.set_quiet(True)
    names = [SHIPPED_TEACHER, SHIPPED_STUDENT]
    if given.pair:
        names = [str(given.pair / role) for role in ("teacher", "student")]
    stream, heldout = (
        list(islice(read_frames(given.frames / part), given.most))
        for part in (demo.STREAM, demo.HELD_OUT)
    )
    with tempfile.TemporaryDirectory() as folder:
        mirror = create_device(Path(folder) / "mirror", names[1])
        teacher = load(names[0], compute="cpu", dtype="float32")
        found = Pair(teacher, mirror, stream, heldout, given.epochs, given.seed).measured()
    for title, rows in found.items():
        sys.stdout.write(table(title, rows))
    for title, rows in found.items():
        sys.stdout.writelines(json.dumps({"table": title, **row}) + "\n" for row in rows)


if __name__ == "__main__":
    main()
