"""Score predictions on annotated crops, keep the scores, compare what the paper compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError, GridError
from clemreg.evaluate.masks import at_least, mask_on, nonzero
from clemreg.evaluate.results import Result, metric_params
from clemreg.evaluate.scores import ScoreOptions, Unannotated, score_masks
from clemreg.evaluate.selection import Arm, Mode, compare, compare_same
from clemreg.io.quantise import SURFACE
from clemreg.segment.classes import Annotation, category
from clemreg.segment.data import separable_resample
from clemreg.segment.groundtruth import FINE_RAW, PHASES, AnnotatedCrop, Truth
from clemreg.segment.setups import OUTPUT_NM, SETUPS
from clemreg.space.grid import Box, Grid
from clemreg.volume import LazyArray, Volume

SIMULATED = f"{PHASES}/0"
# EM of 4 nm, as it is called in the paper's later and in its first tables.
FINE_EM = (FINE_RAW, "volumes/raw")
FINE_SETUPS = ("03", "25", "27.1", "31", "35", "45", "47")
COARSE_SETUPS = ("04", "26.1", "28", "32", "36", "46", "48")
COMPARISONS = ("4nm-vs-8nm", "raw-vs-refined", "all-vs-many-vs-few")


@dataclass(frozen=True, eq=False)
class Prediction:
    """A prediction of one class and where it comes from.

    Attributes
    ----------
    volume
        Signed distance in uint8 (z, y, x), or objects if `refined`.
    path, dataset
        Container and dataset it was read from.
    label, setup, iteration
        Class, network, checkpoint.
    raw_dataset, parent_path, parent_dataset_id
        EM that was read, its container, the name of the sample.
    refined
        Whether it was cleaned up: then every voxel that is not 0 counts.
    threshold
        Foreground from here on.
    """

    volume: Volume
    path: str
    dataset: str
    label: str
    setup: str
    iteration: int
    raw_dataset: str = FINE_RAW
    parent_path: str = ""
    parent_dataset_id: str = ""
    refined: bool = False
    threshold: float = SURFACE


def validate(
    prediction: Prediction,
    crops: Sequence[AnnotatedCrop],
    options: ScoreOptions | None = None,
    *,
    unannotated: Unannotated = "leave-out",
    progress: Progress | None = None,
) -> list[Result]:
    """Score a prediction on every crop where its class was looked for.

    A crop where the class was looked for and is not there counts as empty truth, whatever its
    voxels hold, as in the paper. Truth and prediction are compared on every so many voxels of the
    annotation as come nearest to the prediction's, 4 nm or more; where these are no whole multiple
    of the prediction's, it is interpolated.

    Parameters
    ----------
    options
        Metrics, tolerance and clip distance.
    unannotated
        ``leave-out`` voxels that nobody annotated, or count them as ``background`` as the paper
        does.
    """
    options = options or ScoreOptions()
    usable = [c for c in crops if c.of(prediction.label) is not Annotation.UNKNOWN]
    results: list[Result] = []
    for done, crop in enumerate(usable):
        if progress is not None:
            progress(done, len(usable), crop.name)
        results += _on_crop(prediction, crop, options, unannotated)
    if progress is not None:
        progress(len(usable), len(usable), "done")
    return results


def compared_on(prediction: Prediction, crop: AnnotatedCrop) -> tuple[LazyArray, Truth]:
    """Find prediction and truth on one grid, as `validate` compares them.

    Raises
    ------
    GridError
        The prediction does not cover the crop.
    """
    annotated_nm = np.asarray(crop.grid_of(prediction.label).spacing_nm)
    wanted = np.maximum(prediction.volume.grid.spacing_nm, OUTPUT_NM)
    z, y, x = np.maximum(1, np.rint(wanted / annotated_nm)).astype(int)
    truth, known, grid = crop.truth(prediction.label, (int(z), int(y), int(x)))
    if crop.of(prediction.label) is Annotation.ABSENT:
        truth = truth & False
    return _found_on(prediction, grid), (truth, known, grid)


def _found_on(prediction: Prediction, grid: Grid) -> LazyArray:
    volume, own = prediction.volume, prediction.volume.grid
    test = nonzero if prediction.refined else at_least(prediction.threshold)
    step = np.asarray(grid.spacing_nm) / np.asarray(own.spacing_nm)
    if (np.rint(step) >= 1).all() and np.allclose(step, np.rint(step), rtol=1e-3):
        return mask_on(volume, grid, test)
    first = own.to_index(grid.origin_nm)
    axes = [a + np.arange(n) * k for a, n, k in zip(first, grid.shape, step, strict=True)]
    last = np.asarray(own.shape) - 0.5
    if any(a[0] < -0.5 or a[-1] > b for a, b in zip(axes, last, strict=True)):
        raise GridError(
            f"{prediction.path} (shape {own.shape}, origin {own.origin_nm} nm) does not cover the "
            f"voxels {grid.shape} from {grid.origin_nm} nm on",
            hint="check that both are in the same frame: `clemreg info` shows the origins",
        )
    box = Box(
        tuple(max(0, int(a[0])) for a in axes),  # type: ignore[arg-type]
        tuple(min(n, int(a[-1]) + 2) for a, n in zip(axes, own.shape, strict=True)),  # type: ignore[arg-type]
    )
    values = volume.read(box)
    if prediction.refined:
        values = values != 0
    within = [np.clip(a, 0, n - 1) - b for a, n, b in zip(axes, own.shape, box.start, strict=True)]
    even = separable_resample(values.astype(np.float32), within, (1.0, 1.0, 1.0))
    return even >= (0.5 if prediction.refined else prediction.threshold)


def _on_crop(
    prediction: Prediction, crop: AnnotatedCrop, options: ScoreOptions, unannotated: Unannotated
) -> list[Result]:
    found, (truth, known, grid) = compared_on(prediction, crop)
    scores = score_masks(
        found,
        truth & known,
        grid.spacing_nm,
        annotated=known if unannotated == "leave-out" else None,
        options=options,
    )
    return [
        Result(
            path=prediction.path,
            dataset=prediction.dataset,
            setup=prediction.setup,
            iteration=prediction.iteration,
            label=category(prediction.label).name,
            crop=crop.name.removeprefix("crop"),
            raw_dataset=prediction.raw_dataset,
            parent_path=prediction.parent_path,
            parent_dataset_id=prediction.parent_dataset_id,
            threshold=prediction.threshold,
            refined=prediction.refined,
            metric=metric,
            metric_params=metric_params(metric, options.tolerance_nm, options.clip_nm, unannotated),
            value=value,
        )
        for metric, value in scores.items()
    ]


def compare_as_published(
    results: Sequence[Result], kind: str, metric: str, mode: Mode = "test"
) -> list[dict[str, Any]]:
    """Compare what the paper compared, a row for every class and crop.

    Parameters
    ----------
    kind
        ``4nm-vs-8nm``: like networks on 4 nm EM and on simulated 8 nm EM; ``raw-vs-refined``:
        predictions and what was made of each of them; ``all-vs-many-vs-few``: 4 nm networks that
        learn all classes together, the common ones, or a few.
    mode
        ``test`` (leave one crop out) or ``validation``, see
        `clemreg.evaluate.selection.crop_scores`. Between raw and refined nothing is chosen.

    Raises
    ------
    ConfigError
        There is no such comparison.
    """
    if kind not in COMPARISONS:
        raise ConfigError(f"there is no comparison {kind!r}", hint=", ".join(COMPARISONS))
    arms: dict[str, dict[str, Arm]] = {
        "4nm-vs-8nm": {
            "4nm": lambda r: _bare(r) in FINE_SETUPS and r.raw_dataset in FINE_EM,
            "8nm": lambda r: _bare(r) in COARSE_SETUPS and r.raw_dataset == SIMULATED,
        },
        "raw-vs-refined": {"raw": lambda r: not r.refined, "refined": lambda r: r.refined},
        "all-vs-many-vs-few": {group: _of_group(group) for group in ("all", "many", "few")},
    }
    if kind == "raw-vs-refined":
        return compare_same(results, arms[kind], metric)
    return compare([r for r in results if not r.refined], arms[kind], metric, mode)


def _bare(result: Result) -> str:
    return result.setup.removeprefix("setup")


def _of_group(group: str) -> Arm:
    """4 nm networks of a group that were trained on all samples."""
    names = {s.name for s in SETUPS if s.group == group and s.input_nm == 4.0 and not s.datasets}
    return lambda r: f"setup{_bare(r)}" in names and r.raw_dataset in FINE_EM
