"""`cdcca inspect`: what any of the files is."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdcca_cli import streams

if TYPE_CHECKING:
    from cdcca_cli.formats.kind import Kind
    from cdcca_cli.inspection.summary import Summary


def command(
    file: Annotated[
        str | None, typer.Argument(help="A file or folder; none, or -, is stdin.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object; off a terminal it is that anyway.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr.")] = False,
) -> None:
    """Tell what a file is: its kind, digests and counts, and what its bytes are spent on.

    Token shards, predictions, a teacher's lessons, adaptations, updates, overlays, device folders,
    checkpoints, frames, manifests and annotation files, zstd around them or not. Everything is
    checked on the way: a damaged file is refused, so this is also how a file is verified.

    Example: cdcca sample frames/ -m device/ | tee uplink.tokens | cdcca inspect
    """
    streams.set_quiet(quiet)
    summary = _summarize(file)
    if json or not streams.is_terminal("stdout"):
        streams.emit_json({"file": streams.input_name(file), **summary.as_json()})
    else:
        streams.emit_facts(_rows("", {"file": streams.input_name(file), **summary.as_json()}))


def _summarize(file: str | None) -> "Summary":
    from cdcca_cli.formats import kind as kinds
    from cdcca_cli.inspection import summary as summaries

    path = Path(file or "-")
    if path.name in ("device.json", "config.json"):
        path = path.parent
    if path.is_dir():
        kind = kinds.kind_of_folder(path)
        if kind == "device":
            return summaries.summarize_device(path)
        return summaries.summarize_checkpoint(path) if kind == "checkpoint" else _frames(path, kind)
    with streams.binary_input(file) as source:
        kind, stream = kinds.sniff(source, streams.input_name(file))
        if kind not in ("image", "video", "manifest", "annotations") or path == Path("-"):
            return _with_codec(summaries.summarize(kind, stream, streams.input_name(file)))
    return _frames(path, kind)


def _with_codec(summary: "Summary") -> "Summary":
    """An update's payload byte by byte, and what its codec tells. NewerFormat, BadData."""
    if summary.update is not None:
        from cdcca_cli.downlink import codecs

        del summary.ledger["payload"]
        kinds = codecs.byte_kinds(summary.update)
        summary.ledger = {f"payload: {kind}": size for kind, size in kinds.items()} | summary.ledger
        summary.facts |= codecs.facts(summary.update)
    return summary


def _frames(path: Path, kind: "Kind") -> "Summary":
    """Frames and what is asked of them; the images of a manifest or annotations need not be there.

    Raises: what `datasets` raises for a source that is not sound.
    """
    from collections import Counter

    from cdcca_cli.datasets import load_image, read_frames
    from cdcca_cli.datasets.annotations import read_pictures
    from cdcca_cli.datasets.manifest import Manifest
    from cdcca_cli.datasets.sources import MANIFEST_NAME
    from cdcca_cli.inspection.summary import Summary

    summary = Summary(kind)
    manifest = path / MANIFEST_NAME if path.is_dir() else path
    if kind == "annotations":
        frames: Iterable[Any] = read_pictures(path).values()
    elif kind == "manifest" or (kind == "frames" and manifest.exists() and path.is_dir()):
        frames = Manifest(manifest, check_images=False)
    else:
        frames = read_frames(path)
        if kind == "image":
            width, height = load_image(next(iter(read_frames(path)))).size
            summary.facts = {"width": width, "height": height}
    counts, domains = Counter[str](), Counter[str]()
    for frame in frames:
        counts["frames"] += 1
        counts["asks"] += len(frame.asks)
        domains[str(frame.domain or "(none)")] += 1
        for ask in frame.asks:
            counts[ask.task] += 1
            for label in ("choices", "answers", "captions"):
                counts[f"with_{label}"] += getattr(ask, label) is not None
    summary.counts = {**counts, "by_domain": dict(sorted(domains.items()))}
    return summary


def _rows(prefix: str, value: object) -> Iterator[tuple[str, object]]:
    """Nested objects as lines: `bytes: payload` and its number."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if str(key).startswith("sha256:"):
                yield prefix, f"{key} ({inner} times)"
            else:
                yield from _rows(f"{prefix}: {key}" if prefix else str(key), inner)
    elif value is not None and value != []:
        words = ", ".join(map(str, value)) if isinstance(value, list) else value
        yield prefix.replace("_", " "), words
