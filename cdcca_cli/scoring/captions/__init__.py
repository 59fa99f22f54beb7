"""Captions against people's captions: BLEU, CIDEr-D, ROUGE-L, METEOR and SPICE.

`tokens` splits captions into words, `java` runs what needs Java, and `scorers` has the metrics.
"""
