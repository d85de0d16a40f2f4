from __future__ import annotations

import numpy as np
import pytest
import tifffile
from scipy.special import erf

from clemreg.blocks.executors import Threads
from clemreg.blocks.stages import Blockwise
from clemreg.cli.app import run_app
from clemreg.errors import ConfigError, GridError
from clemreg.io.volumes import open_volume
from clemreg.measure.curvature import curvature_histogram, surface_curvature
from clemreg.measure.planarity import (
    PlanarityOptions,
    measure_planarity,
    quantise,
    site_planarity,
    split,
)
from clemreg.measure.sheetness import SheetnessOptions, response, sheetness
from clemreg.pipeline import planarity as pipeline
from clemreg.space import Grid
from clemreg.testing import random_rotation
from clemreg.volume import Labels, Volume

GRID = Grid((42, 56, 60), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")


def turned(seed, grid=GRID):
    rotation = random_rotation(np.random.default_rng(seed))
    return (grid.points_nm() - grid.centre_nm) @ rotation


def as_volume(mask, grid=GRID):
    return Volume(mask.astype("u1") * 3, grid, name="mask")


def slab_sheetness(half, rule, step=8.0):
    """Sheetness in the middle of an endless slab, with differences over two voxels of 4 nm."""
    noise = []
    for smooth, norm in SheetnessOptions(scale_rule=rule).sigmas_nm()[1:]:
        profile = [erf((half + x) / smooth / 2**0.5) for x in (step, -step, 0.0)]
        curve = (profile[0] + profile[1] - 2 * profile[2]) / step**2
        noise.append(norm**2 * curve)
    return (1 - np.exp(-8)) * (1 - np.exp(-(max(map(abs, noise)) ** 2) / (2 * 0.25)))


@pytest.mark.parametrize("rule", ["heinrich2021", "exact"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_slab_has_the_sheetness_of_its_formula_and_a_tube_that_of_equal_axes(rule, seed):
    local = turned(seed)
    middle = np.array([np.asarray(GRID.shape) // 2])
    options = SheetnessOptions(scales=9, scale_rule=rule)
    slab = as_volume(np.abs(local[..., 0]) <= 18)
    got = sheetness(slab.read, GRID, middle, options)[0]
    assert got == pytest.approx(slab_sheetness(18, rule), rel=0.05)
    tube = as_volume(np.hypot(local[..., 0], local[..., 1]) <= 18)
    # |l1| = |l2| in a tube: at most exp(-2) = 0.135.
    assert 0.03 < sheetness(tube.read, GRID, middle, options)[0] < 0.16
    # In a ball, all three are alike, so that the blob term is 0; and a hole is no object.
    ball = as_volume(np.linalg.norm(local, axis=-1) <= 18)
    assert sheetness(ball.read, GRID, middle, options)[0] < 0.02
    hole = as_volume(np.abs(local[..., 0]) > 18)
    assert sheetness(hole.read, GRID, middle, options)[0] < 0.02


def test_only_the_papers_rule_lets_a_sheet_pass_the_papers_cut():
    for half in (10.0, 20.0, 30.0):
        assert 0.8 < slab_sheetness(half, "heinrich2021", 0.1) < 0.9
        assert 0.3 < slab_sheetness(half, "exact", 0.1) < 0.38
    paper = SheetnessOptions().sigmas_nm()
    assert len(paper) == 12
    assert paper[0] == (0.0, 2.0)
    assert paper[1] == pytest.approx((2.0, np.sqrt(12)))
    exact = SheetnessOptions(scale_rule="exact").sigmas_nm()
    assert exact[2] == pytest.approx((4.0, 4.0))
    assert exact[11][0] == pytest.approx(2 * 2**5.5)


def test_the_response_to_given_eigenvalues():
    options = SheetnessOptions()
    values = np.array(
        [[0, 0, -9.0], [0, -9, -9], [-9, -9, -9], [0, 0, 9.0], [0, 0, 0], [5, -2, -9]]
    )
    got = response(values, options)
    assert got[0] == pytest.approx(1, abs=1e-3)
    assert got[1] == pytest.approx(np.exp(-2) * (1 - np.exp(-2)), rel=1e-6)
    assert got[2] == pytest.approx(0)
    assert got[3] == 0
    assert got[4] == 0
    a, b, noise = 5 / 9, (18 - 5 - 2) / 9, np.sqrt(25 + 4 + 81)
    assert got[5] == pytest.approx(
        np.exp(-2 * a**2) * (1 - np.exp(-2 * b**2)) * (1 - np.exp(-2 * noise**2))
    )


def junction():
    """A slab in one half, and a tube that leaves it into the other, turned."""
    local = turned(4)
    slab = (np.abs(local[..., 0]) <= 16) & (local[..., 2] < 0)
    tube = (np.hypot(local[..., 0], local[..., 1]) <= 16) & (local[..., 2] >= 0)
    return slab, tube, local


OPTIONS = PlanarityOptions(SheetnessOptions(scales=8), largest_radius_nm=30.0)


def test_a_sheet_that_ends_in_a_tube_is_split_between_them(tmp_path):
    slab, tube, local = junction()
    mask = as_volume(slab | tube)
    found = measure_planarity(mask, tmp_path / "p.zarr", tmp_path / "s", OPTIONS)
    value = found.volume.read()
    near = np.linalg.norm(local, axis=-1) < 90
    inner = near & (value > 0)
    level = (value.astype(float) - 1) / 254
    assert np.mean(level[inner & slab & (local[..., 2] < -30)] >= 0.6) > 0.95
    assert np.mean(level[inner & tube & (local[..., 2] > 30)] < 0.6) > 0.95
    assert not (value > 0)[~(slab | tube)].any()
    core = near & (slab | tube) & (np.linalg.norm(local, axis=-1) < 70)
    assert (value > 0)[core].mean() > 0.85  # reconstructed
    report = split(found.histogram, 0.6)
    voxels = np.count_nonzero(value)
    total = report["planar"]["volume_nm3"] + report["tubular"]["volume_nm3"]
    assert total == pytest.approx(voxels * 83.84)
    assert report["planar"]["volume_nm3"] == pytest.approx((level[value > 0] >= 0.6).sum() * 83.84)
    fractions = [report[part]["volume_fraction"] for part in ("planar", "tubular")]
    assert sum(fractions) == pytest.approx(1)
    # Both are 32 nm thick: distances from the middle to the first voxel outside.
    thick = found.thickness
    weight = thick["medial_volume_nm3"]
    mean = (
        weight * (thick["thickness_from_nm"] + thick["thickness_to_nm"]) / 2
    ).sum() / weight.sum()
    assert mean == pytest.approx(34, abs=5)
    assert weight.sum() == pytest.approx(np.count_nonzero(found.medial.read()) * 83.84)


@pytest.mark.slow
@pytest.mark.parametrize("block", [(13, 27, 60), (42, 19, 31)])
def test_any_blocks_give_the_very_same_planarity(tmp_path, block):
    slab, tube, _ = junction()
    mask = as_volume(slab | tube)
    whole = measure_planarity(mask, tmp_path / "w.zarr", tmp_path / "ws", OPTIONS)
    how = Blockwise(block, Threads(2))
    parts = measure_planarity(mask, tmp_path / "p.zarr", tmp_path / "ps", OPTIONS, how=how)
    np.testing.assert_array_equal(whole.volume.read(), parts.volume.read())
    np.testing.assert_array_equal(whole.medial.read(), parts.medial.read())
    for one, other in ((whole.histogram, parts.histogram), (whole.thickness, parts.thickness)):
        for name in one.columns:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-12)


def test_planarity_at_contacts():
    sites = np.zeros(GRID.shape, "u8")
    sites[2:5, 3:9, 4:8] = 1
    sites[20:30, 30:35, 40:50] = 70_001
    sites[40:, 50:, 55:] = 2**40
    value = np.zeros(GRID.shape, "u1")
    value[2:5, 3:9, 4:6] = quantise(np.array(0.8))
    value[2:5, 3:9, 6:7] = quantise(np.array(0.2))
    value[20:30] = quantise(np.array(0.1))
    table = site_planarity(Labels(sites, GRID), Volume(value, GRID), how=Blockwise((7, 31, 16)))
    assert table["contact_id"].tolist() == [1, 70_001, 2**40]
    np.testing.assert_allclose(table["planarity"], [0.6, 0.1, np.nan], atol=0.005)
    assert table["planarity_volume_nm3"].tolist() == pytest.approx([54 * 83.84, 500 * 83.84, 0])
    with pytest.raises(GridError):
        site_planarity(Labels(sites, GRID), Volume(value, Grid(GRID.shape, (4.0, 4.0, 4.0))))


@pytest.mark.parametrize("radius", [40.0, 70.0])
def test_curvature_of_a_ball_and_of_a_tube(radius):
    local = turned(5)
    for form, mean, gauss in (("ball", 1 / radius, 1 / radius**2), ("tube", 0.5 / radius, 0.0)):
        away = np.linalg.norm(local[..., : 3 if form == "ball" else 2], axis=-1)
        mask = as_volume(away <= radius)
        index = np.argwhere((np.abs(away - radius) < 3) & (np.linalg.norm(local, axis=-1) < 90))
        h, k = surface_curvature(mask.read, GRID, index, 12.0)
        assert np.median(h) == pytest.approx(mean, rel=0.08)
        assert np.median(k) == pytest.approx(gauss, abs=0.15 / radius**2)


def test_the_curvature_histogram_counts_every_surface_voxel_once():
    from scipy.ndimage import binary_erosion

    away = np.linalg.norm(turned(6), axis=-1)
    ball = away <= 60
    edges = np.linspace(-0.05, 0.05, 21)
    whole = curvature_histogram(as_volume(ball), 12.0, edges)
    parts = curvature_histogram(as_volume(ball), 12.0, edges, how=Blockwise((9, 20, 33)))
    for name in whole.columns:
        np.testing.assert_allclose(whole[name], parts[name], rtol=1e-9)
    assert whole["voxels"].sum() == ball.sum() - binary_erosion(ball).sum()
    top = whole["voxels"].argmax()
    assert (
        whole["curvature_from_per_nm"][top] <= 1 / 60 <= whole["curvature_to_per_nm"][top] + 0.005
    )


def test_nothing_and_what_cannot_be(tmp_path):
    none = as_volume(np.zeros(GRID.shape, bool))
    found = measure_planarity(none, tmp_path / "p.zarr", tmp_path / "s", OPTIONS)
    assert not found.volume.read().any()
    assert np.isnan(split(found.histogram, 0.6)["planar"]["volume_fraction"])
    assert quantise(np.array([0.0, 1.0, 0.5])).tolist() == [1, 255, 128]
    with pytest.raises(ConfigError, match="heinrich2021 or exact"):
        SheetnessOptions(scale_rule="other")
    with pytest.raises(ConfigError, match="at least one scale"):
        SheetnessOptions(scales=0)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        PlanarityOptions(cut=6)
    with pytest.raises(ConfigError, match="above 0 nm"):
        PlanarityOptions(largest_radius_nm=0)


def test_unfinished_work_on_voxels_of_another_size_is_not_gone_on_with(tmp_path, monkeypatch):
    """As where --spacing was wrong, the run was stopped, and it is given again."""
    mask = np.zeros((9, 12, 14), np.uint8)
    mask[3:6, 2:10, 2:12] = 1
    tifffile.imwrite(tmp_path / "er.tif", mask)

    def measured(name, spacing):
        words = ["planarity", str(tmp_path / "er.tif"), "--out", str(tmp_path / name)]
        words += ["--spacing", spacing, "--scales", "3", "--largest-radius", "24 nm"]
        code = run_app([*words, "--block", "16"])
        return open_volume(tmp_path / name).read() if code == 0 else code

    def stopped(*_paths):
        raise KeyboardInterrupt

    expected = measured("whole.zarr", "4, 4, 9 nm")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "put_in_place", stopped)
        assert measured("p.zarr", "4, 4, 4 nm") == 130
    assert (tmp_path / ".p.zarr.work").exists()
    np.testing.assert_array_equal(measured("p.zarr", "4, 4, 9 nm"), expected)
    assert (expected != measured("other.zarr", "4, 4, 4 nm")).any()
