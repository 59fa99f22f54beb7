"""What a file holds, for `cdcca inspect`: kind, digests, counts, and what its bytes are for.

Every reader's checks are made on the way: what can be summarised is sound. Token streams, lessons
and predictions are read one record at a time, so memory does not grow with their length.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from cdcca_cli import streams
from cdcca_cli.errors import BadData, MissingInput
from cdcca_cli.formats import adaptation as adaptation_format
from cdcca_cli.formats import device as device_format
from cdcca_cli.formats import lessons as lessons_format
from cdcca_cli.formats import predictions as predictions_format
from cdcca_cli.formats import records
from cdcca_cli.formats import shard as shard_format
from cdcca_cli.formats import trust as trust_format
from cdcca_cli.formats import update as update_format
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.kind import WEIGHTS_LIMITS, Kind
from cdcca_cli.text import load_json

_MOST_NAMES = 1000  # different domains, towers or models that are told apart
_SEEN_BYTES = 1 << 28


@dataclass
class Summary:
    """What `inspect` says. The ledger's bytes add up to the length of the content.

    update: what was read, for whoever knows its codec; `as_json` leaves it out.
    """

    kind: Kind
    facts: dict[str, Any] = field(default_factory=dict)
    digests: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    ledger: dict[str, int] = field(default_factory=dict)
    update: update_format.Update | None = None

    def as_json(self) -> dict[str, Any]:
        """One object; `bytes` has the ledger with its total."""
        result: dict[str, Any] = {"kind": self.kind, **self.facts}
        result |= {"digests": self.digests, "counts": self.counts}
        if self.ledger:
            result["bytes"] = {**self.ledger, "total": sum(self.ledger.values())}
        return result


class _Measured:
    """A stream that counts and hashes what is read from it."""

    def __init__(self, source: BinaryIO) -> None:
        self._source, self._sha = source, hashlib.sha256()
        self.num_bytes = 0

    def read(self, size: int = -1) -> bytes:
        return self._seen(self._source.read(size))

    def readline(self, size: int = -1) -> bytes:
        return self._seen(self._source.readline(size))

    def _seen(self, data: bytes) -> bytes:
        self.num_bytes += len(data)
        self._sha.update(data)
        return data

    @property
    def digest(self) -> str:
        return f"sha256:{self._sha.hexdigest()}"


class _Names:
    """Counts by name, for a bounded number of names."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, name: object) -> None:
        text = "(none)" if name is None else str(name)
        known = text in self._counts or len(self._counts) < _MOST_NAMES
        self._counts[text if known else "(others)"] += 1

    def as_json(self) -> dict[str, int]:
        return dict(sorted(self._counts.items()))


def summarize(kind: Kind, stream: BinaryIO, where: str) -> Summary:
    """Read a stream of this kind to its end. BadData and what else its reader raises."""
    reader = _READERS.get(kind)
    if reader is None:
        raise BadData(f"{where}: {kind} cannot be read from a stream: name the file itself")
    measured = _Measured(stream)
    summary = reader(cast(BinaryIO, measured), where)
    if kind != "weights":  # gigabytes, of which only the header was read
        summary.digests["content"] = measured.digest
    return summary


def _shards(stream: BinaryIO, where: str) -> Summary:
    summary = Summary("shards", {"format": shard_format.VERSION})
    counts = dict.fromkeys(("shards", "asks", "kept_tokens", "all_tokens"), 0)
    towers, domains, bits, channels = _Names(), _Names(), _Names(), _Names()
    ledger: Counter[str] = Counter(payload=0, scales=0, positions=0, scores=0, header=0)
    for shard in shard_format.read_shards(stream, where=where):
        counts["shards"] += 1
        counts["asks"] += len(shard.asks)
        counts["kept_tokens"] += len(shard.tokens)
        counts["all_tokens"] += shard.num_tokens
        towers.add(shard.tower)
        domains.add(shard.domain)
        bits.add(shard.bits)
        channels.add(shard.tokens.shape[1])
        ledger.update(shard_format.shard_bytes(shard))
    summary.counts = {
        **counts,
        "by_domain": domains.as_json(),
        "by_bits": bits.as_json(),
        "by_channels": channels.as_json(),
    }
    summary.digests["towers"] = towers.as_json()
    summary.ledger = dict(ledger)
    summary.ledger["end records"] = cast(_Measured, stream).num_bytes - sum(ledger.values())
    return summary


def _lessons(stream: BinaryIO, where: str) -> Summary:
    """Record by record: a lesson that stands twice is counted twice."""
    measured = cast(_Measured, stream)
    kinds, limits = {"lessons": lessons_format.VERSION}, lessons_format.LIMITS
    first = records.read_record(stream, kinds=kinds, limits=limits, where=where)
    assert first is not None  # there were bytes, or nobody would know the kind
    head = lessons_format.parse_head(first.header, first.tensors, where)
    counts = dict.fromkeys(("lessons", "asks", "answered_with_nothing", "lessons_with_logits"), 0)
    ledger = dict.fromkeys((*lessons_format.TENSORS, "scales", "header"), 0)
    ledger["header"] = end = first.num_bytes
    try:
        while True:
            place = f"{where}: the lesson at byte {end:,}"
            kinds = {"lesson": lessons_format.VERSION}
            record = records.read_record(stream, kinds=kinds, limits=limits, where=place)
            if record is None:
                break
            lesson = lessons_format.decode(record, place)
            end = measured.num_bytes
            counts["lessons"] += 1
            counts["asks"] += len(lesson.answers)
            counts["answered_with_nothing"] += lesson.answers.count("")
            counts["lessons_with_logits"] += lesson.logits is not None
            sizes = {name: array.nbytes for name, array in record.tensors.items()}
            for name, size in sizes.items():
                ledger["scales" if name.endswith(".scales") else name] += size
            ledger["header"] += record.num_bytes - sum(sizes.values())
    except records.CutShort:
        pass  # its writer is at work, or was killed: the next one goes on from here
    ledger["unfinished"] = measured.num_bytes - end
    return Summary(
        "lessons",
        {
            "format": lessons_format.VERSION,
            "bits": head.bits,
            "unfinished_bytes": ledger["unfinished"],
        },
        {"teacher": head.teacher, "vocabulary": head.vocabulary},
        counts,
        ledger,
    )


def _predictions(stream: BinaryIO, where: str) -> Summary:
    models, tasks, domains = _Names(), _Names(), _Names()
    sums = dict.fromkeys(predictions_format.ENTROPIES, 0.0)
    count = with_choices = 0
    lines = streams.lines(stream, where)
    for prediction in predictions_format.read_predictions(lines, where=where):
        count += 1
        with_choices += prediction.choices is not None
        models.add(prediction.model)
        tasks.add(prediction.task)
        domains.add(prediction.domain)
        for name in sums:
            sums[name] += prediction.entropy[name]
    return Summary(
        "predictions",
        {"format": predictions_format.VERSION},
        {"models": models.as_json()},
        {
            "predictions": count,
            "with_choices": with_choices,
            "by_task": tasks.as_json(),
            "by_domain": domains.as_json(),
            "average_entropy_nats": {name: total / max(count, 1) for name, total in sums.items()},
        },
        {"lines": cast(_Measured, stream).num_bytes},
    )


def _adaptation(stream: BinaryIO, where: str) -> Summary:
    adaptation = adaptation_format.read_adaptation(stream, where=where)
    held_out, quantiser = adaptation.held_out, adaptation.rate_aware
    facts = {
        "format": adaptation.file_version,
        "sequence": adaptation.sequence,
        "method": adaptation.method,
        "seed": adaptation.seed,
        "rate_aware": None if quantiser is None else vars(quantiser),
        "report": adaptation.report,
    }
    digests = {"base": adaptation.base, "overlay": overlay_digest(adaptation.overlay)}
    arrays = adaptation.overlay.values()
    summary = _overlay_summary("adaptation", facts, digests, arrays, stream)
    if held_out is not None:
        summary.counts |= {
            "held_out_frames": len(held_out.shards),
            "held_out_asks": held_out.num_asks,
        }
        frames = sum(shard.num_bytes for shard in held_out.shards)
        summary.ledger |= {"held-out frames": frames, "header": summary.ledger["header"] - frames}
    return summary


def _overlay(stream: BinaryIO, where: str) -> Summary:
    tensors, sequence = device_format.read_overlay_file(stream, where=where)
    facts = {"format": device_format.OVERLAY_KINDS["overlay"], "sequence": sequence}
    digests = {"overlay": overlay_digest(tensors)}
    return _overlay_summary("overlay", facts, digests, tensors.values(), stream)


def _overlay_summary(
    kind: Kind,
    facts: dict[str, Any],
    digests: dict[str, Any],
    arrays: Iterable[np.ndarray],
    stream: BinaryIO,
) -> Summary:
    sizes = [array.size for array in arrays]
    counts = {"tensors": len(sizes), "parameters": sum(sizes)}
    payload = 4 * sum(sizes)
    ledger = {"payload": payload, "header": cast(_Measured, stream).num_bytes - payload}
    return Summary(kind, facts, digests, counts, ledger)


def _update(stream: BinaryIO, where: str) -> Summary:
    update = update_format.read_update(stream, where=where)
    num_bytes = cast(_Measured, stream).num_bytes
    keys = [signature.key for signature in update.signatures]
    return Summary(
        "update",
        {
            "format": update.version,
            "sequence": update.sequence,
            "codec": update.codec,
            "bits_per_parameter": 8 * num_bytes / max(update.num_parameters, 1),
            "expires": None if update.expires is None else update_format.utc(update.expires),
            "signatures_of": keys,
        },
        {"base": update.base, "target": update.target, "model": update.model},
        {"parameters": update.num_parameters},
        {"payload": len(update.payload), **_header_bytes(update.header(), num_bytes, update)},
        update,
    )


def _header_bytes(
    header: dict[str, Any], num_bytes: int, update: update_format.Update | None = None
) -> dict[str, int]:
    """What is signed, the signatures, and all around them, as they stand in the file.

    The header is JSON in a string of JSON, so every quotation mark in it takes two bytes.
    """
    parts = {"header": "signed", "signatures": "signatures"}
    held = {
        kind: len(records.dump_json(records.dump_json(header[name]))) - 2
        for kind, name in parts.items()
        if name in header
    }
    payload = 0 if update is None else len(update.payload)
    return {**held, "framing": num_bytes - payload - sum(held.values())}


def _trust(stream: BinaryIO, where: str) -> Summary:
    found = trust_format.read_trust_list(stream, where=where)
    signatures = trust_format.signature_objects(found.signatures)
    trust = found.trust.as_json()
    return Summary(
        "trust",
        {
            "format": trust_format.VERSION,
            "trust": trust,
            "signatures_of": [signature.key for signature in found.signatures],
        },
        counts={"keys": len(found.trust.keys), "signatures": len(found.signatures)},
        ledger=_header_bytes(
            {"signed": trust, "signatures": signatures}, cast(_Measured, stream).num_bytes
        ),
    )


def _weights(stream: BinaryIO, where: str) -> Summary:
    head = records.read_head(stream, limits=WEIGHTS_LIMITS, where=where) or b""
    table = load_json(head[8:], f"{where}: the header")
    tensors, parameters = 0, Counter[str]()
    payload = 0
    try:
        for name, entry in table.items():
            if name != "__metadata__":
                tensors += 1
                parameters[entry["dtype"]] += int(np.prod(entry["shape"], dtype=object))
                payload = max(payload, int(entry["data_offsets"][1]))
    except (AttributeError, KeyError, TypeError, ValueError, IndexError):
        raise BadData(f"{where}: not a sound safetensors header") from None
    return Summary(
        "weights",
        counts={"tensors": tensors, "parameters_by_dtype": dict(sorted(parameters.items()))},
        ledger={"payload": payload, "header": len(head)},
    )


def _seen(stream: BinaryIO, where: str) -> Summary:
    state = load_json(stream.read(_SEEN_BYTES), where)
    if not isinstance(state, dict) or not isinstance(state.get("frames"), dict):
        raise BadData(f"{where}: not a state of sample --state")
    ledger = {"text": cast(_Measured, stream).num_bytes}
    counts = {"frames": len(state["frames"])}
    return Summary("seen", {"format": state.get("version")}, counts=counts, ledger=ledger)


_READERS: dict[Kind, Callable[[BinaryIO, str], Summary]] = {
    "shards": _shards,
    "lessons": _lessons,
    "predictions": _predictions,
    "adaptation": _adaptation,
    "overlay": _overlay,
    "update": _update,
    "trust": _trust,
    "weights": _weights,
    "seen": _seen,
}


# ---------------------------------------------------------------- folders


def summarize_device(path: Path) -> Summary:
    """A device folder, the digests of all its overlays verified. MissingInput, BadData."""
    device = device_format.Device.open(path)
    overlay = device.read_slot(device.current)  # not another in its place if it is damaged
    for slot in device.kept:
        device.read_slot(slot)
    state = device.as_json()
    settings = ("checkpoint", "revision", "family", "qformer_layers", "quantize", "groups", "lora")
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    return Summary(
        "device",
        {
            "format": device_format.VERSION,
            "sequence": device.sequence,
            "highest_sequence": device.highest_sequence,
            **{name: state[name] for name in settings},
            "signed_by": state["current"]["signed_by"],
            "trust": state["trust"],
            "keep": device.keep,
            "kept": [
                {name: slot[name] for name in ("sequence", "digest", "signed_by")}
                for slot in state["kept"]
            ],
        },
        {"current": device.digest, "tower": device.tower, "model": device.model},
        {"tensors": len(overlay), "parameters": sum(array.size for array in overlay.values())},
        {name: file.stat().st_size for name, file in sorted(files.items())},
    )


def summarize_checkpoint(path: Path) -> Summary:
    """A transformers checkpoint: its family, and what its safetensors headers say. No weights read.

    Raises: MissingInput if a file cannot be read, BadData.
    """
    try:
        config = load_json((path / "config.json").read_bytes(), f"{path}/config.json")
        files = {file.name: file for file in sorted(path.iterdir()) if file.is_file()}
    except OSError as error:
        raise MissingInput(f"{path}: {(error.strerror or '').lower()}") from None
    config = config if isinstance(config, dict) else {}
    parameters: Counter[str] = Counter()
    tensors = 0
    for name, file in files.items():
        if name.endswith(".safetensors"):
            with streams.binary_input(file) as stream:
                counts = _weights(stream, str(file)).counts
            tensors += counts["tensors"]
            parameters.update(counts["parameters_by_dtype"])
    return Summary(
        "checkpoint",
        {
            "family": str(config.get("model_type")),
            "architectures": config.get("architectures"),
            "has_weights": tensors > 0,
        },
        counts={
            "tensors": tensors,
            "parameters": sum(parameters.values()),
            "parameters_by_dtype": dict(sorted(parameters.items())),
        },
        ledger={name: file.stat().st_size for name, file in files.items()},
    )
