"""``clemreg validate``: predictions and annotated crops as files in, scores in a store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clemreg.blocks.run import Progress
from clemreg.errors import MissingError
from clemreg.evaluate.masks import at_least, mask_on, nonzero, sampled
from clemreg.evaluate.results import Result, ResultStore
from clemreg.evaluate.scores import ScoreOptions, Unannotated
from clemreg.io.quantise import SURFACE
from clemreg.io.volumes import open_volume
from clemreg.pipeline.train_crops import read_ids
from clemreg.pipeline.validation import Prediction, validate
from clemreg.report.scores import LabelScores, Slice, write_score_report
from clemreg.segment.classes import CATEGORIES, Annotation, category
from clemreg.segment.groundtruth import (
    FINE_RAW,
    CosemCrop,
    find_cosem_crops,
    open_cosem_crop,
    open_cosem_raw,
)
from clemreg.space.grid import Box
from clemreg.volume import Volume


@dataclass(frozen=True)
class CropRequest:
    """Which prediction is scored on which crops.

    Attributes
    ----------
    n5
        Container of the crops, ``<sample>.n5``.
    setup, iteration
        Network and checkpoint that made the prediction.
    crops
        Names of crops; empty: all.
    labels
        Classes; empty: all channels of the prediction.
    ids
        JSON file with the documents of the crop database: which ids were looked for.
    sample
        Name of the sample; empty: that of the container.
    raw_dataset
        EM that was predicted from, inside its container.
    refined
        The prediction was cleaned up: all that is not 0 counts.
    threshold
        Foreground of a prediction that is not refined, from here on.
    unannotated
        As in `clemreg.pipeline.validation.validate`.
    options
        Metrics, tolerance and clip distance.
    """

    n5: Path
    setup: str
    iteration: int
    crops: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    ids: Path | None = None
    sample: str = ""
    raw_dataset: str = FINE_RAW
    refined: bool = False
    threshold: float = SURFACE
    unannotated: Unannotated = "leave-out"
    options: ScoreOptions = field(default_factory=ScoreOptions)


def score_on_crops(
    path: str, request: CropRequest, *, progress: Progress | None = None
) -> list[Result]:
    """Score every class of a prediction on every crop where somebody looked for it.

    Parameters
    ----------
    path
        The prediction: one channel a class, or one class.

    Raises
    ------
    MissingError
        A class is no channel, or in no crop did anybody look for any of them.
    """
    crops = _crops(request)
    results: list[Result] = []
    for label, part in _classes(open_volume(path, frame="em"), request.labels, path):
        prediction = Prediction(
            part,
            path,
            label,
            label,
            request.setup,
            request.iteration,
            request.raw_dataset,
            str(request.n5),
            request.sample or request.n5.stem,
            request.refined,
            request.threshold,
        )
        results += validate(
            prediction,
            crops,
            request.options,
            unannotated=request.unannotated,
            progress=progress,
        )
    if not results:
        raise MissingError(
            f"in no crop of {request.n5} did anybody look for a class of {path}",
            hint=_looked_for(crops),
        )
    return results


def _crops(request: CropRequest) -> list[CosemCrop]:
    ids = {} if request.ids is None else read_ids(request.ids)
    names = request.crops or find_cosem_crops(request.n5)
    return [open_cosem_crop(request.n5, name, ids.get(name)) for name in names]


def _classes(volume: Volume, wanted: Sequence[str], path: str) -> list[tuple[str, Volume]]:
    """Classes of a prediction by clemreg's names."""
    if not volume.channels:
        if len(wanted) != 1:
            raise MissingError(
                f"{path} has no channels, so it is one class", hint="say which: --label mito"
            )
        return [(category(wanted[0]).name, volume)]
    channels = {category(name).name: name for name in volume.channels}
    chosen = [category(name).name for name in wanted] or list(channels)
    absent = [name for name in chosen if name not in channels]
    if absent:
        raise MissingError(
            f"{path} has no channel {absent[0]}", hint=f"it has: {', '.join(volume.channels)}"
        )
    return [(name, volume.channel(channels[name])) for name in chosen]


def _looked_for(crops: Sequence[CosemCrop]) -> str:

    found = [
        c.name
        for c in CATEGORIES
        if any(crop.ids.of(c) is not Annotation.UNKNOWN for crop in crops)
    ]
    return f"looked for: {', '.join(found) or 'nothing'}; --ids FILE says what else"


def keep_scores(store: Path, results: Sequence[Result], replace_old: bool) -> int:
    """Add scores to a store; return how many are new or were replaced."""
    kept = ResultStore(store)
    if replace_old:
        kept.replace(results)
        return len(results)
    return kept.add(results)


def rows_by_class(results: Sequence[Result], metric: str) -> list[dict[str, Any]]:
    """One metric, a row for every class and crop."""
    return [
        {"label": r.label, "crop": r.crop, metric: r.value} for r in results if r.metric == metric
    ]


def report_on_crops(path: str, request: CropRequest, results: Sequence[Result], page: Path) -> None:
    """Write a page: bars for every class, dots for its crops, and an example slice.

    Parameters
    ----------
    path, request
        As for `score_on_crops`.
    results
        What it returned.
    """
    crops = {crop.name.removeprefix("crop"): crop for crop in _crops(request)}
    rows, slices = [], []
    for label, part in _classes(open_volume(path, frame="em"), request.labels, path):
        mine = [r for r in results if r.label == label]
        if mine:
            rows.append(_label_scores(label, mine))
            seen = [crops[name] for name in dict.fromkeys(r.crop for r in mine)]
            slices.append(_example(label, part, seen, request))
    summary = (
        f"{path} by {request.setup} at {request.iteration}, on {len(crops)} crops of {request.n5}. "
        f"Bars are means over crops."
    )
    write_score_report(page, f"Scores of {Path(path).name}", rows, slices, summary=summary)


def _label_scores(label: str, results: Sequence[Result]) -> LabelScores:
    means: dict[str, float | None] = {}
    for metric in dict.fromkeys(r.metric for r in results):
        values = [r.value for r in results if r.metric == metric and not math.isnan(r.value)]
        means[metric] = math.fsum(values) / len(values) if values else None
    dice = [r.value for r in results if r.metric == "dice" and not math.isnan(r.value)]
    return LabelScores(label, means, f"{len({r.crop for r in results})} crops", tuple(dice))


def _example(label: str, part: Volume, crops: Sequence[CosemCrop], request: CropRequest) -> Slice:
    """Slice with most of the structure, of the crop that has most of it."""
    truths = [(crop, *crop.truth(label)) for crop in crops]
    crop, truth, known, grid = max(truths, key=lambda t: int((t[1] & t[2]).sum()))
    test = nonzero if request.refined else at_least(request.threshold)
    found = mask_on(part, grid, test)[grid.box.slices]
    z = int((truth | found).sum(axis=(1, 2)).argmax())
    plane = Box((z, 0, 0), (z + 1, *grid.shape[1:]))
    em = sampled(open_cosem_raw(request.n5), grid)[plane.slices][0]
    name = f"{label}, {crop.name}"
    return Slice(name, grid.crop(plane), em, found[z], truth[z], known[z])
