"""Where Java, ImageJ and Fiji are on this computer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from clemreg.errors import MissingError

IJ_JAR_VARIABLE = "CLEMREG_IJ_JAR"
FIJI_VARIABLE = "CLEMREG_FIJI"
OLDEST_JAVA = 11
_SYSTEM_JARS = (Path("/usr/share/java/ij.jar"),)
_JAVA_VERSION = re.compile(r'version "(?:1\.)?(\d+)')


@dataclass(frozen=True)
class Java:
    """A Java program.

    Attributes
    ----------
    path
        The executable.
    version
        Major version, for example 17.
    """

    path: Path
    version: int


def find_java() -> Java | None:
    """Find Java in ``JAVA_HOME``, then on ``PATH``; None if there is none that starts."""
    candidates = []
    if home := os.environ.get("JAVA_HOME"):
        name = "java.exe" if sys.platform == "win32" else "java"
        candidates.append(Path(home) / "bin" / name)
    if found := shutil.which("java"):
        candidates.append(Path(found))
    return next((java for java in map(_ask_java, candidates) if java is not None), None)


def _ask_java(path: Path) -> Java | None:
    try:
        done = subprocess.run(
            [str(path), "-version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _JAVA_VERSION.search(done.stderr + done.stdout)
    return Java(path, int(match.group(1))) if match else None


def find_ij_jar() -> Path | None:
    """Find an ImageJ jar without a Fiji: ``CLEMREG_IJ_JAR``, then the system's package.

    Raises
    ------
    MissingError
        The variable names a file that is not there.
    """
    if named := os.environ.get(IJ_JAR_VARIABLE):
        if not Path(named).is_file():
            raise MissingError(
                f"{IJ_JAR_VARIABLE}={named}: there is no such file",
                hint="let it name an ij.jar, or unset it",
            )
        return Path(named)
    return next((path for path in _SYSTEM_JARS if path.is_file()), None)


def find_fiji() -> Path | None:
    """Find a Fiji folder: ``CLEMREG_FIJI``, a launcher on ``PATH``, then the usual places."""
    candidates = [Path(named)] if (named := os.environ.get(FIJI_VARIABLE)) else []
    launchers = map(shutil.which, ("fiji", "ImageJ-linux64", "ImageJ-win64", "ImageJ-macosx"))
    candidates += [Path(launcher).resolve().parent for launcher in launchers if launcher]
    for place in (Path.home(), Path.home() / "Desktop", Path("/Applications"), Path("/opt")):
        candidates += [place / name for name in ("Fiji", "Fiji.app", "fiji")]
    return next((path for path in candidates if is_fiji(path)), None)


def is_fiji(folder: Path) -> bool:
    """Tell whether a folder holds a Fiji or ImageJ2: ``jars`` and ``plugins``."""
    return (folder / "jars").is_dir() and (folder / "plugins").is_dir()


def require_fiji(folder: Path) -> Path:
    """Return the folder of a Fiji, also when its parent or the macOS bundle is named.

    Raises
    ------
    MissingError
        It is not a Fiji; the hint says how to recognise one.
    """
    for candidate in (folder, folder / "Fiji.app", folder / "Fiji"):
        if is_fiji(candidate):
            return candidate.resolve()
    raise MissingError(
        f"{folder} is not a Fiji folder: it has no folders jars and plugins",
        hint="in Fiji, Help > Show Folder > ImageJ says where it is",
    )


def fiji_jars(fiji: Path) -> tuple[Path, ...]:
    """Every jar of a Fiji: below ``jars`` and ``plugins``."""
    return tuple(sorted([*(fiji / "jars").rglob("*.jar"), *(fiji / "plugins").rglob("*.jar")]))


def has_jar(fiji: Path, name: str) -> bool:
    """Tell whether a Fiji has a library, by the start of its file name (``appose``)."""
    pattern = re.compile(re.escape(name) + r"(?:[-_.]?\d.*)?\.jar")
    return any(pattern.fullmatch(path.name) for path in fiji_jars(fiji))
