"""Options that score, validate and validate-training share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from clemreg.evaluate.scores import ScoreOptions, Unannotated

MetricOption = Annotated[
    list[str] | None, typer.Option(help="Only this metric; repeat. Default: all 21.")
]
ToleranceOption = Annotated[
    str, typer.Option(help="Distance that is no error in *_with_tolerance.")
]
LabelOption = Annotated[list[str] | None, typer.Option(help="Only this class; repeat.")]
UnannotatedOption = Annotated[
    str, typer.Option(help='Unknown voxels: "leave-out", or "background" as in the paper.')
]
ClipOption = Annotated[str, typer.Option(help="Longest distance that counts in *_clipped.")]


def unannotated_rule(text: str) -> Unannotated:
    """Check what is to be done with unknown voxels."""
    if text not in ("leave-out", "background"):
        raise typer.BadParameter(f"{text!r} is neither leave-out nor background")
    return cast("Unannotated", text)


def score_options(metric: Sequence[str] | None, tolerance: str, clip: str) -> ScoreOptions:
    """Read the lengths; no metric stands for all."""
    from clemreg.evaluate.scores import METRICS, ScoreOptions
    from clemreg.units import parse_length_nm

    metrics = tuple(metric or METRICS)
    return ScoreOptions(metrics, parse_length_nm(tolerance), parse_length_nm(clip))
