"""Every codec that an update can have, and their common entry: `decode`.

| id          | is                                                      | specification |
|-------------|---------------------------------------------------------|---------------|
| `usq`       | whole multiples of a step at their entropy; the default | `usq`         |
| `nf4-mixed` | the paper's NF4                                         | `nf4`         |
| `ternary`   | ComPEFT: the signs of the largest changes               | `ternary`     |
| `sign`      | BitDelta: one bit a change                              | `bitdelta`    |
| `exact`     | any bits of the target                                  | `exact`       |

A codec is one module, whose docstring specifies its format; `payload` is what they share. Decoding
gives the same bits on every machine: whole numbers, one float32 multiplication, one addition.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.downlink.change import Overlay
from cdcca_cli.downlink.codecs import bitdelta, exact, nf4, ternary, usq
from cdcca_cli.downlink.codecs.payload import damaged
from cdcca_cli.errors import BadData, NewerFormat
from cdcca_cli.formats.update import Update

Decoded = dict[str, NDArray[np.float32]]


def _whole(payload: bytes) -> dict[str, int]:
    return {"sequence and codes": len(payload)}


def _nothing(_: Update) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Codec:
    """The reader of one codec's payload. `decode` and `byte_kinds` raise BadData.

    decode: the new overlay, from the update and its base. facts: further facts for `inspect`.
    byte_kinds: the uses of the payload's bytes, which add up to its length.
    """

    decode: Callable[[Update, Overlay], Decoded]
    byte_kinds: Callable[[bytes], dict[str, int]] = _whole
    facts: Callable[[Update], dict[str, Any]] = _nothing


def _plain(read: Callable[[bytes, int, Overlay], Decoded]) -> Callable[[Update, Overlay], Decoded]:
    """The decoder of a codec that has no `coding` in the header."""

    def decode(update: Update, base: Overlay) -> Decoded:
        if update.coding:
            raise damaged(f"codec {update.codec} takes no 'coding'")
        return read(update.payload, update.sequence, base)

    return decode


def _mixed(update: Update, base: Overlay) -> Decoded:
    return nf4.decode(update.payload, update.sequence, update.coding, base)


def _steps(update: Update) -> dict[str, Any]:
    return {"steps": usq.steps_of(update.payload)}


def _bits(update: Update) -> dict[str, Any]:
    counts = Counter(nf4.bits_of(update.coding))
    return {"tensors_by_bits": {str(bits): counts[bits] for bits in sorted(counts)}}


CODECS: dict[str, Codec] = {
    usq.CODEC: Codec(_plain(usq.decode), usq.byte_kinds, _steps),
    nf4.CODEC: Codec(_mixed, facts=_bits),
    ternary.CODEC: Codec(_plain(usq.decode), usq.byte_kinds, _steps),
    bitdelta.CODEC: Codec(_plain(bitdelta.decode)),
    exact.CODEC: Codec(_plain(exact.decode)),
}


def decode(update: Update, base: Overlay, *, where: str = "the update") -> Decoded:
    """The overlay that an update leads to from `base`; unchanged tensors are the base's own arrays.

    Raises: NewerFormat for an unknown codec; BadData for an update of another size than the base, a
        payload that breaks its codec's rules, or values that would not be finite.
    """
    codec = _codec_of(update, where)
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
    """The uses of the payload's bytes, which add up to its length. NewerFormat, BadData."""
    return _codec_of(update).byte_kinds(update.payload)


def facts(update: Update) -> dict[str, Any]:
    """Steps or bits of an update, for `inspect`. NewerFormat, BadData."""
    return _codec_of(update).facts(update)


def _codec_of(update: Update, where: str = "the update") -> Codec:
    """The codec of an update. NewerFormat if this cdcca does not have it."""
    if update.codec not in CODECS:
        raise NewerFormat(
            f"{where}: codec {update.codec[:40]!r}; this cdcca reads {', '.join(CODECS)}: "
            "upgrade it"
        )
    return CODECS[update.codec]
