"""Outputs that are not whole yet: which of their blocks are done, and of which job they are."""

from __future__ import annotations

from pathlib import Path

from clemreg.blocks.pyramid import remove_ledgers
from clemreg.blocks.run import Ledger, check_ledger, remove_ledger
from clemreg.errors import FormatError
from clemreg.io.atomic import partial_path, remove


def open_ledger(out: Path, job: str) -> Ledger:
    """Ledger beside an output; a new one unless the unfinished output is there, too.

    Parameters
    ----------
    out
        What is being written.
    job
        Text of all that the content of a block depends on.

    Raises
    ------
    FormatError
        The unfinished output is of another job.
    StorageError
        A file or folder that is not ours has the name of the ledger, ``.NAME.blocks``.
    """
    partial, path = partial_path(out), _ledger_path(out)
    check_ledger(path)
    if not partial.exists():
        forget(out)
    try:
        return Ledger(path, job)
    except FormatError as error:
        raise FormatError(
            f"{partial} is an unfinished output of another job: other inputs, options or blocks, "
            "or a file was changed since",
            hint=f"choose another output, or remove {partial.name} and {path.name}",
        ) from error


def forget(out: Path) -> None:
    """Remove the notes on an output that is in place."""
    remove_ledger(_ledger_path(out))
    remove_ledgers(_ledger_path(out))


def drop(out: Path) -> None:
    """Remove what there is of an output that is not in place, and the notes on it."""
    remove(partial_path(out))
    forget(out)


def _ledger_path(out: Path) -> Path:
    return partial_path(out).with_suffix(".blocks")
