"""Frames and their questions, from folders, manifests, annotation files and videos.

    for frame in read_frames("frames/"):
        image = load_image(frame)

`sources` finds the reader: `manifest` or `annotations` (both check JSON with `fields`; large files
come entry by entry from `entries`). `frames` has the one Frame type and `load_image`, which reads
`pictures` or a `video`. Readers take the published files as they are and refuse everything else,
with the place. Nothing here scores, resizes for a model, or writes.
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
