"""``clemreg simulate``: pairs with known truth."""

from __future__ import annotations

import typer

app = typer.Typer(
    no_args_is_help=True, help="Make EM and LM volumes whose true transform is known."
)


def add_to(parent: typer.Typer) -> None:
    """Attach the command group."""
    parent.add_typer(app, name="simulate")


@app.callback()
def _group() -> None:
    """Keep ``clem`` a subcommand although it is the only one."""
