"""What `cdcca sample` costs beside `cdcca infer`, and the memory of long streams.

    python examples/benchmarks/sampling.py [--repeats 5] [--frames FOLDER]
    python examples/benchmarks/sampling.py --memory 100 1000 10000 100000

Ratios are of CPU time in one thread: a variant's runs alternate with runs of `infer` (the functions
that the commands call, after the model is loaded); the least of each is compared, beside the median
of the pairs. `infer` also scores the choices of each question, which `sample` does not need.

--memory: peak memory beyond that of one frame, each figure in a process of its own: streams of klt
through the writer (`written`) and the reader (`read`), and `sample_frames` with a stub for the
model and real pictures, as frames come (`running` 5 %) or ranked at the end (`top` 10 %).
"""

import argparse
import io
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from cdcca_cli import streams
from cdcca_cli.config import SHIPPED_STUDENT
from cdcca_cli.datasets import Frame, read_frames
from cdcca_cli.formats import shard_stream
from cdcca_cli.formats.codebook import Codebook, read_codebook
from cdcca_cli.formats.predictions import Prediction
from cdcca_cli.formats.shard import Layout
from cdcca_cli.loop import demo
from cdcca_cli.models import Picture, Trunk, load_device
from cdcca_cli.models.initial import create_device
from cdcca_cli.text import parse_amount
from cdcca_cli.uplink import answered as by_model
from cdcca_cli.uplink.answers import answer_frames
from cdcca_cli.uplink.coding import Coded, Coder
from cdcca_cli.uplink.questions import draw
from cdcca_cli.uplink.sampling import sample_frames
from cdcca_cli.uplink.settings import AnswerSettings, PayloadSettings, SampleSettings

ASSETS = demo.FRAMES.parent
TENTH, HALF = parse_amount("10%"), parse_amount("50%")
VARIANTS: dict[str, tuple[SampleSettings, PayloadSettings]] = {
    "the defaults": (SampleSettings(), PayloadSettings()),
    "--payload tokens": (SampleSettings(), PayloadSettings(payload="tokens")),
    "--payload frame": (SampleSettings(), PayloadSettings(payload="frame")),
    "--top 50%": (SampleSettings(top=HALF), PayloadSettings()),
    "--by variance --keep 50%": (SampleSettings(keep=HALF), PayloadSettings()),
    "--by variance --keep 50% --top 50%": (SampleSettings(keep=HALF, top=HALF), PayloadSettings()),
    "--top 10% --budget 16KiB": (SampleSettings(top=TENTH, budget_bytes=16384), PayloadSettings()),
}


def costs(folder: Path, repeats: int) -> Iterator[list[str]]:
    with tempfile.TemporaryDirectory() as temporary:
        device = create_device(Path(temporary) / "device", SHIPPED_STUDENT)
        model, codebook = load_device(device, compute="cpu", dtype="float32"), device.codebook()
    frames = read_frames(folder)

    def infer() -> int:
        return sum(1 for _ in answer_frames(model, frames, AnswerSettings()))

    def sample(how: SampleSettings, payload: PayloadSettings) -> int:
        with shard_stream.writer(io.BytesIO()) as write:
            for coded in sample_frames(model, frames, how, coder=Coder(model, payload, codebook)):
                write(coded.shard, coded.picture)
        return write.num_bytes

    yield ["sample", "bytes", "ratio to infer", "median", "infer s", "sample s"]
    yield ["---", *["---:"] * 5]
    for name, how in VARIANTS.items():
        size = sample(*how)  # not timed: what is made once
        pairs = []
        for _ in range(repeats):
            first = seconds(infer)
            pairs.append((first, seconds(lambda how=how: sample(*how))))  # type: ignore[misc]
        base, cost = (min(side) for side in zip(*pairs, strict=True))
        median = np.median([mine / other for other, mine in pairs])
        cells = [f"{size:,}", f"{cost / base:.2f}", f"{median:.2f}", f"{base:.2f}", f"{cost:.2f}"]
        yield [name, *cells]


def seconds(call: Callable[[], Any]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


SETTINGS: dict[str, dict[str, Any]] = {"written": {"threshold": 0.0}, "read": {}}
SETTINGS |= {"running": {"running": 0.05}, "top": {}}


class Frames:
    """So many frames, made as they are asked for; files and questions of real ones."""

    def __init__(self, count: int) -> None:
        self._real = list(read_frames(demo.FRAMES / demo.STREAM))
        self.count = count

    def __iter__(self) -> Iterator[Frame]:
        for number in range(self.count):
            real = self._real[number % len(self._real)]
            asked = [replace(one, id=f"{number}-{one.id}") for one in real.questions[:2]]
            yield replace(real, id=f"f{number:06d}.jpg", questions=asked)


def stub(codebook: Codebook) -> Any:
    """What `sample_frames` needs of a model, without one."""
    token_NC = torch.from_numpy(codebook.mean_NC)
    return SimpleNamespace(
        num_blocks=2,
        tower_digest=codebook.tower,
        device=torch.device("cpu"),
        prepare=lambda images: [Picture({"pixels": torch.from_numpy(np.array(images[0]))})],
        trunk=lambda picture, block: Trunk(
            Picture({}), block, (token_NC[None] + picture.inputs["pixels"].float().mean() / 1000,)
        ),
        tail=lambda trunk: (trunk.states[0], Layout()),
    )


def answered(_: Any, frames: list[Frame], *rest: Any) -> list[list[Prediction | None]]:
    """In place of `answer_window`."""
    made = Prediction("", "", "vqa", None, "", None, None, None, {}, None, "", None)
    return [
        [
            replace(made, id=one.id, entropy={"mean": draw("stub", one.id)})
            for one in frame.questions
        ]
        for frame in frames
    ]


def use(what: str, count: int, path: Path) -> None:
    """One of SETTINGS, for so many frames. path: of the shards, written or read."""
    if what == "read":
        with path.open("rb") as stream:
            sum(1 for _ in shard_stream.read_shards(stream))
        return
    with (ASSETS / "student" / "codebook.safetensors").open("rb") as source:
        codebook = read_codebook(source)
    model, how = stub(codebook), SampleSettings(repeats=True, **SETTINGS[what])
    coder = Coder(model, PayloadSettings(payload="tokens"), codebook)
    found = sample_frames(model, Frames(1 if what == "written" else count), how, coder=coder)
    if what == "written":
        one = next(found)
        found = (Coded(replace(one.shard, frame=f"f{place}.jpg")) for place in range(count))
    with path.open("wb") as out, shard_stream.writer(out) as write:
        for coded in found:
            write(coded.shard)


def measured(what: str, count: int, path: Path, result: Path) -> None:
    """In a process of its own: the memory beyond that of one frame, in MB."""
    torch.set_num_threads(1)
    streams.set_quiet(True)
    by_model.answer_window = answered  # type: ignore[assignment]
    use("written", 1, path.with_suffix(".one"))
    use(what, 1, path.with_suffix(".one"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    use(what, count, path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result.write_text(f"{(peak - before) / 1000:.1f}")


def memory(counts: list[int]) -> Iterator[list[str]]:
    yield ["frames", *SETTINGS]
    yield ["---:"] * (1 + len(SETTINGS))
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as temporary:
        path, result = Path(temporary) / "shards", Path(temporary) / "result"
        for count in counts:
            cells = [f"{count:,}"]
            for what in SETTINGS:
                process = context.Process(target=measured, args=(what, count, path, result))
                process.start()
                process.join()
                cells.append(f"{result.read_text()} MB")
            yield cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--frames", type=Path, default=demo.FRAMES / demo.HELD_OUT)
    parser.add_argument("--memory", nargs="+", type=int, metavar="COUNT")
    given = parser.parse_args()
    torch.set_num_threads(1)
    streams.set_quiet(True)
    for cells in memory(given.memory) if given.memory else costs(given.frames, given.repeats):
        sys.stdout.write(f"| {' | '.join(cells)} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
