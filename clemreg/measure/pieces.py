"""Collect small results (points, counts) from the blocks of a volume; resumable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.plan import Block
from clemreg.blocks.run import Ledger, Progress, run
from clemreg.io.atomic import atomic_path
from clemreg.space.grid import Box
from clemreg.volume import Volume

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Store:
    """Where the results of finished blocks wait for the others.

    Attributes
    ----------
    folder
        A folder of its own; the caller removes it when all is done.
    job
        Text that says what is computed from what; another job in the same folder is refused.
    """

    folder: Path
    job: str


def collect(
    function: Callable[[Block], Arrays],
    blocks: Sequence[Block],
    *,
    store: Store | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> dict[str, NDArray[Any]]:
    """Call `function` for every block and join the arrays that it returns, in block order.

    Parameters
    ----------
    function
        Returns named arrays; the same names for every block, joined along the first axis.
    store
        Keep what is finished on disk, so that a killed run goes on; None: in memory only.

    Returns
    -------
    dict
        Name to joined array.
    """
    results: dict[int, Arrays] = {}

    def keep(block: Block) -> None:
        found = function(block)
        if store is None:
            results[block.number] = found
            return
        arrays: dict[str, Any] = dict(found)
        with atomic_path(_piece(store, block)) as partial, partial.open("wb") as stream:
            np.savez(stream, **arrays)

    ledger = None if store is None else Ledger(store.folder / "ledger.txt", store.job)
    run(keep, blocks, ledger=ledger, workers=workers, progress=progress)
    pieces = [results[b.number] if store is None else _load(_piece(store, b)) for b in blocks]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def read_padded(volume: Volume, box: Box) -> NDArray[Any]:
    """Pixels (z, y, x) of a box that may reach outside the volume; 0 there."""
    inside = box.clip(volume.shape)
    result = np.zeros(box.shape, volume.dtype)
    if inside.size:
        result[inside.shift(tuple(-s for s in box.start)).slices] = volume.read(inside)
    return result


def _piece(store: Store, block: Block) -> Path:
    return store.folder / f"{block.number}.npz"


def _load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
