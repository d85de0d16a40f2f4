"""How well predicted objects agree with the annotated ones, object by object."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import ConfigError, DataError, GridError
from clemreg.space.grid import Box
from clemreg.volume import LazyArray

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
_BLOCK = (128, 256, 256)
IntArray = NDArray[np.int64]
IdArray = NDArray[np.uint64]


@dataclass(frozen=True)
class InstanceScores:
    """Agreement of two label volumes.

    Attributes
    ----------
    predicted_objects, true_objects, matched_objects
        Numbers of objects, and of pairs whose intersection over union reaches `threshold`.
    threshold
        The intersection over union from which on two objects match.
    instance_precision, instance_recall, instance_f1
        Share of the predicted objects, of the true objects that are matched, and their harmonic
        mean; NaN where there is no object.
    mean_matched_iou
        Mean intersection over union of the matched pairs; NaN if there are none.
    average_precision
        Matched / (matched + missed + invented), averaged over the thresholds `THRESHOLDS`.
    voi_split, voi_merge
        Conditional entropies in bits, over all voxels, background counted as an object:
        H(prediction | truth) grows where objects are split, H(truth | prediction) where they are
        merged.
    """

    predicted_objects: int
    true_objects: int
    matched_objects: int
    threshold: float
    instance_precision: float
    instance_recall: float
    instance_f1: float
    mean_matched_iou: float
    average_precision: float
    voi_split: float
    voi_merge: float

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN is None."""
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in vars(self).items()
        }


def score_instances(
    prediction: LazyArray,
    truth: LazyArray,
    *,
    annotated: LazyArray | None = None,
    threshold: float = 0.5,
) -> InstanceScores:
    """Match objects of two label volumes one to one; both are read block by block.

    Parameters
    ----------
    prediction, truth
        Object ids (z, y, x), 0 is background.
    annotated
        Mask of the voxels whose truth is known; the others are left out.
    threshold
        Intersection over union from which on two objects match, above 0 and at most 1. Among
        the pairs that may match, as many as possible do.

    Raises
    ------
    GridError
        The shapes differ.
    DataError
        The ids are not whole numbers, or nothing is annotated.
    ConfigError
        The threshold makes no sense.

    References
    ----------
    Caicedo et al., Nat. Methods 16:1247 (2019) for the average precision without confidences;
    Nunez-Iglesias et al., PLoS ONE 8:e71715 (2013) for split and merge VOI.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"the matching threshold must lie in (0, 1], got {threshold}")
    table = _Contingency.of(prediction, truth, annotated)
    iou = table.iou()
    matched, total_iou = _match(iou, threshold)
    found, true = table.objects
    precision = matched / found if found else math.nan
    recall = matched / true if true else math.nan
    split, merge = table.conditional_entropies()
    return InstanceScores(
        predicted_objects=found,
        true_objects=true,
        matched_objects=matched,
        threshold=threshold,
        instance_precision=precision,
        instance_recall=recall,
        instance_f1=2 * matched / (found + true) if found + true else math.nan,
        mean_matched_iou=total_iou / matched if matched else math.nan,
        average_precision=_average_precision(iou, found, true),
        voi_split=split,
        voi_merge=merge,
    )


@dataclass(frozen=True, eq=False)
class _Contingency:
    """Voxels of every pair of ids that occurs: (N,) predicted id, true id, number."""

    predicted: IdArray
    true: IdArray
    voxels: IntArray

    @classmethod
    def of(
        cls, prediction: LazyArray, truth: LazyArray, annotated: LazyArray | None
    ) -> _Contingency:
        for array in (prediction, annotated):
            if array is not None and tuple(array.shape) != tuple(truth.shape):
                raise GridError(
                    f"label volumes have shapes {tuple(array.shape)} and {tuple(truth.shape)}"
                )
        pairs: dict[tuple[int, int], int] = {}
        for box in Box.of_shape(truth.shape).tiles(_BLOCK):
            p, t = _ids(prediction, box, "prediction"), _ids(truth, box, "truth")
            if annotated is not None:
                known = np.asarray(annotated[box.slices]) != 0
                p, t = p[known], t[known]
            for pair, n in _unique_pairs(p.ravel(), t.ravel()):
                pairs[pair] = pairs.get(pair, 0) + n
        if not pairs:
            raise DataError("no voxel is annotated, so there is nothing to score")
        ids = np.array(list(pairs), dtype=np.uint64)
        return cls(ids[:, 0], ids[:, 1], np.array(list(pairs.values()), dtype=np.int64))

    @property
    def objects(self) -> tuple[int, int]:
        """Numbers of predicted and of true objects."""
        return tuple(int((np.unique(ids) != 0).sum()) for ids in (self.predicted, self.true))  # type: ignore[return-value]

    def iou(self) -> Any:
        """Sparse matrix (predicted, true) of intersections over unions, background left out."""
        from scipy.sparse import csr_array

        found, i = np.unique(self.predicted, return_inverse=True)
        true, j = np.unique(self.true, return_inverse=True)
        size_i = np.bincount(i, weights=self.voxels)
        size_j = np.bincount(j, weights=self.voxels)
        values = self.voxels / (size_i[i] + size_j[j] - self.voxels)
        real = (self.predicted != 0) & (self.true != 0)
        shape = (len(found), len(true))
        return csr_array((values[real], (i[real], j[real])), shape=shape)

    def conditional_entropies(self) -> tuple[float, float]:
        """H(prediction | truth) and H(truth | prediction) in bits."""
        p = self.voxels / self.voxels.sum()
        joint = -float((p * np.log2(p)).sum())
        of_prediction, of_truth = (_marginal_entropy(ids, p) for ids in (self.predicted, self.true))
        return max(0.0, joint - of_truth), max(0.0, joint - of_prediction)


def _ids(array: LazyArray, box: Box, name: str) -> IdArray:
    values = np.asarray(array[box.slices])
    if values.dtype.kind not in "uib" or (values.dtype.kind == "i" and (values < 0).any()):
        raise DataError(
            f"{name} holds {values.dtype} values; object ids are whole numbers from 0 on",
            hint="label the connected components of a mask first",
        )
    return values.astype(np.uint64)


def _unique_pairs(p: IdArray, t: IdArray) -> list[tuple[tuple[int, int], int]]:
    """Pairs of ids that occur, with their counts, by way of dense numbers."""
    found, i = np.unique(p, return_inverse=True)
    true, j = np.unique(t, return_inverse=True)
    if not len(found):
        return []
    codes, counts = np.unique(i.astype(np.int64) * len(true) + j, return_counts=True)
    return [
        ((int(found[code // len(true)]), int(true[code % len(true)])), int(n))
        for code, n in zip(codes, counts, strict=True)
    ]


def _marginal_entropy(ids: IdArray, p: NDArray[np.float64]) -> float:
    _, index = np.unique(ids, return_inverse=True)
    q = np.bincount(index, weights=p)
    return -float((q * np.log2(q)).sum())


def _match(iou: Any, threshold: float) -> tuple[int, float]:
    """Return the number of matched pairs and the sum of their intersections over unions."""
    from scipy.sparse.csgraph import maximum_bipartite_matching

    close = iou.copy()
    close.data = np.where(close.data >= threshold, close.data, 0)
    close.eliminate_zeros()
    if not close.nnz:
        return 0, 0.0
    partner = np.asarray(maximum_bipartite_matching(close, perm_type="column"))
    rows = np.flatnonzero(partner >= 0)
    total = sum(float(close[int(r), int(partner[r])]) for r in rows)
    return len(rows), total


def _average_precision(iou: Any, found: int, true: int) -> float:
    if not found + true:
        return math.nan
    matches: Sequence[int] = [_match(iou, t)[0] for t in THRESHOLDS]
    return float(np.mean([m / (found + true - m) for m in matches]))
