"""Rows of small whole numbers as bytes, coded column by column at nearly their entropy.

For columns of which the first hold the largest numbers, such as the codes of many frames sorted by
the size that a codebook expects. The columns are cut into runs of similar magnitude, and each run,
column after column, is one class of `planes`, which has tables of its own.

    G        1 byte: number of runs
    widths   4 bytes each, unsigned, little-endian: columns in each run, together all of them
    body     `planes` with a tensor for each run; class c is the c-th run that is not all zero

Few codes do not pay for the tables of planes. With G = 0, one zstd frame follows: a byte for each
code q, column after column, z = 2q or, below zero, -2q - 1; 255 for a z of 255 and more, which
follows after all bytes in 4 bytes, little-endian, in the same order.

Shapes: R rows, K columns.
"""

from itertools import pairwise

import numpy as np
import zstandard
from numpy.typing import NDArray

from cdcca_cli.errors import BadData
from cdcca_cli.numerics import planes
from cdcca_cli.numerics.uniform import LARGEST_CODE
from cdcca_cli.numerics.zstd_frames import damaged, read_frame

MOST_CODES = 1 << 26
"""The most numbers, rows times columns, that are packed and unpacked at once."""
_CUTS = (1.0, 0.25)  # mean magnitudes between the runs of the writer
_NEAR = 33  # columns over which a mean magnitude is smoothed
_FEW = 1 << 16  # codes for which both forms are tried
_LEVEL = 19
_ESCAPE = 255
_NUMBER = np.dtype("<u4")

Codes = NDArray[np.integer]


def pack(codes_RK: Codes) -> bytes:
    """Codes (R, K) as bytes; deterministic. BadData beyond +-2^24 or for more than MOST_CODES.

    Args: codes_RK: any order of columns is coded exactly, descending magnitude in few bytes.
    """
    rows, columns = codes_RK.shape
    _check_size(rows, columns, MOST_CODES, "codes")
    magnitudes_RK = np.abs(codes_RK, dtype=np.int64)
    if magnitudes_RK.max(initial=0) > LARGEST_CODE:
        raise BadData(f"a code beyond +-{LARGEST_CODE:,}: the step is too fine for these values")
    codes_KR = np.ascontiguousarray(codes_RK.T, np.int32)
    if not codes_KR.size:
        return b"\0"
    in_runs = _in_runs(codes_KR, magnitudes_RK.mean(0))
    if codes_KR.size > _FEW:
        return in_runs
    return min(in_runs, _in_bytes(codes_KR.reshape(-1)), key=len)


def _in_runs(codes_KR: Codes, magnitudes_K: NDArray[np.float64]) -> bytes:
    near = min(_NEAR, len(magnitudes_K))
    smooth_K = np.convolve(magnitudes_K, np.ones(near) / near, "same")
    cuts = sorted(int(np.count_nonzero(smooth_K > cut)) for cut in _CUTS)
    runs = [
        codes_KR[begin:end] for begin, end in pairwise([0, *cuts, len(codes_KR)]) if begin < end
    ]
    is_shown = [bool(run.any()) for run in runs]
    classes = np.where(is_shown, np.cumsum(is_shown), 0).tolist()
    widths = np.array([len(run) for run in runs], _NUMBER)
    return bytes([len(runs)]) + widths.tobytes() + planes.write_body(classes, runs)


def _in_bytes(codes: Codes) -> bytes:
    zigzag = ((codes << 1) ^ (codes >> 31)).astype(_NUMBER)
    beyond = zigzag[zigzag >= _ESCAPE]
    content = np.minimum(zigzag, _ESCAPE).astype(np.uint8).tobytes() + beyond.tobytes()
    return b"\0" + zstandard.ZstdCompressor(level=_LEVEL).compress(content)


def unpack(
    packed: bytes, rows: int, columns: int, *, limit: int = MOST_CODES, where: str = "codes"
) -> NDArray[np.int32]:
    """The codes (R, K) of `pack`, int32. Raises: BadData, before more than `limit` are unpacked."""
    _check_size(rows, columns, limit, where)
    try:
        if not packed:
            raise damaged("cut short")
        read = _of_runs if packed[0] else _of_bytes
        codes_KR = read(packed, rows, columns)
    except BadData as error:
        raise BadData(f"{where}: {error}") from None
    return np.ascontiguousarray(codes_KR.T)


def _of_runs(packed: bytes, rows: int, columns: int) -> NDArray[np.int32]:
    begin = 1 + _NUMBER.itemsize * packed[0]
    if len(packed) < begin:
        raise damaged("cut short")
    widths = [int(width) for width in np.frombuffer(packed[1:begin], _NUMBER)]
    if sum(widths) != columns:
        raise damaged(f"runs of {sum(widths):,} columns, expected {columns:,}")
    classes, coded = planes.read_body(packed[begin:], [rows * width for width in widths])
    if [number for number in classes if number] != list(range(1, len(coded) + 1)):
        raise damaged(f"classes {classes[:8]} of its runs")
    codes_KR = np.zeros((columns, rows), np.int32)
    place = 0
    for number, width in zip(classes, widths, strict=True):
        if number:
            codes_KR[place : place + width] = coded[number - 1].reshape(width, rows)
        place += width
    return codes_KR


def _of_bytes(packed: bytes, rows: int, columns: int) -> NDArray[np.int32]:
    count = rows * columns
    if not count:
        if len(packed) > 1:
            raise damaged(f"{len(packed) - 1:,} bytes for no codes")
        return np.zeros((columns, rows), np.int32)
    try:
        declared = zstandard.get_frame_parameters(packed[1:]).content_size
    except zstandard.ZstdError as error:
        raise damaged(f"damaged codes ({error})") from None
    num_beyond, rest = divmod(declared - count, _NUMBER.itemsize)
    if not 0 <= num_beyond <= count or rest:
        raise damaged(f"{declared:,} bytes for {count:,} codes")
    content = read_frame(packed[1:], declared, "codes")
    zigzag = np.frombuffer(content, np.uint8, count).astype(np.uint32)
    beyond = np.frombuffer(content, _NUMBER, offset=count)
    at = np.flatnonzero(zigzag == _ESCAPE)
    if len(at) != num_beyond or beyond.min(initial=_ESCAPE) < _ESCAPE:
        raise damaged(f"{len(at):,} codes of {_ESCAPE}, {num_beyond:,} numbers behind them")
    zigzag[at] = beyond
    if zigzag.max() > 2 * LARGEST_CODE:
        raise damaged(f"a code beyond +-{LARGEST_CODE:,}")
    codes = (zigzag >> 1).astype(np.int32) ^ -(zigzag & 1).astype(np.int32)
    return codes.reshape(columns, rows)


def _check_size(rows: int, columns: int, limit: int, where: str) -> None:
    if rows * columns > limit:
        raise BadData(f"{where}: {rows:,} rows of {columns:,} columns; at most {limit:,} codes")
