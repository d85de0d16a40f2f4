"""``clemreg run``, ``demo``, ``init`` and ``report``: the whole job."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

from clemreg.cli.console import JsonOption, Progress, print_verdict, progress_bar, result, say
from clemreg.cli.interrupt import stop_if_interrupted


def add_to(parent: typer.Typer) -> None:
    """Attach the commands."""
    for command in (demo, run, init, report):
        parent.command()(command)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the result.")] = Path("clemreg-demo"),
    data: Annotated[
        Path | None, typer.Option(help="Folder of the sample pair; default: the one of clemreg.")
    ] = None,
) -> None:
    """Register the sample pair, from EM to report, and say where the report is."""
    from clemreg.pipeline.demo import demo_config

    _run(demo_config(data, out), (), None)


def run(
    config: Annotated[Path, typer.Argument(help="TOML configuration; `clemreg init` writes one.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key: section.key=value.")
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Do this step and all later ones again: "
            "segment prepare register apply evaluate report export.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Do every step again.")] = False,
    json: JsonOption = None,
) -> None:
    """Run the whole job; a second run does only what is missing or has changed."""
    _run(config, tuple(set_ or ()), "segment" if force else from_, json)


def init(
    folder: Annotated[Path, typer.Argument(help="Folder for the configuration and results.")],
    em: Annotated[str, typer.Option(help="EM volume.")],
    lm: Annotated[str, typer.Option(help="Light volume.")],
    channel: Annotated[
        str | None, typer.Option(help="Mitochondria channel of the light volume.")
    ] = None,
    em_spacing: Annotated[
        str | None, typer.Option(help='EM voxel size "x, y, z unit", if the file has none.')
    ] = None,
    lm_spacing: Annotated[
        str | None, typer.Option(help='LM voxel size "x, y, z unit", if the file has none.')
    ] = None,
    landmarks: Annotated[Path | None, typer.Option(help="Held-out landmarks.")] = None,
) -> None:
    """Write a configuration after looking at both volumes and their voxel sizes."""
    from clemreg.pipeline.init import InitOptions, write_config

    options = InitOptions(em, lm, channel, em_spacing, lm_spacing, landmarks)
    path, notes = write_config(folder, options)
    for note in notes:
        say(f"note: {note}")
    result(f"wrote {path}; now: clemreg run {path}")


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
) -> None:
    """Write DIR/report.html and DIR/report.json again from a finished run."""
    from clemreg.pipeline.run import rewrite_report

    result(str(rewrite_report(folder)))


def _run(
    config: Path, overrides: tuple[str, ...], start: str | None, json: Path | None = None
) -> None:
    from clemreg.cli.console import write_json
    from clemreg.config import load_run_config
    from clemreg.pipeline.run import run_pipeline

    outcome = run_pipeline(
        load_run_config(config, overrides),
        config.resolve().parent,
        start=start,
        progress=_display(),
        announce=_announce,
    )
    print_verdict(outcome.status, outcome.reasons)
    result(f"report:  {outcome.report}")
    write_json(json, outcome.to_json())


def _display() -> Callable[[str], AbstractContextManager[Progress]]:
    return progress_bar


def _announce(step: str, state: str) -> None:
    stop_if_interrupted()
    say(f"{step}: {state}")
