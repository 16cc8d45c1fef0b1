"""Fixtures that the tests of several stations share."""
import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    "Folder of the real labelled comments; tests that use it are skipped where there is none."
    folder = os.environ.get("CONTENT_ARENA_DATA_DIR")
    if not folder:
        pytest.skip("CONTENT_ARENA_DATA_DIR is not set")
    return Path(folder)
