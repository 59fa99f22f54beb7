"""The families of vision-language models that cdcca can load, each a row of `table`.

A new family of a known connector kind is a row in `table` and a checkpoint in
tests/models/conftest.py. A new kind is a subclass of `models.LoadedModel`. Imports neither torch
nor transformers.
"""

from cdcca_cli.families.table import FAMILIES, IMAGE_MARK, Family, text_model

__all__ = ["FAMILIES", "IMAGE_MARK", "Family", "text_model"]
