"""What the teacher is asked once, and what is kept of it."""

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cdcca_cli.distillation.labelling import is_a_choice
from cdcca_cli.distillation.teacher_outputs import label_shards

from cdcca_cli.distillation import labelling, losses
from cdcca_cli.distillation import teacher_outputs as teaching
from cdcca_cli.distillation.distill import distill
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.distillation.trainer import Trainer
from cdcca_cli.errors import BadData, CannotWrite, UsageError
from cdcca_cli.formats import labels
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.labels import LabelEntry, key_of
from cdcca_cli.formats.shard import Question, Shard
from cdcca_cli.models import LoadedModel, load
from cdcca_cli.models.encoding import Example, encode
from cdcca_cli.models.initial import create_device
from cdcca_cli.models.settings import InitSettings
from cdcca_cli.payloads import pictures
from cdcca_cli.skipped import Skipped
from tests import tiny
from tests.distillation.conftest import CHOICES, a_trainer, make_shards
from tests.models.test_loading import stored_in_4_bits

HOW = DistillSettings(batch_size=8, cache_bits=32)


@pytest.fixture(autouse=True)
def one_batch_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher takes `batch_size` questions, not several times as many."""
    monkeypatch.setattr(teaching, "TEACHER_BATCHES", 1)


def everything(
    teacher: LoadedModel, shards: list[Shard], path: Path | None = None, how: DistillSettings = HOW
) -> list[LabelEntry]:
    file = label_shards(teacher, shards, how, path)
    return [file.read(key_of(shard)) for shard in shards]


def said_of_each(
    shards: list[Shard], said: list[LabelEntry]
) -> Iterator[tuple[Example, LabelEntry, int]]:
    for shard, entry in zip(shards, said, strict=True):
        for place, one in enumerate(shard.questions):
            yield Example(shard, one), entry, place


def assert_same(left: list[LabelEntry], right: list[LabelEntry]) -> None:
    for one, other in zip(left, right, strict=True):
        assert (one.answers, one.nats, one.inputs) == (other.answers, other.nats, other.inputs)
        for name in ("queries", "visual", "answer", "logits"):
            ours, theirs = getattr(one, name), getattr(other, name)
            assert (ours is None) == (theirs is None)
            for a, b in zip(ours or [], theirs or [], strict=True):
                np.testing.assert_array_equal(a, b)


def test_labels_are_what_the_teacher_gives_for_each_question_alone(
    teacher: LoadedModel, shards: list[Shard]
) -> None:
    labels = everything(teacher, shards[:3], how=replace(HOW, kl="forward"))
    for example, entry, place in said_of_each(shards[:3], labels):
        with torch.no_grad():
            seen = encode(teacher, [example])
            ids = teacher.answer_ids([entry.answers[place]])
            forward = teacher.forward(seen.spliced, ids)
            (nats,) = losses.answer_cross_entropy(forward.logits, ids).tolist()
        assert entry.answer is not None and entry.logits is not None
        assert forward.answer_hidden is not None
        for kept, alone in (
            (entry.queries[entry.inputs[place]], seen.queries[0]),
            (entry.visual[place], forward.hidden[0]),
            (entry.answer[place], forward.answer_hidden[0]),
            (entry.logits[place], forward.logits[0]),
        ):
            np.testing.assert_allclose(kept, alone.numpy(), rtol=1e-4, atol=1e-4)
        assert entry.nats[place] == pytest.approx(nats, rel=1e-4)
        if example.question.choices is None:
            most = labelling.MAX_NEW_TOKENS[example.question.task]
            (generated,) = teacher.generate(seen.spliced, most).ids
            assert entry.answers[place] == teacher.decode(generated)


def test_questions_of_a_frame_share_its_queries(teacher: LoadedModel, shards: list[Shard]) -> None:
    entry = everything(teacher, shards[:1])[0]
    assert (len(entry.queries), entry.inputs) == (1, [0, 0, 0])


def test_a_connector_that_reads_the_prompt_has_queries_for_each(instructblip: Path) -> None:
    model = load(instructblip, compute="cpu")
    entry = everything(model, make_shards(model, 1))[0]
    assert (len(entry.queries), entry.inputs) == (3, [0, 1, 2])


def test_an_encoder_decoder_has_no_rows_where_it_answers(blip2_t5: Path) -> None:
    model = load(blip2_t5, compute="cpu")
    assert everything(model, make_shards(model, 1))[0].answer is None


def test_a_free_answer_that_is_no_choice_gives_way_to_the_likeliest_choice(
    teacher: LoadedModel, shards: list[Shard]
) -> None:
    """The likelihoods are summed here from the logits of a forward pass, choice by choice."""
    labels = everything(teacher, shards[:1])
    example, entry, place = next(
        row for row in said_of_each(shards[:1], labels) if row[0].question.choices is not None
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
    assert entry.answers[place] == CHOICES[likelihoods.index(max(likelihoods))]


def test_a_free_answer_among_the_choices_stays(
    teacher: LoadedModel, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "decode", lambda _ids: "Two")
    monkeypatch.setattr(teacher, "score_choices", None)
    only = [replace(shard, questions=[shard.questions[1]]) for shard in shards[:2]]
    assert [entry.answers for entry in everything(teacher, only)] == [["Two"], ["Two"]]


def test_is_a_choice_looks_past_case_and_blanks() -> None:
    assert is_a_choice(" a Blue circle ", CHOICES)
    assert not is_a_choice("blue circle", CHOICES)
    assert not is_a_choice("red", [])


def test_each_place_of_a_projector_has_its_rows(llava: Path) -> None:
    """P family: as many query vectors as tokens were kept, 5 of one frame and 2 of the next."""
    model = load(llava, compute="cpu")
    labels = everything(model, make_shards(model, 2, keep=(5, 2)))
    assert [[len(rows) for rows in entry.queries] for entry in labels] == [[5], [2]]
    assert [[len(rows) for rows in entry.visual] for entry in labels] == [[5, 5, 5], [2, 2]]


def test_of_many_rows_a_picture_keeps_one_of_each_part() -> None:
    """All of 64 and fewer; of 128 one of each pair, of 1000 one of every 15 or 16."""
    keys = [f"sha256:{number:064x}" for number in range(40)]
    for count in (0, 1, 64):
        kept = labelling.kept_rows(keys[0], count)
        assert (kept.rows_L.tolist(), kept.count) == (list(range(count)), count)
    for count in (65, 128, 1000):
        found = [labelling.kept_rows(key, count) for key in keys]
        for kept in found:
            assert (kept.rows_L.dtype, kept.rows_L.shape, kept.count) == (np.int32, (64,), count)
            for part, row in enumerate(kept.rows_L.tolist()):
                assert part * count // 64 <= row < (part + 1) * count // 64
        again = labelling.kept_rows(keys[0], count)
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
    full = everything(model, shards)
    start = {name: value + 0.02 for name, value in mirror.read_overlay().items()}
    settings = DistillSettings(epochs=1, batch_size=4, holdout=0, cache_bits=32, repr_at="visual")
    whole = a_trainer(shards, model, mirror, settings, start)
    monkeypatch.setattr(labelling, "MOST_ROWS", 2)
    few = a_trainer(shards, model, mirror, settings, start)
    assert whole.dataset.outputs is not None and few.dataset.outputs is not None
    for shard, entry in zip(shards, full, strict=True):
        for place, number in enumerate(entry.inputs):
            for name, rows in (("queries", entry.queries[number]), ("visual", entry.visual[place])):
                kept = few.dataset.outputs.kept(its(few, shard), place, name)
                found = few.dataset.outputs.rows(its(few, shard), place, name)
                assert (len(kept.rows_L), kept.count) == (2, len(rows))
                np.testing.assert_array_equal(found, rows[kept.rows_L])
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


def test_what_was_said_is_read_again(
    teacher: LoadedModel,
    shards: list[Shard],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    never: Callable[..., None],
) -> None:
    """Whatever the batch size, and in another order."""
    path = tmp_path / "labels"
    first = everything(teacher, shards, path)
    assert_same(first, everything(teacher, shards))
    monkeypatch.setattr(teacher, "generate", never)
    assert_same(first, everything(teacher, shards, path, replace(HOW, batch_size=3)))
    assert_same(first[::-1], everything(teacher, shards[::-1], path))


def test_only_what_is_new_is_asked(
    teacher: LoadedModel, shards: list[Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything(teacher, shards[:6], tmp_path / "labels")
    rows: list[int] = []
    inner = teacher.generate
    monkeypatch.setattr(teacher, "generate", lambda s, most: rows.append(len(s)) or inner(s, most))
    each = replace(HOW, batch_size=1)
    everything(teacher, shards[6:] + shards[:6], tmp_path / "labels", each)
    assert sum(rows) == sum(len(shard.questions) for shard in shards[6:])


def test_logits_are_asked_for_once_they_are_wanted(
    teacher: LoadedModel, shards: list[Shard], tmp_path: Path
) -> None:
    path = tmp_path / "labels"
    plain = everything(teacher, shards[:2], path)
    assert plain[0].logits is None
    full = everything(teacher, shards[:2], path, replace(HOW, kl="forward"))
    assert full[0].logits is not None
    assert_same(full, everything(teacher, shards[:2], path))  # the newer one is read from now on


def test_a_pass_that_was_cut_anywhere_ends_with_the_same_bytes(
    teacher: LoadedModel, shards: list[Shard], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is cut at a dozen places, in a record and between two: what is whole is kept."""
    path = tmp_path / "labels"
    everything(teacher, shards, path)
    whole = path.read_bytes()
    for end in np.linspace(0, len(whole) - 1, 12).astype(int):
        path.write_bytes(whole[:end])
        everything(teacher, shards, path)
        assert path.read_bytes() == whole, f"cut at {end}"
    assert "computed again" in capsys.readouterr().err


def test_labels_of_another_teacher_are_refused(
    teacher: LoadedModel, shards: list[Shard], tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    everything(teacher, shards[:3], tmp_path / "labels")
    with pytest.raises(BadData, match="another `cache`"):
        everything(load(tiny_pair[1], compute="cpu"), shards[:3], tmp_path / "labels")


def test_labels_of_the_same_weights_read_otherwise_are_refused(
    teacher: LoadedModel, shards: list[Shard], tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """In another dtype, with another vocabulary, or of other bits than are asked for."""
    path = tmp_path / "labels"
    everything(teacher, shards[:3], path)
    whole = path.read_bytes()
    half = load(tiny_pair[0], compute="cpu", dtype="bfloat16")
    assert half.digest == teacher.digest
    with pytest.raises(BadData, match=r"dtype float32, not of bfloat16: .*set `dtype`"):
        everything(half, shards[:3], path)
    head = labels.Head(teacher.digest, "sha256:" + "0" * 64, "float32", 16)
    with pytest.raises(BadData, match="of vocabulary sha256:"), labels.writing(path, head):
        pass
    with pytest.raises(BadData, match="keeps 32 bits a number: leave `cache_bits` 8 out"):
        label_shards(teacher, shards[:3], DistillSettings(batch_size=4, cache_bits=8), path)
    assert path.read_bytes() == whole


def test_a_whole_file_need_not_be_writable(
    teacher: LoadedModel, shards: list[Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a read-only file system, which this one is told to be."""
    path = tmp_path / "labels"
    made = everything(teacher, shards[:3], path)

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)
    monkeypatch.setattr(os, "open", refuse)
    assert_same(everything(teacher, shards[:3], path), made)
    with pytest.raises(CannotWrite, match="read-only file system"):
        everything(teacher, shards[:4], path)


@pytest.mark.parametrize(("bits", "most"), [(16, 5e-4), (8, 5e-3)])
def test_fewer_bits_are_near_and_smaller(
    bits: int, most: float, teacher: LoadedModel, shards: list[Shard], tmp_path: Path
) -> None:
    """Relative to the largest value of a row: half a step of 127, or of 2^11."""
    exact = everything(teacher, shards[:3], tmp_path / "32")
    coded = everything(teacher, shards[:3], tmp_path / "few", replace(HOW, cache_bits=bits))
    assert (tmp_path / "few").stat().st_size < (tmp_path / "32").stat().st_size
    for one, other in zip(exact, coded, strict=True):
        assert one.answers == other.answers
        for ours, theirs in zip(one.visual, other.visual, strict=True):
            assert np.abs(ours - theirs).max() <= most * np.abs(ours).max()


def test_a_shard_of_another_tower_is_refused_before_it_is_looked_at(
    teacher: LoadedModel, shards: list[Shard], monkeypatch: pytest.MonkeyPatch, never: object
) -> None:
    monkeypatch.setattr(teacher, "queries", never)
    with pytest.raises(BadData, match="vision tower"):
        everything(teacher, [replace(shards[0], tower="sha256:" + "0" * 64)])


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
def test_a_question_that_is_too_long_has_no_answer(
    checkpoint: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have theirs to the last bit; InstructBLIP's Q-Former has 128 positions."""
    model = load(request.getfixturevalue(checkpoint), compute="cpu")
    if checkpoint == "blip2_t5":
        monkeypatch.setattr(model.language, "max_positions", 256)
    shards = make_shards(model, 3)
    how = replace(HOW, kl="forward", batch_size=100)
    file = label_shards(model, mixed(shards), how, None)
    keys = [key_of(shard) for shard in mixed(shards)]
    first, second, third = (file.read(key) for key in keys)
    assert [*file.faults] == [(keys[0], 0), (keys[1], 0)]
    part = "Q-Former" if checkpoint == "instructblip" else "language model"
    for number, fault in enumerate(file.faults.values()):
        assert fault.startswith(f"frame frame {number}: question long: for the teacher: ")
        assert f"the {part} has " in fault
    assert (first.answers[0], first.nats[0], len(first.visual[0])) == ("", 0, 0)
    assert (second.answers, [len(rows) for rows in second.queries]) == ([""], [0])
    alone = everything(model, [shards[0], shards[2]], how=how)
    assert_same([without_the_first(first), third], alone)


def without_the_first(entry: LabelEntry) -> LabelEntry:
    lists = ("answers", "nats", "inputs", "visual", "answer", "logits")
    rest = {name: value[1:] for name in lists if (value := getattr(entry, name)) is not None}
    return replace(entry, **rest)


@pytest.mark.parametrize("again", ["teacher", "labels"])
def test_what_cannot_be_read_is_named_and_left_out(
    again: str,
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the run that asks the teacher, and in later ones; a strict run stops."""
    bad = [*mixed(shards), *shards[3:]]
    good = [shard for number, shard in enumerate(shards) if number != 1]
    how = DistillSettings(epochs=1, batch_size=8, holdout=0.3, cache=tmp_path / "labels")
    skipped = Skipped()
    made = distill(bad, teacher, mirror, how, skipped=skipped)
    assert str(skipped) == ", 2 questions left out"
    assert capsys.readouterr().err.count("left out: frame frame") == 2
    alone = distill(good, teacher, mirror, replace(how, cache=None))
    names = ("num_asks", "num_trained", "num_unanswered")
    assert [made.report[name] for name in names] == [alone.report[name] for name in names]
    later, skipped = teacher if again == "teacher" else None, Skipped()
    second = distill(bad, later, mirror, how, skipped=skipped)
    assert overlay_digest(second.overlay) == overlay_digest(made.overlay)
    assert str(skipped) == ", 2 questions left out"
    assert "question long: the teacher could not answer it" in capsys.readouterr().err
    with pytest.raises(BadData, match="frame 0: question long: "):
        distill(bad, later, mirror, how)


def test_a_question_that_is_too_long_for_the_student_alone_is_left_out(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a teacher and without one."""
    monkeypatch.setattr(teacher.language, "max_positions", 10_000)
    bad = [*mixed(shards), *shards[3:]]
    for method, needed in (("pseudo-label", teacher), ("tent", None)):
        settings = DistillSettings(method=method, epochs=1, batch_size=8, holdout=0)
        skipped = Skipped()
        distill(bad, needed, mirror, settings, skipped=skipped)
        assert str(skipped) == ", 2 questions left out"
    with pytest.raises(BadData, match=r"question long: for the student: .* has 256: ask a shorter"):
        distill(bad, teacher, mirror, settings)


def test_a_picture_that_the_teacher_alone_refuses_is_left_out(
    llava: Path,
    mirror: Device,
    shards: list[Shard],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Once for all of its questions; the labels remember it."""
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
        method="pseudo-label", epochs=1, batch_size=8, holdout=0.3, cache=tmp_path / "labels"
    )
    skipped = Skipped()
    made = distill(sent, other, mirror, how, skipped=skipped)
    assert str(skipped) == ", 1 frame left out"
    assert "left out: frame frame 0: too thin" in capsys.readouterr().err
    skipped = Skipped()
    again = distill(sent, None, mirror, how, skipped=skipped)
    assert overlay_digest(again.overlay) == overlay_digest(made.overlay)
    assert str(skipped) == ", 3 questions left out"
    monkeypatch.setattr(other, "prepare", lambda _images: prepare([sent_image(sent[0])]))
    with pytest.raises(BadData, match=r"nothing is left to learn from: 0 .* 28 because teacher or"):
        distill(sent, other, mirror, replace(how, cache=None), skipped=Skipped())


def sent_image(shard: Shard) -> Any:
    assert shard.picture is not None
    return pictures.decode(shard.picture)


def test_the_frame_whose_outputs_are_not_finite_is_named(llava: Path) -> None:
    """One of four in a pass, with tokens next to the largest float32."""
    model = load(llava, compute="cpu")
    shards = make_shards(model, 4)
    how = replace(HOW, batch_size=100)
    sound = everything(model, shards, how=how)
    shards[2] = replace(shards[2], tokens=np.full_like(shards[2].tokens, 3e38))
    file = label_shards(model, shards, how, None)
    assert [*file.faults] == [(key_of(shards[2]), place) for place in (0, 1)]
    assert file.faults[key_of(shards[2]), 1] == (
        "frame frame 2: question 2-1: the teacher's outputs are not finite: try `dtype` float32"
    )
    rest = [number for number in range(4) if number != 2]
    made = [file.read(key_of(shards[number])) for number in rest]
    assert_same(made, [sound[number] for number in rest])


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
    (entry,), (exact,) = (everything(model, shards[:1]) for model in (large, teacher))
    np.testing.assert_allclose(entry.queries[0], exact.queries[0], atol=1e-5)  # not quantised
    cosine = np.corrcoef(entry.visual[0].ravel(), exact.visual[0].ravel())[0, 1]
    assert cosine > 0.9


# ---- labels that others made


CUTS: dict[str, Callable[[LabelEntry], dict[str, Any]]] = {
    "answer": lambda entry: {"answer": [rows[:-1] for rows in entry.answer or []]},
    "logits": lambda entry: {"logits": [rows[:, :-1] for rows in entry.logits or []]},
    "both": lambda entry: {
        name: [rows[:-1] for rows in getattr(entry, name)] for name in ("answer", "logits")
    },
    "visual": lambda entry: {"visual": [rows[:-1] for rows in entry.visual]},
    "queries": lambda entry: {"queries": [rows[:-1] for rows in entry.queries]},
}


@pytest.mark.parametrize("what", CUTS)
@pytest.mark.parametrize("method", ["akd", "pkd", "cwd"])
def test_labels_that_do_not_fit_their_own_frames_are_refused(
    what: str,
    method: str,
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    tmp_path: Path,
) -> None:
    """Whole, with a sound sum, and of this vocabulary: a row or a channel is missing."""
    few = shards[:4]
    made = everything(teacher, few, how=replace(HOW, kl="forward"))
    head = labels.Head(teacher.digest, teacher.vocabulary_digest, "float32", 32)
    path = tmp_path / "labels"
    with labels.writing(path, head) as file:
        for shard, entry in zip(few, made, strict=True):
            file.append(key_of(shard), replace(entry, **CUTS[what](entry)))
    settings = DistillSettings(
        method=method, epochs=1, batch_size=4, holdout=0, kl="forward", cache=path
    )
    with pytest.raises(
        (BadData, UsageError), match=r" rows of |logits of 319 tokens|vectors for an"
    ):
        distill(few, None, mirror, settings)
