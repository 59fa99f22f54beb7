"""Captions against people's captions: BLEU, CIDEr-D, ROUGE-L, METEOR and SPICE.

`tokens` splits captions into words, `java` runs the programs that need Java, and `scorers` has one
function for each metric.
"""
