"""K of Equation 1: the large model teaches the small one, from token shards alone.

`losses` are the equations, `teacher` what the large model says of each shard, `trainable` the
opened part of the student, `run` the epochs over them, `rate_aware` the steps through the quantiser
that may follow, `held_out_loss` what judges both, and `training` all of it as one call.
"""
