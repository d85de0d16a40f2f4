"""``clemreg evaluate``: how accurate a transform is, whoever made it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from clemreg.cli.console import (
    FixedSpacingOption,
    JsonOption,
    LandmarkUnitOption,
    MovingSpacingOption,
    OverwriteOption,
    PsfOption,
    TransformUnitOption,
    offset_nm,
    progress_bar,
    require_free,
    result,
    table,
    write_json,
)

app = typer.Typer(
    no_args_is_help=True, help="Measure a transform: landmarks, Jacobian, against another."
)

TransformOption = Annotated[
    str,
    typer.Option(
        "--transform",
        help="transform.json, elastix TransformParameters*.txt, ITK .h5/.tfm, BigWarp, N5 field.",
    ),
]
MaskOption = Annotated[
    Path | None, typer.Option("--mask", help="Image on the LM grid; only where it is not 0.")
]
VoxelSizeOption = Annotated[
    str | None,
    typer.Option(
        "--spacing", help='Voxel size of --mask or --grid-of, "x, y, z unit", if it has none.'
    ),
]
GridOption = Annotated[
    Path | None, typer.Option("--grid-of", help="Evaluate over the grid of this LM image.")
]


def add_to(parent: typer.Typer) -> None:
    """Attach the command group."""
    parent.add_typer(app, name="evaluate")


@app.command()
def landmarks(
    transform: TransformOption,
    landmarks: Annotated[Path, typer.Option(help="Landmark table (COSEM, BigWarp or clemreg).")],
    fixed_offset: Annotated[
        str | None,
        typer.Option(help="x,y,z added to the LM coordinates; um unless a unit is given."),
    ] = None,
    raters: Annotated[
        str | None, typer.Option(help="Raters to report, comma separated; default all.")
    ] = None,
    unit: LandmarkUnitOption = "um",
    transform_unit: TransformUnitOption = "um",
    json: JsonOption = None,
) -> None:
    """Target registration error on landmarks, by rater, beside the human-human distance."""
    from clemreg.evaluate.landmarks import evaluate_landmarks
    from clemreg.io.points import read_landmarks
    from clemreg.io.transforms import read_transform

    report = evaluate_landmarks(
        read_transform(transform, unit=transform_unit),
        read_landmarks(landmarks, unit=unit),
        raters=tuple(r.strip() for r in raters.split(",")) if raters else (),
        fixed_offset_nm=offset_nm(fixed_offset),
    )
    _answer("landmarks", report.to_json(), json)


@app.command()
def jacobian(
    transform: TransformOption,
    mask: MaskOption = None,
    spacing: VoxelSizeOption = None,
    grid_of: GridOption = None,
    remove_affine: Annotated[
        bool, typer.Option(help="Print only the deformation, after the best affine.")
    ] = False,
    map_: Annotated[
        Path | None, typer.Option("--map", help="Also write it as an image, .zarr or .tif.")
    ] = None,
    transform_unit: TransformUnitOption = "um",
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
) -> None:
    """Jacobian determinant: local volume change and folds, with and without the affine part."""
    from clemreg.evaluate.jacobian import evaluate_jacobian
    from clemreg.io.transforms import read_transform
    from clemreg.pipeline.jacobian_map import write_jacobian_map

    require_free(map_, overwrite=overwrite)
    grid, inside = _where({transform: transform_unit}, mask, spacing, grid_of)
    given = read_transform(transform, unit=transform_unit)
    report = evaluate_jacobian(given, grid, inside).to_json()
    shown = {"without_affine": report["without_affine"]} if remove_affine else report
    table({"jacobian": shown})
    write_json(json, {"jacobian": report})
    if map_ is not None:
        with progress_bar("jacobian") as progress:
            write_jacobian_map(given, grid, map_, progress)
        result(f"wrote {map_}")


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="T1", help="A transform file.")],
    second: Annotated[str, typer.Argument(metavar="T2", help="Another transform file.")],
    mask: MaskOption = None,
    spacing: VoxelSizeOption = None,
    grid_of: GridOption = None,
    transform_unit: TransformUnitOption = "um",
    second_unit: Annotated[
        str | None, typer.Option(help="The same of T2, if it is another.")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Distance between two transforms at the same LM points, in nm of the EM frame."""
    from clemreg.evaluate.compare import compare_transforms
    from clemreg.io.transforms import read_transform

    other_unit = second_unit or transform_unit
    units = {first: transform_unit, second: other_unit}
    grid, inside = _where(units, mask, spacing, grid_of)
    one = read_transform(first, unit=transform_unit)
    report = compare_transforms(one, read_transform(second, unit=other_unit), grid, inside)
    _answer("compare", report.to_json(), json)


@app.command()
def uncertainty(
    transform: TransformOption,
    landmarks: Annotated[Path, typer.Option(help="Landmark table (COSEM, BigWarp or clemreg).")],
    rater: Annotated[str | None, typer.Option(help="Whose landmarks; default the first.")] = None,
    second_rater: Annotated[
        str | None, typer.Option(help="Another: the noise is estimated from the two.")
    ] = None,
    noise: Annotated[
        str | None, typer.Option(help='Noise of a landmark "x, y, z unit", if it is known.')
    ] = None,
    model: Annotated[
        str, typer.Option(help="Transform fitted to landmarks: rigid, similarity or affine.")
    ] = "affine",
    mask: MaskOption = None,
    spacing: VoxelSizeOption = None,
    grid_of: GridOption = None,
    suggest: Annotated[
        int, typer.Option(min=0, help="Places where a landmark would help most.")
    ] = 3,
    unit: LandmarkUnitOption = "um",
    transform_unit: TransformUnitOption = "um",
    out: Annotated[Path | None, typer.Option(help="Write the error map here (.zarr).")] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
) -> None:
    """Predict the error of a fit to landmarks everywhere, and say where to add some."""
    from clemreg.io.points import read_landmarks
    from clemreg.io.transforms import read_transform
    from clemreg.pipeline.uncertainty import UncertaintyCommand, predict_error

    require_free(out, overwrite=overwrite)
    grid, inside = _where({transform: transform_unit}, mask, spacing, grid_of)
    command = UncertaintyCommand(
        read_transform(transform, unit=transform_unit),
        read_landmarks(landmarks, unit=unit),
        rater,
        second_rater,
        offset_nm(noise) if noise else None,
        model,  # type: ignore[arg-type]
    )
    report = predict_error(command, grid, inside, count=suggest, out=out)
    _answer("uncertainty", report, json)


@app.command()
def overlap(
    transform: TransformOption,
    fixed: Annotated[str, typer.Option(help="Light volume.")],
    moving: Annotated[
        str, typer.Option(help="EM mask, probability or prediction of the same structure.")
    ],
    channel: Annotated[str | None, typer.Option(help="Its channel in the light volume.")] = None,
    psf: PsfOption = "palm",
    fixed_spacing: FixedSpacingOption = None,
    moving_spacing: MovingSpacingOption = None,
    transform_unit: TransformUnitOption = "um",
    json: JsonOption = None,
) -> None:
    """How well an EM structure covers its light channel; best one that was not registered."""
    from clemreg.pipeline.overlap import OverlapCommand, overlap_files
    from clemreg.units import given_xyz_nm

    command = OverlapCommand(
        transform,
        fixed,
        moving,
        channel,
        psf,
        fixed_spacing_nm=given_xyz_nm(fixed_spacing),
        moving_spacing_nm=given_xyz_nm(moving_spacing),
        transform_unit=transform_unit,
    )
    _answer("overlap", overlap_files(command), json)


@app.command()
def shift(
    image: Annotated[str, typer.Argument(help="Both channels of one structure, such as beads.")],
    reference: Annotated[str, typer.Option(help="Channel that stays.")],
    channel: Annotated[str, typer.Option(help="Channel that is to lie on it.")],
    spacing: Annotated[
        str | None, typer.Option(help='Voxel size, "x, y, z unit", if the file has none.')
    ] = None,
    json: JsonOption = None,
) -> None:
    """Chromatic shift between two channels, as --shift of `register` and `render` takes it."""
    from clemreg.io.volumes import open_volume
    from clemreg.pipeline.light import light_channel
    from clemreg.register.render import chromatic_shift_nm
    from clemreg.units import given_xyz_nm

    size = given_xyz_nm(spacing)
    volume = open_volume(image, frame="lm", spacing_nm=size)
    one, other = (light_channel(volume, name, {}) for name in (reference, channel))
    z, y, x = (round(float(v), 2) for v in chromatic_shift_nm(one, other))
    _answer("shift", {"channel": channel, "x_nm": x, "y_nm": y, "z_nm": z}, json)
    result(f'--shift {channel}="{x:g}, {y:g}, {z:g} nm"')


def _answer(name: str, report: dict[str, Any], json: Path | None) -> None:
    """Print the figures without the long lists; write all of them."""
    table({name: {k: v for k, v in report.items() if k not in ("points", "histogram")}})
    write_json(json, {name: report})


def _where(
    transforms: dict[str, str], mask: Path | None, spacing: str | None, grid_of: Path | None
) -> tuple[Any, Any]:
    """Return the LM grid to evaluate on, and a boolean mask on it or None.

    The grid is that of the first of `transforms` (path to unit) that says one.
    """
    from clemreg.errors import ClemregError, ConfigError
    from clemreg.evaluate.masks import nonzero, same_voxels
    from clemreg.io.transforms import read_fixed_grid
    from clemreg.io.volumes import open_volume
    from clemreg.units import given_xyz_nm

    override = given_xyz_nm(spacing)
    grids = (read_fixed_grid(path, unit=unit) for path, unit in transforms.items())
    grid = next((g for g in grids if g is not None), None)
    if grid_of is not None:
        grid = open_volume(grid_of, frame="lm", spacing_nm=override).grid
    if mask is None:
        if grid is None:
            raise ConfigError(
                "this transform file does not say which grid it belongs to",
                hint="add --grid-of LM_IMAGE or --mask IMAGE",
            )
        return grid, None
    try:
        volume = open_volume(mask, frame="lm", spacing_nm=override)
    except ClemregError:
        if grid is None:
            raise
        # A mask without voxel size on the transform's own grid: its shape is the proof.
        volume = open_volume(mask, frame="lm", spacing_nm=grid.spacing_nm)
        if volume.shape != grid.shape:
            raise
    if grid is not None and same_voxels(volume.grid, grid) and not any(volume.grid.origin_nm):
        return grid, nonzero(volume.read())  # of a file that has no origin, such as ImageJ's
    return volume.grid, nonzero(volume.read())
