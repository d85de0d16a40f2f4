"""``clemreg validate``: predictions and annotated crops as files in, scores in a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clemreg.blocks.run import Progress
from clemreg.errors import MissingError
from clemreg.evaluate.results import Result, ResultStore
from clemreg.evaluate.scores import ScoreOptions
from clemreg.io.quantise import SURFACE
from clemreg.io.volumes import open_volume
from clemreg.pipeline.train_crops import read_ids
from clemreg.pipeline.validation import Prediction, Unannotated, validate
from clemreg.segment.classes import Annotation, category
from clemreg.segment.groundtruth import FINE_RAW, CosemCrop, find_cosem_crops, open_cosem_crop
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
    ids = {} if request.ids is None else read_ids(request.ids)
    names = request.crops or find_cosem_crops(request.n5)
    crops = [open_cosem_crop(request.n5, name, ids.get(name)) for name in names]
    volume = open_volume(path, frame="em")
    results: list[Result] = []
    for label, part in _classes(volume, request.labels, path):
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
    from clemreg.segment.classes import CATEGORIES

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
