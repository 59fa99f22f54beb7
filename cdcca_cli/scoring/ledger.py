"""The link's ledger: what went up and down in bytes, and what the frames themselves would cost.

Bytes are the files' own. Token streams are read through, so that every byte has its kind: payload
(the tokens' numbers), scales, positions, scores, header, end records; inside zstd these are the
bytes of the records, and `stored` is what the link carries. Nothing is modelled here: no times.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from cdcca_cli import progress, streams
from cdcca_cli.datasets import Frames
from cdcca_cli.errors import BadData
from cdcca_cli.formats import shard as shards
from cdcca_cli.formats import update as updates
from cdcca_cli.scoring.raw import FORMS, measure_frames

UPLINK_KINDS = ("payload", "scales", "positions", "scores", "header", "end")


@dataclass
class Uplink:
    """Token streams, added up. frames: the ids of the frames in them, which may come again."""

    stored_bytes: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    frames: Counter[str] = field(default_factory=Counter)
    tokens_kept: int = 0
    tokens_total: int = 0
    token_elements: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "stored_bytes": self.stored_bytes,
            "bytes": {kind: self.kinds[kind] for kind in UPLINK_KINDS},
            "shards": self.frames.total(),
            "frames": len(self.frames),
            "tokens_kept": self.tokens_kept,
            "tokens_total": self.tokens_total,
            "token_elements": self.token_elements,
            "bits_per_token_element": _ratio(8 * self.stored_bytes, self.token_elements),
            "bytes_per_token": _ratio(self.stored_bytes, self.tokens_kept),
        }


@dataclass
class Downlink:
    """Updates, added up. Each counts its base's parameters once."""

    stored_bytes: int = 0
    payload_bytes: int = 0
    header_bytes: int = 0
    updates: int = 0
    parameters: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "stored_bytes": self.stored_bytes,
            "bytes": {"payload": self.payload_bytes, "header": self.header_bytes},
            "updates": self.updates,
            "parameters": self.parameters,
            "bits_per_parameter": _ratio(8 * self.stored_bytes, self.parameters),
        }


@dataclass
class Ledger:
    """raw: bytes by form of all frames; sent: of those whose tokens went up."""

    uplink: Uplink | None = None
    downlink: Downlink | None = None
    raw: Mapping[str, int] | None = None
    sent: Mapping[str, int] | None = None

    def as_json(self) -> dict[str, object]:
        """`times_smaller`: bytes of the frames in each form for one byte of uplink."""
        link: dict[str, object] = {}
        if self.uplink is not None:
            link["uplink"] = self.uplink.as_json()
        if self.downlink is not None:
            link["downlink"] = self.downlink.as_json()
        for name, sizes in (("raw", self.raw), ("sent", self.sent)):
            if sizes is None:
                continue
            entry: dict[str, object] = {"frames": sizes["frames"]}
            entry["bytes"] = {form: sizes[form] for form in FORMS}
            if self.uplink is not None:
                stored = self.uplink.stored_bytes
                entry["times_smaller"] = {form: _ratio(sizes[form], stored) for form in FORMS}
            link[name] = entry
        return link


def measure(uplink: Sequence[str], downlink: Sequence[str], frames: Frames | None = None) -> Ledger:
    """The ledger of some token streams, some updates and the frames they stand for.

    Raises: BadData (65) for a damaged file, or if not one frame of the uplink is among `frames`;
        MissingInput (66).
    """
    ledger = Ledger()
    if uplink:
        ledger.uplink = read_uplink(uplink)
    if downlink:
        ledger.downlink = read_downlink(downlink)
    if frames is not None:
        ids = ledger.uplink.frames if ledger.uplink else Counter[str]()
        coding = progress.track(frames, len(frames), "coding frames")
        ledger.raw, sent = measure_frames(coding, ids)
        if ledger.uplink is not None:
            ledger.sent = sent
            if sent["frames"] < len(ids):
                _unmatched(sent["frames"], ids)
    return ledger


def _unmatched(num_found: int, ids: Counter[str]) -> None:
    if not num_found:
        raise BadData(
            f"none of the {len(ids)} frames in the uplink, '{next(iter(ids))}' for one, is among "
            "the --raw frames: name the source that was sampled"
        )
    streams.message(f"{len(ids) - num_found} of {len(ids)} uplink frames are not in --raw")


def read_uplink(paths: Sequence[str]) -> Uplink:
    """Add up token streams, one after the other; memory holds one shard."""
    total = Uplink()
    for path in paths:
        where = streams.input_name(path)
        with streams.binary_input(path) as opened:
            stream = _Counted(opened)
            num_record_bytes = 0
            for shard in shards.read_shards(cast(BinaryIO, stream), where=where):
                total.kinds.update(shards.shard_bytes(shard))
                total.frames[shard.frame] += 1
                total.tokens_kept += len(shard.tokens)
                total.tokens_total += shard.num_tokens
                total.token_elements += shard.tokens.size
                num_record_bytes += shard.num_bytes
        total.kinds["end"] += stream.num_bytes - num_record_bytes
        total.stored_bytes += _stored(path, stream.num_bytes)
    return total


def read_downlink(paths: Sequence[str]) -> Downlink:
    """Add up updates."""
    total = Downlink()
    for path in paths:
        with streams.binary_input(path) as opened:
            stream = _Counted(opened)
            update = updates.read_update(cast(BinaryIO, stream), where=streams.input_name(path))
        total.updates += 1
        total.parameters += update.num_parameters
        total.payload_bytes += len(update.payload)
        total.header_bytes += stream.num_bytes - len(update.payload)
        total.stored_bytes += _stored(path, stream.num_bytes)
    return total


class _Counted:
    """Counts what is read of a stream; only `read` is there."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.num_bytes = stream, 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.num_bytes += len(data)
        return data


def _stored(path: str, num_read_bytes: int) -> int:
    """A file's own size (smaller than what was read of it if zstd is around it)."""
    return os.stat(path).st_size if os.path.isfile(path) else num_read_bytes


def _ratio(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator else None
