"""A few of the shipped frames, for tests that need real ones without taking long."""

import json
import shutil
from pathlib import Path

FRAMES = Path(__file__).parent.parent / "cdcca_cli" / "assets" / "frames"


def few_frames(folder: Path, name: str, number: int) -> Path:
    """Copy the first frames of a shipped folder (stream, heldout or source) with their manifest."""
    source = FRAMES / name
    folder.mkdir(parents=True, exist_ok=True)
    lines = (source / "frames.jsonl").read_text().splitlines()
    images = list(dict.fromkeys(json.loads(line)["image"] for line in lines))[:number]
    kept = [line for line in lines if json.loads(line)["image"] in images]
    (folder / "frames.jsonl").write_text("\n".join(kept) + "\n")
    for image in images:
        shutil.copy(source / image, folder / image)
    return folder
