"""``clemreg planarity``: a mask in, planarity and its tables out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clemreg.blocks.stages import Blockwise
from clemreg.io.atomic import put_in_place
from clemreg.io.volumes import WriteOptions, write_volume
from clemreg.measure.curvature import curvature_histogram
from clemreg.measure.planarity import PlanarityOptions, measure_planarity, site_planarity
from clemreg.measure.tables import Table
from clemreg.pipeline.measure import open_ids, open_mask, working_folder
from clemreg.pipeline.reconstruct import reconstruct

CURVATURE_SIGMA_NM = 12.0
CURVATURE_EDGES_PER_NM = np.linspace(-0.1, 0.1, 81)


@dataclass(frozen=True)
class PlanarityFiles:
    """What is read and written.

    Attributes
    ----------
    mask, spacing
        Organelle, and its voxel size ``"x, y, z unit"`` if the file has none.
    out, medial
        Planarity and medial surface to write.
    curvature
        Whether curvature is measured, too.
    contacts
        Label volume of contact sites.
    reconstructed
        Labels to write: what planarity covers (see `clemreg.pipeline.reconstruct`).
    """

    mask: str
    out: Path
    spacing: str | None
    medial: Path | None
    curvature: bool
    contacts: str | None
    reconstructed: Path | None = None


@dataclass(frozen=True, eq=False)
class PlanarityTables:
    """Tables by sheetness, by thickness, by curvature and by contact site; None: not asked for."""

    histogram: Table
    thickness: Table
    curvature: Table | None
    sites: Table | None


def planarity_of(
    files: PlanarityFiles, options: PlanarityOptions, how: Blockwise
) -> PlanarityTables:
    """Measure and write; a killed run goes on where it stopped."""
    mask = open_mask(files.mask, files.spacing)
    curvature = sites = None
    inputs, job = (files.mask, files.contacts), (options, how.block, mask.grid)
    with working_folder((files.out,), inputs, job) as scratch:
        folder = scratch or files.out.parent
        made = folder / "planarity.zarr"
        found = measure_planarity(mask, made, folder, options, how=how)
        if files.curvature:
            edges = CURVATURE_EDGES_PER_NM
            stage = how.named("curvature")
            curvature = curvature_histogram(
                mask, CURVATURE_SIGMA_NM, edges, how=stage, scratch=folder
            )
        if files.contacts is not None:
            contacts = open_ids(files.contacts, files.spacing)
            sites = site_planarity(contacts, found.volume, how=how, scratch=folder)
        if files.reconstructed is not None:
            reconstruct(made, files.reconstructed, how)
        if files.medial is not None:
            write_volume(files.medial, found.medial, options=WriteOptions(labels=True))
        put_in_place(made, files.out)
    return PlanarityTables(found.histogram, found.thickness, curvature, sites)
