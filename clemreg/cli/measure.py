"""``clemreg measure``, ``contacts``, ``interactions``: objects in numbers."""

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

LabelsArgument = Annotated[str, typer.Argument(help="Label volume: one id per object.")]
SpacingOption = Annotated[
    str | None, typer.Option(help='Voxel size "x, y, z unit", if the file has none.')
]

ChannelOption = Annotated[
    str | None, typer.Option(help="Channel of the prediction, if it has several.")
]


def table_path(path: Path | None) -> Path | None:
    """Refuse a table that could not be written, before any work."""
    if path is not None:
        from clemreg.measure.tables import check_table

        check_table(path)
    return path


CsvOption = Annotated[
    Path | None,
    typer.Option("--csv", callback=table_path, help="Table to write (.csv, .parquet)."),
]
ParquetOption = Annotated[
    Path | None, typer.Option("--parquet", callback=table_path, help="Table to write.")
]
BlockOption = Annotated[int, typer.Option(help="Voxels per block along each axis.")]
WorkersOption = Annotated[int, typer.Option(help="Number of workers.")]
ExecutorOption = Annotated[
    str, typer.Option(help="serial, threads, processes, local (Dask), slurm, lsf, tcp://...")
]


def add_to(parent: typer.Typer) -> None:
    """Attach the commands."""
    parent.command()(measure)
    parent.command()(contacts)
    parent.command()(interactions)


def measure(
    labels: LabelsArgument,
    spacing: SpacingOption = None,
    cell: Annotated[
        str | None, typer.Option(help="Mask of the cell: adds the fraction that each object fills.")
    ] = None,
    csv: CsvOption = None,
    parquet: ParquetOption = None,
    report: Annotated[
        Path | None, typer.Option(help="HTML page with histograms, centre lines and pictures.")
    ] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
    block: BlockOption = 128,
    workers: WorkersOption = 1,
    executor: ExecutorOption = "threads",
) -> None:
    """Volume, surface, centre, box and axes of every object."""
    from clemreg.measure.morphology import measure_objects
    from clemreg.pipeline.measure import (
        blockwise,
        open_ids,
        open_mask,
        require_free_results,
        summary,
        working_folder,
        write_tables,
    )
    from clemreg.pipeline.objects import report_objects

    require_free_results(csv, parquet, report, overwrite=overwrite)
    ids = open_ids(labels, spacing)
    mask = open_mask(cell, spacing) if cell else None
    with (
        progress_bar("measure") as progress,
        working_folder((csv, parquet, report, json), (labels, cell)) as scratch,
        blockwise(block, workers, executor, progress) as how,
    ):
        objects = measure_objects(ids, cell=mask, how=how, scratch=scratch)
        if report is not None:
            report_objects(ids, objects, report, how, scratch)
        written = write_tables(objects, (csv, parquet))
        shown = ["volume_nm3", "surface_nm2", "semi_axis_1_nm", "sphericity"]
        figures = summary(objects, [*shown, *(["fraction_of_cell"] if cell else [])])
        write_json(json, {"measure": {**figures, "table": list(objects.rows())}})
    table(figures)
    for path in (*written, *([report] if report else [])):
        result(f"wrote {path}")


def contacts(
    a: LabelsArgument,
    b: Annotated[
        str | None, typer.Argument(help="Other label volume; none: contacts within the first.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Distance and overlap of a recipe, such as er_mito.")
    ] = None,
    distance: Annotated[
        str | None, typer.Option(help='Largest gap; default "10 nm", or the recipe\'s.')
    ] = None,
    method: Annotated[str, typer.Option(help="sight (line of sight) or naive.")] = "sight",
    overlap: Annotated[
        str | None, typer.Option(help="Whose voxels are that both claim: a, b or shared.")
    ] = None,
    min_volume: Annotated[float, typer.Option(help="Leave out smaller sites, nm3.")] = 0.0,
    names: Annotated[str | None, typer.Option(help="Names of the two organelles: er,mito.")] = None,
    spacing: SpacingOption = None,
    out: Annotated[Path | None, typer.Option(help="OME-Zarr to write with the sites.")] = None,
    csv: CsvOption = None,
    parquet: ParquetOption = None,
    graph: Annotated[Path | None, typer.Option(help="Who touches whom (.graphml).")] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
    block: BlockOption = 128,
    workers: WorkersOption = 1,
    executor: ExecutorOption = "threads",
) -> None:
    """Contact sites between objects: where, how large, how near."""
    from clemreg.measure.contacts import find_contacts
    from clemreg.measure.interactions import interactions as sum_up
    from clemreg.measure.interactions import named, write_graphml
    from clemreg.pipeline.measure import (
        blockwise,
        contact_names,
        contact_options,
        open_ids,
        require_free_results,
        summary,
        working_folder,
        write_tables,
    )

    options = contact_options(recipe, distance, method, overlap, min_volume)
    organelles = contact_names(names, recipe, [a, b or a])
    require_free_results(out, csv, parquet, graph, overwrite=overwrite)
    outputs = (out, csv, parquet, graph, json)
    first = open_ids(a, spacing)
    second = open_ids(b, spacing) if b else None
    with (
        progress_bar("contacts") as progress,
        working_folder(outputs, (a, b), (options, block)) as scratch,
        blockwise(block, workers, executor, progress) as how,
    ):
        found = find_contacts(first, second, options, how=how, scratch=scratch, out=out)
        sites = named(found, *organelles)
        written = write_tables(sites, (csv, parquet))
        if graph is not None:
            write_graphml(graph, sum_up([sites]))
        report = summary(sites, ["volume_nm3", "area_a_nm2", "area_b_nm2", "gap_nm"])
        write_json(json, {"contacts": {**report, "table": list(sites.rows())}})
    table(report)
    for path in (*written, *(p for p in (out, graph) if p)):
        result(f"wrote {path}")


def interactions(
    tables: Annotated[list[Path], typer.Argument(help="Contact tables (.csv) of any organelles.")],
    csv: CsvOption = None,
    partners: Annotated[
        Path | None, typer.Option(callback=table_path, help="Table of what each object touches.")
    ] = None,
    graph: Annotated[Path | None, typer.Option(help="Graph to write (.graphml).")] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
) -> None:
    """Put contact tables together: pairs of objects, what each touches, one graph."""
    from clemreg.measure.interactions import interactions as sum_up
    from clemreg.measure.interactions import partners as touched
    from clemreg.measure.interactions import write_graphml
    from clemreg.measure.tables import read_table
    from clemreg.pipeline.measure import (
        require_free_results,
        summary,
        working_folder,
        write_tables,
    )

    require_free_results(csv, partners, graph, overwrite=overwrite)
    pairs = sum_up([read_table(path) for path in tables])
    objects = touched(pairs)
    kinds = {str(k): int((objects["touches"] == k).sum()) for k in sorted(set(objects["touches"]))}
    report = {"pairs": len(pairs), "touching": kinds, **summary(objects, ["partners"])}
    with working_folder((csv, partners, graph, json), [str(path) for path in tables]):
        if graph is not None:
            write_graphml(graph, pairs)
        written = [*write_tables(pairs, (csv,)), *write_tables(objects, (partners,))]
        write_json(json, {"interactions": {**report, "table": list(pairs.rows())}})
    table(report)
    for path in (*written, *([graph] if graph else [])):
        result(f"wrote {path}")
