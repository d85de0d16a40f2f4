"""``clemreg organelles``: from predictions to tables of biology."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clemreg.cli.console import JsonOption, progress_bar, result, say, table, write_json

if TYPE_CHECKING:
    from clemreg.config_organelles import OrganellesConfig
    from clemreg.pipeline.plan import Row


def add_to(parent: typer.Typer) -> None:
    """Attach the command."""
    parent.command()(organelles)


def organelles(
    config: Annotated[Path, typer.Argument(help="TOML configuration.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key: section.key=value.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what it would take; nothing is written.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Refine, measure, find contacts and more; a second run does only what is missing or new."""
    from clemreg.config_organelles import load_organelles_config
    from clemreg.pipeline.organelles import run_organelles

    chosen = load_organelles_config(config, tuple(set_ or ()))
    if plan:
        _say_plan(chosen, config.resolve().parent, json)
        return
    report, page = run_organelles(
        chosen,
        config.resolve().parent,
        progress=progress_bar,
        announce=lambda step, state: say(f"{step}: {state}"),
    )
    table({name: _made(found) for name, found in report["organelles"].items()})
    if report["contacts"]:
        sites = {name: f"{found['objects']} sites" for name, found in report["contacts"].items()}
        table({"contacts": sites})
    result(f"report:  {page}")
    write_json(json, report)


def _say_plan(config: OrganellesConfig, base: Path, json: Path | None) -> None:
    from clemreg.pipeline.plan import plan_organelles, total

    grid, rows = plan_organelles(config, base)
    workers = config.compute.workers
    result(f"{grid.size / 1e9:.3g} gigavoxels {grid.shape} (z, y, x), {workers} workers")
    head = ("step", "blocks", "passes", "GB/worker", "read GB", "written GB", "core h", "hours")
    lines = [(*head,), *(_plan_line(row) for row in (*rows, total(rows)))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        result("  ".join(cells))
    write_json(json, {"plan": {"steps": [row.to_json() for row in (*rows, total(rows))]}})


def _plan_line(row: Row) -> tuple[str, ...]:
    sizes = (row.memory_gb, row.read_gb, row.written_gb, row.core_hours, row.hours)
    return (row.step, str(row.blocks), str(row.passes), *(f"{size:.3g}" for size in sizes))


_MADE_BY = ("refine", "microtubules", "ribosomes", "reconstruct")


def _made(found: dict[str, Any]) -> dict[str, Any]:
    """Return what was made: objects and volume, or tracks, or spheres."""
    part = next(found[verb] for verb in _MADE_BY if verb in found)
    return {name: value for name, value in part.items() if name != "files"}
