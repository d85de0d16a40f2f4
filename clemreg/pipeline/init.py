"""Write a first configuration, after looking at both volumes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from clemreg.errors import ClemregError, StorageError, VoxelSizeError
from clemreg.io.atomic import atomic_write_text, make_folder
from clemreg.io.points import read_landmarks
from clemreg.io.volumes import open_volume
from clemreg.pipeline.light import light_channel, mito_channel
from clemreg.pipeline.voxels import (
    EM_VOXEL_NM,
    LM_VOXEL_NM,
    Finding,
    check_fields,
    check_voxels,
    hinting,
)
from clemreg.units import given_xyz_nm
from clemreg.volume import Volume


@dataclass(frozen=True)
class InitOptions:
    """What ``clemreg init`` was told.

    Attributes
    ----------
    em, lm
        Volumes.
    channel
        Mitochondria channel of the LM, or None to look for one by name.
    em_spacing, lm_spacing
        ``"x, y, z unit"`` overrides.
    landmarks
        Held-out landmark table.
    """

    em: str
    lm: str
    channel: str | None = None
    em_spacing: str | None = None
    lm_spacing: str | None = None
    landmarks: Path | None = None


def write_config(folder: Path, options: InitOptions) -> tuple[Path, list[str]]:
    """Write ``folder/clemreg.toml`` and return its path and what a user should know.

    Raises
    ------
    StorageError
        There is a configuration already.
    VoxelSizeError
        A voxel size is missing or cannot be right.
    MissingError, FormatError
        A volume or the landmarks are not there, or cannot be read.
    """
    path = folder / "clemreg.toml"
    if path.exists():
        raise StorageError(f"{path} exists already", hint="edit it, or choose another folder")
    em = _open(options.em, options.em_spacing, "em")
    lm = _open(options.lm, options.lm_spacing, "lm")
    if options.landmarks is not None:
        read_landmarks(options.landmarks)
    findings = [
        check_voxels("EM", em, EM_VOXEL_NM),
        check_voxels("LM", lm, LM_VOXEL_NM),
        check_fields(em, lm),
    ]
    _refuse_errors(findings)
    channel, note = _mito_channel(lm, options.channel)
    notes = [f"{f.subject}: {f.text}" + (f" ({f.hint})" if f.hint else "") for f in findings]
    make_folder(folder)
    atomic_write_text(path, tomli_w.dumps(_as_toml(folder, options, channel)))
    return path, notes + ([note] if note else [])


def _open(uri: str, spacing: str | None, frame: str) -> Volume:
    with hinting(f"--{frame}-spacing"):
        return open_volume(uri, spacing_nm=given_xyz_nm(spacing), frame=frame)


def _refuse_errors(findings: list[Finding]) -> None:
    for finding in findings:
        if finding.status == "error":
            raise VoxelSizeError(f"{finding.subject}: {finding.text}", hint=finding.hint)


def _mito_channel(lm: Volume, wanted: str | None) -> tuple[str | int, str]:
    if wanted is not None:
        light_channel(lm, wanted, {})
        return (wanted if wanted in lm.channels or not wanted.isdigit() else int(wanted)), ""
    if not lm.channels:
        return 0, ""
    name = mito_channel(lm)
    if name is not None:
        return name, f"mitochondria channel: {name!r}, by its name"
    raise ClemregError(
        f"which channel of the LM shows mitochondria? It has {list(lm.channels)}",
        hint="add --channel NAME",
    )


def _as_toml(folder: Path, options: InitOptions, channel: str | int) -> dict[str, Any]:
    config: dict[str, Any] = {
        "em": {"path": _relative(options.em, folder)},
        "lm": {"path": _relative(options.lm, folder), "channel": channel},
        "register": {"psf": "palm", "seed": 0},
        "output": {"dir": "run"},
    }
    for section, spacing in (("em", options.em_spacing), ("lm", options.lm_spacing)):
        if spacing:
            config[section]["voxel_size"] = spacing
    if options.landmarks:
        config["proof"] = {"landmarks": _relative(str(options.landmarks), folder)}
    return config


def _relative(uri: str, folder: Path) -> str:
    container, separator, inner = uri.partition("::")
    try:
        path = os.path.relpath(Path(container).resolve(), folder.resolve())
    except ValueError:  # another drive on Windows
        path = str(Path(container).resolve())
    return path.replace(os.sep, "/") + separator + inner
