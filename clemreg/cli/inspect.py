"""``clemreg info`` and ``clemreg doctor``: what is in a file, and whether it can be right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clemreg.cli.console import JsonOption, result, say, table, write_json


def add_to(parent: typer.Typer) -> None:
    """Attach the commands."""
    parent.command()(info)
    parent.command()(doctor)


def info(
    path: Annotated[str, typer.Argument(help="Volume; inner datasets as container::inside.")],
    json: JsonOption = None,
) -> None:
    """Show shape, voxel size, units, channels and pyramid of a volume."""
    from clemreg.io.volumes import describe

    report = describe(path).to_json()
    table(report)
    write_json(json, report)


def doctor(
    config: Annotated[Path | None, typer.Argument(help="Configuration of a run.")] = None,
    json: JsonOption = None,
) -> None:
    """Check the installation, and with CONFIG its units, axes, channels and files."""
    from clemreg.pipeline.doctor import check_config, check_installation

    findings = check_installation()
    if config is not None:
        findings = (*findings, *check_config(config))
    for finding in findings:
        result(f"{finding.status:<7} {finding.subject}: {finding.text}")
        if finding.hint:
            result(f"        {finding.hint}")
    write_json(json, {"findings": [finding.to_json() for finding in findings]})
    if any(finding.status == "error" for finding in findings):
        say("something must be mended first")
        raise typer.Exit(1)
