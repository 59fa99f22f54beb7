"""Which model is which: one row for each family that cdcca can load.

`family` says what a row holds, `table` holds the rows. A family whose parts differ in code, not in
names, gets a small file of functions here, which its row names; `models` calls them.

Light: importing this package imports neither torch nor transformers.
"""

from cdcca_cli.families.family import IMAGE_MARK, Family, TextModel
from cdcca_cli.families.table import FAMILIES, text_model

__all__ = ["FAMILIES", "IMAGE_MARK", "Family", "TextModel", "text_model"]
