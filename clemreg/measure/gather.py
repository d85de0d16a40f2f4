"""Keep what each block found, where a killed job finds it again."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.plan import Block
from clemreg.blocks.stages import Blockwise, Part, Parts, collect
from clemreg.errors import DataError, GridError
from clemreg.space.grid import Box
from clemreg.volume import Labels, Volume


@contextmanager
def gathered(
    function: Callable[[Block], Part],
    blocks: Sequence[Block],
    how: Blockwise,
    *,
    job: str,
    scratch: Path | None,
) -> Iterator[Parts]:
    """Run `function` over blocks and yield what they found, in their order.

    Parameters
    ----------
    job
        What is computed from what: another job in the same scratch folder starts afresh.
    scratch
        Folder from which a killed job goes on; None: a temporary one.
    """
    with working(scratch) as folder:
        words = f"{job} {how.block} {len(blocks)}"
        name = hashlib.sha256(words.encode()).hexdigest()[:16]
        yield collect(function, folder / name, list(blocks), how)


def gather(
    function: Callable[[Block], Part],
    blocks: Sequence[Block],
    how: Blockwise,
    *,
    job: str,
    scratch: Path | None,
) -> dict[str, NDArray[Any]]:
    """As `gathered`, for arrays that are few: each name's arrays of all blocks, joined in order.

    Parameters
    ----------
    function
        Returns the same names for every block.
    """
    with gathered(function, blocks, how, job=job, scratch=scratch) as parts:
        pieces = list(parts)
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def read_padded(volume: Volume, box: Box) -> NDArray[Any]:
    """Pixels (z, y, x) of a box that may reach outside the volume; 0 there."""
    inside = box.clip(volume.shape)
    result = np.zeros(box.shape, volume.dtype)
    if inside.size:
        result[inside.shift(tuple(-s for s in box.start)).slices] = volume.read(inside)
    return result


def read_ids(labels: Labels, box: Box) -> NDArray[Any]:
    """Ids (z, y, x) of a box.

    Raises
    ------
    DataError
        One is negative.
    """
    ids = labels.read(box)
    if ids.dtype.kind == "i" and ids.min(initial=0) < 0:
        raise DataError(
            f"{labels.name or 'labels'} has negative ids", hint="ids are 0 (none) or more"
        )
    return ids


@contextmanager
def working(scratch: Path | None) -> Iterator[Path]:
    """Yield the scratch folder that is given, else a temporary one."""
    if scratch is not None:
        yield scratch
        return
    with tempfile.TemporaryDirectory(prefix="clemreg-") as folder:
        yield Path(folder)


def same_grid(first: Volume, second: Volume) -> None:
    """Check that two volumes have the same voxels.

    Raises
    ------
    GridError
        Shape, voxel size or origin differ.
    """
    a, b = first.grid, second.grid
    near = np.allclose(a.spacing_nm, b.spacing_nm, rtol=1e-6) and np.allclose(
        a.origin_nm, b.origin_nm, atol=1e-3 * min(a.spacing_nm)
    )
    if a.shape != b.shape or not near:
        raise GridError(
            f"{first.name or 'the first volume'} (shape {a.shape}, voxel {a.spacing_nm} nm, origin "
            f"{a.origin_nm} nm, zyx) and {second.name or 'the second'} (shape {b.shape}, voxel "
            f"{b.spacing_nm} nm, origin {b.origin_nm} nm) do not have the same voxels",
            hint="bring both onto one grid first",
        )
