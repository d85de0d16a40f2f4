"""Voxel sizes and fields that cannot be, or seldom are: seen before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import VoxelSizeError
from clemreg.register.features import LEAST_VOXELS
from clemreg.units import format_length
from clemreg.volume import Volume

# What people have when the numbers are right; outside of it a unit is probably wrong.
EM_VOXEL_NM = (1.0, 100.0)
SEGMENTATION_VOXEL_NM = (1.0, 300.0)  # may be coarser than what it was made from
LM_VOXEL_NM = (10.0, 2000.0)
# Slices are thicker than pixels are wide, by at most this.
ANISOTROPY = (0.5, 20.0)
SQUARE = 1.05
# Tissue shrinks by a few per cent and the fields may differ; more than this is a unit error.
FIELD_RATIO = (1 / 20, 20.0)
_BEYOND_VOXELS = 2.0  # a coarse prediction may be padded to whole voxels
_OVERRIDE = "override voxel_size in the configuration, or with --fixed-spacing, --moving-spacing"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    status
        ``"ok"``, ``"warning"`` or ``"error"``.
    subject, text, hint
        What was looked at, what was found, what to do.
    """

    status: Literal["ok", "warning", "error"]
    subject: str
    text: str
    hint: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@contextmanager
def hinting(option: str) -> Iterator[None]:
    """Name the option of a command that gives a voxel size which a file does not."""
    try:
        yield
    except VoxelSizeError as error:
        raise VoxelSizeError(error.message, hint=f'give it: {option} "x, y, z nm"') from error


def suspicious_voxels(em: Volume, lm: Volume) -> tuple[str, ...]:
    """Say what is unusual about the voxels of an EM segmentation and of a light volume.

    Raises
    ------
    VoxelSizeError
        Something cannot be right.
    """
    findings = (
        check_voxels("EM", em, SEGMENTATION_VOXEL_NM),
        check_voxels("LM", lm, LM_VOXEL_NM),
        check_fields(em, lm),
        check_roles(em, lm),
    )
    for finding in findings:
        if finding.status == "error":
            raise VoxelSizeError(f"{finding.subject}: {finding.text}", hint=finding.hint)
    return sentences(findings)


def sentences(findings: Iterable[Finding]) -> tuple[str, ...]:
    """Say each warning in a sentence."""
    unusual = [f for f in findings if f.status == "warning"]
    return tuple(f"{f.subject}: {f.text}; {f.hint}".rstrip(".") + _stop(f.hint) for f in unusual)


def check_voxels(name: str, volume: Volume, usual_nm: tuple[float, float]) -> Finding:
    """Compare a voxel size with what such microscopes have."""
    spacing = volume.grid.spacing_nm
    text = "voxel x, y, z = " + ", ".join(format_length(s) for s in spacing[::-1])
    low, high = usual_nm
    if min(spacing) < low or max(spacing) > high:
        factor = low / min(spacing) if min(spacing) < low else max(spacing) / high
        return Finding(
            "error" if factor > 30 else "warning",
            name,
            f"{text}; usual for {name} is {format_length(low)} to {format_length(high)}",
            f"the unit may be wrong (nm against um); {_OVERRIDE}",
        )
    return _check_shape(name, text, spacing)


def _check_shape(name: str, text: str, spacing_nm: tuple[float, float, float]) -> Finding:
    """Compare the axes of a voxel with each other."""
    z, y, x = spacing_nm
    ratio = z / np.sqrt(y * x)
    hint = f"were the axes read in the right order? {_OVERRIDE}"
    if max(x / y, y / x) > SQUARE:
        return Finding("warning", name, f"{text}; pixels are usually square", hint)
    if not ANISOTROPY[0] <= ratio <= ANISOTROPY[1]:
        return Finding(
            "warning",
            name,
            f"{text}; slices are {ratio:.2g} times as thick as pixels are wide",
            hint,
        )
    return Finding("ok", name, text)


def check_fields(em: Volume, lm: Volume) -> Finding:
    """Compare the sizes of both fields: a thousandfold difference is a unit error."""
    sizes = [np.sort(v.grid.extent_nm)[1:] for v in (em, lm)]
    ratio = float(np.sqrt(np.prod(sizes[0] / sizes[1])))
    text = "field EM " + _size(em) + ", LM " + _size(lm)
    if not FIELD_RATIO[0] < ratio < FIELD_RATIO[1]:
        return Finding(
            "error",
            "fields",
            f"{text}: they differ {max(ratio, 1 / ratio):.0f} times",
            "one voxel size has the wrong unit, or these volumes do not show the same cell",
        )
    return Finding("ok", "fields", text)


def check_roles(em: Volume, lm: Volume) -> Finding:
    """Find two volumes that were given in each other's place."""
    predicted = {"mito", "mito_mem", "ecs"} >= {*lm.channels} and len(lm.channels) > 1
    em_nm3, lm_nm3 = (float(np.prod(v.grid.spacing_nm)) for v in (em, lm))
    if predicted or em_nm3 > lm_nm3:
        found = (
            f"the light volume has the channels {', '.join(lm.channels)} of a prediction"
            if predicted
            else f"the voxels of the EM are {em_nm3 / lm_nm3:.1f} times as large as the LM's"
        )
        return Finding(
            "warning", "EM and LM", found, "were the two volumes given in each other's place?"
        )
    return Finding("ok", "EM and LM", "the EM has the finer voxels")


def check_depth(name: str, volume: Volume) -> Finding:
    """Find volumes that are too thin to be placed in three dimensions."""
    z, y, x = volume.grid.shape
    text = f"{z} x {y} x {x} voxels (z, y, x)"
    if min(z, y, x) < LEAST_VOXELS:
        hint = f"give a stack of at least {LEAST_VOXELS} slices; a single one has no place in z"
        thin = f"{volume.name or 'the volume'} has {text}: too thin for registration in 3-D"
        return Finding("error", name, thin, hint)
    return Finding("ok", name, text)


def check_em_channel(em: Volume, chosen: str | int | None) -> Finding:
    """Find an EM of several channels, of which nobody has said which one is meant."""
    name, names = "EM channel", ", ".join(em.channels)
    if len(em.channels) > 1 and chosen is None:
        hint = "name the one that is meant in em.channel"
        return Finding("warning", name, f"the first of {names} is taken", hint)
    return Finding("ok", name, f"{chosen!r} of {names}" if chosen is not None else "the only one")


def check_prediction(em: Volume, prediction: Volume) -> Finding:
    """Compare the place of a prediction from elsewhere with that of the EM it was made from.

    It is registered, and the EM is then moved with it: one that has lost its origin moves the EM to
    a wrong place though everything looks right.
    """
    name, spacing = "EM prediction", np.asarray(prediction.grid.spacing_nm)
    (em_low, em_high), (low, high) = (_edges_nm(v) for v in (em, prediction))
    beyond = np.maximum(em_low - low, high - em_high)
    text = f"{_place(prediction)}, EM {_place(em)}"
    hint = "its voxel size and origin place it: save it with those of the EM"
    if (np.minimum(em_high, high) <= np.maximum(em_low, low)).any():
        return Finding("error", name, f"{text}: they do not overlap", hint)
    if (beyond > _BEYOND_VOXELS * spacing).any():
        far = format_length(float(beyond.max()))
        return Finding("warning", name, f"{text}: it reaches {far} beyond the EM", hint)
    return Finding("ok", name, "it lies in the EM")


def _edges_nm(volume: Volume) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    grid = volume.grid
    low = np.asarray(grid.origin_nm) - np.asarray(grid.spacing_nm) / 2
    return low, low + grid.extent_nm


def _place(volume: Volume) -> str:
    low, _ = _edges_nm(volume)
    return f"{_size(volume)} from " + ", ".join(format_length(v) for v in low[::-1])


def _stop(sentence: str) -> str:
    return "" if sentence.endswith("?") else "."


def _size(volume: Volume) -> str:
    return " x ".join(format_length(s) for s in volume.grid.extent_nm[::-1])
