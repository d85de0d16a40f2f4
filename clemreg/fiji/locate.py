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
_LAUNCHERS = (
    "fiji", "fiji-linux-x64", "fiji-linux-arm64", "fiji-windows-x64", "fiji-windows-arm64",
    "fiji-macos", "ImageJ-linux64", "ImageJ-win64", "ImageJ-macosx",
)  # fmt: skip
_PREFERENCE = ".clemreg.python="
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
    candidates += [Path(found).resolve() for name in _LAUNCHERS if (found := shutil.which(name))]
    for place in (Path.home(), Path.home() / "Desktop", Path("/Applications"), Path("/opt")):
        candidates += [place / name for name in ("Fiji", "Fiji.app", "fiji")]
    return next((fiji for path in candidates if (fiji := _fiji_at(path)) is not None), None)


def is_fiji(folder: Path) -> bool:
    """Tell whether a folder holds a Fiji or ImageJ2: ``jars`` and ``plugins``."""
    return (folder / "jars").is_dir() and (folder / "plugins").is_dir()


def require_fiji(folder: Path) -> Path:
    """Return the folder of a Fiji, also when its launcher, its macOS bundle or the parent is named.

    Raises
    ------
    MissingError
        It is not a Fiji; the hint says how to recognise one.
    """
    if (found := _fiji_at(folder)) is not None:
        return found
    raise MissingError(
        f"{folder} is not a Fiji folder: it has no folders jars and plugins",
        hint="in Fiji, Help > Show Folder > ImageJ says where it is",
    )


def _fiji_at(place: Path) -> Path | None:
    """Return the Fiji that a person means.

    Until 2025 everything lay in Fiji.app; since then that is, on macOS, only the launcher's bundle
    (``Fiji/Fiji.app/Contents/MacOS``), and jars lie beside it.
    """
    place = place.absolute()
    around = [place, place / "Fiji.app", place / "Fiji"]
    if place.is_file():
        around = [place.parent]
    bundle = next((path for path in (place, *place.parents) if path.suffix == ".app"), None)
    if bundle is not None:
        around += [bundle, bundle.parent]
    return next((path.resolve() for path in around if is_fiji(path)), None)


def chosen_python() -> Path | None:
    """Return the Python that *Setup and Doctor* remembered in ImageJ's preferences, if it did."""
    folder = Path.home() / ("Library/Preferences" if sys.platform == "darwin" else ".imagej")
    try:
        lines = (folder / "IJ_Prefs.txt").read_text(encoding="latin-1").splitlines()
    except OSError:
        return None
    values = (line.partition("=")[2] for line in lines if line.startswith(_PREFERENCE))
    # Java escapes what is not ASCII, and some signs.
    text = re.sub(r"\\u([0-9a-fA-F]{4})|\\(.)", _unescaped, next(values, ""))
    return Path(text) if text else None


def _unescaped(found: re.Match[str]) -> str:
    return chr(int(found[1], 16)) if found[1] else found[2]


def fiji_jars(fiji: Path) -> tuple[Path, ...]:
    """Every jar of a Fiji: below ``jars`` and ``plugins``."""
    return tuple(sorted([*(fiji / "jars").rglob("*.jar"), *(fiji / "plugins").rglob("*.jar")]))


def has_jar(fiji: Path, name: str) -> bool:
    """Tell whether a Fiji has a library, by the start of its file name (``appose``)."""
    pattern = re.compile(re.escape(name) + r"(?:[-_.]?\d.*)?\.jar")
    return any(pattern.fullmatch(path.name) for path in fiji_jars(fiji))
