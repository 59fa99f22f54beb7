"""U, the uplink: the device's answers, their uncertainty, and the choice of tokens to send.

In the order of a frame's way: `answers` is shared by `cdcca infer` and `cdcca sample`, `served`
answers by a server, which `asked` asks; `entropies` and `uncertainty` hold Equations 2, 3 and 4,
`questions` how questions are chosen (`model_ranks` by the model), `candidates` makes ready what
they are chosen from (`answered` by the model), `running` chooses from a stream without end, `near`
keeps nearly the same picture from going up twice, `selection` picks by scores, `sampling` is the
pipeline from frames to shards, with its `spool` on disk; `picked` is what it needs of a frame where
no model is loaded. `seen` records what was sampled before, `settings` has the settings of both
commands.

Of these `answers`, `uncertainty`, `model_ranks`, `answered`, `kept_tokens` and `spool` import
torch; the others run on a device that has none.
"""
