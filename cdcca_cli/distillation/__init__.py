"""K of Equation 1: the large model teaches the small one, from token shards alone.

In the order in which data passes:

    settings         how to train
    encoding         shards to what a language model reads
    teacher_outputs  the teacher's outputs for the shards, kept in a file
    dataset          examples, the held-out part, replay, batches
    losses           the equations
    methods          what a step minimises: `akd` (and pkd, cwd, pseudo-label), `tent`, `cotta`
    optimiser        the trained part of the student, Adam, the schedule
    evaluation       the loss on the held-out part
    trainer          one step, and the epochs
    rate_aware       further steps, through the quantiser
    distill          all of it as one call

For the uplink: `calibration` makes a codebook, whose arrays are of `transform`.

Beside them: `checkpoint` (the state on disk), `distributed` (several processes), `step_log`,
`peft_export`.
"""
