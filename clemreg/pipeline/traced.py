"""Microtubules and ribosomes as steps of `clemreg organelles`: from its configuration to tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clemreg.blocks.stages import Blockwise
from clemreg.config_organelles import MicrotubulesConfig, RibosomesConfig
from clemreg.measure.binding import BindingOptions
from clemreg.measure.microtubules.candidates import CandidateOptions
from clemreg.measure.microtubules.program import Costs
from clemreg.measure.microtubules.trace import TraceOptions
from clemreg.measure.ribosomes import RibosomeOptions
from clemreg.pipeline.microtubules import MicrotubuleCommand, microtubules_in_file
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
