"""``clemreg model import`` and ``export``: networks in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clemreg.cli.console import (
    JsonOption,
    OverwriteOption,
    require_free,
    result,
    table,
    write_json,
)
from clemreg.cli.segment import models


def add_to(parent: typer.Typer) -> None:
    """Attach the commands to ``clemreg model``, which the segment commands made."""
    del parent  # the group is attached already
    models.command("import")(import_model)
    models.command("export")(export_model)


def import_model(
    source: Annotated[
        Path, typer.Argument(help="COSEM checkpoint as published, .npz of its variables, or model.")
    ],
    out: Annotated[Path, typer.Option(help="Safetensors file to write.")],
    setup: Annotated[
        str, typer.Option(help="Setup of the paper; default: the name of the folder.")
    ] = "",
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
) -> None:
    """Check a network and keep it as safetensors; nothing in the source is executed."""
    from clemreg.segment.exchange import import_network, network_info

    require_free(out, overwrite=overwrite)
    import_network(source, out, setup)
    info = network_info(out)
    table({str(out): info})
    write_json(json, info)


def export_model(
    name: Annotated[str, typer.Argument(help="Bundled name, safetensors file or checkpoint.")],
    out: Annotated[
        Path, typer.Option(help="NETWORK.ts (TorchScript), NETWORK.onnx or NETWORK.safetensors.")
    ],
    block: Annotated[
        int, typer.Option(help="Input voxels along each axis for ONNX; default: small.")
    ] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Write a network for other programs."""
    from clemreg.segment.exchange import export_network

    require_free(out, overwrite=overwrite)
    export_network(name, out, block=block)
    result(f"wrote {out}")
