"""What went up and down, against JPEG of the same frames and against full weights.

JPEG is that of `scoring.link` (quality 75) at the frames' own size. It is measured on at most
_MOST_JPEG of the different frames, evenly chosen, and scaled to all shards. Full weights are the
parameters that an update changes, in float32, and the device's whole model in float16.
"""

import io
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdcca_cli import progress, streams
from cdcca_cli.formats import shard_stream
from cdcca_cli.formats import update as updates
from cdcca_cli.formats.shard import Shard
from cdcca_cli.reporting.frames import FrameSets
from cdcca_cli.reporting.plain import text
from cdcca_cli.scoring.link.frames import CODED

_MOST_JPEG = 500
_FLOAT32_BYTES, _FLOAT16_BYTES = 4, 2


@dataclass
class Sent:
    """The shards and updates of one round. frames: how often each frame's id went up."""

    uplink_bytes: int | None = None
    downlink_bytes: int | None = None
    questions: int = 0
    tokens_kept: int = 0
    tokens_total: int = 0
    parameters: int = 0
    update: dict[str, Any] | None = None
    frames: Counter[str] = field(default_factory=Counter)

    def read_shards(self, path: Path, see: Callable[[Shard], object]) -> None:
        """Add a stream of shards, each seen once. Raises: CdccaError; then nothing is added."""
        frames: Counter[str] = Counter()
        questions = kept = total = 0
        with streams.binary_input(path) as stream:
            for shard in shard_stream.read_shards(stream, where=str(path)):
                frames[shard.frame] += 1
                questions += len(shard.questions)
                kept += len(shard.positions)
                total += shard.num_tokens
                see(shard)
        self.frames += frames
        self.questions += questions
        self.tokens_kept += kept
        self.tokens_total += total
        self.uplink_bytes = (self.uplink_bytes or 0) + os.stat(path).st_size

    def read_update(self, path: Path) -> None:
        """Add an update. Raises: CdccaError."""
        with streams.binary_input(path) as stream:
            update = updates.read_update(stream, where=str(path))
        self.downlink_bytes = (self.downlink_bytes or 0) + os.stat(path).st_size
        self.parameters = update.num_parameters
        self.update = {
            "sequence": update.sequence,
            "codec": text(update.codec),
            "base": update.base,
            "target": update.target,
            "model": update.model,
            "signatures": len(update.signatures),
        }


def jpeg_bytes(frames: Counter[str], known: FrameSets) -> dict[str, int] | None:
    """JPEG of all shards' frames: {"bytes", "measured", "frames"}; None without their pictures."""
    found = known.of_frames(frames)
    if found is None:
        return None
    ids = sorted(one for one in frames if one in found.frames)
    chosen = ids[:: max(1, -(-len(ids) // _MOST_JPEG))]
    measured = num_bytes = 0
    for one in progress.track(chosen, description="JPEG of the frames"):
        image = known.image(found, one)
        if image is not None:
            coded = io.BytesIO()
            image.save(coded, **CODED["jpeg_q75"])
            measured += 1
            num_bytes += coded.getbuffer().nbytes
    if not measured:
        return None
    total = frames.total()
    return {"bytes": round(num_bytes / measured * total), "measured": measured, "frames": total}


def summary(
    rounds: list[dict[str, Any]], jpeg: dict[str, int] | None, parameters: int | None, changed: int
) -> dict[str, Any] | None:
    """The totals over all rounds; None if nothing went up or down."""
    up = [one["uplink_bytes"] for one in rounds if one["uplink_bytes"] is not None]
    down = [one["downlink_bytes"] for one in rounds if one["downlink_bytes"] is not None]
    if not up and not down:
        return None
    model = None if parameters is None else _FLOAT16_BYTES * parameters * len(down)
    return {
        "uplink_bytes": sum(up),
        "downlink_bytes": sum(down),
        "jpeg": jpeg,
        "changed_float32_bytes": _FLOAT32_BYTES * changed * len(down) or None,
        "model_float16_bytes": model,
    }
