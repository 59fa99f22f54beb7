"""The token stream (the uplink), version 2: frames with the questions that the device asks up.

A stream is one or more parts end to end (`cat a.tokens b.tokens` is a stream). A part is a head
record, any number of `frames` records, and an end record (`records`); a part without frames is an
end record alone. A stream carries no labels. Version 1 (`shard_v1`) is read as well; parts of both
versions can follow each other.

**Head.** No tensors. Header {"kind": "shards", "version": 2, "tower": digest of the vision tower
that made the tokens, or that the pictures are for ("sha256:" + 64 hex digits)}.

**Frames.** Up to 256 frames, in columns. Header, all keys always present:

    kind "frames", version 2
    count     F, how many frames it has, 1 to 256
    codec     "float32", "float16", "int8" or "klt": how tokens are stored; "frame": pictures
    codebook  digest of the codebook of klt, else null
    step      the quantiser's step of klt, exactly a float32 above 0, else null
    columns   klt: how many codes a row has; else null
    sizes     {"index": bytes of the content of its zstd frame}
    sum       digest (`digest`) of the tensors and of "header": U8, the canonical JSON of this
              header without `sum` and with the head's `tower`
    other     null, or the bytes that the payload would have taken in the form that was not chosen

`index` (U8) is zstd of a JSON object, all keys always present, for F frames and Q questions in all;
`n` is a place in `strings`:

    strings   list of strings
    layouts   up to F of {"num_tokens": 1 to 2^20, "grid": list of numbers >= 0, "marks": string,
              "fixed": ascending places of tokens without content}: how a picture becomes tokens
              (`Layout`). `grid` has two numbers or none; behind them, if they are known, where
              the tokens lie in the picture (`places`)
    frames    F strings, not empty: the frames' ids
    images    F strings: their files, as the device named them; null if they are the ids
    domains   F n or null; times: F numbers or null, seconds since 1970 (UTC) at capture
    layout    F places in `layouts`
    counts    F numbers: how many of the questions are the frame's
    ids       Q strings; tasks: Q strings "v" (vqa) or "c" (caption), joined
    prompts   Q n or null; choices: Q lists of n, not empty, or null
    pictures  codec "frame": F lists [n of the media type, bytes, width, height]; else null

`entropies` (F16, Q) are in nats, NaN if they were not measured. With tokens, `kept` (U8) has a bit
for each place of each frame's layout, the first in the highest bit, padded with zeros; it is absent
if every token was kept. `scores` (F32, one for each kept token: why it was kept) may be absent.
T is the number of kept tokens, at least one a frame, C the channels:

    float32, float16   tokens (T, C), F32 or F16
    int8               tokens (T, C), I8 in [-127, 127], and scales (T,), F32 >= 0 (`absmax`)
    klt                codes (U8): `columns` of the codes of all frames; a frame that kept all of
                       its tokens has one row of N x K codes, any other one row of K codes for each
                       token, and all frames of a record are of one sort (`payloads.klt`)
    frame              pictures (U8): zstd of the files end to end, as long as their lengths in the
                       index say; files as `formats.pictures` allows them

**End.** No tensors. Header {"count": frames in this part, "kind": "end", "version": 2}.

The sum and all sizes are checked before anything is unpacked. A record has at most 2 MiB of index,
2^22 characters of text in it (a string counts each time it is used) and 2^23 codes; its numbers are
at most 2^31. `shard_record` codes a record, `shard_index` its index, after `shard_check`;
`shard_stream` reads and writes streams.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cdcca_cli.errors import BadData
from cdcca_cli.formats.pictures import Picture

VERSION = 2
CODECS = ("float32", "float16", "int8", "klt", "frame")

Task = Literal["vqa", "caption"]
Codec = Literal["float32", "float16", "int8", "klt", "frame"]


PLACES = re.compile(r"\{(\d{1,6})\}")
"""Places of tokens in a picture's text: {64} is 64 of them."""


@dataclass(frozen=True)
class Question:
    """One prompt about a frame. entropy: of its answer in nats, if it was measured."""

    id: str
    prompt: str | None
    task: Task
    choices: list[str] | None = None
    entropy: float | None = None


@dataclass(frozen=True)
class Layout:
    """How a picture becomes tokens.

    grid: rows and columns, where the picture is one grid of tokens. marks: its text in the prompt,
    with {64} in place of 64 tokens; "" if that is all of it. fixed: ascending places of the tokens
    without content, which are always kept. boxes: where the others lie in the picture (`places`).
    """

    grid: tuple[int, ...] = ()
    marks: str = ""
    fixed: tuple[int, ...] = ()
    boxes: tuple[int, ...] = ()

    @property
    def num_places(self) -> int:
        """How many tokens `marks` has places for."""
        return sum(int(number) for number in PLACES.findall(self.marks))


@dataclass(frozen=True)
class Coding:
    """How a payload is coded. codebook, step: of klt; the step is exactly a float32."""

    codec: Codec = "float32"
    codebook: str | None = None
    step: float | None = None


@dataclass(eq=False)
class Shard:
    """One frame's payload and questions.

    tokens: (N, C) float32; (0, 0) in a stream of klt or pictures until `payloads.opening` fills it.
    positions: (N,) int32, ascending, of the kept ones among num_tokens; frames that kept all share
    an array: do not write to it. codes: of klt, int32.
    scores: (N,) float32, larger for a more uncertain token. time: of capture, seconds since 1970.
    """

    frame: str
    image: str
    domain: str | None
    tokens: np.ndarray
    positions: np.ndarray
    num_tokens: int
    tower: str
    questions: list[Question] = field(default_factory=list)
    scores: np.ndarray | None = None
    coding: Coding = Coding()
    codes: np.ndarray | None = None
    picture: Picture | None = None
    layout: Layout = Layout()
    time: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether its tokens are there."""
        return self.tokens.size > 0


class Unusable(BadData):
    """A frame whose values are not finite, or a record whose sum is wrong; the rest is sound."""
