from __future__ import annotations

import numpy as np
import pytest

from clemreg.errors import DataError
from clemreg.space.fits import best_affine, fit_affine, fit_rigid, fit_similarity
from clemreg.space.landmarks import Landmarks
from clemreg.space.tps import ThinPlateSpline
from clemreg.space.transform import Affine
from clemreg.testing import hostile_grid, random_affine, random_bspline, random_rotation


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture
def points(rng):
    return rng.uniform([300, -200, 70], [900, 400, 2000], (12, 3))


def test_exact_pairs_give_the_exact_transform(rng, points):
    rotation = random_rotation(rng)
    cases = {
        fit_rigid: Affine.from_linear(rotation, [5, -7, 9], "lm", "em"),
        fit_similarity: Affine.from_linear(1.13 * rotation, [5, -7, 9], "lm", "em"),
        fit_affine: random_affine(rng, mirror=True),
    }
    for fit, truth in cases.items():
        found = fit(points, truth(points), "lm", "em")
        np.testing.assert_allclose(found.matrix, truth.matrix, atol=1e-7)
        assert (found.source, found.target) == ("lm", "em")


def test_rigid_and_similarity_never_mirror(rng, points):
    mirrored = random_affine(rng, mirror=True)(points)
    for fit in (fit_rigid, fit_similarity):
        found = fit(points, mirrored, "lm", "em")
        assert np.linalg.det(found.linear) > 0


def test_rigid_is_the_best_of_its_neighbours(rng, points):
    noisy = Affine.from_linear(random_rotation(rng), [1, 2, 3], "a", "b")(points)
    noisy = noisy + rng.normal(scale=20, size=noisy.shape)
    found = fit_rigid(points, noisy, "a", "b")

    def cost(transform):
        return ((transform(points) - noisy) ** 2).sum()

    centre = points.mean(axis=0)
    for axis in range(3):
        for angle in (-1e-3, 1e-3):
            generator = np.zeros((3, 3))
            i, j = [k for k in range(3) if k != axis]
            generator[i, j], generator[j, i] = -angle, angle
            turn = np.linalg.qr(np.eye(3) + generator)[0]
            turn = turn * np.sign(np.diag(turn))
            nudged = Affine.from_linear(turn, centre - turn @ centre, "a", "a").then(found)
            assert cost(found) <= cost(nudged)


@pytest.mark.parametrize("fit", [fit_rigid, fit_similarity, fit_affine])
def test_degenerate_points_are_refused(fit, points):
    line = np.outer(np.arange(6.0), [1, 2, 3])
    with pytest.raises(DataError):
        fit(line, line, "a", "b")
    with pytest.raises(DataError):
        fit(points[:2], points[:2], "a", "b")
    with pytest.raises(DataError, match="differ in number"):
        fit(points, points[:5], "a", "b")
    broken = points.copy()
    broken[0, 0] = np.nan
    with pytest.raises(DataError, match="finite"):
        fit(points, broken, "a", "b")


@pytest.mark.parametrize("fit", [fit_rigid, fit_similarity])
def test_no_rotation_from_a_line_on_either_side_even_if_clicked(rng, fit):
    """Clicks scatter by nanometres over micrometres: that is no breadth."""
    places = rng.normal(size=(6, 3)) * 1000
    line = np.outer(np.arange(6.0), [1000, 2000, -3000]) + rng.normal(size=(6, 3)) * 0.3
    for a, b in ((line, places), (places, line), (np.ones((6, 3)), places)):
        with pytest.raises(DataError, match="on one line"):
            fit(a, b, "a", "b")


def test_an_affine_needs_points_off_a_plane(points):
    flat = points * [0, 1, 1]
    with pytest.raises(DataError, match="plane"):
        fit_affine(flat, flat, "a", "b")


def test_best_affine_leaves_a_residual_without_linear_part(rng):
    grid = hostile_grid("lm")
    transform = random_affine(rng, "lm", "lm").then(random_bspline(rng, grid))
    voxels = grid.points_nm().reshape(-1, 3)
    affine = best_affine(transform, voxels)
    residual = transform(voxels) - affine(voxels)
    centred = np.c_[np.ones(len(voxels)), voxels - voxels.mean(axis=0)]
    np.testing.assert_allclose(centred.T @ residual, 0, atol=1e-5)


def test_tps_is_scipys(rng, points):
    from scipy.interpolate import RBFInterpolator

    goals = points + rng.normal(scale=40, size=points.shape)
    spline = ThinPlateSpline(points, goals, "lm", "em")
    oracle = RBFInterpolator(points, goals, kernel="thin_plate_spline", degree=1)
    anywhere = rng.uniform(-500, 2500, (300, 3))
    np.testing.assert_allclose(spline(anywhere), oracle(anywhere), rtol=1e-7, atol=1e-5)
    np.testing.assert_allclose(spline(points), goals, atol=1e-7)


def test_tps_refuses_planes_and_doubles(points):
    with pytest.raises(DataError, match="plane"):
        ThinPlateSpline(points * [0, 1, 1], points, "a", "b")
    with pytest.raises(DataError, match="at least 4"):
        ThinPlateSpline(points[:3], points[:3], "a", "b")
    doubled = np.vstack([points, points[:1]])
    with pytest.raises(DataError, match="same place"):
        ThinPlateSpline(doubled, np.vstack([points, points[:1] + 9]), "a", "b")


def test_landmarks_select_and_join(rng):
    table = Landmarks(
        ("1", "2", "1", "2"),
        rng.uniform(size=(4, 3)),
        np.where([[False], [True], [False], [False]], np.nan, rng.uniform(size=(4, 3))),
        ("AW", "AW", "JB", "JB"),
        active=np.array([True, True, True, False]),
    )
    assert table.raters == ("AW", "JB")
    assert table.usable.names == ("1", "1")
    assert table.select(rater="JB").names == ("1", "2")
    joined = Landmarks.concat([table.select(rater="JB"), table.select(rater="AW")])
    assert joined.rater == ("JB", "JB", "AW", "AW")
    np.testing.assert_array_equal(joined.lm_nm[2:], table.lm_nm[:2])
    from clemreg.errors import MissingError

    with pytest.raises(MissingError, match="AW, JB"):
        table.select(rater="nobody")
    with pytest.raises(DataError, match="length"):
        Landmarks(("1", "2"), np.zeros((1, 3)), np.zeros((2, 3)))
