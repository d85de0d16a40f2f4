"""The verdict in plain words: pass, warn or fail, and every reason."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from clemreg.io.atomic import plain

Status = Literal["pass", "warn", "fail"]
Finding = tuple[Status, str]
Numbers = Mapping[str, Any]

# On simulated pairs the best wrong pose scores 0.2 to 0.35, and stands out from the next one by
# less than 0.05; the right one scores 0.4 to 0.7 where 40 % of the EM or more lies in the field.
CLEAR_MARGIN = 0.2
LOW_MARGIN = 0.15
LOW_SCORE = 0.3
MEDIAN_FAIL_NM = 250.0
MEDIAN_WARN_NM = 100.0
FEW_LANDMARKS = 6
JACOBIAN_RANGE = (0.5, 2.0)
SCALE_RANGE = (0.7, 1.4)
STABILITY_WARN_NM = 40.0
HALVES_WARN_NM = 200.0
ROUND_TRIP_WARN_NM = 1.0
LIKE_A_PERSON = 1.2
"""Error against a person over the distance between two people, up to which they are alike."""
SHIFT_SHARE = 0.7
"""Length of the mean error vector over the mean error, above which it is mostly one shift."""
WORSE_THAN_AFFINE = 1.25
_SIZES = (
    "if voxel sizes may be more than 30 % off, give the right ones: the search reaches no farther."
)
_UNMEASURED = (
    "Accuracy was not measured: there are no held-out landmarks. "
    "Click 10 or more in a channel that the registration did not use."
)


@dataclass(frozen=True)
class Verdict:
    """Whether a registration can be used.

    Attributes
    ----------
    status
        ``"pass"``, ``"warn"`` (look before you use it) or ``"fail"``.
    reasons
        Full sentences; what speaks for the result comes last.
    """

    status: Status
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"status": self.status, "reasons": list(self.reasons)}


def decide(report: Numbers) -> Verdict:
    """Weigh the figures of a report.

    Parameters
    ----------
    report
        The object of ``report.json`` without its verdict; absent parts are null or missing, and
        NaN is as good as null.

    Notes
    -----
    ``fail``: the transform folds, or turns the EM inside out, or the median error (at landmarks, or
    to the known truth of simulated data) is above 250 nm.

    ``warn``: nobody measured the accuracy, or at fewer than 6 landmarks; the median error is above
    100 nm; the B-spline is worse at the landmarks than the affine alone; folds were not looked for;
    the determinant leaves [0.5, 2]; the inverse is off by more than 1 nm; the pose is mirrored,
    hardly better than the runner-up, or agrees little; an axis is scaled outside [0.7, 1.4]; seeds
    disagree by more than 40 nm; the pose was not searched and the images correlate below 0.3;
    halves of the mitochondria predict an error above 200 nm in more than 5 % of the imaged volume.

    Otherwise ``pass``.
    """
    report = plain(report)
    return _weighed(
        [*_accuracy(_part(report, "landmarks"), _part(report, "truth")), *_plausibility(report)]
    )


def decide_unmeasured(report: Numbers) -> Verdict:
    """Weigh the same but for the accuracy, which `clemreg register` cannot know.

    Parameters
    ----------
    report
        As for `decide`.
    """
    return _weighed([*_plausibility(plain(report)), ("pass", _UNMEASURED)])


def _weighed(findings: list[Finding]) -> Verdict:
    order: dict[Status, int] = {"fail": 0, "warn": 1, "pass": 2}
    findings = sorted(findings, key=lambda finding: order[finding[0]])
    return Verdict(findings[0][0], tuple(text for _, text in findings))


def _plausibility(report: Numbers) -> Iterator[Finding]:
    yield from _jacobian(_part(report, "jacobian"), _part(report, "affine"))
    yield from _stiffened(_part(report, "stiffened"))
    yield from _round_trip(_part(report, "round_trip_nm"))
    yield from _orientation(_part(report, "orientation"))
    yield from _unsearched(_part(report, "orientation"), _part(report, "scores"))
    yield from _affine(_part(report, "affine"), _condition(_part(report, "orientation")))
    yield from _stability(_part(report, "stability"))


def suspicions(report: Numbers) -> tuple[str, ...]:
    """Say what speaks against a registration without landmarks: pose, scale, folds, stability.

    Parameters
    ----------
    report
        As for `decide`; parts that are absent are not judged.
    """
    report = plain(report)
    findings = [
        *(
            _jacobian(_part(report, "jacobian"), _part(report, "affine"))
            if report.get("jacobian")
            else ()
        ),
        *_orientation(_part(report, "orientation")),
        *_affine(_part(report, "affine"), _condition(_part(report, "orientation"))),
        *_stability(_part(report, "stability")),
    ]
    return tuple(text for status, text in findings if status != "pass")


def _part(report: Numbers, name: str) -> Numbers:
    return report.get(name) or {}


def _number(numbers: Numbers, key: str) -> float | None:
    """Return a finite number, or None."""
    value = numbers.get(key)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _accuracy(landmarks: Numbers, truth: Numbers) -> Iterator[Finding]:
    known = _number(truth, "tre_median_nm")
    if _number(landmarks, "median_nm") is not None:
        yield from _landmarks(landmarks)
    elif known is None:
        yield "warn", _UNMEASURED
    if known is not None:
        yield (
            _by_error(known),
            f"Simulated data: half of the imaged volume is within {known:.0f} nm of the truth.",
        )


def _by_error(median_nm: float) -> Status:
    if median_nm > MEDIAN_FAIL_NM:
        return "fail"
    return "warn" if median_nm > MEDIAN_WARN_NM else "pass"


def _landmarks(landmarks: Numbers) -> Iterator[Finding]:
    n, median = int(landmarks["n"]), float(landmarks["median_nm"])
    text = f"Half of the {n} held-out landmarks are within {median:.0f} nm"
    mean, p95 = _number(landmarks, "mean_nm"), _number(landmarks, "p95_nm")
    if mean is not None and p95 is not None:
        text += f" (mean {mean:.0f}, 95 % within {p95:.0f})"
    yield _by_error(median), f"{text}.{_beside_people(landmarks)}"
    if n < FEW_LANDMARKS:
        yield "warn", f"{n} landmarks are too few to rely on: click 10 or more."
    yield from _affine_alone(landmarks, median)
    yield from _shift(landmarks)
    for note in landmarks.get("notes") or ():
        yield "pass", str(note)


def _beside_people(landmarks: Numbers) -> str:
    """Compare result against person with person against person, median with median."""
    floor = _number(_part(landmarks, "between_raters"), "median_nm")
    if floor is None:
        return ""
    text = f" Two people differ by {floor:.0f} nm"
    each = [_number(stats, "median_nm") for stats in _part(landmarks, "by_rater").values()]
    medians = [value for value in each if value is not None]
    if not medians or floor <= 0:
        return f"{text}."
    ratio = float(np.mean(medians)) / floor
    if ratio <= LIKE_A_PERSON:
        return f"{text}: the result is as close to each of them as they are to each other."
    return f"{text}; the result differs from each of them by {ratio:.1f} times that."


def _affine_alone(landmarks: Numbers, median: float) -> Iterator[Finding]:
    affine = _number(_part(landmarks, "affine_only"), "median_nm")
    if affine is not None and median > WORSE_THAN_AFFINE * affine:
        yield (
            "warn",
            f"The affine part alone is better at the landmarks ({affine:.0f} nm): "
            "the deformation follows something else than tissue. Try a coarser control grid.",
        )


def _shift(landmarks: Numbers) -> Iterator[Finding]:
    """Say so if most of the error is the same everywhere: that can be corrected."""
    bias, mean = landmarks.get("bias_nm"), _number(landmarks, "mean_nm")
    if not bias or mean is None or any(b is None for b in bias):
        return
    length = float(np.linalg.norm(bias))
    if landmarks["n"] >= FEW_LANDMARKS and length > SHIFT_SHARE * mean and length > 1:
        z, y, x = bias
        yield (
            "pass",
            f"Most of the error is one common shift of {length:.0f} nm "
            f"(x {x:+.0f}, y {y:+.0f}, z {z:+.0f} in the EM): look for an offset between the "
            "light channels, or between the landmarks' origin and the volume's.",
        )


def _jacobian(jacobian: Numbers, affine: Numbers) -> Iterator[Finding]:
    stats = _part(jacobian, "without_affine")
    folds = _number(stats, "fold_fraction")
    low, high = _number(stats, "min"), _number(stats, "max")
    if folds is None or low is None or high is None:
        yield "warn", "Folds were not looked for: there is no Jacobian determinant."
        return
    whole, first = _number(jacobian, "affine_determinant"), _number(affine, "determinant")
    if whole is not None and first is not None and whole * first < 0:
        yield "fail", "The deformation turns the whole EM inside out: tissue cannot do that."
    elif folds > 0 or low <= 0:
        yield (
            "fail",
            f"The deformation folds in {100 * folds:.2g} % of the volume: tissue cannot do that.",
        )
    elif low < JACOBIAN_RANGE[0] or high > JACOBIAN_RANGE[1]:
        yield (
            "warn",
            f"Local volume changes by factors of {low:.2f} to {high:.2f} "
            "after the affine part: the deformation may follow noise.",
        )
    else:
        yield "pass", f"No folds; local volume changes by factors of {low:.2f} to {high:.2f}."


def _stiffened(stiffened: Numbers) -> Iterator[Finding]:
    """Say that the first try was not plausible."""
    times = int(_number(stiffened, "times") or 0)
    if times > 0:
        low, high = stiffened["volume_change"][0]
        yield (
            "pass",
            f"The deformation was made stiffer {times} times: "
            f"at first, local volume changed by factors of {low:.2f} to {high:.2f}.",
        )


def _round_trip(round_trip: Numbers) -> Iterator[Finding]:
    worst = _number(round_trip, "max")
    if worst is not None and worst > ROUND_TRIP_WARN_NM:
        yield (
            "warn",
            f"Going to the EM and back ends up to {worst:.1f} nm away: what is carried from the "
            "EM to the light volume is off by as much.",
        )


def _orientation(orientation: Numbers) -> Iterator[Finding]:
    if orientation.get("mirrored"):
        pose = "best" if _number(orientation, "score") is not None else "given"
        yield (
            "warn",
            f"The {pose} pose is mirrored: one of the volumes has a flipped axis, "
            "or the pose is wrong. Check a structure with a known hand.",
        )
    margin, score = _number(orientation, "margin"), _number(orientation, "score")
    if margin is None or score is None:
        return
    text = (
        f"In the pose search the start pose scored {score:.2f}, "
        f"the best different one {score - margin:.2f}."
    )
    look = f"look at the overlays; if the EM may be mirrored, search with --allow-mirror; {_SIZES}"
    if orientation.get("mirrored"):
        look = f"look at the overlays; {_SIZES}"
    if margin < LOW_MARGIN:
        yield "warn", f"{text} They are too close to be sure; {look}"
    elif score < LOW_SCORE:
        yield "warn", f"{text} That is little agreement; {look}"
    elif margin < CLEAR_MARGIN:
        yield "pass", f"{text} The margin is small; look at the overlays."
    else:
        yield "pass", text


def _condition(orientation: Numbers) -> str:
    """Return what to say before a scale of a pose that is hardly better than others."""
    margin, score = _number(orientation, "margin"), _number(orientation, "score")
    if margin is None or score is None or (margin >= LOW_MARGIN and score >= LOW_SCORE):
        return ""
    return "If the pose is right: "


def _unsearched(orientation: Numbers, scores: Numbers) -> Iterator[Finding]:
    """Judge by the images where landmarks gave the start pose: they may be mixed up."""
    final = _number(scores, "final")
    if _number(orientation, "score") is not None or final is None:
        return
    text = f"The start pose was given, not searched. At the end the images correlate by {final:.2f}"
    if final < LOW_SCORE:
        yield "warn", f"{text}: that is little agreement; look at the overlays."
    else:
        yield "pass", f"{text}."


def _affine(affine: Numbers, given: str) -> Iterator[Finding]:
    """Name voxel sizes that do not fit, `given` that the pose is right."""
    scales = [float(s) for s in affine.get("singular_values") or () if s is not None]
    warnings = [str(warning) for warning in affine.get("warnings") or ()]
    named = [warning for warning in warnings if "voxel size" in warning]
    if any(not _is_usual(s) for s in scales):
        words = ", ".join(f"{s:.2f}" for s in scales)
        text = f"The affine scales by {words}: more than preparation does."
        suspect = " ".join(named)
        if len(named) in (0, 3):  # unnamed, or all axes alike
            suspect = f"A voxel size is probably wrong.{_suspect(affine)}"
        yield "warn", f"{text} {given}{suspect.strip()}"
        warnings = [warning for warning in warnings if warning not in named]
    for warning in warnings:
        yield "warn", f"{given}{warning}" if warning in named else warning


def _is_usual(scale: float) -> bool:
    return SCALE_RANGE[0] <= scale <= SCALE_RANGE[1]


def _suspect(affine: Numbers) -> str:
    """Name the axes of the light volume along which lengths do not fit, and by how much.

    If a voxel size of the LM is c times what its file says, the transform LM to EM, fitted in
    the file's units, stretches that axis by c; if it is the EM's, by 1 / c.
    """
    matrix = affine.get("matrix")
    if not matrix or any(v is None for row in matrix for v in row):
        return ""
    stretch = np.linalg.norm(np.asarray(matrix, dtype=np.float64)[:3, :3], axis=0)
    if stretch.min() > 0 and stretch.max() < 1.1 * stretch.min():
        mean = float(stretch.mean())
        return (
            f" All axes are off alike: those of the light volume should be {mean:.3g} times "
            f"what its file says, or those of the EM {1 / mean:.3g} times."
        )
    named = [
        f" Along {axis} the light volume's should be {s:.2f} times what its file says, "
        f"or the EM's in that direction {1 / s:.2f} times."
        for axis, s in zip("zyx", stretch, strict=True)
        if s > 0 and not _is_usual(float(s))
    ]
    return "".join(named)


def _stability(stability: Numbers) -> Iterator[Finding]:
    rms = _number(stability, "rms_nm")
    if rms is not None:
        status: Status = "warn" if rms > STABILITY_WARN_NM else "pass"
        yield status, f"Repeated with other seeds, the result moves by {rms:.0f} nm (rms)."
    p95 = _number(_part(stability, "halves"), "p95_nm")
    if p95 is not None and p95 > HALVES_WARN_NM:
        yield (
            "warn",
            "Registrations of random halves of the mitochondria differ: the predicted error "
            f"reaches {p95:.0f} nm (95 % of the imaged volume is below). "
            "Add landmarks where the report says.",
        )
