"""The transform: what the teacher looks at is coded finely, whatever a channel's scale is."""

from dataclasses import replace

import numpy as np
import pytest

from cdcca_cli.distillation.transform import fit
from cdcca_cli.errors import BadData
from cdcca_cli.formats.codebook import Codebook
from cdcca_cli.payloads import klt

F, N, C = 60, 4, 6
ALL = np.arange(N)
DIGEST = "sha256:" + "0" * 64


def tokens(seed: int = 0, scale: np.ndarray | float = 1.0) -> np.ndarray:
    """Correlated over channels and positions, with a mean of its own at each position."""
    source = np.random.default_rng(seed)
    mixed = source.standard_normal((C, C)) / 2 + np.eye(C)
    places = source.standard_normal((N, N)) / 2 + np.eye(N)
    values = np.einsum("nm,fmc->fnc", places, source.standard_normal((F, N, C))) @ mixed
    return ((values + 3 * source.standard_normal((N, C))) * scale).astype(np.float32)


def weight(seed: int = 1) -> np.ndarray:
    root = np.random.default_rng(seed).standard_normal((C, C))
    return root @ root.T


def codebook(tokens_FNC: np.ndarray, weight_CC: np.ndarray, components: int = C) -> Codebook:
    return Codebook(DIGEST, DIGEST, F, **fit(tokens_FNC, weight_CC, components).arrays())


def test_components_are_uncorrelated_with_mean_variance_1_and_descend() -> None:
    given = tokens()
    made = fit(given, weight(), C)
    y = ((given - given.mean(0, dtype=np.float64)) / made.scale) @ made.forward
    covariance = np.einsum("fnk,fnl->kl", y, y) / (F * N)
    variances = np.diag(covariance)
    assert np.allclose(covariance, np.diag(variances), atol=1e-9)
    assert np.isclose(variances.mean(), 1) and (np.diff(variances) < 1e-9).all()
    assert np.allclose(made.forward @ made.inverse, np.eye(C))
    z = np.einsum("nm,fnk->fmk", made.positions, y)
    over = np.einsum("fnk,fmk->nm", z, z)
    assert np.allclose(over, np.diag(np.diag(over)), atol=1e-8 * over.max())
    assert np.allclose(made.positions.T @ made.positions, np.eye(N))
    assert np.allclose(np.abs(z).mean(0), made.sizes)


def test_equal_errors_of_components_are_equal_errors_for_the_teacher() -> None:
    """e' W e of a unit error of any component is the same: A and B are W^(1/2) and an orthogonal
    matrix, so B W B' is a multiple of the identity. W here has no direction below the floor."""
    given, weight_CC = tokens(), weight() + np.eye(C)
    made = fit(given, weight_CC, C)
    errors = made.inverse * made.scale
    cost = errors @ weight_CC @ errors.T
    assert np.allclose(cost, np.eye(C) * cost[0, 0], atol=1e-9 * cost[0, 0])


def test_scales_of_channels_change_no_code() -> None:
    """An outlier channel, sixty times larger, that the teacher undoes: W is smaller by 60^2."""
    scale = np.array([1, 60, 1, 1 / 8, 4, 1])
    plain = codebook(tokens(), weight())
    scaled = codebook(tokens(scale=scale), weight() / scale / scale[:, None])
    first = klt.encode(tokens()[0], np.arange(N), plain, 0.5)
    second = klt.encode(tokens(scale=scale)[0], np.arange(N), scaled, 0.5)
    assert np.abs(first - second).max() <= 1  # 16 bits of the bases
    assert (first != second).mean() < 0.1


def test_what_the_teacher_does_not_see_is_coded_coarsely() -> None:
    """Independent channels of deviation 1; the teacher sees the first two alone."""
    given = np.random.default_rng(2).standard_normal((400, N, C)).astype(np.float32)
    made = codebook(given, np.diag([1, 1, 0, 0, 0, 0]).astype(float))
    step = 1.0
    positions = np.arange(N)
    found = [klt.decode(klt.encode(x, positions, made, step), positions, made, step) for x in given]
    error = np.square(np.stack(found) - given).mean((0, 1))
    # Seen: step^2 / 12 in units of u, u^2 = 2 / 6. Unseen: nearly all of the variance.
    assert error[:2] == pytest.approx(np.full(2, 1 / 36), rel=0.1)
    assert (error[2:] > 0.9).all()


def test_components_that_would_be_zero_are_left_out() -> None:
    given = np.random.default_rng(2).standard_normal((400, N, C)).astype(np.float32)
    weight_CC = np.diag([1, 1, 1e-9, 0, 0, 0]).astype(float)
    assert fit(given, weight_CC, None).forward.shape == (C, 2)
    assert fit(given, weight_CC, 3).forward.shape == (C, 3)
    assert fit(given, weight_CC, 99).forward.shape == (C, C)


def test_a_channel_that_does_not_vary() -> None:
    given = tokens()
    given[:, :, 2] = 7
    made = codebook(given, weight())
    found = klt.decode(klt.encode(given[0], np.arange(N), made, 0.0625), np.arange(N), made, 0.0625)
    assert found[:, 2] == pytest.approx(np.full(N, 7), rel=1e-3)


def test_tokens_of_which_no_codebook_can_be_made() -> None:
    with pytest.raises(BadData, match="same tokens"):
        fit(np.ones((F, N, C), np.float32), weight(), C)
    with pytest.raises(BadData, match="not finite"):
        fit(np.full((F, N, C), np.nan, np.float32), weight(), C)
    with pytest.raises(BadData, match="do not depend"):
        fit(tokens(), np.zeros((C, C)), C)
    made = fit(tokens(), weight(), C)
    with pytest.raises(BadData, match="too large for 16 bits"):
        replace(made, forward=made.forward * 1e6).arrays()


def test_a_channel_with_a_mean_of_a_million_deviations() -> None:
    far = (np.arange(C) == 2) * np.float32(1e6)
    made = codebook(tokens() + far, np.eye(C))
    found = klt.decode(klt.encode(tokens()[0] + far, ALL, made, 0.125), ALL, made, 0.125)
    assert np.abs(found - far - tokens()[0]).max() < 1
