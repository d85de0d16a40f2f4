"""A small anisotropic volume off the origin, which the tests of volumes share."""

from __future__ import annotations

import numpy as np

from clemreg.testing import hostile_grid

GRID = hostile_grid("em")
RNG = np.random.default_rng(3)
PIXELS = RNG.integers(1, 250, GRID.shape).astype(np.uint8)


def same_place(volume, grid=GRID):
    np.testing.assert_allclose(volume.grid.spacing_nm, grid.spacing_nm, rtol=1e-6)
    np.testing.assert_allclose(volume.grid.origin_nm, grid.origin_nm, atol=1e-6)
