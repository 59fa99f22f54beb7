"""Frames and their questions, from folders, manifests, annotation files and videos.

`sources` finds the reader: `manifest` or `annotations` (`fields` and `entries` read their JSON).
`frames` has the Frame type and `load_image`, which uses `pictures` or `video`. Readers take the
published files as they are and refuse anything else, with the place.
"""

from cdcca_cli.datasets.frames import Frame, Frames, LabelledQuestion, Task, load_image
from cdcca_cli.datasets.sources import Reference, read_frames, read_references, references_of

__all__ = [
    "Frame",
    "Frames",
    "LabelledQuestion",
    "Reference",
    "Task",
    "load_image",
    "read_frames",
    "read_references",
    "references_of",
]
