"""``clemreg export``: files for Fiji and other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clemreg.cli.console import (
    JsonOption,
    OverwriteOption,
    progress_bar,
    result,
    say,
    write_json,
)

if TYPE_CHECKING:
    from clemreg.pipeline.scene import SceneFiles

app = typer.Typer(no_args_is_help=True, help="Write files that other programs open.")

MaybeRunFolder = Annotated[
    Path | None, typer.Argument(metavar="FOLDER", help="Folder of a finished run.")
]
EmOption = Annotated[str, typer.Option(help="EM image.")]
LmOption = Annotated[str, typer.Option(help="LM image.")]
MaybeEmOption = Annotated[str | None, typer.Option(help="EM image, if there is no run.")]
MaybeLmOption = Annotated[str | None, typer.Option(help="LM image, if there is no run.")]
MaybeTransformOption = Annotated[
    str | None, typer.Option(help="Transform file (lm -> em), if there is no run.")
]
LabelsOption = Annotated[
    list[str] | None, typer.Option(help="Label image in the EM frame; may be repeated.")
]
TransformFile = Annotated[str, typer.Argument(help="Transform file (lm -> em).")]


ImageArgument = Annotated[str, typer.Argument(help="Any image that clemreg opens.")]
IsLabelsOption = Annotated[bool, typer.Option("--labels", help="The image holds ids.")]
ColoursOption = Annotated[
    str | None, typer.Option(help="One a channel, comma separated: magenta, green, #FF8000.")
]
RaterOption = Annotated[
    str | None, typer.Option(help="Whose landmarks, if the table has several raters.")
]
UnitOption = Annotated[
    str, typer.Option(help="Unit of the coordinates; nm for OME-Zarr images of clemreg.")
]


def add_to(parent: typer.Typer) -> None:
    """Attach the command group."""
    parent.add_typer(app, name="export")


@app.command()
def bdv(
    folder: MaybeRunFolder = None,
    out: Annotated[
        Path | None, typer.Option(help="XML file; default: FOLDER/export/bdv.xml.")
    ] = None,
    em: MaybeEmOption = None,
    lm: MaybeLmOption = None,
    transform: MaybeTransformOption = None,
    labels: LabelsOption = None,
    warp_spacing: Annotated[
        str | None, typer.Option(help='Voxel size "x, y, z unit" of the warped EM; default: LM\'s.')
    ] = None,
    storage: Annotated[str, typer.Option(help="hdf5 or n5.")] = "hdf5",
    legacy: Annotated[
        bool, typer.Option("--legacy", help="16-bit HDF5 that Fiji from before 2023 can show.")
    ] = False,
    unit: Annotated[str, typer.Option(help="Unit of the world: um or nm.")] = "um",
    append: Annotated[
        bool, typer.Option("--append", help="Add the volumes to the dataset that is there.")
    ] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """BigDataViewer XML with HDF5 or N5: EM, prediction, labels, light and warped EM in one world.

    Either for a finished run, or for any images and transform.
    """
    from clemreg.pipeline.export import BdvCommand, export_bdv

    files = _files(em, lm, transform, labels, warp_spacing)
    kind: Any = "hdf5-legacy" if legacy and storage == "hdf5" else storage
    command = BdvCommand(folder, files, out, kind, unit, append, overwrite)
    with progress_bar("export") as progress:
        path = export_bdv(command, progress)
    result(f"wrote {path}")


def _files(
    em: str | None,
    lm: str | None,
    transform: str | None,
    labels: list[str] | None = None,
    warp_spacing: str | None = None,
) -> SceneFiles | None:
    """Return images and transform; None if none is given."""
    from clemreg.errors import ConfigError
    from clemreg.pipeline.scene import SceneFiles

    if em is None and lm is None and transform is None:
        return None
    if em is None or lm is None or transform is None:
        raise ConfigError(
            "--em, --lm and --transform belong together", hint="give all three, or a run's folder"
        )
    return SceneFiles(transform, em, lm, tuple(labels or ()), warp_spacing)


@app.command()
def bigwarp(
    out: Annotated[Path, typer.Option(help="Landmark table (.csv) or transform file (.json).")],
    transform: Annotated[
        str | None, typer.Argument(help="Transform file (lm -> em) to sample.")
    ] = None,
    grid_of: Annotated[
        str | None, typer.Option(help="LM image over which landmarks are placed.")
    ] = None,
    landmarks: Annotated[
        str | None, typer.Option(help="Convert this landmark table instead.")
    ] = None,
    rater: RaterOption = None,
    spacing: Annotated[str, typer.Option(help="Distance between landmarks.")] = "1 um",
    unit: UnitOption = "um",
    project: Annotated[
        Path | None, typer.Option(help="Project file (.json) that opens EM and LM with them.")
    ] = None,
    em: Annotated[str | None, typer.Option(help="EM image of the project.")] = None,
    as_bdv: Annotated[
        bool,
        typer.Option("--bdv", help="The project opens exact copies as BigDataViewer datasets."),
    ] = False,
    read_from_zero: Annotated[
        bool,
        typer.Option(
            "--read-from-zero",
            help="--landmarks was made in BigWarp on --em and --grid-of: add their origins.",
        ),
    ] = False,
    write_from_zero: Annotated[
        bool,
        typer.Option(
            "--write-from-zero", help="For BigWarp on these images: leave their origins out."
        ),
    ] = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
) -> None:
    """BigWarp landmarks sampled from a transform; says how well their spline reproduces it."""
    from clemreg.pipeline.bigwarp import BigWarpCommand, export_bigwarp, placement_note

    command = BigWarpCommand(
        out,
        transform,
        grid_of,
        landmarks,
        rater,
        spacing,
        unit,
        project,
        em,
        as_bdv,
        overwrite,
        read_from_zero,
        write_from_zero,
    )
    with progress_bar("export") as progress:
        error = export_bigwarp(command, progress)
    if note := placement_note(command):
        say(f"note: {note}")
    result(f"wrote {out}" + (f"; thin-plate spline against transform: {error}" if error else ""))
    write_json(json, {"spline_error": vars(error) if error else None})


@app.command()
def mobie(
    out: Annotated[Path, typer.Option(help="Folder for the tables.")],
    folder: MaybeRunFolder = None,
    em: MaybeEmOption = None,
    lm: MaybeLmOption = None,
    transform: MaybeTransformOption = None,
    labels: LabelsOption = None,
    spots: Annotated[
        list[str] | None, typer.Option(help="Table of points in the LM frame; may be repeated.")
    ] = None,
    landmarks: Annotated[str | None, typer.Option(help="Landmark table, shown as spots.")] = None,
    spot_radius: Annotated[str, typer.Option(help="Radius of the spots.")] = "50 nm",
    field_spacing: Annotated[
        str | None, typer.Option(help="Spacing of a field that MoBIE needs; default: LM voxels.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """MoBIE collection: images, labels and spots with the transform, nothing resampled."""
    from clemreg.pipeline.export import scene_files
    from clemreg.pipeline.viewers import MobieCommand, export_mobie

    files = scene_files(folder, _files(em, lm, transform, labels))
    command = MobieCommand(
        files, out, tuple(spots or ()), landmarks, spot_radius, field_spacing, overwrite
    )
    with progress_bar("export") as progress:
        error = export_mobie(command, progress)
    result(f"wrote {out}" + (f"; sampled field against transform: {error}" if error else ""))


@app.command()
def dfield(
    transform: TransformFile,
    out: Annotated[Path, typer.Option(help="N5 container to write.")],
    grid_of: Annotated[str, typer.Option(help="LM image that the field covers.")],
    spacing: Annotated[
        str | None, typer.Option(help="Distance between its points; default: the voxels.")
    ] = None,
    quantise: Annotated[
        str | None, typer.Option(help='Store 16-bit integers, off by at most this ("0.5 nm").')
    ] = None,
    inverse: Annotated[
        bool, typer.Option("--inverse", help="Write the dataset invdfield too.")
    ] = False,
    unit: UnitOption = "um",
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
) -> None:
    """N5 displacement field as BigWarp and the JRC2018 templates have it."""
    from clemreg.pipeline.interchange import FieldCommand, export_dfield

    command = FieldCommand(transform, grid_of, out, spacing, quantise, inverse, unit, overwrite)
    with progress_bar("field") as progress:
        error = export_dfield(command, progress)
    result(f"wrote {out}; interpolated field against transform: {error}")
    write_json(json, {"field_error": vars(error)})


@app.command()
def elastix(
    transform: TransformFile,
    out: Annotated[Path, typer.Option(help="Folder for TransformParameters.N.txt.")],
    grid_of: Annotated[str, typer.Option(help="LM image that gives the fixed grid.")],
    overwrite: OverwriteOption = False,
) -> None:
    """Write elastix parameter files that transformix reads (um, x, y, z; portable names)."""
    from clemreg.pipeline.interchange import export_elastix

    result(f"wrote {export_elastix(transform, grid_of, out, overwrite=overwrite)}")


@app.command()
def itk(
    transform: TransformFile,
    out: Annotated[Path, typer.Option(help="Transform file, .h5 or .tfm.")],
    grid_of: Annotated[
        str | None, typer.Option(help="LM image over which a spline or inverse is sampled.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """ITK composite transform (um, x, y, z), for SimpleITK, ANTs and 3D Slicer."""
    from clemreg.pipeline.interchange import export_itk

    export_itk(transform, out, grid_of, overwrite=overwrite)
    result(f"wrote {out}")


@app.command()
def ngff(
    transform: TransformFile,
    out: Annotated[Path, typer.Option(help="Zarr group to write.")],
    em: EmOption,
    lm: LmOption,
    spacing: Annotated[
        str | None, typer.Option(help="Distance between field points; default: the LM voxels.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """NGFF 0.6 scene: how two OME-Zarr images lie to each other, as affine and displacements."""
    from clemreg.pipeline.interchange import export_ngff

    with progress_bar("scene") as progress:
        error = export_ngff(transform, out, (lm, em), spacing, progress, overwrite=overwrite)
    result(f"wrote {out}" + (f"; interpolated field against transform: {error}" if error else ""))


@app.command()
def omezarr(
    image: ImageArgument,
    out: Annotated[Path, typer.Option(help="Folder to write, usually NAME.ome.zarr.")],
    version: Annotated[str, typer.Option(help="OME-Zarr version: 0.5, or 0.4 for old Fiji.")] = (
        "0.5"
    ),
    labels: IsLabelsOption = False,
    colours: ColoursOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """OME-Zarr with channel colours and windows, for n5-viewer, MoBIE, napari and Neuroglancer."""
    from clemreg.pipeline.images import ImageCommand, export_ome_zarr

    wanted: Any = version
    export_ome_zarr(ImageCommand(image, out, labels, colours, overwrite), wanted)
    result(f"wrote {out}")


@app.command()
def imagej(
    image: ImageArgument,
    out: Annotated[Path, typer.Option(help="TIFF file to write.")],
    labels: IsLabelsOption = False,
    colours: ColoursOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """ImageJ hyperstack with voxel size, unit, channels, colours and display ranges."""
    from clemreg.pipeline.images import ImageCommand, export_imagej

    export_imagej(ImageCommand(image, out, labels, colours, overwrite))
    result(f"wrote {out}")


@app.command()
def ecclem(
    subject: Annotated[str, typer.Argument(help="Landmark table; a transform with --matrix.")],
    out: Annotated[Path, typer.Option(help=".xml, or .csv for two tables of fiducials.")],
    em: MaybeEmOption = None,
    lm: MaybeLmOption = None,
    kind: Annotated[
        str, typer.Option(help="What ec-CLEM fits: rigid, similarity, affine, spline.")
    ] = "similarity",
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Write the affine part of a transform.")
    ] = False,
    rater: RaterOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Write ec-CLEM fiducials or a matrix; the LM is its source, the EM its target."""
    from clemreg.pipeline.interchange import EcclemCommand, export_ecclem

    command = EcclemCommand(subject, out, em, lm, kind, matrix, rater, overwrite)
    for path in export_ecclem(command):
        result(f"wrote {path}")


@app.command()
def neuroglancer(
    out: Annotated[Path, typer.Option(help="State file (.json).")],
    folder: MaybeRunFolder = None,
    em: MaybeEmOption = None,
    lm: MaybeLmOption = None,
    transform: MaybeTransformOption = None,
    labels: LabelsOption = None,
    warped: Annotated[str | None, typer.Option(help="OME-Zarr of the warped EM.")] = None,
    server: Annotated[str, typer.Option(help="Where the images are served.")] = (
        "http://127.0.0.1:9000"
    ),
    root: Annotated[Path | None, typer.Option(help="Folder that is served.")] = None,
    viewer: Annotated[
        str | None, typer.Option(help="Address of a Neuroglancer; prints a link that opens it.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Neuroglancer state with OME-Zarr layers, the EM placed by the affine part."""
    from clemreg.export.neuroglancer import state_link
    from clemreg.pipeline.export import scene_files
    from clemreg.pipeline.viewers import NeuroglancerCommand, export_neuroglancer

    files = scene_files(folder, _files(em, lm, transform, labels))
    if folder is not None and warped is None:
        warped = str(folder / "warped_em.zarr")
    state = export_neuroglancer(NeuroglancerCommand(files, out, warped, server, root, overwrite))
    result(f"wrote {out}")
    if viewer is not None:
        result(state_link(state, viewer))
