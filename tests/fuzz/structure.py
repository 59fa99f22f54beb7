"""Runs the fuzz over structure and counts what came out.

    python -m tests.fuzz.structure --cases 1000000 --jobs 2      # all kinds, a table at the end
    python -m tests.fuzz.structure --kind shards --number 123    # one case, with its traceback

A case fails if anything but a `CdccaError` comes out (or that class itself, which is exit 1), if it
takes more than 2 seconds of the processor, or if memory grows by more than 256 MiB.
"""

import argparse
import gc
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from cdcca_cli import streams
from cdcca_cli.errors import CdccaError
from tests.fuzz.readers import KINDS, Kind

MOST_SECONDS = 2.0
MOST_KIB = 256 << 10
_CHUNK = 500


@dataclass
class Outcome:
    """What came of the cases of one kind."""

    cases: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    most_kib: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def add(self, other: "Outcome") -> None:
        self.cases += other.cases
        self.seconds += other.seconds
        self.slowest = max(self.slowest, other.slowest)
        self.most_kib = max(self.most_kib, other.most_kib)
        self.classes += other.classes
        self.faults += other.faults


def rng_of(kind: Kind, seed: int, number: int) -> random.Random:
    return random.Random(f"{kind.name} {seed} {number}")


def run(kind: Kind, seed: int, numbers: Iterable[int]) -> Outcome:
    """Run these cases in this process."""
    outcome = Outcome()
    with _quiet(), _folder() as folder, _alone():
        _forget_peak()
        before = max(_kib("VmRSS"), _kib("VmHWM"))
        for number in numbers:
            began = time.process_time()
            case = kind.change(rng_of(kind, seed, number))
            prepared = time.process_time()
            name = f"--kind '{kind.name}' --seed {seed} --number {number}"
            try:
                kind.read(case, folder)
                found = "read"
            except CdccaError as error:
                found = type(error).__name__
                if type(error) is CdccaError or not str(error):
                    outcome.faults.append(f"{name}: {found}: {error}"[:500])
            except Exception as error:
                found = f"BUG {type(error).__name__}"
                at = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{Path(at.filename).name}:{at.lineno}"
                outcome.faults.append(f"{name}: {place}: {type(error).__name__}: {error}"[:500])
            done = time.process_time()
            outcome.classes[found] += 1
            outcome.cases += 1
            outcome.seconds += done - began
            outcome.slowest = max(outcome.slowest, done - prepared)
            if done - prepared > MOST_SECONDS:
                outcome.faults.append(f"{name}: took {done - prepared:.1f} s")
            grown = _kib("VmHWM") - before
            if grown > max(outcome.most_kib, 0):
                outcome.most_kib = grown
                if grown > MOST_KIB:
                    outcome.faults.append(f"{name}: memory grew by {grown >> 10} MiB")
    return outcome


@contextmanager
def _alone() -> Iterator[None]:
    """Inside, the collector passes over what other tests left, whose time is not a reader's."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _quiet() -> Iterator[None]:
    before = streams.is_quiet()
    streams.set_quiet(True)
    try:
        yield
    finally:
        streams.set_quiet(before)


@contextmanager
def _folder() -> Iterator[Path]:
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="cdcca-fuzz-", dir=memory if memory.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _kib(name: str) -> int:
    """A figure of this process's memory, as Linux has it; 0 elsewhere."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def _forget_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


# ---------------------------------------------------------------- many cases


def shares(total: int, kinds: Iterable[Kind] = KINDS.values()) -> dict[str, int]:
    """How many of the cases each kind gets; `total` at least."""
    known = list(kinds)
    whole = sum(kind.share for kind in known)
    return {kind.name: -int(-total * kind.share // whole) for kind in known}


def _run_chunk(chunk: tuple[str, int, int, int]) -> tuple[str, Outcome]:
    name, seed, begin, end = chunk
    return name, run(KINDS[name], seed, range(begin, end))


def run_all(total: int, seed: int = 0, jobs: int = 1) -> dict[str, Outcome]:
    """Divide the cases among the kinds and the kinds among processes."""
    chunks = [
        (name, seed, begin, min(begin + _CHUNK, count))
        for name, count in shares(total).items()
        for begin in range(0, count, _CHUNK)
    ]
    random.Random(0).shuffle(chunks)
    found = {name: Outcome() for name in KINDS}
    if jobs == 1:
        results: Iterable[tuple[str, Outcome]] = map(_run_chunk, chunks)
        for name, outcome in results:
            found[name].add(outcome)
        return found
    with get_context("spawn").Pool(jobs) as pool:
        for name, outcome in pool.imap_unordered(_run_chunk, chunks):
            found[name].add(outcome)
    return found


def table(found: dict[str, Outcome]) -> str:
    """Cases, time, memory and refusals by class, one kind a line."""
    lines = [f"{'kind':14} {'cases':>9} {'seconds':>8} {'slowest':>8} {'MiB':>5}  read and refused"]
    whole = Outcome()
    for name, outcome in [*found.items(), ("all", whole)]:
        classes = ", ".join(f"{key} {count:,}" for key, count in outcome.classes.most_common())
        lines.append(
            f"{name:14} {outcome.cases:9,} {outcome.seconds:8.1f} {outcome.slowest:8.3f} "
            f"{outcome.most_kib >> 10:5}  {classes}"
        )
        if outcome is not whole:
            whole.add(outcome)
    return "\n".join(lines)


def _show(kind: Kind, seed: int, number: int) -> None:
    case = kind.change(rng_of(kind, seed, number))
    sys.stdout.write(f"{case!r:.4000}\n")
    with _folder() as folder:
        kind.read(case, folder)


def main() -> int:
    parser = argparse.ArgumentParser(description="A fuzz over the structure of every file kind.")
    parser.add_argument("--cases", type=int, default=10_000, help="of all kinds together")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, help="this kind alone")
    parser.add_argument("--number", type=int, help="this case alone, with its traceback")
    chosen = parser.parse_args()
    if chosen.number is not None:
        _show(KINDS[chosen.kind], chosen.seed, chosen.number)
        return 0
    if chosen.kind is not None:
        found = {chosen.kind: run(KINDS[chosen.kind], chosen.seed, range(chosen.cases))}
    else:
        found = run_all(chosen.cases, chosen.seed, chosen.jobs)
    lines = [table(found)]
    faults = [fault for outcome in found.values() for fault in outcome.faults]
    lines += [ascii(fault)[1:-1] for fault in faults[:100]]
    sys.stdout.write("\n".join([*lines, f"{len(faults):,} faults"]) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
