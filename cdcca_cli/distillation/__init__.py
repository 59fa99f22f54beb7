"""K of Equation 1: the large model teaches the small one, from token shards alone.

In the order in which data passes:

    settings         how to train
    token_file       the tokens of the shards, in a temporary file
    dataset          examples, the held-out part, replay, batches
    losses           the equations
    tops             the teacher's distributions in the student's vocabulary
    anchors          source frames where the student is held to what it said before
    phi              the layer of Eq. 5 between two widths, fitted before training
    methods          what a step minimises: `kd`, `akd` and others with a teacher, `tent`, `cotta`
    activations      whether training computes layers again, to save memory
    optimiser        the trained part of the student, Adam, the schedule
    evaluation       the loss on the held-out part
    trainer          one step
    epochs           the loop of steps and evaluations
    drift            how far the student has moved from the one of sequence 0
    rate_aware       further steps, through the quantiser
    distill          all of it as one call

For the uplink: `calibration` makes a codebook, whose arrays are of `transform`.

Beside them: `checkpoint` (the state on disk), `step_log`, and the `trackers` that it goes to.
"""
