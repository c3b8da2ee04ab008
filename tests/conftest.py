"""Fixtures that every test can use."""

import os
import tempfile
from pathlib import Path

import pytest

# Tests never look anything up on a hub; set before transformers is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# On a new machine several workers compile librosa's functions at once, into one folder beside them, and workers died in
# these functions. Each worker has a folder of its own.
os.environ.setdefault(
    "NUMBA_CACHE_DIR",
    str(
        Path(tempfile.gettempdir()) / f"speechbrain_emo_numba_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
    ),
)

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
