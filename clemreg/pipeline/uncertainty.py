"""``clemreg evaluate uncertainty``: the error of a fit to landmarks, predicted everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import ConfigError, DataError
from clemreg.evaluate.uncertainty import (
    LandmarkUncertainty,
    Model,
    error_map,
    rater_noise_nm,
    suggest_landmarks_nm,
)
from clemreg.io.volumes import write_volume
from clemreg.io.xyz import flip
from clemreg.space.grid import Grid, Triple
from clemreg.space.landmarks import Landmarks
from clemreg.space.transform import FloatArray, Transform

_PLACES = 5_000


@dataclass(frozen=True)
class UncertaintyCommand:
    """What ``clemreg evaluate uncertainty`` was told.

    Attributes
    ----------
    transform
        LM to EM.
    landmarks
        Those that would be fitted.
    rater, second_rater
        Whose landmarks; with two, the noise is estimated from their disagreement.
    noise_nm
        Standard deviation zyx of a landmark, if it is known.
    model
        Transform that would be fitted.
    """

    transform: Transform
    landmarks: Landmarks
    rater: str | None = None
    second_rater: str | None = None
    noise_nm: Triple | None = None
    model: Model = "affine"


def predict_error(
    command: UncertaintyCommand,
    grid: Grid,
    mask: NDArray[Any] | None,
    *,
    count: int = 3,
    out: Path | None = None,
) -> dict[str, Any]:
    """Predict the error over the LM grid and suggest landmarks; optionally write the map.

    Raises
    ------
    ConfigError
        The model is unknown, or nothing says what the noise is, or it says that there is none.
    DataError
        The rater has no landmarks, or there is none.
    """
    if command.model not in ("rigid", "similarity", "affine"):
        raise ConfigError(
            f"unknown model {command.model!r}", hint="use rigid, similarity or affine"
        )
    if not command.landmarks.rater:
        raise DataError("the table of landmarks has no rows")
    rater = command.rater if command.rater is not None else command.landmarks.rater[0]
    noise = _noise(command, rater)
    mine = np.array([name == rater for name in command.landmarks.rater])
    mine &= np.asarray(command.landmarks.active)
    points = command.landmarks.em_nm[mine & np.isfinite(command.landmarks.em_nm).all(axis=1)]
    if not len(points):
        raise DataError(f"there are no active landmarks of rater {rater!r}")
    known = LandmarkUncertainty(points, noise, command.model)
    found = error_map(lambda lm: known.error_nm(command.transform(lm)), grid, mask)
    values = found.read()[np.isfinite(found.read())]
    if out is not None:
        write_volume(out, found)
    coarse = error_map(lambda lm: known.error_nm(command.transform(lm)), grid, mask, n=_PLACES)
    inside = np.isfinite(coarse.read())
    lm_places = coarse.grid.points_nm()[inside]
    places, remaining = suggest_landmarks_nm(known, command.transform(lm_places), count)
    return {
        "n": len(points),
        "noise_nm": np.asarray(noise).tolist(),
        "mean_nm": float(values.mean()),
        "p95_nm": float(np.percentile(values, 95)),
        "max_nm": float(values.max()),
        "add_landmarks_em_um": [_um(place) for place in places],
        "max_after_nm": remaining.tolist(),
    }


def _um(place_nm: FloatArray) -> list[float]:
    """x, y, z in um, as people type it."""
    return [round(float(v), 4) for v in flip(place_nm) / 1e3]


def _noise(command: UncertaintyCommand, rater: str) -> FloatArray:
    if command.noise_nm is not None:
        if not min(command.noise_nm) > 0:
            raise ConfigError("--noise must be positive along each axis")
        return np.asarray(command.noise_nm, dtype=np.float64)
    if command.second_rater == rater:
        raise ConfigError(
            f"the landmarks of {rater!r} say nothing of their own noise",
            hint="name another person: --second-rater",
        )
    if command.second_rater is not None:
        return rater_noise_nm(command.landmarks, rater, command.second_rater)
    raise ConfigError(
        "nothing says how far off a landmark is",
        hint='give --noise "20, 20, 60 nm", or a --second-rater',
    )
