"""Large files of labels: writing, joining, scanning, reading, and going on after SIGKILL.

    python examples/benchmarks/labels.py [--count 1000000] [--files 1000] [--reads 10000]
        [--kills 20] [--killed-count 20000]

Records are synthetic: one question each, an answer and the 8 likeliest of each of its tokens. They
are written into many files, and `cat` makes one of these. In processes of their own the file is
scanned by its headers (as `distill` does), labels are read by random keys, and it is scanned whole
with all sums (as `label` does before it adds to a file). Times are of the CPU, but that of `cat`;
memory is the peak beyond the imports. The last row is a writer that is killed at random moments and
started again until it is done; the file must equal that of a writer which was left alone.
"""

import argparse
import hashlib
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np

from cdcca_cli import streams
from cdcca_cli.formats import label_stream
from cdcca_cli.formats.label_stream import Labels, ShardKey
from cdcca_cli.formats.label_tops import Top
from cdcca_cli.formats.labels import Entry, Label, Source

SOURCE = Source("https://teacher.example/v1#large", "sha256:" + "70" * 32)
COLOURS = ("red", "green", "blue", "yellow", "a black dog", "two people on a bicycle")


def key(number: int) -> ShardKey:
    """The key of a shard with one question."""
    payload, question = (
        f"sha256:{hashlib.sha256(f'{name} {number}'.encode()).hexdigest()}"
        for name in ("payload", "question")
    )
    return ShardKey(payload, (question,))


@cache
def tops() -> list[Top]:
    """Distributions of 2 to 9 answer tokens."""
    generator = np.random.default_rng(0)
    made = []
    for place in range(64):
        logp_AV = np.log(generator.dirichlet(np.full(50, 0.1), 2 + place % 8) + 1e-9)
        ids_AK = np.argsort(-logp_AV, axis=1)[:, :8]
        logp_AK = np.take_along_axis(logp_AV, ids_AK, 1).astype(np.float32)
        rest_A = np.log(np.maximum(1 - np.exp(logp_AK).sum(1), 1e-9)).astype(np.float32)
        made.append(Top(logp_AK, rest_A, ids_AK.astype(np.int32)))
    return made


def answer(number: int) -> str:
    return f"{COLOURS[number % len(COLOURS)]} {number}"


def entry(number: int) -> Entry:
    found = key(number)
    label = Label(answer(number), nats=number % 100 / 50, end="stop", top=tops()[number % 64])
    return Entry(f"frames/{number:07d}.jpg", found.payload, SOURCE, {found.questions[0]: label})


def write(path: Path, first: int, end: int) -> None:
    """The records of these numbers that the file does not have yet, in order."""
    with label_stream.writing(path, 16, teacher=SOURCE.name) as file:
        assert file.labels is not None
        for number in range(first, end):
            if not file.labels.has(key(number), 0):
                file(entry(number))


# ---------------------------------------------------------------- in processes of their own


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def scanned(path: Path, count: int, reads: int, verify: bool) -> list[str]:
    before, begin = peak_mb(), time.process_time()
    with path.open("rb", buffering=0) as file:
        found = Labels([(file, path.name)], verify=verify)
        cells = [f"{time.process_time() - begin:.1f} s", f"{peak_mb() - before:.0f} MB"]
        assert len(found) == count
        if verify:
            return cells
        source = random.Random(0)
        numbers = [source.randrange(count) for _ in range(reads)]
        found.has(key(0), 0)  # the index is sorted when it is first asked
        begin = time.process_time()
        for number in numbers:
            read = found.read(key(number), 0)
            assert read is not None and read[0].answer == answer(number)
        each = (time.process_time() - begin) / max(reads, 1)
        return [*cells, f"{1e6 * each:,.0f} µs, {peak_mb() - before:.0f} MB"]


def _told(call: Callable[..., list[str]], result: Path, *arguments: object) -> None:
    streams.set_quiet(True)
    result.write_text("|".join(call(*arguments)))


def alone(call: Callable[..., list[str]], result: Path, *arguments: object) -> list[str]:
    """What a function gives in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(
        target=_told, args=(call, result, *arguments)
    )
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{call.__name__} failed with {process.exitcode}")
    return result.read_text().split("|")


def _writer(path: Path, count: int) -> None:
    streams.set_quiet(True)
    write(path, 0, count)


def killed(folder: Path, count: int, kills: int) -> int:
    """How often a writer was killed before it was done; an error if the bytes are others."""
    context = multiprocessing.get_context("fork")
    whole, path = folder / "whole", folder / "killed"
    begin = time.monotonic()
    write(whole, 0, count)
    lasted = time.monotonic() - begin
    source, num_kills = random.Random(0), 0
    while True:
        process = context.Process(target=_writer, args=(path, count))
        process.start()
        if num_kills < kills:
            process.join(source.uniform(0, 2 * lasted / kills))
            if process.exitcode is None and process.pid is not None:
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                num_kills += 1
                continue
        process.join()
        if process.exitcode:
            raise SystemExit(f"the writer failed with {process.exitcode}")
        if path.read_bytes() != whole.read_bytes():
            raise SystemExit("a writer that was killed gave other bytes")
        return num_kills


# ---------------------------------------------------------------- the table


def rows(given: argparse.Namespace, folder: Path) -> Iterator[list[str]]:
    count, num_files = given.count, given.files
    yield ["", "figures"]
    yield ["---", "---"]
    begin, names = time.process_time(), []
    for number in range(num_files):
        names.append(folder / f"part-{number:05d}")
        write(names[-1], number * count // num_files, (number + 1) * count // num_files)
    took, size = time.process_time() - begin, sum(name.stat().st_size for name in names)
    yield [
        f"{count:,} records written",
        f"{1e6 * took / count:.0f} µs and {size // count:,} bytes each",
    ]
    joined, begin = folder / "joined", time.monotonic()
    with joined.open("wb") as out:
        subprocess.run(["cat", *names], stdout=out, check=True)
    took = time.monotonic() - begin
    yield [
        f"`cat` of {num_files:,} files",
        f"{size / 1e6:,.0f} MB, {took:.1f} s",
    ]
    for name in names:
        name.unlink()
    result = folder / "result"
    *cells, reads = alone(scanned, result, joined, count, given.reads, False)
    yield ["scan of the headers", ", ".join(cells)]
    yield [f"each of {given.reads:,} random reads", reads]
    yield ["scan with all sums", ", ".join(alone(scanned, result, joined, count, 0, True))]
    joined.unlink()
    num_kills = killed(folder, given.killed_count, given.kills)
    yield [f"{given.killed_count:,} records, killed {num_kills} times", "the same bytes"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--reads", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--killed-count", type=int, default=20_000)
    given = parser.parse_args()
    streams.set_quiet(True)
    with tempfile.TemporaryDirectory() as folder:
        for cells in rows(given, Path(folder)):
            sys.stdout.write(f"| {' | '.join(cells)} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
