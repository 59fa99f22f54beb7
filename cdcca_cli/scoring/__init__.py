"""Scores of predictions with intervals, and the bytes of the link.

In the order of the data: `settings`, `answers` (predictions from files), `tasks` (what is scored),
`measures` (each question's part in a metric, by `vqa` and `captions`), `scores` (over everything
and over groups, by `statistics`), `continual` (over rounds), `link` (bytes), `report` and `plots`.
`evaluation.evaluate` does all of `cdcca eval`.
"""
