"""Cut a volume into blocks: what each writes (core) and what it must read (core and halo)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clemreg.space.grid import Box


@dataclass(frozen=True, slots=True)
class Block:
    """One piece of work.

    Attributes
    ----------
    number
        Position in the plan; the same for the same plan.
    core
        Voxels that this block writes; cores cover the volume once.
    read
        Core and halo; it may reach outside the volume.
    """

    number: int
    core: Box
    read: Box


def plan_blocks(
    shape: Sequence[int], block: Sequence[int], halo: int | Sequence[int] = 0
) -> list[Block]:
    """Blocks of at most `block` voxels (zyx) that cover `shape`, z slowest.

    Parameters
    ----------
    shape, block
        Voxels along z, y, x.
    halo
        Extra voxels on every side, one number or one per axis.
    """
    return [
        Block(i, core, core.grow(halo)) for i, core in enumerate(Box.of_shape(shape).tiles(block))
    ]
