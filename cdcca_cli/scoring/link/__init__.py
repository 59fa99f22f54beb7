"""What the link carries, in bytes, and what the frames themselves would take.

`ledger` adds up shards and updates, `frames` codes the frames, `transfer` models the time.
"""
