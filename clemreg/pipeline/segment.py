"""``clemreg segment``: an EM file in, a prediction out."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError, DependencyError, VoxelSizeError
from clemreg.io.volumes import open_labels, open_volume
from clemreg.pipeline.steps import input_fingerprint
from clemreg.space.grid import Grid
from clemreg.units import given_xyz_nm
from clemreg.volume import Labels, Volume

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SegmentSettings:
    """How to segment; what each means for the result is in `clemreg.segment.predict`.

    Attributes
    ----------
    block
        Output voxels per block along each axis; 0: what fits in about 1 GB.
    contrast
        Grey values that the network takes for black and white; None: percentiles of the volume.
    mask
        Volume that is not 0 where to predict, in the frame of the EM; one without a voxel size
        lies on the voxels of the EM, if it has as many. None: everywhere.
    views
        Mirrored views to average: 1, 2, 4 or 8.
    precise
        Always compute in float32.
    channel
        Channel of the EM; empty: the only one, or the first of several, with a note in the log.
    """

    block: int = 0
    contrast: tuple[float, float] | None = None
    mask: str | None = None
    views: int = 1
    precise: bool = False
    channel: str = ""


def segment_file(
    em: str,
    out: Path,
    *,
    model: str = "auto",
    spacing: str | None = None,
    settings: SegmentSettings | None = None,
    progress: Progress | None = None,
) -> Volume:
    """Open, predict and write; see `segment_volume`."""
    volume = open_volume(em, spacing_nm=given_xyz_nm(spacing), frame="em")
    return segment_volume(volume, out, model=model, settings=settings, source=em, progress=progress)


def segment_volume(
    em: Volume,
    out: Path,
    *,
    model: str = "auto",
    settings: SegmentSettings | None = None,
    source: str | None = None,
    progress: Progress | None = None,
) -> Volume:
    """Predict the classes of a network: mitochondria, their membrane, ER.

    Parameters
    ----------
    em
        EM (z, y, x), or (channel, z, y, x), of which one is segmented.
    model
        Bundled name, file, or ``"auto"``: the bundled network with the nearest voxel size. Also
        a COSEM network, or a script that keeps the contract of `clemreg.segment.contract`.
    source
        File of the EM: if it, or the mask, was changed after a run was killed, the next one does
        not go on from there.

    Raises
    ------
    DependencyError
        torch is not installed.
    MissingError
        The EM has no such channel.
    ConfigError, VoxelSizeError
        The mask cannot be used, see `open_mask`.
    """
    try:
        from clemreg.segment.blockwise import PredictOptions
        from clemreg.segment.exchange import block_network
        from clemreg.segment.external import predict_with
        from clemreg.segment.models import choose_model, load_model
        from clemreg.segment.predict import predict
    except ImportError as error:
        raise DependencyError(
            f"segmenting needs torch and safetensors: {error}",
            hint="pip install 'clemreg-toolkit[segment]', or give a prediction from elsewhere",
        ) from error
    settings = settings or SegmentSettings()
    em = _one_channel(em, settings.channel)
    options = PredictOptions(
        block=settings.block,
        limits=settings.contrast,
        views=settings.views,
        precise=settings.precise,
        mask=None if settings.mask is None else open_mask(settings.mask, em),
        inputs=f"{input_fingerprint(source)} {input_fingerprint(settings.mask)}",
    )
    other = block_network(model, settings.block)
    if other is not None:
        # The block of a COSEM network was chosen when it was opened.
        mine = options if model.endswith(".py") else replace(options, block=0)
        return predict_with(em, other, out, options=mine, progress=progress)
    name = choose_model(em.grid.spacing_nm) if model == "auto" else model
    return predict(em, load_model(name), out, options=options, progress=progress)


def _one_channel(em: Volume, name: str) -> Volume:
    if name:
        return em.channel(name)
    if len(em.channels) > 1:
        log.warning(
            "%s has channels %s: the first, %s, is segmented; another with --channel NAME",
            em.name or "the EM",
            ", ".join(em.channels),
            em.channels[0],
        )
    return em.channel(0)


def open_mask(path: str, em: Volume) -> Volume:
    """Open a mask of an EM: one channel, at its place in the EM.

    Raises
    ------
    ConfigError
        It has several channels.
    VoxelSizeError
        Its voxel size is missing or cannot be right, and it has not the shape of the EM.
    """
    mask = _placed_mask(path, em.grid)
    if len(mask.channels) > 1:
        raise ConfigError(
            f"the mask {path} has channels {', '.join(mask.channels)}; one volume is expected",
            hint="save the channel that is meant as a volume of its own",
        )
    return replace(mask.channel(0), name=mask.name)


def _placed_mask(path: str, em: Grid) -> Labels:
    try:
        return open_labels(path, frame="em")
    except VoxelSizeError as error:
        # Without a voxel size on the EM's own voxels: its shape is the proof.
        mask = open_labels(path, spacing_nm=em.spacing_nm, frame="em")
        if mask.shape != em.shape:
            raise VoxelSizeError(
                f"{error.message}, and it has {mask.shape} voxels, not {em.shape} (z, y, x) as "
                "the EM, so its place is not known",
                hint="save the mask with its voxel size, or on the voxels of the EM",
            ) from error
        return replace(mask, grid=em, coarser=())
