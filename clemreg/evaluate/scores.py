"""How well a predicted mask agrees with the annotated one: the 21 metrics of the COSEM paper."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.nearest import nearest_distances
from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError, DataError, GridError
from clemreg.space.grid import Box
from clemreg.volume import LazyArray

METRICS = (
    "dice", "jaccard", "hausdorff", "false_negative_rate", "false_negative_rate_with_tolerance",
    "false_positive_rate", "false_discovery_rate", "false_positive_rate_with_tolerance", "voi",
    "mean_false_distance", "mean_false_negative_distance", "mean_false_positive_distance",
    "mean_false_distance_clipped", "mean_false_negative_distance_clipped",
    "mean_false_positive_distance_clipped", "precision_with_tolerance", "recall_with_tolerance",
    "f1_score_with_tolerance", "precision", "recall", "f1_score",
)  # fmt: skip
_HIGHER_IS_BETTER = ("dice", "jaccard", "precision", "recall", "f1_score")
_DISTANCES = ("hausdorff", "distance", "tolerance")
_BLOCK = (128, 256, 256)

BoolArray = NDArray[np.bool_]
# What becomes of voxels that nobody annotated.
Unannotated = Literal["leave-out", "background"]


@dataclass(frozen=True)
class ScoreOptions:
    """What to measure, and the lengths that some metrics depend on.

    Attributes
    ----------
    metrics
        Names out of `METRICS`.
    tolerance_nm
        A voxel no further than this from the other mask is no error (``*_with_tolerance``).
    clip_nm
        Distances count as at most this (``*_clipped``).
    """

    metrics: tuple[str, ...] = METRICS
    tolerance_nm: float = 40.0
    clip_nm: float = 200.0

    def __post_init__(self) -> None:
        _check_names(self.metrics)
        if not (self.tolerance_nm >= 0 and self.clip_nm > 0):
            raise ConfigError(
                f"tolerance {self.tolerance_nm} nm and clip distance {self.clip_nm} nm must be "
                "positive"
            )


def score_masks(
    prediction: LazyArray,
    truth: LazyArray,
    spacing_nm: Sequence[float],
    *,
    annotated: LazyArray | None = None,
    options: ScoreOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Score a predicted mask; both are read block by block.

    With P the prediction and T the truth, distances are those of every voxel of P to the nearest
    of T (0 where they overlap), and of T to P. A metric that makes no sense for the masks at hand
    is NaN: if P or T is empty all are, except dice, jaccard and false_discovery_rate, which are
    NaN only if both are, and hausdorff, which is then 0.

    Parameters
    ----------
    prediction, truth
        Masks (z, y, x): what is not 0 belongs to the structure.
    spacing_nm
        Voxel size zyx.
    annotated
        Mask (z, y, x) of the voxels whose truth is known; the others are left out, as if they
        lay outside the volume. None: all are known. (The paper's code counts voxels that nobody
        annotated as background: leave this None and let `truth` be 0 there.)

    Returns
    -------
    dict
        Value of each metric in `options`; distances in nm, ``voi`` in bits.

    Raises
    ------
    GridError
        The shapes differ.
    DataError
        A value is NaN, or no voxel is annotated.

    References
    ----------
    Heinrich et al., Nature 599:141 (2021), Extended Data Fig. 3; VOI: Meila, J. Multivar. Anal.
    98:873 (2007).
    """
    options = options or ScoreOptions()
    say = progress or _silent
    masks = _Masks(prediction, truth, annotated, tuple(float(s) for s in spacing_nm))
    say(0, 3, "overlap")
    counts = masks.counts()
    values = dict(_overlap_metrics(counts))
    if any(part in name for name in options.metrics for part in _DISTANCES):
        values |= _distance_metrics(masks, counts, options, say)
    say(3, 3, "done")
    return {name: values[name] for name in options.metrics}


def _silent(done: int, total: int, message: str) -> None:
    """Report nothing."""


def higher_is_better(metric: str) -> bool:
    """Tell which way a metric points: overlap upwards, errors and distances downwards.

    Examples
    --------
    >>> higher_is_better("recall_with_tolerance"), higher_is_better("voi")
    (True, False)
    """
    _check_names((metric,))
    return metric.removesuffix("_with_tolerance") in _HIGHER_IS_BETTER


def _check_names(metrics: Iterable[str]) -> None:
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise ConfigError(
            f"there is no metric {unknown[0]!r}", hint=f"metrics are: {', '.join(METRICS)}"
        )


@dataclass(frozen=True)
class _Counts:
    """Voxels in all, predicted, true, and both."""

    total: int
    predicted: int
    true: int
    both: int

    @property
    def background(self) -> int:
        return self.total - self.true

    @property
    def union(self) -> int:
        return self.predicted + self.true - self.both

    @property
    def one_is_empty(self) -> bool:
        return self.predicted == 0 or self.true == 0


class _Masks:
    """The two masks, read in boxes, without what is not annotated."""

    def __init__(
        self,
        prediction: LazyArray,
        truth: LazyArray,
        annotated: LazyArray | None,
        spacing_nm: tuple[float, ...],
    ) -> None:
        self.prediction, self.truth, self.annotated = prediction, truth, annotated
        self.spacing_nm = spacing_nm
        self.shape = tuple(truth.shape)
        for name, array in (("prediction", prediction), ("annotated", annotated)):
            if array is not None and tuple(array.shape) != self.shape:
                raise GridError(
                    f"{name} has shape {tuple(array.shape)}, truth {self.shape}",
                    hint="cut or resample one onto the voxels of the other",
                )
        if len(self.shape) != 3 or len(spacing_nm) != 3:
            raise GridError(f"masks are (z, y, x); these have shape {self.shape}")
        if not all(math.isfinite(s) and s > 0 for s in spacing_nm):
            raise GridError(f"voxel size {spacing_nm} nm (z, y, x) must be positive")

    def read_prediction(self, box: Box) -> BoolArray:
        return self._known(_foreground(self.prediction, box, "prediction"), box)

    def read_truth(self, box: Box) -> BoolArray:
        return self._known(_foreground(self.truth, box, "truth"), box)

    def _known(self, mask: BoolArray, box: Box) -> BoolArray:
        if self.annotated is None:
            return mask
        return mask & _foreground(self.annotated, box, "annotated")

    def counts(self) -> _Counts:
        total = predicted = true = both = 0
        for box in Box.of_shape(self.shape).tiles(_BLOCK):
            p, t = self.read_prediction(box), self.read_truth(box)
            known = None if self.annotated is None else _foreground(self.annotated, box, "")
            total += box.size if known is None else int(known.sum())
            predicted += int(p.sum())
            true += int(t.sum())
            both += int((p & t).sum())
        if total == 0:
            raise DataError("no voxel is annotated, so there is nothing to score")
        return _Counts(total, predicted, true, both)


def _foreground(array: LazyArray, box: Box, name: str) -> BoolArray:
    values = np.asarray(array[box.slices])
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise DataError(f"{name} holds NaN in {box}")
    return np.asarray(values != 0)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _harmonic(a: float, b: float) -> float:
    """Harmonic mean; 0 if both are, NaN if one is."""
    return 0.0 if a == b == 0 else 2 * a * b / (a + b)


def _overlap_metrics(n: _Counts) -> dict[str, float]:
    values = {
        "dice": _ratio(2 * n.both, n.predicted + n.true),
        "jaccard": _ratio(n.both, n.union),
        "false_discovery_rate": _false_discovery_rate(n),
    }
    if n.one_is_empty:
        rest = ("false_negative_rate", "false_positive_rate", "voi", "precision", "recall")
        return values | dict.fromkeys((*rest, "f1_score"), math.nan)
    precision, recall = n.both / n.predicted, n.both / n.true
    return values | {
        "false_negative_rate": (n.true - n.both) / n.true,
        "false_positive_rate": _ratio(n.predicted - n.both, n.background),
        "voi": _variation_of_information(n),
        "precision": precision,
        "recall": recall,
        "f1_score": _harmonic(precision, recall),
    }


def _false_discovery_rate(n: _Counts) -> float:
    if n.predicted == 0:
        return math.nan if n.true == 0 else 0.0
    return (n.predicted - n.both) / n.predicted


def _variation_of_information(n: _Counts) -> float:
    """H(P | T) + H(T | P) in bits, for the partition into structure and background."""
    table = np.array(
        [[n.total - n.union, n.true - n.both], [n.predicted - n.both, n.both]], dtype=float
    )
    joint = _entropy(table.ravel() / n.total)
    marginals = _entropy(table.sum(axis=0) / n.total) + _entropy(table.sum(axis=1) / n.total)
    return max(0.0, 2 * joint - marginals)


def _entropy(p: NDArray[np.float64]) -> float:
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


def _distance_metrics(
    masks: _Masks, n: _Counts, options: ScoreOptions, say: Progress
) -> dict[str, float]:
    names = [name for name in METRICS if any(part in name for part in _DISTANCES)]
    if n.one_is_empty:
        both_empty = n.predicted == n.true == 0
        return dict.fromkeys(names, math.nan) | {"hausdorff": 0.0 if both_empty else math.nan}
    say(1, 3, "distances of the prediction")
    false_positive = _summed(masks.read_prediction, masks.read_truth, masks, options)
    say(2, 3, "distances of the truth")
    false_negative = _summed(masks.read_truth, masks.read_prediction, masks, options)
    fp, fn = false_positive.beyond, false_negative.beyond
    tp = n.union - fp - fn
    precision, recall = _ratio(tp, tp + fp), _ratio(tp, tp + fn)
    return {
        "hausdorff": max(false_positive.longest, false_negative.longest),
        "false_negative_rate_with_tolerance": fn / n.true,
        "false_positive_rate_with_tolerance": _ratio(fp, n.background),
        "precision_with_tolerance": precision,
        "recall_with_tolerance": recall,
        "f1_score_with_tolerance": _harmonic(precision, recall),
        **_means("", false_positive.mean, false_negative.mean),
        **_means("_clipped", false_positive.clipped_mean, false_negative.clipped_mean),
    }


def _means(suffix: str, positive: float, negative: float) -> dict[str, float]:
    return {
        f"mean_false_positive_distance{suffix}": positive,
        f"mean_false_negative_distance{suffix}": negative,
        f"mean_false_distance{suffix}": (positive + negative) / 2,
    }


@dataclass(frozen=True)
class _Distances:
    """What is needed of all distances from one mask to the other."""

    mean: float
    clipped_mean: float
    longest: float
    beyond: int


def _summed(source: Any, target: Any, masks: _Masks, options: ScoreOptions) -> _Distances:
    sums, clipped, longest, beyond, count = [], [], 0.0, 0, 0
    for distances in nearest_distances(source, target, masks.shape, masks.spacing_nm):
        values = distances.astype(np.float64)
        sums.append(float(values.sum()))
        clipped.append(float(np.minimum(values, options.clip_nm).sum()))
        longest = max(longest, float(values.max()))
        beyond += int((values > options.tolerance_nm).sum())
        count += len(values)
    return _Distances(math.fsum(sums) / count, math.fsum(clipped) / count, longest, beyond)


def to_json(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Return the scores with None for NaN, as JSON has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in scores.items()}
