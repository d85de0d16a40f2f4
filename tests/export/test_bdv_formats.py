"""BigDataViewer datasets read by other means: h5py, tensorstore, and the XML composed by hand."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET

import h5py
import numpy as np
import pytest
import tensorstore
from scipy.ndimage import affine_transform

from clemreg.errors import DataError, FormatError, MissingError, StorageError
from clemreg.export.bdv import BdvSetup, write_bdv
from clemreg.export.bdv_append import append_bdv
from clemreg.register.apply import apply_to_image, warped_volume
from clemreg.space import Affine, Grid
from clemreg.testing import hostile_grid, random_affine, random_bspline
from clemreg.volume import Labels, Volume

RNG = np.random.default_rng(8)
EM = hostile_grid("em")
LM = Grid((9, 14, 8), (104.0, 52.0, 52.0), (40.0, 30.0, -20.0), "lm")
EM_PIXELS = RNG.integers(0, 60000, EM.shape).astype(np.uint16)


def placed(xml, setup):
    """Voxel to world (xyz) as BigDataViewer composes it: the last listed is applied first."""
    total = np.eye(4)
    for transform in xml.find(f".//ViewRegistration[@setup='{setup}']").findall("ViewTransform"):
        rows = np.array(transform.find("affine").text.split(), float).reshape(3, 4)
        total = total @ np.vstack([rows, [0, 0, 0, 1]])
    return total


def n5(path):
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": str(path)}}
    return np.asarray(tensorstore.open(spec, open=True, read=True).result())


def cells(path, setup, level=0):
    with h5py.File(path) as file:
        return file[f"t00000/s{setup:02d}/{level}/cells"][:]


@pytest.mark.interop
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "uint64"])
def test_n5_pixels_and_attributes(tmp_path, dtype):
    grid = Grid((70, 66, 130), (4.0, 4.0, 4.0), frame="lm")
    pixels = RNG.integers(0, 250, grid.shape).astype(dtype)
    kind = Labels if dtype == "uint64" else Volume
    pixels[0, 0, :2] = [7, 7]
    path = write_bdv(tmp_path / "d.xml", [BdvSetup(kind(pixels, grid), "v")], storage="n5")
    root = tmp_path / "d.n5"
    loader = ET.parse(path).find(".//ImageLoader")
    assert (loader.get("format"), loader.find("n5").text) == ("bdv.n5", "d.n5")
    assert json.loads((root / "attributes.json").read_text())["n5"]
    setup = json.loads((root / "setup0" / "attributes.json").read_text())
    assert setup == {"downsamplingFactors": [[1, 1, 1], [2, 2, 2], [4, 4, 4]], "dataType": dtype}
    time = json.loads((root / "setup0" / "timepoint0" / "attributes.json").read_text())
    assert time["multiScale"] is True
    level = root / "setup0" / "timepoint0"
    np.testing.assert_array_equal(n5(level / "s0").transpose(), pixels)
    own = json.loads((level / "s1" / "attributes.json").read_text())
    assert own["dimensions"] == [65, 33, 35]
    assert own["compression"]["type"] == "gzip"
    assert own["downsamplingFactors"] == [2, 2, 2]
    if dtype == "uint64":
        assert set(np.unique(n5(level / "s1"))) <= set(np.unique(pixels))
    else:
        mean = pixels.reshape(35, 2, 33, 2, 65, 2).astype(float).mean(axis=(1, 3, 5))
        expected = mean if dtype == "float32" else np.rint(mean)
        np.testing.assert_allclose(n5(level / "s1").transpose(), expected)


def test_n5_and_hdf5_hold_the_same(tmp_path):
    grid = Grid((40, 130, 70), (8.0, 4.0, 4.0), (3.0, -2.0, 1.0), "lm")
    setup = BdvSetup(Volume(RNG.random(grid.shape).astype("f4"), grid), "v", window=(0, 1))
    write_bdv(tmp_path / "a.xml", [setup])
    write_bdv(tmp_path / "b.xml", [setup], storage="n5")
    with h5py.File(tmp_path / "a.h5") as file:
        levels = len(file["s00/resolutions"])
    assert levels >= 3
    for level in range(levels):
        found = n5(tmp_path / "b.n5" / "setup0" / "timepoint0" / f"s{level}").transpose()
        np.testing.assert_array_equal(found, cells(tmp_path / "a.h5", 0, level))
    a, b = (ET.parse(tmp_path / name) for name in ("a.xml", "b.xml"))
    np.testing.assert_array_equal(placed(a, 0), placed(b, 0))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 70, 3), (33, 65, 129)])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float64"])
def test_thin_and_odd_shapes_come_back_whole(tmp_path, shape, dtype):
    """HDF5's own filters undo the chunks that were compressed by hand, padding included."""
    grid = Grid(shape, (5.24, 4.0, 4.0), frame="lm")
    pixels = RNG.integers(0, 120, shape).astype(dtype)
    write_bdv(tmp_path / "v.xml", [BdvSetup(Volume(pixels, grid), "v")])
    np.testing.assert_array_equal(cells(tmp_path / "v.h5", 0), pixels)


# ---- old Fiji


def test_legacy_is_unsigned_bits_in_signed_numbers_without_a_type(tmp_path):
    narrow = (EM_PIXELS >> 8).astype(np.uint8)
    setups = [BdvSetup(Volume(EM_PIXELS, EM), "wide"), BdvSetup(Volume(narrow, EM), "narrow")]
    write_bdv(tmp_path / "o.xml", setups, storage="hdf5-legacy")
    with h5py.File(tmp_path / "o.h5") as file:
        assert "dataType" not in file["s00"].attrs
        assert "dataType" not in file["s01"].attrs
    wide = cells(tmp_path / "o.h5", 0)
    assert wide.dtype == np.int16
    assert (wide < 0).any()
    np.testing.assert_array_equal(wide.view(np.uint16), EM_PIXELS)
    np.testing.assert_array_equal(cells(tmp_path / "o.h5", 1).view(np.uint16), narrow)


def test_legacy_pools_the_unsigned_values(tmp_path):
    """Every second pair of rows is above 32767, and level 2 is made from level 1 on disk."""
    grid = Grid((4, 260, 66), (4.0, 4.0, 4.0), frame="lm")
    pixels = np.where(np.arange(260)[:, None] % 4 < 2, 20000, 60000).astype(np.uint16)
    pixels = np.broadcast_to(pixels, grid.shape)
    write_bdv(tmp_path / "o.xml", [BdvSetup(Volume(pixels, grid), "v")], storage="hdf5-legacy")
    assert np.unique(cells(tmp_path / "o.h5", 0, 1).view(np.uint16)).tolist() == [20000, 60000]
    assert np.unique(cells(tmp_path / "o.h5", 0, 2).view(np.uint16)).tolist() == [40000]


def test_legacy_stretches_floats_over_their_window(tmp_path):
    values = np.array([[[-1.0, 0.0, 0.5, 1.0, 9.0, np.nan]]], dtype=np.float32)
    grid = Grid(values.shape, (4.0, 4.0, 4.0), frame="lm")
    path = write_bdv(
        tmp_path / "o.xml",
        [BdvSetup(Volume(values, grid), "v", window=(0, 1))],
        storage="hdf5-legacy",
    )
    stored = cells(tmp_path / "o.h5", 0).view(np.uint16).ravel()
    assert stored.tolist() == [0, 0, 32768, 65535, 65535, 0]
    settings = ET.parse(path.with_suffix(".settings.xml"))
    assert settings.find(".//ConverterSetup/max").text == "65535.0"


def test_legacy_refuses_labels_that_do_not_fit(tmp_path):
    ids = np.zeros(EM.shape, np.uint32)
    ids[5, 5, 5] = 70000
    with pytest.raises(DataError, match="70000"):
        write_bdv(tmp_path / "o.xml", [BdvSetup(Labels(ids, EM), "ids")], storage="hdf5-legacy")
    assert list(tmp_path.iterdir()) == []


# ---- append


@pytest.mark.parametrize("storage", ["hdf5", "n5"])
def test_appended_volumes_stand_beside_the_old_ones(tmp_path, storage):
    to_lm = random_affine(RNG, "em", "lm", mirror=True)
    lm = Volume(RNG.random(LM.shape).astype(np.float32), LM)
    first = [BdvSetup(lm, "mito", colour=(255, 0, 255), window=(0, 1))]
    path = write_bdv(tmp_path / "d.xml", first, storage=storage, unit="nm")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    append_bdv(path, [BdvSetup(Volume(EM_PIXELS, EM), "EM <&", to_lm, window=(10, 50000))])
    more = Labels((EM_PIXELS > 99).astype(np.uint64) * 2**40, EM)
    append_bdv(path, [BdvSetup(more, "ids", to_lm)])
    xml = ET.parse(path)
    assert [v.findtext("name") for v in xml.findall(".//ViewSetup")] == ["mito", "EM <&", "ids"]
    assert [v.findtext("id") for v in xml.findall(".//ViewSetup")] == ["0", "1", "2"]
    assert [c.findtext("name") for c in xml.findall(".//Channel")] == ["mito", "EM <&", "ids"]
    assert list(xml.find(".//ViewSetups"))[-1].tag == "Attributes"
    index = np.array([2, 3, 5])
    world = placed(xml, 1) @ [*index[::-1], 1]
    np.testing.assert_allclose(world[2::-1], to_lm(EM.to_world(index)[None])[0], rtol=1e-12)
    expected = [lm.read(), EM_PIXELS, more.read()]
    name = xml.find(".//ImageLoader")[0].text
    for number, pixels in enumerate(expected):
        found = (
            n5(tmp_path / name / f"setup{number}" / "timepoint0" / "s0").transpose()
            if storage == "n5"
            else cells(tmp_path / name, number)
        )
        np.testing.assert_array_equal(found, pixels)
    settings = ET.parse(path.with_suffix(".settings.xml"))
    for tag in ("Source", "ConverterSetup", "MinMaxGroup", "SourceTransform"):
        assert len(settings.findall(f".//{tag}")) == 3
    for tag in ("MinMaxGroup", "ConverterSetup", "SourceGroup"):
        assert [g.text for g in settings.findall(f".//{tag}/id")] == ["0", "1", "2"]
    shown = settings.findall(".//ConverterSetup")
    assert [c.findtext("groupId") for c in shown] == ["0", "1", "2"]
    assert [float(c.findtext("max")) for c in shown[:2]] == [1, 50000]
    assert [float(c.findtext("min")) for c in shown[:2]] == [0, 10]
    assert shown[0].findtext("color") == "-65281"  # magenta, as Java writes 0xFFFF00FF
    names = [g.text for g in settings.findall(".//SourceGroup/name")]
    assert names[:3] == ["mito", "EM <&", "ids"]
    touched = {path, path.with_suffix(".settings.xml")}
    assert all(p.read_bytes() == data for p, data in before.items() if p not in touched)
    assert not list(tmp_path.rglob("*.partial"))


def test_an_appended_dataset_can_be_moved(tmp_path):
    path = write_bdv(tmp_path / "a" / "d.xml", [BdvSetup(Volume(EM_PIXELS, EM), "one")])
    append_bdv(path, [BdvSetup(Volume(EM_PIXELS // 2, EM), "two")])
    shutil.move(tmp_path / "a", tmp_path / "b")
    name = ET.parse(tmp_path / "b" / "d.xml").find(".//hdf5").text
    np.testing.assert_array_equal(cells(tmp_path / "b" / name, 0), EM_PIXELS)
    np.testing.assert_array_equal(cells(tmp_path / "b" / name, 1), EM_PIXELS // 2)
    with h5py.File(tmp_path / "b" / name) as file:
        assert file["s01"].attrs["dataType"] == "uint16"


def test_a_dataset_without_settings_gets_none(tmp_path):
    """BigDataViewer refuses settings that do not fit, so half of them would be worse than none."""
    path = write_bdv(tmp_path / "d.xml", [BdvSetup(Volume(EM_PIXELS, EM), "one")])
    path.with_suffix(".settings.xml").unlink()
    append_bdv(path, [BdvSetup(Volume(EM_PIXELS, EM), "two")])
    assert len(ET.parse(path).findall(".//ViewSetup")) == 2
    assert not path.with_suffix(".settings.xml").exists()


def test_no_file_of_another_is_taken_for_an_appended_one(tmp_path):
    path = write_bdv(tmp_path / "d.xml", [BdvSetup(Volume(EM_PIXELS, EM), "one")])
    for name in ("d-s01.h5", "d-links.h5"):
        (tmp_path / name).write_text("mine")
    append_bdv(path, [BdvSetup(Volume(EM_PIXELS // 2, EM), "two")])
    name = ET.parse(path).find(".//hdf5").text
    assert name == "d-links-2.h5"
    np.testing.assert_array_equal(cells(tmp_path / name, 1), EM_PIXELS // 2)
    assert {(tmp_path / n).read_text() for n in ("d-s01.h5", "d-links.h5")} == {"mine"}


def test_a_legacy_dataset_stays_legacy(tmp_path):
    setup = BdvSetup(Volume(EM_PIXELS, EM), "one")
    path = write_bdv(tmp_path / "d.xml", [setup], storage="hdf5-legacy")
    append_bdv(path, [setup])
    name = ET.parse(path).find(".//hdf5").text
    assert cells(tmp_path / name, 1).dtype == np.int16


def edited(tmp_path, old, new, name="d.xml"):
    path = write_bdv(tmp_path / "d.xml", [BdvSetup(Volume(EM_PIXELS, EM), "one")])
    file = tmp_path / name
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (">d.h5<", ">../d.h5<", "beside the XML"),
        (">d.h5<", ">..\\d.h5<", "beside the XML"),
        (">d.h5<", ">/etc/passwd<", "beside the XML"),
        ("bdv.hdf5", "bdv.remote", "bdv.remote"),
        ('timepoint="0"', 'timepoint="3"', "time points 3"),
        ("<id>0</id>", "<id>x</id>", "numbered"),
        ("<SpimData", "<!DOCTYPE a [<!ENTITY b 'c'>]><SpimData", "trusted"),
        ("</SpimData>", "", "trusted"),
    ],
)
def test_datasets_that_cannot_grow_are_left_alone(tmp_path, old, new, words):
    path = edited(tmp_path, old, new)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(FormatError, match=words):
        append_bdv(path, [BdvSetup(Volume(EM_PIXELS, EM), "two")])
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("old", "new"),
    [("<Source>", "<Source/><Source>"), ("SourceGroups>", "X>"), ("MinMaxGroups>", "X>")],
)
def test_settings_of_another_dataset_are_not_grown(tmp_path, old, new):
    path = edited(tmp_path, old, new, "d.settings.xml")
    with pytest.raises(FormatError, match="not made for the 1 volumes"):
        append_bdv(path, [BdvSetup(Volume(EM_PIXELS, EM), "two")])


def test_absent_data_is_said(tmp_path):
    path = write_bdv(tmp_path / "d.xml", [BdvSetup(Volume(EM_PIXELS, EM), "one")])
    (tmp_path / "d.h5").unlink()
    with pytest.raises(MissingError, match=r"d\.h5"):
        append_bdv(path, [BdvSetup(Volume(EM_PIXELS, EM), "two")])
    with pytest.raises(MissingError, match=r"none\.xml"):
        append_bdv(tmp_path / "none.xml", [BdvSetup(Volume(EM_PIXELS, EM), "two")])


def test_nothing_of_a_failed_append_stays(tmp_path):
    class Broken:
        shape, dtype = EM.shape, np.dtype("u1")

        def __getitem__(self, key):
            raise OSError(28, "No space left on device")

    for storage in ("hdf5", "n5"):
        path = write_bdv(
            tmp_path / f"{storage}.xml", [BdvSetup(Volume(EM_PIXELS, EM), "one")], storage=storage
        )
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        with pytest.raises(StorageError, match="No space"):
            append_bdv(path, [BdvSetup(Volume(Broken(), EM), "two")])
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


# ---- does it land where `apply` puts it


def phantom(grid):
    """Three blobs of different size and brightness, nothing symmetric, smooth enough to compare."""
    points = grid.points_nm()
    centre, extent = grid.centre_nm, grid.extent_nm
    total = np.zeros(grid.shape)
    for where, size, height in (
        ((0.15, -0.2, 0.1), 0.16, 200.0),
        ((-0.25, 0.1, 0.2), 0.1, 150.0),
        ((0.1, 0.25, -0.3), 0.07, 240.0),
    ):
        away = (points - centre - np.array(where) * extent) / (size * extent)
        total += height * np.exp(-(away**2).sum(axis=-1) / 2)
    return total


def test_bdv_shows_the_em_where_apply_puts_it(tmp_path):
    """An affine only in the XML, resampled by SciPy from the HDF5, equals `apply`."""
    em = Grid((37, 48, 61), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")
    lm = Grid((20, 30, 34), (9.0, 7.0, 6.0), (0.0, 0.0, 0.0), "lm")
    affine = random_affine(np.random.default_rng(2), "lm", "em", mirror=True)
    shift = em.centre_nm - affine(lm.centre_nm[None])[0]
    affine = Affine.from_linear(affine.linear, affine.offset_nm + shift, "lm", "em")
    volume = Volume(phantom(em).astype(np.float32), em)
    warped = apply_to_image(affine, volume, lm, tmp_path / "w.zarr").read()
    lm_volume = Volume(warped, lm)
    path = write_bdv(
        tmp_path / "d.xml",
        [BdvSetup(volume, "em", affine.inverse()), BdvSetup(lm_volume, "warped")],
    )
    xml = ET.parse(path)
    lm_to_em = np.linalg.inv(placed(xml, 0)) @ placed(xml, 1)  # voxel to voxel, xyz
    order = [2, 1, 0, 3]
    matrix = lm_to_em[np.ix_(order, order)]
    stored = cells(tmp_path / "d.h5", 0)
    shift_voxels = matrix[:3, 3]
    shown = affine_transform(stored, matrix[:3, :3], shift_voxels, lm.shape, None, 1, "nearest")
    inside = warped > 0
    assert inside.mean() > 0.2
    assert np.abs(shown - warped)[inside].max() < 1e-2
    assert np.corrcoef(shown[inside], warped[inside][::-1])[0, 1] < 0.9  # nothing symmetric


def test_a_warped_volume_is_resampled_as_it_is_written(tmp_path):
    bend = random_bspline(RNG, LM, amplitude_nm=40)
    chain = bend.then(Affine.translation([300.0, -250.0, 60.0], "lm", "em"))
    em = Grid((120, 110, 60), (8.0, 8.0, 8.0), (300.0, -200.0, 0.0), "em")
    volume = Volume(phantom(em).astype(np.uint8), em)
    write_bdv(tmp_path / "d.xml", [BdvSetup(warped_volume(chain, volume, LM), "warped")])
    expected = apply_to_image(chain, volume, LM, tmp_path / "w.zarr").read()
    assert expected.max() > 0
    np.testing.assert_array_equal(cells(tmp_path / "d.h5", 0), expected)
