"""The codec `exact`: any overlay from any other, bit for bit. Its specification.

For a new device, or one that has missed updates, which must get the same bits as the others.
Nothing is rounded: a difference is sent as the distance between two float32 as whole numbers.

The payload is the update's sequence (8 bytes, `payload`) and one zstd frame; without values in the
overlay there is no frame. For every value, tensors in name order, values in C order, let b and t be
the bits of the base's and of the target's float32 as whole numbers of 32 bits, and d = t - b modulo
2**32, read as a signed number. It is stored as the unsigned number z = 2d if d >= 0, otherwise
-2d - 1. The frame holds four planes: the lowest byte of every z, then the second, the third, the
highest. Small changes leave the high planes zero.

`coding` in the update's header is empty. A target that is not finite makes the update invalid.
"""

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.downlink.change import Overlay
from cdcca_cli.downlink.codecs.payload import after_sequence, of_update, with_sequence
from cdcca_cli.numerics.zstd_frames import read_frame, write_frame

CODEC = "exact"

_PLANES = 4


def encode(target: Overlay, base: Overlay, sequence: int) -> bytes:
    distance = (_bits(target) - _bits(base)).view(np.int32)
    zigzag = (distance.view(np.uint32) << 1) ^ (distance >> 31).view(np.uint32)
    planes = np.ascontiguousarray(zigzag.astype("<u4").view(np.uint8).reshape(-1, _PLANES).T)
    return with_sequence(sequence, write_frame([plane.tobytes() for plane in planes]))


def decode(payload: bytes, sequence: int, base: Overlay) -> dict[str, NDArray[np.float32]]:
    count = sum(value.size for value in base.values())
    with of_update():
        content = read_frame(after_sequence(payload, sequence), _PLANES * count, "planes")
    planes = np.frombuffer(content, np.uint8).reshape(_PLANES, count)
    zigzag = np.ascontiguousarray(planes.T).reshape(-1).view("<u4").astype(np.uint32)
    distance = (zigzag >> np.uint32(1)) ^ (np.uint32(0) - (zigzag & np.uint32(1)))
    values = (_bits(base) + distance).view(np.float32)
    overlay, place = {}, 0
    for name in sorted(base):
        size = base[name].size
        overlay[name] = values[place : place + size].reshape(base[name].shape)
        place += size
    return overlay


def _bits(overlay: Overlay) -> NDArray[np.uint32]:
    """The 32 bits of every value as a whole number, tensors in name order."""
    parts = [
        np.ascontiguousarray(overlay[name], np.float32).reshape(-1) for name in sorted(overlay)
    ]
    return np.concatenate(parts or [np.zeros(0, np.float32)]).view(np.uint32)
