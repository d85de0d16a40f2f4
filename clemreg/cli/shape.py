"""``clemreg skeletonize``, ``planarity``, ``mesh``, ``holdout``: the shape of objects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clemreg.cli.console import (
    JsonOption,
    OverwriteOption,
    progress_bar,
    result,
    table,
    write_json,
)
from clemreg.cli.measure import (
    BlockOption,
    CsvOption,
    ExecutorOption,
    LabelsArgument,
    ParquetOption,
    SpacingOption,
    WorkersOption,
    table_path,
)


def add_to(parent: typer.Typer) -> None:
    """Attach the commands."""
    for command in (skeletonize, planarity, mesh, holdout):
        parent.command()(command)


def skeletonize(
    labels: LabelsArgument,
    spacing: SpacingOption = None,
    shortest_branch: Annotated[
        str, typer.Option(help="Shorter branches are cut, until there is none.")
    ] = "80 nm",
    swc: Annotated[
        Path | None, typer.Option(help="Folder for one SWC file (nm) for each object.")
    ] = None,
    memory_gb: Annotated[
        float, typer.Option(help="Of one object and worker; larger objects go block by block.")
    ] = 4.0,
    csv: CsvOption = None,
    parquet: ParquetOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
    block: BlockOption = 128,
    workers: WorkersOption = 1,
    executor: ExecutorOption = "threads",
) -> None:
    """Centre line of every object: length, radius, branches."""
    from clemreg.measure.skeleton import skeleton_table
    from clemreg.pipeline.measure import (
        blockwise,
        open_ids,
        require_free_files,
        require_free_results,
        skeleton_options,
        skeletons_of,
        summary,
        working_folder,
        write_tables,
    )

    outputs = (csv, parquet, json, swc)
    require_free_results(csv, parquet, overwrite=overwrite)
    require_free_files(swc, "swc", outputs, overwrite=overwrite)
    ids = open_ids(labels, spacing)
    options = skeleton_options(shortest_branch, memory_gb)
    with (
        progress_bar("skeletonize") as progress,
        working_folder(outputs, (labels,), (options, block)) as scratch,
        blockwise(block, workers, executor, progress) as how,
    ):
        rows = skeletons_of(ids, options, how, scratch, swc)
        objects = skeleton_table(rows)
        shown = ["length_nm", "smooth_length_nm", "radius_mean_nm", "branches"] if rows else []
        report = summary(objects, shown)
        written = write_tables(objects, (csv, parquet))
        write_json(json, {"skeletonize": {**report, "table": rows}})
    table(report)
    for path in (*written, *([swc] if swc else [])):
        result(f"wrote {path}")


def planarity(
    mask: Annotated[str, typer.Argument(help="Organelle, such as the ER: not 0 is object.")],
    out: Annotated[Path, typer.Option(help="OME-Zarr to write: 0 none, 1 to 255 sheetness.")],
    spacing: SpacingOption = None,
    cut: Annotated[float, typer.Option(help="Planar at and above, tubular below.")] = 0.6,
    scale_rule: Annotated[
        str, typer.Option(help="heinrich2021 (as published; the cut rests on it) or exact.")
    ] = "heinrich2021",
    scales: Annotated[int, typer.Option(help="Number of scales, from 2 nm by sqrt(2).")] = 12,
    largest_radius: Annotated[
        str, typer.Option(help="Nothing is thicker than twice this.")
    ] = "200 nm",
    medial: Annotated[
        Path | None, typer.Option(help="Also write the medial surface (OME-Zarr).")
    ] = None,
    reconstructed: Annotated[
        Path | None, typer.Option(help="Also write what planarity covers, with ids (OME-Zarr).")
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", callback=table_path, help="Volume and area by sheetness."),
    ] = None,
    thickness: Annotated[
        Path | None, typer.Option(callback=table_path, help="Table of sheetness and thickness.")
    ] = None,
    curvature: Annotated[
        Path | None, typer.Option(callback=table_path, help="Table of surface curvature.")
    ] = None,
    contacts: Annotated[
        str | None, typer.Option(help="Contact sites: adds a table of their planarity.")
    ] = None,
    sites: Annotated[
        Path | None,
        typer.Option(callback=table_path, help="Table of the planarity of contact sites to write."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="HTML page with histograms of all of these.")
    ] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
    block: BlockOption = 192,
    workers: WorkersOption = 1,
    executor: ExecutorOption = "threads",
) -> None:
    """Sheets and tubes of an organelle: planarity, thickness, curvature."""
    from clemreg.measure.planarity import split
    from clemreg.pipeline.measure import (
        blockwise,
        planarity_options,
        require_free_results,
        working_folder,
    )
    from clemreg.pipeline.planarity import PlanarityFiles, planarity_of

    options = planarity_options(cut, scale_rule, scales, largest_radius)
    tables = (csv, thickness, curvature, sites)
    files = PlanarityFiles(
        mask, out, spacing, medial, contacts, reconstructed, *tables, report=report
    )
    require_free_results(*files.outputs, overwrite=overwrite)
    job = (options, block, spacing)
    with (
        progress_bar("planarity") as progress,
        working_folder((*files.outputs, json), (mask, contacts), job) as scratch,
        blockwise(block, workers, executor, progress) as how,
    ):
        found = planarity_of(files, options, how, scratch)
        figures = {"cut": cut, "scale_rule": scale_rule, **split(found.histogram, cut)}
        rows = {} if found.sites is None else {"sites": list(found.sites.rows())}
        histogram = list(found.histogram.rows())
        write_json(json, {"planarity": {**figures, **rows, "histogram": histogram}})
    table(figures)
    for path in files.outputs:
        if path is not None:
            result(f"wrote {path}")


def mesh(
    labels: LabelsArgument,
    out: Annotated[Path, typer.Option(help="Folder for one mesh for each object.")],
    format: Annotated[str, typer.Option(help="ply, obj or neuroglancer.")] = "ply",  # noqa: A002
    smoothing: Annotated[int, typer.Option(help="Rounds of Taubin smoothing, at most.")] = 20,
    keep: Annotated[float, typer.Option(help="Part of the triangles to keep, at least.")] = 0.2,
    memory_gb: Annotated[
        float, typer.Option(help="Of one object and worker; larger objects are refused.")
    ] = 4.0,
    spacing: SpacingOption = None,
    csv: CsvOption = None,
    parquet: ParquetOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
    block: BlockOption = 128,
    workers: WorkersOption = 1,
    executor: ExecutorOption = "threads",
) -> None:
    """Surface mesh of every object, in nm, x, y, z."""
    from clemreg.pipeline.measure import (
        blockwise,
        check_mesh_format,
        mesh_options,
        meshes_of,
        open_ids,
        require_free_files,
        require_free_results,
        summary,
        working_folder,
        write_tables,
    )

    check_mesh_format(format)
    outputs = (out, csv, parquet, json)
    require_free_results(csv, parquet, others=outputs, overwrite=overwrite)
    require_free_files(out, format, outputs, overwrite=overwrite)
    ids = open_ids(labels, spacing)
    options = mesh_options(smoothing, keep, memory_gb)
    with (
        progress_bar("mesh") as progress,
        working_folder(outputs, (labels,), (format, options, block)) as scratch,
        blockwise(block, workers, executor, progress) as how,
    ):
        found = meshes_of(ids, out, format, options, how, scratch)
        report = summary(found, ["triangles", "volume_nm3", "area_nm2"])
        written = write_tables(found, (csv, parquet))
        write_json(json, {"mesh": {**report, "table": list(found.rows())}})
    table(report)
    for path in (*written, out):
        result(f"wrote {path}")


def holdout(
    truth: Annotated[str, typer.Argument(help="Organelle drawn by experts: not 0 is object.")],
    predictions: Annotated[
        list[str], typer.Argument(help="NAME=PATH of a prediction's mask or labels; repeat.")
    ],
    spacing: SpacingOption = None,
    csv: CsvOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
    block: BlockOption = 128,
    workers: WorkersOption = 1,
    executor: ExecutorOption = "threads",
) -> None:
    """Volume and surface against the truth, in the whole block and its six halves."""
    from clemreg.measure.holdout import holdout_deviations
    from clemreg.pipeline.measure import (
        blockwise,
        named_masks,
        open_mask,
        require_free_results,
        working_folder,
        write_tables,
    )

    require_free_results(csv, overwrite=overwrite)
    volumes = named_masks(predictions, spacing)
    inputs = (truth, *(entry.partition("=")[2] for entry in predictions))
    with (
        progress_bar("holdout") as progress,
        working_folder((csv, json), inputs) as scratch,
        blockwise(block, workers, executor, progress) as how,
    ):
        found = holdout_deviations(open_mask(truth, spacing), volumes, how=how, scratch=scratch)
        written = write_tables(found, (csv,))
        write_json(json, {"holdout": {"table": list(found.rows())}})
    for row in found.rows():
        shown = {k: v for k, v in row.items() if k.endswith("_deviation")}
        table({f"{row['prediction']}, {row['region']}": shown})
    for path in written:
        result(f"wrote {path}")
