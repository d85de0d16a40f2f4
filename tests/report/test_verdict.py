from __future__ import annotations

import math

import numpy as np
import pytest

from clemreg.report.verdict import decide, decide_unmeasured
from clemreg.space import Affine
from clemreg.testing import random_rotation

STATS = {"min": 0.8, "p0.1": 0.81, "p1": 0.85, "p50": 1.0, "p99": 1.1, "p99.9": 1.15, "max": 1.2,
         "mean": 1.0, "sd": 0.05, "fold_fraction": 0.0}  # fmt: skip
ERRORS = {"n": 30, "mean_nm": 45.0, "median_nm": 40.0, "p90_nm": 80.0, "p95_nm": 90.0,
          "max_nm": 99.0, "rms_nm": 50.0, "bias_nm": [1.0, 2.0, 3.0]}  # fmt: skip
GOOD = {
    "landmarks": {
        **ERRORS,
        "by_rater": {"AW": {**ERRORS, "median_nm": 44.0}, "JB": {**ERRORS, "median_nm": 46.0}},
        "between_raters": {**ERRORS, "median_nm": 38.0},
        "affine_only": {**ERRORS, "median_nm": 90.0},
    },
    "jacobian": {"with_affine": STATS, "without_affine": STATS},
    "orientation": {"score": 0.6, "runner_up": 0.2, "margin": 0.4, "mirrored": False},
    "affine": {"matrix": np.eye(4).tolist(), "singular_values": [1.1, 1.02, 0.97],
               "determinant": 1.09},
    "stability": {"seeds": 3, "rms_nm": 5.0, "p95_nm": 9.0},
    "truth": {"tre_median_nm": 41.0},
    "round_trip_nm": {"mean": 1e-4, "max": 1e-3},
}  # fmt: skip


def changed(**parts):
    return {**GOOD, **{k: {**(GOOD.get(k) or {}), **v} if v else None for k, v in parts.items()}}


def jacobian(**values):
    return changed(jacobian={"without_affine": {**STATS, **values}})


UNSEARCHED = changed(orientation={"score": None, "runner_up": None, "margin": None})


@pytest.mark.parametrize(
    ("report", "status", "words"),
    [
        (GOOD, "pass", "within 40 nm"),
        (GOOD, "pass", "as close to each of them"),
        (GOOD, "pass", "within 41 nm of the truth"),
        (UNSEARCHED | {"scores": {"final": 0.55}}, "pass", "was given, not searched"),
        (UNSEARCHED | {"scores": {"final": 0.12}}, "warn", "correlate by 0.12: that is little"),
        (UNSEARCHED | {"scores": {"final": None}}, "pass", "within 40 nm"),
        (GOOD | {"scores": {"final": 0.12}}, "pass", "start pose scored 0.60"),
        (changed(landmarks=None, truth=None), "warn", "not measured"),
        (changed(landmarks={"median_nm": None}, truth=None), "warn", "not measured"),
        (changed(landmarks={"median_nm": 100.0}), "pass", "within 100 nm"),
        (changed(landmarks={"median_nm": 100.5}), "warn", "within 100 nm"),
        (changed(landmarks={"median_nm": 250.0, "affine_only": None}), "warn", "within 250 nm"),
        (changed(landmarks={"median_nm": 251.0}), "fail", "within 251 nm"),
        (changed(landmarks={"n": 5}), "warn", "too few"),
        (changed(landmarks={"affine_only": {"median_nm": 25.0}}), "warn", "affine part alone"),
        (changed(landmarks=None, truth={"tre_median_nm": 300.0}), "fail", "within 300 nm of the"),
        (changed(jacobian=None), "warn", "not looked for"),
        (jacobian(fold_fraction=0.001, min=-0.1), "fail", "folds in 0.1 %"),
        (changed(jacobian={"affine_determinant": -0.015}), "fail", "turns the whole EM inside out"),
        (
            changed(jacobian={"affine_determinant": -1.1}, affine={"determinant": -1.09}),
            "pass",
            "No folds",
        ),
        (jacobian(min=0.49), "warn", "0.49"),
        (jacobian(min=0.5, max=2.0), "pass", "0.50 to 2.00"),
        (jacobian(max=2.1), "warn", "2.10"),
        (jacobian(min=None, max=None, fold_fraction=None), "warn", "not looked for"),
        (jacobian(max=math.nan), "warn", "not looked for"),
        (changed(round_trip_nm={"max": 3.0}), "warn", "3.0 nm"),
        (
            {**GOOD, "stiffened": {"times": 1, "volume_change": [[-0.3, 2.2], [0.8, 1.3]]}},
            "pass",
            "stiffer 1 times: at first, local volume changed by factors of -0.30 to 2.20",
        ),
        (changed(orientation={"mirrored": True}), "warn", "The best pose is mirrored"),
        (
            changed(orientation={"score": None, "margin": None, "mirrored": True}),
            "warn",
            "The given pose is mirrored",
        ),
        (changed(orientation={"margin": 0.01}), "warn", "too close"),
        (changed(orientation={"margin": 0.05}), "warn", "search with --allow-mirror"),
        (changed(orientation={"margin": 0.17}), "pass", "margin is small"),
        (changed(orientation={"score": 0.25, "margin": 0.2}), "warn", "with --allow-mirror"),
        (changed(orientation=None), "pass", "within 40 nm"),
        (changed(affine={"singular_values": [1.6, 1.0, 1.0]}), "warn", "voxel size"),
        (changed(affine={"singular_values": [1.0, 1.0, 0.65]}), "warn", "voxel size"),
        (changed(affine={"warnings": ["The correlation fell."]}), "warn", "correlation fell"),
        (changed(stability={"rms_nm": 40.0}), "pass", "40 nm (rms)"),
        (changed(stability={"rms_nm": 90.0}), "warn", "90 nm"),
        (changed(stability={"rms_nm": 9.0, "halves": {"p95_nm": 260.0}}), "warn", "reaches 260 nm"),
        (changed(stability={"rms_nm": None, "halves": {"p95_nm": 260.0}}), "warn", "260 nm"),
        (changed(stability={"rms_nm": 9.0, "halves": {"p95_nm": 200.0}}), "pass", "9 nm (rms)"),
    ],
)
def test_the_verdict_and_its_reason(report, status, words):
    verdict = decide(report)
    assert verdict.status == status
    first = verdict.reasons[0] if status != "pass" else " ".join(verdict.reasons)
    assert words in first


def test_a_mirrored_pose_is_not_told_to_allow_mirrors():
    reasons = decide(changed(orientation={"mirrored": True, "margin": 0.01})).reasons
    assert any("too close" in reason for reason in reasons)
    assert not any("--allow-mirror" in reason for reason in reasons)


def test_the_worst_finding_comes_first():
    verdict = decide(
        changed(stability={"rms_nm": 90.0}, jacobian={"without_affine": {"fold_fraction": 0.5}})
    )
    assert verdict.status == "warn"  # no minimum was measured: unknown, not a fold
    verdict = decide({**jacobian(fold_fraction=0.5), "stability": {"rms_nm": 90.0}})
    assert verdict.status == "fail"
    assert "folds" in verdict.reasons[0]
    assert "seeds" in verdict.reasons[1]


def test_an_empty_report_warns_and_never_raises():
    assert decide({}).status == "warn"
    assert decide(dict.fromkeys(GOOD)).status == "warn"


def test_error_is_put_beside_what_people_do():
    raters = {"AW": {"median_nm": 95.0}, "JB": {"median_nm": 97.0}}
    far = changed(landmarks={"by_rater": raters, "between_raters": {"median_nm": 32.0}})
    assert "3.0 times that" in " ".join(decide(far).reasons)
    alone = changed(landmarks={"between_raters": None})
    assert "people" not in " ".join(decide(alone).reasons)


def test_a_common_shift_is_named_in_x_y_z():
    shift = changed(landmarks={"bias_nm": [-5.0, 10.0, 40.0]})
    text = " ".join(decide(shift).reasons)
    assert "shift of 42 nm (x +40, y +10, z -5 in the EM)" in text
    assert "shift" not in " ".join(decide(GOOD).reasons)


def test_thin_landmarks_give_no_conclusion_about_z():
    note = "The landmarks span 12.0 x 7.0 x 0.27 um (x, y, z): no conclusion about z."
    assert note in decide(changed(landmarks={"notes": [note]})).reasons


def affine_part(linear):
    affine = Affine.from_linear(linear, (0, 0, 0), "lm", "em")
    return changed(
        affine={"matrix": affine.matrix.tolist(), "singular_values": affine.singular_values}
    )


def test_a_wrong_voxel_size_is_traced_to_its_axis():
    """The light file says 100 nm in z where 160 nm is true: LM lengths along z come out short."""
    true_over_file = np.array([1.6, 1.0, 1.0])
    turned = random_rotation(np.random.default_rng(1)) @ np.diag(true_over_file)
    text = decide(affine_part(turned)).reasons[0]
    assert "Along z the light volume's should be 1.60 times what its file says" in text
    assert "0.62 times" in text
    assert "Along y" not in text


def test_a_wrong_unit_is_told_from_a_wrong_axis():
    text = decide(affine_part(1000 * np.eye(3))).reasons[0]
    assert "All axes are off alike" in text
    assert "1e+03 times" in text
    assert "0.001 times" in text


def test_one_voxel_size_is_complained_of_once():
    report = affine_part(np.diag([1.6, 1.0, 1.0]))
    report["affine"]["warnings"] = ["The affine stretches z: its voxel size is wrong."]
    assert sum("voxel size" in reason for reason in decide(report).reasons) == 1


NAMED = (
    "The affine stretches z of the LM by 0.65; preparation does not: the EM z voxel size is "
    "probably 1.53 times too small, or the LM z voxel size 1.53 times too large."
)


def test_the_name_of_a_wrong_voxel_size_stands_in_the_verdict():
    report = affine_part(np.diag([0.65, 1.0, 1.0]))
    report["affine"]["warnings"] = [NAMED]
    for verdict in (decide(report), decide_unmeasured(report)):
        assert verdict.status == "warn"
        assert "EM z voxel size is probably 1.53 times too small" in verdict.reasons[0]
        assert "should be" not in verdict.reasons[0]
    # An axis may be off against the others though its scale is usual.
    report = affine_part(np.diag([0.75, 1.0, 1.0]))
    report["affine"]["warnings"] = [NAMED]
    assert decide_unmeasured(report).reasons[0] == NAMED


@pytest.mark.parametrize("scale", [0.65, 0.75])
def test_an_unsure_pose_names_a_voxel_size_only_on_condition(scale):
    """An EM whose voxels are twice as large as their file says is matched somewhere, somehow."""
    report = affine_part(np.diag([scale, 1.0, 1.0]))
    report["affine"]["warnings"] = [NAMED, "The correlation fell."]
    sure = " ".join(decide_unmeasured(report).reasons)
    assert "If the pose is right" not in sure
    report["orientation"] = {"score": 0.34, "margin": 0.02, "mirrored": False}
    reasons = decide_unmeasured(report).reasons
    assert "voxel sizes may be more than 30 % off" in reasons[0]
    (named,) = (reason for reason in reasons if "1.53 times too small" in reason)
    assert f"If the pose is right: {NAMED}" in named
    assert "The correlation fell." in reasons


@pytest.mark.parametrize(
    ("part", "status", "words"),
    [
        ({}, "pass", "No folds"),
        ({"orientation": {"margin": 0.01}}, "warn", "too close"),
        ({"orientation": {"mirrored": True}}, "warn", "mirrored"),
        ({"affine": {"singular_values": [1.6, 1.0, 1.0]}}, "warn", "voxel size"),
        ({"jacobian": {"without_affine": {**STATS, "fold_fraction": 0.01}}}, "fail", "folds"),
        ({"jacobian": None}, "warn", "Folds were not looked for"),
    ],
)
def test_without_landmarks_the_rest_decides(part, status, words):
    verdict = decide_unmeasured(changed(**part, landmarks=None))
    assert verdict.status == status
    assert words in verdict.reasons[0]
    assert any("Accuracy was not measured" in reason for reason in verdict.reasons)
