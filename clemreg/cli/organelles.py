"""``clemreg organelles``: from predictions to tables of biology."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from clemreg.cli.console import JsonOption, progress_bar, result, say, table, write_json


def add_to(parent: typer.Typer) -> None:
    """Attach the command."""
    parent.command()(organelles)


def organelles(
    config: Annotated[Path, typer.Argument(help="TOML configuration.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key: section.key=value.")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Refine, measure, find contacts and more; a second run does only what is missing or new."""
    from clemreg.config_organelles import load_organelles_config
    from clemreg.pipeline.organelles import run_organelles

    report, page = run_organelles(
        load_organelles_config(config, tuple(set_ or ())),
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


def _made(found: dict[str, Any]) -> dict[str, Any]:
    """Return what was made: objects and volume, or tracks, or spheres."""
    part = next(found[verb] for verb in ("refine", "microtubules", "ribosomes") if verb in found)
    return {name: value for name, value in part.items() if name != "files"}
