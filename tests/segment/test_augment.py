from __future__ import annotations

import numpy as np
import pytest

from clemreg.errors import ConfigError, DataError
from clemreg.segment.augment import AugmentOptions, draw_deformation, recolour, warp
from clemreg.segment.data import turn
from clemreg.space.grid import Box, Grid

EM = Grid((30, 42, 50), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")
FINE = Grid((60, 84, 100), (2.62, 2.0, 2.0), (298.69, -201.0, 69.0), "em")
STILL = AugmentOptions(jitter_nm=0.0, rotation=(0.0, 0.0))


def ramp(grid: Grid) -> np.ndarray:
    """A linear function of the world position: interpolation must give it back."""
    return (grid.points_nm() @ [0.5, -0.3, 0.2]).astype(np.float64)


def test_no_deformation_leaves_everything_where_it_is():
    still = draw_deformation(np.random.default_rng(0), EM, STILL)
    labels = np.random.default_rng(1).integers(0, 38, FINE.shape)
    np.testing.assert_array_equal(warp(labels, FINE, FINE, still), labels)
    np.testing.assert_allclose(warp(ramp(EM), EM, EM, still), ramp(EM), atol=1e-3)


def test_rotation_in_world_units_about_the_centre():
    quarter = AugmentOptions(jitter_nm=0.0, rotation=(np.pi / 2, np.pi / 2))
    deformation = draw_deformation(np.random.default_rng(0), EM, quarter)
    found = np.moveaxis(deformation.at(EM), 0, -1)
    offset = EM.points_nm() - EM.centre_nm
    expected = np.stack([offset[..., 0], -offset[..., 2], offset[..., 1]], axis=-1) + EM.centre_nm
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_em_and_annotation_bend_together():
    options = AugmentOptions(control_voxels=15, jitter_nm=12.0)
    deformation = draw_deformation(np.random.default_rng(3), EM, options)
    em, fine = (np.moveaxis(deformation.at(g), 0, -1) for g in (EM, FINE))
    average = sum(fine[i::2, j::2, k::2] for i in (0, 1) for j in (0, 1) for k in (0, 1)) / 8
    # Linear between coarse points: equal but where a kink falls into a voxel.
    assert np.median(np.abs(em - average)) < 1e-3
    np.testing.assert_allclose(em, average, atol=1.5)
    # A linear image shows the displacement itself.
    wide = Grid((70, 120, 120), EM.spacing_nm, (200.0, -360.0, -70.0), "em")
    shown = warp(ramp(wide), wide, EM, deformation)
    np.testing.assert_allclose(shown, em @ [0.5, -0.3, 0.2], atol=1e-2)
    with pytest.raises(DataError, match="smaller volume"):
        deformation.at(wide)


def test_jitter_has_the_size_it_says():
    options = AugmentOptions(control_voxels=4, rotation=(0.0, 0.0), subsample=4)
    moved = draw_deformation(np.random.default_rng(0), EM, options).at(EM) - np.moveaxis(
        EM.points_nm(), -1, 0
    )
    knots = moved[:, ::4, ::4, ::4]
    assert knots.std() == pytest.approx(10, rel=0.05)
    correlation = [np.corrcoef(knots.reshape(3, -1))[i, j] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert np.abs(correlation).max() < 0.1
    between = moved[:, 2::4, 2::4, 2::4]
    assert 2 < between.std() < 8  # smooth: less in between


def test_what_lies_outside_is_unknown():
    half = AugmentOptions(jitter_nm=0.0, rotation=(np.pi / 4, np.pi / 4))
    deformation = draw_deformation(np.random.default_rng(0), EM, half)
    labels = warp(np.full(EM.shape, 35, np.uint64), EM, EM, deformation)
    assert labels.dtype == np.uint64
    assert labels[0, 0, 0] == 0
    assert labels[15, 21, 25] == 35
    with pytest.raises(DataError, match="do not lie on a grid"):
        warp(labels[1:], EM, EM, deformation)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("subsample", 0, "from 1 on"),
        ("control_voxels", 0, "from 1 on"),
        ("jitter_nm", -1.0, "from 0 on"),
        ("jitter_nm", np.nan, "from 0 on"),
        ("rotation", (1.0, 0.0), "the smaller first"),
        ("contrast", (1.0, np.inf), "the smaller first"),
        ("brightness", (0.1, -0.1), "the smaller first"),
        ("gamma", (-1.0, 1.0), "above 0"),
    ],
)
def test_ranges_that_cannot_be_drawn_from_are_refused(name, value, text):
    with pytest.raises(ConfigError, match=f"{name} = .*{text}"):
        AugmentOptions(**{name: value})


def test_grey_values_by_hand():
    fixed = AugmentOptions(contrast=(0.5, 0.5), brightness=(0.1, 0.1), gamma=(2.0, 2.0))
    em = np.array([0.0, 0.2, 1.0], dtype=np.float32)  # mean 0.4
    found = recolour(np.random.default_rng(0), em, fixed)
    np.testing.assert_allclose(found, 2 * np.array([0.3, 0.4, 0.8]) ** 2 - 1, atol=1e-6)
    many = [recolour(np.random.default_rng(i), em) for i in range(50)]
    assert min(m.min() for m in many) >= -1
    assert max(m.max() for m in many) <= 1
    assert len({m.tobytes() for m in many}) > 40
    with pytest.raises(DataError, match="expected 0 to 1"):
        recolour(np.random.default_rng(0), em * 255)
    with pytest.raises(DataError, match="expected 0 to 1"):
        recolour(np.random.default_rng(0), em * np.nan)


def test_all_48_ways_and_all_arrays_alike():
    cube = np.arange(27).reshape(3, 3, 3)
    seen = set()
    for seed in range(600):
        a, b = turn(np.random.default_rng(seed), cube, np.stack([cube, cube * 2]))
        np.testing.assert_array_equal(b, np.stack([a, a * 2]))
        seen.add(a.tobytes())
    assert len(seen) == 48


def test_reach_holds_every_place_that_is_taken():
    """Of a part of the volume, too, and not of much more."""
    deformation = draw_deformation(np.random.default_rng(3), EM)
    part = FINE.crop(Box((2, 3, 4), (9, 11, 17)))
    for grid in (FINE, part):
        places = deformation.at(grid).reshape(3, -1)
        low, high = deformation.reach_nm(grid)
        assert (low <= places.min(axis=1) + 1e-2).all()
        assert (high >= places.max(axis=1) - 1e-2).all()
    span = [np.subtract(*deformation.reach_nm(g)[::-1]) for g in (part, FINE)]
    assert (span[0] < span[1]).all()
