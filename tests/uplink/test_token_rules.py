"""Each rule of choosing tokens: what all share, then its own definition."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from cdcca_cli.datasets import Frame
from cdcca_cli.errors import SettingError
from cdcca_cli.models import LoadedModel
from cdcca_cli.text import parse_amount
from cdcca_cli.uplink import token_rules
from cdcca_cli.uplink.sampling import sample_frames
from cdcca_cli.uplink.settings import TOKEN_RULES, SampleSettings
from cdcca_cli.uplink.token_rules import Chosen, choose, lattice, merged, spread

SCORED = ("variance", "random", "norm", "received", "spread")
GRIDS = [(6, 6), (4, 9), (1, 7), (5, 1), (1, 1)]

Choose = Callable[[str, int], Chosen]


def array(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


@pytest.fixture(params=[(grid, num_class) for grid in GRIDS for num_class in (0, 1)], ids=str)
def frame(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Tokens (N, 8), scores (N,) and grid of a random frame, with a class token or without."""
    grid, num_class = request.param
    rng = np.random.default_rng(sum(grid) + num_class)
    count = grid[0] * grid[1] + num_class
    return rng.normal(size=(count, 8)).astype("f4"), rng.random(count, dtype=np.float32), grid


@pytest.mark.parametrize("rule", TOKEN_RULES)
class TestEveryRule:
    def test_so_many_positions_ascending(
        self, rule: str, frame: tuple[np.ndarray, np.ndarray, tuple[int, int]]
    ) -> None:
        tokens, scores, grid = frame
        before = tokens.copy(), scores.copy()
        for num_kept in range(1, len(tokens) + 1):
            chosen = choose(rule, tokens, num_kept, scores_N=scores, grid=grid)
            assert chosen.positions.shape == (num_kept,)
            assert chosen.positions.dtype == np.int32
            assert chosen.positions[0] >= 0 and chosen.positions[-1] < len(tokens)
            assert (np.diff(chosen.positions) > 0).all()
            assert chosen.tokens.shape == (num_kept, 8)
            assert chosen.tokens.dtype == np.float32
            if chosen.scores is not None:
                assert chosen.scores.shape == (num_kept,)
                assert chosen.scores.dtype == np.float32
            if rule != "tome":
                assert chosen.tokens.tobytes() == tokens[chosen.positions].tobytes()
            again = choose(rule, tokens, num_kept, scores_N=scores, grid=grid)
            assert chosen.positions.tolist() == again.positions.tolist()
            assert chosen.tokens.tobytes() == again.tokens.tobytes()
        assert (tokens == before[0]).all() and (scores == before[1]).all()

    def test_all_kept_are_all_tokens_unchanged(
        self, rule: str, frame: tuple[np.ndarray, np.ndarray, tuple[int, int]]
    ) -> None:
        tokens, scores, grid = frame
        chosen = choose(rule, tokens, len(tokens), scores_N=scores, grid=grid)
        assert chosen.positions.tolist() == list(range(len(tokens)))
        assert chosen.tokens.tobytes() == tokens.tobytes()

    def test_tokens_that_are_all_alike(self, rule: str) -> None:
        """Nothing to rank by, no distance, no direction: still so many different positions."""
        for value in (0.0, 1.0):
            chosen = choose(
                rule, np.full((10, 3), value, "f4"), 4, scores_N=np.zeros(10, "f4"), grid=(3, 3)
            )
            assert len(set(chosen.positions.tolist())) == 4
            assert (chosen.tokens == value).all()

    @pytest.mark.parametrize("num_kept", [0, 11])
    def test_a_number_out_of_range(self, rule: str, num_kept: int) -> None:
        with pytest.raises(ValueError, match="of 10 tokens"):
            choose(rule, np.zeros((10, 3), "f4"), num_kept, scores_N=np.zeros(10), grid=(3, 3))

    def test_in_sample(self, rule: str, model: LoadedModel, frames: list[Frame]) -> None:
        """Seed and frame decide: neither the other frames nor how many questions are in a batch."""

        def sampled(some: list[Frame], **options: int) -> list[tuple[str, list[int], bytes]]:
            settings = SampleSettings(
                threshold=0.0, keep=parse_amount("40%"), by=rule, max_new_tokens=2, **options
            )
            shards = [coded.shard for coded in sample_frames(model, some, settings)]
            return [(s.frame, s.positions.tolist(), s.tokens.tobytes()) for s in shards]

        together = sampled(frames[:4])
        assert [len(positions) for _, positions, _ in together] == [4] * 4
        assert [sampled([one], batch_size=1)[0] for one in frames[:4]] == together
        if rule in ("random", "variance"):
            assert sampled(frames[:4], seed=1) != together


@pytest.mark.parametrize("rule", SCORED)
class TestScoredRules:
    def test_scores_are_needed_and_go_with_their_tokens(self, rule: str) -> None:
        rng = np.random.default_rng(1)
        tokens, scores = rng.normal(size=(10, 3)).astype("f4"), rng.random(10, dtype=np.float32)
        chosen = choose(rule, tokens, 4, scores_N=scores)
        assert chosen.scores is not None
        assert chosen.scores.tolist() == scores[chosen.positions].tolist()
        with pytest.raises(ValueError, match="needs scores"):
            choose(rule, tokens, 4)

    def test_the_order_of_the_tokens_does_not_matter(self, rule: str) -> None:
        """The same tokens are chosen of a permuted frame, where no two are equal."""
        rng = np.random.default_rng(2)
        tokens, scores = rng.normal(size=(37, 5)).astype("f4"), rng.random(37, dtype=np.float32)
        order = rng.permutation(37)
        for num_kept in (1, 4, 10, 19, 36):
            plain = choose(rule, tokens, num_kept, scores_N=scores).positions
            permuted = choose(rule, tokens[order], num_kept, scores_N=scores[order]).positions
            assert sorted(order[permuted].tolist()) == plain.tolist()

    def test_more_kept_contains_less_kept(self, rule: str) -> None:
        rng = np.random.default_rng(3)
        tokens, scores = rng.normal(size=(37, 5)).astype("f4"), rng.random(37, dtype=np.float32)
        kept = [
            set(choose(rule, tokens, n, scores_N=scores).positions.tolist()) for n in range(1, 38)
        ]
        assert all(less < more for less, more in pairwise(kept))

    def test_the_highest_score_is_kept(self, rule: str) -> None:
        scores = np.array([3, 9, 1, 9, 5], np.float32)
        tokens = np.arange(5, dtype=np.float32)[:, None]
        assert choose(rule, tokens, 1, scores_N=scores).positions.tolist() == [1]


class TestScores:
    def test_highest_by_hand(self) -> None:
        """Of 3, 9, 1, 9, 5 the best three are 9, 9, 5; of equal ones the lower positions stay."""
        assert token_rules.highest(np.array([3, 9, 1, 9, 5]), 3).tolist() == [1, 3, 4]
        assert token_rules.highest(np.zeros(10), 3).tolist() == [0, 1, 2]

    def test_count_above_is_strict_and_at_least_one(self) -> None:
        scores = np.array([0.1, 0.4, 0.2, 0.4], np.float32)
        found = [token_rules.count_above(scores, beta) for beta in (0.15, float(scores[2]), 7.0)]
        assert found == [3, 2, 1]

    def test_token_norm_by_hand(self) -> None:
        """(9 + 16) / 2 = 12.5."""
        assert token_rules.token_norm(array([3, 4], [0, 0])).tolist() == [12.5, 0.0]


class TestGrid:
    @pytest.mark.parametrize(
        ("grid", "num_kept", "expected"),
        [
            ((4, 4), 4, [5, 7, 13, 15]),
            ((1, 6), 4, [0, 2, 3, 5]),
            ((6, 6), 9, [7, 9, 11, 19, 21, 23, 31, 33, 35]),
            ((3, 3), 1, [4]),
            ((2, 8), 2, [10, 14]),
            ((3, 3), 0, []),
        ],
    )
    def test_by_hand(self, grid: tuple[int, int], num_kept: int, expected: list[int]) -> None:
        """9 of 6 x 6: rows and columns floor((2 i + 1) 6 / 6) = 1, 3, 5. 1 of 3 x 3: the middle.

        2 of 2 x 8: r = sqrt(2 * 2 / 8) = 0.7, so one row, floor(2 / 2) = 1; columns
        floor(8 / 4) = 2 and floor(24 / 4) = 6: places 8 + 2 and 8 + 6.
        """
        assert lattice(grid, num_kept).tolist() == expected

    @pytest.mark.parametrize("grid", GRIDS)
    def test_every_number_is_even(self, grid: tuple[int, int]) -> None:
        """The rows used have the same number of points, to one, and gaps differ by at most one."""
        rows, columns = grid
        for num_kept in range(1, rows * columns + 1):
            places = lattice(grid, num_kept)
            assert len(set(places.tolist())) == num_kept
            used, counts = np.unique(places // columns, return_counts=True)
            assert counts.max() - counts.min() <= 1
            in_rows = [places[places // columns == row] % columns for row in used]
            for line in (used, *in_rows):
                gaps = np.diff(line)
                assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1

    @pytest.mark.parametrize("num_kept", [4, 8, 9, 12, 16, 18])
    def test_each_place_is_near_a_point(self, num_kept: int) -> None:
        """On 6 x 6 no place is farther from a point than the diagonal of a lattice cell."""
        places = lattice((6, 6), num_kept)
        points = np.stack([places // 6, places % 6], 1)
        every = np.stack(np.divmod(np.arange(36), 6), 1)
        nearest = np.linalg.norm(every[:, None] - points, axis=-1).min(1)
        assert nearest.max() <= (2 * 36 / num_kept) ** 0.5

    @pytest.mark.parametrize("rule", ["grid", "tome"])
    def test_the_class_token_is_first(self, rule: str) -> None:
        tokens = np.random.default_rng(0).normal(size=(10, 4)).astype("f4")
        for num_kept in range(1, 11):
            chosen = choose(rule, tokens, num_kept, grid=(3, 3))
            assert chosen.positions[0] == 0
            assert chosen.tokens[0].tolist() == tokens[0].tolist()

    def test_without_a_class_token_the_patches_alone(self) -> None:
        tokens = np.zeros((9, 4), "f4")
        chosen = choose("grid", tokens, 1, grid=(3, 3))
        assert chosen.positions.tolist() == [4] and chosen.scores is None
        with_class = choose("grid", np.zeros((10, 4), "f4"), 2, grid=(3, 3))
        assert with_class.positions.tolist() == [0, 5]

    @pytest.mark.parametrize("grid", [(0, 0), (4, 4)])
    def test_another_grid_than_the_tokens_have(self, grid: tuple[int, int]) -> None:
        with pytest.raises(ValueError, match="grid"):
            choose("grid", np.zeros((10, 4), "f4"), 2, grid=grid)


class TestSpread:
    def test_by_hand(self) -> None:
        """Tokens 0, 1, 10, 11 with sigma 2, 3, 1, 1, that is variance 4, 9, 1, 1.

        First 1 (sigma 3). Then 0: 2 * 1 = 2, 10: 1 * 9, 11: 1 * 10: the last. Then 0: 2 * 1 = 2
        against 10: 1 * 1 = 1: the first.
        """
        tokens, variance = array([0], [1], [10], [11]), np.array([4, 9, 1, 1], np.float32)
        assert [spread(tokens, variance, n).tolist() for n in (1, 2, 3)] == [[1], [1, 3], [0, 1, 3]]

    @pytest.mark.parametrize("seed", range(5))
    def test_the_slow_form(self, seed: int) -> None:
        """The definition in float64 loops: sigma times the distance to the nearest chosen token."""
        rng = np.random.default_rng(seed)
        tokens = rng.normal(size=(20, 6)).astype("f4")
        variance = rng.exponential(size=20).astype("f4")
        chosen = [max(range(20), key=lambda n: variance[n])]
        while len(chosen) < 8:
            gains = {}
            for n in set(range(20)) - set(chosen):
                nearest = min(
                    sum(
                        (float(a) - float(b)) ** 2
                        for a, b in zip(tokens[n], tokens[k], strict=True)
                    )
                    ** 0.5
                    for k in chosen
                )
                gains[n] = float(variance[n]) ** 0.5 * nearest
            chosen.append(max(gains, key=lambda n: gains[n]))
        assert spread(tokens, variance, 8).tolist() == sorted(chosen)

    def test_scales_do_not_matter(self) -> None:
        rng = np.random.default_rng(0)
        tokens, variance = rng.normal(size=(30, 4)).astype("f4"), rng.random(30, dtype=np.float32)
        plain = spread(tokens, variance, 9).tolist()
        assert spread(tokens * 8, variance / 4, 9).tolist() == plain
        assert spread(tokens + np.float32(2), variance, 9).tolist() == plain

    def test_a_copy_of_a_chosen_token_comes_last(self) -> None:
        tokens = array([1, 0], [1, 0], [0, 1], [0.5, 0.5])
        variance = np.array([9, 8, 1, 0.1], np.float32)
        assert spread(tokens, variance, 3).tolist() == [0, 2, 3]


class TestTome:
    def test_by_hand(self) -> None:
        """(1, 0), (2, 0), (0, 1), (0, 5): A has 0 and 2, B 1 and 3; both edges have cosine 1.

        3 kept: r = 1, the first edge: (1 + 2) / 2 = 1.5. 2 kept: r = 2, the second too: (0, 3). 1
        kept: then A has the first, B the second: (0.75, 1.5), the mean of four, at position 3.
        """
        tokens = array([1, 0], [2, 0], [0, 1], [0, 5])
        expected = {
            3: ([1, 2, 3], [[1.5, 0], [0, 1], [0, 5]], [2, 1, 1]),
            2: ([1, 3], [[1.5, 0], [0, 3]], [2, 2]),
            1: ([3], [[0.75, 1.5]], [4]),
        }
        for num_kept, (places, means, sizes) in expected.items():
            found = merged(tokens, num_kept)
            assert tuple(part.tolist() for part in found) == (places, means, sizes)

    def test_two_into_one(self) -> None:
        """A is 0, 2 and 4, B only 1 and 3: 0 and 2 are nearest to 1, so 1 is the mean of three."""
        tokens = array([3, 0], [6, 0], [9, 0], [0, 1], [1, -1])
        places, means, sizes = merged(tokens, 3)
        assert places.tolist() == [1, 3, 4]
        assert means.tolist() == [[6, 0], [0, 1], [1, -1]]
        assert sizes.tolist() == [3, 1, 1]

    @pytest.mark.parametrize("count", [2, 3, 9, 36, 37])
    def test_sizes_add_up_and_the_mean_is_kept(self, count: int) -> None:
        tokens = np.random.default_rng(count).normal(size=(count, 5)).astype("f4")
        for num_kept in range(1, count + 1):
            _, means, sizes = merged(tokens, num_kept)
            assert sizes.sum() == count and (sizes >= 1).all()
            mean = (means.astype(np.float64) * sizes[:, None]).sum(0) / count
            assert mean == pytest.approx(tokens.astype(np.float64).mean(0), abs=1e-6)

    @pytest.mark.parametrize("num_kept", [1, 2, 7, 12, 20])
    def test_the_slow_form(self, num_kept: int) -> None:
        """Token Merging with lists of members and float64 loops, as the paper's section 3 says."""
        tokens = np.random.default_rng(7).normal(size=(21, 4)).astype("f4")
        groups = [([n], n) for n in range(21)]  # members, position

        def mean(group: tuple[list[int], int]) -> np.ndarray:
            return tokens[group[0]].astype(np.float64).mean(0)

        def cosine(a: np.ndarray, b: np.ndarray) -> float:
            return float(a @ b / (a @ a) ** 0.5 / (b @ b) ** 0.5)

        while len(groups) > num_kept:
            edges = []
            for i in range(0, len(groups), 2):
                ends = range(1, len(groups), 2)
                best = max(ends, key=lambda j: cosine(mean(groups[i]), mean(groups[j])))
                edges.append((-cosine(mean(groups[i]), mean(groups[best])), i, best))
            r = min(len(groups) - num_kept, len(groups) // 2)
            taken = sorted(edges)[:r]
            for _, i, j in taken:
                groups[j] = (groups[j][0] + groups[i][0], groups[j][1])
            gone = {i for _, i, _ in taken}
            groups = [group for i, group in enumerate(groups) if i not in gone]
        places, means, sizes = merged(tokens, num_kept)
        assert places.tolist() == [place for _, place in groups]
        assert sizes.tolist() == [len(members) for members, _ in groups]
        assert means == pytest.approx(np.stack([mean(group) for group in groups]), abs=1e-6)

    def test_a_merged_token_is_at_the_position_of_one_that_it_stands_for(self) -> None:
        """Two clusters far apart: the positions kept are of either cluster, with its mean."""
        tokens = array([0, 9], [9, 0], [0, 9.5], [9.5, 0], [0, 8.5], [8.5, 0], [0, 9], [9, 0])
        tokens = tokens[[0, 2, 1, 3, 4, 6, 5, 7]]
        places, means, _ = merged(tokens, 4)
        for place, mean in zip(places, means, strict=True):
            assert np.abs(tokens[place] - mean).max() <= 1

    def test_sizes_are_the_scores(self) -> None:
        """The class token is of size 1 and is merged with nothing."""
        tokens = np.random.default_rng(0).normal(size=(10, 4)).astype("f4")
        chosen = choose("tome", tokens, 4, grid=(3, 3))
        assert chosen.scores is not None
        assert chosen.scores[0] == 1 and chosen.scores.sum() == 10

    def test_values_that_are_not_finite_stay_so(self) -> None:
        """They are refused when the shard is written, not lost here."""
        tokens = np.ones((8, 2), "f4")
        tokens[3] = np.inf
        _, means, sizes = merged(tokens, 2)
        assert not np.isfinite(means).all()
        assert sizes.sum() == 8


class TestFixed:
    """Places without content, such as newlines between rows of tiles."""

    @pytest.mark.parametrize("rule", SCORED)
    def test_they_are_kept_and_not_ranked(self, rule: str) -> None:
        """The others are those that the rule chooses where there are no fixed places."""
        rng = np.random.default_rng(4)
        tokens, scores = rng.normal(size=(12, 3)).astype("f4"), rng.random(12, dtype=np.float32)
        fixed = [3, 7, 11]
        scores[fixed] = 9  # would be first
        others = np.setdiff1d(np.arange(12), fixed)
        for num_kept in range(1, 13):
            chosen = choose(rule, tokens, num_kept, scores_N=scores, fixed=fixed)
            count = max(1, num_kept - 3)
            alone = choose(rule, tokens[others], count, scores_N=scores[others])
            expected = sorted([*others[alone.positions].tolist(), *fixed])
            assert chosen.positions.tolist() == expected
            assert chosen.positions.dtype == np.int32
            assert chosen.tokens.tobytes() == tokens[expected].tobytes()
            assert chosen.scores is not None
            zeroed = np.where(np.isin(expected, fixed), np.float32(0), scores[expected])
            assert chosen.scores.tolist() == zeroed.tolist()

    @pytest.mark.parametrize("rule", ["grid", "tome"])
    def test_rules_of_one_grid_refuse_tiles(self, rule: str) -> None:
        with pytest.raises(SettingError, match="needs a picture that is one grid of tokens"):
            choose(rule, np.zeros((12, 3), np.float32), 4)
