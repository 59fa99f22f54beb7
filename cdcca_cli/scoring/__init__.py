"""Scores that can be checked: VQA and captions, with intervals, and the link's ledger in bytes.

`report.evaluate` is the whole of `cdcca eval`; `scores.score` and `scores.compare` score answers
that are in memory already; `statistics` knows nothing of any metric. No Java, no model, no network.
"""
