"""A killed run knows its own outputs; whatever else has their names stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clemreg.errors import StorageError
from clemreg.export.replace import claimed
from clemreg.io.atomic import atomic_path, atomic_write_text
from clemreg.io.claims import is_noted, noted
from clemreg.pipeline.measure import WORK_MARK, require_free_results, working_folder


class Killed(BaseException):
    """What no one catches."""


def test_only_what_was_put_in_place_and_not_changed_since_is_noted(tmp_path):
    journal, mine, other = tmp_path / "journal", tmp_path / "a.csv", tmp_path / "b.csv"
    folder = tmp_path / "c.zarr"
    with noted(journal, [mine, folder]):
        atomic_write_text(mine, "1")
        atomic_write_text(other, "2")
        with atomic_path(folder) as partial:
            partial.mkdir()
            (partial / "zarr.json").write_text("{}")
    atomic_write_text(tmp_path / "late.csv", "3")
    assert [is_noted(journal, path) for path in (mine, other, folder)] == [True, False, True]
    with journal.open("a") as stream:
        stream.write('["torn')
    assert is_noted(journal, mine)
    stat = mine.stat()
    mine.write_text("9")
    os.utime(mine, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert not is_noted(journal, mine)
    (folder / "thesis.txt").write_text("mine")
    assert not is_noted(journal, folder)
    assert not is_noted(tmp_path / "absent", mine)


def killed_after_the_first(tmp_path: Path) -> list[Path]:
    """Leave what a process leaves that is killed between two files: the mark and the first."""
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    with pytest.raises(Killed), claimed(*files, overwrite=False):
        atomic_write_text(files[0], "first")
        raise Killed
    return files


def test_a_killed_export_replaces_its_own_file_but_not_one_that_came_later(tmp_path):
    files = killed_after_the_first(tmp_path)
    with claimed(*files, overwrite=False) as replaces:
        assert replaces
    assert not list(tmp_path.glob(".*"))

    files[0].unlink()
    files = killed_after_the_first(tmp_path)
    files[0].unlink()
    files[0].write_text("mine")  # years later, the mark still lies there
    with (
        pytest.raises(StorageError, match=r"a\.csv exists already"),
        claimed(*files, overwrite=False),
    ):
        pass
    assert files[0].read_text() == "mine"


def test_the_same_for_what_has_a_working_folder(tmp_path):
    table, volume = tmp_path / "t.csv", tmp_path / "v.csv"
    work = tmp_path / ".t.csv.work"
    with pytest.raises(Killed), working_folder((table, volume), (), "job"):
        atomic_write_text(volume, "half of the outputs")
        raise Killed
    assert work.is_dir()
    require_free_results(table, volume, overwrite=False)
    with pytest.raises(Killed), working_folder((table, volume), (), "another job"):
        raise Killed
    require_free_results(table, volume, overwrite=False)  # still known
    volume.unlink()
    volume.write_text("mine")
    with pytest.raises(StorageError, match=r"v\.csv exists already"):
        require_free_results(table, volume, overwrite=False)
    volume.unlink()
    with working_folder((table, volume), (), "another job"):
        atomic_write_text(table, "all")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv"]


@pytest.mark.parametrize("left", [[], [f".{WORK_MARK}.partial"], [".placed"]])
def test_a_working_folder_that_was_killed_as_it_came_or_went_is_no_obstacle(tmp_path, left):
    work = tmp_path / ".t.csv.work"
    work.mkdir()
    for name in left:
        (work / name).touch()
    with working_folder((tmp_path / "t.csv",)) as scratch:
        assert scratch == work
    assert not work.exists()


def test_half_a_working_folder_is_not_gone_on_from(tmp_path):
    """Killed while it was removed: parts may be gone that the ledger says are there."""
    with pytest.raises(Killed), working_folder((tmp_path / "t.csv",), (), "job") as scratch:
        (scratch / "ledger").touch()
        raise Killed
    (scratch / WORK_MARK).write_text("")
    with working_folder((tmp_path / "t.csv",), (), "job") as scratch:
        assert not (scratch / "ledger").exists()


def test_a_folder_of_somebody_else_stays(tmp_path):
    work = tmp_path / ".t.csv.work"
    work.mkdir()
    (work / "thesis.txt").write_text("mine")
    with pytest.raises(StorageError, match="is in the way"), working_folder((tmp_path / "t.csv",)):
        pass
    assert (work / "thesis.txt").read_text() == "mine"
