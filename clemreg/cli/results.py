"""``clemreg results``: scores of many checkpoints, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from clemreg.cli.console import (
    JsonOption,
    OverwriteOption,
    require_free,
    result,
    rows_table,
    write_json,
)

app = typer.Typer(
    no_args_is_help=True, help="Scores of many checkpoints: choose, compare, tables in and out."
)

StoreArgument = Annotated[Path, typer.Argument(help="SQLite file with scores.")]
MetricOption = Annotated[str, typer.Option(help="Metric to choose by.")]
ModeOption = Annotated[
    str, typer.Option(help='"test" (leave one crop out) or "validation" (choose on all crops).')
]
OutOption = Annotated[Path | None, typer.Option(help="Also write the rows to this CSV.")]


def add_to(parent: typer.Typer) -> None:
    """Attach the command group."""
    parent.add_typer(app, name="results")


@app.command("import")
def import_(
    store: StoreArgument,
    tables: Annotated[list[Path], typer.Argument(help="CSV tables with the paper's columns.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace scores that the store has already.")
    ] = False,
) -> None:
    """Add CSV tables to a store; a score that is there with another value is an error."""
    from clemreg.pipeline.results import import_tables

    count = import_tables(store, tables, replace=replace)
    result(f"{count} {'new or replaced' if replace else 'new'} scores in {store}")


@app.command()
def export(
    store: StoreArgument,
    out: Annotated[Path, typer.Option(help="Folder for one CSV a class.")],
    overwrite: OverwriteOption = False,
) -> None:
    """Write one CSV a class with the paper's columns."""
    from clemreg.pipeline.results import export_tables

    for path in export_tables(store, out, overwrite=overwrite):
        result(f"wrote {path}")


@app.command()
def best(
    store: StoreArgument,
    metric: MetricOption = "dice",
    mode: ModeOption = "validation",
    out: OutOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
) -> None:
    """Best checkpoint for every class and sample."""
    from clemreg.pipeline.results import best_checkpoints, require_best

    require_free(out, overwrite=overwrite)
    _answer(require_best(best_checkpoints(store, metric, _mode(mode)), metric), out, json)


@app.command()
def converged(
    store: StoreArgument,
    out: OutOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
) -> None:
    """Tell for every setup and class whether training can end."""
    from clemreg.pipeline.results import convergences

    require_free(out, overwrite=overwrite)
    _answer(convergences(store), out, json)


@app.command()
def compare(
    store: StoreArgument,
    kind: Annotated[str, typer.Argument(help="4nm-vs-8nm, raw-vs-refined or all-vs-many-vs-few.")],
    metric: MetricOption = "dice",
    mode: ModeOption = "test",
    out: OutOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
) -> None:
    """Compare what the paper compared, class by class and crop by crop."""
    from clemreg.pipeline.results import comparison

    require_free(out, overwrite=overwrite)
    _answer(comparison(store, kind, metric, _mode(mode)), out, json)


@app.command()
def report(
    store: StoreArgument,
    out: Annotated[Path, typer.Option(help="HTML page to write.")],
    metric: MetricOption = "dice",
    overwrite: OverwriteOption = False,
) -> None:
    """Write a page: bars for every class, and all scores of its best checkpoint."""
    from clemreg.pipeline.results import report_store

    require_free(out, overwrite=overwrite)
    report_store(store, out, metric)
    result(f"wrote {out}")


def _mode(text: str) -> Any:
    if text not in ("validation", "test"):
        raise typer.BadParameter(f"{text!r} is neither validation nor test")
    return cast("Any", text)


def _answer(rows: Sequence[dict[str, Any]], out: Path | None, json: Path | None) -> None:
    rows_table(rows)
    if out is not None:
        from clemreg.pipeline.results import write_rows

        write_rows(out, rows)
    write_json(json, {"rows": rows})
