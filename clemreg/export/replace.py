"""What a command may replace: nothing unasked, and no folder of another kind."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from clemreg.errors import StorageError
from clemreg.io.atomic import is_free

HINT = "choose another name, or add --overwrite"
ZARR = ("zarr.json", ".zgroup", ".zarray")
N5 = ("attributes.json",)
MOBIE = ("collection.csv",)


def require_free(*files: Path, overwrite: bool) -> None:
    """Refuse to write over files, unless they are to be replaced; a folder never is.

    Raises
    ------
    StorageError
        One is there; the message names it.
    """
    for path in files:
        if path.is_dir():
            raise StorageError(f"{path} is a folder, expected a file", hint="choose another name")
        if path.exists() and not overwrite:
            raise StorageError(f"{path} exists already", hint=HINT)


def require_free_folder(folder: Path, marks: Iterable[str], *, overwrite: bool) -> None:
    """Refuse to replace a folder; with `overwrite`, one that holds something else.

    Parameters
    ----------
    folder
        Would be replaced as a whole. An empty one is free.
    marks
        Files of which such a folder has at least one.

    Raises
    ------
    StorageError
        It is there, and must not be replaced.
    """
    if is_free(folder):
        return
    if not overwrite:
        raise StorageError(f"{folder} exists already", hint=HINT)
    marks = tuple(marks)
    if not any((folder / mark).is_file() for mark in marks):
        raise StorageError(
            f"{folder} is no earlier export: it has no {' or '.join(marks)}",
            hint="only earlier exports are replaced; choose another name",
        )


def require_free_output(*paths: Path | None, overwrite: bool) -> None:
    """Refuse to write over files or volumes, unless they are to be replaced.

    Parameters
    ----------
    paths
        Outputs; None: not asked for.

    Raises
    ------
    StorageError
        One is there, and must not be replaced; or it is a folder that holds no volume.
    """
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            require_free_folder(path, (*ZARR, *N5), overwrite=overwrite)
        else:
            require_free(path, overwrite=overwrite)


def require_free_collection(folder: Path | None, names: str, *, overwrite: bool) -> None:
    """Refuse to replace a folder of files of one kind; with `overwrite`, one with other files.

    Parameters
    ----------
    folder
        Would be replaced as a whole. An empty one is free. None: not asked for.
    names
        Regular expression of all names that such a folder holds.

    Raises
    ------
    StorageError
        It is there, and must not be replaced; or it is a file.
    """
    if folder is None or is_free(folder):
        return
    if not folder.is_dir():
        raise StorageError(f"{folder} is a file, expected a folder", hint="choose another name")
    if not overwrite:
        raise StorageError(f"{folder} exists already", hint=HINT)
    other = next((p.name for p in sorted(folder.iterdir()) if not re.fullmatch(names, p.name)), "")
    if other:
        raise StorageError(
            f"{folder} is no earlier export: it has {other}",
            hint="only earlier exports are replaced; choose another name",
        )
