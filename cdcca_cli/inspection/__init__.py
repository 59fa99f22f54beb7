"""What `cdcca inspect` shows: kind, digests, counts, and how many bytes each part takes.

`look` finds the reader of a path or standard input: `contents` has one for each kind of stream,
`folders` those of device folders, checkpoints and frames. `summary` is what they return. Each
reader checks all that it reads.
"""
