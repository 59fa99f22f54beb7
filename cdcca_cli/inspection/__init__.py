"""What `cdcca inspect` shows: kind, digests, counts, and how many bytes each part takes.

`look` finds the reader: `contents` has one for each kind of stream, `folders` those of device
folders, checkpoints and frames. Each checks all that it reads and returns a `summary`.
"""
