"""The files that Table 5 sends beside cdcca's own: what a link without cdcca would carry.

    python link_files.py FRAMES FOLDER [--images IMAGES] [--checkpoint CHECKPOINT]

    FOLDER/five/                  the first five frames with a manifest, for `cdcca sample`
    FOLDER/up/five.raw            their pixels as a camera gives them: RGB, 3 bytes each
    FOLDER/up/five.stored         their files as they lie there, one after the other
    FOLDER/up/five.jpeg           coded again as JPEG q75 (PIL's defaults otherwise)
    FOLDER/up/stream.*            the same of all frames
    FOLDER/down/student.weights   all weights of the checkpoint
    FOLDER/{up,down}/noise.*      random bytes, as many as the paper names; 20 MB that show the rate

One after the other, without names or lengths: so the baselines get no overhead at all. Frames of a
video are refused: no five of them are files.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import cdcca_cli
from cdcca_cli.datasets import Frame, load_image, read_frames

JPEG_QUALITY = 75
NOISE_BYTES = {  # the paper's 31.10 MB, 65.54 KB and 0.791 MB, in bytes
    "up/noise.raw": 5 * 1920 * 1080 * 3,
    "up/noise.tokens": 65_536,
    "up/noise.check": 20_000_000,
    "down/noise.update": 791_000,
}


def write_pictures(frames: Sequence[Frame], name: str, up: Path) -> None:
    """The three forms of these frames' pictures."""
    with (
        open(up / f"{name}.raw", "wb") as raw,
        open(up / f"{name}.stored", "wb") as stored,
        open(up / f"{name}.jpeg", "wb") as jpeg,
    ):
        for frame in frames:
            image = load_image(frame)
            raw.write(image.tobytes())
            stored.write(frame.image.read_bytes())
            image.save(jpeg, "jpeg", quality=JPEG_QUALITY)


def write_manifest(frames: Sequence[Frame], folder: Path) -> None:
    """These frames as a folder that `cdcca sample` takes, without their labels."""
    folder.mkdir()
    with open(folder / "frames.jsonl", "w") as manifest:
        for number, frame in enumerate(frames):
            name = f"{number}{frame.image.suffix}"
            shutil.copyfile(frame.image, folder / name)
            for question in frame.questions:
                line: dict[str, Any] = {"id": question.id, "image": name, "task": question.task}
                asked = {"prompt": question.prompt, "choices": question.choices}
                line |= {key: value for key, value in asked.items() if value is not None}
                manifest.write(json.dumps(line) + "\n")


def weight_files(checkpoint: str) -> list[Path]:
    """The safetensors files of a folder, of a shipped model, or of a hub id fetched before."""
    if checkpoint.startswith("shipped:"):
        folder = Path(cdcca_cli.__file__).parent / "assets" / checkpoint.removeprefix("shipped:")
    elif Path(checkpoint).is_dir():
        folder = Path(checkpoint)
    else:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(checkpoint, local_files_only=True))
    found = sorted(folder.glob("model*.safetensors"))
    if not found:
        sys.exit(f"{folder}: no model*.safetensors in it")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("frames")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images")
    parser.add_argument("--checkpoint", default="shipped:student")
    asked = parser.parse_args()
    frames = read_frames(asked.frames, images=asked.images)
    five = list(islice(frames, 5))
    if any(frame.position is not None for frame in five):
        sys.exit(f"{asked.frames}: a video: give its frames as pictures")
    up, down = asked.folder / "up", asked.folder / "down"
    for folder in (up, down):
        folder.mkdir(parents=True, exist_ok=True)
    write_manifest(five, asked.folder / "five")
    write_pictures(five, "five", up)
    write_pictures(list(frames), "stream", up)
    with open(down / "student.weights", "wb") as weights:
        for path in weight_files(asked.checkpoint):
            with open(path, "rb") as part:
                shutil.copyfileobj(part, weights)
    for name, num_bytes in NOISE_BYTES.items():
        (asked.folder / name).write_bytes(os.urandom(num_bytes))


if __name__ == "__main__":
    main()
