"""Keep what each block found, where a killed job finds it again."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from clemreg.blocks.plan import Block
from clemreg.blocks.stages import Blockwise, Part, Parts, collect
from clemreg.errors import GridError
from clemreg.volume import Volume


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
    with _folder(scratch) as folder:
        words = f"{job} {how.block} {len(blocks)}"
        name = hashlib.sha256(words.encode()).hexdigest()[:16]
        yield collect(function, folder / name, list(blocks), how)


@contextmanager
def _folder(scratch: Path | None) -> Iterator[Path]:
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
