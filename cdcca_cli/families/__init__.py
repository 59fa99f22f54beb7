"""The families of vision-language models that cdcca can load, each a row of `table`.

A new family of a known kind is a row in `table` and a line in tests/zoo's list. `connectors` has
the connectors that are not one module's call, `processors` and `adjusting` what two or three
families need done to their processors, `refused` the models that cannot be loaded. Imports neither
torch nor transformers before it is used.
"""

from cdcca_cli.families.table import FAMILIES, Family, family_of, named, text_model

__all__ = ["FAMILIES", "Family", "family_of", "named", "text_model"]
