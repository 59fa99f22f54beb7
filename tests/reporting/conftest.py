"""Maps and fleets as the report sees them, and a report of a small run."""

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cdcca_cli import inspection
from cdcca_cli.reporting.gather import gather
from cdcca_cli.reporting.settings import ReportSettings
from tests.reporting import runs

for name in ("maps", "fleet"):  # while they are not there
    if find_spec(f"cdcca_cli.inspection.{name}") is None:
        stub: Any = ModuleType(f"cdcca_cli.inspection.{name}")
        stub.has_map, stub.heat_map = lambda shard: True, lambda shard, picture: picture
        sys.modules[stub.__name__] = stub
        setattr(inspection, name, stub)

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\"'--></svg></style></title>&lt;"
    "{{ 7*7 }}{% raw %}\x1b[31m\u202egnp.exe\u2066 $x_1$ javascript:alert(3)"
)
"""Markup, script, ends of elements, templates, mathematics, colours of a terminal, direction."""


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run` and `heldout`."""
    folder = tmp_path_factory.mktemp("small")
    runs.run(folder / "run")
    runs.frames(folder / "heldout", 20)
    return folder


@pytest.fixture(scope="session")
def report(small: Path) -> dict[str, Any]:
    """The object of a report with every section of a run."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    found, bad = gather([small / "run"], ReportSettings((str(small / "heldout"),)))
    assert not bad.files
    return found


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same of a run in which every text that others write is HOSTILE."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    folder = tmp_path_factory.mktemp("hostile")
    runs.run(folder / "run", words=HOSTILE)
    frames = runs.frames(folder / "heldout", 20, HOSTILE)
    settings = ReportSettings((f"heldout={frames}",))
    found, bad = gather([folder / "run"], settings, title=None)
    assert not bad.files
    return found
