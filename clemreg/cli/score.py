"""``clemreg score``: how well a segmentation agrees with the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clemreg.cli.console import (
    JsonOption,
    OverwriteOption,
    progress_bar,
    require_free,
    table,
    write_json,
)
from clemreg.cli.scoring import (
    ClipOption,
    MetricOption,
    ToleranceOption,
    UnannotatedOption,
    score_options,
    unannotated_rule,
)


def add_to(parent: typer.Typer) -> None:
    """Attach the command."""
    parent.command()(score)


def score(
    prediction: Annotated[str, typer.Argument(help="Predicted mask, signed distance or objects.")],
    truth: Annotated[str, typer.Argument(help="Annotated mask, objects, or COSEM ids.")],
    voxel_size: Annotated[
        str | None,
        typer.Option(
            "--voxel-size", "--spacing", help='Voxel size "x, y, z unit", if the files have none.'
        ),
    ] = None,
    metric: MetricOption = None,
    label: Annotated[
        str, typer.Option(help="Class to score, if the truth holds COSEM ids (0 not annotated).")
    ] = "",
    channel: Annotated[str, typer.Option(help="Channel of the prediction.")] = "",
    threshold: Annotated[
        float | None,
        typer.Option(help="Foreground from here on; default 127 in uint8 distances, else not 0."),
    ] = None,
    annotated: Annotated[
        Path | None, typer.Option(help="Mask of the voxels whose truth is known.")
    ] = None,
    unannotated: UnannotatedOption = "leave-out",
    instances: Annotated[
        bool, typer.Option("--instances", help="Both hold object ids: match them, too.")
    ] = False,
    tolerance: ToleranceOption = "40 nm",
    clip: ClipOption = "200 nm",
    report: Annotated[
        Path | None, typer.Option(help="Also write a page with bars and a slice, FILE.html.")
    ] = None,
    em: Annotated[str, typer.Option(help="EM volume to show behind the slice.")] = "",
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
) -> None:
    """Score a segmentation: overlap, distances and information; object by object if asked."""
    from clemreg.pipeline.score import (
        ScoreRequest,
        report_scores,
        score_files,
        score_instance_files,
    )

    require_free(report, overwrite=overwrite)
    request = ScoreRequest(
        voxel_size,
        label,
        channel,
        threshold,
        annotated,
        unannotated_rule(unannotated),
        score_options(metric, tolerance, clip),
        "objects" if instances else "anything",
    )
    with progress_bar("score") as progress:
        scores = dict(score_files(prediction, truth, request, progress=progress))
    if report is not None:
        report_scores(prediction, truth, request, scores, report, em)
    if instances:
        scores |= score_instance_files(prediction, truth, request)
    table({name: "–" if value is None else value for name, value in scores.items()})
    write_json(json, scores)
