"""Accuracy on landmarks: target registration error in the EM frame, beside what people achieve.

The recipe of Heinrich et al. 2021 for COS-7: points that the registration never used are marked
once in the LM and, by each person, in the EM. The error is the distance between where the
transform sends the LM point and where the person put the EM point; the distance between two
persons is the floor.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clemreg.errors import DataError
from clemreg.evaluate.statistics import ErrorStats, to_plain
from clemreg.space.landmarks import Landmarks
from clemreg.space.transform import Affine, Chain, Transform

FloatArray = NDArray[np.float64]

AUTO = "auto"
TRUTH = "truth"
THIN = 0.1
"""z extent over xy extent below which landmarks say nothing about z."""
_FAR_NM = 20_000.0


@dataclass(frozen=True, eq=False)
class PointErrors:
    """The landmarks behind the top-level numbers, for plots.

    Attributes
    ----------
    names
        (N,) names.
    lm_nm
        (N, 3) zyx in the LM frame, offset included.
    em_nm
        (N, 3) zyx where people (on average) put them in the EM frame.
    predicted_nm
        (N, 3) zyx where the transform sends them.
    """

    names: tuple[str, ...]
    lm_nm: FloatArray
    em_nm: FloatArray
    predicted_nm: FloatArray

    @property
    def difference_nm(self) -> FloatArray:
        """(N, 3) predicted minus marked, zyx."""
        return self.predicted_nm - self.em_nm

    @property
    def error_nm(self) -> FloatArray:
        """(N,) distances."""
        return np.asarray(np.linalg.norm(self.difference_nm, axis=1))

    def to_json(self) -> dict[str, Any]:
        """Names, errors and difference vectors, one entry per point."""
        return to_plain(
            {
                "names": self.names,
                "error_nm": self.error_nm,
                "difference_nm": self.difference_nm,
                "lm_nm": self.lm_nm,
            }
        )


@dataclass(frozen=True)
class TruthStats:
    """Errors against the exact positions that only simulated data have.

    Attributes
    ----------
    stats
        All numbers.
    """

    stats: ErrorStats

    def to_json(self) -> dict[str, Any]:
        """Return the ``truth`` object of ``report.json``."""
        keys = ("mean_nm", "median_nm", "p95_nm", "max_nm")
        return to_plain({f"tre_{key}": getattr(self.stats, key) for key in keys})


@dataclass(frozen=True, eq=False)
class LandmarkReport:
    """Target registration error (TRE) on held-out landmarks, in nm of the EM frame.

    Attributes
    ----------
    tre
        Transform against the mean of the people. Without people: against `truth`, else against
        the published automatic result; `notes` says so.
    by_rater
        Transform against each person.
    between_raters
        Person against person, all pairs together; None with a single person.
    affine_only
        The same as `tre` with the affine parts of the transform alone; None if it has none.
    leave_one_out_affine
        An affine fitted to the other landmarks, tested on the one left out: what a manual affine
        achieves. None if there are too few points.
    leave_one_out_by_rater
        The same, fitted and tested on each person's points.
    affine_fit
        Residual of the affine fitted to all (fiducial error, not accuracy).
    fre
        Residual at landmarks of role "fit", which took part in the registration; None if none.
    auto_reproduction
        Transform against the rows of rater "Auto", a published automatic result.
    auto_vs_rater
        Those rows against each person.
    truth
        Transform against the rows of rater "truth" (simulated data).
    points
        The landmarks behind `tre`.
    points_by_rater
        The landmarks behind `by_rater`.
    notes
        What a reader must know, in full sentences.
    """

    tre: ErrorStats
    by_rater: dict[str, ErrorStats]
    between_raters: ErrorStats | None
    affine_only: ErrorStats | None
    leave_one_out_affine: ErrorStats | None
    leave_one_out_by_rater: dict[str, ErrorStats]
    affine_fit: ErrorStats | None
    fre: ErrorStats | None
    auto_reproduction: ErrorStats | None
    auto_vs_rater: dict[str, ErrorStats]
    truth: TruthStats | None
    points: PointErrors
    points_by_rater: dict[str, PointErrors]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the ``landmarks`` object of ``report.json``; its top level is `tre`."""
        record = {
            **self.tre.to_json(),
            "by_rater": self.by_rater,
            "between_raters": self.between_raters,
            "affine_only": self.affine_only,
            "leave_one_out_affine": self.leave_one_out_affine,
            "leave_one_out_by_rater": self.leave_one_out_by_rater,
            "affine_fit": self.affine_fit,
            "fre": self.fre,
            "auto_reproduction": self.auto_reproduction,
            "auto_vs_rater": self.auto_vs_rater,
            "truth": self.truth,
            "points": self.points,
            "notes": self.notes,
        }
        return to_plain(record)


@dataclass(frozen=True, eq=False)
class _Marks:
    """One person's held-out pairs, or the mean of several persons'."""

    names: tuple[str, ...]
    lm_nm: FloatArray
    em_nm: FloatArray

    def __len__(self) -> int:
        return len(self.names)


def evaluate_landmarks(
    transform: Transform,
    landmarks: Landmarks,
    *,
    raters: Sequence[str] = (),
    fixed_offset_nm: ArrayLike = (0.0, 0.0, 0.0),
) -> LandmarkReport:
    """Measure a transform on landmarks.

    Rows that are not active or lack a coordinate are left out, and rows of role "fit" count for
    `fre` only. The raters "Auto" (a published automatic result) and "truth" (simulated data), in
    any case, are no people: they are always reported, apart. The mean of the people is taken over
    those who marked a point, in LM and EM alike.

    Parameters
    ----------
    transform
        Maps LM points to EM points.
    landmarks
        Pairs, by rater.
    raters
        The people to report; default all in the table.
    fixed_offset_nm
        (3,) zyx, added to the LM points: where the origin of the landmarks lies in the frame of
        the transform, such as the corner of a crop.

    Returns
    -------
    LandmarkReport

    Raises
    ------
    DataError
        A rater is not in the table, or no usable held-out landmark is left.
    """
    marks, fit = _marks_by_rater(landmarks, np.asarray(fixed_offset_nm, dtype=np.float64))
    auto, truth = _special(marks, AUTO), _special(marks, TRUTH)
    people = _people(marks, raters)
    basis, note = _basis(people, truth, auto)
    affine, fitted = affine_part(transform), _fit_errors(basis)
    tre = _error(transform, basis)
    notes = note, _thin_note(basis), _few_note(fitted), _far_note(tre)
    return LandmarkReport(
        tre=tre,
        by_rater={name: _error(transform, m) for name, m in people.items()},
        between_raters=_between(list(people.values())),
        affine_only=None if affine is None else _error(affine, basis),
        leave_one_out_affine=None if fitted is None else ErrorStats.of(fitted[0]),
        leave_one_out_by_rater=_leave_one_out(people),
        affine_fit=None if fitted is None else ErrorStats.of(fitted[1]),
        fre=_error(transform, fit) if len(fit) else None,
        auto_reproduction=None if auto is None else _error(transform, auto),
        auto_vs_rater={} if auto is None else _auto_vs_people(auto, people),
        truth=None if truth is None else TruthStats(_error(transform, truth)),
        points=_points(transform, basis),
        points_by_rater={name: _points(transform, m) for name, m in people.items()},
        notes=tuple(n for n in notes if n),
    )


def affine_part(transform: Transform) -> Affine | None:
    """Compose the affine members of a transform, leaving out the deformations; None if it has none.

    For ``T(x) = B(A(x))``, as elastix makes it, this is A.
    """
    if isinstance(transform, Affine):
        return transform
    parts = transform.parts if isinstance(transform, Chain) else ()
    affines = [part for part in parts if isinstance(part, Affine)]
    if not affines:
        return None
    matrix = np.eye(4)
    for part in affines:
        matrix = part.matrix @ matrix
    return Affine(matrix, transform.source, transform.target)


def _marks_by_rater(
    landmarks: Landmarks, offset_nm: FloatArray
) -> tuple[dict[str, _Marks], _Marks]:
    """Held-out marks of each rater, and all marks of role "fit"."""

    def marks(rows: Landmarks) -> _Marks:
        return _Marks(rows.names, rows.lm_nm + offset_nm, rows.em_nm)

    usable = landmarks.usable
    fit = np.array([role == "fit" for role in usable.role], dtype=bool)
    held_out = usable.take(~fit)
    by_rater = {name: marks(held_out.select(rater=name)) for name in held_out.raters}
    return by_rater, marks(usable.take(fit))


def _special(marks: dict[str, _Marks], which: str) -> _Marks | None:
    return next((m for name, m in marks.items() if name.strip().lower() == which), None)


def _people(marks: dict[str, _Marks], raters: Sequence[str]) -> dict[str, _Marks]:
    present = [name for name in marks if name.strip().lower() not in (AUTO, TRUTH)]
    for name in raters:
        if name not in marks:
            raise DataError(
                f"no usable held-out landmark of rater {name!r}",
                hint=f"raters in the table: {', '.join(marks) or 'none'}",
            )
    return {name: marks[name] for name in present if name in raters or not raters}


def _basis(
    people: dict[str, _Marks], truth: _Marks | None, auto: _Marks | None
) -> tuple[_Marks, str]:
    """Choose what the top-level numbers are measured against; a note if that is no person."""
    if people:
        return _mean(list(people.values())), ""
    if truth is not None:
        return truth, "No person marked these landmarks: errors are against the simulated truth."
    if auto is not None:
        return auto, "No person marked these landmarks: errors are against an automatic result."
    raise DataError(
        "there is no usable held-out landmark",
        hint="landmarks must be active, have all coordinates, and not have the role 'fit'",
    )


def _far_note(tre: ErrorStats) -> str:
    if tre.median_nm < _FAR_NM:
        return ""
    return (
        f"The median error is {tre.median_nm / 1e3:.0f} um, more than a cell: the unit of the "
        "landmarks (--unit) or of the transform (--transform-unit) may be another, the transform "
        "may go the other way, or the landmarks may have been clicked in a crop (--fixed-offset)."
    )


def _mean(marks: Sequence[_Marks]) -> _Marks:
    names = tuple(dict.fromkeys(name for m in marks for name in m.names))
    rows = [{name: i for i, name in enumerate(m.names)} for m in marks]

    def mean(name: str, which: str) -> FloatArray:
        found = [getattr(m, which)[r[name]] for m, r in zip(marks, rows, strict=True) if name in r]
        return np.asarray(np.mean(found, axis=0))

    if len(marks) == 1:
        return marks[0]
    lm = np.stack([mean(name, "lm_nm") for name in names])
    return _Marks(names, lm, np.stack([mean(name, "em_nm") for name in names]))


def _error(transform: Transform, marks: _Marks) -> ErrorStats:
    return ErrorStats.of(transform(marks.lm_nm) - marks.em_nm)


def _points(transform: Transform, marks: _Marks) -> PointErrors:
    return PointErrors(marks.names, marks.lm_nm, marks.em_nm, transform(marks.lm_nm))


def _em_differences(first: _Marks, second: _Marks) -> FloatArray:
    """EM positions of `second` minus `first` at the points both marked, (N, 3)."""
    where = {name: i for i, name in enumerate(second.names)}
    pairs = [(i, where[name]) for i, name in enumerate(first.names) if name in where]
    index = np.array(pairs, dtype=int).reshape(-1, 2)
    result: FloatArray = second.em_nm[index[:, 1]] - first.em_nm[index[:, 0]]
    return result


def _between(people: Sequence[_Marks]) -> ErrorStats | None:
    pairs = [_em_differences(a, b) for a, b in itertools.combinations(people, 2)]
    together = np.concatenate(pairs) if pairs else np.empty((0, 3))
    return ErrorStats.of(together) if len(together) else None


def _auto_vs_people(auto: _Marks, people: dict[str, _Marks]) -> dict[str, ErrorStats]:
    found = {name: _em_differences(m, auto) for name, m in people.items()}
    return {name: ErrorStats.of(d) for name, d in found.items() if len(d)}


def _leave_one_out(people: dict[str, _Marks]) -> dict[str, ErrorStats]:
    found = {name: _fit_errors(m) for name, m in people.items()}
    return {name: ErrorStats.of(errors[0]) for name, errors in found.items() if errors is not None}


def _fit_errors(marks: _Marks) -> tuple[FloatArray, FloatArray] | None:
    """Leave-one-out errors and residuals (N, 3) of an affine fitted to marks; None if too few.

    In linear least squares the error at a point left out is its residual over one minus its
    leverage, so one fit gives all.
    """
    n = len(marks)
    if n < 5:
        return None
    centred = marks.lm_nm - marks.lm_nm.mean(axis=0)
    scale = np.abs(centred).max(axis=0)
    design = np.column_stack([np.ones(n), centred / np.where(scale > 0, scale, 1.0)])
    q, r = np.linalg.qr(design)
    leverage = np.sum(q**2, axis=1)
    if np.abs(np.diag(r)).min() < 1e-9 * np.abs(np.diag(r)).max() or leverage.max() > 1 - 1e-9:
        return None
    residual = q @ (q.T @ marks.em_nm) - marks.em_nm
    return residual / (1 - leverage)[:, None], residual


def _thin_note(marks: _Marks) -> str:
    z, y, x = np.ptp(marks.lm_nm, axis=0)
    if z >= THIN * max(y, x):
        return ""
    return (
        f"The landmarks span {x / 1e3:.1f} x {y / 1e3:.1f} x {z / 1e3:.2f} um (x, y, z): "
        "no conclusion about z can be drawn from them."
    )


def _few_note(fitted: object | None) -> str:
    if fitted is not None:
        return ""
    return "Too few landmarks, or all in one plane: no leave-one-out affine could be fitted."
