"""What a command may replace: nothing unasked, and no folder of another kind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clemreg.errors import StorageError
from clemreg.io.atomic import (
    LEFT_BY_SYSTEMS,
    atomic_write_text,
    hidden_sibling,
    is_free,
    make_folder,
    remove,
    require_name,
)
from clemreg.io.claims import is_noted, noted

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
        require_name(path)
        if path.is_dir():
            raise StorageError(f"{path} is a folder, expected a file", hint="choose another name")
        if path.exists() and not overwrite:
            raise StorageError(f"{path} exists already", hint=HINT)


@contextmanager
def claimed(*files: Path, overwrite: bool) -> Iterator[bool]:
    """Take several files that one command writes one after the other.

    A mark lies beside the first of them meanwhile, and says what has been put in place. So a
    command that was killed between two files, or found the disk full, can be given again: it knows
    the first ones as its own, unless they were changed since.

    Parameters
    ----------
    files
        What will be written.
    overwrite
        Whether files of another command or person are replaced.

    Yields
    ------
    bool
        Whether files that are there are to be replaced.

    Raises
    ------
    StorageError
        One is there, and must not be replaced; see `require_free`.
    """
    mark = hidden_sibling(files[0], ".begun")
    begun = mark.is_file()
    require_free(*(file for file in files if not is_noted(mark, file)), overwrite=overwrite)
    make_folder(mark.parent)
    if not begun:
        atomic_write_text(mark, "")
    try:
        with noted(mark, files):
            yield overwrite or begun
    except BaseException:
        if not mark.stat().st_size:  # nothing is in place that would have to be known again
            remove(mark)
        raise
    remove(mark)


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
    here = (p.name for p in sorted(folder.iterdir()) if p.name not in LEFT_BY_SYSTEMS)
    others = [name for name in here if not re.fullmatch(names, name)]
    if others:
        raise StorageError(
            f"{folder} is no earlier export: it has {others[0]}",
            hint="only earlier exports are replaced; choose another name",
        )
