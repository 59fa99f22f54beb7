"""What the link carries, in bytes, and what the frames themselves would take.

`ledger` adds up shards and updates by kind of byte, `frames` codes the same frames as pictures and
as video, and `transfer` models the time of a transfer.
"""
