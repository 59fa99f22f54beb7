"""The bytes of the link: what went up and down, and what the frames themselves would take.

    {"uplink": {"stored_bytes", "stored_bytes_by_file": [...], "bytes": {kind: ...}, "shards",
                "frames", "bytes_per_frame", "payloads": {form: shards},
                "bytes_if_all": {form: bytes or null}, "tokens_kept", "tokens_total",
                "bits_per_token"},
     "downlink": {"stored_bytes", "stored_bytes_by_file", "bytes", "updates", "parameters",
                  "bits_per_parameter"},
     "raw": {"frames", "bytes": {form: ...}, "times_smaller": {form: ...}},     (all frames)
     "sent": the same of the frames in the uplink,
     "encoder_input": {"size": [w, h], "raw": ..., "sent": ..., "left_out": ...},
                                                                      (with the encoder's size)
     "h264": {"streams": 1, "frames_per_second": 25.0},
     "left_out": {form: reason},
     "transfer": {"modelled": true, "link": "1gbit,1ms", "formula": ..., "up_bits_per_second",
                  "down_bits_per_second", "latency_seconds",
                  "seconds": {"uplink", "downlink", "raw": {form: ...}, "sent": ...,
                              "encoder_input": {"raw": ..., "sent": ...}}}}

All parts are optional. The uplink's kinds of bytes are the tensors of `shard`, `header`, and
`shards` and `end` for heads and end records; the downlink's are `payload` and `header`. They count
the bytes of records, and `stored_bytes` what the link carries, which is less under zstd.
`bytes_if_all` are the tensors if every frame had gone up as `tokens` or as a `frame`, where the
device tried both (`payload` auto). Bits per parameter and per token are of `stored_bytes`.
`times_smaller` is frame bytes for one byte of uplink. Forms: `link.frames`.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from cdcca_cli import streams
from cdcca_cli.datasets import Frames
from cdcca_cli.errors import BadData
from cdcca_cli.formats import shard_stream
from cdcca_cli.formats import update as updates
from cdcca_cli.scoring.link.frames import FORMS, H264, FrameBytes, Size, measure_frames
from cdcca_cli.scoring.link.transfer import FORMULA, Link

Table = tuple[str, list[str], list[list[object]]]


@dataclass
class _Direction:
    """Files, added up: the bytes of each, and the bytes of each kind."""

    files: list[int] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def stored_bytes(self) -> int:
        return sum(self.files)

    def as_json(self) -> dict[str, Any]:
        return {
            "stored_bytes": self.stored_bytes,
            "stored_bytes_by_file": self.files,
            "bytes": dict(self.kinds),
        }


@dataclass
class Uplink(_Direction):
    """Token streams. frames: the ids of their frames; the same id may come again."""

    frames: Counter[str] = field(default_factory=Counter)
    payloads: Counter[str] = field(default_factory=Counter)
    forms: dict[str, int | None] = field(default_factory=dict)
    tokens_kept: int = 0
    tokens_total: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            **super().as_json(),
            "shards": self.frames.total(),
            "frames": len(self.frames),
            "bytes_per_frame": _ratio(self.stored_bytes, self.frames.total()),
            "payloads": dict(self.payloads),
            "bytes_if_all": self.forms,
            "tokens_kept": self.tokens_kept,
            "tokens_total": self.tokens_total,
            "bits_per_token": _ratio(8 * self.stored_bytes, self.tokens_kept),
        }


@dataclass
class Downlink(_Direction):
    """Updates. Each one counts its base's parameters once."""

    parameters: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            **super().as_json(),
            "updates": len(self.files),
            "parameters": self.parameters,
            "bits_per_parameter": _ratio(8 * self.stored_bytes, self.parameters),
        }


@dataclass
class Ledger:
    """What was measured; None for what was not requested."""

    uplink: Uplink | None = None
    downlink: Downlink | None = None
    frames: FrameBytes | None = None
    encoder_size: Size | None = None
    link: Link | None = None

    def as_json(self) -> dict[str, Any]:
        """The object in the module's docstring."""
        found: dict[str, Any] = {}
        if self.uplink is not None:
            found["uplink"] = self.uplink.as_json()
        if self.downlink is not None:
            found["downlink"] = self.downlink.as_json()
        if self.frames is not None:
            for place, sizes, forms in self._pictures():
                _put(found, place, self._picture(sizes, forms))
            if self.encoder_size is not None:
                found["encoder_input"]["size"] = list(self.encoder_size)
                found["encoder_input"]["left_out"] = self.frames.seen_left_out
            if H264 not in self.frames.left_out:
                rate = self.frames.frames_per_second
                found["h264"] = {"streams": self.frames.sizes, "frames_per_second": rate}
            found["left_out"] = self.frames.left_out
        if self.link is not None:
            found["transfer"] = self._transfer(self.link)
        return found

    def tables(self) -> list[Table]:
        """Title, columns and rows of each table, for people."""
        tables: list[Table] = []
        for name, part in (("uplink", self.uplink), ("downlink", self.downlink)):
            if part is not None:
                tables.append((name, ["", ""], _facts(part.as_json())))
        if self.frames is not None:
            tables.append(self._frames_table())
        if self.link is not None:
            tables.append(self._transfer_table(self.link))
        return tables

    def _pictures(self) -> Iterator[tuple[tuple[str, ...], Mapping[str, int], list[str]]]:
        """The frames as they were measured: place in the object, sizes, forms."""
        if self.frames is None:
            return
        forms = [form for form in FORMS if form not in self.frames.left_out]
        yield ("raw",), self.frames.every, forms
        if self.uplink is not None:
            yield ("sent",), self.frames.sent, forms
        if self.encoder_size is None:
            return
        gone = {"original", *self.frames.seen_left_out}
        forms = [form for form in FORMS if form not in gone]
        yield ("encoder_input", "raw"), self.frames.seen_every, forms
        if self.uplink is not None:
            yield ("encoder_input", "sent"), self.frames.seen_sent, forms

    def _picture(self, sizes: Mapping[str, int], forms: Sequence[str]) -> dict[str, Any]:
        entry: dict[str, Any] = {"frames": sizes["frames"]}
        entry["bytes"] = {form: sizes[form] for form in forms}
        if self.uplink is not None:
            stored = self.uplink.stored_bytes
            entry["times_smaller"] = {form: _ratio(sizes[form], stored) for form in forms}
        return entry

    def _directions(self, link: Link) -> Iterator[tuple[str, int, float]]:
        """Name, bytes and modelled seconds of each direction."""
        if self.uplink is not None:
            stored = self.uplink.stored_bytes
            yield "uplink", stored, link.up_seconds(stored)
        if self.downlink is not None:
            stored = self.downlink.stored_bytes
            yield "downlink", stored, link.down_seconds(stored)

    def _transfer(self, link: Link) -> dict[str, Any]:
        seconds: dict[str, Any] = {name: time for name, _, time in self._directions(link)}
        for place, sizes, forms in self._pictures():
            _put(seconds, place, {form: link.up_seconds(sizes[form]) for form in forms})
        return {
            "modelled": True,
            "link": link.text,
            "formula": FORMULA,
            "up_bits_per_second": link.up_bits_per_second,
            "down_bits_per_second": link.down_bits_per_second,
            "latency_seconds": link.latency_seconds,
            "seconds": seconds,
        }

    def _frames_table(self) -> Table:
        pictures = list(self._pictures())
        columns = ["bytes as"]
        for place, sizes, _ in pictures:
            which = "all" if place[-1] == "raw" else "sent"
            columns.append(f"{which} {sizes['frames']:,} frames{self._at(place)}")
        every_form = [form for form in FORMS if any(form in forms for _, _, forms in pictures)]
        rows: list[list[object]] = [
            [form, *(sizes[form] if form in forms else None for _, sizes, forms in pictures)]
            for form in every_form
        ]
        if self.uplink is not None:
            rows.append(["(the uplink)", *[self.uplink.stored_bytes] * len(pictures)])
        return "the frames themselves", columns, rows

    def _transfer_table(self, link: Link) -> Table:
        rows: list[list[object]] = [list(one) for one in self._directions(link)]
        shown = "raw" if self.uplink is None else "sent"
        for place, sizes, forms in self._pictures():
            for form in forms if place[-1] == shown else ():
                name = f"frames{self._at(place)} as {form}"
                rows.append([name, sizes[form], link.up_seconds(sizes[form])])
        return f"transfer over {link.text}, modelled", ["", "bytes", "seconds (modelled)"], rows

    def _at(self, place: tuple[str, ...]) -> str:
        return "" if len(place) == 1 else " at {}x{}".format(*self.encoder_size or (0, 0))


def measure(
    uplink: Sequence[str],
    downlink: Sequence[str],
    frames: Frames | None = None,
    link: Link | None = None,
    *,
    encoder_size: Size | None = None,
) -> Ledger:
    """The ledger of token streams, updates and the frames that they came from.

    Raises: BadData (65) also if no frame of the uplink is among `frames`.
    """
    ledger = Ledger(link=link)
    if uplink:
        ledger.uplink = read_uplink(uplink)
    if downlink:
        ledger.downlink = read_downlink(downlink)
    if frames is not None:
        ids = ledger.uplink.frames if ledger.uplink else Counter[str]()
        ledger.encoder_size = encoder_size
        ledger.frames = measure_frames(frames, ids, encoder_size=encoder_size)
        for form, reason in (ledger.frames.seen_left_out | ledger.frames.left_out).items():
            streams.message(f"{form}: left out, {reason}")
        if ledger.uplink is not None:
            _note_unmatched(ledger.frames.sent["frames"], ids)
    return ledger


def _note_unmatched(num_found: int, ids: Counter[str]) -> None:
    if ids and not num_found:
        raise BadData(
            f"none of the {len(ids)} frames in the uplink, such as '{next(iter(ids))}', is among "
            "the frames of `raw`: name the source that was sampled"
        )
    if num_found < len(ids):
        streams.message(f"{len(ids) - num_found} of {len(ids)} uplink frames are not in `raw`")


def read_uplink(paths: Sequence[str]) -> Uplink:
    """Add up token streams, one after the other; memory holds one shard."""
    total = Uplink()
    for path in paths:
        with streams.binary_input(path) as opened:
            stream, name = _Counted(opened), streams.input_name(path)
            source = cast(BinaryIO, stream)
            found = shard_stream.read_shards(
                source, where=name, ledger=total.kinds, forms=total.forms
            )
            for shard in found:
                total.frames[shard.frame] += 1
                total.tokens_kept += len(shard.positions)
                total.tokens_total += shard.num_tokens
                total.payloads["frame" if shard.coding.codec == "frame" else "tokens"] += 1
        total.files.append(_stored(path, stream.num_bytes))
    return total


def read_downlink(paths: Sequence[str]) -> Downlink:
    total = Downlink()
    for path in paths:
        with streams.binary_input(path) as opened:
            stream = _Counted(opened)
            update = updates.read_update(cast(BinaryIO, stream), where=streams.input_name(path))
        total.parameters += update.num_parameters
        total.kinds["payload"] += len(update.payload)
        total.kinds["header"] += stream.num_bytes - len(update.payload)
        total.files.append(_stored(path, stream.num_bytes))
    return total


class _Counted:
    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.num_bytes = stream, 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.num_bytes += len(data)
        return data


def _facts(shown: dict[str, Any]) -> list[list[object]]:
    del shown["stored_bytes_by_file"]
    rows: list[list[object]] = [["bytes, as stored", shown.pop("stored_bytes")]]
    rows += [[f"bytes of {kind}", number] for kind, number in shown.pop("bytes").items()]
    for key, found in shown.items():
        name = key.replace("_", " ")
        if isinstance(found, dict):
            rows += [[f"{name}: {form}", number] for form, number in found.items()]
        else:
            rows.append([name, found])
    return rows


def _put(tree: dict[str, Any], place: Sequence[str], value: object) -> None:
    for name in place[:-1]:
        tree = tree.setdefault(name, {})
    tree[place[-1]] = value


def _stored(path: str, num_read_bytes: int) -> int:
    return os.stat(path).st_size if os.path.isfile(path) else num_read_bytes


def _ratio(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator else None
