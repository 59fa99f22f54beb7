"""The effect check of a device, or of an export that a server runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from cdcca_cli import streams
from cdcca_cli.errors import BadData, MissingInput, UsageError
from cdcca_cli.export import effect, folder, held_out, probe, takes
from cdcca_cli.export.effect import Effect
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.gguf import read_gguf
from cdcca_cli.formats.names import EXPORT_FILE
from cdcca_cli.formats.probe import Probe, parse_probe, read_probe
from cdcca_cli.numerics import ggml


def of_export(device: Device, out: Path, record: dict[str, Any], url: str) -> Effect:
    """Compare a server with the probe of the export that it should run.

    Raises: BadData if the export has none; as `check`.
    """
    if record["probe"] is None:
        raise BadData(
            f"{out}: the export has no probe to compare with: export again with `probe` made, or "
            "with the file that a mirror made (`to` probe)"
        )
    found = parse_probe(record["probe"], str(out / EXPORT_FILE))
    return check(device, found, url, is_exact(out, record), sees=_sees(record))


def of_device(device: Device, url: str, file: Path | None, frames: Path | None = None) -> Effect:
    """Compare a server with what a device holds.

    Args: file: a probe, an export's folder or its export.json; None: a probe is made, for all that
        llama.cpp takes. frames: labelled ones, for the gain on them.
    Raises: WrongBase for a probe of something else; as `check` and `probe.make`.
    """
    if file is None:
        overlay = device.read_overlay()
        made = probe.make(device, overlay, takes.carried(device, overlay))
        return check(device, made, url, None, frames)
    found = read_probe(file)
    found.check(device)
    out = file if file.is_dir() else file.parent
    try:
        record = folder.read_record(out)
    except (MissingInput, BadData):
        return check(device, found, url, None, frames)
    return check(device, found, url, is_exact(out, record), frames, sees=_sees(record))


def check(
    device: Device,
    found: Probe,
    url: str,
    exact: bool | None,
    frames: Path | None = None,
    *,
    sees: bool = True,
) -> Effect:
    """Ask a llama-server.

    Args: exact: as in `effect.judge`. sees: whether it must take pictures; else a server that takes
        none is asked the other questions.
    Raises: UsageError for another server; Unavailable, BadData.
    """
    from cdcca_cli.serving.address import Address
    from cdcca_cli.serving.llama import LlamaServer

    labelled = None if frames is None else held_out.read(frames)
    server = LlamaServer.open(Address.parse(url, "check", needs_model=False))
    if server is None:
        raise UsageError(f"{url}: is no llama-server: only its own interface can be checked")
    texts = tuple(one for one in found.questions if one.picture is None)
    if texts and not sees and not server.props.sees:
        streams.message(f"{url}: takes no pictures, as its export has no mmproj: asked without")
        found = replace(found, questions=texts)
    try:
        judged = effect.judge(found, effect.ask(server, found, device.profile()), exact)
        if labelled is None:
            return judged
        return held_out.judge(judged, server, device, labelled)
    finally:
        server.close()


def _sees(record: dict[str, Any]) -> bool:
    """Whether a server that runs an export must take pictures."""
    return record["to"] != "gguf" or "mmproj" in record["inputs"]


def is_exact(out: Path, record: dict[str, Any]) -> bool | None:
    """Whether the base of an export has its weights in float32 or float16; None if unknown."""
    base = record["inputs"].get("base")
    if base is None:
        return None
    path = out / "model.gguf" if "model.gguf" in record["files"] else Path(base["path"])
    try:
        tensors = read_gguf(path).tensors.values()
    except (MissingInput, BadData):
        return None
    return {one.kind for one in tensors if len(one.shape) > 1} <= {ggml.F32, ggml.F16}
