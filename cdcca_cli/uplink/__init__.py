"""U, the uplink: the device's answers, their uncertainty, and the choice of tokens to send.

In the order of a frame's way: `answers` is shared by `cdcca infer` and `cdcca sample`,
`uncertainty` holds Equations 2, 3 and 4, `questions` how questions are chosen, `candidates` makes
ready what they are chosen from, `running` chooses from a stream without end, `near` keeps nearly
the same picture from going up twice, `selection` picks by scores, `sampling` is the pipeline from
frames to shards, with its `spool` on disk. `seen` records what was sampled before, `settings` has
the settings of both commands.
"""
