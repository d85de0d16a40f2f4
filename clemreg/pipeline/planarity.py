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
from clemreg.measure.tables import Table, write_table
from clemreg.pipeline.measure import open_ids, open_mask
from clemreg.pipeline.reconstruct import reconstruct
from clemreg.report.sheets import write_sheets_report

CURVATURE_SIGMA_NM = 12.0
CURVATURE_EDGES_PER_NM = np.linspace(-0.1, 0.1, 81)


@dataclass(frozen=True)
class PlanarityFiles:
    """What is read and written; None: not asked for.

    Attributes
    ----------
    mask, spacing
        Organelle, and its voxel size ``"x, y, z unit"`` if the file has none.
    out, medial
        Planarity and medial surface to write.
    contacts
        Label volume of contact sites to read.
    reconstructed
        Labels to write: what planarity covers (see `clemreg.pipeline.reconstruct`).
    histogram, thickness, curvature, sites
        Tables to write.
    report
        Page with histograms to write.
    """

    mask: str
    out: Path
    spacing: str | None = None
    medial: Path | None = None
    contacts: str | None = None
    reconstructed: Path | None = None
    histogram: Path | None = None
    thickness: Path | None = None
    curvature: Path | None = None
    sites: Path | None = None
    report: Path | None = None

    @property
    def outputs(self) -> tuple[Path | None, ...]:
        """All that is written, the planarity first."""
        tables = (self.histogram, self.thickness, self.curvature, self.sites)
        return (self.out, self.medial, self.reconstructed, *tables, self.report)


@dataclass(frozen=True, eq=False)
class PlanarityTables:
    """Tables by sheetness, by thickness, by curvature and by contact site; None: not asked for."""

    histogram: Table
    thickness: Table
    curvature: Table | None
    sites: Table | None


def planarity_of(
    files: PlanarityFiles, options: PlanarityOptions, how: Blockwise, scratch: Path | None
) -> PlanarityTables:
    """Measure and write; a killed run goes on where it stopped.

    Parameters
    ----------
    scratch
        Working folder, see `clemreg.pipeline.measure.working_folder`; None: beside the planarity.
    """
    mask = open_mask(files.mask, files.spacing)
    curvature = sites = None
    folder = scratch or files.out.parent
    made = folder / "planarity.zarr"
    found = measure_planarity(mask, made, folder, options, how=how)
    if files.curvature is not None or files.report is not None:
        edges, stage = CURVATURE_EDGES_PER_NM, how.named("curvature")
        curvature = curvature_histogram(mask, CURVATURE_SIGMA_NM, edges, how=stage, scratch=folder)
    if files.contacts is not None:
        contacts = open_ids(files.contacts, files.spacing)
        sites = site_planarity(contacts, found.volume, how=how, scratch=folder)
    if files.reconstructed is not None:
        reconstruct(made, files.reconstructed, how)
    if files.medial is not None:
        write_volume(files.medial, found.medial, options=WriteOptions(labels=True))
    tables = PlanarityTables(found.histogram, found.thickness, curvature, sites)
    _write_tables(files, tables)
    if files.report is not None and curvature is not None:
        title = mask.name or "Sheets and tubes"
        write_sheets_report(
            files.report, title, options.cut, found.histogram, found.thickness, curvature
        )
    put_in_place(made, files.out)
    return tables


def _write_tables(files: PlanarityFiles, tables: PlanarityTables) -> None:
    for path, table in (
        (files.histogram, tables.histogram),
        (files.thickness, tables.thickness),
        (files.curvature, tables.curvature),
        (files.sites, tables.sites),
    ):
        if path is not None and table is not None:
            write_table(path, table)
