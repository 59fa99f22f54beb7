"""What there is to learn: earlier rounds learnt again, and what is set apart."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cdcca_cli.distillation.batches import is_held_out
from cdcca_cli.distillation.lessons import Lessons, gather
from cdcca_cli.distillation.settings import METHODS, DistillSettings
from cdcca_cli.distillation.training import distill
from cdcca_cli.errors import BadData
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.shard import Ask, Shard
from cdcca_cli.models import LoadedModel
from tests.distillation.conftest import make_shards

QUICK = DistillSettings(method="pseudo-label", epochs=1, batch_size=8, holdout=0.3, replay=0.5)


@pytest.fixture(scope="module")
def earlier(teacher: LoadedModel, shards: list[Shard]) -> list[Shard]:
    """Of two rounds: 12 frames of which 4 come again, and 4 of them as another round sampled them.

    Frame 12 and on are not in the fresh stream; 8 of the 12 frames are asked of.
    """
    more = make_shards(teacher, 24)[12:]
    seen_again = [replace(shard, frame=f"frame {n}") for n, shard in enumerate(more[:4])]
    second_round = [
        replace(
            shard, tokens=shard.tokens[:4], positions=shard.positions[:4], scores=shard.scores[:4]
        )
        for shard in more[4:8]
    ]
    silent = [replace(shard, asks=[]) for shard in make_shards(teacher, 26)[24:]]
    return [*seen_again, *more[4:], *second_round, *silent]


def frames_of(lessons: Lessons, numbers: list[int]) -> set[str]:
    return {lessons.examples[number].shard.frame for number in numbers}


def replayed(lessons: Lessons) -> set[str]:
    """The frames that are learnt and are not in the fresh stream."""
    return {name for name in frames_of(lessons, lessons.train) if int(name.split()[1]) >= 12}


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 2), (0.5, 3), (1.0, 6)])
def test_a_share_of_the_earlier_frames_is_learnt_again(
    share: float,
    count: int,
    teacher: LoadedModel,
    student: LoadedModel,
    shards: list[Shard],
    earlier: list[Shard],
) -> None:
    """Of 8 frames that ask something and are not fresh, with every shard that there is of them.

    Two of the 8 were held out when they were fresh: they are not learnt now.
    """
    settings = replace(QUICK, replay=share)
    made = gather(shards, teacher, student, settings, earlier=earlier)
    plain = gather(shards, teacher, student, settings)
    again = replayed(made)
    assert len(again) == count
    assert not any(is_held_out(frame, settings.holdout) for frame in again)
    kept = [shard for shard in earlier if shard.frame in again]
    assert made.num_replayed == sum(len(shard.asks) for shard in kept)
    assert len(made.train) == len(plain.train) + made.num_replayed
    used = {id(made.examples[number].shard) for number in made.train}
    assert {id(shard) for shard in kept} < used
    # What is fresh is not replayed, however it looked then; what judges is the fresh stream's.
    stale = {id(shard) for shard in earlier if shard.frame in {s.frame for s in shards}}
    assert len(stale) == 4 and not stale & used
    assert frames_of(made, made.held_out) == frames_of(plain, plain.held_out)
    assert not frames_of(made, made.held_out) & frames_of(made, made.train)
    assert all(made.answers[number] for number in made.train)


def test_it_is_drawn_by_content_and_seed(
    teacher: LoadedModel, student: LoadedModel, shards: list[Shard], earlier: list[Shard]
) -> None:
    """Not by order: that of the streams. Over many seeds every frame has its turn."""
    settings = replace(QUICK, method="tent")
    first = replayed(gather(shards, None, student, settings, earlier=earlier))
    backwards = gather(shards[::-1], None, student, settings, earlier=earlier[::-1])
    assert replayed(backwards) == first
    turns = Counter(
        name
        for seed in range(40)
        for name in replayed(
            gather(shards, None, student, replace(settings, seed=seed), earlier=earlier)
        )
    )
    assert len(turns) == 6
    assert 8 < min(turns.values()) <= max(turns.values()) < 32  # 20 each, give or take 3.2


@pytest.mark.parametrize("method", METHODS)
def test_the_report_counts_them(
    method: str, teacher: LoadedModel, mirror: Device, shards: list[Shard], earlier: list[Shard]
) -> None:
    """A teacher is asked of the earlier shards too, but by the methods that it does not teach."""
    cotta = replace(QUICK.cotta, views=1)
    settings = replace(QUICK, method=method, cotta=cotta)
    made = distill(shards, teacher, mirror, settings, earlier=earlier)
    alone = distill(shards, teacher, mirror, settings)
    assert made.report["num_replayed"] == made.report["num_asks"] - alone.report["num_asks"] > 0
    assert made.report["num_frames"] == alone.report["num_frames"] + 3
    is_trained = method != "none"
    more = made.report["num_trained"] - alone.report["num_trained"]
    assert more == (made.report["num_replayed"] if is_trained else 0)
    assert (overlay_digest(made.overlay) != overlay_digest(alone.overlay)) == is_trained
    held, other = made.report["held_out"], alone.report["held_out"]
    assert held["num_asks"] == other["num_asks"]
    assert held["cross_entropy"]["before"] == pytest.approx(other["cross_entropy"]["before"])


def test_an_earlier_shard_of_another_tower_is_refused(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], earlier: list[Shard]
) -> None:
    foreign = replace(earlier[5], tower="sha256:" + "e" * 64)
    with pytest.raises(BadData, match="sha256:eeee"):
        distill(shards, teacher, mirror, QUICK, earlier=[foreign])


def test_a_frame_that_was_held_out_stays_so_in_any_order(
    teacher: LoadedModel, student: LoadedModel, shards: list[Shard]
) -> None:
    """Two shards of one frame are on the same side."""
    twice = [*shards, *(replace(s, asks=[Ask("again", "how many?", "vqa")]) for s in shards)]
    settings = replace(QUICK, method="akd")
    made = gather(twice, teacher, student, settings)
    assert not frames_of(made, made.held_out) & frames_of(made, made.train)
    other = gather(twice[::-1], teacher, student, settings)
    assert frames_of(other, other.held_out) == frames_of(made, made.held_out)
    assert len(made.held_out) + len(made.train) == 28 + 12


def test_lessons_follow_their_asks(
    teacher: LoadedModel, student: LoadedModel, shards: list[Shard], tmp_path: Path
) -> None:
    """Whatever the order in which they were stored: an answer is that of its own ask."""
    settings = replace(QUICK, cache=tmp_path / "lessons", cache_bits=32)
    first = gather(shards, teacher, student, settings)
    second = gather(shards[::-1], None, student, settings)
    places = {id(e.ask): number for number, e in enumerate(second.examples)}
    assert len(places) == 28
    for number, example in enumerate(first.examples):
        other = places[id(example.ask)]
        assert first.answers[number] == second.answers[other]
        assert first.nats[number] == second.nats[other]
        for name in ("queries", "visual", "answer"):
            np.testing.assert_array_equal(first.rows(number, name), second.rows(other, name))
