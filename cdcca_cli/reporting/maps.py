"""Token maps: which parts of the most uncertain frames went up."""

import heapq
from contextlib import suppress
from typing import Any

from cdcca_cli.errors import BadData, Unavailable
from cdcca_cli.formats.shard import Shard
from cdcca_cli.reporting.examples import picture
from cdcca_cli.reporting.frames import FrameSet, FrameSets
from cdcca_cli.reporting.plain import number, text

_PIXELS = 320


class Candidates:
    """The shards of the last uplink that were uncertain, at most `most`, each frame once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._round = 0
        self._found: list[tuple[float, int, Shard]] = []
        self._count = 0

    def add(self, round_number: int, shard: Shard) -> None:
        """One shard of a round; a later round takes the place of an earlier one."""
        from cdcca_cli.inspection.maps import has_map

        says_something = shard.scores is not None or len(shard.positions) < shard.num_tokens
        if not self._most or not says_something or not has_map(shard):
            return
        if round_number != self._round:
            self._round, self._found = round_number, []
        self._count += 1
        entry = (_entropy(shard), -self._count, shard)
        if len(self._found) < self._most:
            heapq.heappush(self._found, entry)
        else:
            heapq.heappushpop(self._found, entry)

    def as_json(self, frames: FrameSets) -> list[dict[str, Any]]:
        """Those of which there is a picture, the most uncertain first; as in `gather`."""
        from cdcca_cli.inspection.maps import heat_map

        shards = [shard for _, _, shard in sorted(self._found, key=lambda one: one[:2])[::-1]]
        known = frames.of_frames([shard.frame for shard in shards])
        made = []
        for shard in shards:
            image = _image(shard, known, frames)
            if image is None:
                continue
            heat = heat_map(shard, image)
            made.append(
                {
                    "round": self._round,
                    "frame": text(shard.frame, 80),
                    "questions": [text(one.prompt or "a caption", 120) for one in shard.questions][
                        :3
                    ],
                    "entropy": number(_entropy(shard)),
                    "kept": len(shard.positions),
                    "of": shard.num_tokens,
                    "picture": picture(image, _PIXELS),
                    "map": picture(heat, _PIXELS),
                }
            )
        return made


def _image(shard: Shard, known: FrameSet | None, frames: FrameSets) -> Any:
    """The frame's pixels, or the picture that was sent."""
    image = frames.image(known, shard.frame)
    if image is None and shard.picture is not None:
        from cdcca_cli.payloads.pictures import decode

        with suppress(BadData, Unavailable):
            image = decode(shard.picture)
    return image


def _entropy(shard: Shard) -> float:
    return max((one.entropy for one in shard.questions if one.entropy is not None), default=0.0)
