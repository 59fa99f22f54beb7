"""U, the uplink: what the device answers, how sure it is, and what of that is worth sending.

In the order in which a frame passes: `answers` is the pass that `cdcca infer` and `cdcca sample`
share, `uncertainty` holds Equations 2, 3 and 4, `selection` the rules that pick by them, `sampling`
the pipeline from frames to shards, with its `spool` on disk. `seen` is what a device that samples
from cron remembers, `settings` the settings of both commands.

Does not read or write files of any format (`formats`, `datasets`), but for `seen`, and knows no
model class (`models`).
"""
