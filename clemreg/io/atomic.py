"""Outputs that appear whole or not at all: written beside, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from clemreg.errors import StorageError


def partial_path(path: Path) -> Path:
    """Return the sibling under which `path` is written until it is whole."""
    return hidden_sibling(path, ".partial")


def hidden_sibling(path: Path, ending: str) -> Path:
    """Return a hidden name beside `path` that ends so; a checksum, where its own is too long."""
    name = f".{path.name}{ending}"
    if _length(name) > _LONGEST_NAME:
        digest = hashlib.blake2b(os.fsencode(path.name), digest_size=16).hexdigest()
        name = f".{digest}{ending}"
    return path.with_name(name)


def require_name(path: Path) -> None:
    """Refuse a name that no file system takes.

    Raises
    ------
    StorageError
        It is too long.
    """
    if _length(path.name) > _LONGEST_NAME:
        raise StorageError(
            f"{path} has too long a name: {_length(path.name)}, at most {_LONGEST_NAME}",
            hint="choose a shorter one",
        )


_LONGEST_NAME = 255
# How long files may still be added to a folder that is being removed.
_PATIENCE_S = 5.0
# A library has given up on what has failed if nothing more comes for so long.
_QUIET_S = 0.3


def _length(name: str) -> int:
    """Length as file systems count it: bytes on Linux, units of UTF-16 on macOS and Windows."""
    if sys.platform in ("win32", "darwin"):
        return len(name.encode("utf-16-le", "surrogatepass")) // 2
    return len(os.fsencode(name))


@contextmanager
def atomic_path(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a sibling path to write a file or folder to; rename it to `path` on success.

    On an exception the sibling is removed and `path` is as it was.

    Parameters
    ----------
    path
        Where the finished output will be; its folder is made if needed.
    overwrite
        Whether an output that exists is replaced; an empty folder always is.

    Raises
    ------
    StorageError
        The target exists and must not be replaced, the disk is full, or permission is missing.
    """
    path = Path(path)
    require_name(path)
    if not (overwrite or is_free(path)):
        raise StorageError(f"{path} exists already", hint="choose another name or remove it")
    partial = partial_path(path)
    make_folder(path.parent)
    with storage_errors(path):
        remove(partial)
    try:
        with storage_errors(path):
            yield partial
            put_in_place(partial, path)
    except BaseException:
        discard(partial)
        raise


@contextmanager
def atomic_set(index: Path, others: Sequence[Path], *, overwrite: bool) -> Iterator[list[Path]]:
    """Yield siblings to write files to that belong together; they appear as one on success.

    Who reads them starts at `index`, which names the others. So it is taken away before one of them
    changes, and is back when all are in place: it never leads to half a set. A run that is killed
    in between leaves a mark, by which the next one knows that the others are its own to replace.

    Parameters
    ----------
    index
        The file that is opened.
    others
        Files and folders that it leads to.
    overwrite
        Whether a set that exists is replaced.

    Yields
    ------
    list of Path
        Siblings of `index` and of the others, in their order.

    Raises
    ------
    StorageError
        One of them exists and must not be replaced, the disk is full, or permission is missing.
    """
    for path in (index, *others):
        require_name(path)
    fixed = [index] if is_unfinished(index) else [index, *others]
    for path in fixed:
        if not (overwrite or is_free(path)):
            raise StorageError(f"{path} exists already", hint="choose another name or remove it")
    partials = [partial_path(path) for path in (index, *others)]
    with storage_errors(index):
        index.parent.mkdir(parents=True, exist_ok=True)
        for partial in partials:
            remove(partial)
    try:
        with storage_errors(index):
            yield partials
            mark = _unfinished_mark(index)
            partials[0].replace(mark)
            remove(index)
            for partial, path in zip(partials[1:], others, strict=True):
                put_in_place(partial, path)
            _tell(mark, index)
            mark.replace(index)
    except BaseException:
        for partial in partials:
            discard(partial)
        raise


def is_unfinished(index: Path) -> bool:
    """Tell whether a run was ended while it put the files of `atomic_set` in place."""
    return _unfinished_mark(index).exists()


def _unfinished_mark(index: Path) -> Path:
    return hidden_sibling(index, ".unfinished")


def is_free(path: Path) -> bool:
    """Tell whether nothing is lost by writing to a path: there is nothing, or an empty folder.

    `LEFT_BY_SYSTEMS` do not count.
    """
    if not path.is_dir():
        return not path.exists()
    return all(child.name in LEFT_BY_SYSTEMS for child in path.iterdir())


LEFT_BY_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")
"""Files that Finder and Explorer put into folders, unasked."""


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, if it is not there.

    Raises
    ------
    StorageError
        It cannot be made: a file has its name, or permission is missing.
    """
    with storage_errors(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
            raise StorageError(
                f"cannot make the folder {path}: {error.strerror}",
                hint="choose another output folder",
            ) from error


def require_writable(folder: Path) -> None:
    """Make a folder if it is not there, and see that files can be made in it.

    Raises
    ------
    StorageError
        They cannot: known before long work, not after it.
    """
    make_folder(folder)
    with storage_errors(folder):
        tempfile.TemporaryFile(dir=folder).close()


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the system's write errors into a StorageError that says what to do."""
    hints = {
        errno.ENOSPC: "the disk is full: free some space and run the same command again",
        errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
        errno.EFBIG: "the file size limit is reached (ulimit -f)",
        errno.EACCES: "no permission to write there: choose another output folder",
        errno.EPERM: "no permission to write there: choose another output folder",
        errno.EROFS: "the file system is read-only: choose another output folder",
    }
    try:
        yield
    except OSError as error:
        if error.errno not in hints or isinstance(error, StorageError):
            raise
        message = f"cannot write {path}: {error.strerror or error}"
        raise StorageError(message, hint=hints[error.errno]) from error


Note = Callable[[Path, Path], None]
"""Called with a finished sibling and the final name that it is about to get."""

_notes: ContextVar[tuple[Note, ...]] = ContextVar("notes", default=())


@contextmanager
def told_before(note: Note) -> Iterator[None]:
    """Call `note` before each output that this thread puts in place in the meantime."""
    token = _notes.set((*_notes.get(), note))
    try:
        yield
    finally:
        _notes.reset(token)


def _tell(partial: Path, path: Path) -> None:
    for note in _notes.get():
        note(partial, path)


def put_in_place(partial: Path, path: Path) -> None:
    """Rename a finished sibling to its final name, replacing what is there."""
    _tell(partial, path)
    old = hidden_sibling(path, ".old")
    remove(old)  # left by a run that was killed between the two renames below
    folder_in_play = partial.is_dir() or (path.is_dir() and not path.is_symlink())
    if folder_in_play and path.exists():  # no system replaces a folder by one rename
        path.rename(old)
        partial.rename(path)
        remove(old)
    else:
        partial.replace(path)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Remove what a failed write has left, and what a library's threads still add after that."""
    end = time.monotonic() + _PATIENCE_S
    quiet = time.monotonic() + (_QUIET_S if path.is_dir() else 0.0)
    while True:
        try:
            remove(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or time.monotonic() > end:
                raise
        else:
            if time.monotonic() >= min(quiet, end):
                return
        time.sleep(0.02)
        if path.exists():
            quiet = time.monotonic() + _QUIET_S


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all, and flush it to the disk."""
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def atomic_write_json(path: str | Path, content: Any) -> None:
    """Write JSON, whole or not at all; see `json_text`."""
    atomic_write_text(path, json_text(content))


def json_text(content: Any) -> str:
    """Return a JSON document; numpy scalars become numbers, NaN and infinity null."""
    text = json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # Bytes of a file name that are no UTF-8 are lone surrogates in Python, which no file can hold.
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_SURROGATE = re.compile("[\ud800-\udfff]")


def plain(value: Any) -> Any:
    """Make a value fit for JSON."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # numpy scalar or array
        return plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return value
