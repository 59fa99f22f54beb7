"""Every codec that an update can name, and the one door to them: `decode`.

| id          | is                                                      | specification |
|-------------|---------------------------------------------------------|---------------|
| `usq`       | whole multiples of a step at their entropy; the default | `usq`         |
| `nf4-mixed` | the paper's NF4                                         | `nf4`         |
| `ternary`   | ComPEFT: the signs of the largest changes               | `ternary`     |
| `sign`      | BitDelta: one bit a change                              | `bitdelta`    |
| `exact`     | any bits of the target                                  | `exact`       |

A codec is one module, whose docstring is enough to write a reader from; `payload` is what they
share. Decoding needs numpy and zstandard, and gives the same bits on every machine: whole numbers,
one float32 multiplication, one addition. What is encoded, and how exactly, is for `encode` to
choose; `verify` checks digests and signatures.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.downlink.change import Overlay
from cdcca_cli.downlink.codecs import bitdelta, exact, nf4, ternary, usq
from cdcca_cli.errors import BadData, NewerFormat
from cdcca_cli.formats.update import Update

Decoded = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Codec:
    """How the payload of an update is read.

    Args:
        decode: the new overlay, from the update and its base; raises BadData.
        byte_kinds: what the payload's bytes are for, adding up to its length; raises BadData.
        facts: what `inspect` shows of an update beside sizes.
    """

    decode: Callable[[Update, Overlay], Decoded]
    byte_kinds: Callable[[bytes], dict[str, int]]
    facts: Callable[[Update], dict[str, Any]]


def _plain(read: Callable[[bytes, int, Overlay], Decoded]) -> Callable[[Update, Overlay], Decoded]:
    """The decoder of a codec with nothing of its own in the header."""

    def decode(update: Update, base: Overlay) -> Decoded:
        if update.coding:
            raise BadData(f"update: codec {update.codec} takes no 'coding': fetch it again")
        return read(update.payload, update.sequence, base)

    return decode


def _mixed(update: Update, base: Overlay) -> Decoded:
    return nf4.decode(update.payload, update.sequence, update.coding, base)


def _whole(payload: bytes) -> dict[str, int]:
    return {"sequence and codes": len(payload)}


def _steps(update: Update) -> dict[str, Any]:
    return {"steps": usq.steps_of(update.payload)}


def _bits(update: Update) -> dict[str, Any]:
    bits = nf4.bits_of(update.coding)
    return {"tensors_by_bits": {str(number): Counter(bits)[number] for number in sorted({*bits})}}


def _nothing(_: Update) -> dict[str, Any]:
    return {}


CODECS: dict[str, Codec] = {
    usq.CODEC: Codec(_plain(usq.decode), usq.byte_kinds, _steps),
    nf4.CODEC: Codec(_mixed, _whole, _bits),
    ternary.CODEC: Codec(_plain(usq.decode), usq.byte_kinds, _steps),
    bitdelta.CODEC: Codec(_plain(bitdelta.decode), _whole, _nothing),
    exact.CODEC: Codec(_plain(exact.decode), _whole, _nothing),
}


def decode(update: Update, base: Overlay, *, where: str = "the update") -> Decoded:
    """The overlay that an update leads to from `base`.

    The update's payload is taken to be the one that its hash is of (`formats.update` checks that).
    Tensors that do not change are the base's own arrays.

    Raises: NewerFormat for a codec that is not in CODECS, BadData for an update of another size
        than the base, a payload that is not exactly what its codec demands, or values that would
        not be finite.
    """
    codec = codec_of(update, where)
    num_parameters = sum(value.size for value in base.values())
    if update.num_parameters != num_parameters:
        raise BadData(
            f"{where}: for {update.num_parameters:,} parameters; its base has "
            f"{num_parameters:,}: fetch it again"
        )
    overlay = codec.decode(update, base)
    for name, value in overlay.items():
        if value is not base[name] and not np.isfinite(value).all():
            raise BadData(f"{where}: {name[:80]} would not be finite: fetch it again")
    return overlay


def byte_kinds(update: Update) -> dict[str, int]:
    """What the bytes of the payload are for; they add up to its length. NewerFormat, BadData."""
    return codec_of(update).byte_kinds(update.payload)


def facts(update: Update) -> dict[str, Any]:
    """What `inspect` shows of an update beside sizes: steps, bits. NewerFormat, BadData."""
    return codec_of(update).facts(update)


def codec_of(update: Update, where: str = "the update") -> Codec:
    """The codec that an update names. NewerFormat if this cdcca has none of that name."""
    if update.codec not in CODECS:
        raise NewerFormat(
            f"{where}: codec {update.codec[:40]!r}; this cdcca reads {', '.join(CODECS)}: "
            "upgrade it"
        )
    return CODECS[update.codec]
