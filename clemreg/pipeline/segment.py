"""``clemreg segment``: an EM file in, a prediction out."""

from __future__ import annotations

from pathlib import Path

from clemreg.blocks.run import Progress
from clemreg.errors import DependencyError
from clemreg.io.volumes import open_volume
from clemreg.units import parse_xyz_nm
from clemreg.volume import Volume


def segment_file(
    em: str,
    out: Path,
    *,
    model: str = "auto",
    spacing: str | None = None,
    block: int = 96,
    progress: Progress | None = None,
) -> Volume:
    """Open, predict and write; see `segment_volume`."""
    volume = open_volume(em, spacing_nm=parse_xyz_nm(spacing) if spacing else None, frame="em")
    volume = volume.channel(0) if volume.channels else volume
    return segment_volume(volume, out, model=model, block=block, progress=progress)


def segment_volume(
    em: Volume,
    out: Path,
    *,
    model: str = "auto",
    block: int = 96,
    progress: Progress | None = None,
) -> Volume:
    """Predict mitochondria and their membrane.

    Parameters
    ----------
    em
        EM (z, y, x).
    model
        Bundled name, file, or ``"auto"``: the bundled network with the nearest voxel size. Also
        a COSEM network, or a script that keeps the contract of `clemreg.segment.contract`.

    Raises
    ------
    DependencyError
        torch is not installed.
    """
    try:
        from clemreg.segment.exchange import block_network
        from clemreg.segment.external import predict_with
        from clemreg.segment.models import choose_model, load_model
        from clemreg.segment.predict import PredictOptions, predict
    except ImportError as error:
        raise DependencyError(
            f"segmenting needs torch and safetensors: {error}",
            hint="pip install 'clemreg-toolkit[segment]', or give a prediction from elsewhere",
        ) from error
    other = block_network(model)
    if other is not None:
        return predict_with(em, other, out, progress=progress)
    name = choose_model(em.grid.spacing_nm) if model == "auto" else model
    options = PredictOptions(block=block)
    return predict(em, load_model(name), out, options=options, progress=progress)
