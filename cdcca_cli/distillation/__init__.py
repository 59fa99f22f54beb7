"""K of Equation 1: the large model teaches the small one, from token shards alone.

`losses`, `feature_losses` and `logit_losses` are the equations; `teacher` asks the large model,
`lessons` holds what it says; `methods` is what a step minimises (`taught`, `tent`, `cotta`);
`trainable` the opened part of the student, `run` the epochs over them, `processes` several of them
as one, `rate_aware` the steps through the quantiser that may follow, `held_out_loss` what judges
both, and `training` all of it as one call.
"""
