"""Score predictions on annotated crops, keep the scores, compare what the paper compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError
from clemreg.evaluate.masks import at_least, mask_on, nonzero
from clemreg.evaluate.results import Result, metric_params
from clemreg.evaluate.scores import ScoreOptions, Unannotated, score_masks
from clemreg.evaluate.selection import Arm, Mode, compare
from clemreg.io.quantise import SURFACE
from clemreg.segment.classes import Annotation, category
from clemreg.segment.groundtruth import FINE_RAW, PHASES, CosemCrop
from clemreg.segment.setups import SETUPS
from clemreg.volume import Volume

SIMULATED = f"{PHASES}/0"
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
    crops: Sequence[CosemCrop],
    options: ScoreOptions | None = None,
    *,
    unannotated: Unannotated = "leave-out",
    progress: Progress | None = None,
) -> list[Result]:
    """Score a prediction on every crop where its class was looked for.

    A crop where the class was looked for and is not there counts as empty truth, whatever its
    voxels hold, as in the paper.

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


def _on_crop(
    prediction: Prediction, crop: CosemCrop, options: ScoreOptions, unannotated: Unannotated
) -> list[Result]:
    truth, known, grid = crop.truth(prediction.label)
    if crop.of(prediction.label) is Annotation.ABSENT:
        truth = truth & False
    test = nonzero if prediction.refined else at_least(prediction.threshold)
    scores = score_masks(
        mask_on(prediction.volume, grid, test),
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
            metric_params=metric_params(metric, options.tolerance_nm, options.clip_nm),
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
        predictions and what was made of them; ``all-vs-many-vs-few``: 4 nm networks that learn
        all classes together, the common ones, or a few.
    mode
        ``test`` (leave one crop out) or ``validation``, see
        `clemreg.evaluate.selection.crop_scores`.

    Raises
    ------
    ConfigError
        There is no such comparison.
    """
    if kind not in COMPARISONS:
        raise ConfigError(f"there is no comparison {kind!r}", hint=", ".join(COMPARISONS))
    arms: dict[str, dict[str, Arm]] = {
        "4nm-vs-8nm": {
            "4nm": lambda r: _bare(r) in FINE_SETUPS and r.raw_dataset == FINE_RAW,
            "8nm": lambda r: _bare(r) in COARSE_SETUPS and r.raw_dataset == SIMULATED,
        },
        "raw-vs-refined": {"raw": lambda r: not r.refined, "refined": lambda r: r.refined},
        "all-vs-many-vs-few": {group: _of_group(group) for group in ("all", "many", "few")},
    }
    raw_only = results if kind == "raw-vs-refined" else [r for r in results if not r.refined]
    return compare(raw_only, arms[kind], metric, mode)


def _bare(result: Result) -> str:
    return result.setup.removeprefix("setup")


def _of_group(group: str) -> Arm:
    """4 nm networks of a group that were trained on all samples."""
    names = {s.name for s in SETUPS if s.group == group and s.input_nm == 4.0 and not s.datasets}
    return lambda r: f"setup{_bare(r)}" in names and r.raw_dataset == FINE_RAW
