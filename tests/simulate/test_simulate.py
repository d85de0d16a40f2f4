from __future__ import annotations

import numpy as np
import pytest

from clemreg.errors import DataError
from clemreg.io.points import read_landmarks
from clemreg.io.transforms import read_transform
from clemreg.io.volumes import open_labels, open_volume
from clemreg.simulate.deformation import DeformationOptions, random_deformation, random_transform
from clemreg.simulate.em import EmAppearance, random_training_block, render_em
from clemreg.simulate.light import PALM, LightOptions, histogram, render_light, surface_emitters
from clemreg.simulate.pair import PairOptions, simulate_clem, simulate_from_labels
from clemreg.simulate.phantom import CLASSES, ER_CLASSES, MITO_CLASSES, PhantomOptions, draw_phantom
from clemreg.space import Affine, Chain, Grid
from clemreg.space.resample import sample_array
from clemreg.testing import hostile_grid
from clemreg.volume import Labels, Volume

REGION = Grid((40, 80, 90), (26.0, 24.0, 24.0), (500.0, -900.0, 300.0), "em")


@pytest.fixture(scope="module")
def phantom():
    return draw_phantom(np.random.default_rng(3), REGION, PhantomOptions(mito_spacing_nm=800))


def test_mitochondria_are_wrapped_in_membrane(phantom):
    lumen = np.isin(phantom.labels, [CLASSES["mito_lum"], CLASSES["crista"]])
    membrane = phantom.labels == CLASSES["mito_mem"]
    assert lumen.sum() > 1000
    assert membrane.sum() > 1000
    assert (phantom.mito_distance_nm[lumen] > 24 - 1e-3).all()
    assert (phantom.mito_distance_nm[membrane] <= 24 + 1e-3).all()
    assert (phantom.mito_ids[membrane] > 0).mean() > 0.99


def test_the_same_seed_draws_the_same_shapes_at_another_voxel_size(phantom):
    fine = Grid((52, 96, 108), (20.0, 20.0, 20.0), REGION.origin_nm, "em")
    # The same corners, so the same coarse evaluation points.
    fine = Grid((53, 95, 108), (39 * 26 / 52, 79 * 24 / 94, 89 * 24 / 107), REGION.origin_nm, "em")
    other = draw_phantom(np.random.default_rng(3), fine, PhantomOptions(mito_spacing_nm=800))
    points = np.random.default_rng(0).uniform(
        REGION.corners_nm()[0] + 60, REGION.corners_nm()[-1] - 60, (4000, 3)
    )
    a = sample_array(phantom.mito_distance_nm, REGION, points) > 0
    b = sample_array(other.mito_distance_nm, fine, points) > 0
    assert (a == b).mean() > 0.98


def test_junctions_lie_in_the_er(phantom):
    assert len(phantom.er_junctions_nm) > 3
    assert REGION.contains(phantom.er_junctions_nm).all()


def test_em_shows_membranes_dark_and_noise_as_asked(phantom):
    look = EmAppearance(curtain=0, charging=0, slice_brightness=0, slice_jitter_nm=0)
    image = render_em(np.random.default_rng(0), phantom.labels, REGION, look).astype(float)
    cytosol = image[phantom.labels == CLASSES["cytosol"]]
    membrane = image[phantom.labels == CLASSES["mito_mem"]]
    assert membrane.mean() < cytosol.mean() - 30
    inverted = EmAppearance(inverted=True)
    other = render_em(np.random.default_rng(0), phantom.labels, REGION, inverted)
    assert other[phantom.labels == CLASSES["mito_mem"]].mean() > other.mean()


def test_training_blocks_are_repeatable_and_different():
    blocks = [
        random_training_block(np.random.default_rng(seed), (24, 32, 32), (16.0, 16.0, 16.0))
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(blocks[0][0], blocks[1][0])
    assert (blocks[0][0] != blocks[2][0]).mean() > 0.5
    phantom = blocks[0][1]
    # What is inside the outer membrane is a mitochondrion: image and distance belong together.
    inside = phantom.mito_distance_nm > 0
    assert phantom.mask(MITO_CLASSES)[inside].mean() > 0.95
    assert not phantom.mask(ER_CLASSES)[inside].any()


def test_deformation_has_the_statistics_of_the_published_one():
    region = Grid((150, 400, 400), (16.0, 16.0, 16.0), (800.0, -1200.0, 2400.0), "em")
    for seed in range(4):
        deformation = random_deformation(
            np.random.default_rng(seed), region, DeformationOptions(jacobian_sd=0.06)
        )
        low, high = region.corners_nm()[[0, -1]]
        points = np.random.default_rng(9).uniform(low, high, (4000, 3))
        determinant = deformation.determinant(points)
        assert 0.045 < determinant.std() < 0.075
        assert determinant.min() > 0.5
        displacement = deformation(points) - points
        assert np.sqrt((displacement**2).sum(axis=1).mean()) == pytest.approx(500, rel=0.1)
        # Mostly slow, as in a 6 um window of the published fields.
        moved = displacement - displacement.mean(axis=0)
        assert 60 < np.sqrt((moved**2).sum(axis=1).mean()) < 350
        corners = region.corners_nm()
        assert np.abs(deformation(corners) - corners).max() > 1  # defined at the edge too


def test_the_transform_is_affine_then_deformation_and_centres_the_em():
    region = hostile_grid("em")
    centre = np.array([100.0, 200.0, 300.0])
    options = DeformationOptions(shift_nm=0.0, displacement_nm=1.0, jacobian_sd=0.001, tilt_deg=0.0)
    truth = random_transform(np.random.default_rng(0), centre, region, options)
    assert isinstance(truth, Chain)
    assert (truth.source, truth.target) == ("lm", "em")
    assert np.linalg.norm(truth(centre[None])[0] - region.centre_nm) < 5
    turn = truth.parts[0].linear
    assert np.degrees(np.arctan2(turn[2, 1], turn[1, 1])) == pytest.approx(17, abs=5)


def test_histogram_puts_points_into_their_voxels():
    grid = hostile_grid("lm")
    points = grid.to_world([[2, 3, 5], [2.4, 3.4, 4.6], [10, 16, 22], [11, 0, 0]])
    counts = histogram(points, grid)
    assert counts.sum() == 3
    assert counts[2, 3, 5] == 2
    assert counts[10, 16, 22] == 1


@pytest.mark.parametrize("kind", ["palm", "sim"])
def test_light_shows_an_emitter_where_it_is(kind):
    grid = Grid((21, 41, 43), (104.0, 52.0, 52.0), (10.0, 20.0, 30.0), "lm")
    where = grid.to_world([9.3, 15.6, 28.2])
    options = LightOptions(kind=kind, background=0.0, missing=0.0, bleaching=0.0)
    image = render_light(np.random.default_rng(0), np.repeat(where[None], 3000, 0), grid, options)
    image = np.clip(image - (0.3 * image.max() if kind == "sim" else 0), 0, None)
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    centre = (index * image[..., None]).sum((0, 1, 2)) / image.sum()
    # SIM collects its emitters in voxels before it blurs them.
    np.testing.assert_allclose(centre, [9.3, 15.6, 28.2], atol=0.3 if kind == "palm" else 0.5)


def test_emitters_have_the_density_asked_for():
    grid = Grid((10, 50, 50), (10.0, 10.0, 10.0), frame="em")
    mask = np.zeros(grid.shape, bool)
    mask[4:6] = True  # a sheet of 0.25 um2, 20 nm thick
    points = surface_emitters(np.random.default_rng(0), mask, grid, 4000.0, 20.0)
    assert abs(len(points) - 1000) < 150
    assert points[:, 0].min() >= 35
    assert points[:, 0].max() <= 55


SMALL = PairOptions(
    seed=2,
    em_shape=(40, 90, 100),
    em_spacing_nm=(32.0, 32.0, 32.0),
    phantom=PhantomOptions(mito_spacing_nm=900),
    landmarks=12,
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    simulate_clem(folder, SMALL)
    return folder


def test_the_pair_agrees_with_its_truth(pair):
    """Light of the outer membrane, carried into the EM by the truth, lies on that membrane."""
    from clemreg.simulate.distance import signed_distance_nm

    truth = read_transform(pair / "truth.json")
    lm = open_volume(pair / "lm.zarr", frame="lm", channel="mito")
    labels = open_labels(pair / "em_labels.zarr", frame="em")
    bright = lm.grid.to_world(np.argwhere(lm.read() >= 4))

    mito = np.isin(labels.read(), [CLASSES[n] for n in ("mito_mem", "mito_lum", "crista")])
    surface, _ = signed_distance_nm(mito, labels.grid)

    def share(transform):
        there = transform(bright)
        inside = labels.grid.contains(there)
        distance = sample_array(surface, labels.grid, there[inside])
        return float((np.abs(distance) < 80).mean())

    right = share(truth)
    shifted = share(truth.then(Affine.translation([0, 700.0, 700.0], "em", "em")))
    assert right > 0.7
    assert right > shifted + 0.2


def test_landmarks_are_the_truth_with_human_noise(pair):
    truth = read_transform(pair / "truth.json")
    table = read_landmarks(pair / "landmarks.csv")
    assert set(table.raters) == {"AW", "JB", "truth"}
    exact = table.select(rater="truth")
    np.testing.assert_allclose(truth(exact.lm_nm), exact.em_nm, atol=0.01)
    between = np.linalg.norm(
        table.select(rater="AW").em_nm - table.select(rater="JB").em_nm, axis=1
    )
    assert 15 < between.mean() < 55


def test_a_pair_from_real_labels_keeps_the_em(tmp_path):
    grid = Grid((30, 60, 70), (10.0, 10.0, 10.0), (0.0, 0.0, 0.0), "em")
    rng = np.random.default_rng(0)
    em = rng.integers(0, 255, grid.shape).astype(np.uint8)
    mask = np.zeros(grid.shape, np.uint8)
    mask[8:22, 15:40, 20:50] = 1
    truth = simulate_from_labels(
        tmp_path, Volume(em, grid), Labels(mask, grid), PairOptions(seed=1, landmarks=5)
    )
    np.testing.assert_array_equal(open_volume(tmp_path / "em.zarr").read(), em)
    lm = open_volume(tmp_path / "lm.zarr", frame="lm", channel="mito")
    pixels = lm.read()
    centre = (lm.grid.points_nm() * pixels[..., None]).sum((0, 1, 2)) / pixels.sum()
    expected = grid.to_world([14.5, 27, 34.5])
    assert np.linalg.norm(truth(centre[None])[0] - expected) < 150


def test_palm_is_the_default_of_the_published_data():
    assert PALM.spacing_nm == (104.0, 52.0, 52.0)


@pytest.mark.parametrize(
    ("spacing", "origin"),
    [((60.0, 20.0, 20.0), (500.0, 0.0, 0.0)), ((30.0, 10.0, 10.0), (9500.0, 0.0, 0.0))],
)
def test_labels_of_other_voxels_are_not_those_of_the_em(tmp_path, spacing, origin):
    em = Grid((11, 17, 23), (30.0, 10.0, 10.0), (500.0, 0.0, 0.0), "em")
    other = Grid((11, 17, 23), spacing, origin, "em")
    pixels = np.ones(em.shape, np.uint8)
    with pytest.raises(DataError, match=r"voxels of \(30.0, 10.0, 10.0\) nm from"):
        simulate_from_labels(tmp_path, Volume(pixels, em), Labels(pixels, other), PairOptions())
    assert not any(tmp_path.iterdir())
