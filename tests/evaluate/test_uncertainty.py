from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from clemreg.cli.app import run_app
from clemreg.errors import DataError, FrameError
from clemreg.evaluate.uncertainty import (
    LandmarkUncertainty,
    error_map,
    halves_error_nm,
    rater_noise_nm,
    register_halves,
    split_objects,
    suggest_landmarks_nm,
    worst_places_nm,
)
from clemreg.io.points import write_landmarks
from clemreg.io.transforms import write_transform
from clemreg.io.volumes import open_volume, write_volume
from clemreg.space import Affine, Landmarks, fit_affine, fit_rigid, fit_similarity
from clemreg.space.grid import Grid
from clemreg.testing import hostile_grid, random_affine
from clemreg.volume import Volume

RNG = np.random.default_rng(0)
SPOTS = RNG.normal(size=(9, 3)) * [900, 4000, 3000] + [500, -7000, 12000]
TARGETS = SPOTS.mean(axis=0) + np.array([[0, 0, 0], [2000, 5000, -3000], [-900, 0, 6000.0]])
NOISE = np.array([80.0, 20.0, 35.0])
FITS = {"rigid": fit_rigid, "similarity": fit_similarity, "affine": fit_affine}


@pytest.mark.parametrize("model", ["rigid", "similarity", "affine"])
def test_prediction_against_simulated_fits(model):
    rng = np.random.default_rng(1)
    errors = []
    for _ in range(2000):
        marked = SPOTS + rng.normal(size=SPOTS.shape) * NOISE
        errors.append(FITS[model](SPOTS, marked, "em", "em")(TARGETS) - TARGETS)
    errors = np.array(errors)
    predicted = LandmarkUncertainty(SPOTS, NOISE, model).covariance_nm2(TARGETS)
    for k in range(len(TARGETS)):
        scale = np.trace(predicted[k])
        np.testing.assert_allclose(np.cov(errors[:, k].T), predicted[k], atol=0.08 * scale)
    rms = np.sqrt((errors**2).sum(axis=2).mean(axis=0))
    np.testing.assert_allclose(
        LandmarkUncertainty(SPOTS, NOISE, model).error_nm(TARGETS), rms, rtol=0.05
    )


def test_equal_noise_gives_the_formula_of_fitzpatrick():
    """TRE^2 = FLE^2 / N (1 + mean over the axes k of d_k^2 / f_k^2), about the principal axes."""
    centred = SPOTS - SPOTS.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    fle2 = 3 * 30.0**2
    for target in TARGETS:
        along, at = centred @ axes.T, (target - SPOTS.mean(axis=0)) @ axes.T
        ratio = [
            (at @ at - at[k] ** 2) / ((along**2).sum(axis=1) - along[:, k] ** 2).mean()
            for k in range(3)
        ]
        expected = np.sqrt(fle2 / len(SPOTS) * (1 + sum(ratio) / 3))
        found = LandmarkUncertainty(SPOTS, np.full(3, 30.0), "rigid").error_nm(target[None])
        assert found[0] == pytest.approx(expected)


def test_landmarks_that_determine_nothing_are_refused():
    flat = SPOTS.copy()
    flat[:, 0] = 5
    with pytest.raises(DataError, match="plane or a line"):
        LandmarkUncertainty(flat, NOISE, "affine")
    assert LandmarkUncertainty(flat, NOISE, "rigid").error_nm(TARGETS).min() > 0
    line = np.outer(np.arange(5.0), [1, 2, 3])
    with pytest.raises(DataError, match="plane or a line"):
        LandmarkUncertainty(line, NOISE, "rigid")
    with pytest.raises(DataError, match="2 landmarks"):
        LandmarkUncertainty(SPOTS[:2], NOISE, "rigid")
    with pytest.raises(DataError, match="three lengths"):
        LandmarkUncertainty(SPOTS, np.array([1, np.nan, 1]), "rigid")


def test_noise_of_one_person_from_two():
    rng = np.random.default_rng(2)
    truth = rng.uniform(0, 9000, (400, 3))
    em = np.concatenate([truth + rng.normal(size=truth.shape) * NOISE + b for b in (0, 15)])
    names = tuple(str(i) for i in range(400)) * 2
    table = Landmarks(
        names, np.concatenate([truth, truth]), em, ("AW",) * 400 + ("JB",) * 400,
        ("held_out",) * 800, np.ones(800, bool),
    )  # fmt: skip
    np.testing.assert_allclose(rater_noise_nm(table, "AW", "JB"), NOISE, rtol=0.12)
    with pytest.raises(DataError, match="0 points in common"):
        rater_noise_nm(table, "AW", "CD")


def test_halves_are_disjoint_whole_and_of_like_volume():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 40, (11, 17, 23)) * 70_001
    first, second = split_objects(labels, rng)
    assert not (first & second).any()
    np.testing.assert_array_equal(first | second, labels != 0)
    for one in np.unique(labels[labels != 0]):
        assert first[labels == one].all() or second[labels == one].all()
    largest = np.unique(labels[labels != 0], return_counts=True)[1].max()
    assert abs(int(first.sum()) - int(second.sum())) <= largest
    other, _ = split_objects(labels, rng)
    assert (other != first).any()
    with pytest.raises(DataError, match="1 objects cannot be halved"):
        split_objects((labels == 70_001).astype(int), rng)


def test_half_the_difference_of_halves_is_the_error_of_the_whole():
    """Objects of equal size whose shifts scatter; a registration takes their mean."""
    rng = np.random.default_rng(4)
    labels = np.repeat(np.arange(1, 41), 5).reshape(1, 10, 20)
    predicted, actual = [], []
    for _ in range(150):
        shift = rng.normal(size=(41, 3)) * NOISE

        def register(mask, shift=shift):
            ids = np.unique(labels[mask])
            return Affine.translation(shift[ids].mean(axis=0), "lm", "em")

        pairs = register_halves(labels, register, splits=2, seed=int(rng.integers(1 << 30)))
        predicted.append(halves_error_nm(pairs, np.zeros((1, 3)))[0])
        actual.append(np.linalg.norm(shift[1:].mean(axis=0)))
    rms = [np.sqrt(np.mean(np.square(values))) for values in (predicted, actual)]
    assert rms[0] == pytest.approx(rms[1], rel=0.15)
    with pytest.raises(DataError, match="no pairs"):
        halves_error_nm([], np.zeros((1, 3)))
    mixed = (Affine.identity("lm", "em"), Affine.identity("em", "lm"))
    with pytest.raises(FrameError, match="different frames"):
        halves_error_nm([mixed], np.zeros((1, 3)))


def test_map_and_worst_places():
    grid = hostile_grid("em")
    uncertainty = LandmarkUncertainty(grid.corners_nm()[:5] + 3.0, NOISE, "affine")
    mask = np.ones(grid.shape, bool)
    mask[:, :, 15:] = False
    found = error_map(uncertainty.error_nm, grid, mask, n=10**6)
    assert found.grid == grid
    expected = uncertainty.error_nm(grid.points_nm().reshape(-1, 3)).reshape(grid.shape)
    np.testing.assert_allclose(found.read()[mask], expected[mask], rtol=1e-6)
    assert np.isnan(found.read()[~mask]).all()
    places, errors = worst_places_nm(found, 3, 20.0)
    assert errors[0] == pytest.approx(expected[mask].max(), rel=1e-6)
    assert (np.diff(errors) <= 0).all()
    gaps = np.linalg.norm(places[:, None] - places, axis=-1)[np.triu_indices(3, 1)]
    assert gaps.min() >= 20
    few, _ = worst_places_nm(found, 5, 1e6)
    assert len(few) == 1


def test_suggested_landmarks_lower_the_worst_error_most():
    grid = Grid((9, 40, 50), (100.0, 200.0, 200.0), (0.0, 0.0, 0.0), "em")
    corner = np.array([[100, 300, 300], [500, 900, 500], [300, 500, 1500], [700, 1500, 900.0]])
    uncertainty = LandmarkUncertainty(corner, NOISE, "affine")
    places = grid.points_nm().reshape(-1, 3)
    before = uncertainty.error_nm(places)
    chosen, remaining = suggest_landmarks_nm(uncertainty, places, 3)
    np.testing.assert_array_equal(chosen[0], places[before.argmax()])
    assert np.linalg.norm(chosen[0] - corner.mean(axis=0)) > 8000
    assert before.max() > 3 * remaining[0]
    assert (np.diff(remaining) < 0).all()
    after = uncertainty.with_landmark(chosen[0]).error_nm(places).max()
    assert after == pytest.approx(remaining[0])


def test_no_place_is_suggested_twice():
    """Two landmarks in one far corner would lower its error further, but show nothing new."""
    corner = SPOTS.mean(axis=0) + np.random.default_rng(4).normal(size=(9, 3)) * 300
    known = LandmarkUncertainty(corner, NOISE, "affine")
    far = corner.mean(axis=0) + np.array([[0, 0, 20000.0], [0, 0, 20100.0]])
    places = np.concatenate([corner, far])
    chosen, remaining = suggest_landmarks_nm(known, places, 4)
    apart = np.linalg.norm(chosen[:, None] - chosen[None], axis=-1)
    assert apart[np.triu_indices(len(chosen), 1)].min() > 2000
    assert len(chosen) == len(remaining) == 2
    assert len(suggest_landmarks_nm(known, places[:0], 2)[0]) == 0


def test_command_refuses_a_table_without_rows(tmp_path, capsys):
    grid = Grid((5, 6, 7), (104.0, 52.0, 52.0), frame="lm")
    write_volume(tmp_path / "lm.zarr", Volume(np.ones(grid.shape, "u1"), grid))
    write_transform(random_affine(np.random.default_rng(0), "lm", "em"), tmp_path / "t.json")
    (tmp_path / "l.csv").write_text("Pt-index,Rater ID,em-x,em-y,em-z,lm-x,lm-y,lm-z\n")
    words = ["evaluate", "uncertainty", "--transform", str(tmp_path / "t.json"), "--landmarks"]
    words += [
        str(tmp_path / "l.csv"),
        "--grid-of",
        str(tmp_path / "lm.zarr"),
        "--noise",
        "35, 20, 80 nm",
    ]
    assert run_app(words) == 1
    assert "error: the table of landmarks has no rows" in capsys.readouterr().err


def test_command_maps_the_error_and_suggests_places(tmp_path, capsys):
    rng = np.random.default_rng(5)
    lm = Grid((9, 30, 34), (104.0, 52.0, 52.0), (10.0, 20.0, 30.0), "lm")
    move = random_affine(rng, "lm", "em", mirror=True)
    spots = lm.centre_nm + rng.uniform(-0.15, 0.15, (8, 3)) * lm.extent_nm
    em = [move(spots) + rng.normal(size=spots.shape) * NOISE / 10 for _ in range(2)]
    table = Landmarks(
        tuple(str(i) for i in range(8)) * 2, np.concatenate([spots] * 2), np.concatenate(em),
        ("AW",) * 8 + ("JB",) * 8, ("fit",) * 16, np.ones(16, bool),
    )  # fmt: skip
    write_landmarks(table, tmp_path / "l.csv")
    write_transform(move, tmp_path / "t.json")
    write_volume(tmp_path / "lm.zarr", Volume(np.ones(lm.shape, "u1"), lm))
    arguments = ["evaluate", "uncertainty", "--transform", str(tmp_path / "t.json")]
    arguments += ["--landmarks", str(tmp_path / "l.csv"), "--grid-of", str(tmp_path / "lm.zarr")]
    figures, out = tmp_path / "u.json", tmp_path / "u.zarr"
    more = ["--json", str(figures), "--out", str(out), "--suggest", "2"]
    assert run_app([*arguments, "--noise", "35, 20, 80 nm", *more]) == 0
    report = json.loads(figures.read_text())["uncertainty"]
    assert report["noise_nm"] == [80, 20, 35]
    expected = LandmarkUncertainty(em[0], NOISE).error_nm(move(lm.points_nm().reshape(-1, 3)))
    assert report["max_nm"] == pytest.approx(expected.max(), rel=1e-4)
    assert report["mean_nm"] == pytest.approx(expected.mean(), rel=1e-4)
    np.testing.assert_allclose(open_volume(out).read().ravel(), expected, rtol=1e-4)
    place = np.array(report["add_landmarks_em_um"][0])[::-1] * 1e3
    assert lm.contains(move.inverse()(place[None]))[0]
    assert report["max_after_nm"][1] < report["max_after_nm"][0] < report["max_nm"]
    raters = ["--rater", "AW", "--second-rater", "JB", "--model", "rigid", "--json", str(figures)]
    assert run_app([*arguments, *raters]) == 0
    capsys.readouterr()
    for wrong, words in (
        (["--second-rater", "AW", "--rater", "AW"], "say nothing of their own noise"),
        (["--noise", "0, 20, 80 nm"], "must be positive"),
    ):
        assert run_app([*arguments, *wrong]) == 1
        assert words in capsys.readouterr().err
    estimated = json.loads(figures.read_text())["uncertainty"]["noise_nm"]
    np.testing.assert_allclose(estimated, rater_noise_nm(table, "AW", "JB"), rtol=1e-3)
    half = replace(table, active=tuple(i % 2 == 0 for i in range(len(table))))
    write_landmarks(half, tmp_path / "half.csv")
    arguments[arguments.index("--landmarks") + 1] = str(tmp_path / "half.csv")
    assert run_app([*arguments, "--noise", "35, 20, 80 nm", "--rater", "AW", *more[:2]]) == 0
    mine = np.array([r == "AW" for r in table.rater]) & np.array(half.active)
    assert json.loads(figures.read_text())["uncertainty"]["n"] == mine.sum() < len(table) / 2
    assert run_app(arguments) == 1
    assert "how far off a landmark is" in capsys.readouterr().err
    assert run_app([*arguments, "--noise", "1, 1, 1 nm", "--model", "spline"]) == 1
