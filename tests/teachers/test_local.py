"""What a checkpoint as teacher is asked, and what is kept of it."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdcca_cli.distillation import losses
from cdcca_cli.distillation.distill import distill
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.distillation.trainer import Trainer
from cdcca_cli.errors import BadData
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.label_tops import LOWEST
from cdcca_cli.formats.labels import Label
from cdcca_cli.formats.shard import Question, Shard
from cdcca_cli.models import LoadedModel, load
from cdcca_cli.models.encoding import Example, encode
from cdcca_cli.models.initial import create_device
from cdcca_cli.models.settings import InitSettings
from cdcca_cli.payloads import pictures
from cdcca_cli.skipped import Skipped
from cdcca_cli.teachers import local
from tests import tiny
from tests.distillation.conftest import CHOICES, MOST, a_trainer, make_shards
from tests.models.test_loading import stored_in_4_bits
from tests.teachers.reading import ASKED, asked, assert_same, given


def each(shards: list[Shard], labels: list[list[Label]]) -> Iterator[tuple[Example, Label]]:
    for shard, found in zip(shards, labels, strict=True):
        for question, label in zip(shard.questions, found, strict=True):
            yield Example(shard, question), label


def test_labels_are_what_the_teacher_gives_for_each_question_alone(
    teacher: LoadedModel, shards: list[Shard]
) -> None:
    for example, label in each(shards[:3], given(teacher, shards[:3])):
        with torch.no_grad():
            seen = encode(teacher, [example])
            ids = teacher.answer_ids([label.answer])
            forward = teacher.forward(seen.spliced, ids)
            (nats,) = losses.answer_cross_entropy(forward.logits, ids).tolist()
        assert forward.answer_hidden is not None
        for kept, alone in (
            (label.queries, seen.queries[0]),
            (label.visual, forward.hidden[0]),
            (label.answer_rows, forward.answer_hidden[0]),
        ):
            assert kept is not None
            np.testing.assert_allclose(kept, alone.numpy(), rtol=1e-4, atol=1e-4)
        assert label.nats == pytest.approx(nats, rel=1e-4)
        if example.question.choices is None:
            most = MOST[example.question.task]
            (generated,) = teacher.generate(seen.spliced, most).ids
            assert label.answer == teacher.decode(generated)
            assert label.end == ("length" if len(generated) == most else "stop")
            assert label.scores is None


def test_the_likeliest_tokens_are_those_of_the_logits(
    teacher: LoadedModel, shards: list[Shard]
) -> None:
    """Sorted here in float64 from a forward pass of each question alone; 16 bits are kept.

    At the end token too; a probability of 0 is the lowest number of 16 bits.
    """
    for example, label in each(shards[:2], given(teacher, shards[:2], how=replace(ASKED, top=5))):
        ids = teacher.answer_ids([label.answer])
        with torch.no_grad():
            logits_AV = teacher.forward(encode(teacher, [example]).spliced, ids).logits[0].double()
        top = label.top
        assert top is not None and top.ids_AK is not None and top.pieces_AK is None
        assert top.logp_AK.shape == top.ids_AK.shape == (len(logits_AV), 5)
        for row, logp_K, rest, ids_K in zip(
            logits_AV.tolist(), top.logp_AK, top.rest_A, top.ids_AK, strict=True
        ):
            weights = np.exp(np.array(row) - max(row))
            shares = weights / weights.sum()
            order = np.argsort(-shares)
            np.testing.assert_allclose(shares[ids_K], shares[order[:5]], rtol=1e-4)
            np.testing.assert_allclose(logp_K, np.log(shares[order[:5]]), rtol=2e-3, atol=1e-3)
            assert rest == pytest.approx(np.log(shares[order[5:]].sum()), rel=2e-3, abs=1e-3)


@pytest.mark.parametrize("top", [0, 1, 10_000])
def test_the_number_of_likeliest_tokens(
    top: int, teacher: LoadedModel, shards: list[Shard]
) -> None:
    """None; one; the whole vocabulary, of which nothing is left."""
    (labels,) = given(teacher, shards[:1], how=replace(ASKED, top=top))
    size = teacher.language.config.vocab_size
    for label in labels:
        if not top:
            assert label.top is None
            continue
        assert label.top is not None
        assert label.top.logp_AK.shape[1] == min(top, size)
        assert (label.top.rest_A == LOWEST).all() == (top > size)


def test_features_are_left_out_if_they_are_not_wanted(
    teacher: LoadedModel, shards: list[Shard]
) -> None:
    few = given(teacher, shards[:2], how=replace(ASKED, features=False))
    for bare, whole in zip(chain(*few), chain(*given(teacher, shards[:2])), strict=True):
        assert (bare.answer, bare.nats) == (whole.answer, whole.nats)
        assert bare.missing == {"queries", "visual", "answer"}
        assert whole.missing == set()


def test_questions_of_a_frame_share_its_queries(teacher: LoadedModel, shards: list[Shard]) -> None:
    (labels,) = given(teacher, shards[:1])
    assert len(labels) == 3 and len({id(label.queries) for label in labels}) == 1


def test_a_connector_that_reads_the_prompt_has_queries_for_each(instructblip: Path) -> None:
    model = load(instructblip, compute="cpu")
    (labels,) = given(model, make_shards(model, 1))
    assert len({id(label.queries) for label in labels}) == 3


def test_an_encoder_decoder_has_no_rows_where_it_answers(blip2_t5: Path) -> None:
    model = load(blip2_t5, compute="cpu")
    for label in chain(*given(model, make_shards(model, 1))):
        assert label.missing == {"answer"}


def test_a_free_answer_that_is_no_choice_gives_way_to_the_likeliest_choice(
    teacher: LoadedModel, shards: list[Shard]
) -> None:
    """The likelihoods are summed here from the logits of a forward pass, choice by choice."""
    labels = given(teacher, shards[:1])
    example, label = next(
        row for row in each(shards[:1], labels) if row[0].question.choices is not None
    )
    likelihoods = []
    with torch.no_grad():
        for choice in CHOICES:
            ids = teacher.answer_ids([choice])
            logits = teacher.forward(encode(teacher, [example]).spliced, ids).logits[0].double()
            likelihoods.append(
                sum(
                    float(row[token] - row.exp().sum().log())
                    for row, token in zip(logits, ids[0].tolist(), strict=True)
                )
            )
    assert label.answer == CHOICES[likelihoods.index(max(likelihoods))]
    assert label.end == "choice" and label.scores is not None
    assert int(np.argmax(label.scores)) == likelihoods.index(max(likelihoods))


def test_a_free_answer_among_the_choices_stays(
    teacher: LoadedModel, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "decode", lambda _ids: "Two")
    monkeypatch.setattr(teacher, "score_choices", None)
    only = [replace(shard, questions=[shard.questions[1]]) for shard in shards[:2]]
    found = chain(*given(teacher, only))
    assert [(label.answer, label.scores) for label in found] == [("Two", None)] * 2


def test_is_a_choice_looks_past_case_and_blanks() -> None:
    assert local.is_a_choice(" a Blue circle ", CHOICES)
    assert not local.is_a_choice("blue circle", CHOICES)
    assert not local.is_a_choice("red", [])


def test_each_place_of_a_projector_has_its_rows(llava: Path) -> None:
    """P family: as many query vectors as tokens were kept, 5 of one frame and 2 of the next."""
    model = load(llava, compute="cpu")
    for labels, count in zip(given(model, make_shards(model, 2, keep=(5, 2))), (5, 2), strict=True):
        for label in labels:
            assert label.queries is not None and label.visual is not None
            assert len(label.queries) == len(label.visual) == count


def test_of_many_rows_a_picture_keeps_one_of_each_part() -> None:
    """All of 64 and fewer; of 128 one of each pair, of 1000 one of every 15 or 16."""
    keys = [f"sha256:{number:064x}" for number in range(40)]
    for count in (0, 1, 64):
        kept = local.kept_rows(keys[0], count)
        assert (kept.rows_L.tolist(), kept.count) == (list(range(count)), count)
    for count in (65, 128, 1000):
        found = [local.kept_rows(key, count) for key in keys]
        for kept in found:
            assert (kept.rows_L.dtype, kept.rows_L.shape, kept.count) == (np.int32, (64,), count)
            for part, row in enumerate(kept.rows_L.tolist()):
                assert part * count // 64 <= row < (part + 1) * count // 64
        again = local.kept_rows(keys[0], count)
        np.testing.assert_array_equal(again.rows_L, found[0].rows_L)
    seen = {row for kept in found for row in kept.rows_L.tolist()}
    assert len(seen) > 800, "each picture keeps others: 1000 (1 - (15/16)^40) = 924 of all"


@pytest.mark.parametrize("family", ["llava", "instructblip"])
def test_labels_of_some_rows_are_rows_of_all(
    family: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """And the student's features beside them are those of the same rows."""
    folder = request.getfixturevalue(family)
    model = load(folder, compute="cpu")
    shards = make_shards(model, 4, keep=(6, 3, 2))
    mirror = create_device(tmp_path / "mirror", str(folder), InitSettings(lora_rank=2))
    full = given(model, shards)
    start = {name: value + 0.02 for name, value in mirror.read_overlay().items()}
    settings = DistillSettings(method="akd", epochs=1, batch_size=4, holdout=0, repr_at="visual")
    whole = a_trainer(shards, model, mirror, settings, start, ASKED)
    monkeypatch.setattr(local, "MOST_ROWS", 2)
    few = a_trainer(shards, model, mirror, settings, start, ASKED)
    labels = few.dataset.labels
    assert whole.dataset.labels is not None and labels is not None
    for shard, found in zip(shards, full, strict=True):
        for place, label in enumerate(found):
            for name, rows in (("queries", label.queries), ("visual", label.visual)):
                kept = labels.kept(its(few, shard), place, name)
                assert rows is not None
                assert (len(kept.rows_L), kept.count) == (2, len(rows))
                np.testing.assert_array_equal(
                    labels.rows(its(few, shard), place, name), rows[kept.rows_L]
                )
    batch = few.dataset.train[:5]
    with torch.no_grad():
        ours, theirs = (one.method._features(batch) for one in (few, whole))  # type: ignore[attr-defined]
    for name in ("queries", "visual"):
        for row, number in enumerate(batch):
            kept = few.dataset.teacher_kept(number, name)
            assert ours.masks[name][row].sum() == 2
            expected = theirs.rows[name][row][torch.from_numpy(kept.rows_L).long()]
            assert torch.equal(ours.rows[name][row][:2], expected)


def its(trainer: Trainer, shard: Shard) -> Shard:
    """The same frame as the trainer's dataset has it."""
    return next(one.shard for one in trainer.dataset.examples if one.shard.frame == shard.frame)


def test_a_shard_of_another_tower_is_refused_before_it_is_looked_at(
    teacher: LoadedModel, shards: list[Shard], monkeypatch: pytest.MonkeyPatch, never: object
) -> None:
    monkeypatch.setattr(teacher, "queries", never)
    with pytest.raises(BadData, match="vision tower"):
        asked(teacher, [replace(shards[0], tower="sha256:" + "0" * 64)])


# ---- one bad record


LONG = Question("long", "what is it? " * 60, "vqa")


def mixed(shards: list[Shard]) -> list[Shard]:
    """Three frames: one with a long question before the others, one with a long question alone."""
    first, second, third = shards[:3]
    return [
        replace(first, questions=[LONG, *first.questions]),
        replace(second, questions=[LONG]),
        third,
    ]


@pytest.mark.parametrize("checkpoint", ["blip2_llama", "instructblip", "llava", "blip2_t5"])
def test_a_question_that_is_too_long_has_no_label(
    checkpoint: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The others have theirs to the last bit; InstructBLIP's Q-Former has 128 positions."""
    model = load(request.getfixturevalue(checkpoint), compute="cpu")
    if checkpoint == "blip2_t5":
        monkeypatch.setattr(model.language, "max_positions", 256)
    shards, how, skipped = make_shards(model, 3), replace(ASKED, teacher_batch_size=100), Skipped()
    first, second, third = asked(model, mixed(shards), how=how, skipped=skipped)
    assert str(skipped) == ", 2 questions left out"
    part = "Q-Former" if checkpoint == "instructblip" else "language model"
    for number, line in enumerate(capsys.readouterr().err.splitlines()):
        assert f"left out: frame frame {number}: question long: for the teacher: " in line
        assert f"the {part} has " in line
    assert (first[0], second) == (None, [None])
    alone = asked(model, [shards[0], shards[2]], how=how)
    assert_same([first[1:], third], alone)


def test_a_picture_that_the_teacher_alone_refuses_is_left_out(
    llava: Path,
    mirror: Device,
    shards: list[Shard],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Once for all of its questions; later runs find no labels of it."""
    other = load(llava, compute="cpu")
    inner = other.prepare

    def prepare(images: Any) -> Any:
        if images[0].size == (48, 12):
            raise BadData("too thin")
        return inner(images)

    monkeypatch.setattr(other, "prepare", prepare)
    sizes = [(48, 12), *[(48, 48)] * 11]
    sent = [
        replace(shard, picture=pictures.encode(image.resize(size), pictures.WEBP))
        for shard, image, size in zip(shards, tiny.images(12, seed=9), sizes, strict=True)
    ]
    assert mirror.settings.tower != other.tower_digest
    how = DistillSettings(
        method="pseudo-label",
        epochs=1,
        batch_size=8,
        holdout=0.3,
        labels=(str(tmp_path / "labels"),),
    )
    skipped = Skipped()
    made = distill(sent, other, mirror, how, skipped=skipped)
    assert str(skipped) == ", 1 frame left out"
    assert "left out: frame frame 0: too thin" in capsys.readouterr().err
    skipped = Skipped()
    again = distill(sent, None, mirror, how, skipped=skipped)
    assert overlay_digest(again.overlay) == overlay_digest(made.overlay)
    assert str(skipped) == ""
    assert "labels: 3 of 28 questions have no label, and are left out" in capsys.readouterr().err
    monkeypatch.setattr(other, "prepare", lambda _images: prepare([sent_image(sent[0])]))
    with pytest.raises(BadData, match=r"nothing is left to learn from: 0 .* 28 because they have"):
        distill(sent, other, mirror, replace(how, labels=()), skipped=Skipped())


def sent_image(shard: Shard) -> Any:
    assert shard.picture is not None
    return pictures.decode(shard.picture)


def test_the_frame_whose_outputs_are_not_finite_is_named(
    llava: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of four in a pass, with tokens next to the largest float32."""
    model = load(llava, compute="cpu")
    shards, how, skipped = make_shards(model, 4), replace(ASKED, teacher_batch_size=100), Skipped()
    sound = asked(model, shards, how=how)
    shards[2] = replace(shards[2], tokens=np.full_like(shards[2].tokens, 3e38))
    made = asked(model, shards, how=how, skipped=skipped)
    assert made[2] == [None, None]
    assert str(skipped) == ", 2 questions left out"
    for number, line in enumerate(capsys.readouterr().err.splitlines()):
        words = f"frame frame 2: question 2-{number}: the teacher's outputs are not finite: "
        assert words + "try --dtype float32" in line or words + "try `dtype` float32" in line
    rest = [number for number in range(4) if number != 2]
    assert_same([made[number] for number in rest], [sound[number] for number in rest])


# ---- as it is loaded


@pytest.mark.parametrize("kind", ["stored in 4 bits", "nf4", "device map"])
def test_a_large_teacher_teaches(
    kind: str,
    tiny_pair: tuple[Path, Path],
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    tmp_path: Path,
) -> None:
    """Its tower is the student's, and its labels are near the full one's.

    Twice the same: answering changes neither its digest nor its next answer.
    """
    folder, options = tiny_pair[0], {"device_map": "auto"}
    if kind == "nf4":
        options = {"quantize": "nf4"}
    if kind == "stored in 4 bits":
        folder, options = stored_in_4_bits(tiny_pair[0], tmp_path / "teacher"), {}
    large = load(folder, compute="cpu", **options)  # type: ignore[arg-type]
    assert large.tower_digest == mirror.settings.tower
    digest = large.digest
    assert (digest == teacher.digest) == (kind == "device map")
    settings = DistillSettings(epochs=1, batch_size=8, holdout=0.3)
    made = distill(shards, large, mirror, settings)
    assert made.report["teacher"] == large.digest == digest
    full = distill(shards, teacher, mirror, settings)
    again = distill(shards, large, mirror, settings)
    assert overlay_digest(again.overlay) == overlay_digest(made.overlay)
    assert (overlay_digest(made.overlay) == overlay_digest(full.overlay)) == (kind == "device map")
    curves = made.report["curves"]
    assert curves["held_out"][1] < curves["held_out"][0]
    (labels,), (exact,) = (given(model, shards[:1]) for model in (large, teacher))
    assert labels[0].queries is not None and exact[0].queries is not None
    np.testing.assert_allclose(labels[0].queries, exact[0].queries, atol=1e-5)  # not quantised
    assert labels[0].visual is not None and exact[0].visual is not None
    cosine = np.corrcoef(labels[0].visual.ravel(), exact[0].visual.ravel())[0, 1]
    assert cosine > 0.9
