"""Names and paths that try to be code, markup or other paths are only ever names.

Every file is read by a parser that clemreg does not use (SAX, a CSV reader with the rules of
BigWarp's, json), and nothing else was written or read.
"""

from __future__ import annotations

import csv
import json
import re
import sys
import xml.sax
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import tifffile

from clemreg.cli.app import run_app
from clemreg.errors import FormatError, StorageError
from clemreg.export.bdv import BdvSetup, write_bdv
from clemreg.export.bdv_append import append_bdv
from clemreg.export.bigwarp import BigWarpImage, write_bigwarp_project
from clemreg.export.dfield import write_n5_field
from clemreg.export.mobie import MobieCollection, MobieImage, MobieSpots, write_mobie
from clemreg.export.neuroglancer import (
    NeuroglancerLayer,
    neuroglancer_state,
    state_link,
    write_neuroglancer,
)
from clemreg.export.ngff import Display, write_ome_zarr
from clemreg.export.replace import require_free
from clemreg.export.sampled_field import SampledField
from clemreg.fiji.macros import with_parameters
from clemreg.io.bigwarp import write_bigwarp
from clemreg.io.ecclem import read_ecclem
from clemreg.io.points import read_landmarks, write_landmarks, write_points
from clemreg.io.tiff import write_tiff
from clemreg.io.transforms import write_transform
from clemreg.io.volumes import open_volume, write_volume
from clemreg.space import Affine, Grid
from clemreg.space.landmarks import Landmarks
from clemreg.testing import random_affine
from clemreg.volume import Labels, Volume

GRID = Grid((4, 5, 6), (5.24, 4.0, 4.0), (3.0, -2.0, 1.0), "em")
PIXELS = np.arange(120, dtype=np.uint8).reshape(GRID.shape)
ATTACKS = (
    "a\" b='c'",
    "]]><hdf5 type='absolute'>/etc/passwd</hdf5><![CDATA[",
    "</name><id>7</id><name>",
    "&xxe; &#0; &lt; %20 ${HOME} $(touch x) `touch x`",
    "<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>",
    "../../up",
    "..\\..\\up\\",
    'x","true","9","9","9","9","9","9"\n"y',
    '=HYPERLINK("http://127.0.0.1")',
    "line\nclemreg-origin-nm-zyx: 9 9 9\r\nPt\x00\x1b[31m",
    "\u202egnp.exe \ud800 \U0001f600 漢",
)


def tree(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


class Reader(xml.sax.ContentHandler):
    """Text of every element, by its path."""

    def __init__(self):
        super().__init__()
        self.open, self.found = [], []

    def startElement(self, name, attributes):
        self.open.append((name, dict(attributes), []))

    def characters(self, text):
        self.open[-1][2].append(text)

    def endElement(self, name):
        path = "/".join(tag for tag, *_ in self.open)
        tag, attributes, text = self.open.pop()
        assert tag == name
        self.found.append((path, attributes, "".join(text)))


def elements(path, ending):
    reader = Reader()
    xml.sax.parse(str(path), reader)
    return [text for where, _, text in reader.found if where.endswith(ending)]


def as_xml(name):
    """What XML 1.0 can hold of a name."""
    kept = re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", name)
    return kept.replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.parametrize("storage", ["hdf5", "n5"])
def test_bdv_names(tmp_path, storage):
    setups = [BdvSetup(Volume(PIXELS, GRID), name) for name in ATTACKS]
    path = write_bdv(tmp_path / "d.xml", setups[:5], storage=storage)
    append_bdv(path, setups[5:])
    wanted = [as_xml(name) for name in ATTACKS]
    assert elements(path, "/ViewSetup/name") == wanted
    assert elements(path, "/Channel/name") == wanted
    groups = elements(path.with_suffix(".settings.xml"), "/SourceGroup/name")
    assert groups == wanted[: len(groups)]
    assert len(groups) == 10  # whatever the number of volumes
    assert elements(path, "/ViewSetup/id") == [str(i) for i in range(len(ATTACKS))]
    (place,) = elements(path, f"/ImageLoader/{storage}")
    assert (tmp_path / place).exists()
    assert Path(place).name == place
    top = {p.name for p in tmp_path.iterdir()}
    hdf5 = {"d-s05.h5", "d-links.h5", "d.h5"}
    assert top == {"d.xml", "d.settings.xml"} | (hdf5 if storage == "hdf5" else {"d.n5"})


PATHS = [text.replace("/", "|").replace("\x00", "").replace("\ud800", "") for text in ATTACKS]


@pytest.mark.parametrize("storage", ["hdf5", "n5"])
@pytest.mark.parametrize("stem", [PATHS[i] for i in (0, 3, 6, 9, 10)])
def test_bdv_paths(tmp_path, storage, stem):
    """The XML names a file beside it, under a name that XML and URIs can hold."""
    folder = tmp_path / "in"
    path = write_bdv(
        folder / f"{stem}.xml", [BdvSetup(Volume(PIXELS, GRID), "em")], storage=storage
    )
    (place,) = elements(path, f"/ImageLoader/{storage}")
    assert {p.name for p in folder.iterdir()} == {path.name, f"{stem}.settings.xml", place}
    if storage == "n5":
        assert re.fullmatch(r"[\w.+=,@~-]+\.n5", place)
    append_bdv(path, [BdvSetup(Volume(PIXELS, GRID), "two")])
    assert len(elements(path, "/ViewSetup/id")) == 2
    assert tree(tmp_path)[0] == "in"
    assert {Path(name).parts[0] for name in tree(tmp_path)} == {"in"}


def test_two_names_never_share_their_pixels(tmp_path):
    for name in ("a b", "a_b", "a?b"):
        write_bdv(tmp_path / f"{name}.xml", [BdvSetup(Volume(PIXELS, GRID), "em")], storage="n5")
    assert len(list(tmp_path.glob("*.n5"))) == 3


def rows_as_bigwarp_reads(text):
    """As opencsv does: quotes doubled, and a backslash before a quote or backslash escapes it."""
    rows, row, field, quoted, i = [], [], "", False, 0
    while i < len(text):
        c, after = text[i], text[i + 1 : i + 2]
        if (quoted and c == "\\" and after in ('"', "\\")) or (quoted and c == after == '"'):
            field += after
            i += 1
        elif c == '"':
            quoted = not quoted
        elif c == "," and not quoted:
            row.append(field)
            field = ""
        elif c == "\n" and not quoted:
            rows.append([*row, field])
            row, field = [], ""
        else:
            field += c
        i += 1
    assert not quoted
    assert (row, field) == ([], "")
    return rows


def landmarks():
    points = np.random.default_rng(0).uniform(-1e4, 1e4, (len(ATTACKS), 3))
    return Landmarks(ATTACKS, points, points + 5.0)


def test_bigwarp_tables(tmp_path):
    write_bigwarp(landmarks(), tmp_path / "l.csv")
    rows = rows_as_bigwarp_reads((tmp_path / "l.csv").read_text(encoding="utf-8"))
    assert [len(row) for row in rows] == [8] * len(ATTACKS)
    assert {row[1] for row in rows} == {"true"}
    numbers = np.array([row[2:] for row in rows], float)
    np.testing.assert_allclose(numbers[:, 3:], landmarks().lm_nm[:, ::-1] / 1e3)
    assert rows[0][0] == ATTACKS[0]
    assert rows[6][0] == "../../up/"
    again = read_landmarks(tmp_path / "l.csv")
    np.testing.assert_allclose(again.em_nm, landmarks().em_nm)
    assert tree(tmp_path) == ["l.csv"]


def test_bigwarp_json(tmp_path):
    places = [tmp_path / f"{name}.tif" for name in PATHS[:2]]
    moving, target = (
        BigWarpImage(place, name) for place, name in zip(places, ATTACKS, strict=False)
    )
    write_bigwarp_project(tmp_path / "p.json", moving, target, landmarks())
    write_bigwarp(landmarks(), tmp_path / "l.json")
    project = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert [s["uri"] for s in project["Sources"].values()] == list(map(str, places))
    assert [s["name"] for s in project["Sources"].values()] == list(ATTACKS[:2])
    assert set(project) == {"Sources", "Transform"}
    for record in (project["Transform"], json.loads((tmp_path / "l.json").read_text())):
        assert tuple(record["landmarks"]["names"]) == ATTACKS
    assert tree(tmp_path) == ["l.json", "p.json"]


def test_mobie_tables(tmp_path):
    images = tuple(MobieImage(name, "em.zarr", in_em=True) for name in ATTACKS)
    names = (*ATTACKS, "collection", "Collection", "em-transforms")
    spots = tuple(MobieSpots(name, landmarks().lm_nm, labels=ATTACKS) for name in names)
    affine = random_affine(np.random.default_rng(0), "lm", "em")
    write_mobie(tmp_path / "m", MobieCollection(images, affine, GRID.with_frame("lm"), spots))
    with (tmp_path / "m" / "collection.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, strict=True))
    assert len(rows) == len(ATTACKS) + len(names)
    assert all(None not in row for row in rows)
    assert rows[0]["name"] == ATTACKS[0]
    assert len({row["display"] for row in rows}) == len(rows)
    assert {row["type"] for row in rows} == {"intensities", "spots"}
    assert not any(c in row["name"] for row in rows for c in "\n\r\x00")
    uris = [row["uri"] for row in rows if row["type"] == "spots"]
    assert len({uri.lower() for uri in uris}) == len(names)
    for uri in uris:
        assert Path(uri).name == uri
        with (tmp_path / "m" / uri).open(newline="", encoding="utf-8") as stream:
            assert len(list(csv.DictReader(stream, strict=True))) == len(ATTACKS)
    assert tree(tmp_path) == sorted(["m", "m/collection.csv", *(f"m/{uri}" for uri in uris)])


def test_imagej_tiff_notes(tmp_path):
    """A channel name is one word of the notes: it cannot set an origin, nor another key."""
    channels = tuple(name.replace(",", ";") for name in ATTACKS)
    pixels = np.zeros((len(channels), *GRID.shape), np.uint8)
    write_tiff(tmp_path / "c.tif", Volume(pixels, GRID, channels))
    with tifffile.TiffFile(tmp_path / "c.tif") as tiff:
        notes = tiff.imagej_metadata["Info"].splitlines()
        description = tiff.pages[0].description
        labels = tiff.imagej_metadata["Labels"]
    assert len(notes) == 3
    assert notes[1] == "clemreg-origin-nm-zyx: 3.0 -2.0 1.0"
    assert len(labels) == GRID.shape[0] * len(channels)
    keys = [line.partition("=")[0] for line in description.splitlines()]
    assert len(keys) == len(set(keys))
    assert not {"HYPERLINK", "true"} & set(keys)


def test_ome_tiff_names(tmp_path):
    channels = ATTACKS[:9]
    pixels = np.zeros((len(channels), *GRID.shape), np.uint8)
    write_tiff(tmp_path / "c.ome.tif", Volume(pixels, GRID, channels))
    with tifffile.TiffFile(tmp_path / "c.ome.tif") as tiff:
        text = tiff.ome_metadata
    (tmp_path / "ome.xml").write_text(text, encoding="utf-8")
    reader = Reader()
    xml.sax.parse(str(tmp_path / "ome.xml"), reader)
    names = [a["Name"] for where, a, _ in reader.found if where.endswith("/Pixels/Channel")]
    assert [" ".join(n.split()) for n in names] == [" ".join(n.split()) for n in channels]
    assert len([1 for where, *_ in reader.found if where.endswith("/Image")]) == 1


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_channel_names(tmp_path, version):
    pixels = np.zeros((len(ATTACKS), *GRID.shape), np.uint8)
    displays = [Display(name, (255, 0, 255), (0.0, 9.0)) for name in ATTACKS]
    volume = Volume(pixels, GRID, tuple(f"c{i}" for i in range(len(ATTACKS))))
    path = write_ome_zarr(tmp_path / "v.zarr", volume, displays, version=version)
    text = (path / (".zattrs" if version == "0.4" else "zarr.json")).read_text(encoding="utf-8")
    found = json.loads(text)
    found = found if version == "0.4" else found["attributes"]["ome"]
    assert [c["label"] for c in found["omero"]["channels"]] == list(ATTACKS)
    assert {c["color"] for c in found["omero"]["channels"]} == {"FF00FF"}
    assert [p.name for p in tmp_path.iterdir()] == ["v.zarr"]


def test_neuroglancer_states_and_links(tmp_path):
    """Names and places stay strings: of the JSON, of a URL that is one, and of the link."""
    layers = [
        NeuroglancerLayer(name, place, (Display(name, (255, 0, 0), (0.0, 9.0)),))
        for name, place in zip(ATTACKS, PATHS, strict=True)
    ]
    state = neuroglancer_state(layers, GRID, "http://127.0.0.1:9000")
    write_neuroglancer(tmp_path / "s.json", state)
    again = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
    assert [layer["name"] for layer in again["layers"]] == list(ATTACKS)
    assert len({layer["shader"] for layer in again["layers"]}) == 1  # no name is in the program
    urls = [layer["source"]["url"] for layer in again["layers"]]
    assert all(
        re.fullmatch(r"zarr://http://127\.0\.0\.1:9000/[\w.~%/-]+", url, re.ASCII) for url in urls
    )
    link = state_link(state, "http://127.0.0.1:8080")
    head, _, fragment = link.partition("#!")
    assert head.rstrip("/") == "http://127.0.0.1:8080"
    assert re.fullmatch(r"[\w%.~!*'();:@&=+$,/?-]*", fragment, re.ASCII)
    assert json.loads(unquote(fragment)) == again


NAMES = (
    "--help 'a\" ]]> ${HOME} $(touch x) `touch x` &lt; %20 %PATH% .",
    "NUL.txt up\n clemreg\r\n\x1b[31m\ttab CON.",
    "\u202egnp 漢字 ü \U0001f600 " + "é" * 80 + " ",
)


def exports(folder, name):
    """Every export, with a hostile name for all that it reads and writes."""
    move, em, lm = (str(folder / f"{name}{end}") for end in (".json", " em.zarr", " lm.zarr"))
    marks, spots, ids = (str(folder / f"{name}{end}") for end in (" l.csv", " p.csv", " i.zarr"))
    pair = [f"--em={em}", f"--lm={lm}", f"--transform={move}"]
    grid = f"--grid-of={lm}"

    def out(ending, option="out"):
        return f"--{option}={folder / 'out' / (name + ending)}"

    yield ["bdv", *pair, f"--labels={ids}", out(".xml")]
    yield ["bdv", *pair, out(".xml"), "--append"]
    yield ["bdv", *pair, out("5.xml"), "--storage=n5"]
    yield ["bigwarp", move, grid, f"--em={em}", "--bdv", out(".csv"), out("p.json", "project")]
    yield ["bigwarp", "--landmarks", marks, out("l.json")]
    yield ["mobie", *pair, f"--labels={ids}", f"--spots={spots}", f"--landmarks={marks}", out("")]
    yield ["dfield", move, grid, out(".n5")]
    yield ["elastix", move, grid, out("elastix")]
    yield ["itk", move, out(".tfm")]
    yield ["ngff", move, f"--em={em}", f"--lm={lm}", out("s.zarr")]
    yield ["omezarr", em, out(".ome.zarr")]
    yield ["imagej", em, out(".tif")]
    yield ["ecclem", marks, f"--em={em}", f"--lm={lm}", out("e.xml")]
    yield ["neuroglancer", *pair, out("n.json")]


@pytest.mark.parametrize("name", NAMES)
def test_every_export_between_hostile_paths(tmp_path, monkeypatch, name):
    """Nothing appears but what was asked for; XML and JSON parse, and name files that are there."""
    folder, elsewhere = tmp_path / "in" / name, tmp_path / "elsewhere"
    folder.mkdir(parents=True)
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    write_transform(Affine.translation([1.0, 2.0, 3.0], "lm", "em"), folder / f"{name}.json")
    write_volume(folder / f"{name} em.zarr", Volume(PIXELS, GRID))
    write_volume(folder / f"{name} i.zarr", Labels(PIXELS.astype("u4"), GRID))
    write_volume(folder / f"{name} lm.zarr", Volume(PIXELS, GRID.with_frame("lm")))
    write_landmarks(Landmarks(ATTACKS[:2], np.eye(3)[:2], np.eye(3)[1:]), folder / f"{name} l.csv")
    write_points(np.eye(3), folder / f"{name} p.csv")
    before = tree(folder)
    for words in exports(folder, name):
        assert run_app(["export", *words]) == 0, words
    made = folder / "out"
    assert tree(elsewhere) == []
    assert {p.name for p in tmp_path.iterdir()} == {"in", "elsewhere"}
    assert [p.name for p in (tmp_path / "in").iterdir()] == [name]
    assert [p for p in tree(folder) if not p.startswith("out")] == before
    assert not [p.name for p in made.iterdir() if p.name.startswith(".")]
    for path in made.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    documents = [path for path in made.rglob("*.xml") if not path.name.endswith("e.xml")]
    for path in documents:
        reader = Reader()
        xml.sax.parse(path.open("rb"), reader)
        places = [text for where, _, text in reader.found if where.endswith(("/hdf5", "/n5"))]
        assert all((made / place).exists() for place in places)
        assert len(places) == (not path.name.endswith(".settings.xml"))
    assert len(documents) == 8
    scene = json.loads((made / f"{name}s.zarr" / "zarr.json").read_text())["attributes"]["ome"]
    places = scene["scene"]["coordinateTransformations"]
    lm = (made / f"{name}s.zarr" / places[1]["input"]["path"]).resolve()
    assert lm == (folder / f"{name} lm.zarr").resolve()
    project = json.loads((made / f"{name}p.json").read_text(encoding="utf-8"))
    assert all(Path(source["uri"]).exists() for source in project["Sources"].values())
    marks = json.loads((made / f"{name}l.json").read_text(encoding="utf-8"))["landmarks"]
    assert marks["names"] == list(ATTACKS[:2])
    fiducials = read_ecclem(made / f"{name}e.xml").landmarks
    np.testing.assert_array_equal(np.sort(fiducials.lm_nm), np.sort(np.eye(3)[:2]))


@pytest.mark.skipif(sys.platform == "win32", reason="there it is a separator")
@pytest.mark.parametrize("name", ["in\\side", "..\\..\\up", "end\\"])
def test_no_n5_goes_where_a_backslash_would_lead(tmp_path, name):
    """Tensorstore takes it for a separator on every system, and would write in another folder."""
    folder = tmp_path / "a" / "b" / name
    write_bdv(folder / "d.xml", [BdvSetup(Volume(PIXELS, GRID), "em")])
    before = tree(tmp_path)
    with pytest.raises(StorageError, match="backslash"):
        write_bdv(folder / "e.xml", [BdvSetup(Volume(PIXELS, GRID), "em")], storage="n5")
    with pytest.raises(StorageError, match="backslash"):
        write_volume(folder / "v.n5", Volume(PIXELS, GRID), format="n5")
    with pytest.raises(StorageError, match="backslash"):
        affine = Affine.translation([1.0, 2.0, 3.0], "lm", "em")
        write_n5_field(folder / "f.n5", SampledField(affine, GRID.with_frame("lm")))
    assert [p for p in tree(tmp_path) if not p.endswith(".partial")] == before
    write_volume(tmp_path / "v.n5", Volume(PIXELS, GRID), format="n5")
    (tmp_path / "v.n5").rename(folder / "v.n5")
    with pytest.raises(StorageError, match="backslash"):
        open_volume(folder / "v.n5")


@pytest.mark.skipif(sys.platform == "win32", reason="there it is a separator")
def test_below_a_backslash_a_relative_name_leads_nowhere_else(tmp_path, monkeypatch):
    """OME-Zarr can be there, N5 cannot; the name alone does not show where it is."""
    here = tmp_path / "in\\side"
    here.mkdir()
    monkeypatch.chdir(here)
    write_volume("v.zarr", Volume(PIXELS, GRID))
    np.testing.assert_array_equal(open_volume("v.zarr").read(), PIXELS)
    with pytest.raises(StorageError, match="backslash"):
        write_volume("v.n5", Volume(PIXELS, GRID), format="n5")
    assert [path.name for path in tmp_path.iterdir()] == ["in\\side"]


def test_names_as_long_as_a_file_system_has_them(tmp_path):
    """A file is written under 255 bytes; a set, of which one name would be longer, not at all."""
    longest = "é" * 125
    write_volume(tmp_path / "em.zarr", Volume(PIXELS, GRID))
    tiff = tmp_path / "out" / f"{longest}x.tif"
    assert len(tiff.name.encode()) == 255
    assert run_app(["export", "imagej", str(tmp_path / "em.zarr"), f"--out={tiff}"]) == 0
    assert [p.name for p in tiff.parent.iterdir()] == [tiff.name]
    setup = BdvSetup(Volume(PIXELS, GRID), longest * 9)
    with pytest.raises(StorageError, match="too long a name: 263") as caught:
        write_bdv(tmp_path / "bdv" / f"{longest}.xml", [setup])
    assert "choose a shorter one" in caught.value.hint
    assert not (tmp_path / "bdv").exists()
    write_bdv(tmp_path / "bdv" / f"{longest[9:]}.xml", [setup])
    append_bdv(tmp_path / "bdv" / f"{longest[9:]}.xml", [setup])
    endings = {p.name.replace("é", "") for p in (tmp_path / "bdv").iterdir()}
    assert endings == {".xml", ".settings.xml", ".h5", "-links.h5", "-s01.h5"}
    with pytest.raises(StorageError, match="too long"):
        require_free(tmp_path / f"{longest}longer.tif", overwrite=True)
    spots = tuple(
        MobieSpots(name, landmarks().lm_nm) for name in (longest * 2, "con", "LPT1", "漢" * 99)
    )
    affine = random_affine(np.random.default_rng(0), "lm", "em")
    write_mobie(tmp_path / "m", MobieCollection((), affine, GRID.with_frame("lm"), spots))
    made = {p.name for p in (tmp_path / "m").iterdir()}
    assert {"spots-con.csv", "spots-LPT1.csv"} < made
    assert max(len(name.encode()) for name in made) < 255


ENTITIES = """<?xml version="1.0"?>
<!DOCTYPE root [<!ENTITY x SYSTEM "file://{secret}">]>
<root><transformation type="RIGID"><sequenceFileName>&x;</sequenceFileName></transformation></root>
"""


def test_entities_are_not_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("the-secret")
    (tmp_path / "e.xml").write_text(ENTITIES.format(secret=secret))
    with pytest.raises(FormatError, match="trusted") as caught:
        read_ecclem(tmp_path / "e.xml")
    assert "the-secret" not in str(caught.value)
    path = write_bdv(tmp_path / "d.xml", [BdvSetup(Volume(PIXELS, GRID), "em")])
    evil = f'<!DOCTYPE a [<!ENTITY x SYSTEM "file://{secret}">]><SpimData'
    path.write_text(path.read_text().replace("<SpimData", evil).replace(">em<", ">&x;<"))
    with pytest.raises(FormatError, match="trusted"):
        append_bdv(path, [BdvSetup(Volume(PIXELS, GRID), "two")])
    assert "the-secret" not in path.read_text()


@pytest.mark.parametrize("text", ATTACKS)
def test_macro_parameters_stay_texts(text):
    """One statement with one string, by the rules of ImageJ's tokenizer."""
    prepared = with_parameters("#@ String s\nreturn s;", {"s": text})
    first, rest = prepared.split("\n", 1)
    assert rest == "return s;"
    assert re.fullmatch(r's = "(?:[^"\\\n\r]|\\.)*";', first)
