"""``clemreg apply``: use a transform."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clemreg.cli.console import (
    JsonOption,
    OverwriteOption,
    TransformUnitOption,
    progress_bar,
    result,
    say,
    table,
    write_json,
)


def add_to(parent: typer.Typer) -> None:
    """Attach the command."""
    parent.command()(apply)


def apply(
    transform: Annotated[str, typer.Argument(help="Transform file (lm -> em).")],
    subject: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE|POINTS|MESH|SKELETON",
            help="What to transform: a volume, .csv points or localisations, a mesh, a skeleton.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Output: .zarr, .n5, .tif, or as the subject.")],
    onto: Annotated[
        str | None, typer.Option(help="Image whose grid the result gets; needed for images.")
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(help='Another voxel size for that grid, "x, y, z unit".'),
    ] = None,
    inverse: Annotated[
        bool,
        typer.Option(
            "--inverse", help="Bring LM images into the EM frame, or EM points into the LM frame."
        ),
    ] = False,
    labels: Annotated[bool, typer.Option(help="Ids, not intensities: nearest neighbour.")] = False,
    unit: Annotated[
        str | None, typer.Option(help="Unit of points, meshes, skeletons that do not say it.")
    ] = None,
    pixel_size: Annotated[
        str | None, typer.Option(help='Camera pixel, for localisations in pixels: "133 nm".')
    ] = None,
    subject_spacing: Annotated[
        str | None, typer.Option(help='Voxel size of the image, "x, y, z unit", if it has none.')
    ] = None,
    onto_spacing: Annotated[
        str | None, typer.Option(help="The same of the image whose grid is taken.")
    ] = None,
    transform_unit: TransformUnitOption = "um",
    workers: Annotated[int, typer.Option(help="Threads.")] = 1,
    tolerance: Annotated[
        float,
        typer.Option(min=0, help="Largest error of a position in voxels; 0: no interpolation."),
    ] = 1e-3,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would take.")
    ] = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
) -> None:
    """Resample an EM image onto an LM grid (or the reverse), or map points, meshes, skeletons."""
    from clemreg.pipeline.apply import ApplyCommand, apply_file, estimate_file
    from clemreg.register.apply import ApplyOptions
    from clemreg.units import given_xyz_nm, parse_length_nm

    command = ApplyCommand(
        transform,
        subject,
        out,
        onto,
        given_xyz_nm(spacing),
        "em-to-lm" if inverse else "lm-to-em",
        labels,
        unit,
        ApplyOptions(workers=workers, tolerance_voxels=tolerance),
        overwrite,
        parse_length_nm(pixel_size) if pixel_size else None,
        given_xyz_nm(subject_spacing),
        given_xyz_nm(onto_spacing),
        transform_unit,
    )
    if dry_run:
        report = estimate_file(command)
        table(report)
        write_json(json, report)
        return
    with progress_bar("apply") as progress:
        notes = apply_file(command, progress)
    for note in notes:
        say(f"note: {note}")
    write_json(json, {"apply": {"out": str(out), "notes": list(notes)}})
    result(f"wrote {out}")
