"""Ed25519 in the plainest arithmetic, from RFC 8032's text (section 5.1), for tests alone.

The curve is -x^2 + y^2 = 1 + d x^2 y^2 over the integers modulo p = 2^255 - 19, with
d = -121665 / 121666; points are added in affine coordinates, by the rule of RFC 8032's section 5.1.
Nothing here takes constant time: never sign anything with it that matters.
"""

import hashlib
from functools import lru_cache

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493  # of the base point
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int]


def added(left: Point, right: Point) -> Point:
    """x3 = (x1 y2 + x2 y1) / (1 + d x1 x2 y1 y2), y3 = (y1 y2 + x1 x2) / (1 - d x1 x2 y1 y2)."""
    (x1, y1), (x2, y2) = left, right
    product = D * x1 * x2 * y1 * y2 % P
    x3 = (x1 * y2 + x2 * y1) * pow(1 + product, -1, P) % P
    return x3, (y1 * y2 + x1 * x2) * pow(1 - product, -1, P) % P


def times(scalar: int, point: Point) -> Point:
    """The point added to itself, by doubling."""
    total: Point = (0, 1)
    while scalar:
        if scalar & 1:
            total = added(total, point)
        point = added(point, point)
        scalar >>= 1
    return total


def decoded(data: bytes) -> Point:
    """The point whose y stands in 255 bits and whose x has the last bit's parity."""
    number = int.from_bytes(data, "little")
    y, sign = number % 2**255, number >> 255
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert x * x % P == square, "no point of the curve"
    return (P - x if x & 1 != sign else x), y


def encoded(point: Point) -> bytes:
    x, y = point
    return (y | (x & 1) << 255).to_bytes(32, "little")


BASE = decoded((4 * pow(5, -1, P) % P).to_bytes(32, "little"))


def _number(*parts: bytes) -> int:
    return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little") % ORDER


def _halves(seed: bytes) -> tuple[int, bytes]:
    digest = hashlib.sha512(seed).digest()
    scalar = int.from_bytes(digest[:32], "little") & ((1 << 254) - 8) | (1 << 254)
    return scalar, digest[32:]


@lru_cache
def public_key(seed: bytes) -> bytes:
    """The public key (32 bytes) of a private one (32 bytes)."""
    return encoded(times(_halves(seed)[0], BASE))


@lru_cache
def signature(seed: bytes, message: bytes) -> bytes:
    """64 bytes: R = r B and r + H(R, A, M) a."""
    scalar, prefix = _halves(seed)
    nonce = _number(prefix, message)
    point = encoded(times(nonce, BASE))
    answer = (nonce + _number(point, public_key(seed), message) * scalar) % ORDER
    return point + answer.to_bytes(32, "little")


def is_valid(key: bytes, message: bytes, signed: bytes) -> bool:
    """Whether S B = R + H(R, A, M) A."""
    answer = int.from_bytes(signed[32:], "little")
    right = added(decoded(signed[:32]), times(_number(signed[:32], key, message), decoded(key)))
    return answer < ORDER and times(answer, BASE) == right
