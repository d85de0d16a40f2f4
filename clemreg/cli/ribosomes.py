"""``clemreg ribosomes``: where they are, and what they sit on."""

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
from clemreg.cli.measure import (
    BlockOption,
    ChannelOption,
    ExecutorOption,
    SpacingOption,
    WorkersOption,
)


def add_to(parent: typer.Typer) -> None:
    """Attach the command."""
    parent.command()(ribosomes)


def ribosomes(
    prediction: Annotated[str, typer.Argument(help="Prediction of ribosomes, or a mask.")],
    out: Annotated[Path, typer.Option(help="Folder for the table and the volumes.")],
    planarity: Annotated[
        str | None, typer.Option(help="Planarity of the reconstructed ER; gives the classes.")
    ] = None,
    nuclear_envelope: Annotated[
        str | None, typer.Option(help="Mask of the nuclear envelope, or of the nucleus.")
    ] = None,
    threshold: Annotated[float, typer.Option(help="Foreground is at or above.")] = 127,
    radius: Annotated[float, typer.Option(help="Radius of a ribosome, nm.")] = 10,
    separation: Annotated[float, typer.Option(help="Least distance of two centres, nm.")] = 16,
    min_fraction: Annotated[float, typer.Option(help="Least filled share of the sphere.")] = 0.3,
    contact: Annotated[float, typer.Option(help="Largest distance to the ER, nm.")] = 10,
    expand: Annotated[
        float, typer.Option(help="ER within this of the nuclear envelope is nuclear, nm.")
    ] = 20,
    sheet: Annotated[float, typer.Option(help="Planarity from which the ER is a sheet.")] = 0.6,
    channel: ChannelOption = None,
    spacing: SpacingOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
    block: BlockOption = 128,
    workers: WorkersOption = 1,
    executor: ExecutorOption = "threads",
) -> None:
    """Find ribosomes, draw them as spheres, and class them by the membrane they sit on."""
    from clemreg.measure.binding import BindingOptions
    from clemreg.measure.ribosomes import RibosomeOptions
    from clemreg.pipeline.measure import blockwise, require_free_results, volume_file
    from clemreg.pipeline.ribosomes import OUTPUTS, RibosomeCommand, ribosomes_in_file

    require_free_results(*(out / name for name in OUTPUTS), overwrite=overwrite)
    command = RibosomeCommand(
        volume_file(prediction, spacing, channel),
        out,
        planarity,
        nuclear_envelope,
        RibosomeOptions(radius, separation, threshold, min_fraction),
        BindingOptions(radius, contact, sheet, expand),
        json=json,
    )
    with (
        progress_bar("ribosomes") as progress,
        blockwise(block, workers, executor, progress) as how,
    ):
        report = ribosomes_in_file(command, how)
    table(report)
    say_written(json)
    result(f"wrote {out / 'ribosomes.csv'}")
