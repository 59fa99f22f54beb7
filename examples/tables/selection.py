"""The part of a stream that one seed has: a manifest of some of its frames, on stdout.

    python selection.py FRAMES SHARE SEED IMAGES > selection.jsonl

FRAMES is a folder or an annotation file, IMAGES the folder that the manifest's image names are
relative to. A frame is in if it is among the first `SHARE` of all frames when they are sorted by
SHA-256(seed, frame id): as many for each seed, the same on any machine, whatever the frames' order.
The manifest has them in the stream's order, with the questions and without their labels, which
nobody needs before scoring, and scores are of the whole stream.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from cdcca_cli import streams
from cdcca_cli.datasets import Frame, Frames, read_frames
from cdcca_cli.text import parse_share


def chosen(frames: Frames, share: float, seed: int) -> Iterator[Frame]:
    """The frames of a seed, at least one."""
    order = sorted(_digest(frame, seed) for frame in frames)
    last = order[max(1, round(share * len(order))) - 1]
    return (frame for frame in frames if _digest(frame, seed) <= last)


def _digest(frame: Frame, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{frame.id}".encode()).digest()


def lines(frame: Frame, images: Path) -> Iterator[str]:
    """A frame's lines of the manifest. Raises: ValueError if its image is not below `images`."""
    name = frame.image.absolute().relative_to(images.absolute()).as_posix()
    for question in frame.questions:
        line = {"id": question.id, "image": name, "task": question.task, "domain": frame.domain}
        line |= {"prompt": question.prompt, "choices": question.choices, "kind": question.kind}
        yield json.dumps({key: value for key, value in line.items() if value is not None})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("frames", type=Path)
    parser.add_argument("share", type=parse_share)
    parser.add_argument("seed", type=int)
    parser.add_argument("images", type=Path)
    asked = parser.parse_args()
    folder = None if asked.frames.is_dir() else asked.images
    frames = read_frames(asked.frames, images=folder)
    for frame in chosen(frames, asked.share, asked.seed):
        for line in lines(frame, asked.images):
            streams.emit(line)


if __name__ == "__main__":
    main()
