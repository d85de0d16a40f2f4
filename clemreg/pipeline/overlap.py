"""How well a structure of the EM covers its light channel: also one that was not registered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clemreg.evaluate.overlap import evaluate_overlap
from clemreg.io.transforms import read_transform
from clemreg.io.volumes import open_volume
from clemreg.pipeline.light import chosen_channel, light_channel
from clemreg.pipeline.register import psf_sigma_nm
from clemreg.pipeline.voxels import hinting
from clemreg.register.apply import covering_box, warped_volume
from clemreg.register.features import MovingOptions, prepare_fixed, prepare_moving
from clemreg.register.registration import affine_of, correlation
from clemreg.register.structure import structure
from clemreg.space.grid import Triple
from clemreg.space.transform import Affine, Transform
from clemreg.volume import Volume

CONTROL_NM = 1000.0
"""A shift after which organelles no longer cover themselves."""


@dataclass(frozen=True)
class OverlapCommand:
    """What ``clemreg evaluate overlap`` was told.

    Attributes
    ----------
    transform
        File of a transform LM to EM.
    fixed, moving
        Light volume, and EM mask, probability or prediction of the same structure.
    channel
        Name or number in the light volume; None is the only one.
    psf
        As for `clemreg register`.
    fixed_spacing_nm, moving_spacing_nm
        Voxel sizes zyx instead of what the files say.
    transform_unit
        Unit of a transform that does not say it.
    """

    transform: str
    fixed: str
    moving: str
    channel: str | None = None
    psf: str = "palm"
    fixed_spacing_nm: Triple | None = None
    moving_spacing_nm: Triple | None = None
    transform_unit: str = "um"


def overlap_files(command: OverlapCommand) -> dict[str, Any]:
    """Measure the overlap of two files under a transform (see `held_out_overlap`)."""
    with hinting("--fixed-spacing"):
        lm = open_volume(command.fixed, frame="lm", spacing_nm=command.fixed_spacing_nm)
    with hinting("--moving-spacing"):
        em = open_volume(command.moving, frame="em", spacing_nm=command.moving_spacing_nm)
    channel = light_channel(lm, chosen_channel(lm, command.channel), {})
    em, kind = structure(em, channel.name if lm.channels else None)
    options = MovingOptions(psf_sigma_nm=psf_sigma_nm(command.psf), kind=kind)
    transform = read_transform(command.transform, unit=command.transform_unit)
    return held_out_overlap(transform, channel, em, options)


def held_out_overlap(
    transform: Transform, lm: Volume, em: Volume, options: MovingOptions
) -> dict[str, Any]:
    """Measure how well an EM structure covers its light channel.

    Parameters
    ----------
    transform
        LM to EM.
    lm, em
        One light channel, and a mask, probability or prediction of the same structure.
    options
        How the EM is blurred to the light microscope; no component is dropped.

    Returns
    -------
    dict
        ``result`` and ``affine_only``: overlap (`clemreg.evaluate.overlap.OverlapReport`) and the
        ``correlation`` inside the EM; ``shifted``: the mean correlation after shifts by 1 um to
        four sides, which is what chance gives.
    """
    fixed = prepare_fixed(lm)
    moving = prepare_moving(em, lm.grid.spacing_nm, replace(options, min_volume_nm3=0.0))
    poses = {"result": transform, "affine_only": affine_of(transform)}
    found = overlaps(fixed, moving, poses)
    for name, pose in poses.items():
        found[name]["correlation"] = correlation(fixed, moving, pose)
    frame = transform.target
    controls = [
        correlation(fixed, moving, transform.then(Affine.translation(shift, frame, frame)))
        for shift in CONTROL_NM * np.array([[0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    ]
    return {**found, "shifted": {"correlation": float(np.mean(controls))}}


def overlaps(fixed: Volume, moving: Volume, poses: Mapping[str, Transform]) -> dict[str, Any]:
    """Overlap of two prepared images in several poses, each above its own middle grey.

    The light volume is cut to what the last pose covers.
    """
    *_, last = poses.values()
    box = covering_box(last, moving.grid, fixed.grid)
    part = fixed.crop(box)
    from_fixed, from_moving = (_middle_grey(v) for v in (part, moving))

    def measure(pose: Transform) -> dict[str, Any]:
        warped = warped_volume(pose, moving, part.grid)
        return evaluate_overlap(
            warped, part, warped_threshold=from_moving, fixed_threshold=from_fixed
        ).to_json()

    return {name: measure(pose) for name, pose in poses.items()}


def _middle_grey(volume: Volume) -> float:
    """Otsu's threshold of the coarsest level."""
    from skimage.filters import threshold_otsu

    values = volume.levels[-1].read()
    return float(threshold_otsu(values)) if values.min() < values.max() else float(values.max())
