"""``clemreg refine-scan``: settings of the mitochondria agglomeration side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clemreg.blocks.executors import executor_named, started
from clemreg.blocks.run import Progress
from clemreg.blocks.stages import Blockwise, VolumeFile
from clemreg.errors import ConfigError, DataError
from clemreg.io.atomic import atomic_write_json, atomic_write_text
from clemreg.io.volumes import open_labels
from clemreg.measure.gather import same_grid
from clemreg.pipeline.measure import working_folder
from clemreg.pipeline.steps import one_run_at_a_time
from clemreg.refine.page import scan_page
from clemreg.refine.scan import Candidate, ScanSettings, scan
from clemreg.refine.voxels import Smoothed
from clemreg.units import given_xyz_nm
from clemreg.volume import Volume

PAGE, FIGURES = "scan.html", "scan.json"


@dataclass(frozen=True)
class ScanOptions:
    """What is tried, and how.

    Attributes
    ----------
    quantiles, thresholds
        Every pair is tried; the paper's settings lie among the defaults.
    min_volume_nm3, sigma_nm
        Smallest object; Gaussian before the watershed.
    channel, spacing
        Of the prediction.
    block, executor, workers
        As for `clemreg refine`.
    """

    quantiles: Sequence[float] = (0.25, 0.5)
    thresholds: Sequence[float] = (0.6, 0.7, 0.8, 0.875, 0.9, 0.95)
    min_volume_nm3: float = 2e7
    sigma_nm: float = 12.0
    channel: str | None = None
    spacing: str | None = None
    block: int = 128
    executor: str = "serial"
    workers: int = 1


def scan_file(
    prediction: str,
    out: Path,
    *,
    truth: str | None = None,
    options: ScanOptions | None = None,
    progress: Progress | None = None,
    json: Path | None = None,
) -> dict[str, Any]:
    """Write ``scan.html`` and ``scan.json`` to a folder; working files in it make it resumable.

    Parameters
    ----------
    prediction
        uint8 signed distances of one organelle.
    truth
        Annotated ids on the same voxels; candidates are scored with them.
    json
        File for the figures, besides ``scan.json``.

    Raises
    ------
    ConfigError
        A quantile or threshold is not between 0 and 1, or none is given.
    DataError
        The prediction is not uint8.
    GridError
        The truth has other voxels.
    """
    options = options or ScanOptions()
    _check(options)
    spacing = given_xyz_nm(options.spacing)
    file = VolumeFile(prediction, spacing, options.channel)
    volume = file.open()
    if volume.dtype != np.uint8 or volume.channels:
        raise DataError(
            f"{prediction} holds {volume.dtype}, channels {list(volume.channels)}; one channel of "
            "uint8 signed distances is needed",
            hint="--channel names it",
        )
    smoothed = Smoothed(file, volume.grid, options.sigma_nm)
    settings = ScanSettings(options.quantiles, options.thresholds, options.min_volume_nm3)
    executor = executor_named(options.executor, options.workers)
    outputs, inputs = (out / PAGE, out / FIGURES, json), (prediction, truth)
    with (
        one_run_at_a_time(out),
        working_folder(outputs, inputs, (file, options)) as given,
        started(executor) as running,
    ):
        folder = given or out
        how = Blockwise((options.block,) * 3, running, progress)
        annotated = None if truth is None else _open_truth(truth, spacing, volume)
        candidates, basins = scan(smoothed, volume.grid, settings, folder, how, annotated)
        report = {"prediction": prediction, "candidates": [to_json(c) for c in candidates]}
        channel = "" if options.channel is None else f", channel {options.channel}"
        title = f"Where to cut: {Path(prediction).name}{channel}"
        page = scan_page(title, candidates, basins, smoothed, options.min_volume_nm3)
        atomic_write_text(out / PAGE, page)
        for path in (out / FIGURES, json):
            if path is not None:
                atomic_write_json(path, report)
    return report


def to_json(candidate: Candidate) -> dict[str, Any]:
    """Plain values of a candidate."""
    scores = {name: getattr(candidate, name) for name in ("voi_split", "voi_merge", "f1")}
    return {
        "method": "components" if candidate.naive else "watershed",
        "quantile": None if candidate.naive else candidate.settings.quantile,
        "threshold": None if candidate.naive else candidate.settings.threshold,
        "objects": candidate.objects,
        "median_um3": candidate.median_um3,
        "largest_um3": candidate.largest_um3,
        **{name: value for name, value in scores.items() if value is not None},
    }


def _check(options: ScanOptions) -> None:
    for name in ("quantiles", "thresholds"):
        values = getattr(options, name)
        if not values or not all(0 <= value <= 1 for value in values):
            raise ConfigError(f"{name} must lie between 0 and 1, got {list(values)}")


def _open_truth(truth: str, spacing: Any, prediction: Volume) -> VolumeFile:
    same_grid(open_labels(truth, spacing_nm=spacing), prediction)
    return VolumeFile(truth, spacing)
