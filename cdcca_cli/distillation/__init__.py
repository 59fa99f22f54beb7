"""K of Equation 1: the large model teaches the small one, from token shards alone.

`losses` are the equations, `teacher` what the large model says of each shard, `trainable` the
opened part of the student, `training` the loop over them.
"""
