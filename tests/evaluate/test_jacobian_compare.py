from __future__ import annotations

import gzip
import io
import json

import numpy as np
import pytest
import SimpleITK as sitk

from clemreg.errors import DataError, FrameError, GridError
from clemreg.evaluate import lattice as lattice_module
from clemreg.evaluate.compare import compare_transforms, distance_map
from clemreg.evaluate.jacobian import DeterminantStats, evaluate_jacobian, jacobian_map
from clemreg.evaluate.lattice import Lattice
from clemreg.evaluate.stability import evaluate_stability
from clemreg.io.transforms import read_fixed_grid, read_transform
from clemreg.space.bspline import BSpline
from clemreg.space.field import DisplacementField
from clemreg.space.grid import Grid
from clemreg.space.transform import Affine, Chain

GRID = Grid((11, 17, 23), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "lm")
LINEAR = np.array([[1.1, 0.2, -0.1], [0.05, 0.9, 0.3], [0.0, 0.15, 1.2]])
AFFINE = Affine.from_linear(LINEAR, [500.0, -3000.0, 12000.0], "lm", "em")


def a_chain(amplitude=6.0, mirror=1.0) -> Chain:
    rng = np.random.default_rng(4)
    first = Affine.from_linear(LINEAR @ np.diag([1, 1, mirror]), [3.0, -2, 5], "lm", "mid")
    corners = first(GRID.corners_nm())
    spacing = np.array([17.0, 19.0, 23.0])
    origin = corners.min(0) - 2.1 * spacing
    shape = np.ceil((corners.max(0) - origin) / spacing).astype(int) + 4
    bend = BSpline(rng.normal(0, amplitude, (3, *shape)), origin, spacing, "mid", "em")
    return Chain((first, bend))


def numeric_determinant(transform, points, step=0.05) -> np.ndarray:
    columns = [
        (transform(points + step * axis) - transform(points - step * axis)) / (2 * step)
        for axis in np.eye(3)
    ]
    return np.linalg.det(np.stack(columns, axis=-1))


def a_mask(seed=2) -> np.ndarray:
    return np.random.default_rng(seed).random(GRID.shape) < 0.3


# ---- lattice


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 100, 10_000])
def test_chunks_cover_the_lattice_once(monkeypatch, masked, chunk):
    monkeypatch.setattr(lattice_module, "CHUNK", chunk)
    mask = a_mask() if masked else None
    lattice = Lattice(GRID, (2, 3, 1), mask)
    expected = GRID.points_nm()[::2, ::3]
    if masked:
        expected = expected[mask[::2, ::3]]
    found = lattice.evaluate(np.array)
    assert max(len(points) for points in lattice.chunks()) <= chunk
    key = lambda p: sorted(map(tuple, p.reshape(-1, 3)))  # noqa: E731
    assert key(found) == key(expected)
    image = lattice.fill(lambda p: p @ [1.0, 10.0, 100.0])
    truth = GRID.points_nm()[::2, ::3] @ [1.0, 10.0, 100.0]
    if masked:
        truth = np.where(mask[::2, ::3], truth, np.nan)
    np.testing.assert_allclose(image, truth)


def test_lattice_is_near_cubic_and_large_enough():
    grid = Grid((59, 1650, 1388), (104.0, 52.0, 52.0), (0.0, 0, 0), "lm")
    found = Lattice.choose(grid, None, 200_000)
    assert 200_000 <= found.points_grid.size < 300_000
    steps = np.array(found.stride) * grid.spacing_nm
    assert steps.max() / steps.min() < 1.25
    assert found.points_grid.to_world([1, 1, 1]).tolist() == steps.tolist()
    assert Lattice.choose(GRID, None, None).stride == (1, 1, 1)
    assert Lattice.choose(GRID, None, 10**9).stride == (1, 1, 1)
    assert Lattice.choose(GRID, None, 1).points_grid.size < 30


def test_bad_masks():
    with pytest.raises(DataError, match="empty"):
        evaluate_jacobian(AFFINE, GRID, np.zeros(GRID.shape, np.uint8))
    with pytest.raises(GridError, match=r"\(17, 11, 23\)"):
        evaluate_jacobian(AFFINE, GRID, np.ones((17, 11, 23), bool))
    off = np.zeros(GRID.shape, bool)
    off[1, 1, 1] = True
    with pytest.raises(DataError, match="stride"):
        Lattice(GRID, (2, 2, 2), off).evaluate(np.array)


# ---- Jacobian


def test_affine_has_one_determinant_and_none_without():
    found = evaluate_jacobian(AFFINE, GRID)
    volume = np.linalg.det(LINEAR)
    record = found.to_json()
    for key in ("min", "p0.1", "p1", "p50", "p99", "p99.9", "max", "mean"):
        assert record["with_affine"][key] == pytest.approx(volume)
        assert record["without_affine"][key] == pytest.approx(1.0)
    assert record["with_affine"]["sd"] == pytest.approx(0, abs=1e-12)
    assert record["with_affine"]["fold_fraction"] == 0.0
    assert record["n"] == GRID.size
    assert set(record["with_affine"]) == {
        *("min", "p0.1", "p1", "p50", "p99", "p99.9", "max", "mean", "sd", "fold_fraction")
    }
    json.dumps(record, allow_nan=False)


def test_every_voxel_of_the_mask_against_finite_differences():
    transform, mask = a_chain(), a_mask()
    found = evaluate_jacobian(transform, GRID, mask.astype(np.uint8) * 255, n=None)
    values = numeric_determinant(transform, GRID.points_nm()[mask])
    assert found.n == mask.sum()
    assert found.with_affine.min == pytest.approx(values.min(), abs=1e-5)
    assert found.with_affine.p99 == pytest.approx(np.percentile(values, 99), abs=1e-5)
    assert found.with_affine.mean == pytest.approx(values.mean(), abs=1e-5)
    assert found.with_affine.sd == pytest.approx(values.std(), abs=1e-5)
    # The best affine by another way: normal equations over the whole grid.
    points = GRID.points_nm().reshape(-1, 3)
    design = np.column_stack([points - points.mean(0), np.ones(len(points))])
    linear = np.linalg.solve(design.T @ design, design.T @ transform(points))[:3].T
    volume = np.linalg.det(linear)
    np.testing.assert_allclose(found.affine.linear, linear, atol=1e-9)
    assert abs(volume - np.linalg.det(LINEAR)) > 1e-3
    assert found.without_affine.p1 == pytest.approx(np.percentile(values, 1) / volume, abs=1e-5)


def test_against_itk_determinant_filter():
    fine = Grid((18, 19, 20), (1.31, 1.0, 1.0), (310.0, -190.0, 90.0), "lm")
    field = DisplacementField.sample(a_chain(), fine)
    vectors = np.moveaxis(field.displacement_nm, 0, -1)[..., ::-1]
    image = sitk.GetImageFromArray(np.ascontiguousarray(vectors), isVector=True)
    image.SetSpacing(fine.spacing_nm[::-1])
    itk = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(image))[2:-2, 2:-2, 2:-2]
    values, grid = jacobian_map(a_chain(), fine, n=None)
    assert grid == fine
    # The filter takes differences over two voxels.
    np.testing.assert_allclose(values[2:-2, 2:-2, 2:-2], itk, atol=0.01)
    assert values.std() > 0.05


def test_folds_are_counted_in_both_handednesses():
    strong = a_chain(amplitude=45.0)
    found = evaluate_jacobian(strong, GRID, n=None)
    values = numeric_determinant(strong, GRID.points_nm().reshape(-1, 3), step=0.01)
    assert 0.01 < found.with_affine.fold_fraction < 0.9
    assert found.with_affine.fold_fraction == pytest.approx((values <= 0).mean(), abs=1e-3)
    mirrored = evaluate_jacobian(a_chain(mirror=-1.0), GRID)
    assert mirrored.with_affine.max < 0
    assert mirrored.with_affine.fold_fraction == 0
    assert mirrored.without_affine.mean == pytest.approx(1, abs=0.1)


def test_percentiles_by_hand():
    found = DeterminantStats.of([0.0, 1.0, 2.0, 3.0, 4.0])
    assert (found.p50, found.p1, found.p99_9) == pytest.approx((2.0, 0.04, 3.996))
    assert found.fold_fraction == 0.2
    assert DeterminantStats.of([-1.0, 0.0, 1.0], mirrored=True).fold_fraction == 2 / 3


def test_map_of_the_deformation_alone():
    transform, mask = a_chain(), a_mask()
    report = evaluate_jacobian(transform, GRID, mask)
    values, grid = jacobian_map(transform, GRID, mask, affine=report.affine, n=200)
    assert values.shape == grid.shape < GRID.shape
    inside = np.isfinite(values)
    stride = tuple(np.round(np.array(grid.spacing_nm) / GRID.spacing_nm).astype(int))
    assert np.array_equal(inside, mask[tuple(slice(None, None, s) for s in stride)])
    expected = transform.determinant(grid.points_nm()[inside]) / np.linalg.det(report.affine.linear)
    np.testing.assert_allclose(values[inside], expected)


def test_wrong_frame():
    with pytest.raises(FrameError, match="'em'"):
        evaluate_jacobian(AFFINE, GRID.with_frame("em"))


# ---- comparison


def test_distance_of_a_known_shift():
    moved = AFFINE.then(Affine.translation([120.0, 0.0, -160.0], "em", "em"))
    found = compare_transforms(AFFINE, moved, GRID)
    record = found.to_json()
    assert record["mean_nm"] == record["max_nm"] == pytest.approx(200)
    assert record["bias_nm"] == pytest.approx([120, 0, -160])
    assert record["share_below_500_nm"] == 1.0
    assert sum(record["histogram"]["counts"]) == record["n"] == GRID.size
    assert len(record["histogram"]["edges_nm"]) == len(record["histogram"]["counts"]) + 1
    json.dumps(record, allow_nan=False)
    assert compare_transforms(AFFINE, AFFINE, GRID).to_json()["max_nm"] == 0


def test_share_below_a_limit_along_one_axis():
    # Distance grows by 50 nm per voxel along x: 0, 50, 100 ... 1100.
    linear = LINEAR + np.outer([0, 1, 0], [0, 0, 50 / 4.0])
    offset = AFFINE.offset_nm - np.array([0, 1, 0]) * 50 / 4.0 * 70.0
    found = compare_transforms(AFFINE, Affine.from_linear(linear, offset, "lm", "em"), GRID)
    assert found.distance.max_nm == pytest.approx(1100)
    assert found.distance.median_nm == pytest.approx(550)
    assert found.share_below[500.0] == pytest.approx(10 / 23, abs=1 / 23)
    mask = np.zeros(GRID.shape, bool)
    mask[:, :, :3] = True
    inside = compare_transforms(
        AFFINE, Affine.from_linear(linear, offset, "lm", "em"), GRID, mask, n=None
    )
    assert inside.distance.max_nm == pytest.approx(100)
    assert inside.share_below[200.0] == 1.0


def test_distance_map_equals_the_distances():
    first, second, mask = a_chain(), AFFINE, a_mask()
    values, grid = distance_map(first, second, GRID, mask, n=None)
    assert grid == GRID
    assert np.isnan(values[~mask]).all()
    points = GRID.points_nm()[mask]
    np.testing.assert_allclose(values[mask], np.linalg.norm(first(points) - second(points), axis=1))


def test_comparing_different_frames():
    with pytest.raises(FrameError, match="cannot compare"):
        compare_transforms(AFFINE, Affine(AFFINE.matrix, "lm", "elsewhere"), GRID)


def test_published_palm_and_sim(shared_data):
    """No figure is printed in the paper; what must hold: no folds, sub-micrometre agreement."""
    import tifffile

    folder = shared_data / "cosem-clem"
    packed = (folder / "mask_bin.tif.gz").read_bytes()
    mask = tifffile.imread(io.BytesIO(gzip.decompress(packed))) != 0
    paths = [folder / f"{name}_def_TransformParameters.txt" for name in ("palm", "sim")]
    palm, sim = map(read_transform, paths)
    grid = read_fixed_grid(paths[0])
    report = evaluate_jacobian(palm, grid, mask, n=20_000)
    assert report.with_affine.fold_fraction == 0
    assert np.linalg.det(report.affine.linear) == pytest.approx(1.091, abs=0.002)
    assert report.without_affine.sd == pytest.approx(0.097, abs=0.004)
    inside = compare_transforms(palm, sim, grid, mask, n=20_000).distance
    assert inside.mean_nm == pytest.approx(211, abs=4)
    assert inside.median_nm == pytest.approx(187, abs=4)


# ---- stability


def test_spread_of_shifted_copies():
    shifts = np.array([[0.0, 0, 0], [3.0, 0, 0], [0.0, 6.0, 0], [0.0, 0, -9.0]])
    copies = [AFFINE.then(Affine.translation(s, "em", "em")) for s in shifts]
    points = GRID.points_nm().reshape(-1, 3)[:50]
    found = evaluate_stability(copies, points)
    expected = np.sqrt(((shifts - shifts.mean(0)) ** 2).sum() / 3)
    assert found.to_json() == pytest.approx({"seeds": 4, "rms_nm": expected, "p95_nm": expected})
    assert found.spread_nm.shape == (50,)


def test_spread_that_grows():
    other = Affine.from_linear(LINEAR + np.diag([0.01, 0, 0]), AFFINE.offset_nm, "lm", "em")
    points = np.column_stack([np.arange(101.0), np.zeros(101), np.zeros(101)])
    found = evaluate_stability([AFFINE, other], points)
    np.testing.assert_allclose(found.spread_nm, 0.01 * np.arange(101) / np.sqrt(2), atol=1e-9)
    assert found.p95_nm == pytest.approx(0.95 / np.sqrt(2))


def test_stability_needs_two_of_a_kind():
    with pytest.raises(DataError):
        evaluate_stability([AFFINE], [[0.0, 0, 0]])
    with pytest.raises(FrameError):
        evaluate_stability([AFFINE, AFFINE.inverse()], [[0.0, 0, 0]])
