"""``clemreg apply``: use a transform."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clemreg.cli.console import progress_bar, result


def add_to(parent: typer.Typer) -> None:
    """Attach the command."""
    parent.command()(apply)


def apply(
    transform: Annotated[str, typer.Argument(help="Transform file (lm -> em).")],
    subject: Annotated[str, typer.Argument(metavar="IMAGE|POINTS", help="What to transform.")],
    out: Annotated[Path, typer.Option(help="Output: .zarr, .tif, or .csv for points.")],
    onto: Annotated[
        str | None, typer.Option(help="Image whose grid the result gets; needed for images.")
    ] = None,
    inverse: Annotated[
        bool,
        typer.Option(
            "--inverse", help="Bring LM images into the EM frame, or EM points into the LM frame."
        ),
    ] = False,
    labels: Annotated[bool, typer.Option(help="Ids, not intensities: nearest neighbour.")] = False,
) -> None:
    """Resample an EM image onto an LM grid (or the reverse), or map a table of points."""
    from clemreg.pipeline.apply import ApplyCommand, apply_file

    direction = "em-to-lm" if inverse else "lm-to-em"
    command = ApplyCommand(transform, subject, out, onto, direction, labels)  # type: ignore[arg-type]
    with progress_bar("apply") as progress:
        apply_file(command, progress)
    result(f"wrote {out}")
