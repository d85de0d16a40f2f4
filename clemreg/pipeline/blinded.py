"""``clemreg ab``: make the page of a blinded comparison, and read what was chosen."""

from __future__ import annotations

import csv
import io
import logging
import math
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clemreg.blocks.run import Progress
from clemreg.errors import DataError, GridError
from clemreg.evaluate.blinded import (
    Key,
    Pair,
    decode,
    draw_pairs,
    preference,
    read_choices,
    read_key,
)
from clemreg.evaluate.masks import MaskView, foreground, mask_on
from clemreg.io.atomic import atomic_write_text
from clemreg.io.volumes import open_volume
from clemreg.report.blinded import as_grey, render_pairs
from clemreg.space.grid import Box, Grid
from clemreg.units import given_xyz_nm
from clemreg.volume import Volume

log = logging.getLogger(__name__)

PAGE, KEY = "pairs.html", "key.json"
# Origins may differ by so much of a voxel: some files state corners, some centres.
_SAME_VOXEL = 0.6


@dataclass(frozen=True)
class BlindedOptions:
    """How to draw a blinded comparison.

    Attributes
    ----------
    channel
        Class, if the predictions have channels; empty: the first.
    spacing
        Voxel size ``"x, y, z unit"`` of files that have none.
    count, edge
        Number of places, at most, and their voxels along each axis.
    seed
        Of places and sides; None: one by chance, so that no two comparisons have the same sides.
    """

    channel: str = ""
    spacing: str | None = None
    count: int = 100
    edge: int = 150
    seed: int | None = None


def start_comparison(
    em: str,
    predictions: tuple[str, str],
    out: Path,
    options: BlindedOptions | None = None,
    *,
    progress: Progress | None = None,
) -> Path:
    """Write ``pairs.html``, for the one who judges, and ``key.json``, not for their eyes.

    Parameters
    ----------
    em
        EM on whose voxels both predictions lie.
    predictions
        Signed distances in uint8, or masks.

    Raises
    ------
    GridError
        The predictions do not lie on the voxels of the EM.
    DataError
        The predictions are empty.
    """
    options = options or BlindedOptions()
    size = given_xyz_nm(options.spacing)
    volume = _plain(open_volume(em, spacing_nm=size), "")
    masks = [_mask(open_volume(p, spacing_nm=size), volume, options) for p in predictions]
    shape = volume.grid.shape
    pairs = draw_pairs(
        shape,
        count=options.count,
        edge=options.edge,
        seed=secrets.randbits(32) if options.seed is None else options.seed,
        worth=lambda box: any(_shows(mask, box) for mask in masks),
    )
    _tell_too_few(pairs, options.count, volume.grid)
    shown = []
    for done, pair in enumerate(pairs):
        block = volume.read(pair.box)
        low, high = (float(v) for v in np.percentile(block, [0.5, 99.5]))
        grey = as_grey(block, (low, high if high > low else low + 1))
        shown.append((pair, grey, masks[0][pair.box.slices], masks[1][pair.box.slices]))
        if progress is not None:
            progress(done + 1, len(pairs), "places")
    key = Key(predictions[0], predictions[1], pairs, secrets.token_hex(8))
    key.write(out / KEY)
    page = render_pairs("Which prediction is better?", shown, volume.grid.spacing_nm, key.page)
    atomic_write_text(out / PAGE, page)
    return out / PAGE


def read_comparison(folder: Path, choices: Path, decoded: Path | None = None) -> dict[str, Any]:
    """Count what was chosen and test it; optionally write ``pair,choice`` with the names.

    Raises
    ------
    FormatError
        Choices and key do not belong together.
    DataError
        Nothing was chosen.
    """
    key = read_key(folder / KEY)
    chosen = read_choices(choices, key.page)
    if not chosen:
        raise DataError(f"{choices} holds no choice")
    if decoded is not None:
        names = {"a": key.a, "b": key.b, "neither": "neither"}
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("pair", "choice"))
        rows.writerows((n, names[side]) for n, side in sorted(decode(key, chosen).items()))
        atomic_write_text(decoded, text.getvalue())
    return preference(key, chosen).to_json()


def _mask(found: Volume, em: Volume, options: BlindedOptions) -> MaskView:
    found = _plain(found, options.channel)
    if found.shape != em.shape:
        raise GridError(
            f"{found.name} has {found.shape} voxels, the EM {em.shape}",
            hint="give the level of the EM that the predictions were made on",
        )
    if not _lie_together(found.grid, em.grid):
        raise GridError(
            f"{found.name} has voxels of {found.grid.spacing_nm} nm from {found.grid.origin_nm} nm "
            f"on, the EM of {em.grid.spacing_nm} nm from {em.grid.origin_nm} nm on (z, y, x)",
            hint="both must show the same place: `clemreg info` shows origin and voxel size",
        )
    return mask_on(found, found.grid, foreground(found))


def _lie_together(found: Grid, em: Grid) -> bool:
    """Whether voxels of one are those of the other; files without origin (0) fit everything."""
    shift = np.subtract(found.origin_nm, em.origin_nm) / em.spacing_nm
    stated = any(found.origin_nm) and any(em.origin_nm)
    same_size = np.allclose(found.spacing_nm, em.spacing_nm, rtol=1e-3)
    return same_size and (not stated or bool((np.abs(shift) < _SAME_VOXEL).all()))


def _shows(mask: MaskView, box: Box) -> bool:
    """Whether one of the three planes that are shown of a place holds something."""
    block = mask[box.slices]
    z, y, x = (n // 2 for n in block.shape)
    return bool(block[z].any() or block[:, y].any() or block[:, :, x].any())


def _tell_too_few(pairs: tuple[Pair, ...], wanted: int, em: Grid) -> None:
    """Warn of fewer places than asked for, and of places that cannot but overlap."""
    edges = " x ".join(str(n) for n in pairs[0].box.shape)
    if len(pairs) < wanted:
        log.warning(
            "only %d different places of %s voxels were found that show something, not %d: "
            "a smaller --edge gives more",
            len(pairs), edges, wanted,
        )  # fmt: skip
    if len(pairs) * math.prod(pairs[0].box.shape) > math.prod(em.shape) and len(pairs) > 1:
        log.warning(
            "%d places of %s voxels are more than the EM holds side by side: they overlap, so "
            "choices repeat each other and the p-value is too small; a smaller --edge or --count "
            "helps",
            len(pairs), edges,
        )  # fmt: skip


def _plain(volume: Volume, channel: str) -> Volume:
    if not volume.channels:
        return volume
    return volume.channel(channel or 0)
