"""The rules: what a share is, which questions rank."""

import random

import pytest

from cdcca_cli.uplink.selection import Ranking, by_frame


def some_entropies(seed: int) -> list[list[float | None]]:
    """Frames of 0 to 4 questions; few different values, so that there are ties; some have no
    figure."""
    rng = random.Random(seed)
    values = [None, 0.0, 0.5, 1.0, 1.0, 2.0, 3.5]
    return [rng.choices(values, k=rng.randint(0, 4)) for _ in range(rng.randint(1, 30))]


def sorted_questions(frames: list[list[float | None]]) -> list[tuple[int, int]]:
    """All asks that have a figure: the highest first, ties in the order of the input."""
    questions = [
        (entropy, frame, question)
        for frame, entropies in enumerate(frames)
        for question, entropy in enumerate(entropies)
        if entropy is not None
    ]
    return [
        (frame, question)
        for _, frame, question in sorted(questions, key=lambda item: (-item[0], *item[1:]))
    ]


@pytest.mark.parametrize("seed", range(20))
def test_ranking_one_by_one_is_sorting_all(seed: int) -> None:
    frames = some_entropies(seed)
    for most in (0, 1, 3, 10, 1000):
        ranking = Ranking(max_questions=most)
        alive: set[int] = set()
        for frame, entropies in enumerate(frames):
            gone = ranking.offer(frame, entropies)
            assert gone <= alive | {frame}
            alive = (alive | {frame}) - gone
            assert alive == {frame for frame, _ in ranking}
            assert len(list(ranking)) <= most
        assert list(ranking) == sorted_questions(frames)[:most]
        flat = [
            (frame, question)
            for frame, questions in by_frame(ranking).items()
            for question in questions
        ]
        assert flat == sorted(ranking)


def test_scores_are_compared_to_six_decimals() -> None:
    """0.5 + 1e-8 is 0.5: the first of the two comes first."""
    ranking = Ranking()
    ranking.offer(0, [0.5, 0.5 + 1e-8, 0.500002])
    assert list(ranking) == [(0, 2), (0, 0), (0, 1)]


@pytest.mark.parametrize("seed", range(20))
def test_ranking_of_so_many_frames_is_a_prefix(seed: int) -> None:
    """The slow form: walk down the sorted questions until one more would touch one frame too
    many."""
    frames = some_entropies(seed)
    for most in (0, 1, 2, 5, 100):
        expected: list[tuple[int, int]] = []
        for question in sorted_questions(frames):
            if len({frame for frame, _ in [*expected, question]}) > most:
                break
            expected.append(question)
        ranking = Ranking(max_frames=most)
        for frame, entropies in enumerate(frames):
            ranking.offer(frame, entropies)
            assert len({frame for frame, _ in ranking}) <= most
        assert list(ranking) == expected
