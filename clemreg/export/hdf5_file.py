"""An HDF5 file whose writing can fail without taking the process down.

When the disk fills up, HDF5 cannot close its file: depending on what is still unwritten, h5py
raises a RuntimeError, prints tracebacks from destructors, or the process dies in its exit handlers.
Here HDF5 never sees the error: writes that fail are noted and dropped, and the note is raised
once the file is closed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def create_hdf5(path: Path) -> Iterator[tuple[Any, Callable[[], None]]]:
    """Yield a new ``h5py.File`` and a check that raises if a write has failed.

    Parameters
    ----------
    path
        The file; old software (HDF5 1.8 and jhdf5) can read it.

    Raises
    ------
    OSError
        The first error of the disk, from the check or at the end of the ``with`` block.
    """
    import h5py

    with path.open("w+b", buffering=0) as stream:
        disk = _Disk(stream)
        try:
            with h5py.File(disk, "w", libver=("earliest", "v110")) as file:
                yield file, disk.check
        except (OSError, RuntimeError):
            disk.check()  # the reason, rather than what HDF5 made of it
            raise
        disk.check()


class _Disk:
    """What h5py needs of a file; after a failed write it takes everything and keeps nothing."""

    def __init__(self, stream: io.FileIO) -> None:
        self._stream = stream
        self._error: OSError | None = None

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        view = memoryview(data)
        rest = view
        try:
            while len(rest) and self._error is None:
                rest = rest[self._stream.write(rest) :]
        except OSError as error:
            self._error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            if self._error is None:
                return self._stream.truncate(size)
        except OSError as error:
            self._error = error
        return 0 if size is None else size

    def read(self, size: int = -1) -> bytes:
        return self._stream.read(size)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and (n := self._stream.readinto(view[done:])):
            done += n
        view[done:] = bytes(len(view) - done)
        return len(view)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def flush(self) -> None:
        """Nothing is buffered."""
