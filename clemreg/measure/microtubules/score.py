"""Compare traced lines with true ones: edges, splits, merges, and what is missing or invented.

After the evaluation of Heinrich et al. 2021 (Extended Data Fig. 7): both sets of lines are cut
into points at equal steps, which are matched one to one within 120 nm such that few pairs of lines
are involved. An edge is right if both its points are matched to the same line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import ConfigError, ConvergenceError
from clemreg.measure.microtubules.candidates import FloatArray, IntArray
from clemreg.measure.microtubules.trace import line_length_nm


@dataclass(frozen=True)
class MatchOptions:
    """How lines are matched.

    Attributes
    ----------
    step_nm
        Distance of the points along a line (the paper: every tenth voxel of 4 nm).
    distance_nm
        Largest distance of matched points. Also the least length that two lines must share.
    candidates
        Nearest points of the other set that a point may be matched to.
    time_limit_s
        For the matching.
    """

    step_nm: float = 40.0
    distance_nm: float = 120.0
    candidates: int = 5
    time_limit_s: float = 300.0

    def __post_init__(self) -> None:
        if not (0 < self.step_nm <= self.distance_nm and self.candidates > 0):
            raise ConfigError(
                f"match options make no sense: {self}",
                hint="the step must be above 0 nm and not longer than the match distance",
            )


@dataclass(frozen=True)
class TrackScore:
    """How good traced lines are.

    Attributes
    ----------
    precision, recall, f1
        Share of the edges found that are right, of the true edges that are found, and their
        harmonic mean.
    splits, merges
        Further lines that match one true line; further true lines that match one found.
    false_positives, false_negatives
        Lines found that match none; true lines that none matches.
    missed_nm, spurious_nm
        Length of unmatched true, and unmatched found, edges.
    true_nm, found_nm
        Length of all lines.
    """

    precision: float
    recall: float
    f1: float
    splits: int
    merges: int
    false_positives: int
    false_negatives: int
    missed_nm: float
    spurious_nm: float
    true_nm: float
    found_nm: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values, with the topological errors per um of true length."""
        from dataclasses import asdict

        per_um = 1e3 / self.true_nm if self.true_nm > 0 else float("nan")
        names = ("splits", "merges", "false_positives", "false_negatives")
        return asdict(self) | {f"{name}_per_um": getattr(self, name) * per_um for name in names}


def score_tracks(
    found_nm: Sequence[FloatArray],
    truth_nm: Sequence[FloatArray],
    options: MatchOptions | None = None,
) -> TrackScore:
    """Score lines (n, 3) zyx nm against true ones.

    Raises
    ------
    ConvergenceError
        The matching was not found in time.
    """
    options = options or MatchOptions()
    found, truth = (_Points.of(lines, options.step_nm) for lines in (found_nm, truth_nm))
    pairs = _match(found, truth, options)
    in_truth = np.full(len(found.line), -1, dtype=np.intp)
    in_found = np.full(len(truth.line), -1, dtype=np.intp)
    in_truth[pairs[:, 0]] = truth.line[pairs[:, 1]]
    in_found[pairs[:, 1]] = found.line[pairs[:, 0]]
    right_found, right_truth = found.edges_in_one(in_truth), truth.edges_in_one(in_found)
    lines = np.unique(np.stack([found.line[pairs[:, 0]], truth.line[pairs[:, 1]]], -1), axis=0)
    per_found = np.bincount(lines[:, 0], minlength=len(found_nm))
    per_truth = np.bincount(lines[:, 1], minlength=len(truth_nm))
    precision, recall = _share(right_found), _share(right_truth)
    total = precision + recall
    return TrackScore(
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / total if total > 0 else total,
        splits=int(np.maximum(per_truth - 1, 0).sum()),
        merges=int(np.maximum(per_found - 1, 0).sum()),
        false_positives=int((per_found == 0).sum()),
        false_negatives=int((per_truth == 0).sum()),
        missed_nm=float(truth.edge_nm[~right_truth].sum()),
        spurious_nm=float(found.edge_nm[~right_found].sum()),
        true_nm=float(sum(line_length_nm(line) for line in truth_nm)),
        found_nm=float(sum(line_length_nm(line) for line in found_nm)),
    )


def _share(right: NDArray[np.bool_]) -> float:
    return float(right.mean()) if len(right) else float("nan")


@dataclass(frozen=True, eq=False)
class _Points:
    """Lines cut into points at equal steps.

    Attributes
    ----------
    position_nm, line
        (P, 3) and (P,): where, and of which line.
    edge_nm
        Length of the edges between consecutive points of a line, in order.
    """

    position_nm: FloatArray
    line: IntArray
    edge_nm: FloatArray

    @classmethod
    def of(cls, lines_nm: Sequence[FloatArray], step_nm: float) -> _Points:
        pieces = [_resample(line, step_nm) for line in lines_nm]
        number = [np.full(len(p), k, dtype=np.intp) for k, p in enumerate(pieces)]
        gaps = [np.linalg.norm(np.diff(p, axis=0), axis=1) for p in pieces]
        return cls(
            np.concatenate([np.zeros((0, 3)), *pieces]),
            np.concatenate([np.zeros(0, dtype=np.intp), *number]),
            np.concatenate([np.zeros(0), *gaps]),
        )

    def edges_in_one(self, other: IntArray) -> NDArray[np.bool_]:
        """Tell which edges have both points in the same line of the other set (-1: none)."""
        within = self.line[:-1] == self.line[1:]
        same = (other[:-1] == other[1:]) & (other[:-1] >= 0)
        return np.asarray(same[within], dtype=bool)


def _resample(line_nm: FloatArray, step_nm: float) -> FloatArray:
    """Points at equal steps of at most `step_nm` along a line, both ends included."""
    along = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(line_nm, axis=0), axis=1)))
    count = max(1, int(np.ceil(along[-1] / step_nm - 1e-9))) + 1
    at = np.linspace(0.0, along[-1], count)
    return np.stack([np.interp(at, along, line_nm[:, axis]) for axis in range(3)], -1)


def _match(found: _Points, truth: _Points, options: MatchOptions) -> IntArray:
    """Pairs (M, 2) of points of `found` and `truth`, one to one."""
    pairs, distance = _near(found, truth, options)
    if not len(pairs):
        return pairs
    from scipy.optimize import Bounds, LinearConstraint, milp

    lines, pair_of = np.unique(
        np.stack([found.line[pairs[:, 0]], truth.line[pairs[:, 1]]], -1),
        axis=0,
        return_inverse=True,
    )
    # Each matched pair of points gains a little under 1 (near ones more); each pair of lines
    # costs as many points as fit in the match distance.
    gain = 1.0 - 0.1 * distance / options.distance_nm
    cost = np.append(-gain, np.full(len(lines), options.distance_nm / options.step_nm))
    answer = milp(
        cost,
        integrality=np.ones(len(cost)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(*_match_rows(pairs, pair_of.reshape(-1), len(lines))),
        options={"time_limit": options.time_limit_s, "mip_rel_gap": 1e-6},
    )
    if answer.x is None:
        raise ConvergenceError(
            f"{len(pairs)} pairs of points could not be matched: {answer.message}",
            hint="use a longer step or a shorter match distance",
        )
    return np.asarray(pairs[answer.x[: len(pairs)] > 0.5])


def _near(found: _Points, truth: _Points, options: MatchOptions) -> tuple[IntArray, FloatArray]:
    """Pairs (K, 2) within the match distance, nearest few of each point, and their distances."""
    from scipy.spatial import cKDTree

    def nearest(a: FloatArray, b: FloatArray) -> IntArray:
        if not len(a) or not len(b):
            return np.zeros((0, 2), dtype=np.intp)
        k = min(options.candidates, len(b))
        distance, index = cKDTree(b).query(a, k=k, distance_upper_bound=options.distance_nm)
        distance, index = distance.reshape(len(a), k), index.reshape(len(a), k)
        rows, columns = np.nonzero(np.isfinite(distance))
        return np.stack([rows, index[rows, columns]], -1).astype(np.intp)

    ours = nearest(found.position_nm, truth.position_nm)
    theirs = nearest(truth.position_nm, found.position_nm)[:, ::-1]
    pairs = np.unique(np.concatenate([ours, theirs]), axis=0)
    gap = found.position_nm[pairs[:, 0]] - truth.position_nm[pairs[:, 1]]
    return pairs, np.asarray(np.linalg.norm(gap, axis=1))


def _match_rows(pairs: IntArray, pair_of: IntArray, lines: int) -> tuple[Any, float, FloatArray]:
    """Constraints: a point is matched once; matched points switch on their pair of lines."""
    from scipy.sparse import coo_array, vstack

    n = len(pairs)
    columns = np.arange(n)
    rows = []
    for side in (0, 1):
        points, row = np.unique(pairs[:, side], return_inverse=True)
        once = coo_array((np.ones(n), (row.reshape(-1), columns)), shape=(len(points), n + lines))
        rows.append(once)
    index = np.tile(columns, 2)
    on = coo_array(
        (np.repeat([1.0, -1.0], n), (index, np.append(columns, n + pair_of))), shape=(n, n + lines)
    )
    high = np.append(np.ones(sum(r.shape[0] for r in rows)), np.zeros(n))
    return vstack([*rows, on], format="csr"), -np.inf, high
