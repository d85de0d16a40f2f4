"""``clemreg validate``: predictions and annotated crops as files in, scores in a store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError, MissingError
from clemreg.evaluate.masks import sampled
from clemreg.evaluate.results import Result, ResultStore
from clemreg.evaluate.scores import ScoreOptions, Unannotated
from clemreg.io.quantise import SURFACE
from clemreg.io.volumes import open_volume
from clemreg.pipeline.train_crops import read_ids
from clemreg.pipeline.validation import Prediction, compared_on, validate
from clemreg.report.scores import LabelScores, Slice, write_score_report
from clemreg.segment.cellmap import find_cellmap_crops, open_cellmap_crop
from clemreg.segment.classes import CATEGORIES, Annotation, category
from clemreg.segment.groundtruth import (
    FINE_RAW,
    AnnotatedCrop,
    find_cosem_crops,
    open_cosem_crop,
    open_cosem_raw,
)
from clemreg.space.grid import Box
from clemreg.volume import Volume


@dataclass(frozen=True)
class CropSource:
    """Where annotated crops lie: one of `n5` and `cellmap`.

    Attributes
    ----------
    n5
        COSEM container, ``<sample>.n5``.
    cellmap
        CellMap group of ``crop<N>`` groups, ``labels/groundtruth``.
    em
        EM to show behind slices of CellMap crops; a COSEM container has its own.
    ids
        JSON file with the documents of COSEM's crop database: which ids were looked for.
    names
        Names of crops; empty: all.

    Raises
    ------
    ConfigError
        Not one of the two is given.
    """

    n5: Path | None = None
    cellmap: Path | None = None
    em: str = ""
    ids: Path | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.n5 is None) == (self.cellmap is None):
            raise ConfigError(
                "crops are read from a COSEM container or from a CellMap group",
                hint="give one of them: --n5 SAMPLE.n5, or --cellmap labels/groundtruth",
            )

    @property
    def path(self) -> Path:
        """The container or group."""
        return self.n5 or self.cellmap or Path()

    @property
    def sample(self) -> str:
        """Name of the sample: of the container that the crops lie in."""
        inside = [p for p in (self.path, *self.path.parents) if p.suffix in (".n5", ".zarr")]
        return (inside or [self.path])[0].stem

    @property
    def raw_dataset(self) -> str:
        """EM that predictions are made from, unless something else is said."""
        return FINE_RAW if self.n5 else Path(self.em).name

    def open(self) -> list[AnnotatedCrop]:
        """Open the crops."""
        if self.n5 is not None:
            ids = {} if self.ids is None else read_ids(self.ids)
            names = self.names or find_cosem_crops(self.n5)
            return [open_cosem_crop(self.n5, name, ids.get(name)) for name in names]
        names = self.names or find_cellmap_crops(self.path)
        return [open_cellmap_crop(self.path / name) for name in names]

    def open_em(self) -> Volume | None:
        """Open the EM to show; None if there is none."""
        if self.n5 is not None:
            return open_cosem_raw(self.n5)
        return open_volume(self.em, frame="em") if self.em else None


@dataclass(frozen=True)
class CropRequest:
    """Which prediction is scored on which crops.

    Attributes
    ----------
    source
        Where the crops lie.
    setup, iteration
        Network and checkpoint that made the prediction.
    labels
        Classes; empty: all channels of the prediction.
    sample
        Name of the sample; empty: that of the container.
    raw_dataset
        EM that was predicted from, inside its container; empty: the usual one.
    refined
        The prediction was cleaned up: all that is not 0 counts.
    threshold
        Foreground of a prediction that is not refined, from here on.
    unannotated
        As in `clemreg.pipeline.validation.validate`.
    options
        Metrics, tolerance and clip distance.
    """

    source: CropSource
    setup: str
    iteration: int
    labels: tuple[str, ...] = ()
    sample: str = ""
    raw_dataset: str = ""
    refined: bool = False
    threshold: float = SURFACE
    unannotated: Unannotated = "leave-out"
    options: ScoreOptions = field(default_factory=ScoreOptions)

    def prediction(self, path: str, label: str, volume: Volume) -> Prediction:
        """Return one class of the prediction."""
        return Prediction(
            volume,
            path,
            label,
            label,
            self.setup,
            self.iteration,
            self.raw_dataset or self.source.raw_dataset,
            str(self.source.path),
            self.sample or self.source.sample,
            self.refined,
            self.threshold,
        )


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
    crops = request.source.open()
    results: list[Result] = []
    for label, part in _classes(open_volume(path, frame="em"), request.labels, path):
        results += validate(
            request.prediction(path, label, part),
            crops,
            request.options,
            unannotated=request.unannotated,
            progress=progress,
        )
    if not results:
        raise MissingError(
            f"in no crop of {request.source.path} did anybody look for a class of {path}",
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


def _looked_for(crops: Sequence[AnnotatedCrop]) -> str:
    found = [
        c.name
        for c in CATEGORIES
        if any(crop.of(c.name) is not Annotation.UNKNOWN for crop in crops)
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
    crops = {crop.name.removeprefix("crop"): crop for crop in request.source.open()}
    rows, slices = [], []
    for label, part in _classes(open_volume(path, frame="em"), request.labels, path):
        mine = [r for r in results if r.label == label]
        if mine:
            rows.append(_label_scores(label, mine))
            seen = [crops[name] for name in dict.fromkeys(r.crop for r in mine)]
            slices.append(_example(request.prediction(path, label, part), seen, request.source))
    summary = (
        f"{path} by {request.setup} at {request.iteration}, on {len(crops)} crops of "
        f"{request.source.path}. Bars are means over crops."
    )
    write_score_report(page, f"Scores of {Path(path).name}", rows, slices, summary=summary)


def _label_scores(label: str, results: Sequence[Result]) -> LabelScores:
    means: dict[str, float | None] = {}
    for metric in dict.fromkeys(r.metric for r in results):
        values = [r.value for r in results if r.metric == metric and not math.isnan(r.value)]
        means[metric] = math.fsum(values) / len(values) if values else None
    dice = [r.value for r in results if r.metric == "dice" and not math.isnan(r.value)]
    return LabelScores(label, means, f"{len({r.crop for r in results})} crops", tuple(dice))


def _example(prediction: Prediction, crops: Sequence[AnnotatedCrop], source: CropSource) -> Slice:
    """Slice with most of the structure, of the crop that has most of it."""
    pairs = [(crop.name, *compared_on(prediction, crop)) for crop in crops]
    name, view, (truth, known, grid) = max(pairs, key=lambda p: int((p[2][0] & p[2][1]).sum()))
    found = np.asarray(view[grid.box.slices])
    z = int((truth | found).sum(axis=(1, 2)).argmax())
    plane = Box((z, 0, 0), (z + 1, *grid.shape[1:]))
    em = source.open_em()
    grey = None if em is None else sampled(em, grid)[plane.slices][0]
    title = f"{prediction.label}, {name}"
    return Slice(title, grid.crop(plane), grey, found[z], truth[z], known[z])
