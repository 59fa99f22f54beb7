"""Labels for many files of shards with Ray Data, on a cluster or on this machine.

    python label_ray.py uplinks/*.shards --teacher TEACHER --student mirror -o labels --actors 8

NAME.shards gives labels/NAME.labels, with the bytes that `cdcca label NAME.shards` gives. A file is
cut into the parts that the teacher answers at once. Actors hold the teacher; each labels a part and
writes it as labels/.parts/NAME/00001.labels. When a file has all its parts, they are joined.

Started again, it leaves out files that have labels, and parts that are there. A bad shard is named
and left out, as `cdcca label` does. A part or a file that fails is named, and the others go on; the
next run tries it again.

Inputs and the folder of labels are where all nodes see them, or addresses (s3://bucket/uplinks/1).
One folder is for one teacher. Exit code: 65 if something failed.
"""

import argparse
import io
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import ray
from fsspec.core import url_to_fs

from cdcca_cli import config, remote, streams
from cdcca_cli.errors import BadData, CdccaError
from cdcca_cli.formats import shard_stream
from cdcca_cli.formats.label_stream import Writer
from cdcca_cli.skipped import Skipped
from cdcca_cli.teachers.labelling import Lacks, add_missing
from cdcca_cli.teachers.opening import open_teacher
from cdcca_cli.teachers.settings import LabelSettings, ServerSettings

Row = dict[str, Any]
"""One part of a file, or all that is known of the file (part 0, with the number of parts)."""
HOW = LabelSettings()


def row(file: str, part: int, **known: Any) -> Row:
    """A row with all its columns."""
    empty = {"parts": 0, "shards": b"", "labels": 0, "left_out": 0, "error": ""}
    return {"file": file, "part": part, **empty, **known}


def labels_of(folder: str, file: str) -> str:
    """Where the labels of a file of shards go."""
    return f"{folder}/{stem(file)}.labels"


def part_of(folder: str, file: str, part: int) -> str:
    """Where the labels of a part go."""
    return f"{folder}/.parts/{stem(file)}/{part:05}.labels"


def stem(file: str) -> str:
    """The file's name without folder and ending."""
    return os.path.splitext(file.rpartition("/")[2])[0]


def exists(name: str) -> bool:
    """Whether a path or an address is there."""
    system, path = url_to_fs(name)
    return bool(system.exists(path))


def make_folder(name: str) -> None:
    """Make a folder; object stores need none."""
    system, path = url_to_fs(name)
    system.makedirs(path, exist_ok=True)


def cut(one: Row, folder: str) -> Iterator[Row]:
    """The parts of a file that have no labels yet, then a row with the number of its parts."""
    from cdcca_cli.teachers.local import chunks

    file, number, fault = one["file"], 0, ""
    skipped = Skipped()
    try:
        with streams.binary_input(file) as source:
            shards = shard_stream.read_all([(file, source)], skipped)
            asked = (shard for shard in shards if shard.questions)
            for number, part in enumerate(chunks(asked, HOW.teacher_batch_size), 1):
                if exists(part_of(folder, file, number)):
                    continue
                data = io.BytesIO()
                with shard_stream.writer(data) as write:
                    for shard in part:
                        write(shard)
                yield row(file, number, shards=data.getvalue())
    except CdccaError as error:
        fault = str(error)
    yield row(file, 0, parts=number, left_out=skipped.count, error=fault)


class Labeller:
    """An actor with a teacher."""

    def __init__(self, teacher: str, student: str | None, folder: str, threads: int | None) -> None:
        self.folder = folder
        on = config.Runtime(threads=threads)
        on.set_threads()
        self.teacher = open_teacher(
            teacher,
            HOW,
            ServerSettings(),
            on,
            lambda digest: config.device(student, "student").codebook_of(digest),
            Skipped(),
        )

    def __call__(self, one: Row) -> Row:
        """Write the labels of a part; a fault is a word in its row, and no end of the job."""
        if not one["part"]:
            return one
        name = part_of(self.folder, one["file"], one["part"])
        skipped, count, fault = Skipped(), 0, ""
        try:
            make_folder(name.rpartition("/")[0])
            with streams.binary_output(name, "") as out:
                shards = shard_stream.read_shards(io.BytesIO(one["shards"]), where=one["file"])
                write = Writer(out, name, HOW.label_bits, None)
                count = add_missing(self.teacher, shards, write, Lacks(), skipped)
        except Exception as error:  # whatever it is, the other rows go on
            kind = "" if isinstance(error, CdccaError) else f"{type(error).__name__}: "
            fault = f"{one['file']}, part {one['part']}: {kind}{error}"
        return row(one["file"], one["part"], labels=count, left_out=skipped.count, error=fault)


def join(folder: str, file: str, parts: int) -> None:
    """Make the labels of a file from those of its parts."""
    with streams.binary_output(labels_of(folder, file), "") as out:
        for part in range(1, parts + 1):
            with streams.binary_input(part_of(folder, file, part)) as source:
                shutil.copyfileobj(source, out)
    system, path = url_to_fs(f"{folder}/.parts/{stem(file)}")
    if system.exists(path):
        system.rm(path, recursive=True)


def run(wanted: argparse.Namespace) -> int:
    """Label the files. Returns: the exit code."""
    folder = wanted.output.rstrip("/")
    names = [stem(file) for file in wanted.shards]
    if len(set(names)) < len(names):
        raise BadData("two files have one name: their labels would be one file")
    make_folder(folder)
    files = [file for file in wanted.shards if not exists(labels_of(folder, file))]
    left = len(wanted.shards) - len(files)
    streams.message(f"{len(files):,} files to label, {left:,} have labels")
    if not files:
        return 0
    # A block for each part, so that actors share the parts of one file.
    ray.data.DataContext.get_current().target_max_block_size = 1
    rows = (
        ray.data.from_items([{"file": file} for file in files])
        .flat_map(cut, fn_kwargs={"folder": folder}, num_cpus=0)
        .map(
            Labeller,
            fn_constructor_args=(wanted.teacher, wanted.student, folder, wanted.threads),
            compute=ray.data.ActorPoolStrategy(size=wanted.actors),
            num_cpus=wanted.cpus,
            num_gpus=wanted.gpus,
        )
    )
    counts: dict[str, int] = defaultdict(int)
    parts, faults = {}, defaultdict(list)
    for done in rows.iter_rows():
        counts["labels"] += done["labels"]
        counts["left_out"] += done["left_out"]
        if done["error"]:
            faults[done["file"]].append(done["error"])
            streams.complain(done["error"])
        if not done["part"]:
            parts[done["file"]] = done["parts"]
    for file in files:
        if file in parts and not faults[file]:
            join(folder, file, parts[file])
    failed = sum(bool(faults[file]) for file in files)
    streams.message(
        f"{counts['labels']:,} labels written, {counts['left_out']:,} shards or questions left "
        f"out, {failed:,} of {len(files):,} files failed"
    )
    return BadData.exit_code if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("shards", nargs="+")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", help="mirror, for the codebook of coded tokens")
    parser.add_argument("-o", "--output", required=True, help="folder of labels")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--gpus", type=float, default=0, help="of each actor")
    parser.add_argument("--cpus", type=float, default=1, help="of each actor")
    parser.add_argument("--threads", type=int, help="of each actor")
    wanted = parser.parse_args()
    for name in ("teacher", "student", "output"):
        if os.path.exists(getattr(wanted, name) or ""):
            setattr(wanted, name, os.path.abspath(getattr(wanted, name)))
    if not remote.is_address(wanted.output):
        wanted.output = os.path.abspath(wanted.output)
    wanted.shards = [
        file if remote.is_address(file) else os.path.abspath(file) for file in wanted.shards
    ]
    streams.set_stage("label_ray")
    ray.init()  # the cluster of RAY_ADDRESS, else this machine
    try:
        return run(wanted)
    except CdccaError as error:
        streams.complain(str(error))
        return error.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
