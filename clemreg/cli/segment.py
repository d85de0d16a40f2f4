"""``clemreg segment``, ``train`` and ``model``: the network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clemreg.cli.console import (
    JsonOption,
    OverwriteOption,
    progress_bar,
    require_free,
    result,
    table,
    write_json,
)

models = typer.Typer(no_args_is_help=True, help="Bundled networks: list them, look at one.")


def add_to(parent: typer.Typer) -> None:
    """Attach the commands."""
    parent.command()(segment)
    parent.command()(train)
    parent.add_typer(models, name="model")


def segment(
    em: Annotated[str, typer.Argument(help="EM volume.")],
    out: Annotated[Path, typer.Option(help="Output OME-Zarr: uint8 signed distance.")],
    model: Annotated[
        str, typer.Option(help='Bundled name, .safetensors file, or "auto" for the nearest voxels.')
    ] = "auto",
    spacing: Annotated[
        str | None, typer.Option(help='EM voxel size "x, y, z unit", if the file has none.')
    ] = None,
    block: Annotated[
        int, typer.Option(help="Output voxels per block along each axis; 0: automatic.")
    ] = 0,
    contrast: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Grey values taken for black and white; else percentiles."),
    ] = None,
    mask: Annotated[
        str | None, typer.Option(help="Volume that is not 0 where to predict; 0 elsewhere.")
    ] = None,
    tta: Annotated[
        int, typer.Option(help="Average this many mirrored views: 1, 2, 4 or 8 times the time.")
    ] = 1,
    precise: Annotated[
        bool, typer.Option(help="Compute in float32 even where bfloat16 is faster.")
    ] = False,
    channel: Annotated[
        str, typer.Option(help="Channel of the EM, if it has several; else the first.")
    ] = "",
    overwrite: OverwriteOption = False,
) -> None:
    """Predict mitochondria, their membrane and ER; killed runs go on where they stopped."""
    from clemreg.pipeline.segment import SegmentSettings, segment_file

    require_free(out, overwrite=overwrite)
    settings = SegmentSettings(block, contrast, mask, tta, precise, channel)
    with progress_bar("segment") as progress:
        segment_file(em, out, model=model, spacing=spacing, settings=settings, progress=progress)
    result(f"wrote {out}")


def train(
    config: Annotated[Path, typer.Argument(help="TOML training configuration.")],
    data: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH of a training volume; repeat.")
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(help="Folder for TensorBoard: losses, scores, example slices.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Train a network; a second start goes on from the last checkpoint."""
    from clemreg.pipeline.train import train_from_config
    from clemreg.segment.parallel import writes

    with progress_bar("train") as progress:
        path = train_from_config(
            config, tuple(data or ()), journal=journal, overwrite=overwrite, progress=progress
        )
    if writes():  # of the processes of torchrun only one does
        result(f"wrote {path}")


@models.command("list")
def list_models(json: JsonOption = None) -> None:
    """List the bundled networks."""
    from clemreg.segment.models import bundled_models

    rows = {model.name: model.to_json() for model in bundled_models()}
    table(rows)
    write_json(json, rows)


@models.command("info")
def info(
    name: Annotated[str, typer.Argument(help="Bundled name, file, checkpoint or script.")],
    json: JsonOption = None,
) -> None:
    """Show what a network predicts, from which voxels, and its model card."""
    from clemreg.segment.exchange import network_info

    content = network_info(name)
    table({name: {k: v for k, v in content.items() if k != "model_card"}})
    if "model_card" in content:
        result(f"\n{content['model_card']}")
    write_json(json, content)
