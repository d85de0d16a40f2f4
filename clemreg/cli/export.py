"""``clemreg export``: files for Fiji and other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clemreg.cli.console import progress_bar, result

app = typer.Typer(no_args_is_help=True, help="Write files that other programs open.")

RunFolder = Annotated[Path, typer.Argument(help="Folder of a finished run.")]
TransformFile = Annotated[str, typer.Argument(help="Transform file (lm -> em).")]


def add_to(parent: typer.Typer) -> None:
    """Attach the command group."""
    parent.add_typer(app, name="export")


@app.command()
def bdv(
    folder: RunFolder,
    out: Annotated[
        Path | None, typer.Option(help="XML file; default: FOLDER/export/bdv.xml.")
    ] = None,
) -> None:
    """BigDataViewer XML and HDF5: EM, prediction, light channels and warped EM in one frame."""
    from clemreg.pipeline.export import export_run_bdv

    with progress_bar("export") as progress:
        path = export_run_bdv(folder, out, progress)
    result(f"wrote {path}")


@app.command()
def bigwarp(
    transform: TransformFile,
    out: Annotated[Path, typer.Option(help="Landmark table (.csv).")],
    grid_of: Annotated[str, typer.Option(help="LM image over which landmarks are placed.")],
    spacing: Annotated[str, typer.Option(help="Distance between landmarks.")] = "1 um",
) -> None:
    """BigWarp landmarks sampled from a transform; says how well their spline reproduces it."""
    from clemreg.pipeline.export import export_bigwarp

    error = export_bigwarp(transform, grid_of, out, spacing)
    result(f"wrote {out}; thin-plate spline against transform: {error}")


@app.command()
def elastix(
    transform: TransformFile,
    out: Annotated[Path, typer.Option(help="Folder for TransformParameters.N.txt.")],
    grid_of: Annotated[str, typer.Option(help="LM image that gives the fixed grid.")],
) -> None:
    """Write elastix parameter files that transformix reads (um, x, y, z; portable names)."""
    from clemreg.pipeline.export import export_elastix

    result(f"wrote {export_elastix(transform, grid_of, out)}")


@app.command()
def itk(
    transform: TransformFile,
    out: Annotated[Path, typer.Option(help="Transform file, .h5 or .tfm.")],
) -> None:
    """ITK composite transform (um, x, y, z), for SimpleITK, ANTs and 3D Slicer."""
    from clemreg.io.transforms import read_transform, write_transform

    write_transform(read_transform(transform), out)
    result(f"wrote {out}")
