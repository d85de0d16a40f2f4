"""ITK transform files, against SimpleITK."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from clemreg.errors import FormatError
from clemreg.io.transforms import read_transform, write_transform
from clemreg.space.tps import ThinPlateSpline
from clemreg.space.transform import Affine, Chain

from .transform_cases import (
    GRID,
    UM,
    a_bspline,
    a_field,
    an_affine,
    by_sitk,
    itk_affine,
    itk_euler,
    itk_similarity,
    points_in,
    rotation,
)


@pytest.mark.parametrize("suffix", [".h5", ".tfm"])
@pytest.mark.parametrize(
    "transform",
    [
        an_affine(),
        a_bspline(direction=rotation((0.1, -0.2, 0.15))),
        a_field(),
        Chain((an_affine("lm", "mid"), a_bspline("mid", "mid2"), an_affine("mid2", "em"))),
    ],
    ids=lambda t: type(t).__name__,
)
def test_simpleitk_reads_what_we_write_and_back(tmp_path, transform, suffix):
    path = tmp_path / f"t{suffix}"
    write_transform(transform, path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    points = points_in(GRID, 100)
    expected = transform(points)
    np.testing.assert_allclose(by_sitk(sitk.ReadTransform(str(path)), points), expected, atol=1e-6)
    again = read_transform(path)
    assert (again.source, again.target) == ("lm", "em")
    np.testing.assert_allclose(again(points), expected, atol=1e-6)


@pytest.mark.parametrize(
    "oracle", [itk_euler(zyx=True), itk_similarity(), sitk.Transform(3, sitk.sitkIdentity)]
)
def test_itk_linear_transforms(tmp_path, oracle):
    sitk.WriteTransform(oracle, str(tmp_path / "t.txt"))
    found = read_transform(tmp_path / "t.txt", unit="mm")
    assert isinstance(found, Affine)
    points = points_in(GRID, 10) * 1e4
    np.testing.assert_allclose(found(points), by_sitk(oracle, points, 1e6), atol=1e-6)


def test_itk_nested_composite_and_rotated_field(tmp_path):
    vectors = np.random.default_rng(5).normal(0, 0.01, (*GRID.shape, 3))
    image = sitk.GetImageFromArray(vectors, isVector=True)
    image.SetSpacing((0.004, 0.004, 0.00524))
    image.SetOrigin((0.07, -0.2, 0.3))
    image.SetDirection(rotation((0.1, -0.2, 0.15)).ravel().tolist())
    inside = [
        image.TransformContinuousIndexToPhysicalPoint(p) for p in ((3.3, 4.4, 5.5), (20, 9, 2.5))
    ]
    inner = sitk.CompositeTransform(3)
    inner.AddTransform(itk_affine())
    inner.AddTransform(itk_affine().GetInverse())
    oracle = sitk.CompositeTransform(3)
    oracle.AddTransform(itk_euler(zyx=False))
    oracle.AddTransform(sitk.DisplacementFieldTransform(image))
    oracle.AddTransform(inner)
    path = tmp_path / "t.h5"
    oracle.FlattenTransform()
    sitk.WriteTransform(oracle, str(path))
    points = np.array(inside)[:, ::-1] * UM
    expected = by_sitk(oracle, points)
    moved = by_sitk(itk_euler(zyx=False), points)
    assert np.abs(expected - moved).min() > 0.1
    np.testing.assert_allclose(read_transform(path)(points), expected, atol=1e-6)


def test_transforms_side_by_side_are_refused(tmp_path):
    """SimpleITK would take the first, and only print a warning."""
    sitk.WriteTransform(itk_affine(), str(tmp_path / "a.tfm"))
    text = (tmp_path / "a.tfm").read_text()
    (tmp_path / "b.tfm").write_text(text + text[text.index("#Transform") :])
    with pytest.raises(FormatError, match="2 transforms side by side"):
        read_transform(tmp_path / "b.tfm")


def test_damaged_lattice_size_does_not_hang(tmp_path):
    h5py = pytest.importorskip("h5py")
    write_transform(a_bspline(), tmp_path / "t.h5")
    with h5py.File(tmp_path / "t.h5", "r+") as file:
        file["TransformGroup/0/TransformFixedParameters"][1] = 1e18
    with pytest.raises(FormatError, match="do not fit its lattice"):
        read_transform(tmp_path / "t.h5")
    with h5py.File(tmp_path / "t.h5", "r+") as file:
        file["TransformGroup/0/TransformFixedParameters"][1] = np.nan
    with pytest.raises(FormatError, match="NaN"):
        read_transform(tmp_path / "t.h5")


def test_two_dimensional_and_quadratic_itk_transforms_are_refused(tmp_path):
    sitk.WriteTransform(sitk.AffineTransform(2), str(tmp_path / "t.tfm"))
    with pytest.raises(FormatError, match="2-D"):
        read_transform(tmp_path / "t.tfm")
    sitk.WriteTransform(sitk.BSplineTransform(3, 2), str(tmp_path / "t.h5"))
    with pytest.raises(FormatError, match="order 2"):
        read_transform(tmp_path / "t.h5")


def test_itk_has_no_thin_plate_spline(tmp_path):
    spline = ThinPlateSpline(points_in(GRID, 8), points_in(GRID, 8, 2), "lm", "em")
    with pytest.raises(FormatError, match="ThinPlateSpline"):
        write_transform(spline, tmp_path / "t.h5")
    with pytest.raises(FormatError, match="how to write"):
        write_transform(an_affine(), tmp_path / "t.txt")
    assert not list(tmp_path.iterdir())
