"""An export that is killed leaves no half file under a final name; the same command starts anew."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorstore

from clemreg.errors import MissingError, StorageError
from clemreg.export.bdv import BdvSetup, write_bdv
from clemreg.export.bdv_append import append_bdv
from clemreg.io.tiff import write_tiff
from clemreg.io.transforms import write_transform
from clemreg.pipeline.bigwarp import BigWarpCommand, export_bigwarp
from clemreg.space import Affine, Grid
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


# Forks once for every rename and removal: that process is killed just before it.
AT_EVERY_STEP = """
import os, shutil, signal, sys
from pathlib import Path
import h5py, scipy.interpolate, tifffile, zarr
import numpy as np
from clemreg.export.bdv import BdvSetup, write_bdv
from clemreg.export.bdv_append import append_bdv
from clemreg.pipeline.bigwarp import BigWarpCommand, export_bigwarp
from clemreg.space import Grid
from clemreg.volume import Volume

grid = Grid((5, 6, 7), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "lm")
setup = BdvSetup(Volume(np.full(grid.shape, 7, "u2"), grid), "new")
for step in range(100):
    folder = os.path.join({folder!r}, str(step))
    shutil.copytree({start!r}, folder)
    child = os.fork()
    if child == 0:
        left = [step]
        def count(event, _arguments):
            if event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
        sys.addaudithook(count)
        path = os.path.join(folder, "d.xml")
        {call}
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
print(step)
"""


def end_at_every_step(folder, start, call):
    """Return the folders in which an export was killed, each before another step."""
    code = AT_EVERY_STEP.format(folder=str(folder), start=str(start), call=call)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [folder / str(step) for step in range(int(done.stdout))]


@pytest.mark.parametrize("storage", ["hdf5", "n5"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_no_step_of_an_export_shows_half_a_dataset(tmp_path, storage, overwrite):
    """Whatever the step, an XML leads to its own pixels, and the same call repairs the rest."""
    grid = Grid((5, 6, 7), GRID.spacing_nm, GRID.origin_nm, "lm")
    old = BdvSetup(Volume(np.full(grid.shape, 3, "u2"), grid), "old")
    start = tmp_path / "start"
    start.mkdir()
    if overwrite:
        write_bdv(start / "d.xml", [old], storage=storage)
    (tmp_path / "killed").mkdir()
    call = f"write_bdv(path, [setup], storage={storage!r}, overwrite={overwrite})"
    folders = end_at_every_step(tmp_path / "killed", start, call)
    assert len(folders) >= 3
    states = set()
    for folder in folders:
        path = folder / "d.xml"
        pixels = {"old": 3, "new": 7}
        shown = ET.parse(path).findtext(".//ViewSetup/name") if path.exists() else None
        states.add(shown)
        if shown:
            assert np.unique(stored(path, 0)).tolist() == [pixels[shown]]
            settings = ET.parse(path.with_suffix(".settings.xml"))
            assert settings.findtext(".//SourceGroup/name") == shown
        again = BdvSetup(Volume(np.full(grid.shape, 9, "u2"), grid), "again")
        write_bdv(path, [again], storage=storage, overwrite=overwrite)
        assert np.unique(stored(path, 0)).tolist() == [9]
        whole = {"d.xml", "d.settings.xml", f"d.{'h5' if storage == 'hdf5' else 'n5'}"}
        assert {p.name for p in folder.iterdir()} == whole
    assert None in states
    assert ("old" in states) == overwrite


@pytest.mark.parametrize("storage", ["hdf5", "n5"])
def test_no_step_of_adding_shows_half_a_dataset(tmp_path, storage):
    """XML, pixels and settings fit at every step; settings outlive a kill before the XML grows."""
    grid = Grid((5, 6, 7), GRID.spacing_nm, GRID.origin_nm, "lm")
    old = BdvSetup(Volume(np.full(grid.shape, 3, "u2"), grid), "old", colour=(1, 2, 3))
    (tmp_path / "start").mkdir()
    write_bdv(tmp_path / "start" / "d.xml", [old], storage=storage)
    (tmp_path / "killed").mkdir()
    folders = end_at_every_step(
        tmp_path / "killed", tmp_path / "start", "append_bdv(path, [setup])"
    )
    assert len(folders) >= 3
    seen = set()
    for folder in folders:
        path = folder / "d.xml"
        settings = path.with_suffix(".settings.xml")
        names = [view.findtext("name") for view in ET.parse(path).findall(".//ViewSetup")]
        seen.add(len(names))
        assert names == ["old", "new"][: len(names)]
        for number in range(len(names)):
            assert np.unique(stored(path, number)).tolist() == [(3, 7)[number]]
        if settings.exists():
            assert len(ET.parse(settings).findall(".//ConverterSetup")) == len(names)
        append_bdv(path, [BdvSetup(Volume(np.full(grid.shape, 9, "u2"), grid), "more")])
        total = len(ET.parse(path).findall(".//ViewSetup"))
        assert total == len(names) + 1
        if len(names) == 1:
            shown = ET.parse(settings).findall(".//ConverterSetup/color")
            assert [int(c.text) for c in shown] == [-(1 << 24) + 0x010203, -1]
        assert not list(folder.glob(".*.aside"))
    assert seen == {1, 2}


BIGWARP = """
        place = Path(folder)
        export_bigwarp(BigWarpCommand(
            place / "l.csv", str(place / "t.json"), str(place / "lm.tif"), spacing="20 nm",
            project=place / "p.json", em=str(place / "em.tif"), as_bdv=True))
"""


def test_every_step_of_a_bigwarp_project_can_be_gone_on_from(tmp_path):
    """Table, project and two copies: the same command finishes what was begun, without asking."""
    grid = Grid((5, 6, 7), GRID.spacing_nm, (0.0, 0.0, 0.0), "lm")
    start = tmp_path / "start"
    start.mkdir()
    for name in ("em", "lm"):
        pixels = np.arange(np.prod(grid.shape)).reshape(grid.shape).astype("u1")
        write_tiff(start / f"{name}.tif", Volume(pixels, grid))
    write_transform(Affine(np.eye(4), "lm", "em"), start / "t.json")
    (tmp_path / "killed").mkdir()
    folders = end_at_every_step(tmp_path / "killed", start, BIGWARP.strip())
    assert len(folders) > 10
    made = ["l.csv", "p.json", *(f"p-{s}{e}" for s in ("em", "lm") for e in (".xml", ".h5"))]
    half = 0
    for folder in folders[::5]:
        half += any((folder / name).exists() for name in made)
        command = BigWarpCommand(
            folder / "l.csv", str(folder / "t.json"), str(folder / "lm.tif"), spacing="20 nm",
            project=folder / "p.json", em=str(folder / "em.tif"), as_bdv=True,
        )  # fmt: skip
        export_bigwarp(command)
        assert [name for name in made if not (folder / name).exists()] == []
        assert list(folder.glob(".*")) == []
        with pytest.raises(StorageError, match="exists already"):
            export_bigwarp(command)
    assert half > 2


def test_a_project_that_fails_claims_nothing(tmp_path):
    """A file of a person by such a name is safe after an error, too."""
    command = BigWarpCommand(tmp_path / "l.csv", str(tmp_path / "none.json"), "none.tif")
    with pytest.raises(MissingError):
        export_bigwarp(command)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "l.csv").write_text("mine")
    with pytest.raises(StorageError, match="exists already"):
        export_bigwarp(command)
    with pytest.raises(MissingError):
        export_bigwarp(replace(command, overwrite=True))
    with pytest.raises(StorageError, match="exists already"):
        export_bigwarp(command)
    assert (tmp_path / "l.csv").read_text() == "mine"


def test_what_is_not_an_unfinished_export_stays(tmp_path):
    (tmp_path / "d.h5").write_bytes(b"mine")
    with pytest.raises(StorageError, match="exists already"):
        write_bdv(tmp_path / "d.xml", [BdvSetup(Volume(PIXELS, GRID), "em")])
    assert [p.name for p in tmp_path.iterdir()] == ["d.h5"]
    assert (tmp_path / "d.h5").read_bytes() == b"mine"
