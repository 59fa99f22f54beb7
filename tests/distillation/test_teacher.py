"""What the teacher is asked once, and what is kept of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cdcca_cli.distillation import teacher as teaching
from cdcca_cli.distillation.batches import Example, look
from cdcca_cli.distillation.teacher import Target, is_a_choice, teach
from cdcca_cli.errors import BadData
from cdcca_cli.families import LoadedModel, load
from cdcca_cli.formats.shard import Shard
from tests.distillation.conftest import CHOICES, make_shards


def everything(teacher: LoadedModel, shards: list[Shard], work: Path | None = None) -> list[Target]:
    return [target for _, target in teach(teacher, shards, 8, work)]


def assert_same(left: list[Target], right: list[Target]) -> None:
    assert [target.answer for target in left] == [target.answer for target in right]
    for one, other in zip(left, right, strict=True):
        assert torch.equal(one.queries, other.queries)
        assert torch.equal(one.representation, other.representation)


def test_targets_are_what_the_teacher_gives_for_each_ask_alone(
    teacher: LoadedModel, shards: list[Shard]
) -> None:
    taught = list(teach(teacher, shards[:3], 4))
    assert [example.ask.id for example, _ in taught] == [
        ask.id for shard in shards[:3] for ask in shard.asks
    ]
    with torch.no_grad():
        for example, target in taught:
            seen = look(teacher, [example])
            torch.testing.assert_close(target.queries, seen.queries[0], rtol=1e-4, atol=1e-4)
            forward = teacher.forward(seen.spliced, teacher.answer_ids(["anything"]))
            torch.testing.assert_close(
                target.representation, forward.hidden[0], rtol=1e-4, atol=1e-4
            )
            if example.ask.choices is None:
                most = teaching.MAX_NEW_TOKENS[example.ask.task]
                (ids,) = teacher.generate(seen.spliced, most).ids
                assert target.answer == teacher.decode(ids)


def test_a_free_answer_that_is_no_choice_gives_way_to_the_likeliest_choice(
    teacher: LoadedModel, shards: list[Shard]
) -> None:
    """The likelihoods are summed here from the logits of a forward pass, choice by choice."""
    example, target = next(
        pair for pair in teach(teacher, shards[:1], 4) if pair[0].ask.choices is not None
    )
    likelihoods = []
    with torch.no_grad():
        for choice in CHOICES:
            ids = teacher.answer_ids([choice])
            logits = teacher.forward(look(teacher, [example]).spliced, ids).logits[0].double()
            likelihoods.append(
                sum(
                    float(row[token] - row.exp().sum().log())
                    for row, token in zip(logits, ids[0].tolist(), strict=True)
                )
            )
    assert target.answer == CHOICES[likelihoods.index(max(likelihoods))]


def test_a_free_answer_among_the_choices_stays(
    teacher: LoadedModel, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "decode", lambda _ids: "Two")
    monkeypatch.setattr(teacher, "score_choices", None)
    targets = [t for e, t in teach(teacher, shards[:2], 4) if e.ask.choices is not None]
    assert [target.answer for target in targets] == ["Two", "Two"]


def test_is_a_choice_looks_past_case_and_blanks() -> None:
    assert is_a_choice(" a Blue circle ", CHOICES)
    assert not is_a_choice("blue circle", CHOICES)
    assert not is_a_choice("red", None)


def test_each_place_of_a_projector_has_its_target(llava: Path) -> None:
    """P family: as many query vectors as tokens were kept, 5 of one frame and 2 of the next."""
    model = load(llava, compute="cpu")
    shards = make_shards(model, 2, keep=(5, 2))
    lengths = [len(target.queries) for target in everything(model, shards)]
    assert lengths == [5, 5, 5, 2, 2]
    lengths = [len(target.representation) for target in everything(model, shards)]
    assert lengths == [5, 5, 5, 2, 2]


def test_outputs_are_kept_and_read_again(
    teacher: LoadedModel,
    shards: list[Shard],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    never: Callable[..., None],
) -> None:
    first = everything(teacher, shards, tmp_path)
    assert_same(first, everything(teacher, shards))
    assert len(list(tmp_path.iterdir())) == 3  # 10, 9 and 9 of 28 asks: whole frames, at least 8
    monkeypatch.setattr(teacher, "generate", never)
    assert_same(first, everything(teacher, shards, tmp_path))


def test_an_interrupted_pass_goes_on(
    teacher: LoadedModel, shards: list[Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two batches of three are there already: only the third is computed, to the same bits."""
    expected = everything(teacher, shards)
    begun = teach(teacher, shards, 8, tmp_path)
    for _ in range(12):
        next(begun)
    begun.close()
    assert len(list(tmp_path.iterdir())) == 2
    rows = []
    inner = teacher.generate
    monkeypatch.setattr(teacher, "generate", lambda s, most: rows.append(len(s)) or inner(s, most))
    assert_same(expected, everything(teacher, shards, tmp_path))
    assert sum(rows) == 28 - 19


def test_a_damaged_file_is_computed_again(
    teacher: LoadedModel, shards: list[Shard], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = everything(teacher, shards[:3], tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    assert_same(expected, everything(teacher, shards[:3], tmp_path))
    assert "damaged" in capsys.readouterr().err
    path.write_bytes(b"")
    assert_same(expected, everything(teacher, shards[:3], tmp_path))


def test_another_teacher_reads_nothing_of_it(
    teacher: LoadedModel, shards: list[Shard], tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    everything(teacher, shards[:3], tmp_path)
    other = load(tiny_pair[1], compute="cpu")
    assert_same(everything(other, shards[:3], tmp_path), everything(other, shards[:3]))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_under_the_wrong_name_is_not_believed(
    teacher: LoadedModel, shards: list[Shard], tmp_path: Path
) -> None:
    everything(teacher, shards[:3], tmp_path)
    (path,) = tmp_path.iterdir()
    expected = everything(teacher, shards[3:6], tmp_path)
    (other,) = set(tmp_path.iterdir()) - {path}
    other.write_bytes(path.read_bytes())
    assert_same(expected, everything(teacher, shards[3:6], tmp_path))


def test_a_shard_of_another_tower_is_refused_before_it_is_looked_at(
    teacher: LoadedModel, shards: list[Shard], monkeypatch: pytest.MonkeyPatch, never: object
) -> None:
    monkeypatch.setattr(teacher, "queries", never)
    with pytest.raises(BadData, match="vision tower"):
        everything(teacher, [replace(shards[0], tower="sha256:" + "0" * 64)])


def test_a_frame_that_asks_nothing_is_passed_over(
    teacher: LoadedModel, shards: list[Shard]
) -> None:
    silent = replace(shards[1], asks=[])
    taught = list(teach(teacher, [shards[0], silent, shards[2]], 4))
    assert {example.shard.frame for example, _ in taught} == {"frame 0", "frame 2"}


def test_outputs_that_are_not_finite_are_refused(
    teacher: LoadedModel, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = teacher.queries
    monkeypatch.setattr(teacher, "queries", lambda *args: inner(*args) * float("inf"))
    with pytest.raises(BadData, match="not finite"):
        everything(teacher, shards[:1])


def test_examples_name_their_frame(teacher: LoadedModel, shards: list[Shard]) -> None:
    example, _ = next(teach(teacher, shards[:1], 1))
    assert example == Example(shards[0], shards[0].asks[0])
