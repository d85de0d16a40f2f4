"""Step ``report``: figures from the volumes, numbers from the steps before."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from clemreg.evaluate.landmarks import LandmarkReport
from clemreg.io.volumes import open_volume
from clemreg.pipeline.context import RunContext
from clemreg.pipeline.evaluation import evaluation_grid, landmark_report
from clemreg.pipeline.features import open_prepared
from clemreg.pipeline.light import light_channel
from clemreg.pipeline.registration import read_repeats, read_result, read_start
from clemreg.register.apply import covering_box, warp_block
from clemreg.report.figures import Overlay, to_grey, to_unit
from clemreg.report.report import ReportInputs, write_report
from clemreg.space.fits import best_affine
from clemreg.space.grid import Grid
from clemreg.space.transform import Affine, Transform
from clemreg.volume import Volume

# Voxels of a volume that figures are made of.
MOST_SHOWN = 20_000_000


def report_run(context: RunContext) -> None:
    """Write ``report.html`` and ``report.json``."""
    transform, start = read_result(context), read_start(context)
    fixed, moving = (_to_show(volume) for volume in open_prepared(context))
    box = covering_box(transform, moving.grid, fixed.grid, margin_nm=500.0)
    shown = Volume(fixed.read(box), fixed.grid.crop(box))
    landmarks = landmark_report(context, transform)
    grid, inside = evaluation_grid(context, transform)
    points = grid.points_nm().reshape(-1, 3)[inside.ravel()]
    affine = best_affine(transform, points)
    with context.progress("report") as progress:
        progress(0, 2, "figures")
        inputs = ReportInputs(
            title=context.config.output.title,
            numbers=_numbers(context),
            before=_overlay(start, shown, moving),
            after=_overlay(transform, shown, moving),
            transform=transform,
            affine=affine,
            grid=shown.grid,
            point_errors_nm=None if landmarks is None else landmarks.points.error_nm,
            determinants=transform.determinant(points),
            determinant_plane=_determinant_plane(transform, shown.grid),
            worst=_worst(landmarks),
            rater_errors_nm=_rater_errors(landmarks),
            repeats=read_repeats(context),
            predicted_error=_predicted_error(context),
            check_channel=str(context.config.lm.check_channel),
            check=_check(context),
        )
        progress(1, 2, "writing")
        write_report(inputs, context.folder)
        progress(2, 2, "done")


def _predicted_error(context: RunContext) -> Volume | None:
    path = context.path("predicted_error.zarr")
    return open_volume(path, frame="lm") if path.exists() else None


def _check(context: RunContext) -> Overlay | None:
    """Return the check channel on the registered EM; None without one, or if it is fitted."""
    lm = context.config.lm
    if lm.check_channel is None:
        return None
    whole, shifts = context.open_lm(), context.shifts_nm()
    channel = light_channel(whole, lm.check_channel, shifts)
    if channel.name in context.fitted_channels(whole):
        return None
    em = _to_show(context.open_output("warped_em.zarr", "lm"))
    light = warp_block(Affine.identity("lm", "lm"), channel, em.grid)  # has a shift of its own
    return Overlay(to_unit(light), to_grey(em.read()), em.grid)


def _to_show(volume: Volume) -> Volume:
    """Finest level of the pyramid that figures can be made of without much memory."""
    small = (v for v in volume.levels if v.grid.size <= MOST_SHOWN)
    return next(small, volume.levels[-1])


def _numbers(context: RunContext) -> dict[str, Any]:
    evaluation = json.loads(context.path("evaluation.json").read_text(encoding="utf-8"))
    found = json.loads(
        context.path("registration", "registration.json").read_text(encoding="utf-8")
    )
    timings = {f"register: {k}": v for k, v in found.pop("timings_s").items()}
    for marker in sorted(context.path("steps").glob("*.json"), key=lambda p: p.stat().st_mtime):
        record = json.loads(marker.read_text(encoding="utf-8"))
        timings.setdefault(marker.stem, record["seconds"])
    return {**evaluation, **found, "timings_s": timings, "provenance": context.provenance()}


def _overlay(transform: Transform, shown: Volume, moving: Volume) -> Overlay:
    em = warp_block(transform, moving, shown.grid)
    return Overlay(to_unit(shown.read()), to_unit(em), shown.grid)


def _determinant_plane(transform: Transform, grid: Grid) -> np.ndarray:
    """Compute the determinant (y, x) in the middle plane, every fourth voxel."""
    z = grid.shape[0] // 2
    y, x = np.arange(0, grid.shape[1], 4), np.arange(0, grid.shape[2], 4)
    index = np.stack(np.meshgrid([z], y, x, indexing="ij"), -1)
    values = transform.determinant(grid.to_world(index).reshape(-1, 3))
    return values.reshape(len(y), len(x))


def _rater_errors(landmarks: LandmarkReport | None) -> dict[str, np.ndarray]:
    """Error of every landmark against each person, in nm of the EM frame."""
    if landmarks is None:
        return {}
    return {name: points.error_nm for name, points in landmarks.points_by_rater.items()}


def _worst(landmarks: LandmarkReport | None, count: int = 5) -> tuple[tuple[Any, ...], ...]:
    if landmarks is None:
        return ()
    points = landmarks.points
    order = np.argsort(-points.error_nm)[:count]
    return tuple(
        (points.names[i], float(points.error_nm[i]), *map(float, points.difference_nm[i]))
        for i in order
    )
