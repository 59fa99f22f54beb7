"""Memory stays flat however many frames there are."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdcca_cli.datasets import Frame
from cdcca_cli.models import LoadedModel
from cdcca_cli.text import parse_amount
from cdcca_cli.uplink.answers import answer_frames
from cdcca_cli.uplink.sampling import sample_frames
from cdcca_cli.uplink.settings import AnswerSettings, SampleSettings


class Repeated:
    """One image as so many frames."""

    def __init__(self, frame: Frame, number: int) -> None:
        self._frame, self._number = frame, number

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[Frame]:
        for number in range(self._number):
            yield Frame(f"{number}.png", self._frame.image, self._frame.questions)


def resident_bytes() -> int:
    statm = Path("/proc/self/statm").read_text(encoding="ascii")
    return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(model: LoadedModel, frame: Frame, verb: str, number: int) -> int:
    frames = Repeated(frame, number)
    before = resident_bytes()
    if verb == "infer":
        settings = AnswerSettings(batch_size=8, max_new_tokens=1)
        count = sum(1 for _ in answer_frames(model, frames, settings))
    else:
        rules = {
            "top": SampleSettings(batch_size=8, max_new_tokens=1, passes=2, repeats=True),
            "threshold": SampleSettings(
                threshold=0.0, batch_size=8, max_new_tokens=1, passes=2, repeats=True
            ),
            "running": SampleSettings(running=0.2, batch_size=8, max_new_tokens=1, passes=2),
            "budget": SampleSettings(
                budget_bytes=65_536,
                keep=parse_amount("50%"),
                batch_size=8,
                max_new_tokens=1,
                passes=2,
            ),
        }
        count = sum(1 for _ in sample_frames(model, frames, rules[verb]))
    assert count >= number // 10 or verb in ("budget", "running")
    return resident_bytes() - before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("verb", ["infer", "top", "threshold", "running", "budget"])
@pytest.mark.parametrize("number", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_flat(model: LoadedModel, frames: list[Frame], verb: str, number: int) -> None:
    """After 100 frames to get warm, a frame more costs nothing but its name and its figure.

    Were they kept, 400 frames were 11 MB of pixels, and 10,000 frames 13 MB of hidden states.
    """
    growth(model, frames[0], verb, 100)
    assert growth(model, frames[0], verb, number) < 4e6 + number * 200
