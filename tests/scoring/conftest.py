"""Fixtures for the tests of scores."""

from pathlib import Path

import pytest

from tests.scoring.coco import FOLDER


@pytest.fixture(scope="session")
def coco() -> Path:
    """The folder of the real captions; skips where they are not."""
    if not FOLDER.is_dir():
        pytest.skip("the real captions are not beside the project")
    return FOLDER
