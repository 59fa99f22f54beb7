"""What `cdcca inspect` shows: kind, digests, counts, and what the bytes are spent on.

In the order in which data passes:

    look      a path or standard input to the reader of its kind
    contents  one reader for each kind of stream: shards, predictions, labels, adaptations, updates,
              trust lists, overlays, weights, the state of `sample`
    folders   device folders, checkpoints, and frames with what is asked of them
    summary   what a reader found, as JSON and as lines for people

Every reader's checks are made on the way: what can be summarised is sound. Nothing here writes.
"""
