"""Transforms that the tests of file formats share, and what ITK and elastix call them."""

from __future__ import annotations

import csv

import numpy as np
import SimpleITK as sitk

from clemreg.space.bspline import BSpline
from clemreg.space.field import DisplacementField
from clemreg.space.grid import Grid
from clemreg.space.transform import Affine, Chain

GRID = Grid((11, 17, 23), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "lm")
UM = 1e3


def rotation(angles) -> np.ndarray:
    """Of ITK's Euler3DTransform, xyz, as an oracle for directions."""
    return np.array(sitk.Euler3DTransform((0, 0, 0), *angles).GetMatrix()).reshape(3, 3)


def an_affine(source="lm", target="em") -> Affine:
    linear = rotation((0.3, -0.4, 0.9)) @ [[1.1, 0.2, 0], [0, 0.9, -0.1], [0, 0, -1.05]]
    return Affine.from_linear(linear, [1234.5, -77.25, 310.0], source, target)


def a_bspline(source="lm", target="em", direction=None) -> BSpline:
    rng = np.random.default_rng(11)
    return BSpline(
        coefficients_nm=rng.normal(0, 4.0, (3, 7, 9, 10)),
        grid_origin_nm=np.array([270.0, -230.0, 40.0]),
        grid_spacing_nm=np.array([19.5, 16.25, 18.0]),
        source=source,
        target=target,
        direction=np.eye(3) if direction is None else direction,
    )


def a_field(source="lm", target="em") -> DisplacementField:
    rng = np.random.default_rng(12)
    return DisplacementField(rng.normal(0, 9, (3, *GRID.shape)), GRID.with_frame(source), target)


def points_in(grid: Grid, n: int = 200, seed: int = 1) -> np.ndarray:
    low, high = grid.corners_nm().min(0), grid.corners_nm().max(0)
    return np.random.default_rng(seed).uniform(low, high, (n, 3))


def by_sitk(transform, points_nm, unit_nm=UM) -> np.ndarray:
    """What SimpleITK makes of zyx nm points."""
    mapped = [transform.TransformPoint(tuple(p[::-1] / unit_nm)) for p in np.asarray(points_nm)]
    return np.array(mapped)[:, ::-1] * unit_nm


def an_elastix_chain() -> Chain:
    direction = rotation((0.1, -0.2, 0.15))
    small = Affine.from_linear(rotation((0.02, 0.01, -0.03)), [3.0, -2.0, 4.0], "lm", "mid")
    back = Affine.from_linear(np.eye(3) * [1.2, 1, 0.9], [700.0, 100, -60], "bent", "em")
    return Chain((small, a_bspline("mid", "bent", direction), back))


def elastix_text(kind, numbers, initial="NoInitialTransform", **keys) -> str:
    lines = {
        "Transform": f'"{kind}"',
        "NumberOfParameters": len(numbers),
        "TransformParameters": " ".join(repr(float(v)) for v in numbers),
        "InitialTransformParameterFileName": f'"{initial}"',
        "HowToCombineTransforms": '"Compose"',
        "FixedImageDimension": 3,
        "MovingImageDimension": 3,
        "CenterOfRotationPoint": "0.5 -0.25 2.0",
        "Size": "23 17 11",
        "Index": "0 0 0",
        "Spacing": "0.004 0.004 0.00524",
        "Origin": "0.07 -0.2 0.3",
        "Direction": "1 0 0 0 1 0 0 0 1",
    }
    lines.update(keys)
    return "// made for a test\n\n" + "\n".join(f"({k} {v})" for k, v in lines.items() if v != "")


ANGLES, SHIFT, CENTRE = (0.3, 0.5, 0.7), (1.0, -2.0, 3.0), (0.5, -0.25, 2.0)


def itk_euler(zyx: bool):
    transform = sitk.Euler3DTransform(CENTRE, *ANGLES, SHIFT)
    transform.SetComputeZYX(zyx)
    return transform


def itk_similarity():
    transform = sitk.Similarity3DTransform()
    transform.SetCenter(CENTRE)
    transform.SetParameters((0.1, -0.2, 0.3, *SHIFT, 1.25))
    return transform


def itk_affine():
    return sitk.AffineTransform((1.1, 0.2, 0.3, 0, 0.9, -0.2, 0.05, 0, 1.2), SHIFT, CENTRE)


def cosem_rows(path, rater):
    """Independent of clemreg's own reader: (N, 3) em and lm, xyz um."""
    with path.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["Rater ID"] == rater]
    return tuple(
        np.array([[float(row[f"{side}-{axis}"]) for axis in "xyz"] for row in rows])
        for side in ("em", "lm")
    )
