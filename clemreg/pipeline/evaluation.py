"""Step ``evaluate``: every number of the report."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import ConfigError, ConvergenceError
from clemreg.evaluate.compare import compare_transforms
from clemreg.evaluate.jacobian import evaluate_jacobian
from clemreg.evaluate.landmarks import LandmarkReport, evaluate_landmarks
from clemreg.evaluate.stability import evaluate_stability
from clemreg.io.atomic import atomic_write_json
from clemreg.io.points import read_landmarks
from clemreg.io.transforms import read_transform
from clemreg.io.volumes import open_volume, write_volume
from clemreg.pipeline.context import RunContext
from clemreg.pipeline.features import moving_options, open_prepared
from clemreg.pipeline.halves import (
    halves_summary,
    predicted_error,
    read_halves,
    suggested_landmarks,
)
from clemreg.pipeline.light import light_channel
from clemreg.pipeline.overlap import held_out_overlap, overlaps
from clemreg.pipeline.register import imaged_part, split_channel
from clemreg.pipeline.registration import read_repeats, read_result, read_start
from clemreg.register.features import Kind
from clemreg.register.structure import structure
from clemreg.space.grid import Grid
from clemreg.space.inverse import round_trip_nm
from clemreg.space.transform import FloatArray, Transform
from clemreg.units import parse_xyz_nm
from clemreg.volume import Volume


def evaluate_run(context: RunContext) -> None:
    """Write ``evaluation.json``: landmarks, Jacobian, round trip, stability, overlap, truth.

    And ``predicted_error.zarr``, if halves of the mitochondria were registered.
    """
    transform = read_result(context)
    grid, inside = evaluation_grid(context, transform)
    points = grid.points_nm().reshape(-1, 3)[inside.ravel()]
    parts: dict[str, Any] = {}
    with context.progress("evaluate") as progress:
        progress(0, 6, "landmarks")
        landmarks = landmark_report(context, transform)
        if landmarks is not None:
            parts["landmarks"] = landmarks.to_json()
        progress(1, 6, "Jacobian determinant")
        parts["jacobian"] = evaluate_jacobian(transform, grid, inside).to_json()
        progress(2, 6, "round trip")
        parts["round_trip_nm"] = _round_trip(transform, points)
        progress(3, 6, "stability")
        parts["stability"] = _stability(context, transform, points)
        parts["stability"] = _with_halves(context, parts["stability"], transform, (grid, inside))
        progress(4, 6, "overlap")
        parts["overlap"] = _overlap(context, transform)
        progress(5, 6, "truth")
        parts["truth"] = _truth(context, transform, grid, inside)
        atomic_write_json(context.path("evaluation.json"), parts)
        progress(6, 6, "done")


def evaluation_grid(context: RunContext, transform: Transform) -> tuple[Grid, NDArray[np.bool_]]:
    """Coarse LM grid (about 200 nm) and which of its voxels lie in the imaged EM."""
    return imaged_part(context.open_lm().grid, context.open_em().grid, transform)


def landmark_report(context: RunContext, transform: Transform) -> LandmarkReport | None:
    """Evaluate the configured landmarks; None if there are none."""
    proof = context.config.proof
    path = context.input(proof.landmarks)
    if path is None:
        return None
    return evaluate_landmarks(
        transform,
        read_landmarks(path),
        raters=proof.raters,
        fixed_offset_nm=_landmark_offset_nm(context),
    )


def _landmark_offset_nm(context: RunContext) -> tuple[float, float, float]:
    """Offset zyx that is added to the LM side of the landmarks."""
    offset = context.config.proof.fixed_offset
    return parse_xyz_nm(offset) if offset else (0.0, 0.0, 0.0)


def _round_trip(transform: Transform, points: FloatArray) -> dict[str, float] | None:
    sample = points[:: max(1, len(points) // 5000)]
    try:
        distance = round_trip_nm(transform, sample)
    except ConvergenceError:
        return None  # it folds; the Jacobian says where, and the verdict is "fail"
    return {"mean": float(distance.mean()), "max": float(distance.max())}


def _stability(
    context: RunContext, transform: Transform, points: FloatArray
) -> dict[str, Any] | None:
    repeats = read_repeats(context)
    if not repeats:
        return None
    sample = points[:: max(1, len(points) // 20_000)]
    return evaluate_stability([transform, *repeats], sample).to_json()


def _with_halves(
    context: RunContext,
    stability: dict[str, Any] | None,
    transform: Transform,
    where: tuple[Grid, NDArray[np.bool_]],
) -> dict[str, Any] | None:
    """Add what halves of the mitochondria say, and write the map of the predicted error."""
    target = context.path("predicted_error.zarr")
    shutil.rmtree(target, ignore_errors=True)
    pairs = read_halves(context.path("registration"))
    grid, inside = where
    if not pairs or not inside.any():
        return stability
    found = predicted_error(pairs, (transform, *read_repeats(context)), grid, inside)
    write_volume(target, found)
    at = found.grid.points_nm()[np.isfinite(found.read())]
    return {
        **(stability or dict.fromkeys(("seeds", "rms_nm", "p95_nm"))),
        "halves": halves_summary(pairs, at),
        "suggested_landmarks": suggested_landmarks(found),
    }


def _overlap(context: RunContext, transform: Transform) -> dict[str, Any]:
    """Agreement of the registered images at the start pose and at the end, and of others.

    That of the registered ones shows that the fit worked, not that it is right: they drove it.
    """
    fixed, moving = open_prepared(context)
    poses = {"start": read_start(context), "result": transform}
    options, found = moving_options(context.config.register_), {}
    for text in context.config.proof.overlap:
        name, _, _ = split_channel(text)
        lm, em, kind = open_held_out(context, text)
        found[name] = held_out_overlap(transform, lm, em, replace(options, kind=kind))
    return {**overlaps(fixed, moving, poses), **({"held_out": found} if found else {})}


def open_held_out(context: RunContext, text: str) -> tuple[Volume, Volume, Kind]:
    """Open what an entry of ``proof.overlap`` names: light channel, EM structure and its kind.

    Raises
    ------
    ConfigError
        The channel drives the registration.
    ClemregError
        The entry is not of the form ``CHANNEL=EM_VOLUME``, or one of them is not there.
    """
    name, path, _ = split_channel(text)
    whole = context.open_lm()
    lm = light_channel(whole, name, context.shifts_nm())
    if lm.name in context.fitted_channels(whole):
        raise ConfigError(
            f"channel {name!r} is registered: what is fitted proves nothing",
            hint="name one that is neither lm.channel nor in register.channels",
        )
    em = open_volume(context.input(path) or path, frame="em")
    em, kind = structure(em, lm.name if whole.channels else None)
    return lm, em, kind


def _truth(
    context: RunContext, transform: Transform, grid: Grid, inside: NDArray[np.bool_]
) -> dict[str, float] | None:
    """Distance to the true transform everywhere in the imaged EM (simulated data only)."""
    path = context.input(context.config.proof.truth)
    if path is None:
        return None
    distance = compare_transforms(read_transform(path), transform, grid, inside).distance
    keys = ("mean_nm", "median_nm", "p95_nm", "max_nm")
    return {f"tre_{key}": float(getattr(distance, key)) for key in keys}
