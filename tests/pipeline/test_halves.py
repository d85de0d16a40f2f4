"""Halves of the mitochondria: found, registered, written, and what they predict."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from clemreg.config import RegisterConfig
from clemreg.io.transforms import read_fixed_grid
from clemreg.pipeline import evaluation, halves
from clemreg.pipeline.halves import (
    find_halves,
    halves_summary,
    mitochondria,
    predicted_error,
    read_halves,
    suggested_landmarks,
    write_halves,
)
from clemreg.register.engines import ElastixStages, NewtonStages
from clemreg.register.guides import Guides
from clemreg.register.newton import AffineFit, DeformableFit
from clemreg.register.registration import RegisterOptions
from clemreg.space import Affine, Grid
from clemreg.testing import hostile_grid
from clemreg.volume import Volume

SPACING = (100.0, 70.0, 70.0)
SHAPE = (20, 60, 110)
DENSE = 60
"""Voxels in x that hold nearly all mitochondria of `crowded`."""


def shift(x_nm, y_nm=0.0):
    return Affine.translation([0.0, y_nm, x_nm], "lm", "em")


def blobs(places, frame):
    image = np.zeros(SHAPE, np.float32)
    image[tuple(np.asarray(places).T)] = 1
    image = ndimage.gaussian_filter(image, (1.2, 2.0, 2.0))
    return Volume((image / image.max()).astype(np.float32), Grid(SHAPE, SPACING, (0, 0, 0), frame))


def no_progress(*_arguments):
    pass


def crowded():
    """Mitochondria every 0.8 um on the left; two at the far right."""
    dense = [(z, y, x) for z in (5, 14) for y in (9, 23, 37, 51) for x in range(8, DENSE, 13)]
    return [*dense, (5, 15, 100), (14, 45, 100)]


def noisy_pair(rng):
    """Every mitochondrion of the light image is a voxel or so off, as by fixation."""
    places = np.array(crowded())
    jitter = np.column_stack([np.zeros(len(places)), *rng.integers(-1, 2, (2, len(places)))])
    return blobs((places + jitter).astype(int), "lm"), blobs(places, "em")


def start_at_identity():
    pose = SimpleNamespace(affine=Affine.identity("lm", "em"))
    return SimpleNamespace(attempts=((0.9, 1.1),), orientation=pose)


def test_mitochondria_are_told_apart_and_a_network_is_cut():
    labels = mitochondria(blobs(crowded(), "em"))
    assert labels.max() >= len(crowded())
    assert len({labels[place] for place in crowded()} - {0}) == len(crowded())
    np.testing.assert_array_equal(np.unique(labels), np.arange(labels.max() + 1))
    image = np.zeros(SHAPE, np.float32)
    image[8:12, :, 20:30] = image[8:12, 20:30] = 1  # a cross
    pieces = mitochondria(Volume(image, Grid(SHAPE, SPACING, (0, 0, 0), "em")))
    np.testing.assert_array_equal(pieces > 0, image > 0)
    lengths = [(np.ptp(np.argwhere(pieces == k), axis=0) + 1) * SPACING for k in (1, 2, 3, 4)]
    assert np.max(lengths) <= halves.PIECE_NM + 100


def test_the_error_is_larger_where_mitochondria_are_few():
    fixed, moving = noisy_pair(np.random.default_rng(0))
    stages = NewtonStages(AffineFit(samples=6000), DeformableFit(samples=10_000))
    options = RegisterOptions(stages=stages)
    pairs = find_halves((fixed, moving), Guides(), start_at_identity(), options, 2, no_progress)
    assert len(pairs) == 2
    found = predicted_error(pairs, (), fixed.grid, np.ones(SHAPE, bool)).read()
    columns = np.linspace(0, SHAPE[2], found.shape[2], endpoint=False)
    crowd, alone = found[..., columns < DENSE], found[..., columns > DENSE + 10]
    assert 0 < crowd.mean() < 100
    assert alone.mean() > crowd.mean()


@pytest.mark.parametrize(
    ("options", "places", "splits"),
    [
        (RegisterOptions(), crowded(), 0),
        (RegisterOptions(stages=ElastixStages()), crowded(), 1),
        (RegisterOptions(), crowded()[:2], 1),
    ],
    ids=["switched off", "elastix", "too few"],
)
def test_no_halves(options, places, splits, monkeypatch):
    monkeypatch.setattr(halves, "engine_for", None)  # not even tried
    images = blobs(places, "lm"), blobs(places, "em")
    assert find_halves(images, Guides(), start_at_identity(), options, splits, no_progress) == []


def test_a_half_that_cannot_be_registered_does_not_stop_the_run(caplog):
    far = SimpleNamespace(
        attempts=(), orientation=SimpleNamespace(affine=shift(1e7))
    )  # the images do not overlap
    images = blobs(crowded(), "lm"), blobs(crowded(), "em")
    assert find_halves(images, Guides(), far, RegisterOptions(), 1, no_progress) == []
    assert "could not be registered" in caplog.text


def test_halves_are_read_as_they_were_written(tmp_path):
    assert read_halves(tmp_path) == ()
    pairs = [(shift(1), shift(2)), (shift(3), shift(4))]
    write_halves(pairs, tmp_path, hostile_grid("lm"))
    again = read_halves(tmp_path)
    moved = [[t(np.zeros((1, 3)))[0, 2] for t in pair] for pair in again]
    assert moved == [[1, 2], [3, 4]]
    assert read_fixed_grid(tmp_path / "half-1-0.json") == hostile_grid("lm")


def test_the_map_is_half_the_difference_and_the_scatter_of_seeds():
    grid = hostile_grid("lm")
    inside = np.ones(grid.shape, bool)
    inside[:, :4] = False
    pairs = [(shift(0), shift(60)), (shift(0), shift(0, 80))]
    halves_nm = np.sqrt((30**2 + 40**2) / 2)
    alone = predicted_error(pairs, (shift(5),), grid, inside).read()
    np.testing.assert_allclose(alone[inside], halves_nm, rtol=1e-6)
    assert np.isnan(alone[~inside]).all()
    seeds = (shift(0), shift(24))  # variance 24^2 / 2
    both = predicted_error(pairs, seeds, grid, inside).read()
    np.testing.assert_allclose(both[inside], np.hypot(halves_nm, 24 / np.sqrt(2)), rtol=1e-6)
    summary = halves_summary(pairs, grid.points_nm()[inside])
    assert summary == {"rms_nm": pytest.approx(halves_nm), "p95_nm": pytest.approx(halves_nm)}


def test_the_map_of_an_earlier_run_goes_when_halves_are_switched_off(tmp_path):
    folder = tmp_path / "registration"
    folder.mkdir()
    context = SimpleNamespace(path=lambda *parts: tmp_path.joinpath(*parts))
    grid = hostile_grid("lm")
    where = grid, np.ones(grid.shape, bool)
    write_halves([(shift(0), shift(60))], folder, grid)
    found = evaluation._with_halves(context, None, shift(30), where)
    assert found["seeds"] is found["rms_nm"] is found["p95_nm"] is None
    assert found["halves"] == {"rms_nm": pytest.approx(30), "p95_nm": pytest.approx(30)}
    assert found["suggested_landmarks"][0]["error_nm"] == pytest.approx(30)
    assert (tmp_path / "predicted_error.zarr").is_dir()
    for path in folder.iterdir():
        path.unlink()
    seeds = {"seeds": 3, "rms_nm": 1.0, "p95_nm": 2.0}
    assert evaluation._with_halves(context, seeds, shift(30), where) == seeds
    assert not (tmp_path / "predicted_error.zarr").exists()


def test_suggestions_are_the_worst_places_apart_in_xyz_um():
    grid = Grid((6, 20, 30), (200.0, 200.0, 200.0), (1000.0, 2000.0, 4000.0), "lm")
    values = np.full(grid.shape, 5.0, np.float32)
    values[2, 3, 20], values[2, 3, 21], values[3, 15, 6] = 90, 80, 70
    values[0, 0, 0] = 500  # the rim: nothing to click
    values[:, 18:] = np.nan
    found = suggested_landmarks(Volume(values, grid))
    assert len(found) == 5
    assert found[0] == {"x_um": 8.0, "y_um": 2.6, "z_um": 1.4, "error_nm": 90.0}
    assert found[1] == {"x_um": 5.2, "y_um": 5.0, "z_um": 1.6, "error_nm": 70.0}
    thin = Volume(values[2:3], Grid((1, 20, 30), *(grid.spacing_nm, grid.origin_nm), "lm"))
    assert suggested_landmarks(thin)[0]["error_nm"] == 90


def test_the_key_has_limits():
    assert RegisterConfig().halves == 1
    with pytest.raises(ValueError, match="halves"):
        RegisterConfig(halves=-1)
