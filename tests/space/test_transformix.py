"""The B-spline against transformix itself: displacement fields and Jacobian determinants."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from clemreg.io.elastix_files import write_elastix
from clemreg.space import BSpline, Grid
from clemreg.testing import random_affine, random_rotation

pytest.importorskip("itk")
pytestmark = [pytest.mark.elastix, pytest.mark.slow, pytest.mark.xdist_group("elastix")]

GRID = Grid((11, 17, 23), (104.0, 52.0, 61.0), (300.0, -200.0, 70.0), "lm")

CHILD = textwrap.dedent("""
    import sys
    import itk, numpy as np
    last, spacing, origin, shape, out = sys.argv[1], *map(eval, sys.argv[2:5]), sys.argv[5]
    parameters = itk.ParameterObject.New()
    parameters.ReadParameterFiles(eval(last))
    image = itk.image_from_array(np.zeros(shape, np.float32))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    transformix = itk.TransformixFilter.New(image)
    transformix.SetTransformParameterObject(parameters)
    transformix.SetComputeDeformationField(True)
    transformix.SetComputeSpatialJacobian(False)
    transformix.SetComputeDeterminantOfSpatialJacobian(False)
    transformix.Update()
    field = itk.array_from_image(transformix.GetOutputDeformationField())
    determinant = transformix.ComputeSpatialJacobianDeterminantImage()
    np.savez(out, field=field, determinant=itk.array_from_image(determinant))
""")


@pytest.mark.parametrize("rotated", [False, True])
def test_fields_and_determinants_are_those_of_transformix(tmp_path, rotated):
    rng = np.random.default_rng(8)
    direction = random_rotation(rng) if rotated else np.eye(3)
    spacing = np.array([310.0, 240.0, 270.0])
    shape = (14, 13, 15)
    affine = random_affine(rng, "lm", "em")
    middle = affine(GRID.centre_nm[None])[0]
    origin = middle - direction @ (spacing * (np.array(shape) - 1) / 2)
    bspline = BSpline(
        rng.normal(scale=40, size=(3, *shape)), origin, spacing, "em", "em", direction
    )
    transform = affine.then(bspline)
    files = write_elastix(transform, tmp_path, GRID)
    words = [
        repr([Path(f).name for f in files]),
        repr([s / 1e3 for s in GRID.spacing_nm[::-1]]),
        repr([o / 1e3 for o in GRID.origin_nm[::-1]]),
        repr(GRID.shape),
        str(tmp_path / "out.npz"),
    ]
    subprocess.run([sys.executable, "-c", CHILD, *words], check=True, cwd=tmp_path, timeout=300)
    found = np.load(tmp_path / "out.npz")
    points = GRID.points_nm().reshape(-1, 3)
    moved = (transform(points) - points).reshape(*GRID.shape, 3)
    # transformix returns float32 um: its own rounding is about 1e-4 nm at these sizes.
    np.testing.assert_allclose(found["field"][..., ::-1] * 1e3, moved, atol=1e-3)
    determinant = transform.determinant(points).reshape(GRID.shape)
    assert np.ptp(determinant) > 0.2
    np.testing.assert_allclose(found["determinant"], determinant, atol=1e-5)
