from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from clemreg.io.quantise import quantise
from clemreg.space.grid import Grid

GRID = Grid((14, 25, 31), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")


def blobs(seed, grid=GRID, sigma_nm=9.0, level=0.4):
    """Prediction of random smooth objects, some hollow, many at the border."""
    rng = np.random.default_rng(seed)
    sigma = [sigma_nm / s for s in grid.spacing_nm]
    field = ndimage.gaussian_filter(rng.normal(size=grid.shape), sigma)
    field /= field.std()
    return quantise(np.tanh((np.abs(field) - level - 0.4) * 0.7))


@pytest.fixture
def grid():
    return GRID


@pytest.fixture
def prediction():
    return blobs(1)
