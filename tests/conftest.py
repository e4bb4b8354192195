"""Fixtures shared by every test."""

import os
from pathlib import Path

import pytest

# albumentations asks the package index for updates at import unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Small real data sets beside the project; tests on generated data stand beside each use."""
    folder = PROJECT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data sets beside the project")
    return folder
