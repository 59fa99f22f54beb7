"""Labels that others made, as distillation reads them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cdcca_cli.distillation.distill import distill
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.errors import BadData, UsageError
from cdcca_cli.formats import label_stream
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.label_rows import Kept
from cdcca_cli.formats.labels import Entry, Label, Source, payload_digest, question_digest
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel
from cdcca_cli.teachers import kept
from cdcca_cli.teachers.kept import KeptLabels
from cdcca_cli.teachers.labelling import open_labels
from tests.teachers.reading import assert_same, given


def write(path: Path, source: Source, shards: list[Shard], made: list[list[Label]]) -> Path:
    """A file of these labels, one record a shard."""
    with label_stream.writing(path, 32) as put:
        for shard, labels in zip(shards, made, strict=True):
            digests = map(question_digest, shard.questions)
            of_question = dict(zip(digests, labels, strict=True))
            put(Entry(shard.frame, payload_digest(shard), source, of_question))
    return path


def source_of(model: LoadedModel) -> Source:
    return Source(model.digest, model.vocabulary_digest, "float32")


def test_labels_are_read_as_they_were_written(
    teacher: LoadedModel,
    shards: list[Shard],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In any order, those used last kept in memory, the others read again."""
    made = given(teacher, shards[:3])
    file = open_labels([write(tmp_path / "labels", source_of(teacher), shards[:3], made)])
    monkeypatch.setattr(kept, "KEPT_BYTES", 2000)
    found = KeptLabels(file, shards[:3])
    assert found.source is None
    for turn in (1, -1, 1):
        for shard, labels in [*zip(shards[:3], made, strict=True)][::turn]:
            again = [found.of(shard, place) for place in range(len(labels))]
            assert_same([again], [labels])
            for place, label in enumerate(labels):
                for name in ("queries", "visual"):
                    rows = found.rows(shard, place, name)
                    np.testing.assert_array_equal(rows, vars(label)[name])
                    which = found.kept(shard, place, name)
                    assert (which.rows_L.tolist(), which.count) == ([*range(len(rows))], len(rows))
    assert found.source == source_of(teacher)


def test_what_a_label_lacks_is_named(
    teacher: LoadedModel, shards: list[Shard], tmp_path: Path
) -> None:
    few = shards[:1]
    made = [[Label(f"answer {place}") for place, _ in enumerate(few[0].questions)]]
    found = KeptLabels(open_labels([write(tmp_path / "l", Source("someone"), few, made)]), few)
    label = found.of(few[0], 1)
    assert label is not None and label.answer == "answer 1"
    with pytest.raises(BadData, match="frame frame 0: the teacher's labels have no visual"):
        found.rows(few[0], 1, "visual")


def test_a_label_that_is_not_there_is_none(
    teacher: LoadedModel, shards: list[Shard], tmp_path: Path
) -> None:
    file = open_labels(
        [write(tmp_path / "l", source_of(teacher), shards[:1], [*given(teacher, shards[:1])])]
    )
    found = KeptLabels(file, shards[:2])
    assert found.of(shards[1], 0) is None and found.of(shards[1], 0) is None


CUTS: dict[str, Callable[[Label], Label]] = {
    "answer": lambda one: replace(one, answer_rows=rows(one.answer_rows)),
    "visual": lambda one: replace(one, visual=rows(one.visual)),
    "queries": lambda one: replace(one, queries=rows(one.queries)),
    "kept": lambda one: replace(
        one,
        kept={
            name: Kept(np.arange(len(rows(vars(one)[name])) + 1, dtype=np.int32), 99)
            for name in ("queries", "visual")
        },
    ),
}


def rows(found: np.ndarray | None) -> np.ndarray:
    """All but the last."""
    assert found is not None
    return found[:-1]


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
    """Whole, with a sound sum, and of this vocabulary: a row is missing."""
    few = shards[:4]
    cut = [[CUTS[what](label) for label in labels] for labels in given(teacher, few)]
    path = write(tmp_path / "labels", source_of(teacher), few, cut)
    settings = DistillSettings(
        method=method, epochs=1, batch_size=4, holdout=0, labels=(str(path),)
    )
    with pytest.raises((BadData, UsageError), match=r" rows of |vectors for an"):
        distill(few, None, mirror, settings)


@pytest.mark.parametrize("name", ["queries", "visual", "answer_rows"])
def test_labels_of_other_widths_are_refused(
    name: str, teacher: LoadedModel, mirror: Device, shards: list[Shard], tmp_path: Path
) -> None:
    """Frame 1 has a channel more than frame 0."""
    first, second = given(teacher, shards[:2])
    wide = [replace(one, **{name: np.pad(vars(one)[name], ((0, 0), (0, 1)))}) for one in second]
    path = write(tmp_path / "labels", source_of(teacher), shards[:2], [first, wide])
    settings = DistillSettings(method="akd", epochs=1, holdout=0, labels=(str(path),))
    with pytest.raises(BadData, match=r"frame 1: its labels have rows .* are they of one teacher"):
        distill(shards[:2], None, mirror, settings)


def test_labels_of_one_teacher_and_two_vocabularies_are_refused(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], tmp_path: Path
) -> None:
    """The same weights with another tokenizer: the ids of one part would mean other words."""
    first, second = given(teacher, shards[:2])
    path = write(tmp_path / "labels", source_of(teacher), shards[:1], [first])
    other = replace(source_of(teacher), vocabulary="sha256:" + "0" * 64)
    write(path, other, shards[1:2], [second])
    settings = DistillSettings(method="akd", epochs=1, holdout=0, labels=(str(path),))
    with pytest.raises(BadData, match="frame 1: its labels are of another vocabulary"):
        distill(shards[:2], None, mirror, settings)


def test_an_answer_of_several_distributions_than_tokens_is_learnt_as_text(
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of frame 1 the last token's is missing: it cannot be said which token is meant."""
    made = given(teacher, shards[:4])
    for label in made[1]:
        assert label.top is not None and label.top.ids_AK is not None
        label.top = replace(
            label.top,
            logp_AK=label.top.logp_AK[:-1],
            rest_A=label.top.rest_A[:-1],
            ids_AK=label.top.ids_AK[:-1],
        )
    path = write(tmp_path / "labels", source_of(teacher), shards[:4], made)
    settings = DistillSettings(
        method="pseudo-label", kl="forward", epochs=1, holdout=0, labels=(str(path),)
    )
    distill(shards[:4], None, mirror, settings)
    assert "distributions of 8 of 10 answers are learnt" in capsys.readouterr().err
