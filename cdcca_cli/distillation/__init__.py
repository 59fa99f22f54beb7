"""K of Equation 1: the large model teaches the small one, from token shards alone.

In the order in which data passes:

    settings         how to train
    encoding         shards to what a language model reads
    labelling        what a teacher makes of shards
    teacher_outputs  the same, kept in a file
    token_file       the tokens of the shards, in a temporary file
    dataset          examples, the held-out part, replay, batches
    losses           the equations
    methods          what a step minimises: `akd` (and pkd, cwd, pseudo-label), `tent`, `cotta`
    activations      whether training computes layers again, to save memory
    optimiser        the trained part of the student, Adam, the schedule
    evaluation       the loss on the held-out part
    trainer          one step, and the epochs
    rate_aware       further steps, through the quantiser
    distill          all of it as one call

For the uplink: `calibration` makes a codebook, whose arrays are of `transform`.

Beside them: `checkpoint` (the state on disk), `distributed` (several processes), `step_log`.
"""
