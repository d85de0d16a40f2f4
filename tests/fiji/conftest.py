from __future__ import annotations

import sys
from pathlib import Path

import pytest

# With import mode importlib, the module beside this file is not found by its name.
sys.path.append(str(Path(__file__).parent))

import imagej_process as tools


@pytest.fixture(scope="session")
def display():
    """Name of a virtual X display."""
    missing = tools.missing_tools()
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    screen = tools.Display()
    yield screen.name
    screen.close()


@pytest.fixture(scope="session")
def _running(display, tmp_path_factory):
    started = []

    def give():
        if not started or not started[-1].alive:
            started.append(tools.ImageJ(display, tmp_path_factory.mktemp("imagej")))
        return started[-1]

    yield give
    for program in started:
        program.close()


@pytest.fixture
def imagej(_running):
    """Real ImageJ; a new one if a test before this had to end it."""
    return _running()
