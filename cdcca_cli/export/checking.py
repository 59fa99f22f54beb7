"""The effect check of a device, or of an export that a server runs."""

from pathlib import Path
from typing import Any

from cdcca_cli.errors import BadData, MissingInput, UsageError
from cdcca_cli.export import effect, folder, held_out, probe, takes
from cdcca_cli.export.effect import Effect
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.gguf import read_gguf
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
    found = parse_probe(record["probe"], str(out / folder.FILE_NAME))
    return check(device, found, url, is_exact(out, record))


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
    return check(device, found, url, is_exact(out, record), frames)


def check(
    device: Device, found: Probe, url: str, exact: bool | None, frames: Path | None = None
) -> Effect:
    """Ask a llama-server. Raises: UsageError for another server; Unavailable, BadData."""
    from cdcca_cli.serving.address import Address
    from cdcca_cli.serving.llama import LlamaServer

    labelled = None if frames is None else held_out.read(frames)
    server = LlamaServer.open(Address.parse(url, "check", needs_model=False))
    if server is None:
        raise UsageError(f"{url}: is no llama-server: only its own interface can be checked")
    try:
        judged = effect.judge(found, effect.ask(server, found, device.profile()), exact)
        if labelled is None:
            return judged
        return held_out.judge(judged, server, device, labelled)
    finally:
        server.close()


def is_exact(out: Path, record: dict[str, Any]) -> bool | None:
    """Whether the base of an export has its weights in float32 or float16; None if unknown."""
    if record["to"] != "gguf":
        return None
    path = out / "model.gguf"
    if "model.gguf" not in record["files"]:
        path = Path(record["inputs"]["base"]["path"])
    try:
        tensors = read_gguf(path).tensors.values()
    except (MissingInput, BadData):
        return None
    return {one.kind for one in tensors if len(one.shape) > 1} <= {ggml.F32, ggml.F16}
