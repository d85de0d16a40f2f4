"""``clemreg simulate``: pairs, and predictions, with known truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clemreg.cli.console import OverwriteOption, progress_bar, require_free, result

app = typer.Typer(
    no_args_is_help=True,
    help="Make volumes whose truth is known: a CLEM pair, or predictions of organelles.",
)


def add_to(parent: typer.Typer) -> None:
    """Attach the command group."""
    parent.add_typer(app, name="simulate")


@app.command()
def clem(
    out: Annotated[Path, typer.Option(help="Folder for the pair.")],
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    microscope: Annotated[str, typer.Option(help="palm or sim.")] = "palm",
    em_shape: Annotated[str, typer.Option(help="EM voxels x,y,z.")] = "400,384,160",
    em_spacing: Annotated[str, typer.Option(help='EM voxel size "x, y, z unit".')] = "16,16,16 nm",
    rotation: Annotated[float, typer.Option(help="Rotation about z in degrees.")] = 17.0,
    transform: Annotated[
        Path | None, typer.Option(help="True transform from an elastix file instead.")
    ] = None,
    em: Annotated[Path | None, typer.Option(help="Real EM; needs --labels.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Mitochondria mask of the real EM.")] = None,
    spacing: Annotated[
        str | None, typer.Option(help='Voxel size "x, y, z unit" of --em and --labels.')
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Simulate a CLEM pair: EM, PALM or SIM, ER landmarks, and the true transform."""
    from clemreg.pipeline.simulate import OUTPUTS, SimulateCommand, simulate

    require_free(*(out / name for name in OUTPUTS), overwrite=overwrite)
    command = SimulateCommand(
        out=out,
        seed=seed,
        microscope=microscope,
        em_shape=em_shape,
        em_spacing=em_spacing,
        rotation_deg=rotation,
        transform=transform,
        em=em,
        labels=labels,
        spacing=spacing,
    )
    with progress_bar("simulate") as progress:
        simulate(command, progress)
    result(f"wrote {out}; now: clemreg run {out / 'config.toml'}")


@app.command()
def organelles(
    out: Annotated[Path, typer.Option(help="Folder for the predictions and the truth.")],
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Draw a piece of cell as predictions of its organelles, with the truth about each."""
    from clemreg.pipeline.simulate import ORGANELLES, simulate_organelles

    require_free(*(out / name for name in ORGANELLES), overwrite=overwrite)
    with progress_bar("simulate") as progress:
        simulate_organelles(out, seed, progress)
    result(f"wrote {out}; now: clemreg organelles {out / 'cell.toml'}")
