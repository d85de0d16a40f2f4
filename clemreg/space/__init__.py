"""Geometry: grids, boxes and transforms of points, in nm and zyx; numpy and scipy only."""

from __future__ import annotations

from clemreg.space.grid import Box, Grid
from clemreg.space.transform import Affine, Chain, Transform

__all__ = ["Affine", "Box", "Chain", "Grid", "Transform"]
