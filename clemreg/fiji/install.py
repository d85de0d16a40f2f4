"""Put the menu scripts into a Fiji, and take them out again: only files of clemreg are touched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from clemreg import __version__
from clemreg.errors import FormatError, MissingError, StorageError
from clemreg.fiji.locate import require_fiji
from clemreg.io.atomic import atomic_path, atomic_write_json, storage_errors

MANIFEST = "clemreg-files.json"
_BESIDE = Path(__file__).parent
_PLACES = (_BESIDE / "menu", _BESIDE.parents[1] / "macros" / "scripts")
_MENU = PurePosixPath("Plugins/CLEMReg")


@dataclass(frozen=True)
class Changes:
    """What an installation did.

    Attributes
    ----------
    folder
        ``scripts/Plugins/CLEMReg`` of the Fiji.
    written, removed
        Files, relative to the folder.
    kept
        Files that were left alone, or set aside, since a person made or edited them.
    """

    folder: Path
    written: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


def scripts_folder() -> Path:
    """Folder of the menu scripts that come with clemreg, laid out as Fiji's ``scripts``.

    Raises
    ------
    MissingError
        The package is incomplete.
    """
    for place in _PLACES:
        if (place / _MENU).is_dir():
            return place
    raise MissingError("the Fiji scripts of clemreg are not there", hint="install clemreg again")


def install(fiji: Path, *, replace: bool = False) -> Changes:
    """Copy the scripts into a Fiji; an older clemreg's files are brought up to date.

    Parameters
    ----------
    fiji
        Folder of the Fiji.
    replace
        Set aside (as ``NAME.mine``) and replace files that a person made or edited.

    Raises
    ------
    MissingError
        It is not a Fiji.
    StorageError
        There are files of somebody else by these names; nothing was written.
    """
    target = _target(fiji)
    new = _contents(scripts_folder() / _MENU)
    old = _read_manifest(target)
    foreign = _foreign(target, new, old)
    if foreign and not replace:
        raise StorageError(
            f"{target} holds files that clemreg did not write, or that were edited: "
            + ", ".join(foreign),
            hint="move them away, or use --replace, which keeps them as NAME.mine",
        )
    with storage_errors(target):
        for name in foreign:
            (target / name).replace(_free_name(target / f"{name}.mine"))
    for name, content in new.items():
        with atomic_path(target / name) as partial:
            partial.write_bytes(content)
    gone = [name for name in sorted(set(old) - set(new)) if _is_unchanged(target, name, old)]
    _remove(target, gone)
    hashes = {name: _digest(content) for name, content in new.items()}
    atomic_write_json(target / MANIFEST, {"clemreg": __version__, "files": hashes})
    return Changes(target, tuple(new), tuple(gone), tuple(foreign))


def uninstall(fiji: Path) -> Changes:
    """Remove what `install` wrote, and nothing else; edited files stay.

    Raises
    ------
    MissingError
        It is not a Fiji, or nothing is installed there.
    """
    target = _target(fiji)
    if not (target / MANIFEST).is_file():
        raise MissingError(f"no scripts of clemreg are installed in {target}")
    old = _read_manifest(target)
    unchanged = [name for name in sorted(old) if _is_unchanged(target, name, old)]
    edited = [name for name in sorted(old) if name not in unchanged and (target / name).exists()]
    _remove(target, [*unchanged, MANIFEST])
    return Changes(target, removed=tuple(unchanged), kept=tuple(edited))


def installed_version(fiji: Path) -> str | None:
    """Version of clemreg whose scripts a Fiji has, or None; ``"edited"`` if files differ.

    Raises
    ------
    MissingError
        It is not a Fiji.
    """
    target = _target(fiji)
    if not (target / MANIFEST).is_file():
        return None
    old = _read_manifest(target)
    if not all(_is_unchanged(target, name, old) for name in old):
        return "edited"
    record = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
    return str(record.get("clemreg"))


def _target(fiji: Path) -> Path:
    return require_fiji(fiji) / "scripts" / _MENU


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def _read_manifest(target: Path) -> dict[str, str]:
    """Hashes by file name; names that lead out of the folder are refused."""
    path = target / MANIFEST
    if not path.is_file():
        return {}
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        entries = {str(name): str(digest) for name, digest in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            f"{path} is damaged: {error}", hint=f"remove {target} by hand and install again"
        ) from error
    for name in entries:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name:
            raise FormatError(
                f"{path} names {name!r}, which is outside of {target}",
                hint=f"remove {target} by hand and install again",
            )
    return entries


def _foreign(target: Path, new: Mapping[str, bytes], old: Mapping[str, str]) -> list[str]:
    """Files in the way that are neither as installed before nor as they will be."""
    return [
        name
        for name, content in new.items()
        if (target / name).exists()
        and not _is_unchanged(target, name, old)
        and not _has_digest(target / name, _digest(content))
    ]


def _is_unchanged(target: Path, name: str, hashes: Mapping[str, str]) -> bool:
    return _has_digest(target / name, hashes.get(name, ""))


def _has_digest(path: Path, digest: str) -> bool:
    return path.is_file() and not path.is_symlink() and _digest(path.read_bytes()) == digest


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _free_name(path: Path) -> Path:
    number = 1
    free = path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}{number}")
    return free


def _remove(target: Path, names: list[str]) -> None:
    """Remove files, then the folders that are empty because of it."""
    with storage_errors(target):
        folders = {target}
        for name in names:
            (target / name).unlink(missing_ok=True)
            folders |= {target / parent for parent in PurePosixPath(name).parents}
        for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
