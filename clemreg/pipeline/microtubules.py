"""``clemreg microtubules``: a prediction in, traced microtubules out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clemreg.blocks.stages import Blockwise, VolumeFile
from clemreg.errors import DataError
from clemreg.io.atomic import atomic_write_json, put_in_place
from clemreg.io.skeletons import Skeleton, read_skeleton, write_skeleton
from clemreg.measure.microtubules.baseline import skeleton_tracks
from clemreg.measure.microtubules.candidates import CandidateOptions, find_candidates
from clemreg.measure.microtubules.graph import Graph, build_graph
from clemreg.measure.microtubules.score import score_tracks
from clemreg.measure.microtubules.trace import TraceOptions, Tracks, trace
from clemreg.measure.microtubules.tubes import Tube, write_tubes
from clemreg.pipeline.measure import open_prediction, working_folder
from clemreg.space.grid import Grid
from clemreg.space.transform import FloatArray

OUTPUTS = ("wall.zarr", "lumen.zarr", "tracks.nml", "tracks.swc")


@dataclass(frozen=True)
class MicrotubuleCommand:
    """What ``clemreg microtubules`` was told.

    Attributes
    ----------
    prediction
        Volume of the microtubule channel.
    out
        Folder for ``tracks.swc``, ``tracks.nml``, ``wall.zarr`` and ``lumen.zarr``.
    truth
        SWC or NML file to score against; the baseline is scored beside.
    candidates, tracing, tube
        Options of the three parts.
    max_neighbours
        Supported neighbours of a candidate, on average, beyond which it is no microtubules; see
        `clemreg.measure.microtubules.graph.Graph.supported_neighbours`.
    json
        File for the figures of the report.
    """

    prediction: VolumeFile
    out: Path
    truth: Path | None = None
    candidates: CandidateOptions = field(default_factory=CandidateOptions)
    tracing: TraceOptions = field(default_factory=TraceOptions)
    tube: Tube = field(default_factory=Tube)
    max_neighbours: float = 8.0
    json: Path | None = None


def microtubules_in_file(
    command: MicrotubuleCommand, how: Blockwise | None = None
) -> dict[str, Any]:
    """Trace, draw and score; return the figures of the report. A killed run goes on.

    Raises
    ------
    DataError
        The candidates are so many and so well joined that these are no microtubules.
    """
    how = how or Blockwise()
    prediction = open_prediction(command.prediction)
    truth = None if command.truth is None else read_skeleton(command.truth).lines()
    out = command.out
    chosen = (command.candidates, command.tracing, command.tube, command.prediction.channel)
    parts = (*chosen, how.block, prediction.grid)
    outputs = (out / "tracks.swc", *(out / name for name in OUTPUTS), command.json)
    with working_folder(outputs, (command.prediction.uri,), parts) as given:
        scratch = given or out
        points = find_candidates(prediction, command.candidates, how=how, scratch=scratch)
        reach_nm = command.tracing.reach_nm
        graph = build_graph(points, prediction, reach_nm, how=how, scratch=scratch)
        found = _crowd(graph, prediction.grid)
        _refuse_crowd(found, prediction.name, command)
        tracks = trace(graph, command.tracing, how=how, scratch=scratch)
        made = write_tubes(tracks.lines_nm, prediction.grid, scratch, command.tube, how=how)
        for path in made:
            put_in_place(path, out / path.name)
        skeleton = Skeleton.of_lines(tracks.lines_nm, command.tube.outer_nm)
        for name in ("tracks.nml", "tracks.swc"):
            write_skeleton(skeleton, out / name, unit="nm")
        report = {**_summary(tracks), **found}
        if truth is not None:
            report["score"] = score_tracks(tracks.lines_nm, truth).to_json()
            report["baseline"] = score_tracks(skeleton_tracks(prediction), truth).to_json()
        if command.json is not None:
            atomic_write_json(command.json, {"microtubules": report})
    return {"microtubules": report}


def _crowd(graph: Graph, grid: Grid) -> dict[str, Any]:
    """Count the candidates, in all, in a cubic micrometre, and around one."""
    count = len(graph.points_nm)
    return {
        "candidates": count,
        "candidates_per_um3": count / (float(np.prod(grid.extent_nm)) * 1e-9),
        "supported_neighbours": float(graph.supported_neighbours.mean()) if count else 0.0,
        "edges": len(graph.edges),
    }


def _refuse_crowd(found: dict[str, Any], name: str, command: MicrotubuleCommand) -> None:
    """Say in words what would otherwise be hours of a program without a good answer."""
    if found["supported_neighbours"] <= command.max_neighbours:
        return
    options = command.candidates
    raise DataError(
        f"{name} gives {found['candidates']} candidate points, {found['candidates_per_um3']:.0f} "
        f"per um3, and each is joined to {found['supported_neighbours']:.1f} others within "
        f"{command.tracing.reach_nm:g} nm without a gap; on microtubules it is 2 to 4, and at "
        f"most {command.max_neighbours:g} are allowed",
        hint="is this the microtubule channel? If it is, raise the threshold (now "
        f"{options.threshold:g}); with a higher max-neighbours it is traced all the same, "
        "which may take hours",
    )


def _summary(tracks: Tracks) -> dict[str, Any]:
    length = tracks.length_nm
    return {
        "count": len(length),
        "length_um": float(length.sum()) / 1e3,
        "mean_length_nm": float(length.mean()) if len(length) else float("nan"),
        "curvature_per_um": _mean_curvature(tracks.lines_nm) * 1e3,
        "cost": tracks.cost,
        "unproven_blocks": tracks.unproven,
    }


def _mean_curvature(lines_nm: Sequence[FloatArray]) -> float:
    """Return the turning angle (radians) per nm, over all lines; NaN without any."""
    angle = length = 0.0
    for line in lines_nm:
        step = np.diff(line, axis=0)
        size = np.linalg.norm(step, axis=1)
        unit = step / size[:, None]
        angle += float(np.arccos(np.clip((unit[1:] * unit[:-1]).sum(axis=1), -1, 1)).sum())
        length += float(size.sum())
    return angle / length if length else float("nan")
