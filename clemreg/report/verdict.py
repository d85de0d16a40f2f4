"""The verdict in plain words: pass, warn or fail, and every reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["pass", "warn", "fail"]

# A wrong pose scores 0.16 to 0.25, a right one twice that or more (reference measurements).
CLEAR_MARGIN = 0.08
LOW_MARGIN = 0.03
MEDIAN_FAIL_NM = 250.0
MEDIAN_WARN_NM = 100.0
JACOBIAN_RANGE = (0.5, 2.0)
SCALE_RANGE = (0.7, 1.4)
STABILITY_WARN_NM = 40.0


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


Finding = tuple[Status, str]


def decide(report: Mapping[str, Any]) -> Verdict:
    """Weigh the figures of a report.

    Parameters
    ----------
    report
        The object of ``report.json`` without its verdict; absent parts are null or missing.

    Notes
    -----
    ``fail``: the transform folds, or the median landmark error is above 250 nm. ``warn``: the
    determinant leaves [0.5, 2], the pose is mirrored or hardly better than the runner-up, an axis
    is scaled outside [0.7, 1.4], seeds disagree by more than 40 nm, the median error is above
    100 nm, or there are no landmarks. Otherwise ``pass``.
    """
    findings = [
        *_landmarks(report.get("landmarks") or {}),
        *_jacobian(report.get("jacobian") or {}),
        *_orientation(report.get("orientation") or {}),
        *_affine(report.get("affine") or {}),
        *_stability(report.get("stability") or {}),
    ]
    order: dict[Status, int] = {"fail": 0, "warn": 1, "pass": 2}
    findings.sort(key=lambda finding: order[finding[0]])
    status = findings[0][0] if findings else "warn"
    return Verdict(status, tuple(text for _, text in findings))


def _landmarks(landmarks: Mapping[str, Any]) -> Iterator[Finding]:
    median = landmarks.get("median_nm")
    if median is None:
        yield (
            "warn",
            "Accuracy was not measured: there are no held-out landmarks. "
            "Click 10 or more in a channel that the registration did not use.",
        )
        return
    status: Status = (
        "fail" if median > MEDIAN_FAIL_NM else "warn" if median > MEDIAN_WARN_NM else "pass"
    )
    text = (
        f"Half of the {landmarks['n']} held-out landmarks are within {median:.0f} nm "
        f"(mean {landmarks['mean_nm']:.0f}, 95 % within {landmarks['p95_nm']:.0f})."
    )
    between = (landmarks.get("between_raters") or {}).get("mean_nm")
    if between is not None:
        text += f" Two people differ by {between:.0f} nm on average."
    yield status, text
    for note in landmarks.get("notes") or ():
        yield "pass", note


def _jacobian(jacobian: Mapping[str, Any]) -> Iterator[Finding]:
    stats = jacobian.get("without_affine")
    if not stats:
        return
    if stats["fold_fraction"] > 0:
        share = 100 * stats["fold_fraction"]
        yield (
            "fail",
            f"The deformation folds in {share:.2g} % of the volume: tissue cannot do that.",
        )
        return
    low, high = JACOBIAN_RANGE
    if stats["min"] < low or stats["max"] > high:
        yield (
            "warn",
            f"Local volume changes by factors of {stats['min']:.2f} to {stats['max']:.2f} "
            "after the affine part: the deformation may follow noise.",
        )
        return
    yield (
        "pass",
        f"No folds; local volume changes by factors of {stats['min']:.2f} to {stats['max']:.2f}.",
    )


def _orientation(orientation: Mapping[str, Any]) -> Iterator[Finding]:
    if orientation.get("mirrored"):
        yield (
            "warn",
            "The best pose is mirrored: one of the volumes has a flipped axis, "
            "or the pose is wrong. Check a structure with a known hand.",
        )
    margin = orientation.get("margin")
    if margin is None:
        return
    text = (
        f"The start pose scored {orientation['score']:.2f}, "
        f"the best different one {orientation['runner_up']:.2f}."
    )
    if margin < LOW_MARGIN:
        yield "warn", f"{text} They are too close to be sure; look at the overlays."
    elif margin < CLEAR_MARGIN:
        yield "pass", f"{text} The margin is small; look at the overlays."
    else:
        yield "pass", text


def _affine(affine: Mapping[str, Any]) -> Iterator[Finding]:
    scales = affine.get("singular_values") or []
    low, high = SCALE_RANGE
    if scales and not all(low <= s <= high for s in scales):
        words = ", ".join(f"{s:.2f}" for s in scales)
        yield (
            "warn",
            f"The affine scales by {words}: more than preparation does. "
            "A voxel size is probably wrong; compare both with the microscopes' settings.",
        )
    for warning in affine.get("warnings") or ():
        yield "warn", str(warning)


def _stability(stability: Mapping[str, Any]) -> Iterator[Finding]:
    rms = stability.get("rms_nm")
    if rms is None:
        return
    status: Status = "warn" if rms > STABILITY_WARN_NM else "pass"
    yield status, f"Repeated with other seeds, the result moves by {rms:.0f} nm (rms)."
