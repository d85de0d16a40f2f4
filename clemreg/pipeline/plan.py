"""What `clemreg organelles` would take: blocks, memory, bytes and time, before any work."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clemreg.blocks.distance import halo_voxels
from clemreg.config_organelles import OrganellesConfig
from clemreg.measure.sight import lines
from clemreg.pipeline.analyses import options_of
from clemreg.pipeline.organelles import Chain
from clemreg.refine.recipe import WatershedStep, load_recipe
from clemreg.space.grid import Grid, Shape

MEASURED_NM = 10.0
"""Distance of the contacts that `COSTS` is about."""

MEASURED_LINES_NS = 35.0
"""Part of their processor time that grows with the number of lines of sight."""

SERIAL_S = 0.002
"""Seconds that the main process spends on each block of a pass: ledger, parts, merging."""


@dataclass(frozen=True)
class Cost:
    """What an operation takes for each voxel of a block and its halo.

    Attributes
    ----------
    cpu_ns
        Time of one core.
    memory
        Bytes of a worker.
    read, written
        Bytes before compression, in all passes; written for voxels of the block only.
    passes
        Times that all blocks are gone through.
    halo_nm
        Widest surroundings of a block that are read.
    """

    cpu_ns: float
    memory: float
    read: float
    written: float
    passes: int
    halo_nm: float = 5.0


# Processor time of `benchmarks/measure.py --plan` (17 megavoxels, blocks of 128, planarity 192) by
# what was read, rounded up; objects fill a tenth.
COSTS = {
    "refine": Cost(190, 52, 25, 21, 9, 48.0),
    "watershed": Cost(430, 62, 40, 33, 14, 48.0),
    "measure": Cost(115, 60, 4, 0, 1),
    "skeletonize": Cost(700, 60, 8, 0, 2),
    "contacts": Cost(100, 30, 8, 8, 1, 40.0),
    "contact_planarity": Cost(60, 40, 9, 0, 1),
    "planarity": Cost(1200, 25, 60, 25, 30, 360.0),
    "reconstruct": Cost(150, 40, 10, 9, 3),
    "microtubules": Cost(80, 20, 10, 9, 4, 180.0),
    "ribosomes": Cost(140, 50, 2, 5, 3, 25.0),
    "mesh": Cost(620, 60, 8, 0, 2),
}


@dataclass(frozen=True)
class Row:
    """What one step takes.

    Attributes
    ----------
    step
        As in the run.
    blocks, passes
        Number of blocks, and how often all are gone through.
    memory_gb
        Of each worker.
    read_gb, written_gb
        In all, before compression.
    core_hours, hours
        Of all cores; of wall time with the workers that are configured.
    """

    step: str
    blocks: int
    passes: int
    memory_gb: float
    read_gb: float
    written_gb: float
    core_hours: float
    hours: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))


def plan_organelles(config: OrganellesConfig, base: Path) -> tuple[Grid, list[Row]]:
    """Estimate every step of a chain from the size of its input; nothing is computed or written.

    Objects are taken to fill a tenth of the volume. The time of storage is not in the estimate,
    nor what single objects take beyond their voxels: the program of the microtubules, the graphs
    of long centre lines.

    Parameters
    ----------
    config, base
        As in `clemreg.pipeline.organelles.run_organelles`.

    Returns
    -------
    Grid
        Voxels of the input.
    list of Row
        One a step.

    Raises
    ------
    MissingError
        An input is not there.
    ConfigError
        Recipe or executor is not known.
    """
    chain = Chain(config, base)
    chain.refuse_impossible()
    grid = chain.grid
    work = _Work(grid, (config.compute.block,) * 3, config.compute.workers)
    rows = [work.row(step, cost) for step, cost in _costs(chain)]
    return grid, rows


def total(rows: Sequence[Row]) -> Row:
    """Sum of all steps; memory is that of the largest."""
    return Row(
        "total",
        max(row.blocks for row in rows),
        sum(row.passes for row in rows),
        max(row.memory_gb for row in rows),
        sum(row.read_gb for row in rows),
        sum(row.written_gb for row in rows),
        sum(row.core_hours for row in rows),
        sum(row.hours for row in rows),
    )


def _costs(chain: Chain) -> Iterator[tuple[str, Cost]]:
    """Cost of each step; refining counts once for each organelle that is made."""
    config = chain.config
    for name, organelle in load_recipe(chain.recipe).in_order(config.input.organelles):
        split = any(isinstance(step, WatershedStep) for step in organelle.steps)
        yield f"refine-{name}", COSTS["watershed" if split else "refine"]
    distances = {c.title: options_of(c).distance_nm for c in config.contacts}
    for step in chain.steps():
        verb, _, name = step.name.partition("-")
        if verb not in COSTS or verb == "refine":
            continue
        cost = COSTS[verb]
        if verb == "contacts":
            spacing_nm = chain.grid.spacing_nm
            near, all_ = (len(lines(nm, spacing_nm)) for nm in (MEASURED_NM, distances[name]))
            more_ns = MEASURED_LINES_NS * (all_ / near - 1)
            halo_nm = 2 * distances[name] + 20
            cost = replace(cost, cpu_ns=cost.cpu_ns + more_ns, halo_nm=halo_nm)
        yield step.name, cost


@dataclass(frozen=True)
class _Work:
    grid: Grid
    block: Shape
    workers: int

    def row(self, step: str, cost: Cost) -> Row:
        """Scale a cost to the volume."""
        voxels = self.grid.size
        blocks = math.prod(-(-n // b) for n, b in zip(self.grid.shape, self.block, strict=True))
        more = self._with_halo(self.block, cost) / math.prod(self.block)
        core_s = voxels * cost.cpu_ns * 1e-9 * more
        serial_s = SERIAL_S * blocks * cost.passes
        return Row(
            step,
            blocks,
            cost.passes,
            0.2 + cost.memory * self._with_halo(self.block, cost) / 1e9,
            voxels * cost.read * more / 1e9,
            voxels * cost.written / 1e9,
            core_s / 3600,
            (core_s / min(self.workers, blocks) + serial_s) / 3600,
        )

    def _with_halo(self, block: Shape, cost: Cost) -> int:
        """Voxels of a block and its halo, no more than the volume has."""
        halo = halo_voxels(cost.halo_nm, self.grid.spacing_nm)
        grown = (b + 2 * h for b, h in zip(block, halo, strict=True))
        return math.prod(min(n, g) for n, g in zip(self.grid.shape, grown, strict=True))
