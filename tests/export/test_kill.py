"""An export that is killed leaves no half file under a final name; the same command starts anew."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorstore

from clemreg.export.bdv import BdvSetup, write_bdv
from clemreg.export.bdv_append import append_bdv
from clemreg.space import Grid
from clemreg.volume import Volume

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")

GRID = Grid((70, 260, 260), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "lm")
PIXELS = np.random.default_rng(0).integers(0, 60000, (7, 26, 26)).astype(np.uint16)
PIXELS = PIXELS.repeat(10, 0).repeat(10, 1).repeat(10, 2)
# The volume hands out seven of its eighteen blocks, says so, and then waits for ever.
CHILD = """
import sys, threading, time
import numpy as np
from clemreg.export import bdv_pixels
from clemreg.export.bdv import BdvSetup, write_bdv
from clemreg.export.bdv_append import append_bdv
from clemreg.space import Grid
from clemreg.volume import Volume

bdv_pixels.BLOCK = (64, 128, 128)

class Stuck:
    shape, dtype, asked = {shape}, np.dtype("u2"), 0
    def __getitem__(self, key):
        self.asked += 1
        if self.asked > 7:
            time.sleep(1)  # so that what was read is written
            print("stuck", flush=True)
            time.sleep(600)
        return np.full([k.stop - k.start for k in key], 7, "u2")

grid = Grid(Stuck.shape, (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "lm")
setup = BdvSetup(Volume(Stuck(), grid), "new")
{call}
"""
CALLS = {
    "new": "write_bdv({path!r}, [setup], storage={storage!r})",
    "replaced": "write_bdv({path!r}, [setup], storage={storage!r}, overwrite=True)",
    "appended": "append_bdv({path!r}, [setup])",
}


def killed(call, path, storage):
    """Run an export in a child until it is half done, then kill it as the system would."""
    code = CHILD.format(shape=GRID.shape, call=CALLS[call].format(path=str(path), storage=storage))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "stuck\n"
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()


def stored(path, setup):
    data = path.parent / ET.parse(path).find(".//ImageLoader")[0].text
    if data.suffix == ".h5":
        with h5py.File(data) as file:
            return file[f"t00000/s{setup:02d}/0/cells"][:]
    where = str(data / f"setup{setup}" / "timepoint0" / "s0")
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": where}}
    return np.asarray(tensorstore.open(spec, open=True, read=True).result()).transpose()


def visible(folder: Path):
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))


@pytest.mark.parametrize(("storage", "data"), [("hdf5", "d.h5"), ("n5", "d.n5")])
def test_a_killed_export_starts_anew(tmp_path, storage, data):
    path = tmp_path / "d.xml"
    killed("new", path, storage)
    assert visible(tmp_path) == []
    (half,) = tmp_path.glob(f".{data}*")
    size = sum(p.stat().st_size for p in [half, *half.rglob("*")] if p.is_file())
    assert size > 1000  # it was at work
    write_bdv(path, [BdvSetup(Volume(PIXELS, GRID), "em")], storage=storage)
    np.testing.assert_array_equal(stored(path, 0), PIXELS)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([data, "d.settings.xml", "d.xml"])


@pytest.mark.parametrize("storage", ["hdf5", "n5"])
@pytest.mark.parametrize("call", ["replaced", "appended"])
def test_a_dataset_outlives_a_killed_change(tmp_path, call, storage):
    path = write_bdv(tmp_path / "d.xml", [BdvSetup(Volume(PIXELS, GRID), "em")], storage=storage)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    killed(call, path, storage)
    assert {p: p.read_bytes() for p in before} == before
    np.testing.assert_array_equal(stored(path, 0), PIXELS)
    second = BdvSetup(Volume(PIXELS // 2, GRID), "second")
    if call == "replaced":
        write_bdv(path, [second], storage=storage, overwrite=True)
        np.testing.assert_array_equal(stored(path, 0), PIXELS // 2)
    else:
        append_bdv(path, [second])
        np.testing.assert_array_equal(stored(path, 0), PIXELS)
        np.testing.assert_array_equal(stored(path, 1), PIXELS // 2)
    assert not list(tmp_path.rglob(".*"))


def test_pixels_that_another_xml_names_stay(tmp_path):
    """Two XML files may share an N5: what the second one added is not in the first one's list."""
    first = write_bdv(tmp_path / "d.xml", [BdvSetup(Volume(PIXELS, GRID), "a")], storage="n5")
    other = tmp_path / "e.xml"
    other.write_bytes(first.read_bytes())
    append_bdv(other, [BdvSetup(Volume(PIXELS // 2, GRID), "b")])
    append_bdv(first, [BdvSetup(Volume(PIXELS // 3, GRID), "c")])
    np.testing.assert_array_equal(stored(other, 1), PIXELS // 2)
    (added,) = [v.findtext("id") for v in ET.parse(first).findall(".//ViewSetup")][1:]
    assert added == "2"
    np.testing.assert_array_equal(stored(first, 2), PIXELS // 3)
