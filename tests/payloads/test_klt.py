"""The codec: coded tokens come back within what the step allows, in the order of their size."""

from dataclasses import replace

import numpy as np
import pytest

from cdcca_cli.errors import BadData
from cdcca_cli.formats.codebook import Codebook
from cdcca_cli.payloads import klt

N, C, K = 5, 8, 6
TOWER, TEACHER = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32


def orthogonal(size: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


def made(components: int = K, scale: float = 1.0) -> Codebook:
    """Orthogonal in units of `scale`, so that an error in the codes is one in the tokens."""
    source = np.random.default_rng(3)
    basis = orthogonal(C, 1)
    return Codebook(
        tower=TOWER,
        teacher=TEACHER,
        num_frames=1,
        scale=np.float32(scale) * 2.0 ** np.arange(C, dtype=np.float32),
        mean=source.standard_normal((N, C)).astype(np.float16),
        forward=basis[:, :components].astype(np.float16),
        inverse=basis[:, :components].T.astype(np.float16),
        positions=orthogonal(N, 2).astype(np.float16),
        sizes=source.random((N, components)).astype(np.float16),
    )


def tokens(codebook: Codebook, seed: int = 0) -> np.ndarray:
    x_NC = np.random.default_rng(seed).standard_normal((N, C)) * 3
    return (codebook.mean_NC + x_NC * codebook.scale).astype(np.float32)


ALL = np.arange(N)
SOME = np.array([0, 3, 4])


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
def test_error_is_that_of_the_step_in_every_channels_own_unit(scale: float) -> None:
    """An orthogonal transform keeps lengths: (N * C)^0.5 times half a step at most. F16 bases add
    some 2^-11 of the values' length."""
    codebook = made(C, scale)
    given = tokens(codebook)
    for positions in (ALL, SOME):
        for step in (0.5, 0.0625):
            codes = klt.encode(given[positions], positions, codebook, step)
            found = klt.decode(codes, positions, codebook, step)
            error = (found - given[positions]) / codebook.scale
            length = np.linalg.norm(given[positions] / codebook.scale)
            most = step / 2 * np.sqrt(error.size) + 2**-9 * length
            assert np.linalg.norm(error) <= most
            assert found.dtype == np.float32 and codes.dtype == np.int32


def test_codes_by_a_slow_second_form() -> None:
    """z = V' (x - mean) A in float64 loops, in descending order of the expected sizes."""
    codebook = made()
    given, step = tokens(codebook), 0.25
    z = np.zeros((N, K))
    y = np.zeros((N, K))
    for n in range(N):
        for k in range(K):
            y[n, k] = sum(
                (float(given[n, c]) - float(codebook.mean_NC[n, c]))
                * float(codebook.forward[c, k])
                / float(codebook.scale[c])
                for c in range(C)
            )
    for m in range(N):
        for k in range(K):
            z[m, k] = sum(float(codebook.positions[n, m]) * y[n, k] for n in range(N))
    sizes = codebook.sizes.astype(float)
    order = sorted(((n, k) for n in range(N) for k in range(K)), key=lambda at: -sizes[at])
    expected = [round(z[at] / step) for at in order]
    assert klt.encode(given, ALL, codebook, step).tolist() == [expected]
    columns = sorted(range(K), key=lambda k: -(sizes[:, k] ** 2).sum())
    expected_some = [[round(y[n, k] / step) for k in columns] for n in SOME]
    assert klt.encode(given[SOME], SOME, codebook, step).tolist() == expected_some


def test_decoding_codes_gives_tokens_that_code_alike() -> None:
    codebook = made()
    for positions in (ALL, SOME):
        codes = klt.encode(tokens(codebook)[positions], positions, codebook, 0.5)
        again = klt.decode(codes, positions, codebook, 0.5)
        assert np.array_equal(klt.encode(again, positions, codebook, 0.5), codes)
        assert codes.shape[1] == klt.num_columns(len(positions), codebook)


def test_positions_transform_is_left_out_when_tokens_are() -> None:
    """A token's codes do not depend on which others are kept."""
    codebook = made()
    given = tokens(codebook)
    some = klt.encode(given[SOME], SOME, codebook, 0.5)
    alone = klt.encode(given[[3]], np.array([3]), codebook, 0.5)
    assert np.array_equal(some[1:2], alone)


def test_an_outlier_channel_is_coded_as_well_as_others() -> None:
    """A channel sixty times larger, and a position with a mean of 3,000 deviations."""
    codebook = made(C)
    scale = codebook.scale.copy()
    scale[2] *= 60
    mean = codebook.mean.copy()
    mean[0, 2] = 3000
    codebook = replace(codebook, scale=scale, mean=mean)
    given = tokens(codebook)
    found = klt.decode(klt.encode(given, ALL, codebook, 0.125), ALL, codebook, 0.125)
    error = np.abs(found - given) / codebook.scale
    assert error.max() < 0.3 and error[:, 2].max() < 0.3


def test_what_cannot_be_coded_is_refused() -> None:
    codebook = made()
    given = tokens(codebook)
    refused = [
        (given[:, :-1], ALL, "8 channels"),
        (given[:-1], ALL, "5 positions"),
        (given[:0], ALL[:0], "0 positions"),
        (given[SOME], np.array([0, 0, 1]), "not ascending"),
        (given[SOME], np.array([0, 3, 5]), "within 0 to 4"),
        (given[SOME], np.array([-1, 3, 4]), "within 0 to 4"),
        (given * np.float32(1e9), ALL, "too fine"),
        (np.full_like(given, np.nan), ALL, "not finite"),
    ]
    for values, positions, reason in refused:
        with pytest.raises(BadData, match=reason):
            klt.encode(values, positions, codebook, 0.5)
    for step in (0.0, -1.0, np.nan, 0.1):
        with pytest.raises(BadData, match="step"):
            klt.encode(given, ALL, codebook, step)


def test_codes_that_do_not_fit_are_refused() -> None:
    codebook = made()
    codes = klt.encode(tokens(codebook), ALL, codebook, 0.5)
    refused = [
        (codes[:, :-1], ALL, 0.5, "shape"),
        (codes, SOME, 0.5, "shape"),
        (codes.reshape(N, K), ALL, 0.5, "shape"),
        (codes[0, : 3 * K].reshape(3, K), np.array([2, 1, 3]), 0.5, "not ascending"),
        (codes[:, :0].reshape(0, K)[:0], ALL[:0], 0.5, "0 positions"),
        (codes, ALL, 0.1, "float32"),
        (codes * 0 + (1 << 24), ALL, float(np.float32(3e38)), "not finite"),
    ]
    for values, positions, step, reason in refused:
        with pytest.raises(BadData, match=reason):
            klt.decode(values, positions, codebook, step)
