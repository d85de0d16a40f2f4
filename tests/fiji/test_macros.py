"""The batch macros, and ``clemreg fiji macro``."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from imagej_process import SCRIPTS, START_SECONDS, environment

from clemreg.errors import ClemregError
from clemreg.fiji.macros import with_parameters
from clemreg.io.tiff import write_tiff
from clemreg.io.transforms import write_transform
from clemreg.io.volumes import open_volume, write_volume
from clemreg.register.apply import warped_volume
from clemreg.space import Grid
from clemreg.testing import hostile_grid, random_affine
from clemreg.units import NM_PER_UNIT
from clemreg.volume import Volume

pytestmark = pytest.mark.xdist_group("imagej")

BATCH = SCRIPTS / "Batch"


def run(imagej, name, parameters):
    """Run a macro with parameters; its answer, what it printed, or its error."""
    values = {key: str(value) for key, value in parameters.items()}
    said = imagej.python(
        "import jpype\nlog = jpype.JClass('ij.IJ')\nlog.log('\\\\Clear')\n"
        f"found = ij.run_script({str(BATCH / name)!r}, {values!r})\n"
        "answer = [found, str(log.getLog() or '')]",
        240,  # clemreg starts once an image, slowly on a busy machine
    )
    return said["error"] or said["answer"]


def test_check_calibration_finds_the_bad_one(imagej, tmp_path):
    folder = tmp_path / 'stacks, "ü"'
    folder.mkdir()
    grid = hostile_grid()
    write_tiff(folder / "good one.tif", Volume(np.ones(grid.shape, "u1"), grid))
    tifffile.imwrite(folder / "bare.tif", np.ones(grid.shape, "u1"), imagej=True)
    (folder / "notes.txt").write_text("not an image")
    found, log = run(imagej, "Check_Calibration.ijm", {"folder": folder})
    assert found == {"result": "1"}
    good = [line for line in log.splitlines() if line.startswith("ok")]
    assert len(good) == 1
    assert "good one.tif: 23 x 17 x 11, 1 channels, 0.004000 x 0.004000 x 0.005240" in good[0]
    assert "WRONG bare.tif" in log
    assert "no voxel size" in log


@pytest.mark.parametrize(
    "line",
    [
        '#@ Integer (label="n, value=3 is usual", value=7) n',
        '#@ Integer (value=7, label="n, value=3 is usual") n',
        '#@ Integer (choices={"3", "value=3"}, value=7) n',
        "\ufeff#@ Integer (value=7) n",
    ],
)
def test_the_default_is_the_value_and_nothing_else(line):
    assert with_parameters(line, {}) == "n = 7.0;"


UNITS = ["pixel", " ", "foo", "nm", "um", "µm", "μm", "micron", "Å", "mm", "inch", "m"]


def test_check_calibration_agrees_with_clemreg(imagej, tmp_path):
    """What clemreg refuses is wrong, and nothing else."""
    folder = tmp_path / "stacks"
    folder.mkdir()
    grid = hostile_grid()
    pixels = np.ones(grid.shape, "u1")
    for number, unit in enumerate([*UNITS, "Nanometers", "micrometre", "angstrom", "pm"]):
        size = 5 / NM_PER_UNIT.get(unit, 1.0)
        escaped = "".join(c if c.isascii() else f"\\u{ord(c):04X}" for c in unit)
        metadata = {"axes": "ZYX", "unit": escaped, "spacing": 2 * size}
        path = folder / f"unit {number}.tif"
        tifffile.imwrite(
            path, pixels, imagej=True, resolution=(1 / size, 1 / size), metadata=metadata
        )
    tifffile.imwrite(folder / "plain.tif", pixels)
    tifffile.imwrite(folder / "inch.tif", pixels, resolution=(300, 300), resolutionunit=2)
    far = replace(grid, spacing_nm=(5.0, 400.0, 400.0))
    write_tiff(folder / "flat.tif", Volume(pixels, far))
    write_tiff(folder / "whole.tif", Volume(pixels, grid))
    cut = f'open("{folder}/whole.tif"); makeRectangle(1, 2, 9, 8); run("Crop"); '
    assert imagej.macro(cut + f'saveAs("Tiff", "{folder}/cut.tif"); close();')["error"] is None
    found, log = run(imagej, "Check_Calibration.ijm", {"folder": folder})
    said = {line[6:].partition(":")[0]: line.startswith("ok") for line in log.splitlines()}
    truth = {path.name: opens(path) for path in folder.iterdir()}
    assert said == truth
    assert found == {"result": str(list(truth.values()).count(False))}
    assert 3 < sum(truth.values()) < len(truth) - 5


def opens(path):
    try:
        return bool(open_volume(path))
    except ClemregError:
        return False


@pytest.fixture
def batch(tmp_path):
    """Two stacks, a transform and a grid, in folders with hostile names."""
    rng = np.random.default_rng(4)
    folder = tmp_path / "in, (ü) $(touch x)"
    folder.mkdir()
    (tmp_path / "out; `y`").mkdir()
    em = Grid((11, 17, 23), (30.0, 20.0, 20.0), frame="em")
    transform = random_affine(rng)
    middle = transform.inverse()(em.centre_nm[None])[0]
    lm = Grid((6, 7, 8), (40.0, 30.0, 30.0), tuple(middle - [100, 90, 105]), "lm")
    write_volume(tmp_path / "lm.zarr", Volume(np.ones(lm.shape, "u1"), lm))
    write_transform(transform, tmp_path / "t.json")
    truth = {}
    for name in ("a.tif", "b c.tif"):
        volume = Volume(rng.integers(1, 200, em.shape).astype("u1"), em)
        write_tiff(folder / name, volume)
        truth[name] = warped_volume(transform, volume, lm).read()
    parameters = {
        "transform": tmp_path / "t.json",
        "input": folder,
        "onto": tmp_path / "lm.zarr",
        "output": tmp_path / "out; `y`",
        "python": python_of_this_clemreg(tmp_path),
    }
    return parameters, truth


def python_of_this_clemreg(folder):
    program = folder / "my env" / "bin" / "python"
    program.parent.mkdir(parents=True)
    path = environment("")["PYTHONPATH"]
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{path}" exec "{sys.executable}" -W ignore "$@"\n')
    program.chmod(0o755)
    return program


def test_apply_to_a_folder(imagej, batch, tmp_path):
    parameters, truth = batch
    environment = parameters["python"].parents[1]
    found, log = run(imagej, "Apply_Transform_to_Folder.ijm", parameters | {"python": environment})
    assert found == {"result": "2"}, log
    for name, expected in truth.items():
        assert expected.any()
        out = open_volume(parameters["output"] / name)
        np.testing.assert_array_equal(out.read(), expected)
    found, log = run(imagej, "Apply_Transform_to_Folder.ijm", parameters)
    assert found == {"result": "0"}
    assert log.count("there already") == 2
    (parameters["output"] / "a.tif").write_bytes(b"mine")
    found, log = run(imagej, "Apply_Transform_to_Folder.ijm", parameters | {"overwrite": "true"})
    assert found == {"result": "2"}, log
    np.testing.assert_array_equal(
        open_volume(parameters["output"] / "a.tif").read(), truth["a.tif"]
    )
    assert not (tmp_path / "x").exists()


def test_apply_to_a_folder_stops_with_clemregs_words(imagej, batch):
    parameters, _ = batch
    error = run(imagej, "Apply_Transform_to_Folder.ijm", parameters | {"transform": "/none.json"})
    assert "/none.json" in error
    assert "EXIT 1" in error


@pytest.mark.parametrize("ending", ["", "/"])
def test_apply_to_a_folder_does_not_replace_its_stacks(imagej, batch, ending):
    parameters, _ = batch
    before = {path.name: path.read_bytes() for path in parameters["input"].glob("*.tif")}
    same = {"output": f"{parameters['input']}{ending}", "overwrite": "true"}
    error = run(imagej, "Apply_Transform_to_Folder.ijm", parameters | same)
    assert "replace the stacks themselves" in error
    after = {path.name: path.read_bytes() for path in parameters["input"].glob("*.tif")}
    assert after == before


def command(display, *words):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "clemreg", "fiji", "macro", *map(str, words)],
        capture_output=True,
        text=True,
        env=environment(display),
        timeout=START_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_macro_from_the_command_line(display, tmp_path):
    """What it returns is the output; what it prints goes beside it."""
    script = tmp_path / "my macro.ijm"
    script.write_text(
        '#@ String (label="Who") who\n#@ Integer (value=2) n\n'
        'print("one, ü");\nprint("two");\nreturn who + n * 2;\n'
    )
    expected = (0, 'a "b", ü4\n', "one, ü\ntwo\n")
    assert command(display, script, 'who=a "b", ü') == expected


def test_the_command_ends_although_images_and_threads_go_on(display, tmp_path):
    """A stack window has a thread, a changed image would be asked about, a filter leaves a pool."""
    script = tmp_path / "m.ijm"
    script.write_text(
        'newImage("a", "8-bit ramp", 20, 20, 5);\n'
        'run("Gaussian Blur 3D...", "x=1 y=1 z=1");\n'
        'return "done";\n'
    )
    assert command(display, script) == (0, "done\n", "")


def test_macro_errors_end_with_1_and_name_the_line(display, tmp_path):
    """After what was printed before."""
    script = tmp_path / "bad.ijm"
    script.write_text('#@ String who\nprint("one");\nnonsense(who);\n')
    code, _, said = command(display, script, "who=me")
    assert code == 1
    assert said.startswith("one\nerror: macro, line 3")
    code, _, said = command(display, script, "me")
    assert code == 1
    assert "NAME=VALUE" in said
