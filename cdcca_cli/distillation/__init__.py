"""K of Equation 1: the large model teaches the small one, from token shards alone.

In the order in which data passes:

    settings         how to train
    encoding         shards to what a language model reads
    teacher_outputs  what the teacher says of the shards, kept in a file
    dataset          examples, the held-out part, replay, batches
    losses           the equations
    methods          what a step minimises: `akd` (and pkd, cwd, pseudo-label), `tent`, `cotta`
    optimiser        the opened part of the student, Adam, the running mean
    evaluation       the held-out part judges
    trainer          the loop and its first phase, the epochs
    rate_aware       its second phase, through the quantiser
    distill          all of it as one call

Beside them: `checkpoint` (the state on disk), `distributed` (several processes), `step_log`,
`peft_export`.
"""
