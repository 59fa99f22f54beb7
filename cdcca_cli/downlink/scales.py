"""Block scales in one byte each: a floating-point number with 4 bits of exponent and 4 of mantissa.

With e, one signed byte for the whole tensor, a scale's code c stands for

    0                                             if c = 0
    (16 + (c mod 16)) * 2**(c div 16) * 2**e      otherwise

which float32 holds exactly: two machines cannot decode it differently, and no code is a NaN. A
scale is rounded up, by 6 % at most (to code 1, which stands at 17, by 10), so no value of its block
is cut off. Scales more than 65,000 times smaller than the tensor's largest become 0.
"""

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.errors import BadData

_MANTISSAS = 16
_OCTAVES = 16
# Smaller exponents would lead to numbers that some processors are set to flush to zero.
_SMALLEST_EXPONENT = -100
_UNITS = np.array(
    [0]
    + [(_MANTISSAS + c % _MANTISSAS) << (c // _MANTISSAS) for c in range(1, _MANTISSAS * _OCTAVES)],
    np.float32,
)


def encode(scales_K: NDArray[np.float32]) -> tuple[NDArray[np.uint8], int]:
    """The codes (K,) of finite scales that are not negative, and the tensor's exponent e."""
    fraction_K, power_K = np.frexp(scales_K)  # scale = fraction * 2**power, fraction in [1/2, 1)
    mantissa_K = np.ceil(fraction_K * (2 * _MANTISSAS)).astype(np.int64)
    power_K = power_K.astype(np.int64) - 5
    power_K, mantissa_K = (
        np.where(mantissa_K == 2 * _MANTISSAS, power_K + 1, power_K),
        np.where(mantissa_K == 2 * _MANTISSAS, _MANTISSAS, mantissa_K),
    )
    sent_K = scales_K > 0
    if not sent_K.any():
        return np.zeros(len(scales_K), np.uint8), 0
    exponent = max(int(power_K[sent_K].max()) - (_OCTAVES - 1), _SMALLEST_EXPONENT)
    octave_K = power_K - exponent
    codes_K = np.maximum(octave_K * _MANTISSAS + mantissa_K - _MANTISSAS, 1)
    return np.where(sent_K & (octave_K >= 0), codes_K, 0).astype(np.uint8), exponent


def decode(codes_K: NDArray[np.uint8], exponent: int) -> NDArray[np.float32]:
    """The scales (K,) of the codes. Raises: BadData if one is too large for float32."""
    with np.errstate(over="ignore"):
        scales_K: NDArray[np.float32] = np.ldexp(_UNITS, exponent)[codes_K]
    if not np.isfinite(scales_K).all():
        raise BadData(f"update: a block scale is not finite (exponent {exponent}): fetch it again")
    return scales_K
