"""What there is to learn: earlier rounds learnt again, and what is set apart."""

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cdcca_cli.distillation.dataset import (
    MOST_HELD,
    Dataset,
    Purpose,
    build_dataset,
    draws,
    is_held_out,
    shuffled_batches,
)
from cdcca_cli.distillation.distill import distill
from cdcca_cli.distillation.settings import METHODS, WEIGHTS, DistillSettings
from cdcca_cli.errors import BadData
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.labels import payload_digest
from cdcca_cli.formats.shard import Question, Shard
from cdcca_cli.models import LoadedModel
from cdcca_cli.teachers.local import LocalTeacher
from tests.distillation.conftest import make_shards

QUICK = DistillSettings(
    method="pseudo-label", epochs=1, batch_size=8, holdout=0.3, replay_share=0.5
)


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
    silent = [replace(shard, questions=[]) for shard in make_shards(teacher, 26)[24:]]
    return [*seen_again, *more[4:], *second_round, *silent]


def frames_of(dataset: Dataset, numbers: list[int]) -> set[str]:
    return {dataset.examples[number].shard.frame for number in numbers}


def replayed(dataset: Dataset) -> set[str]:
    """The frames that are learnt and are not in the fresh stream."""
    return {name for name in frames_of(dataset, dataset.train) if int(name.split()[1]) >= 12}


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 2), (0.5, 3), (1.0, 6)])
def test_a_share_of_the_earlier_frames_is_learnt_again(
    share: float,
    count: int,
    teacher: LoadedModel,
    student: LoadedModel,
    shards: list[Shard],
    earlier: list[Shard],
) -> None:
    """Of 8 frames that question something and are not fresh, with every shard that there is of
    them.

    Two of the 8 were held out when they were fresh: they judge now, and are not learnt.
    """
    settings = replace(QUICK, replay_share=share)
    made = build_dataset(shards, LocalTeacher(teacher), student, settings, earlier=earlier)
    plain = build_dataset(shards, LocalTeacher(teacher), student, settings)
    again = replayed(made)
    assert len(again) == count
    assert not any(is_held_out(frame, settings.holdout) for frame in again)
    kept = [shard for shard in earlier if shard.frame in again]
    assert made.num_replayed == sum(len(shard.questions) for shard in kept)
    assert len(made.train) == len(plain.train) + made.num_replayed
    used = {payload_digest(made.examples[number].shard) for number in made.train}
    assert {payload_digest(shard) for shard in kept} < used
    # What is fresh is not replayed, however it looked then.
    stale = {payload_digest(shard) for shard in earlier if shard.frame in {s.frame for s in shards}}
    assert len(stale) == 4 and not stale & used
    before = {f"frame {n}" for n in range(12, 24) if is_held_out(f"frame {n}", settings.holdout)}
    assert frames_of(made, made.held_out) - frames_of(plain, plain.held_out) <= before
    assert len(frames_of(made, made.held_out) & before) == 2
    assert not frames_of(made, made.held_out) & frames_of(made, made.train)
    assert all(made.answers[number] for number in made.train)


def test_a_late_round_learns_no_more_of_the_earlier_ones_than_an_early_one(
    teacher: LoadedModel, student: LoadedModel, shards: list[Shard], earlier: list[Shard]
) -> None:
    """At most as many questions as are named, of the same frames first; usually three for each
    fresh one, however many rounds there were.
    """
    settings = replace(QUICK, method="tent", replay_share=1.0)

    def made(how: DistillSettings, rounds: list[Shard]) -> Dataset:
        return build_dataset(shards, None, student, how, earlier=rounds)

    everything = made(settings, earlier)
    for most in range(1, everything.num_replayed + 2):
        some = made(replace(settings, replay_questions=most), earlier)
        assert some.num_replayed <= most
        assert replayed(some) <= replayed(everything)
        # No frame has more questions than this.
        assert some.num_replayed > min(most, everything.num_replayed) - 8
    many = [
        replace(shard, frame=f"frame {100 * number + place}")
        for number in range(1, 12)
        for place, shard in enumerate(shards)
    ]
    usual = made(settings, many)
    fresh = sum(len(shard.questions) for shard in shards)
    assert 2.5 * fresh < usual.num_replayed <= 3 * fresh
    # They are of all rounds alike.
    assert len({int(name.split()[1]) // 100 for name in replayed(usual)}) == 11


def test_a_late_round_is_judged_by_the_latest_of_what_was_held_out(
    teacher: LoadedModel, student: LoadedModel, shards: list[Shard]
) -> None:
    """Of no more questions than MOST_HELD, so that no round takes longer to judge."""
    held = [shard for shard in shards if is_held_out(shard.frame, QUICK.holdout)]
    numbers = (n for n in range(100, 10_000) if is_held_out(f"frame {n}", QUICK.holdout))
    rounds = [replace(shard, frame=f"frame {next(numbers)}") for _ in range(20) for shard in held]
    settings = replace(QUICK, replay_share=0.0)
    made = build_dataset(shards, LocalTeacher(teacher), student, settings, earlier=rounds)
    plain = build_dataset(shards, LocalTeacher(teacher), student, settings)
    more = len(made.held_out) - len(plain.held_out)
    most = max(len(shard.questions) for shard in held)
    assert MOST_HELD - most < more <= MOST_HELD
    names = [shard.frame for shard in rounds]
    judging = frames_of(made, made.held_out) - frames_of(plain, plain.held_out)
    assert judging == set(names[-len(judging) :])


def test_it_is_drawn_by_content_and_seed(
    teacher: LoadedModel, student: LoadedModel, shards: list[Shard], earlier: list[Shard]
) -> None:
    """Not by order: that of the streams. Over many seeds every frame has its turn."""
    settings = replace(QUICK, method="tent")
    first = replayed(build_dataset(shards, None, student, settings, earlier=earlier))
    backwards = build_dataset(shards[::-1], None, student, settings, earlier=earlier[::-1])
    assert replayed(backwards) == first
    turns = Counter(
        name
        for seed in range(40)
        for name in replayed(
            build_dataset(shards, None, student, replace(settings, seed=seed), earlier=earlier)
        )
    )
    assert len(turns) == 6
    assert 8 < min(turns.values()) <= max(turns.values()) < 32  # 20 each, give or take 3.2


@pytest.mark.parametrize("method", METHODS)
def test_the_report_counts_them(
    method: str, teacher: LoadedModel, mirror: Device, shards: list[Shard], earlier: list[Shard]
) -> None:
    """A teacher is asked of the earlier shards too, but by the methods that it does not teach."""
    settings = replace(QUICK, method=method, cotta_views=1)
    made = distill(shards, teacher, mirror, settings, earlier=earlier)
    alone = distill(shards, teacher, mirror, settings)
    held, other = made.report["held_out"], alone.report["held_out"]
    more_held = held["num_asks"] - other["num_asks"]
    assert (more_held > 0) == (method in WEIGHTS)
    more = made.report["num_asks"] - alone.report["num_asks"] - more_held
    assert made.report["num_replayed"] == more > 0
    assert made.report["num_frames"] == alone.report["num_frames"] + 3 + 2 * (more_held > 0)
    is_trained = method != "none"
    more = made.report["num_trained"] - alone.report["num_trained"]
    assert more == (made.report["num_replayed"] if is_trained else 0)
    assert (overlay_digest(made.overlay) != overlay_digest(alone.overlay)) == is_trained
    if not more_held:
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
    twice = [
        *shards,
        *(replace(s, questions=[Question("again", "how many?", "vqa")]) for s in shards),
    ]
    settings = replace(QUICK, method="akd")
    made = build_dataset(twice, LocalTeacher(teacher), student, settings)
    assert not frames_of(made, made.held_out) & frames_of(made, made.train)
    other = build_dataset(twice[::-1], LocalTeacher(teacher), student, settings)
    assert frames_of(other, other.held_out) == frames_of(made, made.held_out)
    assert len(made.held_out) + len(made.train) == 28 + 12


# ---- the held-out part


def test_held_out_frames_are_a_share_whatever_their_order() -> None:
    """A share of the ids, within three deviations of a fair coin; a larger share has them too."""
    many = [str(number) for number in range(10_000)]
    kept_back = {frame for frame in many if is_held_out(frame, 0.1)}
    assert abs(len(kept_back) - 1000) < 90
    assert kept_back < {frame for frame in many if is_held_out(frame, 0.2)}
    assert not any(is_held_out(frame, 0.0) for frame in many)


def test_it_depends_on_the_id_alone() -> None:
    """The first eight bytes of SHA-256("f005"), 0x2a4c..., are 0.165 of 2^64; any text has one."""
    place = int(hashlib.sha256(b"f005").hexdigest()[:16], 16) / 2**64
    assert [is_held_out("f005", share) for share in (place, place + 1e-9)] == [False, True]
    assert isinstance(is_held_out("caf\udce9", 0.5), bool)


def few(shards: list[Shard], names: list[str]) -> list[Shard]:
    """Shards of the frames with these names, the tokens of any."""
    return [replace(shards[n % len(shards)], frame=name) for n, name in enumerate(names)]


@pytest.mark.parametrize("seed", range(40))
def test_a_frame_held_out_once_is_never_trained_on(
    seed: int, student: LoadedModel, shards: list[Shard]
) -> None:
    """Four rounds of 1 to 6 of 12 frames, with all earlier rounds replayed, no teacher needed."""
    source = np.random.default_rng(seed)
    share = [0.1, 0.3, 0.6][seed % 3]
    settings = DistillSettings(method="tent", holdout=share, replay_share=1.0, seed=seed)
    names = [f"{seed}-{number}" for number in range(12)]
    trained: set[str] = set()
    judged: set[str] = set()
    earlier: list[Shard] = []
    for _ in range(4):
        picked = source.permutation(names)[: source.integers(1, 7)].tolist()
        stream = few(shards, picked)
        try:
            made = build_dataset(stream, None, student, settings, earlier=earlier)
        except BadData as error:
            assert "held out" in str(error)
            assert all(is_held_out(name, share) for name in picked)
            judged |= set(picked)
        else:
            now = frames_of(made, made.train)
            trained |= now
            judged |= set(picked) - now
            assert set(picked) & now == {n for n in picked if not is_held_out(n, share)}
        earlier += stream
    assert not trained & judged


def test_a_stream_of_held_out_frames_alone_is_refused(
    student: LoadedModel, shards: list[Shard]
) -> None:
    """But for `none`, which learns nothing."""
    held = [name for name in map(str, range(100)) if is_held_out(name, 0.1)][:2]
    stream = few(shards, held)
    settings = DistillSettings(method="tent", holdout=0.1)
    with pytest.raises(
        BadData, match=r"every frame .* \(2\) is held out \(`holdout` 10%\).*more frames"
    ):
        build_dataset(stream, None, student, settings)
    made = build_dataset(stream, None, student, replace(settings, method="none"))
    assert (made.train, len(made.examples)) == ([], sum(len(one.questions) for one in stream))


def test_labels_follow_their_questions(
    teacher: LoadedModel, student: LoadedModel, shards: list[Shard], tmp_path: Path
) -> None:
    """Whatever the order in which they were stored: an answer is that of its own ask."""
    settings = replace(QUICK, labels=(str(tmp_path / "labels"),))
    first = build_dataset(shards, LocalTeacher(teacher), student, settings)
    second = build_dataset(shards[::-1], None, student, settings)
    places = {id(e.question): number for number, e in enumerate(second.examples)}
    assert len(places) == 28
    for number, example in enumerate(first.examples):
        other = places[id(example.question)]
        assert first.answers[number] == second.answers[other]
        assert first.nats[number] == second.nats[other]
        for name in ("queries", "visual", "answer"):
            np.testing.assert_array_equal(
                first.teacher_rows(number, name), second.teacher_rows(other, name)
            )


# ---- draws


def test_the_key_is_the_seed_and_the_purpose_above_the_number() -> None:
    for purpose, number in ((Purpose.ORDER, 3), (Purpose.RESTORE, 5)):
        own = np.random.Generator(np.random.Philox(key=[7, int(purpose) * 2**56 + number]))
        np.testing.assert_array_equal(draws(7, purpose, number).random(5), own.random(5))


def test_seeds_purposes_and_numbers_are_told_apart() -> None:
    """numpy takes a list with 2^63 and more for floats, which do not tell these apart."""
    seeds = (0, 2**63, 2**63 + 1, 2**64 - 1)
    places = [(seed, purpose, n) for seed in seeds for purpose in Purpose for n in (0, 1, 2**55)]
    firsts = {draws(*place).integers(2**63).item() for place in places}
    assert len(firsts) == len(places)


# ---- batches


def test_an_epoch_takes_every_example_once_in_its_own_order() -> None:
    lengths = [(7 * number) % 23 for number in range(101)]
    epochs = [list(shuffled_batches(lengths, 4, seed=5, epoch=e)) for e in (0, 1)]
    for epoch in epochs:
        assert sorted(number for batch in epoch for number in batch) == list(range(101))
        assert sorted(len(batch) for batch in epoch) == [1, *[4] * 25]
    assert epochs[0] != epochs[1]
    assert epochs[0] == list(shuffled_batches(lengths, 4, seed=5, epoch=0))
    assert epochs[0] != list(shuffled_batches(lengths, 4, seed=6, epoch=0))


def test_batches_pad_little() -> None:
    """Shuffled alone, the longest of 4 draws from 0 to 22 is 18 on average, 7 above the mean."""
    lengths = [(7 * number) % 23 for number in range(92)]
    waste = [
        max(lengths[number] for number in batch) - lengths[number]
        for batch in shuffled_batches(lengths, 4, seed=0, epoch=0)
        for number in batch
    ]
    assert np.mean(waste) < 1.5
