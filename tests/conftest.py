from __future__ import annotations

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data that is not part of clemreg: `$CLEMREG_SHARED_DATA`, or `shared/data` beside it."""
    folder = Path(os.environ.get("CLEMREG_SHARED_DATA", REPO.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("real data not present; set CLEMREG_SHARED_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The simulated pair that comes with clemreg."""
    return REPO / "sample_data"
