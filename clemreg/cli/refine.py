"""``clemreg refine``: predictions to organelles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clemreg.cli.console import (
    JsonOption,
    OverwriteOption,
    format_value,
    progress_bar,
    result,
    say_written,
    table,
    write_json,
)
from clemreg.cli.measure import (
    BlockOption,
    ChannelOption,
    ExecutorOption,
    SpacingOption,
    WorkersOption,
)


def add_to(parent: typer.Typer) -> None:
    """Attach the commands."""
    parent.command()(refine)
    parent.command("refine-scan")(refine_scan)


def refine(
    source: Annotated[
        str, typer.Argument(help="Predictions: a volume with channels, or a folder of volumes.")
    ],
    out: Annotated[Path, typer.Option(help="OME-Zarr group to write, one image an organelle.")],
    recipe: Annotated[
        str, typer.Option(help="Preset (generic, heinrich2021/jrc_hela-2, ...) or TOML file.")
    ] = "generic",
    organelle: Annotated[
        list[str] | None, typer.Option(help="Only this one and what it needs; repeat.")
    ] = None,
    spacing: SpacingOption = None,
    block: BlockOption = 128,
    executor: ExecutorOption = "processes",
    workers: WorkersOption = 1,
    json: JsonOption = None,
) -> None:
    """Turn predictions into organelles by a recipe; killed runs go on where they stopped."""
    from clemreg.pipeline.refine import RefineOptions, refine_cell

    name = "serial" if workers == 1 and executor == "processes" else executor
    options = RefineOptions(tuple(organelle or ()), spacing, block, name, workers)
    with progress_bar("refine") as progress:
        report = refine_cell(source, recipe, out, options=options, progress=progress)
    table(report["organelles"])
    if report["skipped"]:
        table({"skipped": report["skipped"]})
    write_json(json, report)
    result(f"wrote {out}")


def refine_scan(
    prediction: Annotated[str, typer.Argument(help="Prediction: uint8 signed distances.")],
    out: Annotated[Path, typer.Option(help="Folder for scan.html and scan.json.")],
    quantiles: Annotated[str, typer.Option(help="Quantiles to try, 0 to 1.")] = "0.25,0.5",
    thresholds: Annotated[
        str, typer.Option(help="Thresholds to try, 0 to 1.")
    ] = "0.6,0.7,0.8,0.875,0.9,0.95",
    truth: Annotated[str | None, typer.Option(help="Annotated ids, to score with.")] = None,
    channel: ChannelOption = None,
    min_volume_nm3: Annotated[float, typer.Option(help="Leave out objects up to this.")] = 2e7,
    sigma_nm: Annotated[float, typer.Option(help="Gaussian before the watershed.")] = 12.0,
    spacing: SpacingOption = None,
    block: BlockOption = 128,
    workers: WorkersOption = 1,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
) -> None:
    """Split touching objects with many settings, side by side on a page to choose from."""
    from clemreg.pipeline.measure import require_free_results
    from clemreg.pipeline.scan import FIGURES, PAGE, ScanOptions, scan_file

    require_free_results(out / PAGE, out / FIGURES, overwrite=overwrite)
    options = ScanOptions(
        _numbers(quantiles, "--quantiles"),
        _numbers(thresholds, "--thresholds"),
        min_volume_nm3,
        sigma_nm,
        channel,
        spacing,
        block,
        "serial" if workers == 1 else "processes",
        workers,
    )
    with progress_bar("scan") as progress:
        report = scan_file(
            prediction, out, truth=truth, options=options, progress=progress, json=json
        )
    for candidate in report["candidates"]:
        result("  ".join(f"{k} {format_value(v)}" for k, v in candidate.items() if v is not None))
    say_written(json)
    result(f"wrote {out / 'scan.html'}")


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{option} {text!r} is not numbers with commas") from error
