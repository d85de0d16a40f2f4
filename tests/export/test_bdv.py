from __future__ import annotations

import xml.etree.ElementTree as ET

import h5py
import numpy as np
import pytest

from clemreg.errors import DataError, FrameError, StorageError
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
    ids = (pixels > 128).astype(np.uint64) * 70_001
    path = write_bdv(
        tmp_path / "p.xml",
        [BdvSetup(Volume(pixels, grid), "em"), BdvSetup(Labels(ids, grid), "ids")],
    )
    with h5py.File(path.with_suffix(".h5")) as file:
        level = file["t00000/s00/1/cells"][:]
        expected = pixels[:70, :66].reshape(35, 2, 33, 2, 65, 2).mean(axis=(1, 3, 5))
        np.testing.assert_array_equal(level, np.rint(expected))
        assert file["s00/resolutions"][1].tolist() == [2, 2, 2]
        assert set(np.unique(file["t00000/s01/1/cells"])) == {0, 70_001}


def test_what_cannot_be_written_is_refused(tmp_path):
    em, lm = (
        BdvSetup(Volume(EM_PIXELS, EM), "em"),
        BdvSetup(Volume(np.zeros(LM.shape, "u1"), LM), "l"),
    )
    with pytest.raises(FrameError, match="different frames"):
        write_bdv(tmp_path / "x.xml", [em, lm])
    wrong = BdvSetup(Volume(EM_PIXELS, EM), "em", Affine.identity("lm", "em"))
    with pytest.raises(FrameError, match="starts in"):
        write_bdv(tmp_path / "x.xml", [wrong])
    with pytest.raises(DataError, match="channels"):
        write_bdv(tmp_path / "x.xml", [BdvSetup(Volume(EM_PIXELS[None], EM, ("a",)), "em")])
    assert list(tmp_path.iterdir()) == []
    write_bdv(tmp_path / "x.xml", [em])
    with pytest.raises(StorageError, match="exists"):
        write_bdv(tmp_path / "x.xml", [em])


def test_sampled_landmarks_read_back_as_the_transform(tmp_path):
    chain = random_affine(RNG, "lm", "lm").then(
        random_bspline(RNG, LM, amplitude_nm=20, target="em")
    )
    chain = Affine.identity("lm", "lm").then(random_bspline(RNG, LM, amplitude_nm=20, target="em"))
    stated = write_sampled_landmarks(chain, LM, tmp_path / "l.csv", 150.0)
    spline = read_transform(tmp_path / "l.csv")
    low, high = LM.corners_nm()[[0, -1]]
    points = RNG.uniform(low, high, (500, 3))
    distance = np.linalg.norm(spline(points) - chain(points), axis=1)
    assert distance.max() < 2 * stated.max_nm + 0.1
    assert np.linalg.norm(points - chain(points), axis=1).mean() > 5 * distance.mean()
