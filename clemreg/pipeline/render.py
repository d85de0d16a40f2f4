"""``clemreg render``: localisation tables in, a light volume out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError
from clemreg.io.localisations import Localisations, read_localisations
from clemreg.io.volumes import open_volume
from clemreg.register.render import RenderOptions, choose, covering_grid, render
from clemreg.space.grid import Grid, Triple


@dataclass(frozen=True)
class RenderCommand:
    """What ``clemreg render`` was told.

    Attributes
    ----------
    tables
        Channel name to localisation table, or ``TABLE@LABEL`` for one fluorophore of it.
    out
        OME-Zarr to write.
    spacing_nm
        Voxel size zyx; the grid then covers all localisations.
    onto
        Image whose grid is taken instead.
    pixel_nm
        Camera pixel, for tables in pixels.
    shifts_nm
        Channel name to an offset zyx that is added: chromatic shift.
    options
        Filters and blur.
    """

    tables: Mapping[str, str]
    out: Path
    spacing_nm: Triple | None = None
    onto: str | None = None
    pixel_nm: float | None = None
    shifts_nm: Mapping[str, Triple] = field(default_factory=dict)
    options: RenderOptions = field(default_factory=RenderOptions)


def render_files(command: RenderCommand, progress: Progress | None = None) -> dict[str, Any]:
    """Read, filter, shift and draw; return the figures of the report.

    Raises
    ------
    ConfigError
        Neither or both of voxel size and image are given, a shift names no channel, or a table
        holds several fluorophores and none is chosen.
    """
    unknown = set(command.shifts_nm) - set(command.tables)
    if unknown:
        raise ConfigError(
            f"a shift is given for {sorted(unknown)}, the channels are {list(command.tables)}"
        )
    read = {name: _read(command, name) for name in command.tables}
    kept = {name: choose(one, command.options) for name, one in read.items()}
    grid = _grid(command, kept)
    blur = RenderOptions(extra_blur_nm=command.options.extra_blur_nm)
    render(kept, grid, command.out, blur, progress=progress)
    return {
        "render": {
            "shape": grid.shape,
            "spacing_nm": grid.spacing_nm,
            "channels": {name: _figures(read[name], kept[name], grid) for name in read},
        }
    }


def _read(command: RenderCommand, name: str) -> Localisations:
    path, label = _split_label(command.tables[name])
    table = _of_label(read_localisations(path, pixel_nm=command.pixel_nm), path, label)
    return table.shifted(command.shifts_nm.get(name, (0.0, 0.0, 0.0)))


def _split_label(text: str) -> tuple[str, float | None]:
    path, _, label = text.rpartition("@")
    if not path or not label.isdigit() or Path(text).exists():
        return text, None
    return path, float(label)


def _of_label(table: Localisations, path: str, label: float | None) -> Localisations:
    """Keep one fluorophore of a table that holds several."""
    counts = {} if table.labels is None else _counts(table.labels)
    if label is None and len(counts) <= 1:
        return table
    if table.labels is None or label not in counts:
        there = ", ".join(f"{value:g} ({count})" for value, count in counts.items()) or "none"
        found = "several label sets" if label is None else f"no label set {label:g}"
        raise ConfigError(
            f"{path} holds {found}; label sets with their localisations: {there}",
            hint=f"name the one of each channel, for example mito={path}@1 er={path}@2",
        )
    return table.select(table.labels == label)


def _counts(labels: NDArray[np.float64]) -> dict[float, int]:
    values, counts = np.unique(labels[np.isfinite(labels)], return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _grid(command: RenderCommand, kept: Mapping[str, Localisations]) -> Grid:
    if (command.spacing_nm is None) == (command.onto is None):
        raise ConfigError(
            "a volume needs either a voxel size or an image whose grid it takes",
            hint='add --spacing "x, y, z nm" or --onto IMAGE',
        )
    if command.onto is not None:
        return open_volume(command.onto, frame="lm").grid
    return covering_grid(kept, np.asarray(command.spacing_nm), command.options.extra_blur_nm)


def _figures(read: Localisations, kept: Localisations, grid: Grid) -> dict[str, Any]:
    return {
        "localisations": len(read),
        "drawn": len(kept),
        "on_grid": int(grid.contains(kept.points_nm).sum()),
        "median_precision_nm": np.median(kept.precision_nm, axis=0).tolist(),
    }
