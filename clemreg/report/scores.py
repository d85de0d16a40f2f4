"""How good a segmentation is, on one page: bars for each class, slices, and every number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import DataError
from clemreg.io.atomic import atomic_write_text
from clemreg.report import canvas
from clemreg.report.canvas import BLUE, GREEN, INK, MAGENTA, ORANGE, SOFT
from clemreg.report.html import Figure, fill, number
from clemreg.space.grid import Grid

BARS = {"dice": "F1 (Dice)", "precision": "precision", "recall": "recall"}
COLOURS = (GREEN, BLUE, ORANGE)
DISTANCES = {
    "mean_false_positive_distance": "false positives", "mean_false_negative_distance": "misses",
}  # fmt: skip
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class LabelScores:
    """Scores of one class.

    Attributes
    ----------
    label
        Class.
    scores
        By metric; None where it makes no sense.
    detail
        Network and checkpoint, if there are several.
    by_crop
        F1 on each crop, if there are several.
    """

    label: str
    scores: Mapping[str, float | None]
    detail: str = ""
    by_crop: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Slice:
    """One plane of prediction and truth.

    Attributes
    ----------
    label
        Class.
    grid
        Grid of the plane (1, y, x).
    em
        Grey values (y, x), or None.
    prediction, truth, known
        Masks (y, x); `known` is where the truth was annotated.
    """

    label: str
    grid: Grid
    em: NDArray[Any] | None
    prediction: BoolArray
    truth: BoolArray
    known: BoolArray


def write_score_report(
    path: Path,
    title: str,
    labels: Sequence[LabelScores],
    slices: Sequence[Slice] = (),
    *,
    summary: str = "",
) -> None:
    """Write the page; it links to nothing outside.

    Parameters
    ----------
    labels
        In the order of showing.
    summary
        What was compared, in a sentence or two.

    Raises
    ------
    DataError
        There is no class.
    """
    if not labels:
        raise DataError("there is no class to report on", hint="score some predictions first")
    text = fill(
        "scores.html",
        title=title,
        summary=summary,
        labels=labels,
        metrics=list(dict.fromkeys(name for row in labels for name in row.scores)),
        figures=list(_figures(labels, slices)),
    )
    atomic_write_text(path, text)


def _figures(labels: Sequence[LabelScores], slices: Sequence[Slice]) -> Iterator[Figure]:
    yield Figure(
        "Overlap by class",
        "Voxels that prediction and truth share. Precision: how much of the prediction is right; "
        "recall: how much of the truth is found. Dots: single crops.",
        bars_figure(labels),
    )
    if any(row.scores.get(name) is not None for row in labels for name in DISTANCES):
        yield Figure(
            "How far off the errors are",
            "Mean distance of predicted voxels to the truth, and of true voxels to the "
            "prediction; right voxels count as 0. Short bars: outlines differ; long ones: whole "
            "objects are missed or invented.",
            distances_figure(labels),
        )
    for each in slices:
        yield Figure(
            f"{each.label}: one slice",
            "Green: right. Magenta: predicted, but not there. Orange: there, but missed. "
            "Darkened: nobody annotated. The slice with most of the structure.",
            slice_figure(each),
        )


def bars_figure(labels: Sequence[LabelScores]) -> bytes:
    """Draw F1, precision and recall of each class."""
    figure, axes = _rows(labels, BARS, COLOURS)
    for i, row in enumerate(labels):
        level = [i - 0.27] * len(row.by_crop)
        axes.plot(row.by_crop, level, "o", ms=4, color=INK, mfc="white", zorder=3)
    axes.set_xlim(0, 1)
    return canvas.png(figure)


def distances_figure(labels: Sequence[LabelScores]) -> bytes:
    """Draw the mean distances of each class."""
    figure, axes = _rows(labels, DISTANCES, (MAGENTA, ORANGE))
    axes.set_xlabel("mean distance (nm)", fontsize=9, color=INK)
    return canvas.png(figure)


def _rows(
    labels: Sequence[LabelScores], names: Mapping[str, str], colours: Sequence[str]
) -> tuple[Any, Any]:
    """Return a figure with a group of bars for each class."""
    figure, grid = canvas.new_figure(1, 1, (8.5, 1.1 + 0.62 * len(labels)))
    axes = grid[0, 0]
    height = 0.8 / len(names)
    for k, (name, words) in enumerate(names.items()):
        values = [_finite(row.scores.get(name)) for row in labels]
        level = [i - 0.4 + height * (k + 0.5) for i in range(len(labels))]
        axes.barh(level, values, height * 0.9, color=colours[k], label=words)
        for y, row, value in zip(level, labels, values, strict=True):
            text = number(row.scores.get(name), 2 if name in BARS else 1)
            beside = 8 if row.by_crop and not k else 3  # a dot may lie at the end of the bar
            axes.annotate(
                text, (value, y), xytext=(beside, 0), textcoords="offset points", va="center",
                fontsize=7, color=INK,
            )  # fmt: skip
    axes.set_yticks(range(len(labels)), [canvas.plain_text(row.label) for row in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=8,
        labelcolor=SOFT,
    )  # fmt: skip
    return figure, axes


def _finite(value: float | None) -> float:
    return value if value is not None and np.isfinite(value) else 0.0


def slice_figure(plane: Slice) -> bytes:
    """Draw one plane with what is right, invented and missed."""
    _, y, x = (float(v) for v in plane.grid.extent_nm)
    figure, grid = canvas.new_figure(1, 1, (7.0, min(9.0, 6.0 * y / x + 0.8)))
    axes = grid[0, 0]
    canvas.show_picture(axes, error_picture(plane), plane.grid, 0)
    canvas.scale_bar(axes)
    return canvas.png(figure)


def error_picture(plane: Slice) -> NDArray[np.float32]:
    """Colour right, invented and missed voxels over the EM (y, x, 3), 0 to 1."""
    grey = _unit(plane.em) if plane.em is not None else np.full(plane.truth.shape, 0.25)
    picture = np.repeat(grey[..., None], 3, axis=-1)
    p, t = plane.prediction & plane.known, plane.truth & plane.known
    for mask, colour in ((p & t, (0, 0.85, 0.3)), (p & ~t, (1, 0, 0.8)), (t & ~p, (1, 0.6, 0))):
        picture[mask] = 0.55 * picture[mask] + 0.45 * np.asarray(colour)
    picture[~plane.known] *= 0.35
    return picture.astype(np.float32)


def _unit(em: NDArray[Any]) -> NDArray[np.float64]:
    low, high = np.percentile(em, [0.5, 99.5])
    scaled = (em.astype(float) - low) / max(float(high - low), 1e-9)
    return np.asarray(np.clip(scaled, 0, 1), dtype=np.float64)
