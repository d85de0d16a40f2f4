"""Geometry: grids, boxes and transforms of points, in nm and zyx; numpy and scipy only."""

from __future__ import annotations

from clemreg.space.bspline import BSpline
from clemreg.space.field import DisplacementField
from clemreg.space.fits import best_affine, fit_affine, fit_rigid, fit_similarity
from clemreg.space.grid import Box, Grid
from clemreg.space.inverse import Inverse, round_trip_nm
from clemreg.space.landmarks import Landmarks
from clemreg.space.tps import ThinPlateSpline
from clemreg.space.transform import Affine, Chain, Transform

__all__ = [
    "Affine",
    "BSpline",
    "Box",
    "Chain",
    "DisplacementField",
    "Grid",
    "Inverse",
    "Landmarks",
    "ThinPlateSpline",
    "Transform",
    "best_affine",
    "fit_affine",
    "fit_rigid",
    "fit_similarity",
    "round_trip_nm",
]
