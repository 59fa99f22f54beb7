"""The families of vision-language models that cdcca can load, each a row of `table`.

A new family of a known kind is a row in `table`, whose columns are in `family`, and a line in
tests/zoo's list. `connectors` has the connectors that are not one module's call, `processors` and
`adjusting` what two or three families need done to their processors, `refused` the models that
cannot be loaded. Imports neither torch nor transformers before it is used.
"""

from cdcca_cli.families.family import Family
from cdcca_cli.families.table import FAMILIES, family_named, family_of, text_model

__all__ = ["FAMILIES", "Family", "family_named", "family_of", "text_model"]
