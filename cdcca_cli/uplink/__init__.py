"""U, the uplink: the device's answers, their uncertainty, and the choice of tokens to send.

In the order of a frame's way: `answers` is shared by `cdcca infer` and `cdcca sample`,
`uncertainty` holds Equations 2, 3 and 4, `selection` the rules that pick by them, `sampling` the
pipeline from frames to shards, with its `spool` on disk. `seen` records the frames sampled before,
`settings` has the settings of both commands.
"""
