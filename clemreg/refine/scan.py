"""Try many settings of the agglomeration on one set of fragments, for an expert to choose from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.stages import Blockwise, Read
from clemreg.refine.agglomerate import Agglomeration, agglomerate
from clemreg.refine.overlap import Overlap, find_overlap
from clemreg.refine.voxels import enough_voxels
from clemreg.refine.watershed import Fragments, find_fragments
from clemreg.space.grid import Box, Grid
from clemreg.volume import Labels


@dataclass(frozen=True, eq=False)
class Candidate:
    """What one setting gives.

    Attributes
    ----------
    settings
        Quantile and threshold; a threshold of 1 merges all fragments that touch.
    ids
        Object of each fragment, from ``ids[1]``; 0 for those too small, and for background.
    objects, largest_um3, median_um3
        Number of objects, and their volumes.
    voi_split, voi_merge, f1
        Agreement with the truth, if there is one.
    """

    settings: Agglomeration
    ids: NDArray[np.int64]
    objects: int
    largest_um3: float
    median_um3: float
    voi_split: float | None = None
    voi_merge: float | None = None
    f1: float | None = None

    @property
    def naive(self) -> bool:
        """Whether nothing is split: the connected parts of what the watershed cuts."""
        return self.settings.threshold >= 1


@dataclass(frozen=True)
class ScanSettings:
    """What is tried.

    Attributes
    ----------
    quantiles, thresholds
        Every pair of them.
    min_volume_nm3
        Objects up to this are left out.
    """

    quantiles: Sequence[float]
    thresholds: Sequence[float]
    min_volume_nm3: float = 2e7


def scan(
    read: Read,
    grid: Grid,
    settings: ScanSettings,
    folder: Path,
    how: Blockwise,
    truth: Read | None = None,
) -> tuple[list[Candidate], Labels]:
    """Agglomerate with every setting; fragments are made once.

    Parameters
    ----------
    read
        Smoothed prediction, 0 to 255.
    truth
        Ids of annotated objects, if there are any.

    Returns
    -------
    list of Candidate
        All fragments merged first, then by quantile and threshold.
    Labels
        The fragments, to look at candidates with.
    """
    fragments = find_fragments(read, grid, folder, how)
    basins = fragments.basins
    overlap = None
    if truth is not None:
        overlap = find_overlap(basins.read, truth, grid, folder / "overlap", how)
    tried = [(settings.quantiles[0], [1.0])]
    tried += [(quantile, sorted(settings.thresholds)) for quantile in settings.quantiles]
    candidates = [
        _candidate(Agglomeration(quantile, threshold), ids, fragments, settings, overlap)
        for quantile, thresholds in tried
        for threshold, ids in zip(
            thresholds, agglomerate(fragments.boundaries, quantile, thresholds), strict=True
        )
    ]
    return candidates, basins


def _candidate(
    setting: Agglomeration,
    ids: NDArray[np.int64],
    fragments: Fragments,
    settings: ScanSettings,
    overlap: Overlap | None,
) -> Candidate:
    grid = fragments.found.grid
    voxels = np.bincount(ids, weights=fragments.found.table["voxels"], minlength=1)
    large = voxels >= enough_voxels(settings.min_volume_nm3, grid)
    large[0] = False
    kept = np.concatenate([[0], np.where(large[ids], ids, 0)]).astype(np.int64)
    volumes = voxels[large] * math.prod(grid.spacing_nm) / 1e9
    split = merge = f1 = None
    if overlap is not None:
        renamed = overlap.renamed(kept)
        split, merge = renamed.variation_of_information()
        f1 = renamed.matched_f1()
    return Candidate(
        setting,
        kept,
        int(large.sum()),
        float(volumes.max(initial=0)),
        float(np.median(volumes)) if len(volumes) else 0.0,
        split,
        merge,
        f1,
    )


def plane(candidate: Candidate, basins: Labels, z: int) -> NDArray[np.int64]:
    """Objects (y, x) of one plane; each is called by its first fragment.

    So an object that two settings share has the same id in both, and a colour made from it.
    """
    _, y, x = basins.shape
    first = np.zeros(int(candidate.ids.max(initial=0)) + 1, dtype=np.int64)
    index = np.arange(len(candidate.ids))
    first[candidate.ids[::-1]] = index[::-1]
    first[0] = 0
    fragments = basins.read(Box((z, 0, 0), (z + 1, y, x)))[0]
    return np.asarray(first[candidate.ids[fragments]], dtype=np.int64)
