from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

# With import mode importlib, the module beside this file is not found by its name.
sys.path.append(str(Path(__file__).parent))

import imagej_process as tools
from script_runs import LM

from clemreg.io.transforms import write_transform
from clemreg.io.volumes import write_volume
from clemreg.space import Grid
from clemreg.testing import random_affine, random_bspline
from clemreg.volume import Volume


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


@pytest.fixture(scope="session")
def clemreg(tmp_path_factory):
    return tools.clemreg_program(tmp_path_factory.mktemp("programs"))


@pytest.fixture
def files(tmp_path):
    """A transform, both volumes, and where they are."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data, ü"
    folder.mkdir()
    transform = random_affine(rng, "lm", "lm").then(random_bspline(rng, LM, target="em"))
    write_transform(transform, folder / "t.json")
    write_volume(folder / "lm.zarr", Volume(rng.integers(1, 99, LM.shape).astype("u1"), LM))
    middle = transform(LM.centre_nm[None])[0]
    em = Grid((40, 44, 48), (40.0, 30.0, 30.0), tuple(middle - [800, 660, 720]), "em")
    write_volume(folder / "em.zarr", Volume(rng.integers(1, 99, em.shape).astype("u1"), em))
    return folder, transform
