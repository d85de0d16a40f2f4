"""``clemreg validate-training``: score the networks that a training kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clemreg.cli.console import JsonOption, progress_bar, result, rows_table, write_json
from clemreg.cli.scoring import (
    ClipOption,
    LabelOption,
    MetricOption,
    ToleranceOption,
    UnannotatedOption,
    score_options,
    unannotated_rule,
)


def add_to(parent: typer.Typer) -> None:
    """Attach the command."""
    parent.command("validate-training")(validate_training)


def validate_training(
    config: Annotated[Path, typer.Argument(help="TOML training configuration.")],
    store: Annotated[Path, typer.Option(help="SQLite file for the scores, for clemreg results.")],
    data: Annotated[list[str] | None, typer.Option(help="NAME=PATH of a sample; repeat.")] = None,
    label: LabelOption = None,
    unannotated: UnannotatedOption = "leave-out",
    metric: MetricOption = None,
    tolerance: ToleranceOption = "40 nm",
    clip: ClipOption = "200 nm",
    replace: Annotated[
        bool, typer.Option("--replace", help="Compute again what the store has already.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Predict and score the held-out crops with every network kept (keep_every); tell the best.

    A second start goes on with what the store lacks. More: clemreg results best, converged.
    """
    from clemreg.pipeline.checkpoints import CheckpointRequest, score_checkpoints
    from clemreg.pipeline.results import best_checkpoints

    chosen = score_options(metric, tolerance, clip)
    request = CheckpointRequest(
        store, tuple(label or ()), replace, unannotated_rule(unannotated), chosen
    )
    with progress_bar("validate") as progress:
        new = score_checkpoints(config, tuple(data or ()), request, progress=progress)
    result(f"{new} scores kept in {store}")
    shown = "dice" if "dice" in chosen.metrics else chosen.metrics[0]
    rows = best_checkpoints(store, shown, "validation", request.params(shown))
    rows_table(rows)
    write_json(json, {"rows": rows})
