"""What a stream holds, one reader for each kind.

Token streams, labels and predictions are read one record at a time, and weights one entry of their
header at a time, so memory does not grow with their length.
"""

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import Any, BinaryIO, cast

from cdcca_cli import streams
from cdcca_cli.byte_streams import Measured
from cdcca_cli.errors import BadData
from cdcca_cli.formats import adaptation as adaptation_format
from cdcca_cli.formats import codebook as codebook_format
from cdcca_cli.formats import device_log, label_stream, lessons, records, shard_stream
from cdcca_cli.formats import labels as labels_format
from cdcca_cli.formats import overlay as overlay_format
from cdcca_cli.formats import predictions as predictions_format
from cdcca_cli.formats import shard as shard_format
from cdcca_cli.formats import trust as trust_format
from cdcca_cli.formats import update as update_format
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.overlay import Overlay
from cdcca_cli.inspection import weights as weights_format
from cdcca_cli.inspection.summary import Names, Summary
from cdcca_cli.text import load_json

_SEEN_BYTES = 1 << 28
_MOST_DTYPES = 64
_BYTES_OF_SHARDS = {
    "payload": ("tokens", "scales", "codes", "pictures"),
    "header": ("header", "index", "entropies", "shards", "end"),
}


def summarize(kind: str, stream: BinaryIO, where: str) -> Summary:
    """Read a stream of this kind to its end. Raises: BadData, and what its reader raises."""
    reader = _READERS.get(kind)
    if reader is None:
        raise BadData(f"{where}: {kind} cannot be read from a stream: name the file itself")
    measured = Measured(stream)
    summary = reader(cast(BinaryIO, measured), where)
    if kind != "weights":  # only its header was read
        summary.digests["content"] = measured.digest
        summary.ledger[summary.rest] = measured.num_bytes - sum(summary.ledger.values())
    return summary


def _shards(stream: BinaryIO, where: str) -> Summary:
    counts = dict.fromkeys(("shards", "questions", "kept_tokens", "all_tokens"), 0)
    towers, codebooks, domains, codecs, steps = (Names() for _ in range(5))
    ledger: Counter[str] = Counter()
    for shard in shard_stream.read_shards(stream, where=where, ledger=ledger):
        counts["shards"] += 1
        counts["questions"] += len(shard.questions)
        counts["kept_tokens"] += len(shard.positions)
        counts["all_tokens"] += shard.num_tokens
        towers.add(shard.tower)
        domains.add(shard.domain)
        codecs.add(shard.coding.codec)
        if shard.coding.codebook is not None:
            codebooks.add(shard.coding.codebook)
            steps.add(f"{shard.coding.step:.9g}")
    by_name = {"by_domain": domains, "by_codec": codecs, "by_step": steps}
    averages = {
        f"{what}_bytes_a_frame": sum(ledger[name] for name in names) / max(counts["shards"], 1)
        for what, names in _BYTES_OF_SHARDS.items()
    }
    is_old = ledger["positions"] and not ledger["shards"]
    return Summary(
        "shards",
        {"format": 1 if is_old else shard_format.VERSION},
        {"towers": towers.sorted(), "codebooks": codebooks.sorted()},
        {**counts, **{name: found.sorted() for name, found in by_name.items()}, **averages},
        {name: size for name, size in ledger.items() if size},
        rest="framing",
    )


def _labels(stream: BinaryIO, where: str) -> Summary:
    """Record by record: a label that is in the file twice counts twice."""
    teachers, vocabularies = Names(), Names()
    counts = dict.fromkeys(
        (
            "records",
            "labels",
            "answered_with_nothing",
            "cut",
            "with_distributions",
            "with_features",
        ),
        0,
    )
    ledger: Counter[str] = Counter()
    head: labels_format.Source | None = None
    with suppress(records.CutShort):  # a writer is at work or was killed: the next one continues
        while True:
            place = f"{where}: the record at byte {sum(ledger.values()):,}"
            limits = labels_format.LIMITS
            record = records.read_record(
                stream, kinds=label_stream.KINDS, limits=limits, where=place
            )
            if record is None:
                break
            sizes = {name: array.nbytes for name, array in record.tensors.items()}
            for name, size in sizes.items():
                ledger[name.partition(".")[0]] += size
            ledger["header"] += record.num_bytes - sum(sizes.values())
            if record.header["kind"] == "lessons":
                head = lessons.parse_head(record.header, record.tensors, place)
                continue
            if record.header["kind"] == "lesson":
                if head is None:
                    raise BadData(f"{place}: lessons without their head")
                found, source = lessons.decode(record, place), head
            else:
                entry = labels_format.decode(record, place)
                found, source = list(entry.labels.values()), entry.source
            teachers.add(source.name)
            vocabularies.add(source.vocabulary)
            counts["records"] += 1
            counts["labels"] += len(found)
            counts["answered_with_nothing"] += sum(not label.answer for label in found)
            counts["cut"] += sum(label.end == "length" for label in found)
            counts["with_distributions"] += sum(label.top is not None for label in found)
            counts["with_features"] += sum(label.queries is not None for label in found)
    return Summary(
        "labels",
        {"format": labels_format.VERSION if head is None else "lessons"},
        {"teachers": teachers.sorted(), "vocabularies": vocabularies.sorted()},
        counts,
        dict(ledger),
        rest="unfinished",
    )


def _predictions(stream: BinaryIO, where: str) -> Summary:
    models, tasks, domains = Names(), Names(), Names()
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
    averages = {
        name: min(total, sys.float_info.max) / max(count, 1) for name, total in sums.items()
    }
    counts = {"predictions": count, "with_choices": with_choices, "by_task": tasks.sorted()}
    return Summary(
        "predictions",
        {"format": predictions_format.VERSION},
        {"models": models.sorted()},
        {**counts, "by_domain": domains.sorted(), "average_entropy_nats": averages},
        rest="lines",
    )


def _adaptation(stream: BinaryIO, where: str) -> Summary:
    adaptation = adaptation_format.read_adaptation(stream, where=where)
    held_out, quantiser = adaptation.held_out, adaptation.rate_aware
    summary = _overlay_summary("adaptation", adaptation.overlay)
    summary.facts = {
        "format": adaptation.file_version,
        **{name: getattr(adaptation, name) for name in ("sequence", "method", "seed", "report")},
        "rate_aware": None if quantiser is None else vars(quantiser),
    }
    summary.digests["base"] = adaptation.base
    if held_out is not None:
        summary.counts["held_out_frames"] = len(held_out.shards)
        summary.counts["held_out_questions"] = held_out.num_questions
        summary.rest = "header and held-out frames"
    return summary


def _overlay(stream: BinaryIO, where: str) -> Summary:
    tensors, sequence = overlay_format.read_overlay_file(stream, where=where)
    summary = _overlay_summary("overlay", tensors)
    summary.facts = {"format": overlay_format.KINDS["overlay"], "sequence": sequence}
    return summary


def _overlay_summary(kind: str, overlay: Overlay) -> Summary:
    sizes = [array.size for array in overlay.values()]
    return Summary(
        kind,
        digests={"overlay": overlay_digest(overlay)},
        counts={"tensors": len(sizes), "parameters": sum(sizes)},
        ledger={"payload": 4 * sum(sizes)},
    )


def _update(stream: BinaryIO, where: str) -> Summary:
    """An update, its payload divided by what its codec spends bytes on. NewerFormat, BadData."""
    from cdcca_cli.downlink import codecs

    update = update_format.read_update(stream, where=where)
    num_bytes = update_format.write_update(BytesIO(), update)  # the very bytes that were read
    payload = {f"payload: {kind}": size for kind, size in codecs.byte_kinds(update).items()}
    return Summary(
        "update",
        {
            "format": update.version,
            "sequence": update.sequence,
            "codec": update.codec,
            "bits_per_parameter": 8 * num_bytes / max(update.num_parameters, 1),
            "expires": None if update.expires is None else update_format.utc(update.expires),
            "signatures_of": [signature.key for signature in update.signatures],
            **codecs.facts(update),
        },
        {"base": update.base, "target": update.target, "model": update.model},
        {"parameters": update.num_parameters},
        payload | _header_bytes(update.header()),
        rest="framing",
    )


def _trust(stream: BinaryIO, where: str) -> Summary:
    found = trust_format.read_trust_list(stream, where=where)
    signatures = trust_format.signature_objects(found.signatures)
    trust = found.trust.as_json()
    keys = [signature.key for signature in found.signatures]
    return Summary(
        "trust",
        {"format": trust_format.VERSION, "trust": trust, "signatures_of": keys},
        counts={"keys": len(found.trust.keys), "signatures": len(keys)},
        ledger=_header_bytes({"signed": trust, "signatures": signatures}),
        rest="framing",
    )


def _codebook(stream: BinaryIO, where: str) -> Summary:
    found = codebook_format.read_codebook(stream, where=where)
    signatures = codebook_format.signature_objects(found.signatures)
    return Summary(
        "codebook",
        {
            "format": codebook_format.VERSION,
            "sequence": found.sequence,
            "curve": found.curve.as_json(),
            "signatures_of": [signature.key for signature in found.signatures],
        },
        {"codebook": found.digest, "tower": found.tower, "teacher": found.teacher},
        {
            "tokens": found.num_tokens,
            "channels": found.channels,
            "components": found.components,
            "frames": found.num_frames,
        },
        {f"payload: {name}": array.nbytes for name, array in found.tensors().items()}
        | _header_bytes({"signed": found.signed(), "signatures": signatures}),
        rest="framing",
    )


def _header_bytes(header: dict[str, Any]) -> dict[str, int]:
    """The bytes of what is signed, and of the signatures, in a record's header.

    The header is JSON in a string of JSON, so every quotation mark in it takes two bytes.
    """
    parts = {"header": "signed", "signatures": "signatures"}
    return {
        kind: len(records.dump_json(records.dump_json(header[name]))) - 2
        for kind, name in parts.items()
        if name in header
    }


def weights(stream: BinaryIO, where: str) -> Summary:
    """The header of a safetensors file, without its tensors. BadData if it is not sound."""
    length = weights_format.header_bytes(stream, where)
    parameters: Counter[str] = Counter()
    num_tensors = payload = 0
    for tensor in weights_format.tensors(stream, length, where):
        num_tensors += 1
        parameters[tensor.dtype] += tensor.size
        payload = max(payload, tensor.end)
        if len(parameters) > _MOST_DTYPES:
            raise BadData(f"{where}: the header: more than {_MOST_DTYPES} dtypes")
    return Summary(
        "weights",
        counts={"tensors": num_tensors, "parameters_by_dtype": dict(sorted(parameters.items()))},
        ledger={"payload": payload, "header": 8 + length},
    )


def _log(stream: BinaryIO, where: str) -> Summary:
    devices, codes = Names(), Names()
    count = 0
    for count, text in enumerate(streams.lines(stream, where), 1):
        entry = device_log.parse_line(text, f"{where}:{count}")
        devices.add(entry.device)
        codes.add(entry.exit_code)
    by_name = {"by_device": devices.sorted(), "by_exit_code": codes.sorted()}
    return Summary("log", counts={"lines": count, **by_name}, rest="lines")


def _seen(stream: BinaryIO, where: str) -> Summary:
    state = load_json(stream.read(_SEEN_BYTES), where)
    if not isinstance(state, dict) or not isinstance(state.get("frames"), dict):
        raise BadData(f"{where}: not a state file of cdcca sample")
    version = records.field(state, "version", int, where)
    counts = {"frames": len(state["frames"])}
    return Summary("seen", {"format": version}, counts=counts, rest="text")


_READERS: dict[str, Callable[[BinaryIO, str], Summary]] = {
    "shards": _shards,
    "labels": _labels,
    "predictions": _predictions,
    "adaptation": _adaptation,
    "overlay": _overlay,
    "update": _update,
    "trust": _trust,
    "codebook": _codebook,
    "weights": weights,
    "log": _log,
    "seen": _seen,
}
