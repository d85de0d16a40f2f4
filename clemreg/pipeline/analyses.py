"""The analyses of `clemreg organelles`: from their section of the configuration to their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clemreg.blocks.stages import Blockwise
from clemreg.config_organelles import (
    ContactConfig,
    MeasureConfig,
    MeshConfig,
    MicrotubulesConfig,
    PlanarityConfig,
    ReconstructConfig,
    RibosomesConfig,
    SkeletonConfig,
)
from clemreg.measure.binding import BindingOptions
from clemreg.measure.contacts import ContactOptions, find_contacts
from clemreg.measure.interactions import named
from clemreg.measure.microtubules.candidates import CandidateOptions
from clemreg.measure.microtubules.program import Costs
from clemreg.measure.microtubules.trace import TraceOptions
from clemreg.measure.morphology import measure_objects
from clemreg.measure.planarity import planar_areas, planar_sites, site_planarity, split
from clemreg.measure.ribosomes import RibosomeOptions
from clemreg.measure.skeleton import skeleton_table
from clemreg.measure.tables import read_table, write_table
from clemreg.pipeline.measure import (
    contact_options,
    mesh_options,
    meshes_of,
    open_ids,
    open_mask,
    planarity_options,
    skeleton_options,
    skeletons_of,
    summary,
    working_folder,
)
from clemreg.pipeline.microtubules import MicrotubuleCommand, microtubules_in_file
from clemreg.pipeline.objects import report_objects
from clemreg.pipeline.planarity import PlanarityFiles, planarity_of
from clemreg.pipeline.reconstruct import reconstruct
from clemreg.pipeline.ribosomes import RibosomeCommand, ribosomes_in_file
from clemreg.refine.objects import count_voxels
from clemreg.units import parse_length_nm
from clemreg.volume import Volume

WALLS, SPHERES, RECONSTRUCTED = "wall.zarr", "spheres.zarr", "labels.zarr"
"""The ids of microtubules, ribosomes and reconstructions, in the folder of their step."""


def trace_step(
    config: MicrotubulesConfig, command: MicrotubuleCommand, how: Blockwise
) -> Mapping[str, Any]:
    """Trace microtubules as configured; return the summary of the step.

    Parameters
    ----------
    command
        What is read and written.
    """
    costs = Costs(config.evidence, config.angle, config.end, config.selection)
    block_nm, context_nm, reach_nm = (
        parse_length_nm(text) for text in (config.block, config.context, config.reach)
    )
    command = replace(
        command,
        candidates=CandidateOptions(threshold=config.threshold),
        tracing=TraceOptions(block_nm, context_nm, reach_nm, config.time_limit_s, costs),
        max_neighbours=config.max_neighbours,
    )
    found = microtubules_in_file(command, how)["microtubules"]
    return {"objects": found.pop("count"), **found}


def ribosome_step(
    config: RibosomesConfig, command: RibosomeCommand, how: Blockwise
) -> Mapping[str, Any]:
    """Find ribosomes as configured; return the summary of the step.

    Parameters
    ----------
    command
        What is read and written.
    """
    lengths = (config.radius, config.separation, config.contact, config.expand)
    radius_nm, separation_nm, contact_nm, expand_nm = map(parse_length_nm, lengths)
    command = replace(
        command,
        options=RibosomeOptions(radius_nm, separation_nm, config.threshold, config.min_fraction),
        binding=BindingOptions(radius_nm, contact_nm, config.sheet, expand_nm),
    )
    found = ribosomes_in_file(command, how)["ribosomes"]
    return {"objects": found.pop("count"), **found}


def labels_of(config: MicrotubulesConfig | RibosomesConfig, folder: Path) -> Path:
    """Where the ids of a step are, whose folder is given."""
    return folder / (WALLS if isinstance(config, MicrotubulesConfig) else SPHERES)


def options_of(contact: ContactConfig) -> ContactOptions:
    """How the contacts of a section are found."""
    return contact_options(
        contact.recipe, contact.distance, contact.method, contact.overlap, contact.min_volume_nm3
    )


def measure_step(
    labels: str, cell: Volume | None, config: MeasureConfig, folder: Path, how: Blockwise
) -> Mapping[str, Any]:
    """Measure every object, as configured; return the summary of the step."""
    ids = open_ids(labels)
    out = folder / "objects.csv"
    with working_folder((out,)) as scratch:
        objects = measure_objects(ids, cell=cell, how=how, scratch=scratch)
        if config.report and len(objects):
            report_objects(ids, objects, folder / "report.html", how, scratch)
    write_table(out, objects)
    shown = ["volume_nm3", "surface_nm2", "semi_axis_1_nm", "sphericity"]
    return summary(objects, [*shown, *(["fraction_of_cell"] if cell else [])])


def contact_step(
    config: ContactConfig, labels: Callable[[str], str], folder: Path, how: Blockwise
) -> Mapping[str, Any]:
    """Find contact sites, as configured; return the summary of the step.

    Parameters
    ----------
    labels
        Says where the ids of an organelle are.
    """
    a = open_ids(labels(config.a))
    b = open_ids(labels(config.b)) if config.b else None
    out = folder / "sites.zarr"
    options = options_of(config)
    with working_folder((out,)) as scratch:
        found = find_contacts(a, b, options, how=how, scratch=scratch, out=out)
    sites = named(found, config.a, config.b or config.a)
    write_table(folder / "contacts.csv", sites)
    return summary(sites, ["volume_nm3", "area_a_nm2", "area_b_nm2", "gap_nm"])


def planar_sites_step(
    of_contact: Path, planarity: Path, settings: tuple[str, float], folder: Path, how: Blockwise
) -> Mapping[str, Any]:
    """Mean planarity of an organelle over each contact site, as in the paper.

    Parameters
    ----------
    of_contact
        Folder of the contact.
    planarity
        Of the organelle.
    settings
        Which side of the contact it is, ``"a"`` or ``"b"``, and where planarity is cut.
    """
    side, cut = settings
    sites = read_table(of_contact / "contacts.csv")
    out = folder / "planarity.csv"
    with working_folder((out,)) as scratch:
        found = site_planarity(
            open_ids(str(of_contact / "sites.zarr")),
            open_mask(str(planarity)),
            how=how,
            scratch=scratch,
        )
    table = planar_sites(sites, found)
    write_table(out, table)
    areas = planar_areas(table, f"area_{side}_nm2", cut)
    return {"cut": cut, **summary(table, ["planarity"]), **areas}


def reconstruct_step(
    planarity: Path, mask: Volume | None, config: ReconstructConfig, folder: Path, how: Blockwise
) -> Mapping[str, Any]:
    """Reconstruct an organelle, as configured; return the summary of the step."""
    out = folder / RECONSTRUCTED
    labels = reconstruct(planarity, out, how, mask, parse_length_nm(config.expand))
    with working_folder((out,)) as scratch:
        counts = (scratch or folder) / "counts"
        ids, voxels = count_voxels(labels.read, labels.grid, counts, how)
    volume_um3 = float(voxels.sum() * np.prod(labels.grid.spacing_nm) / 1e9)
    return {"objects": len(ids), "volume_um3": volume_um3}


def skeleton_step(
    labels: str, config: SkeletonConfig, folder: Path, how: Blockwise
) -> Mapping[str, Any]:
    """Thin every object to its centre line, as configured; return the summary of the step."""
    options = skeleton_options(config.shortest_branch, config.memory_gb)
    out = folder / "skeletons.csv"
    with working_folder((out,)) as scratch:
        rows = skeletons_of(open_ids(labels), options, how, scratch, folder / "swc")
    lines = skeleton_table(rows)
    write_table(out, lines)
    shown = ["length_nm", "smooth_length_nm", "radius_mean_nm", "branches"]
    return summary(lines, shown if rows else [])


def planarity_step(
    labels: str, config: PlanarityConfig, folder: Path, how: Blockwise
) -> Mapping[str, Any]:
    """Measure sheets and tubes, as configured; return the summary of the step."""
    options = planarity_options(config.cut, config.scale_rule, config.scales, config.largest_radius)
    files = PlanarityFiles(
        labels,
        folder / "planarity.zarr",
        histogram=folder / "planarity.csv",
        thickness=folder / "thickness.csv",
        curvature=folder / "curvature.csv" if config.curvature else None,
        report=folder / "report.html" if config.report else None,
    )
    with working_folder(files.outputs, (labels,), (options, how.block)) as scratch:
        found = planarity_of(files, options, how, scratch)
    return {"cut": config.cut, **split(found.histogram, config.cut)}


def mesh_step(labels: str, config: MeshConfig, folder: Path, how: Blockwise) -> Mapping[str, Any]:
    """Mesh every object, as configured; return the summary of the step."""
    options = mesh_options(config.smoothing, config.keep, config.memory_gb)
    out = folder / "meshes"
    with working_folder((out,)) as scratch:
        found = meshes_of(open_ids(labels), out, config.format, options, how, scratch)
    write_table(folder / "meshes.csv", found)
    return summary(found, ["triangles", "volume_nm3", "area_nm2"])
