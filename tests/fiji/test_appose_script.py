"""The menu script that uses Appose, with the real worker and real shared memory."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from imagej_process import REPO, SCRIPTS

from clemreg.fiji.appose import SCRIPT
from clemreg.io.volumes import open_volume
from clemreg.pipeline.segment import segment_volume
from clemreg.space import Grid
from clemreg.volume import Volume

pytestmark = [
    pytest.mark.xdist_group("imagej"),
    pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="the stub uses Linux's /dev/shm"),
]

SEGMENT = SCRIPTS / "Segment_Active_Image_by_Appose.groovy"
STUB = Path(__file__).with_name("appose_stub.groovy")
SHOW = """
from clemreg.space.grid import Grid
from clemreg.volume import Volume
from clemreg.fiji.bridge import Look
data = np.load({path!r})
volume = Volume(data, Grid(data.shape, {spacing!r}, (300.0, -200.0, 70.0)), name="EM, x")
ij.show(volume, Look(unit="nm"))
"""


@pytest.fixture
def python(tmp_path):
    """An environment whose Python has this clemreg."""
    program = tmp_path / "an env" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{REPO}" exec "{sys.executable}" -W ignore "$@"\n')
    program.chmod(0o755)
    return str(program.parents[1])


def show(imagej, tmp_path, dtype="uint8", spacing=(20.0, 16.0, 16.0)):
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    em = gaussian_filter(rng.normal(size=(18, 33, 40)), 2)
    data = np.interp(em, (em.min(), em.max()), (0, 250)).astype(dtype)
    np.save(tmp_path / "em.npy", data)
    code = SHOW.format(path=str(tmp_path / "em.npy"), spacing=spacing)
    assert imagej.python(code)["error"] is None
    return Volume(data, Grid(data.shape, spacing, (300.0, -200.0, 70.0), "em"))


def close(imagej):
    assert imagej.macro('run("Close All");')["error"] is None


def run(imagej, python, **behaviour):
    parameters = {"image": "EM, x", "python": python} | behaviour.pop("parameters", {})
    stubs = [STUB.read_text()]
    return imagej.script(SEGMENT, parameters, 200, stubs=stubs, **behaviour)


def leftovers():
    return sorted(Path("/dev/shm").glob("clemreg-*"))


def test_the_script_sends_the_documented_code():
    assert repr(SCRIPT).strip("'") in SEGMENT.read_text()


def test_without_appose_the_way_around_is_named(imagej, tmp_path, python):
    show(imagej, tmp_path)
    answer = imagej.script(SEGMENT, {"image": "EM, x", "python": python}, headless=True)
    assert answer["error"].startswith("This Fiji has no Appose.\nUse Segment Mitochondria")
    close(imagej)


def test_an_error_of_python_is_shown_in_its_words(imagej, tmp_path, python):
    show(imagej, tmp_path)
    answer = run(imagej, python, headless=True, parameters={"model": "no such network"})
    assert "no such network" in answer["error"]
    assert "Traceback" not in answer["error"]
    assert leftovers() == []
    close(imagej)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_prediction_is_that_of_clemreg(imagej, tmp_path, python, dtype):
    em = show(imagej, tmp_path, dtype)
    answer = run(imagej, python)
    assert answer["error"] is None
    assert [event for event in answer["events"] if event[0] == "progress"]
    found = imagej.python(
        "v = ij.image('prediction of EM, x')\n"
        f"np.save({str(tmp_path / 'p.npy')!r}, v.read())\n"
        "answer = [*v.grid.spacing_nm, *v.grid.origin_nm]"
    )
    assert found["answer"] == pytest.approx([20, 16, 16, 300, -200, 70])
    segment_volume(em, tmp_path / "truth.zarr")
    truth = open_volume(tmp_path / "truth.zarr").read()
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy").reshape(truth.shape), truth)
    assert leftovers() == []
    close(imagej)


@pytest.mark.slow
@pytest.mark.torch
def test_cancel(imagej, tmp_path, python):
    show(imagej, tmp_path)
    answer = run(imagej, python, cancelled=True)
    assert answer["error"] is None
    assert ["status", "clemreg: cancelled"] in answer["events"]
    assert answer["outputs"] == {"prediction": None}
    close(imagej)
