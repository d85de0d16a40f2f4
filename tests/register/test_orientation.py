from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from clemreg.errors import ConfigError, DataError, RegistrationError
from clemreg.io.points import read_landmarks
from clemreg.io.transforms import read_transform
from clemreg.io.volumes import open_volume
from clemreg.register import orientation
from clemreg.register.apply import apply_to_image
from clemreg.register.contest import Contest
from clemreg.register.correlate import MaskedCorrelator, strength
from clemreg.register.distinct import Distinct
from clemreg.register.features import prepare_fixed, prepare_moving
from clemreg.register.finder import Finder
from clemreg.register.guides import Guides
from clemreg.register.matching import Masks
from clemreg.register.orientation import (
    OrientationOptions,
    _coarse_pair,
    _Rivals,
    _rounds,
    search_orientation,
)
from clemreg.register.pose import SPENT_UM3, Pose, overlap_of, pose_difference, refine_pose
from clemreg.register.registration import RegisterOptions, _start
from clemreg.register.rotations import products, tilts, turns, ups
from clemreg.register.trusted import blur, pool
from clemreg.report.verdict import suspicions
from clemreg.space import Affine, Box, Grid
from clemreg.space.resample import sample_array
from clemreg.volume import Volume


def angle_deg(rotation):
    return np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)))


def test_every_round_is_wider_and_mirrors_come_only_when_allowed():
    first, second, third = _rounds(OrientationOptions())
    assert len(first) == 60
    assert len(first) < len(second) < len(third)
    for linears in (first, second, third):
        assert all(np.linalg.det(m) > 0 for m in linears)
    sizes = {round(float(np.cbrt(np.linalg.det(m))), 3) for m in third}
    assert sizes == {0.769, 0.877, 1.0, 1.14, 1.3}
    mirrored = _rounds(OrientationOptions(allow_mirror=True))
    assert sum(np.linalg.det(m) < 0 for m in mirrored[0]) == len(first)
    assert len(_rounds(OrientationOptions(search="all"))[0]) == 3 * len(first)
    flat = _rounds(OrientationOptions(tilt_deg=0.0, scale=1.0))
    assert flat[1] == flat[2] == []


def test_tilts_turn_the_optical_axis_by_their_angle_in_every_direction():
    found = tilts(20.0, 8)
    axes = np.array([t @ [1.0, 0.0, 0.0] for t in found])
    np.testing.assert_allclose(axes[:, 0], np.cos(np.deg2rad(20)), atol=1e-12)
    assert all(angle_deg(t) == pytest.approx(20.0) for t in found)
    directions = np.sort(np.degrees(np.arctan2(axes[:, 1], axes[:, 2])) % 360)
    np.testing.assert_allclose(np.diff(directions), 45.0, atol=1e-9)


def test_upright_poses_hold_any_rotation_in_the_plane():
    rng = np.random.default_rng(0)
    poses = products(ups(every_axis=False, mirror=False), [np.eye(3)], turns(12.0), [1.0])
    for _ in range(20):
        a = rng.uniform(0, 2 * np.pi)
        turn = in_plane(a)
        over = np.diag([-1.0, -1.0, 1.0])
        for wanted in (turn, over @ turn):
            assert min(angle_deg(u.T @ wanted) for u in poses) <= 6.0 + 1e-6


def test_the_em_may_stand_on_any_axis_and_be_tilted_any_way():
    """Axes of the EM in any order and hand, the light field tilted by up to 28 degrees."""
    rng = np.random.default_rng(1)
    options = OrientationOptions(search="all", allow_mirror=True, scale=1.0)
    tried = np.array([m for linears in _rounds(options) for m in linears])
    for _ in range(40):
        standing = np.eye(3)[rng.permutation(3)] * rng.choice([-1.0, 1.0], 3)
        a, b, t = *rng.uniform(0, 2 * np.pi, 2), np.deg2rad(rng.uniform(0, 28))
        wanted = standing @ in_plane(b).T @ about_x(t) @ in_plane(b) @ in_plane(a)
        same_hand = tried[np.linalg.det(tried) * np.linalg.det(wanted) > 0]
        assert min(angle_deg(m.T @ wanted) for m in same_hand) < 17.0


def in_plane(a):
    return np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])


def about_x(a):
    return np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])


def test_impossible_searches_are_refused():
    for wrong in ({"search": "every"}, {"tilt_deg": 80.0}, {"scale": 0.9}, {"angle_step_deg": 0}):
        with pytest.raises(ConfigError):
            OrientationOptions(**wrong)


@pytest.mark.parametrize("holes", [0.0, 0.3])
def test_the_evidence_of_a_shift_is_that_of_the_voxels_that_both_have(holes):
    rng = np.random.default_rng(1)
    fixed = rng.normal(3.0, 2.0, size=(9, 14, 11)).astype("f4")
    template = rng.normal(-1.0, 0.5, size=(4, 5, 6)).astype("f4")
    mask = rng.random(template.shape) < 0.8
    template += np.where(mask, 0.2 * fixed[3:7, 7:12, 2:8], 50.0).astype("f4")
    trusted = rng.random(fixed.shape) >= holes
    spoilt = np.where(trusted, fixed, 300.0).astype("f4")
    correlate = MaskedCorrelator(
        spoilt, (5, 6, 6), spent=7.0, workers=1, trusted=trusted if holes else None
    )
    found, zero = correlate(template * mask, mask)
    assert np.unravel_index(found.argmax(), found.shape) == tuple(np.add(zero, (3, 7, 2)))
    for shift in ((3, 7, 2), (0, 0, 0), (5, 9, 5), (-2, 10, -3), (7, -1, 4)):
        low, high = np.maximum(shift, 0), np.minimum(np.add(shift, template.shape), fixed.shape)
        there = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        here = tuple(slice(a, b) for a, b in zip(low - shift, high - shift, strict=True))
        seen = mask[here] & trusted[there]
        r = max(0.0, np.corrcoef(fixed[there][seen], template[here][seen])[0, 1])
        share = max(0.0, (seen.sum() - 7.0) / mask.sum())
        at = tuple(np.add(shift, zero))
        assert found[at] == pytest.approx(-share * np.log(1 - r * r), abs=1e-4)


def test_a_correlation_on_part_of_the_volume_proves_less():
    assert strength(0.6, 1.0) == pytest.approx(0.6)
    assert strength(0.6, 0.25) < strength(0.6, 0.5) < 0.6
    # Two halves, each with r, prove as much as the whole with r.
    both = 1 - (1 - strength(0.6, 0.5) ** 2) ** 2
    assert np.sqrt(both) == pytest.approx(0.6)
    assert strength(-0.9, 1.0) == strength(0.9, 0.0) == 0.0


def test_the_overlap_is_that_of_the_smaller_volume():
    large = Grid((20, 40, 40), (250.0,) * 3)  # 500 um3
    small = Grid((12, 20, 16), (250.0,) * 3)  # 60 um3
    spent = SPENT_UM3 / 60
    assert overlap_of(np.eye(4), 1.0, large, small) == pytest.approx(1 - spent)
    # The same if the large one is the EM, of which only a part lies in the field.
    assert overlap_of(np.eye(4), 0.12, small, large) == pytest.approx(1 - spent)
    # 1.1 nm in the EM are 1 nm in the field.
    assert overlap_of(np.diag([1.1, 1.1, 1.1, 1.0]), 0.12 * 1.1**3, small, large) == pytest.approx(
        1 - spent
    )
    assert overlap_of(np.eye(4), 0.01, large, small) == 0.0


def speckle(shape, seed):
    image = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.3)
    return (image / image.std()).astype("f4")


def posed_pair(linear, seed=2, em_shape=(14, 24, 22), away_um=(0.2, -0.3, 0.45), noise=0.0):
    """A coarse LM, and EM of the same tissue in a known pose, `away_um` from the LM's middle."""
    lm = Grid((24, 40, 40), (250.0,) * 3, (1000.0, -300.0, 70.0), "lm")
    tissue = lm.crop(Box((-6, -17, -17), (30, 57, 75)))
    em = Grid(em_shape, (250.0,) * 3, (-800.0, 5000.0, 300.0), "em")
    offset = em.centre_nm - linear @ (lm.centre_nm + 1e3 * np.array(away_um))
    truth = Affine.from_linear(linear, offset, "lm", "em")
    image = speckle(tissue.shape, seed)
    points = truth.inverse()(em.points_nm().reshape(-1, 3))
    values = sample_array(image, tissue, points, order=3).reshape(em.shape)
    values = values + noise * speckle(em.shape, seed + 1)
    return Volume(image[6:30, 17:57, 17:57], lm), Volume(values.astype("f4"), em), truth


def turned(degrees, tilt):
    (z,) = tilts(tilt, 1)
    a = np.deg2rad(degrees)
    c, s = np.cos(a), np.sin(a)
    return z @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


@pytest.mark.parametrize("freedom", ["similarity", "affine"])
def test_a_pose_falls_into_place(freedom):
    fixed, moving, truth = posed_pair(1.03 * turned(25.0, 4.0))
    off = turned(6.0, 3.0)
    linear = 0.95 * off @ truth.linear
    start = np.eye(4)
    start[:3, :3] = linear
    middle = truth.inverse()(moving.grid.centre_nm[None])[0]
    start[:3, 3] = moving.grid.centre_nm + np.array([90.0, -60.0, 80.0]) - linear @ middle
    found = refine_pose(Pose(start, np.nan, np.nan), fixed, moving, freedom)
    corners = truth.inverse()(moving.grid.corners_nm())
    error = np.linalg.norm(
        Affine(found.matrix, "lm", "em")(corners) - moving.grid.corners_nm(), axis=1
    )
    assert error.max() < 60.0  # a quarter of a voxel
    assert found.score > 0.9
    if freedom == "similarity":
        turn = found.matrix[:3, :3] / np.cbrt(np.linalg.det(found.matrix[:3, :3]))
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)


def test_the_contest_fits_a_pose_and_leaves_out_what_does_not_overlap():
    fixed, moving, truth = posed_pair(turned(25.0, 4.0))
    near = truth.matrix.copy()
    near[:3, 3] += [60.0, -90.0, 70.0]
    contest = Contest(fixed, moving)
    found = contest.settle(Pose(near, np.nan, np.nan))
    inside = truth.inverse()(moving.grid.corners_nm())
    error = np.linalg.norm(
        Affine(found.matrix, "lm", "em")(inside) - moving.grid.corners_nm(), axis=1
    )
    assert error.max() < 50.0
    assert found.score > 0.95
    assert found.overlap > 0.95
    near[:3, 3] += 1e5
    assert contest.settle(Pose(near, np.nan, np.nan)).strength == 0.0


def as_seen(volume):
    return volume


def dense_mask(volume):
    image = volume.read()
    return Volume((image > np.quantile(image, 0.5)).astype("f4"), volume.grid)


def sparse_mask(volume):
    image = volume.read()
    return Volume((image > np.quantile(image, 0.93)).astype("f4"), volume.grid)


MIRROR = np.diag([-1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("linear", "away_um", "em_shape", "seen", "seed"),
    [
        (turned(140.0, 4.0), (0.0, 0.2, 5.3), (14, 24, 22), as_seen, 11),
        (0.93 * turned(255.0, 7.0), (0.3, 0.4, 4.8), (14, 24, 22), dense_mask, 12),
        (MIRROR @ turned(70.0, 5.0), (0.1, -0.2, 5.0), (14, 24, 22), as_seen, 13),
        (turned(200.0, 6.0), (0.2, -0.3, 0.4), (14, 24, 22), dense_mask, 14),
        (1.05 * turned(310.0, 3.0), (0.2, -0.3, 0.4), (14, 24, 22), sparse_mask, 15),
        (turned(20.0, 6.0), (0.5, -0.3, 3.6), (7, 24, 22), as_seen, 16),
        (turned(100.0, 4.0), (0.0, 0.0, 0.0), (20, 52, 52), dense_mask, 17),
    ],
    ids=["part", "part-dense", "part-mirror", "dense", "sparse", "part-slab", "large-em"],
)
def test_one_measure_ranks_poses_of_every_overlap_and_density(
    linear, away_um, em_shape, seen, seed
):
    """A good third to all of the smaller volume overlaps; a third of the signal is noise."""
    fixed, em, truth = posed_pair(linear, seed, em_shape, away_um, noise=0.8)
    mirrored = np.linalg.det(linear) < 0
    options = OrientationOptions(
        spacing_nm=250.0, allow_mirror=mirrored, tilt_deg=0.0, scale=1.0, threads=1
    )
    found = search_orientation(fixed, seen(em), options)
    points = fixed.grid.points_nm().reshape(-1, 3)
    both = points[em.grid.contains(truth(points))]
    error = np.linalg.norm(found.affine(both) - truth(both), axis=1)
    assert np.median(error) < 300
    assert found.mirrored == mirrored
    assert found.margin > 0.05


def shifted(truth, nm, score):
    matrix = truth.matrix.copy()
    matrix[:3, 3] += nm
    return Pose(matrix, score, 1.0)


def test_a_stronger_start_is_tried_beside_one_that_went_astray():
    fixed, moving, truth = posed_pair(turned(25.0, 4.0))
    rivals = _Rivals(fixed, moving, 250.0)
    rivals.add([shifted(truth, [300.0, 0.0, -200.0], 0.4)], tried=1, settled=0)
    rivals.add([shifted(truth, [0.0, 90.0, -60.0], 0.42)], tried=1, settled=1)
    assert not rivals.poses  # no news
    rivals.add([shifted(truth, [0.0, 90.0, -60.0], 0.5)], tried=1, settled=1)
    assert rivals.poses[0].score > 0.95


def test_a_start_that_coarse_images_spoil_is_fitted_on_the_full_ones():
    fixed, moving, truth = posed_pair(turned(25.0, 4.0))
    cloud = gaussian_filter(np.random.default_rng(8).normal(size=moving.shape), 5.0)
    clouded = Volume(moving.read() + (0.7 * cloud / cloud.std()).astype("f4"), moving.grid)
    start = shifted(truth, [60.0, -90.0, 70.0], 0.5)
    coarse = _Rivals(fixed, clouded, 1000.0)
    coarse.add([start], tried=1, settled=1)
    inside = truth.inverse()(moving.grid.corners_nm())
    found = Affine(coarse.poses[0].matrix, "lm", "em")
    assert np.linalg.norm(found(inside) - moving.grid.corners_nm(), axis=1).max() < 250.0  # a voxel


@pytest.mark.slow
def test_a_tilt_of_25_degrees_and_a_wrong_scale_are_found():
    fixed, moving, truth = posed_pair(turned(200.0, 25.0), seed=3)
    found = search_orientation(fixed, moving, OrientationOptions(spacing_nm=250.0))
    inside = truth.inverse()(moving.grid.corners_nm())
    error = np.linalg.norm(found.affine(inside) - moving.grid.corners_nm(), axis=1)
    assert error.max() < 150
    assert found.margin > 0.2
    fixed, moving, truth = posed_pair(1.25 * turned(100.0, 5.0), seed=4)
    found = search_orientation(fixed, moving, OrientationOptions(spacing_nm=250.0))
    inside = truth.inverse()(moving.grid.corners_nm())
    error = np.linalg.norm(found.affine(inside) - moving.grid.corners_nm(), axis=1)
    assert error.max() < 250


@pytest.mark.slow
def test_volumes_that_do_not_belong_together_never_pass_in_silence():
    fixed, _, _ = posed_pair(turned(30.0, 5.0), seed=5)
    _, moving, _ = posed_pair(turned(30.0, 5.0), seed=6)
    options = OrientationOptions(spacing_nm=250.0, tilt_deg=10.0, scale=1.0, angle_step_deg=20.0)
    found = search_orientation(fixed, moving, options)
    report = {"score": found.score, "margin": found.margin, "mirrored": found.mirrored}
    assert suspicions({"orientation": report})


@pytest.mark.slow
def test_a_dense_mask_of_the_sample_pair_comes_back(sample_data, tmp_path):
    """The mask is the light volume in the EM frame: a tenth of all voxels, and noise between."""
    truth = read_transform(sample_data / "truth.json")
    light = open_volume(sample_data / "lm.zarr", frame="lm").channel("mito")
    onto = open_volume(sample_data / "em.zarr", frame="em").levels[2].grid
    seen = apply_to_image(truth.inverse(), light, onto, tmp_path / "seen.zarr").read()
    smooth = gaussian_filter(seen.astype("f4"), 1.5)
    mask = Volume((smooth > np.quantile(smooth, 0.9)).astype("u1"), onto, name="mask")
    fixed, moving = prepare_fixed(light), prepare_moving(mask, light.grid.spacing_nm)
    found = search_orientation(fixed, moving, OrientationOptions(threads=1))
    points = read_landmarks(sample_data / "landmarks.csv").select(rater="truth").lm_nm
    assert np.median(np.linalg.norm(found.affine(points) - truth(points), axis=1)) < 150
    assert found.margin > 0.15


def decoyed_light(fixed, moving, away_um):
    """The light image with a brighter and cleaner copy of the EM beside the true place; its box."""
    image, grid = fixed.read().copy(), fixed.grid
    rest = (grid.points_nm() - grid.centre_nm - 1e3 * np.array(away_um)) + moving.grid.centre_nm
    values = sample_array(moving.read(), moving.grid, rest.reshape(-1, 3), fill=np.nan)
    values = values.reshape(grid.shape)
    inside = np.isfinite(values)
    image[inside] = 20.0 * values[inside]
    return Volume(image, grid), inside


def error_nm(found, fixed, moving, truth):
    points = fixed.grid.points_nm().reshape(-1, 3)
    both = points[moving.grid.contains(truth(points))]
    return np.median(np.linalg.norm(found.affine(both) - truth(both), axis=1))


def test_an_artefact_of_the_light_volume_draws_the_pose_away_unless_it_is_masked():
    options = OrientationOptions(spacing_nm=250.0, tilt_deg=0.0, scale=1.0, threads=1)
    fixed, moving, truth = posed_pair(
        turned(140.0, 4.0), 21, (14, 18, 14), (0.2, 0.2, -2.0), noise=0.6
    )
    fixed, artefact = decoyed_light(fixed, moving, (0.3, 1.0, 3.0))
    drawn = search_orientation(fixed, moving, options)
    assert error_nm(drawn, fixed, moving, truth) > 2000
    told = RegisterOptions(orientation=options, threads=1)
    found = _start(fixed, moving, told, Guides(masks=Masks(fixed=~artefact)))
    assert error_nm(found, fixed, moving, truth) < 150
    assert found.margin > 0.15
    assert found.score > drawn.runner_up


def test_garbage_in_the_em_draws_the_pose_away_unless_it_is_masked():
    """Over half of the EM lies another piece of the tissue, stronger than the EM's own."""
    options = OrientationOptions(spacing_nm=250.0, tilt_deg=0.0, scale=1.0, threads=1)
    fixed, moving, truth = posed_pair(turned(70.0, 3.0), 22, (14, 18, 28), (0.2, 0.2, -0.4))
    elsewhere = Affine(truth.matrix @ shift_of([0.0, 4000.0, 1500.0]), "lm", "em")
    points = elsewhere.inverse()(moving.grid.points_nm().reshape(-1, 3))
    other = sample_array(fixed.read(), fixed.grid, points, order=1).reshape(moving.shape)
    garbage = np.zeros(moving.shape, bool)
    garbage[:, :, 11:] = True
    em = Volume(np.where(garbage, 5.0 * other, moving.read()).astype("f4"), moving.grid)
    drawn = search_orientation(fixed, em, options)
    assert error_nm(drawn, fixed, em, truth) > 2000
    found = search_orientation(fixed, em, options, Masks(moving=~garbage))
    assert error_nm(found, fixed, em, truth) < 150
    assert found.margin > 0.15


def shift_of(nm):
    matrix = np.eye(4)
    matrix[:3, 3] = nm
    return matrix


def test_masks_of_ones_change_the_search_only_by_rounding():
    options = OrientationOptions(spacing_nm=250.0, tilt_deg=0.0, scale=1.0, threads=1)
    fixed, moving, _ = posed_pair(turned(25.0, 4.0))
    ones = Masks(np.ones(fixed.shape, bool), np.ones(moving.shape, bool))
    plain = search_orientation(fixed, moving, options)
    found = search_orientation(fixed, moving, options, ones)
    np.testing.assert_allclose(found.affine.linear, plain.affine.linear, atol=2e-3)
    assert found.score == pytest.approx(plain.score, abs=2e-3)


def test_a_mask_that_leaves_nothing_is_refused_by_the_search():
    fixed, moving, _ = posed_pair(np.eye(3))
    speck = np.zeros(fixed.shape, bool)
    speck[0, 0, 0] = True
    with pytest.raises(DataError, match="no contrast at 1000 nm where its mask is not 0"):
        search_orientation(fixed, moving, OrientationOptions(spacing_nm=1000.0), Masks(fixed=speck))


def test_what_cannot_be_trusted_neither_blurs_nor_averages_into_the_rest():
    rng = np.random.default_rng(3)
    image = rng.normal(size=(9, 12, 11)).astype("f4")
    mask = rng.random(image.shape) < 0.7
    spoilt = np.where(mask, image, 1e6).astype("f4")
    blank = np.where(mask, image, 0).astype("f4")
    np.testing.assert_allclose(blur(spoilt, mask, 1.1), blur(blank, mask, 1.1), atol=1e-5)
    weight = gaussian_filter(mask.astype(float), 1.1, mode="nearest")
    wanted = gaussian_filter(blank.astype(float), 1.1, mode="nearest") / weight
    np.testing.assert_allclose(blur(spoilt, mask, 1.1), wanted, atol=5e-3)
    pooled, trusted = pool(spoilt, mask, (3, 4, 3))
    first = spoilt[:3, :4, :3][mask[:3, :4, :3]]
    assert pooled[0, 0, 0] == pytest.approx(first.mean(), abs=5e-3)
    assert trusted[0, 0, 0] == (len(first) >= 18)
    assert pooled.shape == trusted.shape == (3, 3, 4)


def test_the_overlap_counts_what_can_be_trusted():
    light, em = Grid((20, 40, 40), (250.0,) * 3), Grid((12, 20, 16), (250.0,) * 3)  # 60 um3
    half = np.zeros(em.shape, bool)
    half[:6] = True
    spent = SPENT_UM3 / 30
    assert overlap_of(np.eye(4), 1.0, light, em, Masks(moving=half)) == pytest.approx(1 - spent)
    tenth = np.zeros(light.shape, bool)
    tenth[:2, :20] = True  # 25 um3
    found = overlap_of(np.eye(4), 25 / 60, light, em, Masks(fixed=tenth))
    assert found == pytest.approx(1 - SPENT_UM3 / 25)


def spoilt_pair():
    """A pair with a bright beam through the light field, and garbage in a third of the EM."""
    fixed, moving, truth = posed_pair(turned(25.0, 4.0))
    beam = np.zeros(fixed.shape, bool)
    beam[:, 15:22] = True
    light = np.where(beam, 30.0 * speckle(fixed.shape, 31), fixed.read()).astype("f4")
    garbage = np.zeros(moving.shape, bool)
    garbage[:, :, 14:] = True
    em = np.where(garbage, 30.0 * speckle(moving.shape, 32), moving.read()).astype("f4")
    pair = Volume(light, fixed.grid), Volume(em, moving.grid)
    return *pair, truth, Masks(~beam, ~garbage)


def found_by_fft(fixed, moving, masks, start):
    coarse, trusted = _coarse_pair(fixed, moving, 250.0, masks)
    poses = Finder(coarse.fixed, coarse.moving, [start.linear], 1, trusted).poses()
    return max(poses, key=lambda p: p.strength)


def found_downhill(fixed, moving, masks, start):
    return refine_pose(start, fixed, moving, "affine", masks)


def found_in_the_contest(fixed, moving, masks, start):
    return Contest(fixed, moving, masks).settle(start)


@pytest.mark.parametrize("side", ["fixed", "moving", "both"])
@pytest.mark.parametrize("part", [found_by_fft, found_downhill, found_in_the_contest])
def test_every_part_of_the_search_leaves_out_what_is_masked(part, side):
    bad_fixed, bad_moving, truth, masks = spoilt_pair()
    fixed, moving, _ = posed_pair(turned(25.0, 4.0))
    fixed, masks = (fixed, Masks(None, masks.moving)) if side == "moving" else (bad_fixed, masks)
    moving, masks = (moving, Masks(masks.fixed)) if side == "fixed" else (bad_moving, masks)
    start = shifted(truth, [110.0, -80.0, 120.0], np.nan)
    corners = fixed.grid.crop(Box((8, 12, 12), (16, 28, 28))).corners_nm()
    spoilt, mended = part(fixed, moving, Masks(), start), part(fixed, moving, masks, start)

    def furthest(pose):
        away = Affine(pose.matrix, "lm", "em")(corners) - truth(corners)
        return np.linalg.norm(away, axis=1).max()

    assert furthest(spoilt) > 150
    assert spoilt.score < 0.3
    # Shifts by FFT are those of whole voxels of 250 nm: half of one a side.
    assert furthest(mended) < (220 if part is found_by_fft else 25)
    assert mended.score > 0.85
    if part is not found_by_fft:  # a beam of 7 planes crosses the EM
        assert mended.overlap == pytest.approx(0.98 if side == "moving" else 0.66, abs=0.02)


def random_pose(rng):
    turn = turned(rng.uniform(0, 50), rng.uniform(0, 12)) @ np.diag([rng.choice([-1.0, 1.0]), 1, 1])
    matrix = np.eye(4)
    matrix[:3, :3] = rng.uniform(0.9, 1.1) * turn
    matrix[:3, 3] = rng.uniform(-900, 900, 3)
    return Pose(matrix, rng.uniform(0.1, 0.9), 1.0)


@pytest.mark.parametrize("stronger", [np.inf, 1.2])
def test_distinct_poses_are_those_that_differ_from_every_one_before(stronger):
    rng = np.random.default_rng(9)
    at = np.array([300.0, -200.0, 90.0])
    distinct = Distinct(at, stronger)
    known = []
    for _ in range(3):
        poses = [random_pose(rng) for _ in range(60)]
        expected = []
        for pose in sorted(poses, key=lambda p: -p.strength):
            near = [
                k for k in (*known, *expected)
                if pose_difference(pose, k, at)[0] <= 15 and pose_difference(pose, k, at)[1] <= 1000
            ]  # fmt: skip
            if all(pose.strength > stronger * k.strength for k in near) and len(expected) < 12:
                expected.append(pose)
        assert distinct.choose([*poses, Pose(np.eye(4), 0.0, 1.0)], 12) == (expected)
        known += expected
    assert 5 < len(known) < 36


def test_if_no_pose_stands_out_those_of_all_rounds_are_looked_at_again(monkeypatch):
    fixed, moving, truth = posed_pair(turned(100.0, 5.0), 4)
    options = OrientationOptions(spacing_nm=250.0, tilt_deg=0.0, scale=1.0, threads=1)
    with monkeypatch.context() as changed:
        changed.setattr(orientation, "_DEPTHS", (((0, 0),), (), ()))
        found = search_orientation(fixed, moving, options)
        assert error_nm(found, fixed, moving, truth) < 100
        changed.setattr(orientation, "_DEEPEST", (0, 0))
        with pytest.raises(RegistrationError, match="no pose"):
            search_orientation(fixed, moving, options)
    monkeypatch.setattr(orientation, "_DEEPEST", ("never", "asked"))
    assert search_orientation(fixed, moving, options).margin > 0.2
