"""Importing this puts `../photographs` and `../pair` on the module path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "photographs"))
import beside_pair  # noqa: F401
