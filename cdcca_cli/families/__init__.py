"""The families of vision-language models that cdcca can load, each a row of `table`.

A new family of a known connector kind is a row in `table` and a checkpoint in the lists of
tests/models/conftest.py; no other code changes. A new kind is a subclass of `models.LoadedModel`.

Importing this package imports neither torch nor transformers.
"""

from cdcca_cli.families.table import FAMILIES, IMAGE_MARK, Family, text_model

__all__ = ["FAMILIES", "IMAGE_MARK", "Family", "text_model"]
