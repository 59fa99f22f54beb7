"""The bytes of the link: what went up and down, and what the frames themselves would take.

Every byte of a file is counted by its kind, as records are read:

    payload     the tokens' numbers; an update's coded changes
    scales      of tokens in 8 bits. An update's are inside its payload, coded along with it
    positions   where the kept tokens belong
    scores      why they were kept
    header      the record's length and its table of tensors (safetensors' own header)
    metadata    cdcca's header inside it: ids, questions, digests
    end         the end records of a token stream
    (others)    a tensor that a newer format has, by its own name; `other` what is in no record

In a file compressed with zstd, these are the bytes of the records inside; `stored_bytes` is what
the link carries.

    {"uplink": {"stored_bytes", "stored_bytes_by_file": [...], "bytes": {kind: ...}, "shards",
                "frames", "tokens_kept", "tokens_total", "token_elements",
                "bits_per_token_element", "bits_per_token", "bytes_per_token"},
     "downlink": {"stored_bytes", "stored_bytes_by_file", "bytes", "updates", "parameters",
                  "bits_per_parameter"},
     "raw": {"frames", "bytes": {form: ...}, "times_smaller": {form: ...}},     (all frames)
     "sent": the same of the frames in the uplink,
     "encoder_input": {"size": [w, h], "raw": ..., "sent": ...},      (with the encoder's size)
     "h264": {"streams": 1, "frames_per_second": 25.0},
     "left_out": {form: reason},
     "transfer": {"modelled": true, "link": "1gbit,1ms", "formula": ..., "up_bits_per_second",
                  "down_bits_per_second", "latency_seconds",
                  "seconds": {"uplink", "downlink", "raw": {form: ...}, "sent": ...,
                              "encoder_input": {"raw": ..., "sent": ...}}}}

Each is there on request only. Forms are those of `link.frames`; `times_smaller` is bytes of the
frames for one byte of uplink. Bits per parameter and per token count all that is stored, headers
too. Times are modelled (`link.transfer`) and nothing else is.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from cdcca_cli import streams
from cdcca_cli.datasets import Frames
from cdcca_cli.errors import BadData
from cdcca_cli.formats import records
from cdcca_cli.formats import shard as shards
from cdcca_cli.formats import update as updates
from cdcca_cli.scoring.link.frames import FORMS, H264, FrameBytes, Size, measure_frames
from cdcca_cli.scoring.link.transfer import FORMULA, Link

UPLINK_KINDS = ("payload", "scales", "positions", "scores", "header", "metadata", "end")
DOWNLINK_KINDS = ("payload", "header", "metadata")
Table = tuple[str, list[str], list[list[object]]]


@dataclass
class _Direction:
    """Files, added up: the bytes of each, and the bytes of each kind."""

    files: list[int] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def stored_bytes(self) -> int:
        return sum(self.files)


@dataclass
class Uplink(_Direction):
    """Token streams. frames: the ids of their frames; the same id may come again."""

    frames: Counter[str] = field(default_factory=Counter)
    tokens_kept: int = 0
    tokens_total: int = 0
    token_elements: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "stored_bytes": self.stored_bytes,
            "stored_bytes_by_file": self.files,
            "bytes": _by_kind(self.kinds, UPLINK_KINDS),
            "shards": self.frames.total(),
            "frames": len(self.frames),
            "tokens_kept": self.tokens_kept,
            "tokens_total": self.tokens_total,
            "token_elements": self.token_elements,
            "bits_per_token_element": _ratio(8 * self.stored_bytes, self.token_elements),
            "bits_per_token": _ratio(8 * self.stored_bytes, self.tokens_kept),
            "bytes_per_token": _ratio(self.stored_bytes, self.tokens_kept),
        }


@dataclass
class Downlink(_Direction):
    """Updates. Each one counts its base's parameters once."""

    parameters: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "stored_bytes": self.stored_bytes,
            "stored_bytes_by_file": self.files,
            "bytes": _by_kind(self.kinds, DOWNLINK_KINDS),
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

    @property
    def raw(self) -> Mapping[str, int] | None:
        """Bytes by form of all frames, at their own size."""
        return None if self.frames is None else self.frames.every

    @property
    def sent(self) -> Mapping[str, int] | None:
        """Bytes by form of the frames whose tokens went up."""
        return None if self.frames is None or self.uplink is None else self.frames.sent

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
        forms = [form for form in forms if form != "original"]
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

    def _transfer(self, link: Link) -> dict[str, Any]:
        seconds: dict[str, Any] = {}
        if self.uplink is not None:
            seconds["uplink"] = link.up_seconds(self.uplink.stored_bytes)
        if self.downlink is not None:
            seconds["downlink"] = link.down_seconds(self.downlink.stored_bytes)
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
        columns, cells = ["bytes as"], []
        for place, sizes, forms in self._pictures():
            which = "all" if place[-1] == "raw" else "sent"
            at = "" if len(place) == 1 else " at {}x{}".format(*self.encoder_size or (0, 0))
            columns.append(f"{which} {sizes['frames']:,} frames{at}")
            cells.append({form: sizes[form] for form in forms})
        rows: list[list[object]] = [
            [form, *(column.get(form) for column in cells)] for form in cells[0]
        ]
        if self.uplink is not None:
            stored = self.uplink.stored_bytes
            rows.append(["(the uplink)", *(stored for _ in cells)])
        return "the frames themselves", columns, rows

    def _transfer_table(self, link: Link) -> Table:
        rows: list[list[object]] = []
        if self.uplink is not None:
            stored = self.uplink.stored_bytes
            rows.append(["uplink", stored, link.up_seconds(stored)])
        if self.downlink is not None:
            stored = self.downlink.stored_bytes
            rows.append(["downlink", stored, link.down_seconds(stored)])
        shown = "raw" if self.uplink is None else "sent"
        for place, sizes, forms in self._pictures():
            if place[-1] != shown:
                continue
            at = "" if len(place) == 1 else " at {}x{}".format(*self.encoder_size or (0, 0))
            for form in forms:
                row = [f"frames{at} as {form}", sizes[form], link.up_seconds(sizes[form])]
                rows.append(list(row))
        return f"transfer over {link.text}, modelled", ["", "bytes", "seconds (modelled)"], rows


def measure(
    uplink: Sequence[str],
    downlink: Sequence[str],
    frames: Frames | None = None,
    link: Link | None = None,
    *,
    encoder_size: Size | None = None,
) -> Ledger:
    """The ledger of token streams, updates and the frames that they came from.

    Args: link: models transfer times. encoder_size: width and height that the vision encoder sees:
        measures the frames at this size too.
    Raises: BadData (65) for a damaged file, or if not one frame of the uplink is among `frames`;
        MissingInput (66).
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
        for form, reason in ledger.frames.left_out.items():
            streams.message(f"{form}: left out, {reason}")
        if ledger.uplink is not None:
            num_found = ledger.frames.sent["frames"]
            if num_found < len(ids):
                _unmatched(num_found, ids)
    return ledger


def _unmatched(num_found: int, ids: Counter[str]) -> None:
    if not num_found:
        raise BadData(
            f"none of the {len(ids)} frames in the uplink, '{next(iter(ids))}' for one, is among "
            "the frames of `raw`: name the source that was sampled"
        )
    streams.message(f"{len(ids) - num_found} of {len(ids)} uplink frames are not in `raw`")


def read_uplink(paths: Sequence[str]) -> Uplink:
    """Add up token streams, one after the other; memory holds one shard."""
    total = Uplink()
    for path in paths:
        where = streams.input_name(path)
        with streams.binary_input(path) as opened:
            stream = _TakenApart(opened)
            for shard in shards.read_shards(cast(BinaryIO, stream), where=where):
                total.frames[shard.frame] += 1
                total.tokens_kept += len(shard.tokens)
                total.tokens_total += shard.num_tokens
                total.token_elements += shard.tokens.size
        for (kind, part), num_bytes in stream.all_parts().items():
            part = "end" if kind == "end" else "payload" if part == "tokens" else part
            total.kinds[part] += num_bytes
        total.files.append(_stored(path, stream.num_bytes))
    return total


def read_downlink(paths: Sequence[str]) -> Downlink:
    """Add up updates."""
    total = Downlink()
    for path in paths:
        with streams.binary_input(path) as opened:
            stream = _TakenApart(opened)
            update = updates.read_update(cast(BinaryIO, stream), where=streams.input_name(path))
        total.parameters += update.num_parameters
        for (_, part), num_bytes in stream.all_parts().items():
            total.kinds[part] += num_bytes
        total.files.append(_stored(path, stream.num_bytes))
    return total


class _TakenApart:
    """Counts the bytes read of a stream of records, by kind of record and part. Only has `read`.

    Checking is left to the reader above it: what is not a sound record is only counted.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.num_bytes = stream, 0
        self.parts: Counter[tuple[str, str]] = Counter()
        self._head = bytearray()
        self._num_tensor_bytes = 0  # that are still to come before the next record
        self._is_lost = False

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.num_bytes += len(data)
        rest = memoryview(data)
        while rest and not self._is_lost:
            if self._num_tensor_bytes:
                taken = min(self._num_tensor_bytes, len(rest))
                self._num_tensor_bytes -= taken
            else:
                taken = min(self._head_bytes() - len(self._head), len(rest))
                self._head += rest[:taken]
                if len(self._head) == self._head_bytes():
                    self._take_head()
            rest = rest[taken:]
        return data

    def all_parts(self) -> Counter[tuple[str, str]]:
        """Bytes by (kind of record, part); they add up to all that was read."""
        other = self.num_bytes - self.parts.total()
        return self.parts + Counter({("", "other"): other})

    def _head_bytes(self) -> int:
        return 8 + (int.from_bytes(self._head[:8], "little") if len(self._head) >= 8 else 0)

    def _take_head(self) -> None:
        if len(self._head) == 8:  # a header of no bytes, or its length alone
            self._is_lost = self._head_bytes() == 8
            return
        try:
            table, header = records.parse_head(bytes(self._head), "")
            offsets = {name: entry["data_offsets"] for name, entry in table.items()}
            sizes = {name: int(end) - int(begin) for name, (begin, end) in offsets.items()}
        except (BadData, KeyError, TypeError, ValueError):
            self._is_lost = True
            return
        metadata = len(records.dump_json(records.dump_json(header)))
        self.parts[header["kind"], "metadata"] += metadata
        self.parts[header["kind"], "header"] += len(self._head) - metadata
        for name, num_bytes in sizes.items():
            self.parts[header["kind"], name] += num_bytes
        self._num_tensor_bytes = sum(sizes.values())
        self._head.clear()


def _by_kind(kinds: Counter[str], usual: Sequence[str]) -> dict[str, int]:
    others = sorted(kind for kind, number in kinds.items() if number and kind not in usual)
    return {kind: kinds[kind] for kind in (*usual, *others)}


def _facts(shown: dict[str, Any]) -> list[list[object]]:
    del shown["stored_bytes_by_file"]
    rows: list[list[object]] = [["bytes, as stored", shown.pop("stored_bytes")]]
    rows += [[f"bytes of {kind}", number] for kind, number in shown.pop("bytes").items()]
    return rows + [[key.replace("_", " "), number] for key, number in shown.items()]


def _put(tree: dict[str, Any], place: Sequence[str], value: object) -> None:
    for name in place[:-1]:
        tree = tree.setdefault(name, {})
    tree[place[-1]] = value


def _stored(path: str, num_read_bytes: int) -> int:
    """A file's own size (smaller than what was read of it if zstd is around it)."""
    return os.stat(path).st_size if os.path.isfile(path) else num_read_bytes


def _ratio(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator else None
