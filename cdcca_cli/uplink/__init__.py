"""U, the uplink: what the device answers, how sure it is, and what of that is worth sending.

`entropy` is Equation 2, `variance` Equations 3 and 4, `selection` the rules that turn both into a
choice, `answers` the pass that `cdcca infer` and `cdcca sample` share, `sampling` the pipeline from
frames to shards, `seen` what a device that runs it from cron remembers.

Does not read or write files of any format (`formats`, `datasets`), but for `seen`, and knows no
model class (`families`).
"""
