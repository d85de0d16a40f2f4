"""``clemreg fiji``: scripts for Fiji's menu, macros from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from clemreg.cli.console import JsonOption, result, say, write_json

app = typer.Typer(no_args_is_help=True, help="Fiji: install the menu scripts, run a macro.")

FijiOption = Annotated[Path, typer.Option("--fiji", help="Folder of the Fiji.")]
MaybeFiji = Annotated[
    Path | None, typer.Option("--fiji", help="Folder of a Fiji; default: the one that is found.")
]


def add_to(parent: typer.Typer) -> None:
    """Attach the command group."""
    parent.add_typer(app, name="fiji")


@app.command()
def doctor(fiji: MaybeFiji = None, json: JsonOption = None) -> None:
    """Look for Fiji, Java, libraries and clemreg's scripts; say how to get what is missing."""
    from clemreg.fiji.doctor import check_fiji

    findings = check_fiji(fiji)
    for finding in findings:
        result(f"{finding.status:<7} {finding.subject}: {finding.text}")
        if finding.hint:
            result(f"        {finding.hint}")
    write_json(json, {"findings": [finding.to_json() for finding in findings]})


@app.command()
def install(
    fiji: FijiOption,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Replace files that were edited; they stay as NAME.mine."),
    ] = False,
) -> None:
    """Put the scripts into Fiji's menu: Plugins > CLEMReg."""
    from clemreg.fiji.install import install as install_scripts

    changes = install_scripts(fiji, replace=replace)
    for name in changes.kept:
        say(f"kept your {name} as {name}.mine")
    result(f"wrote {len(changes.written)} files to {changes.folder}; restart Fiji")


@app.command()
def uninstall(fiji: FijiOption) -> None:
    """Remove what `install` wrote; files that you edited stay."""
    from clemreg.fiji.install import uninstall as remove_scripts

    changes = remove_scripts(fiji)
    for name in changes.kept:
        say(f"left {name}, which was edited")
    result(f"removed {len(changes.removed)} files from {changes.folder}")


@app.command()
def macro(
    script: Annotated[Path, typer.Argument(help="Macro (.ijm), or another script in a Fiji.")],
    values: Annotated[
        list[str] | None, typer.Argument(metavar="NAME=VALUE", help="Its #@ parameters.")
    ] = None,
    fiji: MaybeFiji = None,
    mode: Annotated[str, typer.Option(help="hidden, shown or headless.")] = "hidden",
) -> None:
    """Run a macro and print what it returns; an error names its line and ends with exit code 1.

    What it prints goes to standard error.
    """
    from clemreg.fiji.bridge import JvmOptions, open_imagej

    options = JvmOptions(fiji=fiji, mode=mode)  # type: ignore[arg-type]
    imagej = open_imagej(options)
    try:
        answer = imagej.run_script(script, _parameters(values or []))
    finally:
        for line in imagej.log().splitlines():
            say(line)
    for name, value in answer.items():
        result(str(value) if name == "result" else f"{name} = {value}")


def _parameters(values: list[str]) -> dict[str, Any]:
    from clemreg.errors import ConfigError

    pairs = [value.partition("=") for value in values]
    for name, separator, _ in pairs:
        if not separator:
            raise ConfigError(f"{name!r} is no parameter", hint="write NAME=VALUE")
    return {name: value for name, _, value in pairs}
