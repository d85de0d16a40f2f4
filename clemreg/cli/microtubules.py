"""``clemreg microtubules``: trace them in a prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clemreg.cli.console import (
    JsonOption,
    OverwriteOption,
    progress_bar,
    result,
    say_written,
    table,
)
from clemreg.cli.measure import ChannelOption, ExecutorOption, SpacingOption, WorkersOption

# Edge of the blocks that candidates are looked for in; --block is that of the program's cubes.
VOXELS = 128


def add_to(parent: typer.Typer) -> None:
    """Attach the command."""
    parent.command()(microtubules)


def microtubules(
    prediction: Annotated[str, typer.Argument(help="Prediction of microtubules.")],
    out: Annotated[Path, typer.Option(help="Folder for the tracks and the tubes.")],
    truth: Annotated[
        Path | None, typer.Option(help="True tracks (.swc, .nml) to score against.")
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="Prediction (0 to 1) above which a voxel may be a point.")
    ] = 0.4,
    reach: Annotated[float, typer.Option(help="Longest step between points, nm.")] = 180,
    block: Annotated[float, typer.Option(help="Edge of the cubes solved at a time, nm.")] = 400,
    context: Annotated[float, typer.Option(help="Width solved around a cube, nm.")] = 400,
    evidence: Annotated[float, typer.Option(help="Cost of missing support.")] = 200,
    angle: Annotated[float, typer.Option(help="Cost of bending.")] = 22,
    end: Annotated[float, typer.Option(help="Cost of an end.")] = 200,
    selection: Annotated[float, typer.Option(help="Cost (a reward) of every point.")] = -200,
    time_limit: Annotated[float, typer.Option(help="Seconds per cube.")] = 120,
    max_neighbours: Annotated[
        float,
        typer.Option(help="Refuse where a point has more supported neighbours, on average."),
    ] = 8,
    channel: ChannelOption = None,
    spacing: SpacingOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
    workers: WorkersOption = 1,
    executor: ExecutorOption = "threads",
) -> None:
    """Trace microtubules: tracks as SWC and NML, hollow tubes as volumes, a score with --truth."""
    from clemreg.measure.microtubules.candidates import CandidateOptions
    from clemreg.measure.microtubules.program import Costs
    from clemreg.measure.microtubules.trace import TraceOptions
    from clemreg.pipeline.measure import blockwise, require_free_results, volume_file
    from clemreg.pipeline.microtubules import OUTPUTS, MicrotubuleCommand, microtubules_in_file

    require_free_results(*(out / name for name in OUTPUTS), overwrite=overwrite)
    costs = Costs(evidence, angle, end, selection)
    command = MicrotubuleCommand(
        volume_file(prediction, spacing, channel),
        out,
        truth,
        CandidateOptions(threshold=threshold),
        TraceOptions(block, context, reach, time_limit, costs),
        max_neighbours=max_neighbours,
        json=json,
    )
    with (
        progress_bar("microtubules") as progress,
        blockwise(VOXELS, workers, executor, progress) as how,
    ):
        report = microtubules_in_file(command, how)
    table(report)
    say_written(json)
    result(f"wrote {out / 'tracks.swc'}")
