"""Fixtures that every test can use."""

import importlib
import os
from pathlib import Path

import pytest

# Tests never look anything up on a hub; set before transformers is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before any library imports librosa by itself: see there. The first worker of a new machine compiles, the others wait.
importlib.import_module("speechbrain_emo.dataio.compiled_librosa")

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
