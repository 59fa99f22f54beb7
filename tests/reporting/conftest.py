"""Maps and fleets as the report sees them, and a report of a small run."""

from pathlib import Path
from typing import Any

import pytest

from cdcca_cli.reporting.gather import gather
from cdcca_cli.reporting.settings import ReportSettings
from tests.reporting import runs


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run` and `frames`."""
    folder = tmp_path_factory.mktemp("small")
    runs.run(folder / "run")
    runs.frames(folder / "heldout", 20)
    return folder


@pytest.fixture(scope="session")
def report(small: Path) -> dict[str, Any]:
    """The object of a report with every section."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    found, bad = gather([small / "run"], ReportSettings((str(small / "heldout"),)))
    assert not bad.files
    return found
