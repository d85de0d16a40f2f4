from __future__ import annotations

import csv
import subprocess
import sys
import xml.etree.ElementTree as ET

import h5py
import numpy as np
import pytest

from clemreg.errors import ConfigError, DataError, FrameError, StorageError
from clemreg.export import bdv_pixels
from clemreg.export.bdv import BdvSetup, write_bdv
from clemreg.export.bigwarp import write_sampled_landmarks
from clemreg.io.transforms import read_transform
from clemreg.space import Affine, Grid
from clemreg.testing import hostile_grid, random_affine, random_bspline
from clemreg.volume import Labels, Volume

RNG = np.random.default_rng(4)
EM = hostile_grid("em")
EM_PIXELS = RNG.integers(0, 60000, EM.shape).astype(np.uint16)
LM = Grid((9, 14, 8), (104.0, 52.0, 52.0), (40.0, 30.0, -20.0), "lm")


def placed(xml, setup):
    """Voxel to world matrix (xyz) as BigDataViewer composes it: last listed applied first."""
    total = np.eye(4)
    for transform in xml.find(f".//ViewRegistration[@setup='{setup}']").findall("ViewTransform"):
        rows = np.array(transform.find("affine").text.split(), float).reshape(3, 4)
        total = total @ np.vstack([rows, [0, 0, 0, 1]])
    return total


@pytest.fixture
def dataset(tmp_path):
    to_lm = random_affine(RNG, "em", "lm", mirror=True)
    lm = Volume(RNG.random(LM.shape).astype(np.float32), LM)
    setups = [
        BdvSetup(Volume(EM_PIXELS, EM), 'EM <"&]]>', to_lm, window=(10, 50000)),
        BdvSetup(lm, "mito", colour=(255, 0, 255), window=(0, 1)),
    ]
    path = write_bdv(tmp_path / "a b.xml", setups)
    return path, to_lm, lm


def test_voxels_land_where_the_transform_puts_them(dataset):
    path, to_lm, _ = dataset
    xml = ET.parse(path)
    index = np.array([2, 3, 5])
    world = placed(xml, 0) @ [*index[::-1], 1]
    expected = to_lm(EM.to_world(index)[None])[0] / 1e3
    np.testing.assert_allclose(world[:3][::-1], expected, rtol=1e-12)
    world = placed(xml, 1) @ [*index[::-1], 1]
    np.testing.assert_allclose(world[:3][::-1], LM.to_world(index) / 1e3, rtol=1e-12)


def test_the_xml_names_the_file_sizes_and_unit(dataset):
    path, *_ = dataset
    xml = ET.parse(path)
    assert xml.find(".//hdf5").text == "a b.h5"
    views = xml.findall(".//ViewSetup")
    assert [v.find("size").text for v in views] == ["23 17 11", "8 14 9"]
    assert [v.find("name").text for v in views] == ['EM <"&]]>', "mito"]
    assert views[0].find("voxelSize/unit").text == "µm"
    assert views[0].find("voxelSize/size").text == "0.004 0.004 0.00524"


def test_pixels_types_and_chunks_in_the_hdf5(dataset):
    path, _, lm = dataset
    with h5py.File(path.with_suffix(".h5")) as file:
        np.testing.assert_array_equal(file["t00000/s00/0/cells"], EM_PIXELS)
        np.testing.assert_array_equal(file["t00000/s01/0/cells"], lm.read())
        assert file["s00"].attrs["dataType"] == "uint16"
        assert file["s01"].attrs["dataType"] == "float32"
        np.testing.assert_array_equal(file["s00/resolutions"][0], [1, 1, 1])
        assert file["s00/subdivisions"][0].tolist() == [23, 17, 11]
        assert file["t00000/s00/0/cells"].compression == "gzip"


def test_settings_have_one_entry_a_source(dataset):
    path, *_ = dataset
    xml = ET.parse(path.with_suffix(".settings.xml"))
    for tag in ("Source", "ConverterSetup", "MinMaxGroup", "SourceTransform"):
        assert len(xml.findall(f".//{tag}")) == 2
    colours = [int(c.text) for c in xml.findall(".//ConverterSetup/color")]
    assert colours == [-1, -65281]  # white, magenta as Java writes them


def test_the_pyramid_is_block_means(tmp_path):
    grid = Grid((70, 66, 130), (4.0, 4.0, 4.0), frame="lm")
    pixels = RNG.integers(0, 255, grid.shape).astype(np.uint8)
    ids = (pixels > 128).astype(np.uint64) * (2**40 + 1)
    path = write_bdv(
        tmp_path / "p.xml",
        [BdvSetup(Volume(pixels, grid), "em"), BdvSetup(Labels(ids, grid), "ids")],
    )
    with h5py.File(path.with_suffix(".h5")) as file:
        level = file["t00000/s00/1/cells"][:]
        expected = pixels[:70, :66].reshape(35, 2, 33, 2, 65, 2).mean(axis=(1, 3, 5))
        np.testing.assert_array_equal(level, np.rint(expected))
        assert file["s00/resolutions"][1].tolist() == [2, 2, 2]
        assert file["s01"].attrs["dataType"] == "uint64"
        assert set(np.unique(file["t00000/s01/1/cells"])) == {0, 2**40 + 1}


def test_every_mipmap_stands_where_its_voxels_are(tmp_path):
    """A ramp says where a voxel is: each pooled value is the ramp at the place BDV shows it."""
    grid = Grid((24, 80, 200), (10.0, 4.0, 5.0), (300.0, -200.0, 70.0), "lm")
    z, y, x = np.moveaxis(grid.points_nm(), -1, 0)
    ramp = (z + 1e3 * y + 1e6 * x) / 1e3
    path = write_bdv(tmp_path / "r.xml", [BdvSetup(Volume(ramp, grid), "ramp")], unit="nm")
    to_world = placed(ET.parse(path), 0)
    with h5py.File(path.with_suffix(".h5")) as file:
        factors = file["s00/resolutions"][:]
        assert len(factors) >= 3
        assert not np.array_equal(factors[1], [2, 2, 2])
        for level, factor in enumerate(factors):
            cells = file[f"t00000/s00/{level}/cells"]
            whole = np.array(grid.shape[::-1]) // factor
            for index in ((0, 0, 0), whole - 1, whole // 2):
                voxel = np.asarray(index) * factor + (factor - 1) / 2
                wx, wy, wz, _ = to_world @ [*voxel, 1]
                shown = cells[tuple(np.asarray(index, int)[::-1])]
                assert shown == pytest.approx((wz + 1e3 * wy + 1e6 * wx) / 1e3, rel=1e-6)


def test_any_block_size_gives_the_same_pixels(tmp_path, monkeypatch):
    grid = Grid((70, 150, 140), (4.0, 4.0, 4.0), frame="lm")
    setup = BdvSetup(Volume(RNG.integers(0, 255, grid.shape).astype(np.uint8), grid), "em")
    told = []

    def levels(name, progress=None):
        path = write_bdv(tmp_path / name, [setup], progress=progress)
        with h5py.File(path.with_suffix(".h5")) as file:
            return [file[f"t00000/s00/{level}/cells"][:] for level in range(3)]

    whole = levels("a.xml")
    monkeypatch.setattr(bdv_pixels, "BLOCK", (64, 128, 128))
    monkeypatch.setattr(bdv_pixels, "CHUNK", (16, 32, 64))
    for one, other in zip(whole, levels("b.xml", lambda *call: told.append(call)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [done for done, *_ in told] == list(range(1, told[-1][1] + 1))
    assert len(told) == 8 + 1


def test_never_more_than_a_block_is_read(tmp_path):
    class Recorder:
        shape, dtype = (130, 300, 280), np.dtype("u1")
        asked = []  # noqa: RUF012

        def __getitem__(self, key):
            self.asked.append(tuple(k.stop - k.start for k in key))
            return np.ones(self.asked[-1], "u1")

    volume = Volume(Recorder(), Grid(Recorder.shape, (4.0, 4.0, 4.0)))
    for storage in ("hdf5", "n5"):
        write_bdv(tmp_path / f"{storage}.xml", [BdvSetup(volume, "a")], storage=storage)
    sizes = np.array(Recorder.asked)
    assert (sizes <= bdv_pixels.BLOCK).all()
    assert sizes.prod(axis=1).sum() == 2 * np.prod(Recorder.shape)  # nothing is read twice


def test_odd_names_stay_readable_xml(tmp_path):
    names = ["]]>&amp;", "tab\t \x00\x1b bell", "µ \N{GRINNING FACE}", "\ud800"]
    setups = [BdvSetup(Volume(EM_PIXELS, EM), name) for name in names]
    path = write_bdv(tmp_path / "odd & 'name' %20.xml", setups)
    for file in (path, path.with_suffix(".settings.xml")):
        found = [e.text for e in ET.parse(file).iter("name")][:4]
        assert found[0] == names[0]
        assert found[1] == "tab\t \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} bell"
        assert found[2] == names[2]
        assert found[3] == "\N{REPLACEMENT CHARACTER}"
    assert ET.parse(path).find(".//hdf5").text == "odd & 'name' %20.h5"


def test_hidden_sources_and_dark_windows_in_the_settings(tmp_path):
    shown = BdvSetup(Volume(EM_PIXELS, EM), "a", window=(-3.5, 70))
    hidden = BdvSetup(Volume(EM_PIXELS, EM), "b", visible=False)
    path = write_bdv(tmp_path / "s.xml", [shown, hidden])
    xml = ET.parse(path.with_suffix(".settings.xml"))
    assert [e.text for e in xml.findall(".//Source/active")] == ["true", "false"]
    assert [e.text for e in xml.findall(".//SourceGroup/active")][:2] == ["true", "false"]
    assert [float(e.text) for e in xml.findall(".//rangeMin")] == [-3.5, 0.0]


def test_big_endian_and_double_pixels(tmp_path):
    big, double = EM_PIXELS.astype(">u2"), EM_PIXELS * 1.5
    path = write_bdv(
        tmp_path / "t.xml", [BdvSetup(Volume(v, EM), str(v.dtype)) for v in (big, double)]
    )
    with h5py.File(path.with_suffix(".h5")) as file:
        assert file["t00000/s00/0/cells"].dtype == np.dtype("<u2")
        np.testing.assert_array_equal(file["t00000/s00/0/cells"], EM_PIXELS)
        assert file["s01"].attrs["dataType"] == "float64"


def test_what_cannot_be_written_is_refused(tmp_path):
    pixels = Volume(EM_PIXELS, EM)
    em, lm = BdvSetup(pixels, "em"), BdvSetup(Volume(np.zeros(LM.shape, "u1"), LM), "l")
    cases = [
        ([em, lm], FrameError, "different frames"),
        ([BdvSetup(pixels, "em", Affine.identity("lm", "em"))], FrameError, "starts in"),
        ([BdvSetup(Volume(EM_PIXELS[None], EM, ("a",)), "em")], DataError, "channels"),
        ([BdvSetup(Volume(EM_PIXELS > 5, EM), "mask")], DataError, "uint8"),
        ([BdvSetup(pixels, "em", window=(0, float("nan")))], DataError, "not finite"),
        ([BdvSetup(pixels, "em", window=(5, 5))], DataError, "empty"),
        ([], DataError, "no volume"),
    ]
    for setups, error, words in cases:
        with pytest.raises(error, match=words):
            write_bdv(tmp_path / "x.xml", setups)
    with pytest.raises(ConfigError, match="cannot store as 'zarr'"):
        write_bdv(tmp_path / "x.xml", [em], storage="zarr")
    with pytest.raises(DataError, match=r"must end in \.xml"):
        write_bdv(tmp_path / "x.h5", [em])
    assert list(tmp_path.iterdir()) == []


class Broken:
    shape, dtype = EM.shape, np.dtype("u1")

    def __getitem__(self, key):
        raise ValueError("truncated chunk")


def test_nothing_changes_when_writing_fails(tmp_path):
    write_bdv(tmp_path / "x.xml", [BdvSetup(Volume(EM_PIXELS, EM), "em")])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(before) == {"x.xml", "x.h5", "x.settings.xml"}
    with pytest.raises(StorageError, match="exists"):
        write_bdv(tmp_path / "x.xml", [BdvSetup(Volume(EM_PIXELS, EM), "em")])
    with pytest.raises(ValueError, match="truncated"):
        write_bdv(tmp_path / "x.xml", [BdvSetup(Volume(Broken(), EM), "em")], overwrite=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_sampled_landmarks_read_back_as_the_transform(tmp_path):
    bend = random_bspline(RNG, LM, amplitude_nm=20)
    chain = bend.then(random_affine(RNG, "lm", "em", mirror=True))
    stated = write_sampled_landmarks(chain, LM, tmp_path / "l.csv", 150.0)
    spline = read_transform(tmp_path / "l.csv")
    low, high = LM.corners_nm()[[0, -1]]
    points = RNG.uniform(low, high, (500, 3))
    distance = np.linalg.norm(spline(points) - chain(points), axis=1)
    assert distance.max() < 2 * stated.max_nm + 0.1
    assert np.linalg.norm(points - bend(points), axis=1).mean() > 5 * distance.mean()


def test_the_table_is_moving_then_target_in_um(tmp_path):
    """Read as BigWarp does: no header, eight quoted columns, EM x y z then LM x y z."""
    affine = random_affine(RNG, "lm", "em")
    write_sampled_landmarks(affine, LM, tmp_path / "l.csv", 300.0)
    rows = list(csv.reader((tmp_path / "l.csv").read_text().splitlines()))
    assert {len(row) for row in rows} == {8}
    assert rows[0][:2] == ["Pt-0", "true"]
    numbers = np.array([row[2:] for row in rows], float)
    em, lm = numbers[:, 2::-1] * 1e3, numbers[:, :2:-1] * 1e3
    np.testing.assert_allclose(affine(lm), em, atol=1e-6)
    edge = np.asarray(LM.spacing_nm) / 2
    np.testing.assert_allclose(lm.min(axis=0), LM.origin_nm - edge, atol=1e-9)
    np.testing.assert_allclose(np.ptp(lm, axis=0), LM.extent_nm, atol=1e-9)


def test_a_single_slice_still_gets_a_spline_in_space(tmp_path):
    slice_ = Grid((1, 40, 50), (100.0, 52.0, 52.0), (40.0, 30.0, -20.0), "lm")
    affine = random_affine(RNG, "lm", "em")
    assert write_sampled_landmarks(affine, slice_, tmp_path / "l.csv", 500.0).max_nm < 1e-3
    with pytest.raises(DataError, match="positive"):
        write_sampled_landmarks(affine, slice_, tmp_path / "l.csv", 0.0)


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from clemreg.errors import StorageError
from clemreg.export.bdv import BdvSetup, write_bdv
from clemreg.export.dfield import write_n5_field
from clemreg.export.sampled_field import SampledField
from clemreg.space import Grid
from clemreg.testing import random_bspline
from clemreg.volume import Volume

rng = np.random.default_rng(0)
grid = Grid((70, 80, 90), (8.0, 8.0, 8.0), frame="lm")
setup = BdvSetup(Volume(rng.integers(0, 255, grid.shape).astype("u1"), grid), "a")
field = SampledField(random_bspline(rng, grid, target="em"), grid)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
path = Path(sys.argv[1]) / "a.xml"
jobs = {
    "hdf5": lambda: write_bdv(path, [setup]),
    "n5": lambda: write_bdv(path, [setup], storage="n5"),
    "field": lambda: write_n5_field(path.with_name("a.n5"), field),
}
try:
    jobs[sys.argv[3]]()
except StorageError as error:
    sys.stdout.write(error.hint)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limit to run into")
@pytest.mark.parametrize(
    ("limit", "what"),
    [(3000, "hdf5"), (60_000, "hdf5"), (500_000, "hdf5"), (20_000, "n5"), (20_000, "field")],
)
def test_a_full_disk_is_an_error_not_a_crash(tmp_path, limit, what):
    """In a child, since HDF5 left alone with a full disk dies when the process ends."""
    words = [sys.executable, "-c", FULL_DISK, str(tmp_path), str(limit), what]
    child = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert (child.returncode, child.stderr) == (0, "")
    assert "limit" in child.stdout
    assert list(tmp_path.iterdir()) == []
