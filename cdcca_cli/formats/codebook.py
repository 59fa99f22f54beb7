"""The codebook file, version 1: how a vision tower's tokens are coded, made from frames.

A record (`records`) of at most 64 MiB. Shapes: N visual tokens, C channels, K components <= C.

    scale      F32 (C,)    each channel's own unit, above 0
    mean       F16 (N, C)  each position's mean, in units of `scale`
    forward    F16 (C, K)  from channels, in units of `scale`, to components
    inverse    F16 (K, C)  from components to channels, in units of `scale`
    positions  F16 (N, N)  orthogonal: column m is the m-th combination of positions
    sizes      F16 (N, K)  expected magnitude of each coefficient, >= 0

`payloads.klt` says what is computed with them. Header, all keys always present:

    kind "codebook", version 1
    signed      object, what the signatures are over:
        tower       digest of the vision tower whose tokens are coded
        teacher     digest of the model that the codebook was made for
        num_tokens  N, 1 to 65,536
        channels    C, 1 to 65,536
        components  K, 1 to C
        num_frames  whole number >= 1: of frames that it was made from
        sequence    whole number >= 0; a device takes only a higher one than it has had
        tensors     digest of the tensors (`digest.overlay_digest`)
        curve       {"tokens": [...], "frames": [...]}, each of at most 64 points, measured on
                    frames that the codebook was not made from:
            tokens  {"step", "bits", "bytes", "loss", "agreement"} in ascending order of step, a
                    float32; bits an element of the tokens, bytes a frame
            frames  {"media", "quality", "bytes", "loss", "agreement"} of frames sent as pictures
    signatures  list of {"key", "signature"} (`trust`), over "cdcca codebook 1\\n" and `signed` as
                `records.dump_json` writes it

`loss` is the relative change of the teacher's loss, `agreement` the share of its answers that stay
the same, 0 to 1 (`distillation.calibration`). A codebook's digest is SHA-256 of what is signed.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, BinaryIO, TypeVar, get_type_hints

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.errors import BadData
from cdcca_cli.files import Writable
from cdcca_cli.formats import records
from cdcca_cli.formats.digest import is_digest, overlay_digest
from cdcca_cli.formats.trust import (
    LIMITS,
    Signature,
    read_signatures,
    read_strict_record,
    signature_objects,
)
from cdcca_cli.numerics.uniform import check_step

VERSION = 1
KINDS = {"codebook": VERSION}
MOST_BYTES = 1 << 26
_DOMAIN = b"cdcca codebook 1\n"
_MOST = (1 << 53) - 1
_MOST_SIZE = 1 << 16
_MOST_POINTS = 64
_TENSORS = {
    "scale": "F32",
    "mean": "F16",
    "forward": "F16",
    "inverse": "F16",
    "positions": "F16",
    "sizes": "F16",
}
_CLOSE = 0.05  # to 1, of what F16 rounds
_SMALLEST_SCALE = 2.0**-64
_LARGEST_SCALE = 2.0**64

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TokenPoint:
    """What one step costs and changes, of frames sent as tokens."""

    step: float
    bits: float
    bytes: float
    loss: float
    agreement: float


@dataclass(frozen=True)
class PicturePoint:
    """What one quality costs and changes, of frames sent as pictures. media: like "image/avif"."""

    media: str
    quality: int
    bytes: float
    loss: float
    agreement: float


@dataclass(frozen=True)
class Curve:
    """The points that were measured, those of tokens in ascending order of their steps."""

    tokens: tuple[TokenPoint, ...] = ()
    frames: tuple[PicturePoint, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "tokens": [asdict(point) for point in self.tokens],
            "frames": [asdict(point) for point in self.frames],
        }


@dataclass(frozen=True, eq=False)
class Codebook:
    """A codebook; equal ones have the same `digest`. Arrays as in the file."""

    tower: str
    teacher: str
    num_frames: int
    scale: NDArray[np.float32]
    mean: NDArray[np.float16]
    forward: NDArray[np.float16]
    inverse: NDArray[np.float16]
    positions: NDArray[np.float16]
    sizes: NDArray[np.float16]
    sequence: int = 0
    curve: Curve = field(default_factory=Curve)
    signatures: tuple[Signature, ...] = ()

    @property
    def num_tokens(self) -> int:
        """N."""
        return len(self.mean)

    @property
    def channels(self) -> int:
        """C."""
        return len(self.scale)

    @property
    def components(self) -> int:
        """K."""
        return self.forward.shape[1]

    def tensors(self) -> dict[str, np.ndarray]:
        """The record's tensors."""
        return {name: getattr(self, name) for name in _TENSORS}

    def signed(self) -> dict[str, Any]:
        """What the signatures are over."""
        return {
            **{name: getattr(self, name) for name in _SIGNED if name not in ("tensors", "curve")},
            "tensors": self._tensors_digest,
            "curve": self.curve.as_json(),
        }

    def signed_bytes(self) -> bytes:
        """The message that is signed."""
        return _DOMAIN + records.dump_json(self.signed()).encode()

    def with_signatures(self, signatures: tuple[Signature, ...]) -> "Codebook":
        return replace(self, signatures=signatures)

    @cached_property
    def digest(self) -> str:
        """Of what is signed, "sha256:<64 hex digits>"."""
        return f"sha256:{hashlib.sha256(self.signed_bytes()).hexdigest()}"

    # What a coder computes with, in float32.

    @cached_property
    def mean_NC(self) -> Floats:
        return self.mean.astype(np.float32) * self.scale

    @cached_property
    def forward_CK(self) -> Floats:
        return np.ascontiguousarray(self.forward.astype(np.float32) / self.scale[:, None])

    @cached_property
    def inverse_KC(self) -> Floats:
        return self.inverse.astype(np.float32) * self.scale

    @cached_property
    def positions_NN(self) -> Floats:
        return self.positions.astype(np.float32)

    @cached_property
    def order(self) -> NDArray[np.intp]:
        """(N * K,): places of the coefficients in `sizes`, the largest first, ties in order."""
        return np.argsort(-self.sizes.reshape(-1).astype(np.float32), kind="stable")

    @cached_property
    def component_order(self) -> NDArray[np.intp]:
        """(K,): the components, the largest over all positions first, ties in order."""
        power_K = np.square(self.sizes.astype(np.float64)).sum(0)
        return np.argsort(-power_K, kind="stable")

    @cached_property
    def _tensors_digest(self) -> str:
        return overlay_digest(self.tensors())


_SIGNED: dict[str, Any] = {
    "tower": str,
    "teacher": str,
    "num_tokens": int,
    "channels": int,
    "components": int,
    "num_frames": int,
    "sequence": int,
    "tensors": str,
    "curve": dict,
}


def write_codebook(out: Writable, codebook: Codebook) -> int:
    """Write it; returns its bytes. BadData if it is not sound."""
    header = {
        "kind": "codebook",
        "version": VERSION,
        "signed": codebook.signed(),
        "signatures": signature_objects(codebook.signatures),
    }
    record = records.Record(codebook.tensors(), header)
    codebook_of(record, "the codebook")
    size = len(records.encode_header(record.tensors, header))
    total = size + sum(array.nbytes for array in record.tensors.values())
    if size > LIMITS.header_bytes or total > MOST_BYTES:
        raise BadData(f"the codebook: {total:,} bytes; at most {MOST_BYTES:,} are read")
    return records.write_record(out, record.tensors, header)


def read_codebook(stream: BinaryIO, *, where: str = "the codebook") -> Codebook:
    """Read and check it; its signatures are not verified. BadData, NewerFormat."""
    limits = replace(LIMITS, record_bytes=MOST_BYTES)
    return codebook_of(read_strict_record(stream, KINDS, where, limits), where)


def codebook_of(record: records.Record, where: str) -> Codebook:
    """The codebook that a record of `read_strict_record` holds. BadData."""
    records.expect_tensors(record, _TENSORS, where)
    if record.num_bytes > MOST_BYTES:
        raise BadData(f"{where}: {record.num_bytes:,} bytes; at most {MOST_BYTES:,} are read")
    records.exact_keys(record.header, {"kind", "version", "signed", "signatures"}, where)
    signatures = read_signatures(record.header, where)
    signed = records.fields(record.header["signed"], _SIGNED, where)
    _check_numbers(signed, where)
    _check_tensors(record.tensors, signed, where)
    values: dict[str, Any] = {**record.tensors, "curve": _curve(signed["curve"], where)}
    values |= {name: signed[name] for name in ("tower", "teacher", "num_frames", "sequence")}
    found = Codebook(**values, signatures=signatures)
    if found.signed()["tensors"] != signed["tensors"]:
        raise BadData(f"{where}: its tensors do not match their digest: fetch it again")
    if records.dump_json(found.signed()) != records.dump_json(record.header["signed"]):
        raise BadData(f"{where}: not written as cdcca writes it: it is damaged, fetch it again")
    return found


def _check_numbers(signed: Mapping[str, Any], where: str) -> None:
    for name in ("tower", "teacher", "tensors"):
        if not is_digest(signed[name]):
            raise BadData(f"{where}: {name!r} is not a digest")
    ranges = {
        "num_tokens": (1, _MOST_SIZE),
        "channels": (1, _MOST_SIZE),
        "components": (1, signed["channels"]),
        "num_frames": (1, _MOST),
        "sequence": (0, _MOST),
    }
    for name, (least, most) in ranges.items():
        if not least <= signed[name] <= most:
            raise BadData(
                f"{where}: {name} is {str(signed[name])[:20]}; expected {least} to {str(most)[:20]}"
            )


def _check_tensors(
    tensors: Mapping[str, np.ndarray], signed: Mapping[str, Any], where: str
) -> None:
    """Shapes, and values that a coder can compute with."""
    n, c, k = signed["num_tokens"], signed["channels"], signed["components"]
    shapes = {
        "scale": (c,),
        "mean": (n, c),
        "forward": (c, k),
        "inverse": (k, c),
        "positions": (n, n),
        "sizes": (n, k),
    }
    for name, shape in shapes.items():
        array = tensors[name]
        if array.shape != shape:
            raise BadData(f"{where}: {name} has the shape {array.shape}; expected {shape}")
        if not np.isfinite(array).all():
            raise BadData(f"{where}: {name} has values that are not finite")
    scale, sizes = tensors["scale"], tensors["sizes"]
    if not ((scale >= _SMALLEST_SCALE) & (scale <= _LARGEST_SCALE)).all():
        raise BadData(f"{where}: scale has values beyond 2^-64 to 2^64")
    if np.signbit(sizes).any():
        raise BadData(f"{where}: sizes has values below zero")
    norms_N = np.square(tensors["positions"], dtype=np.float32).sum(0)
    if not (np.abs(norms_N - 1) <= _CLOSE).all():
        raise BadData(f"{where}: the columns of positions have other lengths than 1")
    forward, inverse = (tensors[name].astype(np.float32) for name in ("forward", "inverse"))
    ones_K = np.einsum("ck,kc->k", forward, inverse)
    if not (np.abs(ones_K - 1) <= _CLOSE).all():
        raise BadData(f"{where}: inverse does not undo forward")


def _curve(data: dict[str, Any], where: str) -> Curve:
    place = f"{where}: curve"
    parts = records.fields(data, {"tokens": list, "frames": list}, place)
    curve = Curve(
        _points(TokenPoint, parts["tokens"], place), _points(PicturePoint, parts["frames"], place)
    )
    for point in curve.tokens:
        check_step(point.step, place)
    steps = [point.step for point in curve.tokens]
    if steps != sorted(set(steps)):
        raise BadData(f"{place}: its steps are not in ascending order, each once")
    points: list[TokenPoint | PicturePoint] = [*curve.tokens, *curve.frames]
    for one in points:
        if one.bytes < 0 or not 0 <= one.agreement <= 1:
            raise BadData(f"{place}: a point of {one.bytes:g} bytes, agreement {one.agreement:g}")
    if any(point.bits < 0 for point in curve.tokens):
        raise BadData(f"{place}: a point of fewer than 0 bits")
    if any(not 0 <= point.quality <= 100 for point in curve.frames):
        raise BadData(f"{place}: a picture's quality is beyond 0 to 100")
    return curve


Point = TypeVar("Point", TokenPoint, PicturePoint)


def _points(kind: type[Point], objects: list[Any], where: str) -> tuple[Point, ...]:
    if len(objects) > _MOST_POINTS:
        raise BadData(f"{where}: {len(objects):,} points; at most {_MOST_POINTS}")
    hints = get_type_hints(kind)
    return tuple(kind(**records.fields(one, hints, f"{where}: a point")) for one in objects)
