"""What a device folder, a checkpoint or a source of frames holds."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cdcca_cli import files, streams
from cdcca_cli.errors import BadData, MissingInput
from cdcca_cli.formats import device_files
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.names import CODEBOOK_FILE
from cdcca_cli.inspection.contents import weights
from cdcca_cli.inspection.summary import Summary
from cdcca_cli.text import read_json

_CONFIG_BYTES = 1 << 24
_DEVICE_FACTS = (
    *("highest_sequence", "checkpoint", "revision", "family", "qformer_layers", "quantize"),
    *("groups", "lora", "trust", "keep"),
)


def summarize_device(path: Path) -> Summary:
    """A device folder, the digests of all its files verified. MissingInput, BadData."""
    device = Device.open(path)
    overlay = device.read_slot(device.current)  # not another in its place if it is damaged
    for slot in device.kept:
        device.read_slot(slot)
    coding = device.codebook_slot
    if coding is not None:
        device_files.read_codebook(path, coding, device.settings.tower)
    try:
        device.profile()
        has_profile = True
    except MissingInput:
        has_profile = False
    codebooks = list(map(device_files.read_named_codebook, device_files.codebook_paths(path)))
    state = device.as_json()
    return Summary(
        "device",
        {
            "format": state["version"],
            "sequence": device.sequence,
            **{name: state[name] for name in _DEVICE_FACTS},
            "signed_by": state["current"]["signed_by"],
            "profile": has_profile,
            "kept": [
                {name: slot[name] for name in ("sequence", "digest", "signed_by")}
                for slot in state["kept"]
            ],
            "codebook": coding and {"sequence": coding.sequence, "signed_by": coding.signed_by},
        },
        {
            "current": device.digest,
            "tower": device.settings.tower,
            "model": device.model,
            "codebook": coding and coding.digest,
        },
        {
            "tensors": len(overlay),
            "parameters": sum(array.size for array in overlay.values()),
            "codebooks": len(codebooks),
        },
        _sizes(path, "**/*"),
    )


def summarize_export(path: Path) -> Summary:
    """A folder of `export`, the digests of all its files verified. MissingInput, BadData."""
    from cdcca_cli.export import folder

    record = folder.read_record(path)
    for name, one in record["files"].items():
        if folder.file_digest(path / name) != one["sha256"]:
            raise BadData(f"{path / name}: is not what was exported: export again")
    device = record["device"]
    return Summary(
        "export",
        {
            "to": record["to"],
            "sequence": device["sequence"],
            "groups": device["groups"],
            "dropped": sorted(record["dropped"]),
            "unchecked": record["unchecked"],
            "inputs": {name: one["path"] for name, one in record["inputs"].items()},
            "probe": record["probe"] is not None,
        },
        {
            "overlay": device["overlay"],
            "model": device["model"],
            **{name: one["sha256"] for name, one in record["files"].items()},
        },
        {"placed": record["placed"]},
        _sizes(path, "**/*"),
    )


def summarize_checkpoint(path: Path) -> Summary:
    """A checkpoint: its family and the headers of its weights. MissingInput, BadData."""
    config_file = path / "config.json"
    config = read_json(config_file, _CONFIG_BYTES)
    if not isinstance(config, dict):
        raise BadData(f"{config_file}: expected an object")
    parameters: Counter[str] = Counter()
    num_tensors = 0
    sizes = _sizes(path, "*")
    for name in sizes:
        if name.endswith(".safetensors") and name != CODEBOOK_FILE:
            with streams.binary_input(path / name) as stream:
                counts = weights(stream, str(path / name)).counts
            num_tensors += counts["tensors"]
            parameters.update(counts["parameters_by_dtype"])
    return Summary(
        "checkpoint",
        {
            "family": str(config.get("model_type")),
            "architectures": config.get("architectures"),
            "has_weights": num_tensors > 0,
        },
        counts={
            "tensors": num_tensors,
            "parameters": sum(parameters.values()),
            "parameters_by_dtype": dict(sorted(parameters.items())),
        },
        ledger=sizes,
    )


def _sizes(path: Path, pattern: str) -> dict[str, int]:
    try:
        return {
            file.relative_to(path).as_posix(): file.stat().st_size
            for file in sorted(path.glob(pattern))
            if file.is_file()
        }
    except OSError as error:
        raise MissingInput(files.reason(path, error)) from None


def summarize_frames(path: Path, kind: str) -> Summary:
    """Frames and their questions; images of a manifest or annotation file need not exist."""
    from cdcca_cli.datasets import load_image, read_frames
    from cdcca_cli.datasets.annotations import read_pictures
    from cdcca_cli.datasets.manifest import Manifest
    from cdcca_cli.datasets.sources import MANIFEST_NAME

    summary = Summary(kind)
    manifest = path / MANIFEST_NAME if path.is_dir() else path
    if kind == "annotations":
        frames: Iterable[Any] = read_pictures(path).values()
    elif kind == "manifest" or (kind == "frames" and manifest.exists() and path.is_dir()):
        frames = Manifest(manifest, check_images=False)
    else:
        frames = read_frames(path)
        if kind == "image":
            width, height = load_image(next(iter(frames))).size
            summary.facts = {"width": width, "height": height}
    counts, domains = Counter[str](), Counter[str]()
    for frame in frames:
        counts["frames"] += 1
        counts["questions"] += len(frame.questions)
        domains[str(frame.domain or "(none)")] += 1
        for question in frame.questions:
            counts[question.task] += 1
            for label in ("choices", "answers", "captions"):
                counts[f"with_{label}"] += getattr(question, label) is not None
    summary.counts = {**counts, "by_domain": dict(sorted(domains.items()))}
    return summary
