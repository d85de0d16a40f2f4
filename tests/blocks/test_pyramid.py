from __future__ import annotations

import numpy as np
import pytest

from clemreg.blocks.executors import Processes, Serial
from clemreg.blocks.stages import Blockwise, VolumeFile, map_volume
from clemreg.errors import DataError, StorageError
from clemreg.io.volumes import WriteOptions, open_volume, write_volume
from clemreg.space.grid import Grid
from clemreg.space.resample import pool_mode
from clemreg.volume import Labels, Volume

GRID = Grid((30, 41, 70), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")


@pytest.mark.parametrize("executor", [Serial(), Processes(2)], ids=lambda e: type(e))
@pytest.mark.parametrize("block", [(9, 10, 16), (64, 64, 64)])
def test_coarse_levels_are_those_of_the_whole_volume(tmp_path, executor, block):
    ids = np.random.default_rng(1).integers(0, 4, GRID.shape).astype(np.uint32) * 70_000
    options = WriteOptions(labels=True, levels=4)
    seen = []
    how = Blockwise(block, executor, lambda *a: seen.append(a))
    volume = Volume(ids, GRID)
    out = map_volume(volume.read, tmp_path / "p.zarr", GRID, np.uint32, how, options)
    write_volume(tmp_path / "w.zarr", Labels(ids, GRID), options=options)
    whole = open_volume(tmp_path / "w.zarr", frame="em")
    assert [v.grid for v in out.levels] == [v.grid for v in whole.levels]
    for ours, theirs in zip(out.levels, whole.levels, strict=True):
        assert (ours.read() == theirs.read()).all()
    assert (out.levels[1].read() == pool_mode(ids, (2, 2, 2))).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.zarr", "w.zarr"]
    assert seen


def test_a_stopped_pyramid_goes_on(tmp_path, monkeypatch):
    from clemreg.io.writer import VolumeWriter

    ids = np.random.default_rng(2).integers(0, 4, GRID.shape).astype(np.uint32)
    read, how = Volume(ids, GRID).read, Blockwise((9, 10, 16))
    options = WriteOptions(labels=True, levels=3)
    pool, calls = VolumeWriter.pool, []

    def stopping(writer, level, box):
        calls.append((level, box))
        if len(calls) == 3:
            raise KeyboardInterrupt
        pool(writer, level, box)

    monkeypatch.setattr(VolumeWriter, "pool", stopping)
    with pytest.raises(KeyboardInterrupt):
        map_volume(read, tmp_path / "p.zarr", GRID, np.uint32, how, options)
    assert not (tmp_path / "p.zarr").exists()

    def never(_box):
        raise AssertionError

    out = map_volume(never, tmp_path / "p.zarr", GRID, np.uint32, how, options)
    assert len(calls) == len(set(calls)) + 1  # only the block that was stopped is done again
    whole = pool_mode(ids, (2, 2, 2))
    assert (out.levels[1].read() == whole).all()


@pytest.mark.parametrize("name", [".p.zarr.blocks", ".p.zarr.level1"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_not_ours_is_not_deleted(tmp_path, name, kind):
    own = tmp_path / name
    if kind == "folder":
        own.mkdir()
        own = own / "thesis.txt"
    own.write_text("mine")
    (tmp_path / ".p.zarr.levels").mkdir()
    read, options = Volume(np.ones(GRID.shape, "u1"), GRID).read, WriteOptions(levels=2)
    with pytest.raises(StorageError, match="is in the way") as error:
        map_volume(read, tmp_path / "p.zarr", GRID, np.uint8, Blockwise(), options)
    assert str(tmp_path / name) in str(error.value)
    assert own.read_text() == "mine"
    assert not (tmp_path / "p.zarr").exists()
    own.unlink()
    if kind == "folder":
        own.parent.rmdir()
    map_volume(read, tmp_path / "p.zarr", GRID, np.uint8, Blockwise(), options)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".p.zarr.levels", "p.zarr"]


def test_a_ledger_that_was_just_begun_is_no_obstacle(tmp_path):
    (tmp_path / ".p.zarr.blocks").touch()
    read = Volume(np.ones(GRID.shape, "u1"), GRID).read
    assert map_volume(read, tmp_path / "p.zarr", GRID, np.uint8, Blockwise()).read().all()


def test_a_file_that_changes_is_opened_again(tmp_path):
    file = VolumeFile(str(tmp_path / "v.zarr"))
    for value in (1, 2):
        volume = Volume(np.full(GRID.shape, value, np.uint8), GRID)
        write_volume(tmp_path / "v.zarr", volume)
        assert (file(GRID.box) == value).all()
    assert file.open().grid.frame == "em"


def test_nan_is_refused_where_it_is_read(tmp_path):
    values = np.zeros(GRID.shape, np.float32)
    values[20, 5, 6] = np.nan
    write_volume(tmp_path / "v.zarr", Volume(values, GRID))
    with pytest.raises(DataError, match="zarr holds NaN"):
        VolumeFile(str(tmp_path / "v.zarr"))(GRID.box)
