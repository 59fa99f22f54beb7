"""Importing this puts `../pair` on the module path: the recipe of the drawn world is used here."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "pair"))
