from __future__ import annotations

import numpy as np
import pytest

from clemreg.errors import FrameError, GridError
from clemreg.space import Affine, Chain
from clemreg.space.bspline import BSpline
from clemreg.space.field import DisplacementField
from clemreg.space.inverse import Inverse, round_trip_nm
from clemreg.space.tps import ThinPlateSpline
from clemreg.testing import hostile_grid, random_affine, random_bspline, random_rotation


def numeric_jacobian(transform, points, step=1e-3):
    columns = []
    for axis in range(3):
        shift = np.zeros(3)
        shift[axis] = step
        columns.append((transform(points + shift) - transform(points - shift)) / (2 * step))
    return np.stack(columns, axis=-1)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def points(rng):
    grid = hostile_grid("lm")
    low, high = grid.corners_nm()[[0, -1]]
    return rng.uniform(low + 3, high - 3, (200, 3))


def transforms(rng):
    grid = hostile_grid("lm")
    affine = random_affine(rng, mirror=True)
    bspline = random_bspline(rng, grid, direction=random_rotation(rng))
    low, high = grid.corners_nm()[[0, -1]]
    centres = rng.uniform(low, high, (20, 3))
    moved = centres + rng.normal(scale=1.5, size=centres.shape)
    field = DisplacementField.sample(random_bspline(rng, grid), grid)
    return {
        "affine": affine,
        "bspline": bspline,
        "chain": Chain((random_affine(rng, "lm", "lm"), bspline, affine)),
        "tps": ThinPlateSpline(centres, moved, "lm", "em"),
        "field": DisplacementField(field.displacement_nm, grid, "em"),
    }


@pytest.mark.parametrize("kind", ["affine", "bspline", "chain", "tps", "field"])
def test_jacobian_is_the_derivative(rng, points, kind):
    transform = transforms(rng)[kind]
    if kind == "field":  # piecewise linear: keep away from the kinks
        grid = transform.grid
        index = np.floor(grid.to_index(points)) + rng.uniform(0.1, 0.9, points.shape)
        points = grid.to_world(np.clip(index, 0.1, np.asarray(grid.shape) - 1.1))
    np.testing.assert_allclose(
        transform.jacobian(points), numeric_jacobian(transform, points), atol=2e-6
    )


@pytest.mark.parametrize("kind", ["affine", "bspline", "chain", "tps", "field"])
def test_inverse_brings_points_back(rng, points, kind):
    transform = transforms(rng)[kind]
    assert round_trip_nm(transform, points).max() < 1e-3
    inverse = transform.inverse()
    assert (inverse.source, inverse.target) == (transform.target, transform.source)
    there = transform(points)
    np.testing.assert_allclose(inverse(there), points, atol=1e-3)
    product = inverse.jacobian(there) @ transform.jacobian(points)
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(3), product.shape), atol=1e-4)


def test_newton_solves_what_the_fixed_point_cannot():
    """A shear of 1.6 makes the plain iteration diverge."""
    shear = Affine.from_linear([[1, 1.6, 0], [0, 1, 1.6], [0, 0, 1]], [3, -2, 1], "a", "a")
    goal = np.random.default_rng(0).uniform(-100, 100, (50, 3))
    np.testing.assert_allclose(Inverse(shear)(goal), shear.inverse()(goal), atol=1e-3)


def test_a_fold_has_no_inverse():
    from clemreg.errors import ConvergenceError

    collapse = Affine.from_linear(np.diag([1.0, 1.0, 0.0]), [0, 0, 0], "a", "a")
    with pytest.raises(ConvergenceError, match="1 of 1 points"):
        Inverse(collapse)([[0.0, 0.0, 5.0]])


def test_chaining_checks_frames(rng):
    forward = random_affine(rng, "lm", "em")
    with pytest.raises(FrameError, match="inverse"):
        forward.then(forward)
    with pytest.raises(FrameError):
        Chain((forward, random_bspline(rng, hostile_grid("lm"))))
    assert forward.then(forward.inverse()).target == "lm"


def test_chain_applies_first_to_last(rng, points):
    first, second = random_affine(rng, "lm", "lm"), random_bspline(rng, hostile_grid("lm"))
    chain = first.then(second)
    np.testing.assert_array_equal(chain(points), second(first(points)))
    assert not np.allclose(chain(points), first(second(points)))
    nested = Chain((chain, Chain((random_affine(rng),))))
    assert len(nested.parts) == 3


def test_two_affines_become_one(rng, points):
    first, second = random_affine(rng, "lm", "em"), random_affine(rng, "em", "atlas")
    both = first.then(second)
    assert isinstance(both, Affine)
    np.testing.assert_allclose(both(points), second(first(points)), rtol=1e-12)


def test_mirror_and_scale_are_reported(rng):
    assert random_affine(rng, mirror=True).is_mirrored
    assert not random_affine(rng).is_mirrored
    stretched = Affine.from_linear(random_rotation(rng) @ np.diag([1.5, 1, 0.5]), [0] * 3, "a", "b")
    np.testing.assert_allclose(stretched.singular_values, [1.5, 1.0, 0.5])


def test_bspline_is_a_cubic_map_coordinates(rng, points):
    from scipy.ndimage import map_coordinates

    bspline = random_bspline(rng, hostile_grid("lm"))
    index = (points - bspline.grid_origin_nm) / bspline.grid_spacing_nm
    expected = np.stack(
        [
            map_coordinates(c, index.T, order=3, prefilter=False, mode="constant")
            for c in bspline.coefficients_nm
        ],
        axis=-1,
    )
    np.testing.assert_allclose(bspline.displacement(points), expected, atol=1e-10)


def test_bspline_on_a_grid_gives_the_same_numbers(rng):
    grid = hostile_grid("lm")
    for direction in (None, random_rotation(rng)):
        bspline = random_bspline(rng, grid, direction=direction)
        expected = bspline.displacement(grid.points_nm().reshape(-1, 3)).reshape(*grid.shape, 3)
        np.testing.assert_allclose(bspline.on_grid(grid), expected, atol=1e-10)


def test_bspline_is_identity_where_control_points_are_missing(rng):
    bspline = BSpline(rng.normal(size=(3, 5, 6, 7)), [0, 0, 0], [10, 10, 10], "a", "a")
    edges = np.array([[9.99, 20, 20], [10.0, 20, 20], [29.99, 20, 20], [30.0, 20, 20]])
    moved = np.abs(bspline.displacement(edges)).max(axis=1) > 0
    assert moved.tolist() == [False, True, True, False]
    grid = hostile_grid("a")
    assert np.abs(bspline.on_grid(grid)).max() == 0.0  # the grid lies elsewhere


def test_field_reproduces_the_transform_it_samples_at_voxels(rng):
    grid = hostile_grid("lm")
    chain = random_affine(rng, "lm", "lm").then(random_bspline(rng, grid, target="em"))
    field = DisplacementField.sample(chain, grid)
    voxels = grid.points_nm().reshape(-1, 3)
    np.testing.assert_allclose(field(voxels), chain(voxels), atol=1e-9)
    assert (field.source, field.target) == ("lm", "em")
    with pytest.raises(FrameError):
        DisplacementField.sample(chain, hostile_grid("em"))


@pytest.mark.parametrize(
    "matrix", [np.eye(3), np.full((4, 4), np.nan), np.vstack([np.eye(4)[:3], [1, 0, 0, 1]])]
)
def test_impossible_matrices_are_refused(matrix):
    with pytest.raises(GridError):
        Affine(matrix, "a", "b")


def test_points_need_three_columns(rng):
    with pytest.raises(GridError, match=r"\(N, 3\)"):
        random_affine(rng)([1.0, 2.0, 3.0])
