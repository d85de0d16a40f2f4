"""The installer writes, updates and removes only its own files; the doctor says what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile

import pytest
from imagej_process import REPO, SCRIPTS, environment

from clemreg import __version__
from clemreg.cli.app import run_app
from clemreg.errors import FormatError, MissingError, StorageError
from clemreg.fiji.doctor import check_fiji
from clemreg.fiji.install import MANIFEST, install, installed_version, scripts_folder, uninstall
from clemreg.fiji.locate import find_fiji, has_jar, require_fiji

OURS = sorted(p.relative_to(SCRIPTS).as_posix() for p in SCRIPTS.rglob("*") if p.is_file())


@pytest.fixture
def fiji(tmp_path):
    """A Fiji with a script of somebody else."""
    folder = tmp_path / "My Fiji, ü.app"
    for name in ("jars", "plugins", "scripts/Plugins/Other"):
        (folder / name).mkdir(parents=True)
    (folder / "jars" / "ij-1.54p.jar").write_text("")
    (folder / "plugins" / "bigdataviewer-core-10.6.11.jar").write_text("")
    (folder / "scripts" / "Plugins" / "Other" / "mine.groovy").write_text("1")
    return folder


def everything(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def menu(fiji):
    return fiji / "scripts" / "Plugins" / "CLEMReg"


def test_install_then_uninstall_leaves_no_trace(fiji):
    before = everything(fiji)
    folders = {p for p in fiji.rglob("*") if p.is_dir()}
    changes = install(fiji)
    assert sorted(changes.written) == OURS
    assert "Register_EM_to_LM.groovy" in changes.written
    assert set(everything(menu(fiji))) == {*OURS, MANIFEST}
    assert installed_version(fiji) == __version__
    once = everything(fiji)
    again = install(fiji)
    assert (again.removed, again.kept) == ((), ())
    assert everything(fiji) == once
    assert set(uninstall(fiji).removed) == set(OURS)
    assert everything(fiji) == before
    assert {p for p in fiji.rglob("*") if p.is_dir()} == folders
    with pytest.raises(MissingError, match="no scripts of clemreg"):
        uninstall(fiji)


def test_an_edited_and_a_foreign_file_are_not_touched_unasked(fiji):
    install(fiji)
    edited = menu(fiji) / "Apply_Transform.groovy"
    edited.write_text("my own")
    (menu(fiji) / "friend.groovy").write_text("also mine")
    state = everything(fiji)
    with pytest.raises(StorageError, match=r"Apply_Transform\.groovy"):
        install(fiji)
    assert everything(fiji) == state
    assert installed_version(fiji) == "edited"
    changes = install(fiji, replace=True)
    assert changes.kept == ("Apply_Transform.groovy",)
    assert (menu(fiji) / "Apply_Transform.groovy.mine").read_text() == "my own"
    edited.write_text("my second")
    install(fiji, replace=True)
    assert (menu(fiji) / "Apply_Transform.groovy.mine2").read_text() == "my second"
    edited.write_text("my third")
    assert uninstall(fiji).kept == ("Apply_Transform.groovy",)
    assert edited.read_text() == "my third"
    assert (menu(fiji) / "friend.groovy").read_text() == "also mine"


def test_files_that_were_there_before_clemreg(fiji):
    menu(fiji).mkdir()
    (menu(fiji) / "launcher.lib").write_text("of somebody else")
    with pytest.raises(StorageError, match=r"launcher\.lib"):
        install(fiji)
    assert list(everything(menu(fiji))) == ["launcher.lib"]


def test_an_update_removes_what_is_no_more(fiji):
    install(fiji)
    manifest = json.loads((menu(fiji) / MANIFEST).read_text())
    (menu(fiji) / "Old.groovy").write_bytes(b"old")
    import hashlib

    manifest["files"]["Old.groovy"] = hashlib.sha256(b"old").hexdigest()
    (menu(fiji) / MANIFEST).write_text(json.dumps(manifest))
    assert install(fiji).removed == ("Old.groovy",)
    assert not (menu(fiji) / "Old.groovy").exists()


@pytest.mark.parametrize("name", ["../Other/mine.groovy", "/etc/passwd", "a\\..\\b", "C:x"])
def test_a_manifest_that_points_elsewhere_removes_nothing(fiji, name):
    install(fiji)
    manifest = {"clemreg": "0", "files": {name: "0" * 64}}
    (menu(fiji) / MANIFEST).write_text(json.dumps(manifest))
    state = everything(fiji)
    for action in (install, uninstall):
        with pytest.raises(FormatError, match="outside of"):
            action(fiji)
    assert everything(fiji) == state


def test_a_damaged_manifest(fiji):
    install(fiji)
    (menu(fiji) / MANIFEST).write_text("{")
    with pytest.raises(FormatError, match="is damaged"):
        uninstall(fiji)
    (scripts,) = [f for f in check_fiji(fiji) if f.subject == "menu scripts"]
    assert scripts.status == "warning"
    assert "damaged" in scripts.text


def test_what_is_no_fiji(tmp_path):
    with pytest.raises(MissingError, match="not a Fiji folder"):
        install(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_parent_of_a_bundle_will_do(fiji, tmp_path):
    fiji.rename(tmp_path / "Fiji.app")
    assert install(tmp_path).folder == tmp_path / "Fiji.app" / "scripts" / "Plugins" / "CLEMReg"


def test_doctor_names_what_is_missing_and_the_remedy(fiji, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CLEMREG_FIJI", str(fiji))
    assert find_fiji() == fiji
    assert run_app(["fiji", "doctor", "--json", str(tmp_path / "d.json")]) == 0
    said = capsys.readouterr().out
    assert "ok      bigdataviewer-core: there" in said
    assert "warning mobie-viewer-fiji: not in this Fiji" in said
    assert "add the update site MoBIE" in said
    assert f'clemreg fiji install --fiji "{fiji}"' in said
    findings = json.loads((tmp_path / "d.json").read_text())["findings"]
    assert {"Fiji", "Java", "ij.jar", "scyjava", "appose", "display"} <= {
        finding["subject"] for finding in findings
    }
    assert run_app(["fiji", "doctor", "--fiji", str(tmp_path / "none")]) == 1


LAYOUTS = {
    "until 2025": ("Fiji.app", "ImageJ-win64.exe"),
    "Linux": ("Fiji", "fiji-linux-x64"),
    "Windows": ("Fiji", "fiji-windows-x64.exe"),
    "macOS": ("Fiji", "Fiji.app/Contents/MacOS/fiji-macos-arm64"),
    "macOS until 2025": ("Fiji.app", "Contents/MacOS/ImageJ-macosx"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_way_to_name_a_fiji(tmp_path, layout):
    """The folder, its parent, the launcher, and on macOS the bundle that one drags there."""
    root, launcher = LAYOUTS[layout]
    fiji = tmp_path / "My Apps, ü" / root
    for name in ("jars", "plugins"):
        (fiji / name).mkdir(parents=True)
    program = fiji / launcher
    program.parent.mkdir(parents=True, exist_ok=True)
    program.touch()
    named = {fiji, fiji.parent, program}
    named |= {path for path in program.parents if fiji in path.parents}
    for place in named:
        assert require_fiji(place) == fiji, place
        install(place)
        assert installed_version(fiji) == __version__
        uninstall(place)
    with pytest.raises(MissingError, match="is not a Fiji folder"):
        require_fiji(tmp_path)


@pytest.mark.parametrize("name", ["fiji-linux-x64", "ImageJ-linux64", "fiji"])
def test_a_launcher_on_the_path_leads_to_its_fiji(fiji, tmp_path, monkeypatch, name):
    (fiji / name).touch(mode=0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / name).symlink_to(fiji / name)
    monkeypatch.delenv("CLEMREG_FIJI", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find_fiji() == fiji


def python_finding(monkeypatch, home):
    monkeypatch.setenv("HOME", str(home))
    return next(f for f in check_fiji() if f.subject == "Python of the menu scripts")


@pytest.mark.parametrize(
    ("system", "place"), [("linux", ".imagej"), ("darwin", "Library/Preferences")]
)
def test_doctor_says_which_python_fiji_starts(monkeypatch, tmp_path, system, place):
    """A Fiji started from its icon does not know the PATH of a terminal."""
    monkeypatch.setattr("clemreg.fiji.locate.sys.platform", system)
    none = python_finding(monkeypatch, tmp_path)
    assert none.status == "warning"
    assert none.hint.endswith(f"Setup and Doctor, choose {sys.executable}")
    (tmp_path / place).mkdir(parents=True)
    prefs = tmp_path / place / "IJ_Prefs.txt"
    prefs.write_bytes(b"# ImageJ\n\xff\xfe\x00broken\n.clemreg.python=/no\\:where/\\u00FC/python\n")
    gone = python_finding(monkeypatch, tmp_path)
    assert (gone.status, gone.text) == ("warning", "/no:where/ü/python, which is not there")
    prefs.write_text(f".other=1\n.clemreg.python={sys.executable}\n")
    assert python_finding(monkeypatch, tmp_path).status == "ok"


def test_doctor_and_an_old_java(monkeypatch, tmp_path):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\necho 'java version \"1.8.0_322\"' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    finding = next(f for f in check_fiji() if f.subject == "Java")
    assert (finding.status, finding.text) == ("warning", f"8 at {java}; the bridge needs 11")
    assert finding.hint == "set JAVA_HOME to a newer one"


def test_doctor_without_anything(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("JAVA_HOME", "CLEMREG_FIJI", "DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLEMREG_IJ_JAR", str(tmp_path / "no.jar"))
    monkeypatch.setattr("clemreg.fiji.doctor.find_spec", lambda _name: None)
    monkeypatch.setattr("sys.platform", "linux")
    found = {finding.subject: finding for finding in check_fiji()}
    assert {f.status for f in found.values()} == {"warning"}
    assert all(f.hint for f in found.values())
    assert "CLEMREG_IJ_JAR" in found["ij.jar"].text


def test_jars_are_told_apart_by_their_whole_name(fiji):
    assert has_jar(fiji, "ij")
    assert has_jar(fiji, "bigdataviewer-core")
    assert not has_jar(fiji, "bigdataviewer")
    assert not has_jar(fiji, "i")


def test_install_and_uninstall_from_the_command_line(fiji, capsys):
    assert run_app(["fiji", "install", "--fiji", str(fiji)]) == 0
    (menu(fiji) / "Apply_Transform.groovy").write_text("mine")
    assert run_app(["fiji", "install", "--fiji", str(fiji)]) == 1
    assert "--replace" in capsys.readouterr().err
    assert run_app(["fiji", "install", "--fiji", str(fiji), "--replace"]) == 0
    assert "kept your Apply_Transform.groovy" in capsys.readouterr().err
    (menu(fiji) / "Apply_Transform.groovy").write_text("mine")
    assert run_app(["fiji", "uninstall", "--fiji", str(fiji)]) == 0
    assert "left Apply_Transform.groovy" in capsys.readouterr().err


def test_the_command_line_does_not_load_java():
    code = (
        "import sys; from clemreg.cli.app import app\n"
        "from clemreg.fiji import bridge, doctor, install, images, macros, scripts, appose\n"
        "print([m for m in ('jpype', 'scyjava', 'imagej', 'appose') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env=environment(""),
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_scripts_are_in_the_wheel(tmp_path):
    words = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(tmp_path)]
    done = subprocess.run(
        [*words, "--quiet", str(REPO)], capture_output=True, text=True, check=False
    )
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("the build backend cannot be had here")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "unpacked")
    shipped = tmp_path / "unpacked" / "clemreg" / "fiji" / "menu" / "Plugins" / "CLEMReg"
    assert sorted(everything(shipped)) == OURS
    env = environment("") | {"PYTHONPATH": str(tmp_path / "unpacked")}
    code = "from clemreg.fiji.install import scripts_folder; print(scripts_folder())"
    words = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, env=env, cwd=tmp_path, check=True)
    assert done.stdout.strip() == str(shipped.parents[1])
    assert scripts_folder() == REPO / "macros" / "scripts"
