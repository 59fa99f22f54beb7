"""Payloads as cdcca 0.1 to 0.3 wrote them and 0.4 no longer does, made after the docstrings.

`nf4-mixed` with 2, 4 and 8 bits a tensor, and `usq` with a step for each tensor: updates like that
are still read.
"""

from collections.abc import Sequence

import numpy as np

from cdcca_cli.downlink.codecs import nf4
from cdcca_cli.downlink.codecs.payload import with_sequence
from cdcca_cli.numerics import planes
from cdcca_cli.numerics.uniform import quantize as whole_steps

_LEVELS = {
    2: np.array([-3, -1, 1, 3], np.float32),
    4: nf4.NF4,
    8: np.arange(256).astype(np.uint8).view(np.int8).astype(np.float32),
}


def quantize(delta: np.ndarray, bits: int) -> nf4.CodedTensor:
    """The nearest level of each value, as a scale's code has it; its largest level stands for the
    block's largest magnitude."""
    values = delta.astype(np.float32).reshape(-1)
    levels = _LEVELS[bits]
    blocks = [values[at : at + nf4.BLOCK] for at in range(0, len(values), nf4.BLOCK)]
    # 127 and not 128, so that both signs reach it
    top = min(float(levels.max()), -float(levels.min()))
    wanted = np.array([np.abs(block).max() / top for block in blocks], np.float32)
    scale_codes, exponent = nf4.encode_scales(wanted)
    scales = nf4.decode_scales(scale_codes, exponent)
    codes = np.concatenate(
        [
            np.abs(levels[None] - (block / (scale or np.float32(1)))[:, None]).argmin(1)
            for block, scale in zip(blocks, scales, strict=True)
        ]
    )
    per_byte = 8 // bits
    padded = np.zeros(-(-len(codes) // per_byte) * per_byte, np.uint8)
    padded[: len(codes)] = codes
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    packed = (padded.reshape(-1, per_byte) << shifts).sum(1).astype(np.uint8)
    return nf4.CodedTensor(bits, exponent, scale_codes.tobytes(), packed.tobytes())


def usq_payload(deltas: Sequence[np.ndarray], sequence: int, steps: Sequence[float]) -> bytes:
    """A step for each tensor, which is a class of its own; zeros only are class 0."""
    codes = [whole_steps(delta, step) for delta, step in zip(deltas, steps, strict=True)]
    classes, used = [], []
    for one, step in zip(codes, steps, strict=True):
        if one.any():
            used.append(step)
        classes.append(len(used) if one.any() else 0)
    head = bytes([len(used)]) + np.array(used, "<f4").tobytes()
    return with_sequence(sequence, head + planes.write_body(classes, codes))
