from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from clemreg.errors import ConfigError
from clemreg.register.correlate import MaskedCorrelator
from clemreg.register.orientation import (
    OrientationOptions,
    _rounds,
    _tilts,
    _upright,
    search_orientation,
)
from clemreg.register.pose import Pose, refine_pose
from clemreg.report.verdict import suspicions
from clemreg.space import Affine, Grid
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
    tilts = _tilts(20.0, 8)
    axes = np.array([t @ [1.0, 0.0, 0.0] for t in tilts])
    np.testing.assert_allclose(axes[:, 0], np.cos(np.deg2rad(20)), atol=1e-12)
    assert all(angle_deg(t) == pytest.approx(20.0) for t in tilts)
    directions = np.sort(np.degrees(np.arctan2(axes[:, 1], axes[:, 2])) % 360)
    np.testing.assert_allclose(np.diff(directions), 45.0, atol=1e-9)


def test_upright_poses_hold_any_rotation_in_the_plane():
    rng = np.random.default_rng(0)
    upright = _upright(OrientationOptions(), 12.0)
    for _ in range(20):
        a = rng.uniform(0, 2 * np.pi)
        turn = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
        over = np.diag([-1.0, -1.0, 1.0])
        for wanted in (turn, over @ turn):
            assert min(angle_deg(u.T @ wanted) for u in upright) <= 6.0 + 1e-6


def test_impossible_searches_are_refused():
    for wrong in ({"search": "every"}, {"tilt_deg": 80.0}, {"scale": 0.9}, {"angle_step_deg": 0}):
        with pytest.raises(ConfigError):
            OrientationOptions(**wrong)


def test_the_quick_score_is_the_sum_over_the_template():
    rng = np.random.default_rng(1)
    fixed = rng.normal(size=(9, 14, 11)).astype("f4")
    template = rng.normal(size=(4, 5, 6)).astype("f4")
    mask = rng.random(template.shape) < 0.8
    correlator = MaskedCorrelator(
        fixed, np.ones(fixed.shape, bool), (5, 6, 6), min_overlap=0.1, workers=1
    )
    score, zero = correlator.quick(template, mask)
    values = np.where(mask, template - template[mask].mean(), 0)
    scaled = (fixed - fixed.mean()) / fixed.std()
    norm = np.sqrt((values**2).sum() * mask.sum())
    for shift in ((0, 0, 0), (3, 7, 2), (5, 9, 5)):
        part = scaled[tuple(slice(s, s + n) for s, n in zip(shift, template.shape, strict=True))]
        at = tuple(s + z for s, z in zip(shift, zero, strict=True))
        assert score[at] == pytest.approx(float((part * values).sum() / norm), abs=1e-4)
    # A template that hangs out of the fixed image loses what hangs out.
    shift = np.array((-2, 10, -3))
    low, high = np.maximum(shift, 0), np.minimum(shift + template.shape, fixed.shape)
    there = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    here = tuple(slice(a, b) for a, b in zip(low - shift, high - shift, strict=True))
    expected = float((scaled[there] * values[here]).sum() / norm)
    assert score[tuple(shift + zero)] == pytest.approx(expected, abs=1e-4)


def speckle(shape, seed):
    image = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.3)
    return (image / image.std()).astype("f4")


def posed_pair(linear, seed=2):
    """A coarse LM, and an EM block cut out of it under a known pose."""
    lm = Grid((24, 40, 40), (250.0,) * 3, (1000.0, -300.0, 70.0), "lm")
    em = Grid((14, 24, 22), (250.0,) * 3, (-800.0, 5000.0, 300.0), "em")
    offset = em.centre_nm - linear @ (lm.centre_nm + np.array([200.0, -300.0, 450.0]))
    truth = Affine.from_linear(linear, offset, "lm", "em")
    image = speckle(lm.shape, seed)
    points = truth.inverse()(em.points_nm().reshape(-1, 3))
    values = sample_array(image, lm, points, order=3).reshape(em.shape)
    return Volume(image, lm), Volume(values.astype("f4"), em), truth


def turned(degrees, tilt):
    (z,) = _tilts(tilt, 1)
    a = np.deg2rad(degrees)
    c, s = np.cos(a), np.sin(a)
    return z @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


@pytest.mark.parametrize("rigid", [True, False])
def test_a_pose_falls_into_place(rigid):
    fixed, moving, truth = posed_pair(turned(25.0, 4.0))
    off = turned(6.0, 3.0)
    linear = off @ truth.linear
    start = np.eye(4)
    start[:3, :3] = linear
    middle = truth.inverse()(moving.grid.centre_nm[None])[0]
    start[:3, 3] = moving.grid.centre_nm + np.array([90.0, -60.0, 80.0]) - linear @ middle
    found = refine_pose(Pose(start, np.nan, np.nan), fixed, moving, rigid=rigid)
    corners = truth.inverse()(moving.grid.corners_nm())
    error = np.linalg.norm(
        Affine(found.matrix, "lm", "em")(corners) - moving.grid.corners_nm(), axis=1
    )
    assert error.max() < 60.0  # a quarter of a voxel
    assert found.score > 0.9
    if rigid:
        turn = found.matrix[:3, :3] @ linear.T
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)


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
