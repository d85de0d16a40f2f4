"""What ribosomes sit on: cytosolic, on the nuclear envelope, on ER sheets or on ER tubes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.distance import Near
from clemreg.blocks.plan import Block, plan_blocks
from clemreg.blocks.stages import Blockwise, Part
from clemreg.errors import ConfigError
from clemreg.measure.gather import gather, read_padded, same_grid
from clemreg.measure.lines import IntArray, ball_offsets
from clemreg.measure.ribosomes import Ribosomes
from clemreg.volume import Volume

FloatArray = NDArray[np.float64]


class Binding(IntEnum):
    """Class of a ribosome, with the codes of the published volumes."""

    CYTOSOLIC = 1
    NUCLEAR = 2
    SHEET = 3
    TUBE = 4


@dataclass(frozen=True)
class BindingOptions:
    """When a ribosome is bound, and to what.

    Attributes
    ----------
    radius_nm
        Radius of a ribosome.
    contact_nm
        Largest distance from its surface to the ER.
    sheet
        Mean planarity of the contact from which it is a sheet.
    expand_nm
        ER within this distance of the nuclear envelope counts as nuclear. Two predictions never
        end at the same voxel, so 0 would leave a rim of "peripheral" ER around every envelope. The
        paper expands the nucleus, by 80 to 200 nm.
    """

    radius_nm: float = 10.0
    contact_nm: float = 10.0
    sheet: float = 0.6
    expand_nm: float = 20.0

    def __post_init__(self) -> None:
        if not 0 <= self.expand_nm < math.inf:
            raise ConfigError(
                f"the nuclear envelope cannot be expanded by {self.expand_nm:g} nm",
                hint="0 nm, or more",
            )


@dataclass(frozen=True, eq=False)
class Bindings:
    """Class of each ribosome.

    Attributes
    ----------
    code
        (N,) uint8, values of `Binding`.
    planarity
        (N,) mean planarity of the contact with the peripheral ER; NaN without one.
    """

    code: NDArray[np.uint8]
    planarity: FloatArray

    def counts(self) -> dict[str, int]:
        """Return the number of ribosomes of each class."""
        return {kind.name.lower(): int((self.code == kind).sum()) for kind in Binding}


def classify_ribosomes(
    ribosomes: Ribosomes,
    planarity: Volume,
    nuclear_envelope: Volume | None = None,
    options: BindingOptions | None = None,
    *,
    how: Blockwise | None = None,
    scratch: Path | None = None,
) -> Bindings:
    """Tell what each ribosome sits on (Heinrich et al. 2021).

    A ribosome with no ER within `contact_nm` of its surface is cytosolic. If all the ER there is
    nuclear envelope, or within `expand_nm` of it, it is nuclear; else the mean planarity of the
    peripheral ER there decides between sheet and tube.

    Parameters
    ----------
    planarity
        Of the reconstructed ER (z, y, x): 0 outside; whole numbers are ``ceil(254 p) + 1``, other
        values are the planarity p itself.
    nuclear_envelope
        Mask on the same grid; not 0 is nuclear envelope, or nucleus. None: there is none in the
        volume.
    how
        Blocks, executor and progress; no choice here changes a digit.
    scratch
        Folder from which a killed classification goes on.

    Raises
    ------
    GridError
        The two volumes have other voxels.
    """
    options, how = options or BindingOptions(), how or Blockwise()
    grid = planarity.grid
    if nuclear_envelope is not None:
        same_grid(nuclear_envelope, planarity)
    offsets = ball_offsets(options.radius_nm + options.contact_nm, grid.spacing_nm)
    voxel = np.floor(grid.to_index(ribosomes.centre_nm) + 0.5).astype(np.intp)
    near = np.clip(voxel, 0, np.asarray(grid.shape) - 1)
    halo = tuple(int(m) for m in np.abs(offsets).max(axis=0))
    envelope = None
    if nuclear_envelope is not None:
        envelope = Near(nuclear_envelope.read, grid, options.expand_nm)
    work = _Decide(near, offsets, planarity, envelope, options.sheet)
    blocks = plan_blocks(grid.shape, how.block, halo)
    job = f"binding {planarity.name} {grid} {options} {len(near)}"
    found = gather(work, blocks, how.named("classes"), job=job, scratch=scratch)
    order = np.argsort(found["which"])
    return Bindings(found["code"][order], found["planarity"][order])


@dataclass(frozen=True, eq=False)
class _Decide:
    """Classes of the ribosomes whose voxel lies in a block."""

    near: IntArray
    offsets: IntArray
    planarity: Volume
    envelope: Near | None
    sheet: float

    def __call__(self, block: Block) -> Part:
        core = block.core
        here = np.flatnonzero(((self.near >= core.start) & (self.near < core.stop)).all(axis=1))
        if not len(here):
            return {"which": here, "code": np.zeros(0, np.uint8), "planarity": np.zeros(0)}
        value = read_padded(self.planarity, block.read)
        nuclear = np.zeros(value.shape, dtype=bool)
        if self.envelope is not None:
            inside = block.read.clip(self.planarity.shape)
            place = inside.shift(tuple(-s for s in block.read.start))
            nuclear[place.slices] = self.envelope(inside)
        index = self.near[here, None] - np.asarray(block.read.start) + self.offsets
        at = tuple(np.moveaxis(index, -1, 0))
        code, mean = _decide(value[at], nuclear[at], self.sheet)
        return {"which": here, "code": code, "planarity": mean}


def _decide(
    value: NDArray[Any], nuclear: NDArray[np.bool_], sheet: float
) -> tuple[NDArray[np.uint8], FloatArray]:
    """Classes (n,) and planarities (n,) from the voxels (n, K) within reach of each ribosome."""
    er = value > 0
    peripheral = er & ~nuclear
    planar = (value - 1.0) / 254 if value.dtype.kind in "iu" else value.astype(np.float64)
    count = peripheral.sum(axis=1)
    total = np.where(peripheral, planar, 0).sum(axis=1)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    code = np.full(len(value), Binding.CYTOSOLIC, dtype=np.uint8)
    code[er.any(axis=1)] = Binding.NUCLEAR
    code[count > 0] = np.where(mean[count > 0] >= sheet, Binding.SHEET, Binding.TUBE)
    return code, mean
