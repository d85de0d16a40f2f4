"""The launcher that all scripts share: success, failure, progress, cancelling, hostile paths."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from imagej_process import SCRIPTS

from clemreg.io.volumes import WriteOptions, write_volume
from clemreg.testing import hostile_grid
from clemreg.volume import Volume

pytestmark = pytest.mark.xdist_group("imagej")

HOSTILE = "a b, \"q\" 's' ${HOME} $(touch x) `y` ]]> <!ENTITY> %PATH% \\ \n --model & ; ü漢"

CHILD = """
import json, os, sys, time, subprocess
from pathlib import Path
said = json.dumps([sys.argv[1:], {k: os.environ.get(k) for k in
                   ("PYTHONHOME", "PYTHONPATH", "PYTHONUTF8", "CLEMREG_PROGRESS")}])
"""


@pytest.fixture
def pretender(tmp_path):
    """Make an executable called clemreg, in a folder with a hostile name, that runs some Python."""

    def make(body):
        folder = tmp_path / HOSTILE.replace("/", "")
        folder.mkdir(exist_ok=True)
        program = folder / "clemreg"
        program.write_text(f"#!{sys.executable}\n{CHILD}\n{body}\n", encoding="utf-8")
        program.chmod(0o755)
        return program

    return make


def segment(imagej, program, out, **behaviour):
    parameters = {"em": "/data/em.tif", "out": str(out), "python": str(program)}
    parameters |= behaviour.pop("parameters", {})
    return imagej.script(SCRIPTS / "Segment_Mitochondria.groovy", parameters, **behaviour)


def kinds(answer, kind):
    return [event[1:] for event in answer["events"] if event[0] == kind]


CHOSEN = {
    "chunk of 0.5": ("zarr", "v.zarr/s0/c/0/0/0", "v.zarr"),
    "chunk of a coarse level": ("zarr", "v.zarr/s1/c/0/0/0", "v.zarr"),
    "level of 0.5": ("zarr", "v.zarr/s1/zarr.json", "v.zarr/s1"),
    "chunk of 0.4": ("zarr2", "v.zarr/s0/0/0/0", "v.zarr"),
    "mark of 0.4": ("zarr2", "v.zarr/.zattrs", "v.zarr"),
    "chunk of N5": ("n5", "v.zarr/s0/0/0/0", "v.zarr"),
    "no zarr": (None, "2026/17", "2026/17"),
}


@pytest.mark.parametrize("case", CHOSEN)
def test_a_file_inside_a_zarr_stands_for_the_image(imagej, pretender, tmp_path, case):
    kind, chosen, volume = CHOSEN[case]
    if kind is not None:
        pixels = Volume(np.ones((11, 17, 23), "u1"), hostile_grid())
        write_volume(tmp_path / "v.zarr", pixels, format=kind, options=WriteOptions(levels=2))
        assert (tmp_path / chosen).is_file()
    program = pretender("print(said)")
    parameters = {"em": str(tmp_path / chosen)}
    answer = segment(imagej, program, tmp_path / "o.zarr", parameters=parameters)
    assert answer["error"] is None, answer
    (line,) = [text for (text,) in kinds(answer, "info") if text.startswith("[")]
    assert json.loads(line)[0][1] == str(tmp_path / volume)


def test_every_word_arrives_as_it_was(imagej, pretender, tmp_path):
    program = pretender("print(said)")
    out = tmp_path / HOSTILE / "x.zarr"
    em = tmp_path / f"{HOSTILE}.tif"
    answer = segment(imagej, program, out, parameters={"em": str(em), "spacing": "4, 4, 5.24 nm"})
    assert answer["error"] is None, answer
    (line,) = [text for (text,) in kinds(answer, "info") if text.startswith("[")]
    words, environment = json.loads(line)
    assert words == [
        "segment", str(em), "--out", str(out), "--model", "auto", "--spacing", "4, 4, 5.24 nm"
    ]  # fmt: skip
    assert environment["PYTHONHOME"] is None
    assert environment["PYTHONPATH"] is None
    assert environment["PYTHONUTF8"] == "1"
    assert environment["CLEMREG_PROGRESS"] == "lines"
    assert answer["outputs"] == {"prediction": str(out)}
    assert not (tmp_path / "x").exists()


def test_no_file_is_taken_for_an_option(imagej, pretender):
    parameters = {"em": "-o.tif", "model": "--help", "spacing": "--em-spacing"}
    answer = segment(imagej, pretender("print(said)"), "--out", parameters=parameters)
    (line,) = [text for (text,) in kinds(answer, "info") if text.startswith("[")]
    verb, em, option, out, *rest = json.loads(line)[0]
    assert (verb, option) == ("segment", "--out")
    assert rest == ["--model", "--help", "--spacing", "--em-spacing"]
    assert (Path(em).name, Path(out).name) == ("-o.tif", "--out")
    assert Path(em).is_absolute()
    assert Path(out).is_absolute()


def test_progress_reaches_status_bar_and_task(imagej, pretender, tmp_path):
    program = pretender(
        "for i in (1, 2, 3):\n"
        "    print(f'PROGRESS {i}/3 segment: block ü, 2 s left', file=sys.stderr)\n"
        "print('done')"
    )
    answer = segment(imagej, program, tmp_path / "x.zarr")
    assert kinds(answer, "progress") == [[i, 3, "segment: block ü, 2 s left"] for i in (1, 2, 3)]
    assert kinds(answer, "task") == [[1], [2], [3]]
    assert kinds(answer, "task start") == kinds(answer, "task finish")
    assert len(kinds(answer, "task start")) == 1
    assert ["done"] in kinds(answer, "info")


def test_the_error_text_is_shown(imagej, pretender, tmp_path):
    program = pretender(
        "print('much before')\n"
        "sys.stderr.write('error: voxel size missing\\nhint: give it\\n'); sys.exit(1)"
    )
    answer = segment(imagej, program, tmp_path / "x.zarr")
    assert answer["error"] is None
    assert kinds(answer, "dialog") == [["error: voxel size missing\nhint: give it", "CLEMReg"]]
    assert answer["outputs"] == {"prediction": None}
    headless = segment(imagej, program, tmp_path / "x.zarr", headless=True)
    assert headless["error"] == "error: voxel size missing\nhint: give it"


def test_a_long_traceback_is_cut_and_silence_is_named(imagej, pretender, tmp_path):
    program = pretender("[print('line', i) for i in range(100)]; sys.exit(3)")
    answer = segment(imagej, program, tmp_path / "x.zarr", headless=True)
    assert answer["error"].splitlines() == [f"line {i}" for i in range(75, 100)]
    program = pretender("sys.exit(3)")
    answer = segment(imagej, program, tmp_path / "x.zarr", headless=True)
    assert answer["error"] == "clemreg ended with exit code 3"


def test_cancelling_ends_the_program_and_its_children(imagej, pretender, tmp_path):
    pids = tmp_path / "pids"
    program = pretender(
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(900)'])\n"
        f"Path({str(pids)!r}).write_text(f'{{os.getpid()}} {{child.pid}}')\n"
        "print('PROGRESS 1/9 begun', flush=True)\n"
        "time.sleep(900)"  # longer than the runner waits
    )
    answer = segment(imagej, program, tmp_path / "x.zarr", cancelAfter=1)
    assert answer["error"] is None
    assert ["clemreg: cancelled"] in kinds(answer, "status")
    assert kinds(answer, "dialog") == []
    assert answer["outputs"] == {"prediction": None}
    for pid in map(int, pids.read_text().split()):
        assert ended(pid), f"process {pid} runs on"


def ended(pid):
    for _ in range(600):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.1)
    return False


def test_nothing_is_replaced_unasked(imagej, pretender, tmp_path):
    program = pretender("print(said)")
    out = tmp_path / "x.zarr"
    out.mkdir()
    (out / "zarr.json").write_text("mine")
    answer = segment(imagej, program, out)
    assert "exists already" in kinds(answer, "dialog")[0][0]
    assert not any(text.startswith("[") for (text,) in kinds(answer, "info"))
    answer = segment(imagej, program, out, parameters={"replace": True})
    assert answer["outputs"] == {"prediction": str(out)}


def test_a_file_inside_a_zarr_means_the_zarr(imagej, pretender, tmp_path):
    program = pretender("print(said)")
    em = tmp_path / "em.zarr" / "zarr.json"
    answer = segment(imagej, program, tmp_path / "x.zarr", parameters={"em": str(em)})
    (line,) = [text for (text,) in kinds(answer, "info") if text.startswith("[")]
    assert json.loads(line)[0][1] == str(tmp_path / "em.zarr")


def test_a_python_that_is_not_there(imagej, tmp_path):
    answer = segment(imagej, tmp_path / "no python", tmp_path / "x.zarr", headless=True)
    assert "no Python at" in answer["error"]
    assert "Setup and Doctor" in answer["error"]


def test_a_python_without_clemreg(imagej, tmp_path):
    python = tmp_path / "env" / "bin" / "python3"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho $0: No module named clemreg >&2\nexit 1\n")
    python.chmod(0o755)
    answer = segment(imagej, tmp_path / "env", tmp_path / "x.zarr", headless=True)
    assert answer["error"].startswith("This Python has no clemreg: pip install")


@pytest.mark.parametrize(("target", "verb"), [("BigDataViewer", "bdv"), ("MoBIE", "mobie")])
def test_what_the_export_script_asks_for(imagej, pretender, tmp_path, target, verb):
    parameters = {
        "run": str(tmp_path),
        "out": str(tmp_path / "x"),
        "target": target,
        "python": str(pretender("print(said)")),
    }
    answer = imagej.script(SCRIPTS / "Export_to_BigDataViewer_or_MoBIE.groovy", parameters)
    (line,) = [text for (text,) in kinds(answer, "info") if text.startswith("[")]
    assert json.loads(line)[0] == ["export", verb, str(tmp_path), "--out", str(tmp_path / "x")]
    assert answer["outputs"] == {"exported": str(tmp_path / "x")}
    (tmp_path / "x").write_text("mine")
    script = SCRIPTS / "Export_to_BigDataViewer_or_MoBIE.groovy"
    refused = imagej.script(script, parameters)
    assert "exists already" in kinds(refused, "dialog")[0][0]
    answer = imagej.script(script, parameters | {"replace": True})
    (line,) = [text for (text,) in kinds(answer, "info") if text.startswith("[")]
    assert json.loads(line)[0][-1] == "--overwrite"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")  # as Register EM to LM leaves it
    answer = imagej.script(script, parameters | {"replace": True})
    (line,) = [text for (text,) in kinds(answer, "info") if text.startswith("[")]
    assert json.loads(line)[0][2] == str(tmp_path / "run")


EVERY = {
    "Apply_Transform": {"transform": "/d/t.json", "subject": "/d/em.tif", "out": "OUT"},
    "Export_to_BigDataViewer_or_MoBIE": {"run": "/d/run", "out": "OUT"},
    "Jacobian_Map": {"transform": "/d/t.json", "lm": "/d/lm.tif", "out": "OUT"},
    "Landmark_Accuracy_Report": {"transform": "/d/t.json", "table": "/d/marks.csv"},
    "Register_EM_to_LM": {"em": "/d/em.zarr", "lm": "/d/lm.zarr", "out": "OUT"},
    "Segment_Mitochondria": {"em": "/d/em.tif", "out": "OUT"},
    "Setup_and_Doctor": {},
}


def run_every(imagej, name, program, out, **behaviour):
    chosen = {k: str(out) if v == "OUT" else v for k, v in EVERY[name].items()}
    chosen["interpreter" if name == "Setup_and_Doctor" else "python"] = str(program)
    return imagej.script(SCRIPTS / f"{name}.groovy", chosen, **behaviour)


def test_every_script_that_starts_clemreg_is_listed():
    others = {"Open_Result_in_BigDataViewer", "Segment_Active_Image_by_Appose"}
    assert {path.stem for path in SCRIPTS.glob("*.groovy")} == set(EVERY) | others


@pytest.mark.parametrize("name", EVERY)
def test_every_script_says_what_failed(imagej, pretender, tmp_path, name):
    text = 'error: "no" ]]> ${such} thing\nhint: look'
    program = pretender(f"sys.stderr.write({text!r} + chr(10)); sys.exit(1)")
    answer = run_every(imagej, name, program, tmp_path / "out")
    assert answer["error"] is None
    assert kinds(answer, "dialog") == [[text, "CLEMReg"]]
    assert not any(answer["outputs"].values())
    assert run_every(imagej, name, program, tmp_path / "out", headless=True)["error"] == text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", EVERY)
def test_every_script_shows_progress_and_can_be_cancelled(imagej, pretender, tmp_path, name):
    program = pretender("print('PROGRESS 1/9 begun', flush=True); time.sleep(900)")
    answer = run_every(imagej, name, program, tmp_path / "out", cancelAfter=1)
    assert [1, 9, "begun"] in kinds(answer, "progress")
    assert ["clemreg: cancelled"] in kinds(answer, "status")
    assert (answer["error"], kinds(answer, "dialog")) == (None, [])
    assert not any(answer["outputs"].values())


def typed_by_a_person(name, folder):
    """A hostile value for each parameter of a script that is a file or a free text."""
    values = {}
    for line in (SCRIPTS / f"{name}.groovy").read_text().splitlines():
        match = re.fullmatch(r"#@ (File|String) \((.*)\) (\w+)", line)
        if match and not re.search("choices|MESSAGE|INVISIBLE", match[2]):
            text = f"--{match[3]} {HOSTILE}"
            values[match[3]] = str(folder / text) if match[1] == "File" else text
    return values


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"Setup_and_Doctor"}))
def test_every_parameter_stays_one_word(imagej, pretender, tmp_path, name):
    program = pretender("print(said)")
    before = set(tmp_path.rglob("*"))
    values = typed_by_a_person(name, tmp_path / "files")
    assert set(EVERY[name]) <= set(values)
    script = SCRIPTS / f"{name}.groovy"
    answer = imagej.script(script, values | {"python": str(program)})
    assert answer["error"] is None, answer
    calls = [json.loads(text)[0] for (text,) in kinds(answer, "info") if text.startswith("[")]
    words = [word for call in calls for word in call]
    for value in values.values():
        ways = [word for word in words if word == value or word.endswith(f"={value}")]
        assert ways, value
        assert all(re.fullmatch(r"([a-z_.]+=)?", word.removesuffix(value)) for word in ways)
    assert set(tmp_path.rglob("*")) == before
    assert not Path("x").exists()


INTERPRETER = """
#@ String given
#@ String saved
#@ String variable
#@ String path
#@ String home
#@output String found
ij.Prefs.set("clemreg.python", saved)
def shell = new GroovyShell(getClass().classLoader, binding)
def launcher = shell.evaluate(new File("LAUNCHER"))
def kind = launcher.class.classLoader.loadClass("Interpreter")
try {
    def environment = [CLEMREG_PYTHON: variable, PATH: path] + (home ? [HOME: home] : [:])
    found = kind.command(given, environment).join("|")
} finally {
    ij.Prefs.set("clemreg.python", "")
}
"""


@pytest.fixture
def places(tmp_path):
    """Environments as Linux, conda on Windows and venv on Windows lay them out."""
    files = {
        "given": "bin/python",
        "saved": "python.exe",
        "variable": "Scripts/python.exe",
        "path one": "python3",
        "path two": "clemreg",
        "WindowsApps": "python3",
        "home": ".local/bin/clemreg",
    }
    for folder, name in files.items():
        file = tmp_path / folder / name
        file.parent.mkdir(parents=True)
        file.write_text("")
        file.chmod(0o755)
    script = tmp_path / "interpreter.groovy"
    script.write_text(INTERPRETER.replace("LAUNCHER", str(SCRIPTS / "launcher.lib")))
    return script, {name: str(tmp_path / name) for name in files}


@pytest.mark.parametrize(
    ("given", "saved", "variable", "path", "home", "expected"),
    [
        ("given", "saved", "variable", ["path one"], "", "given/bin/python|-m|clemreg"),
        ("", "saved", "variable", ["path one"], "", "saved/python.exe|-m|clemreg"),
        ("", "", "variable", ["path one"], "", "variable/Scripts/python.exe|-m|clemreg"),
        ("", "", "", ["path one"], "", "path one/python3|-m|clemreg"),
        ("", "", "", ["path one", "path two"], "home", "path two/clemreg"),
        ("", "", "", ["path one"], "home", "home/.local/bin/clemreg"),
        ("", "", "", ["WindowsApps", "path one"], "", "path one/python3|-m|clemreg"),
        ("", "", "", [], "", "No clemreg and no Python on the PATH"),
    ],
)
def test_which_python(imagej, places, given, saved, variable, path, home, expected):
    script, folders = places
    named = {"given": given, "saved": saved, "variable": variable, "home": home}
    values = {key: folders.get(value, "") for key, value in named.items()}
    values["path"] = os.pathsep.join(folders[name] for name in path)
    answer = imagej.script(script, values)
    assert expected in (answer["outputs"].get("found") or answer["error"])
