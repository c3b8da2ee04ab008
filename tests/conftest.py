"""Fixtures that every test can use."""

import os
from pathlib import Path

import pytest

# Tests never look anything up on a hub; set before transformers is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository():
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data():
    """Folder of the real recordings and annotations; skips where it is absent."""
    folder = Path(os.environ.get("SPEECHBRAIN_EMO_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}: set SPEECHBRAIN_EMO_DATA to its folder")
    return folder
