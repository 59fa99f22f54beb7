"""Scores of predictions with intervals, and the bytes of the link.

In the order in which data passes: `settings`, `answers` (predictions from files), `tasks` (what is
scored), `measures` (each question's part in a metric, by `vqa` and `captions`), `scores` (over
everything and over groups, alone and compared, by `statistics`), `continual` (over rounds), `link`
(bytes), `report` and `plots` (for people). `evaluation.evaluate` does all of `cdcca eval`. Uses no
model and no network, and Java only on request.
"""
