"""What the Fiji journeys need, and how to get what is missing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from clemreg import __version__
from clemreg.errors import ClemregError
from clemreg.fiji.install import installed_version
from clemreg.fiji.locate import (
    FIJI_VARIABLE,
    OLDEST_JAVA,
    chosen_python,
    find_fiji,
    find_ij_jar,
    find_java,
    has_jar,
    require_fiji,
)
from clemreg.pipeline.voxels import Finding

_MODULES = (
    ("jpype", "the bridge from Python to ImageJ"),
    ("scyjava", "the bridge from Python to ImageJ"),
    ("imagej", "Fijis that Maven resolves (`open_endpoint`)"),
    ("appose", "the Appose tasks"),
)
_JARS = (
    ("bigdataviewer-core", "opening results in BigDataViewer", "update Fiji: Help > Update"),
    ("bigwarp_fiji", "landmarks in BigWarp", "update Fiji: Help > Update"),
    ("appose", "segmenting the image in front", "it comes with plugins that use Appose"),
    ("mobie-viewer-fiji", "MoBIE collections", "add the update site MoBIE"),
)


def check_fiji(folder: Path | None = None) -> tuple[Finding, ...]:
    """Look for Java, ImageJ, Fiji, its libraries, clemreg's scripts in it, and Python's modules.

    Parameters
    ----------
    folder
        A Fiji; default: the one that is found.

    Raises
    ------
    MissingError
        The folder is not a Fiji.
    """
    fiji = find_fiji() if folder is None else require_fiji(folder)
    return (*_check_fiji_folder(fiji), _check_python(), *_check_bridge(fiji), _check_display())


def _check_python() -> Finding:
    """Fiji started from its icon does not see the ``PATH`` of a terminal, on macOS above all."""
    subject, chosen = "Python of the menu scripts", chosen_python()
    choice = f"in Fiji, Plugins > CLEMReg > Setup and Doctor, choose {sys.executable}"
    if chosen is None:
        return Finding(
            "warning", subject, "not chosen; a Fiji started from its icon may not find it", choice
        )
    if not chosen.is_file():
        return Finding("warning", subject, f"{chosen}, which is not there", choice)
    return Finding("ok", subject, str(chosen))


def _check_fiji_folder(fiji: Path | None) -> Iterator[Finding]:
    if fiji is None:
        yield Finding(
            "warning",
            "Fiji",
            "not found",
            f"get it from fiji.sc, then use --fiji DIR or set {FIJI_VARIABLE}",
        )
        return
    yield Finding("ok", "Fiji", str(fiji))
    for name, use, hint in _JARS:
        if has_jar(fiji, name):
            yield Finding("ok", name, f"there, for {use}")
        else:
            yield Finding("warning", name, f"not in this Fiji, needed for {use}", hint)
    yield _check_scripts(fiji)


def _check_scripts(fiji: Path) -> Finding:
    command = f'clemreg fiji install --fiji "{fiji}"'
    try:
        version = installed_version(fiji)
    except ClemregError as error:
        return Finding("warning", "menu scripts", error.message, error.hint)
    if version is None:
        return Finding("warning", "menu scripts", "not installed", command)
    if version == "edited":
        return Finding("ok", "menu scripts", "installed, and edited by someone since")
    if version != __version__:
        return Finding(
            "warning", "menu scripts", f"of clemreg {version}, not {__version__}", command
        )
    return Finding("ok", "menu scripts", f"installed, of clemreg {version}")


def _check_bridge(fiji: Path | None) -> Iterator[Finding]:
    java = find_java()
    if java is None:
        yield Finding(
            "warning",
            "Java",
            "not found; the bridge from Python needs it, Fiji brings its own",
            "install a Java runtime, or set JAVA_HOME to the one inside Fiji",
        )
    elif java.version < OLDEST_JAVA:
        yield Finding(
            "warning",
            "Java",
            f"{java.version} at {java.path}; the bridge needs {OLDEST_JAVA}",
            "set JAVA_HOME to a newer one",
        )
    else:
        yield Finding("ok", "Java", f"{java.version} at {java.path}")
    yield _check_ij_jar(fiji)
    for module, use in _MODULES:
        if find_spec(module) is not None:
            yield Finding("ok", module, f"installed, for {use}")
        else:
            hint = "pip install 'clemreg-toolkit[fiji]'"
            yield Finding("warning", module, f"not installed, needed for {use}", hint)


def _check_ij_jar(fiji: Path | None) -> Finding:
    try:
        jar = find_ij_jar()
    except ClemregError as error:
        return Finding("warning", "ij.jar", error.message, error.hint)
    if jar is not None:
        return Finding("ok", "ij.jar", str(jar))
    if fiji is not None:
        return Finding("ok", "ij.jar", "none outside of Fiji, none needed")
    hint = "install a Fiji, or the package libij-java, or set CLEMREG_IJ_JAR"
    return Finding("warning", "ij.jar", "not found", hint)


def _check_display() -> Finding:
    if sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY"):
        return Finding("ok", "display", "there, macros can run")
    return Finding(
        "warning",
        "display",
        "none; without it only Fiji itself runs macros headless",
        "run under `xvfb-run -a`",
    )
