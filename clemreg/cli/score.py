"""``clemreg score``: how well a segmentation agrees with the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from clemreg.cli.console import JsonOption, progress_bar, table, write_json


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
    metric: Annotated[
        list[str] | None, typer.Option(help="Only this metric; repeat. Default: all 21.")
    ] = None,
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
    unannotated: Annotated[
        str, typer.Option(help='The others: "leave-out", or "background" as in the paper.')
    ] = "leave-out",
    instances: Annotated[
        bool, typer.Option("--instances", help="Both hold object ids: match them, too.")
    ] = False,
    tolerance: Annotated[
        str, typer.Option(help="Distance that is no error in *_with_tolerance.")
    ] = "40 nm",
    clip: Annotated[
        str, typer.Option(help="Longest distance that counts in *_clipped.")
    ] = "200 nm",
    report: Annotated[
        Path | None, typer.Option(help="Also write a page with bars and a slice, FILE.html.")
    ] = None,
    em: Annotated[str, typer.Option(help="EM volume to show behind the slice.")] = "",
    json: JsonOption = None,
) -> None:
    """Score a segmentation: overlap, distances and information; object by object if asked."""
    from clemreg.evaluate.scores import METRICS, ScoreOptions
    from clemreg.pipeline.score import (
        ScoreRequest,
        Unannotated,
        report_scores,
        score_files,
        score_instance_files,
    )
    from clemreg.units import parse_length_nm

    if unannotated not in ("leave-out", "background"):
        raise typer.BadParameter(f"{unannotated!r} is neither leave-out nor background")
    request = ScoreRequest(
        voxel_size,
        label,
        channel,
        threshold,
        annotated,
        cast("Unannotated", unannotated),
        ScoreOptions(tuple(metric or METRICS), parse_length_nm(tolerance), parse_length_nm(clip)),
    )
    with progress_bar("score") as progress:
        scores = dict(score_files(prediction, truth, request, progress=progress))
    if report is not None:
        report_scores(prediction, truth, request, scores, report, em)
    if instances:
        scores |= score_instance_files(prediction, truth, request)
    table({name: "–" if value is None else value for name, value in scores.items()})
    write_json(json, scores)
