"""How two segmentations overlap, block by block, and what that says of splits and merges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.plan import Block
from clemreg.blocks.stages import Blockwise, Read, collect
from clemreg.errors import DataError
from clemreg.space.grid import Grid


@dataclass(frozen=True, eq=False)
class Overlap:
    """Voxels that each pair of ids shares.

    Attributes
    ----------
    found, true
        Ids of the pairs (n,), 0 for background. Those of `true` are numbered anew, 1, 2, ...
    voxels
        Shared voxels of each pair; pairs may repeat.
    """

    found: NDArray[np.int64]
    true: NDArray[np.int64]
    voxels: NDArray[np.int64]

    def renamed(self, ids: NDArray[np.int64]) -> Overlap:
        """Give object i of `found` the id ``ids[i]``; ``ids[0]`` is that of the background."""
        return Overlap(ids[self.found], self.true, self.voxels)

    def variation_of_information(self) -> tuple[float, float]:
        """Split and merge error in bits, over voxels that are true objects.

        Split is H(found | true), merge is H(true | found) (Meila 2007; as in CREMI, background of
        the truth left out).
        """
        inside = self.true > 0
        joint = _sums(self.found[inside], self.true[inside], self.voxels[inside])
        total = joint[2].sum()
        if total == 0:
            return float("nan"), float("nan")
        p = joint[2] / total
        return _conditional_entropy(p, joint[1]), _conditional_entropy(p, joint[0])

    def matched_f1(self) -> float:
        """F1 of objects; two match if their intersection is more than half of their union."""
        found, true, shared = _sums(self.found, self.true, self.voxels)
        sizes = [_sizes(ids, shared) for ids in (found, true)]
        both = (found > 0) & (true > 0)
        union = sizes[0][found[both]] + sizes[1][true[both]] - shared[both]
        matches = int((2 * shared[both] > union).sum())
        objects = sum(int((size[1:] > 0).sum()) for size in sizes)
        return 2 * matches / objects if objects else float("nan")


def find_overlap(found: Read, true: Read, grid: Grid, folder: Path, how: Blockwise) -> Overlap:
    """Count which ids share which voxels; resumable.

    Parameters
    ----------
    found
        Ids from 1, without large gaps.
    true
        Any ids.

    Raises
    ------
    DataError
        There are negative ids among the true ones.
    """
    work = _BlockOverlap(found, true)
    parts = list(collect(work, folder, how.blocks(grid), how.named("overlap")))
    ids = np.concatenate([np.zeros(1, np.uint64), *(part["names"][part["true"]] for part in parts)])
    number = np.unique(ids, return_inverse=True)[1][1:]
    found_ids, voxels = (np.concatenate([p[name] for p in parts]) for name in ("found", "voxels"))
    return Overlap(*_sums(found_ids, number, voxels))


@dataclass(frozen=True)
class _BlockOverlap:
    found: Read
    true: Read

    def __call__(self, block: Block) -> dict[str, NDArray[Any]]:
        found = self.found(block.core).astype(np.int64).ravel()
        ids = self.true(block.core).ravel()
        if ids.dtype.kind == "i" and ids.size and ids.min() < 0:
            raise DataError("the truth has negative ids", hint="ids are 0 (none) or more")
        names, true = np.unique(np.append(ids.astype(np.uint64), 0), return_inverse=True)
        true = true[:-1]  # the 0 sees to it that background is number 0
        any_ = (found > 0) | (true > 0)
        ones = np.ones(int(any_.sum()), dtype=np.int64)
        found, true, voxels = _sums(found[any_], true[any_], ones)
        return {"names": names, "found": found, "true": true, "voxels": voxels}


def _sums(
    found: NDArray[np.int64], true: NDArray[np.int64], voxels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Each pair once, with the sum of its voxels."""
    if len(found) == 0:
        return found, true, voxels
    width = int(true.max()) + 1
    codes, where = np.unique(found * width + true, return_inverse=True)
    summed = np.zeros(len(codes), dtype=np.int64)
    np.add.at(summed, where, voxels)
    return codes // width, codes % width, summed


def _sizes(ids: NDArray[np.int64], voxels: NDArray[np.int64]) -> NDArray[np.int64]:
    sizes = np.zeros(int(ids.max(initial=0)) + 1, dtype=np.int64)
    np.add.at(sizes, ids, voxels)
    return sizes


def _conditional_entropy(p: NDArray[np.float64], given: NDArray[np.int64]) -> float:
    """Entropy in bits of a joint distribution, less that of what is given."""
    marginal = np.bincount(given, weights=p)
    q = marginal[given]
    return max(0.0, float(-(p * np.log2(p / q)).sum()))
