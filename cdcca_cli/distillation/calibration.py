"""Makes a codebook: `cdcca calibrate`.

    W = mean over frames of J'J, summed over positions, trace 1

with J the Jacobian of the teacher's queries with respect to a frame's tokens. J'J is estimated by
vector-Jacobian products with random unit vectors (Hutchinson's estimator). No label is used.
`transform` makes the codebook's arrays from W and the tokens; `curve` measures each step on other
frames.

The teacher's loss without labels: a is its greedy answer on full tokens, P_j and Q_j are its
distributions of token j of a, read from full and from coded tokens. With means over the tokens of
an answer, then over questions,

    loss = mean KL(P_j || Q_j) / mean -log P_j(a_j)

The numerator is how much the cross-entropy of an answer rises that is drawn from P; the denominator
is the loss that a student reaches which equals the teacher. Agreement is the share of questions
whose greedy answer is token for token the same.

Shapes: F frames, N visual tokens, C channels, D of a query, B questions of a batch, U different
inputs of the connector among them, A answer tokens, V vocabulary.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from cdcca_cli import progress
from cdcca_cli.datasets import Frame, LabelledQuestion, load_image
from cdcca_cli.distillation import transform
from cdcca_cli.distillation.evaluation import agreement
from cdcca_cli.distillation.losses import IGNORED, answer_cross_entropy, forward_kl
from cdcca_cli.distillation.settings import CalibrationSettings
from cdcca_cli.errors import BadData, MissingInput
from cdcca_cli.formats.codebook import Codebook, Curve, PicturePoint, TokenPoint
from cdcca_cli.formats.digest import short
from cdcca_cli.formats.pictures import Picture
from cdcca_cli.formats.shard import Layout, Question, Shard
from cdcca_cli.models import LoadedModel, Seen, Spliced
from cdcca_cli.models.decoding import right_padded
from cdcca_cli.models.settings import MAX_NEW_TOKENS
from cdcca_cli.numerics import columns
from cdcca_cli.payloads import klt, pictures
from cdcca_cli.payloads.opening import Opener
from cdcca_cli.skipped import Skipped

if TYPE_CHECKING:
    from PIL.Image import Image

QUALITIES = {pictures.AVIF: (30, 40, 50, 60, 75, 90), pictures.WEBP: (25, 50, 75, 90)}
STEPS = (0.5, 0.6, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.5)
_FRAMES_AT_ONCE = 8
_SHOWN_LOSS = 0.01
_EVALUATED_SHARE = 4  # at least every fourth frame is evaluated on

Tokens = NDArray[np.float32]
Coded = Callable[[int], Tokens]
"""The tokens (N, C) of an evaluated frame, by its place, as the cloud opens them."""
Asked = Question | LabelledQuestion
T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """Frames to calibrate on. tokens: (F, N, C). questions: of each frame; labels are not read.

    layout: of all of them. pictures: of each frame, by media type and quality; for those that the
    curve is measured on.
    """

    tokens: Tokens
    questions: Sequence[Sequence[Asked]]
    layout: Layout = field(default_factory=Layout)
    pictures: Mapping[tuple[str, int], Sequence[Picture]] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """What one way of coding changes of the teacher's answers (the module's docstring)."""

    loss: float
    agreement: float


def name_of(frame: Frame | Shard) -> str:
    """Its id."""
    return frame.frame if isinstance(frame, Shard) else frame.id


def divide(
    frames: Sequence[T],
    others: Sequence[T] | None,
    name: Callable[[T], str],
    settings: CalibrationSettings,
) -> tuple[list[T], list[T]]:
    """Frames that a codebook is made from, and frames that its curve is measured on.

    Both are chosen by the hash of seed and name, so they do not depend on the order.

    Args: others: to measure on; None: frames that the codebook is not made from, at least a
        quarter.
    Raises: BadData for too few frames.
    """

    def rank(frame: T) -> bytes:
        text = f"{settings.seed}:{name(frame)}".encode("utf-8", "surrogateescape")
        return hashlib.sha256(text).digest()

    ranked = sorted(frames, key=rank)
    least = 0 if others is not None else -(-len(ranked) // _EVALUATED_SHARE)
    cut = min(settings.frames, len(ranked) - least)
    measured = ranked[cut:] if others is None else sorted(others, key=rank)
    if not cut or not measured:
        raise BadData(f"{len(ranked)} frames; a codebook needs at least 2, better 200")
    return ranked[:cut], measured[: settings.evaluated]


def sample_of(
    student: LoadedModel,
    frames: Sequence[Frame | Shard],
    skipped: Skipped,
    opener: Opener | None = None,
    *,
    qualities: Mapping[str, Sequence[int]] | None = None,
) -> Sample:
    """The tokens of these frames by the student's tower, with their questions.

    Args: frames: or what a device sent of them, with all of their tokens. opener: of the latter.
        qualities: of pictures, by media type, for frames that are there; those that this Pillow
        cannot write are left out.
    Raises: BadData, MissingInput for the first bad frame, if it may not be left out, or if all are
        bad.
    """
    tokens: list[Tokens] = []
    layouts: list[Layout] = []
    questions: list[Sequence[Asked]] = []
    kinds = [(media, one) for media in qualities or {} for one in (qualities or {})[media]]
    coded: dict[tuple[str, int], list[Picture]] = {
        kind: [] for kind in kinds if pictures.can_encode(kind[0])
    }
    if any(isinstance(frame, Shard) for frame in frames):
        coded = {}
    for frame in progress.track(frames, description="tokens"):
        try:
            if isinstance(frame, Shard):
                opened = _opened(frame, opener)
                tokens.append(opened.tokens)
                layouts.append(opened.layout)
                questions.append(frame.questions)
                skipped.num_sound += 1
                continue
            image = load_image(frame)
            seen = _seen(student, image)
            shown = student.seen_as_picture(image) if coded else image
            made = {kind: pictures.encode(shown, *kind) for kind in coded}
        except (BadData, MissingInput) as error:
            skipped.add("frame", error)
            continue
        skipped.num_sound += 1
        tokens.append(seen.tokens.float().cpu().numpy())
        layouts.append(seen.layout)
        questions.append(frame.questions)
        for kind, picture in made.items():
            coded[kind].append(picture)
    if not tokens:
        raise BadData(f"nothing is left of {len(frames)} frames")
    if len({(len(found), layout) for found, layout in zip(tokens, layouts, strict=True)}) > 1:
        raise BadData(
            "the frames have different numbers or layouts of tokens; a codebook is of one: use "
            "frames of one size, or send tokens as int8, or pictures"
        )
    return Sample(np.stack(tokens), questions, layouts[0], coded)


def _opened(shard: Shard, opener: Opener | None) -> Shard:
    if len(shard.positions) != shard.num_tokens:
        raise BadData(f"frame {shard.frame[:80]}: only a part of its tokens was sent")
    return shard if opener is None else opener.open(shard)


@torch.no_grad()
def _seen(student: LoadedModel, image: "Image") -> Seen:
    return student.see(student.prepare([image]))[0]


def calibrate(
    teacher: LoadedModel,
    student: LoadedModel,
    made_from: Sample,
    evaluated: Sample,
    settings: CalibrationSettings | None = None,
    sequence: int = 0,
) -> Codebook:
    """A codebook made from some frames, with its curve on others; not signed.

    Args: student: whose tower made the tokens. sequence: above that of the codebook before.
    Raises: BadData for another tower than the teacher's, a question that is too long for the
        teacher, or tokens of which no codebook can be made.
    """
    settings = settings or CalibrationSettings()
    tower = student.tower_digest
    if tower != teacher.tower_digest:
        raise BadData(
            f"the tokens come from the vision tower {short(tower)}, the teacher's is "
            f"{short(teacher.tower_digest)}: name a teacher that shares the student's tower"
        )
    weight_CC = sensitivity(teacher, made_from, settings)
    fitted = transform.fit(made_from.tokens, weight_CC, settings.components)
    arrays: dict[str, Any] = fitted.arrays()
    codebook = Codebook(tower, teacher.digest, len(made_from.tokens), **arrays)
    found = curve(teacher, student, codebook, evaluated, settings.batch_size)
    return replace(codebook, curve=found, sequence=sequence)


def summary(codebook: Codebook) -> str:
    """One line for people: what the codebook is, and the step that changes the loss by 1 %."""
    within = [point for point in codebook.curve.tokens if point.loss <= _SHOWN_LOSS]
    point = within[-1] if within else codebook.curve.tokens[0]
    return (
        f"a codebook of {codebook.components} of {codebook.channels} components from "
        f"{codebook.num_frames:,} frames; step {point.step:g}: {point.bytes:,.0f} bytes a frame, "
        f"{point.bits:.2f} bits an element, loss {point.loss:+.1%}, agreement {point.agreement:.1%}"
    )


def sensitivity(
    teacher: LoadedModel, sample: Sample, settings: CalibrationSettings
) -> NDArray[np.float64]:
    """W (C, C), trace 1 (the module's docstring). Raises: BadData if it is zero or not finite."""
    tokens_FNC, questions_F = sample.tokens, sample.questions
    generator = torch.Generator().manual_seed(settings.seed)
    weight_CC = torch.zeros(tokens_FNC.shape[-1], tokens_FNC.shape[-1], dtype=torch.float64)
    batches = range(0, len(tokens_FNC), _FRAMES_AT_ONCE)
    with teacher.training_mode():
        for begin in progress.track(batches, description="sensitivity"):
            rows = range(begin, min(begin + _FRAMES_AT_ONCE, len(tokens_FNC)))
            tokens_BNC = torch.from_numpy(tokens_FNC[begin : rows.stop]).to(teacher.device)
            tokens_BNC.requires_grad_(True)
            queries_BLD = None
            for number in range(settings.vectors):
                if queries_BLD is None or teacher.reads_prompt:
                    prompts = _prompts(teacher, [questions_F[row] for row in rows], number)
                    queries_BLD = teacher.queries(tokens_BNC, prompts=prompts)
                vectors = torch.randn(queries_BLD.shape, generator=generator)
                vectors /= vectors.flatten(1).norm(dim=1)[:, None, None]
                projected = (queries_BLD.float() * vectors.to(teacher.device)).sum()
                (gradient,) = torch.autograd.grad(projected, tokens_BNC, retain_graph=True)
                flat = gradient.flatten(0, 1).double().cpu()
                weight_CC += flat.T @ flat
    trace = float(weight_CC.trace())
    if not 0 < trace < float("inf"):
        raise BadData("the teacher's queries do not depend on the tokens, or are not finite")
    return (weight_CC / trace).numpy()


def _prompts(
    teacher: LoadedModel, questions_B: Sequence[Sequence[Asked]], number: int
) -> list[str] | None:
    """A question of each frame in turn, for connectors that read it."""
    if not teacher.reads_prompt:
        return None
    if not all(questions_B):
        raise BadData("the teacher's connector reads the question, and a frame has none")
    asked = [questions[number % len(questions)] for questions in questions_B]
    return [teacher.format_prompt(one.prompt, one.task) for one in asked]


def curve(
    teacher: LoadedModel,
    student: LoadedModel,
    codebook: Codebook,
    sample: Sample,
    batch_size: int,
) -> Curve:
    """What each of STEPS, and each kind of picture in the sample, costs and changes.

    The codes of all frames are one stream. A picture goes through the student's tower.
    """
    positions_N = np.arange(codebook.num_tokens)
    steps = [float(np.float32(step)) for step in STEPS]
    codes = {
        step: [klt.encode(tokens, positions_N, codebook, step) for tokens in sample.tokens]
        for step in steps
    }

    def coded(step: float) -> Coded:
        return lambda place: klt.decode(codes[step][place], positions_N, codebook, step)

    def tokens_of(image: "Image") -> Tokens:
        tokens: Tokens = _seen(student, image).tokens.float().cpu().numpy()
        return tokens

    def seen(found: Sequence[Picture]) -> Coded:
        return lambda place: tokens_of(pictures.decode(found[place]))

    ways = [*map(coded, steps), *map(seen, sample.pictures.values())]
    changed = iter(changes(teacher, sample, ways, batch_size))
    points = []
    for step in steps:
        change = next(changed)
        num_bytes = len(columns.pack(np.concatenate(codes[step]))) / len(sample.tokens)
        bits = 8 * num_bytes / sample.tokens[0].size
        points.append(TokenPoint(step, bits, num_bytes, change.loss, change.agreement))
    frames = []
    for (media, quality), found in sample.pictures.items():
        change = next(changed)
        num_bytes = float(np.mean([len(picture.data) for picture in found]))
        frames.append(PicturePoint(media, quality, num_bytes, change.loss, change.agreement))
    return Curve(tuple(points), tuple(frames))


# ---------------------------------------------------------------- the teacher's answers


@torch.no_grad()
def changes(
    teacher: LoadedModel, sample: Sample, ways: Sequence[Coded], batch_size: int
) -> list[Change]:
    """What each way of coding changes of the teacher's answers to the questions of these frames.

    Raises: BadData without a question, or if the teacher has no doubt at all.
    """
    divergence, same = np.zeros(len(ways)), np.zeros(len(ways))
    own_loss, num_questions = 0.0, 0
    for rows, texts, limit in _batches(teacher, sample.questions, batch_size):
        full = _spliced(teacher, lambda row: sample.tokens[row], sample.layout, rows, texts)
        ids = teacher.generate(full, limit).ids
        answer_BA = right_padded(ids, IGNORED).to(teacher.device)
        full_BAV = teacher.forward(full, answer_BA).logits
        own_loss += float(answer_cross_entropy(full_BAV, answer_BA).sum())
        num_questions += len(rows)
        for number, way in enumerate(ways):
            coded = _spliced(teacher, way, sample.layout, rows, texts)
            coded_BAV = teacher.forward(coded, answer_BA).logits
            divergence[number] += float(forward_kl(full_BAV, coded_BAV, answer_BA).sum())
            same[number] += float(agreement(coded_BAV, answer_BA).sum())
    if not num_questions:
        raise BadData("the frames that the codebook would be evaluated on have no question")
    if not 0 < own_loss < float("inf") or not np.isfinite(divergence).all():
        raise BadData("the teacher's loss on its own answers is zero, or not finite")
    return [
        Change(float(gap / own_loss), float(share / num_questions))
        for gap, share in zip(divergence, same, strict=True)
    ]


def _batches(
    teacher: LoadedModel, questions_F: Sequence[Sequence[Asked]], batch_size: int
) -> Iterator[tuple[list[int], list[str], int]]:
    """The frame of each question, its prompt, and the length limit; one task in a batch."""
    for task, limit in MAX_NEW_TOKENS.items():
        asked = [
            (row, teacher.format_prompt(one.prompt, one.task))
            for row, questions in enumerate(questions_F)
            for one in questions
            if one.task == task
        ]
        starts = range(0, len(asked), batch_size)
        for start in progress.track(starts, description=f"curve, {task}"):
            batch = asked[start : start + batch_size]
            yield [row for row, _ in batch], [text for _, text in batch], limit


def _spliced(
    teacher: LoadedModel, way: Coded, layout: Layout, rows: Sequence[int], texts: Sequence[str]
) -> Spliced:
    """The prompts with the tokens of their frames; questions of a frame share the queries."""
    inputs = [
        (row, text if teacher.reads_prompt else "") for row, text in zip(rows, texts, strict=True)
    ]
    firsts = [inputs.index(one) for one in dict.fromkeys(inputs)]
    tokens_UNC = torch.from_numpy(np.stack([way(rows[first]) for first in firsts]))
    queries_ULD = teacher.queries(tokens_UNC, prompts=[texts[first] for first in firsts])
    places = [firsts.index(inputs.index(one)) for one in inputs]
    seen = [Seen(tokens_UNC[place], layout) for place in places]
    return teacher.splice(teacher.project(queries_ULD)[places], texts, seen)
