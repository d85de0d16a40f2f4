from __future__ import annotations

import json

import numpy as np
import pytest

from clemreg.errors import DataError
from clemreg.evaluate.landmarks import affine_part, evaluate_landmarks
from clemreg.evaluate.statistics import ErrorStats
from clemreg.io.points import read_landmarks
from clemreg.io.transforms import read_transform
from clemreg.space.bspline import BSpline
from clemreg.space.fits import fit_affine
from clemreg.space.landmarks import Landmarks
from clemreg.space.transform import Affine, Chain

OFFSET = (4420.0, 21840.0, 43940.0)  # (43.94, 21.84, 4.42) um as zyx nm
LINEAR = [[1.1, 0.2, -0.1], [0.05, -0.9, 0.3], [0.0, 0.15, 1.2]]
AFFINE = Affine.from_linear(LINEAR, [500.0, -3000.0, 12000.0], "lm", "em")


def marks(rater, em, lm, names=None, role="held_out") -> Landmarks:
    names = names or tuple(f"p{i}" for i in range(len(lm)))
    return Landmarks(tuple(names), lm, em, (rater,) * len(lm), (role,) * len(lm))


def lm_points(n=12, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, [3000, 7000, 12000], (n, 3))


# ---- numbers


def test_statistics_by_hand():
    # Distances 5, 3, 0, 12, 9; sorted 0 3 5 9 12; numpy's linear percentiles at 3.6 and 3.8.
    vectors = [[3.0, 4, 0], [0, 0, -3], [0, 0, 0], [0, 12, 0], [-9, 0, 0]]
    found = ErrorStats.of(vectors)
    assert (found.n, found.mean_nm, found.median_nm, found.max_nm) == (5, 5.8, 5.0, 12.0)
    assert found.p90_nm == pytest.approx(9 + 0.6 * 3)
    assert found.p95_nm == pytest.approx(9 + 0.8 * 3)
    assert found.rms_nm == pytest.approx(np.sqrt((25 + 9 + 144 + 81) / 5))
    assert found.bias_nm == pytest.approx((-6 / 5, 16 / 5, -3 / 5))


@pytest.mark.parametrize("bad", [np.empty((0, 3)), [[1.0, np.nan, 2.0]]])
def test_statistics_of_nothing(bad):
    with pytest.raises(DataError):
        ErrorStats.of(bad)


# ---- the published registration


@pytest.fixture(scope="module")
def palm(shared_data):
    folder = shared_data / "cosem-clem"
    return evaluate_landmarks(
        read_transform(folder / "palm_def_TransformParameters.txt"),
        read_landmarks(folder / "clem-landmarks.csv"),
        raters=("AW", "JB"),
        fixed_offset_nm=OFFSET,
    )


def test_published_registration(palm):
    """Numbers of the reference notes, which were computed with other code."""
    assert palm.auto_reproduction.max_nm < 0.1
    assert palm.between_raters.mean_nm == pytest.approx(31.6, abs=0.05)
    assert palm.between_raters.median_nm == pytest.approx(25.5, abs=0.05)
    assert palm.between_raters.max_nm == pytest.approx(96.5, abs=0.05)
    assert palm.auto_vs_rater["AW"].mean_nm == pytest.approx(110.8, abs=0.05)
    assert palm.auto_vs_rater["JB"].mean_nm == pytest.approx(104.1, abs=0.05)
    assert palm.by_rater["AW"].mean_nm == pytest.approx(110.8, abs=0.05)
    assert palm.by_rater["JB"].mean_nm == pytest.approx(104.1, abs=0.06)
    assert palm.tre.mean_nm == pytest.approx(106.4, abs=0.05)
    assert palm.tre.median_nm == pytest.approx(99.7, abs=0.05)
    assert palm.tre.max_nm == pytest.approx(250, abs=0.5)
    assert palm.tre.p95_nm == pytest.approx(227, abs=0.5)
    assert palm.affine_only.mean_nm == pytest.approx(225, abs=0.5)
    assert palm.leave_one_out_affine.mean_nm == pytest.approx(56.5, abs=0.05)
    assert 57 < palm.leave_one_out_by_rater["JB"].mean_nm < 58.5
    assert 59 < palm.leave_one_out_by_rater["AW"].mean_nm < 61
    assert palm.tre.n == palm.auto_reproduction.n == 31


def test_thin_landmarks_are_said_to_be_thin(palm):
    assert palm.notes == (
        "The landmarks span 12.4 x 6.8 x 0.27 um (x, y, z): "
        "no conclusion about z can be drawn from them.",
    )


def test_json_keys_of_the_contract(palm):
    record = json.loads(json.dumps(palm.to_json(), allow_nan=False))
    numbers = {"n", "mean_nm", "median_nm", "p90_nm", "p95_nm", "max_nm", "rms_nm", "bias_nm"}
    assert numbers | {
        "by_rater",
        "between_raters",
        "affine_only",
        "leave_one_out_affine",
    } <= set(record)
    assert set(record["by_rater"]) == {"AW", "JB"}
    for part in (record["by_rater"]["AW"], record["between_raters"], record["affine_only"]):
        assert set(part) == numbers
    assert record["mean_nm"] == palm.tre.mean_nm
    assert len(record["bias_nm"]) == 3
    assert len(record["points"]["error_nm"]) == 31
    assert record["truth"] is None


def test_offset_on_the_wrong_axes_shows(shared_data, palm):
    folder = shared_data / "cosem-clem"
    wrong = evaluate_landmarks(
        read_transform(folder / "palm_def_TransformParameters.txt"),
        read_landmarks(folder / "clem-landmarks.csv"),
        fixed_offset_nm=OFFSET[::-1],
    )
    assert wrong.tre.mean_nm > 100 * palm.tre.mean_nm


# ---- made up, with known answers


def test_mean_of_the_people_and_each():
    lm = lm_points()
    em = AFFINE(lm)
    table = Landmarks.concat(
        [marks("A", em + np.array([0, 0, 30.0]), lm), marks("B", em + np.array([0, 40.0, -10]), lm)]
    )
    found = evaluate_landmarks(AFFINE, table)
    assert found.by_rater["A"].bias_nm == pytest.approx((0, 0, -30))
    assert found.by_rater["B"].mean_nm == pytest.approx(np.hypot(40, 10))
    assert found.between_raters.mean_nm == pytest.approx(np.hypot(40, 40))
    assert found.between_raters.bias_nm == pytest.approx((0, 40, -40))
    assert found.tre.bias_nm == pytest.approx((0, -20, -10))
    assert found.leave_one_out_affine.max_nm < 1e-6
    assert found.auto_reproduction is None
    assert found.truth is None
    assert found.notes == ()
    np.testing.assert_allclose(found.points.difference_nm, np.tile([0, -20, -10], (12, 1)))


def test_raters_are_chosen_and_paired_by_name():
    lm = lm_points(8)
    em = AFFINE(lm)
    names = tuple(f"p{i}" for i in range(8))
    half = marks("B", em[4:][::-1] + np.array([0, 0, 7.0]), lm[4:][::-1], names[4:][::-1])
    table = Landmarks.concat([marks("A", em, lm), half, marks("C", em + 999.0, lm)])
    found = evaluate_landmarks(AFFINE, table, raters=("A", "B"))
    assert set(found.by_rater) == {"A", "B"}
    assert found.between_raters.n == 4
    assert found.between_raters.max_nm == pytest.approx(7)
    assert found.tre.n == 8
    assert sorted(np.round(found.points.error_nm, 6)) == [0.0] * 4 + [3.5] * 4
    with pytest.raises(DataError, match="'Z'") as caught:
        evaluate_landmarks(AFFINE, table, raters=("Z",))
    assert "A, B, C" in caught.value.hint


def test_points_used_for_fitting_are_kept_apart():
    lm = lm_points()
    em = AFFINE(lm)
    table = Landmarks.concat(
        [
            marks("A", em[:6] + np.array([0, 5.0, 0]), lm[:6], role="fit"),
            marks("A", em[6:] + 100.0, lm[6:]),
        ]
    )
    found = evaluate_landmarks(AFFINE, table)
    assert (found.tre.n, found.fre.n) == (6, 6)
    assert found.fre.mean_nm == pytest.approx(5)
    assert found.tre.mean_nm == pytest.approx(100 * np.sqrt(3))


def test_unset_and_inactive_rows_are_left_out():
    lm = lm_points(6)
    em = AFFINE(lm)
    em[2, 1] = np.nan
    active = np.array([True, True, True, False, True, True])
    found = evaluate_landmarks(
        AFFINE, Landmarks(tuple("abcdef"), lm, em, ("A",) * 6, active=active)
    )
    assert found.points.names == ("a", "b", "e", "f")
    assert found.leave_one_out_affine is None
    assert "Too few landmarks" in found.notes[-1]


def test_truth_and_auto_are_no_people():
    lm = lm_points()
    em = AFFINE(lm)
    shifted = AFFINE.then(Affine.translation([0.0, 0, 9.0], "em", "em"))
    parts = [
        marks("A", em + np.array([20.0, 0, 0]), lm),
        marks("Truth", em, lm),
        marks("AUTO", em + 3.0, lm),
    ]
    found = evaluate_landmarks(shifted, Landmarks.concat(parts))
    assert set(found.by_rater) == {"A"}
    assert found.tre.mean_nm == pytest.approx(np.hypot(20, 9))
    assert found.truth.to_json() == pytest.approx(
        {"tre_mean_nm": 9, "tre_median_nm": 9, "tre_p95_nm": 9, "tre_max_nm": 9}
    )
    assert found.auto_reproduction.bias_nm == pytest.approx((-3, -3, 6))
    assert found.auto_vs_rater["A"].bias_nm == pytest.approx((-17, 3, 3))
    alone = evaluate_landmarks(shifted, parts[1])
    assert alone.tre.mean_nm == pytest.approx(9)
    assert "simulated truth" in alone.notes[0]
    assert "automatic result" in evaluate_landmarks(shifted, parts[2]).notes[0]


def test_no_landmark_left():
    lm = lm_points(4)
    with pytest.raises(DataError, match="no usable held-out landmark"):
        evaluate_landmarks(AFFINE, marks("A", lm, lm, role="fit"))


def test_leave_one_out_equals_refitting():
    lm = lm_points(9, seed=3)
    em = AFFINE(lm) + np.random.default_rng(4).normal(0, 50, lm.shape)
    expected = [
        fit_affine(np.delete(lm, i, 0), np.delete(em, i, 0), "lm", "em")(lm[i : i + 1])[0] - em[i]
        for i in range(9)
    ]
    found = evaluate_landmarks(AFFINE, marks("A", em, lm))
    again, truth = found.leave_one_out_affine.to_json(), ErrorStats.of(expected).to_json()
    assert again.pop("bias_nm") == pytest.approx(truth.pop("bias_nm"), rel=1e-6)
    assert again == pytest.approx(truth, rel=1e-6)
    residual = fit_affine(lm, em, "lm", "em")(lm) - em
    assert found.affine_fit.rms_nm == pytest.approx(ErrorStats.of(residual).rms_nm)


def test_points_in_one_plane_allow_no_affine():
    lm = lm_points(9)
    lm[:, 0] = 55.0
    found = evaluate_landmarks(AFFINE, marks("A", AFFINE(lm), lm))
    assert found.leave_one_out_affine is None
    assert any("no conclusion about z" in note for note in found.notes)
    assert json.loads(json.dumps(found.to_json()))["leave_one_out_affine"] is None


def test_affine_part_drops_deformations_only():
    first = Affine.from_linear(LINEAR, [1.0, 2, 3], "lm", "a")
    bend = BSpline(np.ones((3, 5, 5, 5)), np.full(3, -2e4), np.full(3, 1e4), "a", "b")
    last = Affine.from_linear(np.diag([2.0, 1, 1]), [0.0, 5, 0], "b", "em")
    found = affine_part(Chain((first, bend, last)))
    assert (found.source, found.target) == ("lm", "em")
    points = lm_points(5)
    np.testing.assert_allclose(found(points), last(first(points)))
    assert affine_part(bend) is None
    lm = lm_points()
    assert evaluate_landmarks(bend, marks("A", lm, lm)).affine_only is None
