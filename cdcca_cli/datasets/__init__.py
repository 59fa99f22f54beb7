"""Frames and their questions, from folders, manifests, annotation files, videos and cameras.

`sources` finds the reader: `manifest` or `annotations` (`fields` and `entries` read their JSON).
`frames` has the Frame type and `load_image`, which uses `pictures`, `video` or `live`. Readers take
the published files as they are and refuse anything else, with the place.
"""

from cdcca_cli.datasets.frames import (
    Frame,
    Frames,
    LabelledQuestion,
    Task,
    image_name,
    load_image,
)
from cdcca_cli.datasets.live import LiveFrames, num_frames
from cdcca_cli.datasets.sources import (
    Reference,
    open_frames,
    read_frames,
    read_references,
    references_of,
)

__all__ = [
    "Frame",
    "Frames",
    "LabelledQuestion",
    "LiveFrames",
    "Reference",
    "Task",
    "image_name",
    "load_image",
    "num_frames",
    "open_frames",
    "read_frames",
    "read_references",
    "references_of",
]
