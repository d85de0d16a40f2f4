"""The bridge: volumes to ImageJ and back, macros with parameters, one Java per process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from imagej_process import IJ_JAR, START_SECONDS, environment, missing_tools

from clemreg.errors import ConfigError, DependencyError, MissingError
from clemreg.fiji.jvm import JvmOptions, start_jvm
from clemreg.fiji.macros import with_parameters

pytestmark = pytest.mark.xdist_group("imagej")
NEEDS_IMAGEJ = pytest.mark.skipif(
    bool(missing_tools()), reason=f"not installed: {', '.join(missing_tools())}"
)
VOLUME = """
from clemreg.space.grid import Grid
from clemreg.volume import Labels, Volume
from clemreg.fiji.bridge import Look
from clemreg.fiji.images import from_imageplus, labels_from_imageplus, to_imageplus
from clemreg.testing import hostile_grid
grid = hostile_grid("em")
rng = np.random.default_rng(5)
def noise(dtype, channels=()):
    shape = ((len(channels),) if channels else ()) + grid.shape
    data = rng.uniform(1, 60000 if dtype == "uint16" else 250, shape).astype(dtype)
    return Volume(data, grid, channels, name="a, b")
"""


def run(imagej, code):
    """Run code beside ImageJ; raise its error."""
    answer = imagej.python(VOLUME + code)
    assert answer["error"] is None, answer["error"]
    return answer["answer"]


def refused(imagej, code):
    return imagej.python(VOLUME + code)["error"]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", ["()", '("mito", "er", "dna")'])
@pytest.mark.parametrize("unit", ["nm", "um"])
def test_there_and_back(imagej, dtype, channels, unit):
    code = f"""
given = noise("{dtype}", {channels})
back = from_imageplus(to_imageplus(given, Look(unit="{unit}")))
assert back.grid.shape == grid.shape and back.grid.frame == "em"
np.testing.assert_allclose(back.grid.spacing_nm, grid.spacing_nm, rtol=1e-12)
np.testing.assert_allclose(back.grid.origin_nm, grid.origin_nm)
assert back.dtype == given.dtype and back.channels == given.channels and back.name == "a, b"
np.testing.assert_array_equal(back.read(), given.read())
answer = "same"
"""
    assert run(imagej, code) == "same"


def test_what_imagej_saves_of_it_is_read_by_tifffile(imagej, tmp_path):
    code = f"""
import jpype
given = noise("uint16", ("mito", "er"))
image = to_imageplus(given, Look(unit="nm", colours=((255, 0, 0), (0, 128, 255)),
                                 windows=((5, 500), (6, 600))))
jpype.JClass("ij.io.FileSaver")(image).saveAsTiffStack(r"{tmp_path}/x.tif")
np.save(r"{tmp_path}/x.npy", given.read())
answer = [image.getNChannels(), image.getNSlices(), str(image.getCalibration().getUnit())]
"""
    assert run(imagej, code) == [2, 11, "nm"]
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        data, meta = tiff.asarray(), tiff.imagej_metadata
    truth = np.load(tmp_path / "x.npy")
    np.testing.assert_array_equal(data, np.moveaxis(truth, 0, 1))
    assert meta["unit"] == "nm"
    assert meta["spacing"] == 5.24
    assert list(meta["Ranges"]) == [5, 500, 6, 600]
    assert [lut[:, -1].tolist() for lut in meta["LUTs"]] == [[255, 0, 0], [0, 128, 255]]


def test_labels_keep_their_ids(imagej):
    code = """
ids = rng.integers(0, 2**20, grid.shape).astype("uint32")
back = labels_from_imageplus(to_imageplus(Labels(ids, grid)))
assert type(back) is Labels
np.testing.assert_array_equal(back.read(), ids)
answer = str(back.dtype)
"""
    assert run(imagej, code) == "int32"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("to_imageplus(Labels(np.full(grid.shape, 2**24 + 1, 'uint32'), grid))", "relabel"),
        ("to_imageplus(noise('uint8', ('a', 'b')), Look(colours=((1, 2, 3),)))", "2 channels"),
        ("ij.image('not open')", "no open image 'not open'"),
        (
            "import jpype; from_imageplus(jpype.JClass('ij.IJ').createImage('t','8-bit',5,5,3))",
            "no voxel size",
        ),
        (
            "import jpype; from_imageplus(jpype.JClass('ij.IJ').createImage('t','RGB',5,5,3))",
            "RGB",
        ),
        (
            "import jpype; from_imageplus(jpype.JClass('ij.IJ').createHyperStack("
            "'t', 5, 5, 1, 2, 3, 8))",
            "3 time points",
        ),
        ("ij.to_dataset(noise('uint8'))", "needs ImageJ2"),
        ("ij.run_script('/none.groovy')", "there is no script"),
    ],
)
def test_what_cannot_be_converted_is_refused(imagej, code, text):
    assert text in refused(imagej, code)


def test_show_then_take_back_by_title(imagej):
    code = """
given = noise("uint16")
ij.show(given)
np.testing.assert_array_equal(ij.image("a, b").read(), given.read())
answer = ij.run_macro('t = getTitle(); close(); return t;')
"""
    assert run(imagej, code) == "a, b"


def test_macros_take_parameters_and_no_text_becomes_code(imagej, tmp_path):
    hostile = 'x"; exec("touch", "/nonsense"); "${y} ]] > ../ \\ ünï\n2'
    macro = (
        '#@ String (label="What") what\n#@ Integer (value=4) n\n#@ Boolean (value=false) on\n'
        'return what + "|" + n + "|" + on;'
    )
    code = f"answer = ij.run_macro({macro!r}, {{'what': {hostile!r}, 'on': True}})"
    assert run(imagej, code) == hostile + "|4|1"
    script = tmp_path / "m.ijm"
    script.write_text("#@ Double x\nreturn d2s(x * 2, 2);\n")
    assert run(imagej, f"answer = ij.run_script({str(script)!r}, {{'x': 1.25}})") == {
        "result": "2.50"
    }
    error = refused(imagej, f"ij.run_script({str(script)!r}, {{}})")
    assert "needs a value for its parameter x" in error
    assert "no parameter y" in refused(
        imagej, f"ij.run_script({str(script)!r}, {{'x': 1, 'y': 1}})"
    )


def test_the_line_of_an_error_survives_the_parameters(imagej):
    macro = '#@ String a\n#@ String b\nprint(a);\nnonsense(b);\nprint("on");\n'
    error = refused(imagej, f"ij.run_macro({macro!r}, {{'a': 'x', 'b': 'y'}})")
    assert "line 4" in error


def test_a_second_other_java_is_refused(imagej):
    code = f"""
from pathlib import Path
from clemreg.fiji.bridge import JvmOptions, open_imagej
again = open_imagej(JvmOptions(ij_jar=Path({str(IJ_JAR)!r}), mode="hidden"))
assert again.version == ij.version
open_imagej(JvmOptions(ij_jar=Path({str(IJ_JAR)!r}), mode="headless"))
"""
    error = refused(imagej, code)
    assert "cannot be started again" in error
    assert "another Python process" in error


def child(code, **more):
    """Run Python with Java in a process of its own."""
    env = environment("", **more) | {"PYTHONWARNINGS": "ignore"}
    del env["DISPLAY"]
    words = [sys.executable, "-c", code]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=START_SECONDS, env=env, check=False
    )
    return done.stdout + done.stderr


@NEEDS_IMAGEJ
def test_a_folder_of_imagej_headless_without_display(tmp_path):
    fiji = tmp_path / "My Fiji, ü.app"
    (fiji / "jars").mkdir(parents=True)
    (fiji / "plugins").mkdir()
    shutil.copy(IJ_JAR, fiji / "jars" / "ij-1.53t.jar")
    said = child(
        f"""
import numpy as np
from pathlib import Path
from clemreg.fiji.bridge import JvmOptions, open_imagej
from clemreg.testing import hostile_grid
from clemreg.volume import Volume
ij = open_imagej(JvmOptions(fiji=Path({str(fiji)!r})))
grid = hostile_grid()
given = Volume(np.arange(grid.size, dtype="uint16").reshape(grid.shape), grid)
back = ij.from_imageplus(ij.to_imageplus(given))
print("same", np.array_equal(back.read(), given.read()), ij.version, ij.gateway)
for wrong in (lambda: ij.run_macro("return 1;"), lambda: ij.show(given)):
    try:
        wrong()
    except Exception as error:
        print(type(error).__name__, error)
"""
    )
    assert "same True 1.53t None" in said
    assert "ConfigError macros need a display" in said
    assert "ConfigError a headless ImageJ shows nothing" in said


@NEEDS_IMAGEJ
def test_java_of_somebody_else_is_used_if_it_has_imagej():
    code = """
import jpype
jpype.startJVM("-Xmx128m", classpath={classpath})
from clemreg.fiji.bridge import open_imagej
try:
    print("version", open_imagej().version)
except Exception as error:
    print(type(error).__name__, error)
"""
    assert "version 1.53" in child(code.format(classpath=[str(IJ_JAR)]))
    assert "ConfigError Java was started by something else" in child(code.format(classpath=[]))


@pytest.mark.skipif(sys.platform != "linux", reason="DISPLAY is of X11")
def test_without_a_display_the_text_says_so(monkeypatch, tmp_path):
    if shutil.which("java") is None:
        pytest.skip("not installed: default-jre")
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(MissingError, match="DISPLAY is not set"):
        start_jvm(JvmOptions(mode="hidden"))
    with pytest.raises(MissingError, match="not a Fiji folder"):
        start_jvm(JvmOptions(fiji=tmp_path))
    monkeypatch.setenv("CLEMREG_IJ_JAR", str(tmp_path / "ij.jar"))
    with pytest.raises(MissingError, match="CLEMREG_IJ_JAR"):
        start_jvm(JvmOptions())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(DependencyError, match="no Java"):
        start_jvm(JvmOptions())


def test_an_old_java_is_refused(monkeypatch, tmp_path):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_402\"' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", os.defpath)
    from clemreg.fiji.locate import find_java

    assert find_java().version == 8
    with pytest.raises(DependencyError, match="newer, found Java 8"):
        start_jvm(JvmOptions())


def test_modes_are_checked():
    with pytest.raises(ConfigError, match="no mode 'gui'"):
        JvmOptions(mode="gui")


def test_services_and_outputs_are_no_parameters():
    code = "#@ UIService ui\n#@output String x\n#@ File (required=false) f\nx = f;"
    assert with_parameters(code, {}) == '\n\nf = "";\nx = f;'
    with pytest.raises(ConfigError, match="not a number"):
        with_parameters("#@ Integer n", {"n": "1; exec()"})


def test_an_endpoint_that_cannot_be_had_is_one_clear_error(tmp_path):
    """As far as Maven: pyimagej's defaults would fetch a Java first, or crash without one."""
    pytest.importorskip("imagej")
    code = (
        "from clemreg.errors import DependencyError\n"
        "from clemreg.fiji.bridge import open_endpoint\n"
        "try:\n    open_endpoint('sc.fiji:there-is-none:0.0.1')\n"
        "except DependencyError as error:\n    print(error.message, error.hint, sep='\\n')\n"
    )
    env = {**environment(""), "HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True, text=True, env=env, timeout=START_SECONDS, check=False,
    )  # fmt: skip
    message, hint = done.stdout.strip().rsplit("\n", 1)
    assert message.startswith("sc.fiji:there-is-none:0.0.1 cannot be started: ")
    assert "there-is-none-0.0.1.pom" in message  # it was Maven that did not find it
    assert hint == "check the network, or name the folder of a Fiji instead"
    assert not list(tmp_path.rglob("*jdk*"))
    assert not list(tmp_path.rglob("*jre*"))
