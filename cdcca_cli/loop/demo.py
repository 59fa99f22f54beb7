"""What `cdcca demo` runs: Algorithm 1 on the shipped pair, told as a table and two sentences.

The frames lie in `assets/frames`: `stream` (target domain, what the device sees and adapts to),
`heldout` (target domain, never sent: what the table shows) and `source` (what must not be
forgotten). Their labels are used for scores alone.
"""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdcca_cli import streams
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.downlink.settings import CompressSettings
from cdcca_cli.errors import CannotWrite
from cdcca_cli.loop.history import COLUMNS, History
from cdcca_cli.loop.rounds import Cycle, RoundSettings
from cdcca_cli.models.initial import create_device
from cdcca_cli.probe import read_probe, scored
from cdcca_cli.text import parse_amount
from cdcca_cli.uplink.sampling import SampleSettings

FRAMES = Path(__file__).parent / "assets" / "frames"
STREAM, HELD_OUT, SOURCE = "stream", "heldout", "source"


def settings(seed: int) -> RoundSettings:
    """How the demonstration's rounds work: half of the asks, half of the tokens."""
    return RoundSettings(
        sample=SampleSettings(
            top=parse_amount("50%", "--top"),
            keep=parse_amount("50%", "--keep"),
            batch_size=64,
            seed=seed,
        ),
        distill=DistillSettings(seed=seed),
        compress=CompressSettings(),
    )


@dataclass(frozen=True)
class Story:
    """What the demonstration gave."""

    history: History

    title = "target frames that were never sent"
    columns = COLUMNS

    def rows(self) -> Iterator[list[object]]:
        return self.history.rows()

    def sentences(self) -> tuple[str, str]:
        """What happened on the target frames, and what on the stream and on the source domain."""
        history = self.history
        rounds = history.rounds
        up = sum(done.uplink_bytes for done in rounds)
        down = sum(done.downlink_bytes for done in rounds)
        number = f"{len(rounds)} round{'s' if len(rounds) > 1 else ''}"
        return (
            f"After {number}, {up:,} bytes up and {down:,} bytes down, the small model changed on "
            f"target frames that were never sent by {history.gain_words(HELD_OUT)}, taught by the "
            "larger model's answers alone: no label was used.",
            "On the very stream it adapted to, as the paper scores, it changed by "
            f"{history.gain_words(STREAM)}; on its source domain by {history.gain_words(SOURCE)}.",
        )

    def as_json(self) -> dict[str, Any]:
        return self.history.as_json() | {"sentences": list(self.sentences())}


def run(rounds: int, *, seed: int = 0, keep: Path | None = None) -> Story:
    """Run so many rounds from a fresh device and mirror of the shipped student.

    Args: keep: a folder for the files of every round; a temporary one is used and removed if None.
    """
    with tempfile.TemporaryDirectory(prefix="cdcca-") as temporary:
        work = Path(temporary) if keep is None else keep
        cycle = Cycle(
            create_device(work / "device", "shipped:student"),
            create_device(work / "mirror", "shipped:student"),
            "shipped:teacher",
            settings(seed),
            work,
            compute="cpu",
            dtype="float32",
        )
        return Story(_told(cycle, rounds))


def _told(cycle: Cycle, rounds: int) -> History:
    probes = {name: read_probe(FRAMES / name) for name in (STREAM, HELD_OUT, SOURCE)}
    stream = probes[STREAM]
    history = History(HELD_OUT)
    history.add(HELD_OUT, cycle.score(probes[HELD_OUT], "source only"))
    history.add(SOURCE, cycle.score(probes[SOURCE], "source only, source domain"))
    for number in range(1, rounds + 1):
        done, predictions = cycle.round(number, stream.frames)
        history.rounds.append(done)
        history.add(STREAM, scored(predictions, stream.references))
        history.add(HELD_OUT, cycle.score(probes[HELD_OUT], f"round {number}: eval"))
        streams.message(done.summary())
    history.add(STREAM, cycle.score(stream, "the stream"))
    history.add(SOURCE, cycle.score(probes[SOURCE], "the source domain"))
    return history


def export(folder: Path) -> None:
    """Copy the shipped frames to a new folder, wholly or not at all. Raises: CannotWrite."""
    if folder.exists():
        raise CannotWrite(f"{folder}: exists already: name a new one")
    try:
        shutil.copytree(FRAMES, folder)
    except (OSError, KeyboardInterrupt) as error:
        shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        # copytree gathers its errors as (source, target, reason).
        first = error.args[0] if error.args else ""
        reason = error.strerror or (first[0][2] if isinstance(first, list) else str(error))
        raise CannotWrite(f"{folder}: {str(reason).lower()}") from None
