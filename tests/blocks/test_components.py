from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import cc3d
import numpy as np
import pytest
from scipy import ndimage

from clemreg.blocks.components import consecutive, find_components, write_components
from clemreg.blocks.executors import Processes, Serial, Threads
from clemreg.blocks.stages import Blockwise
from clemreg.blocks.stitch import merge
from clemreg.space.grid import Grid
from clemreg.testing import hostile_grid
from clemreg.volume import Volume

BLOCKS = [(4, 5, 6), (6, 17, 4), (100, 100, 100)]


def noise(density, seed=0, grid=None):
    grid = grid or hostile_grid()
    return np.random.default_rng(seed).random(grid.shape) < density


def labelled(mask, folder, how, connectivity=6, grid=None):
    grid = grid or hostile_grid()
    found = find_components(Volume(mask, grid).read, grid, folder, how, connectivity=connectivity)
    out = write_components(found, consecutive(np.ones(len(found))), folder / "out.zarr", how)
    assert out.grid.spacing_nm == grid.spacing_nm
    assert out.grid.origin_nm == grid.origin_nm
    return out.read(), found


def same_partition(a, b):
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    return len(pairs[0]) == len(np.unique(a)) == len(np.unique(b)) and ((a > 0) == (b > 0)).all()


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("density", [0.2, 0.32, 0.7])
def test_six_connected_components_are_those_of_scipy(tmp_path, block, density):
    mask = noise(density)
    labels, _ = labelled(mask, tmp_path, Blockwise(block))
    expected, _ = ndimage.label(mask)
    assert same_partition(labels, expected)
    # ids follow the first voxel, whatever the blocks
    firsts = [np.flatnonzero(labels.ravel() == i)[0] for i in range(1, labels.max() + 1)]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("density", [0.04, 0.08])
def test_26_connected_components_are_those_of_scipy(tmp_path, block, density):
    mask = noise(density, seed=3)
    labels, _ = labelled(mask, tmp_path, Blockwise(block), connectivity=26)
    expected, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    assert same_partition(labels, expected)


@pytest.mark.parametrize("block", [(11, 17, 23), (4, 5, 6)])
def test_only_equal_values_join_and_the_table_knows_them(tmp_path, block):
    values = np.random.default_rng(1).integers(0, 3, hostile_grid().shape).astype(np.uint64)
    values[values > 0] += 2**33
    labels, found = labelled(values, tmp_path, Blockwise(block))
    assert same_partition(labels, cc3d.connected_components(values, connectivity=6))
    first = found.table["first_min"]
    assert (found.table["value_max"] == values.ravel()[first]).all()
    assert (found.table["voxels"] == np.bincount(labels.ravel())[1:]).all()
    edge = np.ones(labels.shape, bool)
    edge[1:-1, 1:-1, 1:-1] = False
    on_edge = np.isin(np.arange(1, len(found) + 1), labels[edge])
    assert (found.table["border_max"].astype(bool) == on_edge).all()
    assert found.volume_nm3.sum() == pytest.approx((values > 0).sum() * 5.24 * 4 * 4)


@pytest.mark.parametrize("connectivity", [6, 26])
def test_blocks_of_one_voxel(tmp_path, connectivity):
    grid = Grid((3, 4, 5), (5.24, 4.0, 4.0))
    mask = noise({6: 0.4, 26: 0.12}[connectivity], seed=4, grid=grid)
    labels, _ = labelled(mask, tmp_path, Blockwise((1, 2, 1)), connectivity, grid)
    assert same_partition(labels, cc3d.connected_components(mask, connectivity=connectivity))


@pytest.mark.parametrize("executor", [Serial(), Threads(2), Processes(2)], ids=lambda e: type(e))
def test_executors_write_the_same_ids(tmp_path, executor):
    mask = noise(0.32, seed=5)
    labels, _ = labelled(mask, tmp_path / "x", Blockwise((6, 7, 8), executor))
    whole, _ = labelled(mask, tmp_path / "whole", Blockwise((11, 17, 23)))
    assert (labels == whole).all()


@pytest.mark.parametrize("mask", [np.zeros((1, 5, 7), bool), np.ones((1, 5, 7), bool)])
def test_empty_full_and_one_voxel_thick(tmp_path, mask):
    grid = Grid((1, 5, 7), (5.24, 4.0, 4.0))
    labels, found = labelled(mask, tmp_path, Blockwise((1, 2, 3)), grid=grid)
    assert (labels == mask).all()
    assert len(found) == int(mask.any())


def test_objects_left_out_have_no_id(tmp_path):
    grid = hostile_grid()
    mask = noise(0.2, seed=7)
    how = Blockwise((5, 6, 7))
    found = find_components(Volume(mask, grid).read, grid, tmp_path, how)
    keep = found.table["voxels"] > 4
    ids = np.where(keep, 2**40 + np.arange(len(found)), 0)
    labels = write_components(found, ids, tmp_path / "o.zarr", how).read()
    whole = cc3d.dust(mask, threshold=5, connectivity=6)
    assert ((labels > 0) == (whole > 0)).all()
    assert set(np.unique(labels)) == {0, *ids[keep]}


def test_merging_is_numbered_by_the_first_label():
    pairs = np.array([[4, 1], [5, 4], [2, 6]])
    assert merge(7, pairs).tolist() == [0, 1, 2, 3, 1, 1, 2]
    assert merge(3, np.empty((0, 2), np.int64)).tolist() == [0, 1, 2]


def test_killed_and_resumed_is_the_same(tmp_path):
    code = textwrap.dedent(f"""
        import time
        from pathlib import Path
        import numpy as np
        from clemreg.blocks.components import consecutive, find_components, write_components
        from clemreg.blocks.stages import Blockwise
        from clemreg.testing import hostile_grid
        grid, folder = hostile_grid(), Path({str(tmp_path)!r})
        mask = np.random.default_rng(5).random(grid.shape) < 0.32
        def read(box):
            time.sleep(0.03)
            with (folder / "calls").open("a") as f:
                f.write(".")
            return mask[box.slices]
        how = Blockwise((6, 7, 8))
        found = find_components(read, grid, folder / "work", how)
        write_components(found, consecutive(np.ones(len(found))), folder / "out.zarr", how)
    """)
    child = subprocess.Popen([sys.executable, "-c", code])
    calls = tmp_path / "calls"
    for _ in range(1000):
        if calls.exists() and len(calls.read_text()) >= 5:
            break
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "out.zarr").exists()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(calls.read_text()) <= 2 * 3 * 3 + 1
    from clemreg.io.volumes import open_labels

    labels, _ = labelled(noise(0.32, seed=5), tmp_path / "whole", Blockwise((11, 17, 23)))
    assert (open_labels(tmp_path / "out.zarr").read() == labels).all()
