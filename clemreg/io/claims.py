"""What a run has put in place: by this a killed one knows its own outputs from anybody else's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clemreg.io.atomic import told_before


@contextmanager
def noted(journal: Path, paths: Sequence[Path]) -> Iterator[None]:
    """Note in `journal` each of some outputs, just before it is put in place.

    Parameters
    ----------
    journal
        Text file; lines are added.
    paths
        Outputs; others are not noted.
    """
    wanted = {str(path.absolute()) for path in paths}

    def note(partial: Path, path: Path) -> None:
        name = str(path.absolute())
        if name in wanted:
            with journal.open("a", encoding="ascii") as stream:
                # Begun anew, so that a line which a kill has torn spoils no other.
                stream.write(f"\n{json.dumps([name, *_identity(partial)])}\n")

    with told_before(note):
        yield


def is_noted(journal: Path, path: Path) -> bool:
    """Tell whether at `path` lies just what was noted for it, unchanged since.

    What somebody else put there has another time; so has a folder in which something was added.
    """
    if not journal.is_file() or not path.exists():
        return False
    here = [str(path.absolute()), *_identity(path)]
    return any(_noted(line) == here for line in journal.read_text(encoding="ascii").splitlines())


def _noted(line: str) -> object:
    try:
        return json.loads(line)
    except ValueError:  # torn when the run was killed
        return None


def _identity(path: Path) -> tuple[int, int]:
    """Time and size, which renaming keeps; of a folder the time at which names in it changed."""
    stat = path.stat()
    return stat.st_mtime_ns, -1 if path.is_dir() else stat.st_size
