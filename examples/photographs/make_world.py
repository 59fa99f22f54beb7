"""Make the world: `python make_world.py --pictures FOLDER_OF_LABELLED_PICTURES -o WORLD`.

FOLDER has a folder of pictures for each kind, and perhaps train.txt and test.txt. WORLD gets, each
with its `frames.jsonl`:

    train-source   as photographed, tiled or whole       what student and teacher learn from
    train-target   the six shifted domains               what the teacher alone learns from
    stream         the six, of other pictures            what the device meets
    heldout        the six, of still other pictures      never sent
    source         as photographed, pictures of heldout  what must not be forgotten

and `world.json`: the kinds and the domains. `heldout/night.jsonl` and so on are the manifests of
one domain each. The labels of the stream are for scoring. Every line also has `scene`, which cdcca
ignores and `train.py` reads. The pictures stay where they are; frames are 96 by 96 pixels. The same
folder, options and seed give the same world.
"""

import argparse
import json
import multiprocessing
from dataclasses import asdict
from pathlib import Path

import beside_pair  # noqa: F401
import numpy as np
from drawing import to_jpeg
from kinds import Kind
from pictures import SOURCE, TARGETS, UNSEEN, Album, read_album
from scenes import draw_scene, make_scene, names_asked, prompt_lines

SEED = 2024
CHUNK = 200
COUNTS = {"train-source": 8000, "train-target": 14000, "stream": 360, "heldout": 360, "source": 240}
PARTS = {"train-source": "train", "train-target": "train", "source": "heldout"}


def domain_of(name: str, index: int) -> str:
    """The domain of a folder's frame: target folders go through the six in turn.

    Unseen kinds have two turns where the teacher learns: it sees them in no other domain.
    """
    if name in ("train-source", "source"):
        return SOURCE
    turns = [*TARGETS, UNSEEN] if name == "train-target" else TARGETS
    return turns[index % len(turns)]


def _write_chunk(job: tuple[Album, Path, str, int, int, int]) -> list[str]:
    """Write the frames from `start` to `stop` of a folder; returns their manifest lines."""
    album, folder, name, start, stop, seed = job
    known, unseen = ([kind.name for kind in kinds] for kinds in (album.known, album.unseen))
    lines = []
    for index in range(start, stop):
        rng = np.random.default_rng((seed, *name.encode(), index))
        domain = domain_of(name, index)
        scene = make_scene(album, domain, rng)
        frame = draw_scene(scene, album, PARTS.get(name, name), domain, rng)
        image = f"{name.replace('-', '')}{index:05d}.jpg"
        (folder / image).write_bytes(to_jpeg(frame))
        asked = names_asked(known, unseen, domain)
        for line in prompt_lines(image, scene, album.kinds, asked, domain, rng):
            lines.append(json.dumps({**line, "scene": scene}) + "\n")
    return lines


def write_folder(
    album: Album, world: Path, name: str, number: int, seed: int, processes: int
) -> None:
    """Write a folder of frames and its manifest."""
    folder = world / name
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        (album, folder, name, start, min(start + CHUNK, number), seed)
        for start in range(0, number, CHUNK)
    ]
    if processes > 1:
        with multiprocessing.Pool(processes) as pool:
            chunks = pool.map(_write_chunk, jobs, chunksize=1)
    else:
        chunks = [_write_chunk(job) for job in jobs]
    (folder / "frames.jsonl").write_text("".join(line for chunk in chunks for line in chunk))


def write_domains(world: Path) -> None:
    """A manifest for each domain of the held-out frames, beside the one for all."""
    lines = (world / "heldout" / "frames.jsonl").read_text().splitlines(keepends=True)
    for domain in TARGETS:
        some = "".join(line for line in lines if json.loads(line)["domain"] == domain)
        (world / "heldout" / f"{domain.replace(' ', '-')}.jsonl").write_text(some)


def write_world(
    album: Album, world: Path, counts: dict[str, int], seed: int, processes: int
) -> None:
    """Write everything; `world.json` last, so that it tells a whole world."""
    world.mkdir(parents=True, exist_ok=True)
    for name, number in counts.items():
        write_folder(album, world, name, number, seed, processes)
    write_domains(world)
    told = {
        "known": [asdict(kind) for kind in album.known],
        "unseen": [asdict(kind) for kind in album.unseen],
        "domains": [SOURCE, *TARGETS],
        "seed": seed,
    }
    (world / "world.json").write_text(json.dumps(told, indent=1) + "\n")


def read_kinds(world: Path) -> tuple[list[Kind], list[Kind]]:
    """The known and the unseen kinds of a world that was written."""
    told = json.loads((world / "world.json").read_text())
    known, unseen = (
        [Kind(**{**item, "near": tuple(item["near"])}) for item in told[key]]
        for key in ("known", "unseen")
    )
    return known, unseen


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=Path, required=True, help="a folder for each kind")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the world's folder")
    parser.add_argument("--kinds", type=int, default=16, help="kinds in all, those with the most")
    parser.add_argument("--unseen", type=int, default=4, help="how many of them the source lacks")
    parser.add_argument("--share", type=float, default=1.0, help="make only this share of frames")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    album = read_album(options.pictures, options.kinds, options.unseen)
    counts = {name: max(6, round(options.share * number)) for name, number in COUNTS.items()}
    write_world(album, options.output, counts, options.seed, options.processes)


if __name__ == "__main__":
    main()
