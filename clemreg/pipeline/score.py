"""``clemreg score``: a prediction and the truth as files in, the metrics out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError, DataError, MissingError, VoxelSizeError
from clemreg.evaluate.instances import score_instances
from clemreg.evaluate.masks import (
    MaskView,
    Test,
    at_least,
    common_grid,
    foreground,
    mask_on,
    nonzero,
    one_of,
    require_clear,
    same_voxels,
    sampled,
)
from clemreg.evaluate.scores import ScoreOptions, Unannotated, score_masks, to_json
from clemreg.io.quantise import SURFACE
from clemreg.io.volumes import open_volume
from clemreg.report.scores import LabelScores, Slice, write_score_report
from clemreg.segment.classes import Category, category
from clemreg.segment.sdt import grow
from clemreg.space.grid import Box, Grid
from clemreg.units import given_xyz_nm
from clemreg.volume import LazyArray, Volume


@dataclass(frozen=True)
class ScoreRequest:
    """What to score, and how.

    Attributes
    ----------
    spacing
        Voxel size ``"x, y, z unit"`` of files that have none.
    label
        Class, if the truth holds the atomic ids of COSEM (0: not annotated); empty: the truth
        is a mask, or objects.
    channel
        Channel of the prediction; empty: the one called `label`, or the only one.
    threshold
        Foreground of the prediction from this value on; None: 127 in uint8 signed distances,
        else all but 0. A uint8 channel with the name of a class is a signed distance.
    annotated
        Mask file of the voxels whose truth is known.
    unannotated
        ``leave-out`` voxels that nobody annotated, or count them as ``background`` as the paper
        does.
    options
        Metrics, tolerance and clip distance.
    holds
        ``objects``: the prediction holds ids, whatever they look like.
    """

    spacing: str | None = None
    label: str = ""
    channel: str = ""
    threshold: float | None = None
    annotated: Path | None = None
    unannotated: Unannotated = "leave-out"
    options: ScoreOptions = field(default_factory=ScoreOptions)
    holds: Literal["anything", "objects"] = "anything"


def score_files(
    prediction: str, truth: str, request: ScoreRequest, *, progress: Progress | None = None
) -> dict[str, float | None]:
    """Score a predicted mask or signed distance; None stands for NaN.

    Raises
    ------
    ConfigError
        The prediction has several channels and none is named, or may be a signed distance or
        ids; a metric or class is not known.
    GridError
        The voxels of the two do not fit.
    """
    compared = _Compared.of(prediction, truth, request)
    scores = score_masks(
        compared.prediction,
        compared.truth,
        compared.grid.spacing_nm,
        annotated=compared.annotated,
        options=request.options,
        progress=progress,
    )
    return to_json(scores)


def report_scores(
    prediction: str,
    truth: str,
    request: ScoreRequest,
    scores: Mapping[str, float | None],
    page: Path,
    em: str = "",
) -> None:
    """Write a page with the scores and the slice that holds most of the structure.

    Parameters
    ----------
    scores
        What `score_files` gave.
    em
        EM volume behind the slice; empty: none.

    Raises
    ------
    GridError
        The EM does not lie on the voxels of the prediction.
    """
    compared = _Compared.of(prediction, truth, request)
    spacing = " x ".join(f"{s:g}" for s in compared.grid.spacing_nm[::-1])
    write_score_report(
        page,
        f"Scores of {compared.name}",
        [LabelScores(compared.name, dict(scores))],
        [compared.fullest_slice(_behind(em, request))],
        summary=f"{prediction} against {truth}; voxels of {spacing} nm (x, y, z).",
    )


def _behind(em: str, request: ScoreRequest) -> Volume | None:
    return _opened(em, request) if em else None


def _opened(path: str | Path, request: ScoreRequest) -> Volume:
    """Open a file; the voxel size that was given counts if the file has none."""
    spacing = given_xyz_nm(request.spacing)
    try:
        return open_volume(path)
    except VoxelSizeError:
        if spacing is None:
            raise
        return open_volume(path, spacing_nm=spacing)


@dataclass(frozen=True, eq=False)
class _Compared:
    """Prediction and truth as masks on the voxels that both have."""

    name: str
    grid: Grid
    prediction: MaskView
    truth: MaskView
    annotated: LazyArray | None

    @classmethod
    def of(cls, prediction: str, truth: str, request: ScoreRequest) -> _Compared:
        opened = _opened(prediction, request)
        found, true, grid = _open(opened, truth, request)
        test = _foreground(found, found.name if opened.channels else "", request)
        kind = category(request.label) if request.label else None
        return cls(
            kind.name if kind else found.name,
            grid,
            mask_on(found, grid, test),
            _truth_mask(true, grid, kind),
            _annotated(true, grid, kind, request),
        )

    def fullest_slice(self, em: Volume | None) -> Slice:
        """Return the slice across z that holds most of prediction and truth together."""

        def filled(z: int) -> int:
            where = _plane(self.grid, z).slices
            return int((self.prediction[where] | self.truth[where]).sum())

        box = _plane(self.grid, max(range(self.grid.shape[0]), key=filled))
        known = np.ones(box.shape) if self.annotated is None else self.annotated[box.slices]
        return Slice(
            self.name,
            self.grid.crop(box),
            None if em is None else sampled(em, self.grid)[box.slices][0],
            self.prediction[box.slices][0],
            self.truth[box.slices][0],
            np.asarray(known)[0] != 0,
        )


def _plane(grid: Grid, z: int) -> Box:
    return Box((z, 0, 0), (z + 1, *grid.shape[1:]))


def score_instance_files(prediction: str, truth: str, request: ScoreRequest) -> dict[str, Any]:
    """Score predicted objects, ids in both files, object by object.

    Raises
    ------
    DataError
        A file does not hold whole numbers.
    GridError
        The voxels of the two do not fit.
    """
    found, true, grid = _open(_opened(prediction, request), truth, request)
    if grid.shape != true.shape or grid.shape != found.shape:
        raise DataError(
            f"objects are compared voxel by voxel, but the prediction is {found.shape} and the "
            f"truth {true.shape}",
            hint="cut or resample one onto the voxels of the other",
        )
    annotated = _annotated(true, grid, None, request)
    return score_instances(found.data, true.data, annotated=annotated).to_json()


def _open(prediction: Volume, truth: str, request: ScoreRequest) -> tuple[Volume, Volume, Grid]:
    found = _channel(prediction, request)
    try:
        true = _opened(truth, request)
    except VoxelSizeError:
        # A mask without voxel size on the prediction's own voxels: its shape is the proof.
        true = open_volume(truth, spacing_nm=found.grid.spacing_nm)
        if true.shape != found.shape:
            raise
    true = _single(true, truth)
    grid = common_grid(found, true)
    if grid == found.grid and same_voxels(grid, true.grid):
        true = replace(true, grid=grid, coarser=())
    return found, true, grid


def _single(volume: Volume, path: str | Path) -> Volume:
    if len(volume.channels) > 1:
        raise ConfigError(
            f"{path} has channels {', '.join(volume.channels)}; one volume is expected",
            hint="save the channel that is meant as a volume of its own",
        )
    return volume.channel(0)


def _channel(volume: Volume, request: ScoreRequest) -> Volume:
    if not volume.channels:
        return volume
    if request.channel:
        return volume.channel(request.channel)
    if len(volume.channels) == 1:
        return volume.channel(0)
    if request.label:
        names = {_known_name(c): c for c in volume.channels}
        wanted = category(request.label).name
        if wanted in names:
            return volume.channel(names[wanted])
    raise ConfigError(
        f"{volume.name} has channels {', '.join(volume.channels)}",
        hint=f"choose one: --channel {volume.channels[0]}",
    )


def _known_name(channel: str) -> str:
    try:
        return category(channel).name
    except FileNotFoundError:
        return channel


def _is_class(channel: str) -> bool:
    try:
        return bool(category(channel))
    except MissingError:
        return False


def _foreground(found: Volume, channel: str, request: ScoreRequest) -> Test:
    """Test for the foreground of a prediction that was a channel (empty: that has none)."""
    if request.threshold is not None or found.dtype != np.uint8:
        return foreground(found, request.threshold)
    if request.holds == "objects":
        return nonzero
    # What `clemreg segment` writes, also where it found nothing.
    if _is_class(channel):
        require_clear(found, "distance")
        return at_least(SURFACE)
    require_clear(found, "anything")
    return foreground(found)


def _truth_mask(truth: Volume, grid: Grid, kind: Category | None) -> MaskView:
    if kind is None:
        return mask_on(truth, grid, nonzero)
    if kind.grown_nm:
        # Drawn too small: grown at the voxels of the annotation, as for training.
        mask = grow(np.isin(truth.read(), kind.ids), kind.grown_nm, truth.grid.spacing_nm)
        return mask_on(replace(truth, data=mask, coarser=()), grid, nonzero)
    return mask_on(truth, grid, one_of(kind.ids))


def _annotated(
    truth: Volume, grid: Grid, kind: Category | None, request: ScoreRequest
) -> LazyArray | None:
    if request.unannotated == "background":
        return None
    if request.annotated is not None:
        return mask_on(_known(request.annotated, truth, request), grid, nonzero)
    if kind is None:
        return None
    if kind.separate:
        raise ConfigError(
            f"{kind.name} are annotated in a label set of their own, which does not say where "
            "nobody looked",
            hint="add --annotated CROP/labels/all, or --unannotated background",
        )
    return mask_on(truth, grid, nonzero)


def _known(path: Path, truth: Volume, request: ScoreRequest) -> Volume:
    """Open the mask of what is known; without voxel size or origin it lies on the truth's voxels.

    Of what it lacks, its shape is the proof.
    """
    try:
        mask = open_volume(path)
    except VoxelSizeError:
        mask = open_volume(path, spacing_nm=truth.grid.spacing_nm)
        if mask.shape[-3:] != truth.shape:
            mask = _opened(path, request)
    mask = _single(mask, path)
    stated = any(mask.grid.origin_nm) and any(truth.grid.origin_nm)
    if same_voxels(mask.grid, truth.grid) and not stated:
        return replace(mask, grid=truth.grid, coarser=())
    return mask
