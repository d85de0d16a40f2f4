"""``clemreg validate``: score a prediction on annotated crops and keep the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clemreg.cli.console import (
    JsonOption,
    OverwriteOption,
    progress_bar,
    require_free,
    result,
    rows_table,
    write_json,
)
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
    parent.command()(validate)


def validate(
    prediction: Annotated[str, typer.Argument(help="Prediction with one channel a class.")],
    setup: Annotated[str, typer.Option(help="Network that made it: setup04, or any name.")],
    iteration: Annotated[int, typer.Option(help="Training step of its checkpoint.")],
    n5: Annotated[Path | None, typer.Option(help="COSEM container with crops, SAMPLE.n5.")] = None,
    cellmap: Annotated[
        Path | None, typer.Option(help="CellMap group with crops, labels/groundtruth.")
    ] = None,
    em: Annotated[str, typer.Option(help="EM behind the slices of CellMap crops.")] = "",
    store: Annotated[
        Path | None, typer.Option(help="SQLite file to keep the scores in, for clemreg results.")
    ] = None,
    crop: Annotated[list[str] | None, typer.Option(help="Only this crop, crop<N>; repeat.")] = None,
    label: LabelOption = None,
    ids: Annotated[
        Path | None,
        typer.Option(help="JSON list of crop database documents: which ids were looked for."),
    ] = None,
    sample: Annotated[str, typer.Option(help="Name of the sample; default: the N5's.")] = "",
    raw_dataset: Annotated[
        str, typer.Option(help="EM that was predicted from; default volumes/raw/s0 of the N5.")
    ] = "",
    refined: Annotated[
        bool, typer.Option("--refined", help="It was cleaned up: all that is not 0 counts.")
    ] = False,
    threshold: Annotated[
        float, typer.Option(help="Foreground of a raw prediction from here on.")
    ] = 127,
    unannotated: UnannotatedOption = "leave-out",
    metric: MetricOption = None,
    tolerance: ToleranceOption = "40 nm",
    clip: ClipOption = "200 nm",
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace scores that the store has already.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="Also write a page with bars and slices, FILE.html.")
    ] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
) -> None:
    """Score a prediction on the crops where somebody looked for its classes.

    Choose, compare and report from the store: clemreg results best, compare, converged, report.
    """
    from clemreg.pipeline.crop_scores import (
        CropRequest,
        CropSource,
        keep_scores,
        report_on_crops,
        rows_by_class,
        score_on_crops,
    )

    require_free(report, overwrite=overwrite)
    chosen = score_options(metric, tolerance, clip)
    source = CropSource(n5, cellmap, em, ids, tuple(crop or ()))
    request = CropRequest(
        source, setup, iteration, tuple(label or ()), sample, raw_dataset, refined, threshold,
        unannotated_rule(unannotated), chosen,
    )  # fmt: skip
    with progress_bar("validate") as progress:
        results = score_on_crops(prediction, request, progress=progress)
    shown = "dice" if "dice" in chosen.metrics else chosen.metrics[0]
    rows_table(rows_by_class(results, shown))
    if store is not None:
        result(f"{keep_scores(store, results, replace)} scores kept in {store}")
    if report is not None:
        report_on_crops(prediction, request, results, report)
        result(f"wrote {report}")
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for r in results:
        scores.setdefault(r.label, {}).setdefault(r.crop, {})[r.metric] = r.value
    write_json(json, scores)
