"""The analyses of `clemreg organelles`: from their section of the configuration to their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clemreg.blocks.stages import Blockwise
from clemreg.config_organelles import (
    ContactConfig,
    MeshConfig,
    MicrotubulesConfig,
    PlanarityConfig,
    RibosomesConfig,
    SkeletonConfig,
)
from clemreg.measure.binding import BindingOptions
from clemreg.measure.contacts import ContactOptions
from clemreg.measure.microtubules.candidates import CandidateOptions
from clemreg.measure.microtubules.program import Costs
from clemreg.measure.microtubules.trace import TraceOptions
from clemreg.measure.planarity import split
from clemreg.measure.ribosomes import RibosomeOptions
from clemreg.measure.skeleton import skeleton_table
from clemreg.measure.tables import write_table
from clemreg.pipeline.measure import (
    contact_options,
    mesh_options,
    meshes_of,
    open_ids,
    planarity_options,
    skeleton_options,
    skeletons_of,
    summary,
    working_folder,
)
from clemreg.pipeline.microtubules import MicrotubuleCommand, microtubules_in_file
from clemreg.pipeline.planarity import PlanarityFiles, planarity_of
from clemreg.pipeline.ribosomes import RibosomeCommand, ribosomes_in_file
from clemreg.units import parse_length_nm

WALLS, SPHERES = "wall.zarr", "spheres.zarr"
"""The ids of microtubules and of ribosomes, in the folder of their step."""


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
    radius_nm, separation_nm, contact_nm = (
        parse_length_nm(text) for text in (config.radius, config.separation, config.contact)
    )
    command = replace(
        command,
        options=RibosomeOptions(radius_nm, separation_nm, config.threshold, config.min_fraction),
        binding=BindingOptions(radius_nm, contact_nm, config.sheet),
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
    out = folder / "planarity.zarr"
    found = planarity_of(
        PlanarityFiles(labels, out, None, None, config.curvature, None), options, how
    )
    write_table(folder / "planarity.csv", found.histogram)
    write_table(folder / "thickness.csv", found.thickness)
    if found.curvature is not None:
        write_table(folder / "curvature.csv", found.curvature)
    return {"cut": config.cut, **split(found.histogram, config.cut)}


def mesh_step(labels: str, config: MeshConfig, folder: Path, how: Blockwise) -> Mapping[str, Any]:
    """Mesh every object, as configured; return the summary of the step."""
    options = mesh_options(config.smoothing, config.keep, config.memory_gb)
    out = folder / "meshes"
    with working_folder((out,)) as scratch:
        found = meshes_of(open_ids(labels), out, config.format, options, how, scratch)
    write_table(folder / "meshes.csv", found)
    return summary(found, ["triangles", "volume_nm3", "area_nm2"])
