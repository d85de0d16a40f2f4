"""Datasets as BigDataViewer's classes go through them, with all that these demand.

XmlHelpers and XmlIoViewSetups (spimdata 2.3), Hdf5ImageLoader, N5ImageLoader and BdvN5Format,
XmlIoViewerState, SetupAssignments, ManualTransformation (bigdataviewer-core 10.6): what they parse
as a whole number must be one, what they count must be as many, and what they look up by position or
by number must be there. Pixels are read with h5py, and N5 blocks byte by byte.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import struct
import xml.etree.ElementTree as ET
from dataclasses import dataclass

import h5py
import numpy as np
import pytest

from clemreg.export.bdv import BdvSetup, write_bdv
from clemreg.export.bdv_append import append_bdv
from clemreg.space import Grid
from clemreg.testing import hostile_grid, random_affine
from clemreg.volume import Labels, Volume

RNG = np.random.default_rng(5)
EM = hostile_grid("em")
LM = Grid((35, 66, 70), (104.0, 52.0, 52.0), (40.0, 30.0, -20.0), "lm")
TO_LM = random_affine(RNG, "em", "lm", mirror=True)
VIEWER_GROUPS = 10  # ViewerOptions.numSourceGroups


class IllegalArgumentException(Exception):
    pass


def whole(text):
    """Integer.parseInt: null, blanks, a point or more than 32 bits are a NumberFormatException."""
    assert text is not None
    assert re.fullmatch(r"[+-]?[0-9]+", text), text
    assert -(2**31) <= int(text) < 2**31
    return int(text)


def real(text):
    """Double.parseDouble."""
    assert text is not None
    assert re.fullmatch(r"\s*[+-]?([0-9]+\.?[0-9]*([eE][+-]?[0-9]+)?|Infinity|NaN)\s*", text), text
    return float(text)


def several(text, parse):
    """XmlHelpers.getDoubleArray and getLongArray: a blank in front makes an empty first entry."""
    return [parse(entry) for entry in re.split(r"\s+", text)]


@dataclass
class Source:
    number: int
    name: str
    size: list
    unit: str
    to_world: np.ndarray  # 4 x 4, voxel x y z
    levels: list  # pixels (z, y, x), factors x y z


def open_dataset(path):
    """XmlIoSpimDataMinimal.load, then every level of every setup; setups in order of their id."""
    root = ET.parse(path).getroot()
    assert root.tag == "SpimData"
    assert (root.find("BasePath").get("type"), root.findtext("BasePath")) == ("relative", ".")
    sequence = root.find("SequenceDescription")
    views = sequence.find("ViewSetups")
    channels = {}
    for attribute in views.findall("Attributes"):
        assert attribute.get("name") == "channel"
        for channel in attribute.findall("Channel"):
            channels[whole(channel.findtext("id"))] = channel.findtext("name")
    times = sequence.find("Timepoints")
    assert times.get("type") == "range"
    assert (whole(times.findtext("first")), whole(times.findtext("last"))) == (0, 0)
    models = {}
    for registration in root.find("ViewRegistrations").findall("ViewRegistration"):
        assert whole(registration.get("timepoint")) == 0
        model = np.eye(4)
        for transform in registration.findall("ViewTransform"):
            assert transform.get("type") == "affine"
            rows = several(transform.findtext("affine"), real)
            assert len(rows) == 12
            model = model @ np.vstack([np.reshape(rows, (3, 4)), [0, 0, 0, 1]])
        models[whole(registration.get("setup"))] = model
    loader = sequence.find("ImageLoader")
    element, read = {
        "bdv.hdf5": ("hdf5", hdf5_levels),
        "bdv.n5": ("n5", n5_levels),
    }[loader.get("format")]
    assert loader.find(element).get("type") == "relative"
    data = path.parent / loader.findtext(element)
    found = []
    for view in views.findall("ViewSetup"):
        number = whole(view.findtext("id"))
        (attribute,) = view.find("attributes")
        assert attribute.tag == "channel"
        assert channels[whole(attribute.text.strip())] == view.findtext("name")
        assert len(several(view.findtext("voxelSize/size"), real)) == 3
        size = several(view.findtext("size"), whole)
        levels = read(data, number)
        assert list(levels[0][0].shape[::-1]) == size
        unit = view.findtext("voxelSize/unit")
        source = Source(number, view.findtext("name"), size, unit, models[number], levels)
        found.append(source)
    return sorted(found, key=lambda source: source.number)


def hdf5_levels(path, setup):
    """Hdf5ImageLoader; without a type it reads 16 bits, signed in the file, as unsigned."""
    with h5py.File(path) as file:
        group = file[f"s{setup:02d}"]
        resolutions, subdivisions = group["resolutions"], group["subdivisions"]
        assert resolutions.dtype == "f8"
        assert subdivisions.dtype == "i4"
        assert resolutions.shape == subdivisions.shape == (len(resolutions), 3)
        kind = group.attrs.get("dataType")
        levels = []
        for level, factors in enumerate(resolutions[:]):
            cells = file[f"t00000/s{setup:02d}/{level}/cells"]
            assert cells.dtype == np.dtype(kind or "int16").newbyteorder("<")
            assert cells.chunks == tuple(subdivisions[level][::-1])
            assert cells.compression == "gzip"
            pixels = cells[:]
            levels.append((pixels if kind else pixels.view("u2"), factors))
        return levels


def n5_levels(root, setup):
    """BdvN5Format: paths and keys; N5FSReader: blocks."""
    version = read_json(root / "attributes.json")["n5"].split(".")
    assert whole(version[0]) <= 2
    assert all(whole(part) >= 0 for part in version)
    attributes = read_json(root / f"setup{setup}" / "attributes.json")
    levels = []
    for level, factors in enumerate(attributes["downsamplingFactors"]):
        folder = root / f"setup{setup}" / "timepoint0" / f"s{level}"
        own = read_json(folder / "attributes.json")
        assert own["dataType"] == attributes["dataType"]
        assert own["downsamplingFactors"] == factors
        assert all(type(n) is int for n in (*own["dimensions"], *own["blockSize"]))
        levels.append((n5_pixels(folder, own), np.array(factors, float)))
    return levels


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def n5_pixels(folder, attributes):
    """Blocks have a big-endian header (mode, dimensions, size) and x runs fastest."""
    size, block = attributes["dimensions"], attributes["blockSize"]
    assert attributes["compression"]["type"] == "gzip"
    assert attributes["compression"]["useZlib"] is False
    kind = np.dtype(attributes["dataType"]).newbyteorder(">")
    pixels = np.zeros(size[::-1], kind)
    for place in itertools.product(*(range(-(-n // b)) for n, b in zip(size, block, strict=True))):
        path = folder.joinpath(*map(str, place))
        if not path.exists():  # zeros
            continue
        content = path.read_bytes()
        mode, dimensions, *shape = struct.unpack(">HH3I", content[:16])
        assert (mode, dimensions) == (0, 3)
        values = np.frombuffer(gzip.decompress(content[16:]), kind).reshape(shape[::-1])
        x, y, z = (p * b for p, b in zip(place, block, strict=True))
        whole_block = pixels[z : z + shape[2], y : y + shape[1], x : x + shape[0]]
        depth, height, width = whole_block.shape
        whole_block[:] = values[:depth, :height, :width]
    return pixels


@dataclass
class Shown:
    active: bool
    colour: tuple
    window: tuple
    groups: list


def load_settings(path, sources):
    """BigDataViewer.loadSettings: one wrong count or number, and nothing of it is shown."""
    root = ET.parse(path).getroot()
    state = root.find("ViewerState")
    listed = state.find("Sources").findall("Source")
    groups = state.find("SourceGroups").findall("SourceGroup")
    for found, wanted in ((listed, len(sources)), (groups, VIEWER_GROUPS)):
        if len(found) != wanted:
            raise IllegalArgumentException
    shown = {
        source.number: Shown(entry.findtext("active") == "true", (), (), [])
        for source, entry in zip(sources, listed, strict=True)
    }
    for group in groups:
        assert group.findtext("active") in ("true", "false")
        for position in group.findall("id"):
            shown[sources[whole(position.text)].number].groups.append(group.findtext("name"))
    assert state.find("DisplayMode").text == "fs"
    assert state.find("Interpolation").text == "nlinear"
    for tag in ("CurrentSource", "CurrentGroup", "CurrentTimePoint"):
        assert whole(state.findtext(tag)) == 0
    assignments = root.find("SetupAssignments")
    converters = assignments.find("ConverterSetups").findall("ConverterSetup")
    if len(converters) != len(sources):
        raise IllegalArgumentException
    ranges = assignments.find("MinMaxGroups").findall("MinMaxGroup")
    limits = [None] * len(ranges)
    for entry in ranges:
        low, high, first, last, dark, bright = (real(item.text) for item in list(entry)[1:])
        assert low <= first <= dark < bright <= last <= high
        limits[whole(entry.findtext("id"))] = (dark, bright)
    for entry in converters:
        window = (real(entry.findtext("min")), real(entry.findtext("max")))
        assert limits[whole(entry.findtext("groupId"))] == window
        one = shown[whole(entry.findtext("id"))]
        value = whole(entry.findtext("color")) & 0xFFFFFFFF
        assert value >> 24 == 255
        one.colour, one.window = tuple(value.to_bytes(4, "big")[1:]), window
    manual = root.find("ManualSourceTransforms").findall("SourceTransform")
    assert len(manual) == len(sources)
    for entry in manual:
        assert entry.get("type") == "affine"
        np.testing.assert_array_equal(
            np.reshape(several(entry.findtext("affine"), real), (3, 4)), np.eye(3, 4)
        )
    assert root.find("Bookmarks") is not None
    return shown


def opened(path):
    sources = open_dataset(path)
    return sources, load_settings(path.with_suffix(".settings.xml"), sources)


WIDE = RNG.integers(0, 65536, EM.shape).astype("u2")
BLURRED = RNG.random(LM.shape).astype("f4")
IDS = (WIDE > 9000).astype("u8") * (2**40 + 1)


def setups():
    return [
        BdvSetup(Volume(WIDE, EM), "EM", TO_LM, window=(10.5, 50000)),
        BdvSetup(Volume(BLURRED, LM), "µ <&]]>", colour=(255, 0, 128), window=(-0.25, 1)),
        BdvSetup(Labels(IDS, EM), "ids", TO_LM, colour=(1, 2, 3), visible=False),
        BdvSetup(Volume((WIDE >> 8).astype("u1"), EM), "", TO_LM),
    ]


@pytest.mark.interop
@pytest.mark.parametrize("storage", ["hdf5", "n5"])
def test_the_viewer_finds_pixels_places_and_looks(tmp_path, storage):
    path = write_bdv(tmp_path / "a b.xml", setups()[:2], storage=storage)
    append_bdv(path, setups()[2:])
    sources, shown = opened(path)
    assert [source.number for source in sources] == [0, 1, 2, 3]
    assert [source.name or "" for source in sources] == ["EM", "µ <&]]>", "ids", ""]
    assert {source.unit for source in sources} == {"µm"}
    for source, setup in zip(sources, setups(), strict=True):
        np.testing.assert_array_equal(source.levels[0][0], setup.volume.read())
        assert source.levels[0][0].dtype.name == setup.volume.dtype.name
        look = shown[source.number]
        assert (look.colour, look.active) == (setup.colour, setup.visible)
        assert (look.window, look.groups) == (setup.window, [setup.name])
        grid = setup.volume.grid
        index = np.array([3, 5, 7])
        place = grid.to_world(index)
        place = place if setup.to_world is None else setup.to_world(place[None])[0]
        shown_at = source.to_world @ [*index[::-1], 1]
        np.testing.assert_allclose(shown_at[2::-1] * 1e3, place, rtol=1e-12, atol=1e-9)
        for pixels, factors in source.levels:
            assert (np.array(pixels.shape[::-1]) * factors <= np.array(source.size) + factors).all()
    assert len(sources[1].levels) > 1


def test_the_viewer_reads_old_files_as_16_bits(tmp_path):
    path = write_bdv(tmp_path / "o.xml", [setups()[0], setups()[3]], storage="hdf5-legacy")
    sources, _ = opened(path)
    np.testing.assert_array_equal(sources[0].levels[0][0], WIDE)
    np.testing.assert_array_equal(sources[1].levels[0][0], WIDE >> 8)


def tiny(name, **look):
    return BdvSetup(Volume(np.ones((2, 3, 4), "u1"), Grid((2, 3, 4), (4.0,) * 3)), name, **look)


@pytest.mark.parametrize("number", [1, 9, 10, 13])
@pytest.mark.parametrize("first", [1, 13])
def test_settings_suit_the_ten_groups_of_the_viewer(tmp_path, number, first):
    """Each source has a group of its own while there are any; all have colour and contrast."""
    wanted = [tiny(f"v{i}", colour=(i, 0, 9), window=(i, i + 1)) for i in range(number)]
    path = write_bdv(tmp_path / "d.xml", wanted[:first])
    if wanted[first:]:
        append_bdv(path, wanted[first:])
    _, shown = opened(path)
    assert [shown[i].colour for i in range(number)] == [(i, 0, 9) for i in range(number)]
    assert [shown[i].window for i in range(number)] == [(i, i + 1) for i in range(number)]
    groups = [[f"v{i}"] if i < VIEWER_GROUPS else [] for i in range(number)]
    assert [shown[i].groups for i in range(number)] == groups


def test_groups_know_sources_by_place_and_colours_by_number(tmp_path):
    """A dataset of another program, whose setups are 0 and 7, gets a third."""
    path = write_bdv(tmp_path / "d.xml", [tiny("a"), tiny("b", colour=(9, 8, 7))])
    with h5py.File(tmp_path / "d.h5", "a") as file:
        file.move("s01", "s07")
        file.move("t00000/s01", "t00000/s07")
    for file in (path, path.with_suffix(".settings.xml")):
        root = ET.parse(file)
        places = [*root.findall(".//ViewSetup/id"), *root.findall(".//ConverterSetup/id")]
        for element in (*places, *root.findall(".//Channel/id"), *root.findall(".//channel")):
            element.text = element.text.replace("1", "7")
        for element in root.findall(".//ViewRegistration[@setup='1']"):
            element.set("setup", "7")
        root.write(file)
    append_bdv(path, [tiny("c", colour=(1, 2, 3))])
    sources, shown = opened(path)
    assert [source.number for source in sources] == [0, 7, 8]
    assert {n: look.groups for n, look in shown.items()} == {0: ["a"], 7: ["b"], 8: ["c"]}
    assert (shown[7].colour, shown[8].colour) == ((9, 8, 7), (1, 2, 3))


def test_groups_that_a_person_made_stay(tmp_path):
    path = write_bdv(tmp_path / "d.xml", [tiny("a"), tiny("b")])
    settings = path.with_suffix(".settings.xml")
    root = ET.parse(settings)
    groups = root.findall(".//SourceGroup")
    groups[2].find("name").text = "both"
    for place in ("0", "1"):
        ET.SubElement(groups[2], "id").text = place
    root.write(settings)
    append_bdv(path, [tiny("c", colour=(1, 2, 3))])
    _, shown = opened(path)
    assert [shown[i].groups for i in range(3)] == [["a", "both"], ["b", "both"], []]
    assert shown[2].colour == (1, 2, 3)


@pytest.mark.parametrize("number", [1, 12])
def test_settings_with_a_group_a_source_are_mended(tmp_path, number):
    """As clemreg wrote them before it knew of the ten groups."""
    path = write_bdv(tmp_path / "d.xml", [tiny(f"v{i}") for i in range(number)])
    settings = path.with_suffix(".settings.xml")
    root = ET.parse(settings)
    groups = root.find(".//SourceGroups")
    for group in list(groups)[number:]:
        groups.remove(group)
    for place in range(len(groups), number):
        ET.SubElement(ET.SubElement(groups, "SourceGroup"), "id").text = str(place)
    root.write(settings)
    append_bdv(path, [tiny("more", window=(3, 4))])
    _, shown = opened(path)
    assert shown[number].window == (3, 4)
    assert shown[0].groups == ["v0"]
