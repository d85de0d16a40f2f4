"""``clemreg export`` from the command line, on images and a transform that are no run."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import h5py
import numpy as np
import pytest

from clemreg.cli.app import run_app
from clemreg.io.transforms import write_transform
from clemreg.io.volumes import write_volume
from clemreg.space import Affine, Grid
from clemreg.testing import random_bspline
from clemreg.volume import Labels, Volume

RNG = np.random.default_rng(3)
LM = Grid((9, 30, 34), (104.0, 52.0, 52.0), (10.0, 20.0, 30.0), "lm")
EM = Grid((40, 44, 50), (16.0, 12.0, 12.0), (400.0, 900.0, -200.0), "em")


@pytest.fixture
def files(tmp_path):
    move = Affine.translation(EM.centre_nm - LM.centre_nm, "lm", "lm:affine")
    bend = random_bspline(
        RNG,
        Grid(LM.shape, LM.spacing_nm, (400.0, 500.0, -300.0), "lm:affine"),
        amplitude_nm=15,
        target="em",
    )
    transform = move.then(bend)
    write_transform(transform, tmp_path / "t.json", fixed_grid=LM)
    lm = RNG.integers(1, 99, (2, *LM.shape)).astype("u2")
    write_volume(tmp_path / "lm.zarr", Volume(lm, LM, ("mito", "er")))
    em = Volume(RNG.integers(1, 99, EM.shape).astype("u1"), EM)
    write_volume(tmp_path / "em.zarr", em)
    write_volume(tmp_path / "ids.zarr", Labels((em.read() > 50).astype("u4") * 70000, EM))
    words = [
        f"--{name}={tmp_path / file}"
        for name, file in (("em", "em.zarr"), ("lm", "lm.zarr"), ("transform", "t.json"))
    ]
    return tmp_path, transform, words


def test_bdv_of_images_and_a_transform(files, capsys):
    folder, _, words = files
    out = folder / "b" / "it's.xml"
    labels = f"--labels={folder / 'ids.zarr'}"
    assert (
        run_app(
            [
                "export",
                "bdv",
                *words,
                labels,
                "--warp-spacing",
                "30 30 40 nm",
                "--out",
                str(out),
                "--unit",
                "nm",
            ]
        )
        == 0
    )
    xml = ET.parse(out)
    names = [v.findtext("name") for v in xml.findall(".//ViewSetup")]
    assert names == ["EM (affine)", "ids.zarr", "LM mito", "LM er", "EM warped"]
    sizes = [v.findtext("voxelSize/size") for v in xml.findall(".//ViewSetup")]
    assert sizes[-1] == "30.0 30.0 40.0"
    with h5py.File(out.with_suffix(".h5")) as file:
        assert {file[f"s{i:02d}"].attrs["dataType"] for i in range(5)} == {
            "uint8",
            "uint16",
            "uint32",
        }
        assert file["t00000/s04/0/cells"][:].max() > 0
    assert run_app(["export", "bdv", *words, "--out", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert run_app(["export", "bdv", *words, "--out", str(out), "--append"]) == 0
    assert len(ET.parse(out).findall(".//ViewSetup")) == 9
    n5 = ["export", "bdv", *words, "--storage", "n5", "--out", str(folder / "n.xml")]
    assert run_app(n5) == 0
    assert (folder / "n.n5" / "setup3" / "timepoint0" / "s0").is_dir()
    legacy = ["export", "bdv", *words, "--legacy", "--out", str(folder / "o.xml")]
    assert run_app(legacy) == 0
    with h5py.File(folder / "o.h5") as file:
        assert "dataType" not in file["s00"].attrs


def test_what_to_export_must_be_said(files, capsys):
    folder, _, words = files
    assert run_app(["export", "bdv", *words[:2], "--out", str(folder / "x.xml")]) == 1
    assert "belong together" in capsys.readouterr().err
    assert run_app(["export", "bdv", "--out", str(folder / "x.xml")]) == 1
    assert "either the folder of a run" in capsys.readouterr().err
    assert run_app(["export", "bdv", *words]) == 1
    assert "--out NAME.xml" in capsys.readouterr().err
    assert run_app(["export", "bdv", *words, "--storage", "zarr", "--out", "x.xml"]) == 1
    assert "cannot store as 'zarr'" in capsys.readouterr().err
