"""Step ``export``, and ``clemreg export`` on its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clemreg.blocks.run import Progress
from clemreg.export.bdv import BdvSetup, write_bdv
from clemreg.export.bigwarp import SplineError, write_sampled_landmarks
from clemreg.io.atomic import atomic_path, atomic_write_json
from clemreg.io.elastix_files import write_elastix
from clemreg.io.transforms import read_transform
from clemreg.io.volumes import open_volume
from clemreg.pipeline.context import RunContext
from clemreg.pipeline.features import open_prediction
from clemreg.pipeline.registration import read_result
from clemreg.register.apply import covering_box
from clemreg.register.registration import affine_of
from clemreg.units import parse_length_nm
from clemreg.volume import Volume

COLOURS = {"mito": (255, 0, 255), "er": (0, 255, 0)}
LM_COLOURS = ((255, 0, 255), (0, 255, 0), (0, 255, 255), (255, 255, 0))


def export_run(context: RunContext) -> None:
    """Write ``export/``: whatever the configuration asks for."""
    wanted = context.config.export
    transform = read_result(context)
    lm = context.open_lm().grid
    with context.progress("export") as progress, atomic_path(context.path("export")) as folder:
        folder.mkdir(parents=True)
        if wanted.bdv:
            write_bdv(folder / "bdv.xml", bdv_setups(context), progress=progress)
        if wanted.bigwarp:
            em = context.open_em().grid
            covered = lm.crop(covering_box(transform, em, lm))
            error = write_sampled_landmarks(
                transform, covered, folder / "bigwarp-landmarks.csv", 800.0
            )
            atomic_write_json(folder / "bigwarp-landmarks.json", vars(error))
        if wanted.elastix:
            write_elastix(transform, folder / "elastix", lm)


def bdv_setups(context: RunContext) -> list[BdvSetup]:
    """EM and prediction (through the affine part), LM channels, warped EM: all in the LM frame."""
    transform = read_result(context)
    to_lm = affine_of(transform).inverse()
    em = context.open_em()
    prediction = open_prediction(context)
    setups = [BdvSetup(em, "EM (affine)", to_lm, window=_window(em), visible=False)]
    for name in prediction.channels or ("",):
        part = prediction.channel(name) if name else prediction
        title = f"prediction {name} (affine)".replace("  ", " ")
        setups.append(BdvSetup(part, title, to_lm, (255, 160, 0), (100, 180), visible=False))
    lm = context.open_lm()
    for number, name in enumerate(lm.channels or ("",)):
        part = lm.channel(name) if name else lm
        colour = COLOURS.get(name, LM_COLOURS[number % len(LM_COLOURS)])
        setups.append(BdvSetup(part, f"LM {name}".strip(), None, colour, _window(part)))
    warped = context.open_output("warped_em.zarr", "lm")
    setups.append(BdvSetup(warped, "EM warped", None, window=_window(warped)))
    return setups


def export_run_bdv(folder: Path, out: Path | None, progress: Progress | None = None) -> Path:
    """Write the BigDataViewer files of a finished run."""
    from clemreg.pipeline.run import open_run

    context = open_run(folder)
    target = out or context.path("export", "bdv.xml")
    return write_bdv(target, bdv_setups(context), overwrite=True, progress=progress)


def export_bigwarp(transform: str, grid_of: str, out: Path, spacing: str) -> SplineError:
    """Write BigWarp landmarks sampled from a transform file."""
    grid = open_volume(grid_of, frame="lm").grid
    return write_sampled_landmarks(read_transform(transform), grid, out, parse_length_nm(spacing))


def export_elastix(transform: str, grid_of: str, out: Path) -> Path:
    """Write a transform as elastix parameter files."""
    grid = open_volume(grid_of, frame="lm").grid
    write_elastix(read_transform(transform), out, grid)
    return out


def _window(volume: Volume) -> tuple[float, float]:
    """Display range from the coarsest level."""
    level = volume.levels[-1]
    low, high = np.percentile(level.read(), [1.0, 99.8])
    return float(low), float(max(high, low + 1))
