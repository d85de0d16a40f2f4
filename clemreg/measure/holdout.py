"""How far volume and surface are from the truth in six half-regions of a held-out block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clemreg.blocks.stages import Blockwise
from clemreg.errors import DataError
from clemreg.measure.gather import same_grid
from clemreg.measure.morphology import measure_objects
from clemreg.measure.tables import Table
from clemreg.space.grid import Box, Shape
from clemreg.volume import Labels, LazyArray, Volume

_AXES = "zyx"
QUANTITIES = ("volume_nm3", "surface_nm2", "surface_faces_nm2")


def half_regions(box: Box) -> dict[str, Box]:
    """Six halves of a box: the lower and the upper one along x, y and z.

    Raises
    ------
    DataError
        The box is one voxel thick along an axis.
    """
    if min(box.shape) < 2:
        raise DataError(f"{box} cannot be halved along every axis")
    halves = {}
    for axis in (2, 1, 0):
        middle = (box.start[axis] + box.stop[axis]) // 2
        halves[f"{_AXES[axis]} low"] = Box(box.start, _at(box.stop, axis, middle))
        halves[f"{_AXES[axis]} high"] = Box(_at(box.start, axis, middle), box.stop)
    return halves


def _at(corner: Shape, axis: int, value: int) -> Shape:
    z, y, x = (value if i == axis else c for i, c in enumerate(corner))
    return z, y, x


def holdout_deviations(
    truth: Volume,
    predictions: Mapping[str, Volume],
    *,
    how: Blockwise | None = None,
    scratch: Path | None = None,
) -> Table:
    """Compare total volume and surface area with the truth.

    After Heinrich et al. 2021, Extended Data Fig. 8.

    Parameters
    ----------
    truth
        Mask or labels (not 0: organelle).
    predictions
        The same of each kind of prediction on the same voxels: ``{"raw": ..., "refined": ...}``.
    how
        Blocks, executor and progress; no choice here changes a digit.
    scratch
        Folder from which a killed measurement goes on.

    Returns
    -------
    Table
        One row a prediction and half-region, and one for the whole: ``prediction``, ``region``,
        the truth's and its own value of every quantity, and its deviation (own - truth) / truth,
        NaN where there is nothing in the truth.

    Raises
    ------
    GridError
        A prediction has other voxels than the truth.
    """
    how = how or Blockwise()
    for volume in predictions.values():
        same_grid(truth, volume)
    regions = {"whole": truth.grid.box, **half_regions(truth.grid.box)}
    folder = scratch and scratch / "truth"
    true = {region: _totals(truth, box, how, folder) for region, box in regions.items()}
    rows = []
    for number, (name, volume) in enumerate(predictions.items()):
        folder = scratch and scratch / str(number)
        for region, box in regions.items():
            own = _totals(volume, box, how, folder)
            row: dict[str, Any] = {"prediction": name, "region": region}
            for quantity in QUANTITIES:
                expected = true[region][quantity]
                row[f"true_{quantity}"] = expected
                row[quantity] = own[quantity]
                stem = quantity.rpartition("_")[0]
                ratio = own[quantity] / expected - 1 if expected else np.nan
                row[f"{stem}_deviation"] = ratio
            rows.append(row)
    return Table({key: np.array([row[key] for row in rows]) for key in rows[0]})


def _totals(volume: Volume, box: Box, how: Blockwise, scratch: Path | None) -> dict[str, float]:
    part = volume.crop(box)
    view = Labels(_Inside(part.data), part.grid, name=volume.name)
    table = measure_objects(view, how=how, scratch=scratch)
    return {name: float(table[name].sum()) for name in QUANTITIES}


@dataclass(frozen=True)
class _Inside:
    """1 where an array is not 0, still lazy."""

    parent: LazyArray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parent.shape

    @property
    def dtype(self) -> Any:
        return np.dtype(np.uint8)

    def __getitem__(self, key: Any, /) -> Any:
        return (self.parent[key] != 0).astype(np.uint8)
