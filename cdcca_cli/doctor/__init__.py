"""What `cdcca doctor` finds out: whether a machine, a checkpoint or a pair works, before a run.

`machine` looks at libraries and hardware. `checkpoint` looks at one model: `frame` is the picture
that it is measured with, `memory` estimates, `identities` tries the model itself. `pair` compares
two models. `headers` reads weights, in a folder or on the hub, without the language model.
"""
