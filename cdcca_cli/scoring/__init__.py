"""Scores that can be checked: VQA and captions, with intervals, and the link's ledger in bytes.

`report.evaluate` is the whole of `cdcca eval`; `scores.score` and `scores.compare` score answers
that are in memory already; `tasks` says what each metric is; `statistics` knows nothing of any. No
model, no network, and Java only where it is asked for.
"""
