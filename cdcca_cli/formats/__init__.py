"""The files that travel: each module's docstring is the specification of one format.

Nothing here imports torch, opens standard streams, or knows a model.
"""
