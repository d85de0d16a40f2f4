"""No export writes over a file unasked; --overwrite replaces earlier exports and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest

from clemreg.cli.app import run_app
from clemreg.errors import StorageError
from clemreg.export.replace import require_free_collection
from clemreg.io.points import write_landmarks
from clemreg.io.transforms import write_transform
from clemreg.io.volumes import write_volume
from clemreg.space import Grid
from clemreg.space.landmarks import Landmarks
from clemreg.testing import random_affine
from clemreg.volume import Volume

LM = Grid((5, 12, 14), (104.0, 52.0, 52.0), frame="lm")
FILES = {
    "bigwarp table": ("bigwarp {t} --grid-of {lm} --out {out}", "a.csv"),
    "bigwarp project": (
        "bigwarp {t} --grid-of {lm} --em {em} --unit nm --out {folder}/free.csv --project {out}",
        "p.json",
    ),
    "elastix": ("elastix {t} --grid-of {lm} --out {folder}", "TransformParameters.0.txt"),
    "itk": ("itk {t} --out {out}", "t.tfm"),
    "ecclem xml": ("ecclem {marks} --em {em} --lm {lm} --out {out}", "e.xml"),
    "ecclem csv": ("ecclem {marks} --out {folder}/f.csv", "f-em.csv"),
    "ecclem matrix": ("ecclem {t} --matrix --lm {lm} --out {out}", "m.xml"),
    "imagej": ("imagej {em} --out {out}", "i.tif"),
    "neuroglancer": (
        "neuroglancer --em {em} --lm {lm} --transform {t} --out {out}",
        "n.json",
    ),
    "bdv xml": ("bdv --em {em} --lm {lm} --transform {t} --out {out}", "d.xml"),
    "bdv settings": (
        "bdv --em {em} --lm {lm} --transform {t} --out {folder}/d.xml",
        "d.settings.xml",
    ),
    "bdv pixels": ("bdv --em {em} --lm {lm} --transform {t} --out {folder}/d.xml", "d.h5"),
}
FOLDERS = {
    "mobie": ("mobie --em {em} --lm {lm} --transform {t} --out {out}", "collection.csv"),
    "dfield": ("dfield {t} --grid-of {lm} --out {out}", "attributes.json"),
    "ngff": ("ngff {t} --em {em} --lm {lm} --out {out}", "zarr.json"),
    "omezarr": ("omezarr {em} --out {out}", "zarr.json"),
    "bdv": (
        "bdv --em {em} --lm {lm} --transform {t} --storage n5 --out {folder}/d.xml",
        "attributes.json",
    ),
}


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in")
    rng = np.random.default_rng(0)
    affine = random_affine(rng, "lm", "em")
    write_transform(affine, folder / "t.json")
    write_volume(folder / "lm.zarr", Volume(rng.integers(1, 99, LM.shape).astype("u1"), LM))
    middle = affine(LM.centre_nm[None])[0]
    em = Grid((20, 22, 24), (40.0, 30.0, 30.0), tuple(middle - [400, 330, 360]), "em")
    write_volume(folder / "em.zarr", Volume(rng.integers(1, 99, em.shape).astype("u1"), em))
    lm = rng.uniform(*LM.corners_nm()[[0, -1]], (4, 3))
    write_landmarks(Landmarks(tuple("abcd"), lm, affine(lm)), folder / "marks.csv")
    return {
        "t": folder / "t.json",
        "lm": folder / "lm.zarr",
        "em": folder / "em.zarr",
        "marks": folder / "marks.csv",
    }


def words(template, **places):
    return ["export", *(word.format(**places) for word in template.split())]


@pytest.mark.parametrize("case", FILES)
def test_a_file_of_a_user_stays(case, names, tmp_path, capsys):
    template, name = FILES[case]
    mine = tmp_path / name
    mine.write_text("mine")
    command = words(template, **names, out=mine, folder=tmp_path)
    assert run_app(command) == 1
    said = capsys.readouterr().err
    assert f"{mine} exists already" in said
    assert "hint: choose another name, or add --overwrite" in said
    assert mine.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [mine]
    assert run_app([*command, "--overwrite"]) == 0
    assert mine.read_bytes() != b"mine"


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_of_a_user_stays(case, names, tmp_path, capsys):
    template, mark = FOLDERS[case]
    out = tmp_path / "d.n5"
    command = words(template, **names, out=out, folder=tmp_path)
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    assert run_app(command) == 1
    assert "exists already" in capsys.readouterr().err
    assert run_app([*command, "--overwrite"]) == 1
    said = capsys.readouterr().err
    assert "is no earlier export" in said
    assert mark in said
    assert [p.name for p in tmp_path.rglob("*")] == ["d.n5", "thesis.txt"]
    (out / "thesis.txt").unlink()
    assert run_app(command) == 0
    (out / "stale").write_text("of the first export")
    assert run_app(command) == 1
    assert run_app([*command, "--overwrite"]) == 0
    assert not (out / "stale").exists()
    assert (out / mark).is_file()


def test_a_folder_in_the_place_of_a_file_is_never_replaced(names, tmp_path, capsys):
    (tmp_path / "t.tfm").mkdir()
    command = words("itk {t} --out {out}", **names, out=tmp_path / "t.tfm")
    assert run_app([*command, "--overwrite"]) == 1
    assert "is a folder, expected a file" in capsys.readouterr().err
    (tmp_path / "e").write_text("mine")
    elastix = words("elastix {t} --grid-of {lm} --out {out}", **names, out=tmp_path / "e")
    assert run_app([*elastix, "--overwrite"]) == 1
    assert (tmp_path / "e").read_text() == "mine"


def test_elastix_files_join_other_files_in_a_folder(names, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert run_app(words("elastix {t} --grid-of {lm} --out {out}", **names, out=tmp_path)) == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("left", [".DS_Store", "Thumbs.db", "desktop.ini"])
def test_a_folder_that_only_a_file_manager_has_seen_is_empty(names, tmp_path, left):
    out = tmp_path / "mobie"
    out.mkdir()
    (out / left).write_bytes(b"\0")
    command = words(FOLDERS["mobie"][0], **names, out=out)
    assert run_app(command) == 0
    assert (out / "collection.csv").is_file()
    (out / left).write_bytes(b"\0")
    assert run_app(command) == 1
    (out / "a.txt").touch()
    with pytest.raises(StorageError, match=r"it has a\.txt"):
        require_free_collection(out, r"\w+\.(csv|zarr)|.*json|Transf.*", overwrite=True)


def test_adding_and_replacing_contradict_each_other(names, tmp_path, capsys):
    command = words(FOLDERS["bdv"][0], **names, out="", folder=tmp_path)
    assert run_app([*command, "--append", "--overwrite"]) == 1
    assert "contradict" in capsys.readouterr().err


def test_a_replaced_dataset_is_whole(names, tmp_path):
    """After hdf5 comes n5 of the same name: the XML leads to the new pixels."""
    import xml.etree.ElementTree as ET

    hdf5 = words(FILES["bdv xml"][0], **names, out=tmp_path / "d.xml")
    assert run_app(hdf5) == 0
    assert run_app([*words(FOLDERS["bdv"][0], **names, folder=tmp_path), "--overwrite"]) == 0
    assert ET.parse(tmp_path / "d.xml").findtext(".//ImageLoader/n5") == "d.n5"
    attributes = json.loads((tmp_path / "d.n5" / "setup0" / "attributes.json").read_text())
    assert attributes["dataType"] == "uint8"


@pytest.mark.parametrize(("storage", "data"), [("hdf5", "d.h5"), ("n5", "d.n5")])
def test_the_same_command_goes_on_after_a_kill(names, tmp_path, storage, data):
    """Killed between pixels and XML: what lies there without an XML is the command's own."""
    template = FILES["bdv xml"][0] + f" --storage {storage}"
    command = words(template, **names, out=tmp_path / "d.xml")
    assert run_app(command) == 0
    (tmp_path / "d.xml").rename(tmp_path / ".d.xml.unfinished")
    assert run_app(command) == 0
    kinds = {p.name for p in tmp_path.iterdir()}
    assert kinds == {"d.xml", "d.settings.xml", data}


APPLY = {
    "points": ("{points}", "q.csv", b"mine"),
    "mesh": ("{mesh}", "q.ply", b"mine"),
    "tiff": ("{em} --onto {lm}", "q.tif", b"mine"),
    "file in the place of a volume": ("{em} --onto {lm}", "q.zarr", b"mine"),
}


@pytest.fixture(scope="module")
def subjects(names):
    folder = names["t"].parent
    (folder / "p.csv").write_text("x-nm,y-nm,z-nm\n100,200,300\n")
    (folder / "m.obj").write_text("v 0 0 0\nv 9 0 0\nv 0 9 0\nf 1 2 3\n")
    return {**names, "points": folder / "p.csv", "mesh": folder / "m.obj"}


def apply_words(subject, out, places):
    return ["apply", str(places["t"]), *subject.format(**places).split(), "--out", str(out)]


@pytest.mark.parametrize("case", APPLY)
def test_apply_keeps_what_is_there(case, subjects, tmp_path, capsys):
    subject, name, content = APPLY[case]
    out = tmp_path / name
    out.write_bytes(content)
    command = apply_words(subject, out, subjects)
    assert run_app(command) == 1
    said = capsys.readouterr().err
    assert f"{out} exists already" in said
    assert "--overwrite" in said
    assert out.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert run_app([*command, "--overwrite"]) == 0
    assert out.is_dir() or out.read_bytes() != content


@pytest.mark.parametrize("suffix", ["zarr", "n5"])
def test_apply_replaces_a_volume_but_no_other_folder(subjects, tmp_path, capsys, suffix):
    out = tmp_path / f"q.{suffix}"
    command = apply_words("{em} --onto {lm}", out, subjects)
    assert run_app(command) == 0
    (out / "stale").write_text("old")
    assert run_app(command) == 1
    assert (out / "stale").exists()
    assert run_app([*command, "--overwrite"]) == 0
    assert not (out / "stale").exists()
    other = tmp_path / f"photos.{suffix}"
    other.mkdir()
    (other / "a.jpg").write_bytes(b"mine")
    assert run_app([*apply_words("{em} --onto {lm}", other, subjects), "--overwrite"]) == 1
    assert "is no earlier export" in capsys.readouterr().err
    assert (other / "a.jpg").read_bytes() == b"mine"


def test_no_input_is_its_own_output(subjects, tmp_path):
    (tmp_path / "p.csv").write_bytes(subjects["points"].read_bytes())
    command = ["apply", str(subjects["t"]), str(tmp_path / "p.csv")]
    assert run_app([*command, "--out", str(tmp_path / "p.csv")]) == 1
    assert (tmp_path / "p.csv").read_bytes() == subjects["points"].read_bytes()


FOREIGN = {
    "text": "my notes",
    "indented by two": '{\n  "name": "my-package"\n}\n',
    "a list": "[\n 1\n]\n",
    "nothing": "",
    "bytes": "\udcff",
}


@pytest.mark.parametrize("case", FOREIGN)
def test_figures_replace_figures_only(case, names, tmp_path, capsys):
    report = tmp_path / "r.json"
    content = FOREIGN[case].encode("utf-8", "surrogateescape")
    report.write_bytes(content)
    measure = ["evaluate", "jacobian", "--transform", str(names["t"])]
    measure += ["--grid-of", str(names["lm"]), "--json", str(report)]
    assert run_app(measure) == 1
    said = capsys.readouterr()
    assert "clemreg did not write it as a report" in said.err
    assert said.out == ""  # refused before the work
    assert report.read_bytes() == content
    report.unlink()
    assert run_app(measure) == 0
    compare = ["evaluate", "compare", str(names["t"]), str(names["t"]), *measure[4:]]
    assert run_app(compare) == 0
    assert list(json.loads(report.read_text())) == ["compare"]


def test_figures_never_replace_a_transform(names, tmp_path):
    copy = tmp_path / "t.json"
    copy.write_bytes(names["t"].read_bytes())
    command = ["evaluate", "jacobian", "--transform", str(copy), "--grid-of", str(names["lm"])]
    assert run_app([*command, "--json", str(copy)]) == 1
    assert copy.read_bytes() == names["t"].read_bytes()


def test_a_jacobian_map_keeps_what_is_there(names, tmp_path):
    out = tmp_path / "j.tif"
    out.write_bytes(b"mine")
    command = ["evaluate", "jacobian", "--transform", str(names["t"])]
    command += ["--grid-of", str(names["lm"]), "--map", str(out)]
    assert run_app(command) == 1
    assert out.read_bytes() == b"mine"
    assert run_app([*command, "--overwrite"]) == 0
    assert out.stat().st_size > 1000
