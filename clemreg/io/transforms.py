"""Read and write transforms: clemreg's own JSON, elastix, ITK, BigWarp, N5 fields.

clemreg's own format is in `clemreg.io.transform_json`, the others in `elastix_files`,
`itk_transforms` and `bigwarp`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clemreg.errors import (
    ClemregError,
    DataError,
    FormatError,
    FrameError,
    GridError,
    MissingError,
)
from clemreg.io.atomic import atomic_write_text
from clemreg.io.bigwarp import BigWarpFile, read_bigwarp
from clemreg.io.ecclem import is_ecclem_matrix, read_ecclem, read_ecclem_matrix
from clemreg.io.elastix_files import (
    looks_like_elastix,
    read_elastix,
    read_elastix_grid,
    write_elastix,
)
from clemreg.io.itk_transforms import SUFFIXES, read_itk, write_itk
from clemreg.io.n5_field import is_n5_field, read_n5_field, read_n5_field_grid
from clemreg.io.points import read_landmarks
from clemreg.io.tables import read_text
from clemreg.io.transform_json import (
    FORMAT,
    grid_from_json,
    transform_from_json,
    transform_to_json,
)
from clemreg.io.xyz import FloatArray
from clemreg.space.fits import fit_affine, fit_rigid, fit_similarity
from clemreg.space.grid import Grid
from clemreg.space.landmarks import Landmarks
from clemreg.space.tps import ThinPlateSpline
from clemreg.space.transform import Affine, Transform

__all__ = [
    "read_fixed_grid",
    "read_transform",
    "transform_from_json",
    "transform_to_json",
    "write_elastix",
    "write_itk",
    "write_transform",
]

_HEAD = 1 << 16


def read_transform(
    path: str | Path, *, source: str = "lm", target: str = "em", unit: str = "um"
) -> Transform:
    """Read a transform file of any kind that clemreg knows, told apart by suffix and content.

    Parameters
    ----------
    path
        clemreg's ``transform.json``; an elastix ``TransformParameters*.txt``, whose initial
        transform is followed; an ITK ``.h5``, ``.tfm``, ``.txt``; a landmark table or JSON of
        BigWarp, or a landmark table of one rater, from which a thin-plate spline is made; an N5
        displacement field, or a container that has one; an ec-CLEM matrix or fiducial XML.
    source, target
        Frames of the fixed (LM) and of the moving (EM) image. clemreg's own files say theirs.
    unit
        Unit of elastix, ITK, BigWarp and N5 files. clemreg's own files say theirs.

    Returns
    -------
    Transform
        Maps points zyx nm of `source` to `target`.

    Raises
    ------
    FormatError
        The file is of no known kind, or is broken.
    MissingError
        It, or an initial transform that it names, is not there.
    FrameError
        clemreg's own file says that it goes from `target` to `source`.
    """
    kind = _kind(Path(path))
    if kind == "json":
        document = _load_json(Path(path))
        if document.get("format") == FORMAT:
            found = transform_from_json(document, where=str(path))
            _require_direction(found, source, target, str(path))
            return found
        return _from_bigwarp(read_bigwarp(path, unit=unit), str(path), (source, target))
    if kind == "elastix":
        return read_elastix(path, source=source, target=target, unit=unit)
    if kind == "itk":
        return read_itk(path, source=source, target=target, unit=unit)
    if kind == "n5":
        return read_n5_field(path, source=source, target=target, unit=unit)
    if kind == "ecclem":
        return _from_ecclem(Path(path), (source, target), unit)
    landmarks = read_landmarks(path, unit=unit)
    return _from_bigwarp(BigWarpFile(landmarks), str(path), (source, target))


def _require_direction(found: Transform, source: str, target: str, path: str) -> None:
    if (found.source, found.target) == (target, source) and source != target:
        raise FrameError(
            f"{path} maps {target} to {source}, expected {source} to {target}",
            hint=f"in Python: write_transform(read_transform({path!r}, source={target!r}, "
            f"target={source!r}).inverse(), path)",
        )


def read_fixed_grid(path: str | Path, *, frame: str = "lm", unit: str = "um") -> Grid | None:
    """Return the LM grid that a transform file belongs to, or None if the file does not say.

    Parameters
    ----------
    path
        A transform file as for `read_transform`.
    frame, unit
        Frame of the grid and unit of the file, where the file does not say them.

    Raises
    ------
    FormatError, MissingError
        As `read_transform`.
    """
    kind = _kind(Path(path))
    try:
        if kind == "elastix":
            return read_elastix_grid(path, frame=frame, unit=unit)
        if kind == "n5":
            return read_n5_field_grid(path, frame=frame, unit=unit)
        record = _load_json(Path(path)).get("fixed_grid") if kind == "json" else None
        return None if record is None else grid_from_json(record)
    except GridError as error:
        raise FormatError(f"{path}: the fixed grid is wrong: {error.message}") from error


def write_transform(
    transform: Transform, path: str | Path, *, fixed_grid: Grid | None = None, unit: str = "um"
) -> None:
    """Write a transform; the suffix says the format.

    Parameters
    ----------
    transform
        Any transform of clemreg for ``.json``; see `write_itk` for ``.h5`` and ``.tfm``. For
        elastix, which needs several files, use `write_elastix`.
    path
        The file.
    fixed_grid
        The LM grid it belongs to; kept in ``.json`` so that it can be evaluated without the image.
    unit
        Unit of an ITK file; ``.json`` is always in nm.

    Raises
    ------
    FormatError
        The suffix is unknown, or the format has no equal for a part of the transform.
    StorageError
        It cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".json":
        text = json.dumps(
            transform_to_json(transform, fixed_grid=fixed_grid), indent=1, allow_nan=False
        )
        atomic_write_text(Path(path), text + "\n")
    elif suffix in SUFFIXES and suffix != ".txt":
        write_itk(transform, path, unit=unit)
    else:
        raise FormatError(
            f"cannot tell from {Path(path).name!r} how to write a transform",
            hint="use .json (clemreg), .h5 or .tfm (ITK); elastix files go into a folder",
        )


def _kind(path: Path) -> str:
    """One of json, elastix, itk, n5, ecclem, landmarks."""
    if is_n5_field(path):
        return "n5"
    if path.is_dir():
        raise FormatError(
            f"{path} is a folder without a displacement field",
            hint="name the transform file in it, for example transform.json",
        )
    if not path.is_file():
        raise MissingError(f"transform file {path} is not there", hint="check the path")
    suffix = path.suffix.lower()
    if suffix == ".json":
        return "json"
    if suffix in (".csv", ".tsv"):
        return "landmarks"
    if suffix == ".xml":
        return "ecclem"
    if suffix in (".h5", ".hdf5", ".tfm", ".mat", ".xfm"):
        return "itk"
    with path.open("rb") as stream:
        head = stream.read(_HEAD).decode("utf-8", errors="replace")
    if head.startswith("#Insight Transform File"):
        return "itk"
    if looks_like_elastix(head) or suffix == ".txt":
        return "elastix"
    raise FormatError(
        f"{path} is no transform file that clemreg knows",
        hint="use transform.json, elastix TransformParameters*.txt, ITK .h5/.tfm, or landmarks",
    )


def _load_json(path: Path) -> dict[str, Any]:
    try:
        # BigWarp leaves bytes of an older file behind the document.
        document, _ = json.JSONDecoder().raw_decode(read_text(path, "transform file").lstrip())
    except (ValueError, RecursionError) as error:
        if isinstance(error, ClemregError):
            raise
        raise FormatError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise FormatError(f"{path} holds no JSON object")
    return document


_FITS: dict[str, Callable[[FloatArray, FloatArray, str, str], Affine]] = {
    "Affine": fit_affine,
    "Similarity": fit_similarity,
    "Rotation": fit_rigid,
}


def _from_bigwarp(file: BigWarpFile, path: str, frames: tuple[str, str]) -> Transform:
    """Make what BigWarp makes: a spline target to moving, or a fit moving to target."""
    if file.masked:
        raise FormatError(
            f"{path} is a masked BigWarp transform, which is not the spline of its landmarks",
            hint="switch the mask off in BigWarp, or export a displacement field (N5)",
        )
    landmarks = _single_rater(file.landmarks, path).usable
    lm, em = landmarks.lm_nm, landmarks.em_nm
    if len(lm) < 4:
        raise DataError(
            f"{path} has {len(lm)} usable landmark pairs, a transform needs at least 4",
            hint="set more landmarks, or make them active",
        )
    if file.kind == "Translation":
        return Affine.translation((em - lm).mean(axis=0), *frames)
    if file.kind in _FITS:
        return _FITS[file.kind](em, lm, frames[1], frames[0]).inverse()
    return ThinPlateSpline(lm, em, *frames)


def _from_ecclem(path: Path, frames: tuple[str, str], unit: str) -> Transform:
    """Read the matrix of a result, or fit what ec-CLEM fits (LM to EM, least squares)."""
    if is_ecclem_matrix(path):
        return Affine(read_ecclem_matrix(path, unit=unit).matrix, *frames)
    file = read_ecclem(path, unit=unit)
    if file.kind == "SPLINE":
        return _from_bigwarp(BigWarpFile(file.landmarks), str(path), frames)
    fit = {"RIGID": fit_rigid, "SIMILARITY": fit_similarity, "AFFINE": fit_affine}[file.kind]
    return fit(file.landmarks.lm_nm, file.landmarks.em_nm, *frames)


def _single_rater(landmarks: Landmarks, path: str) -> Landmarks:
    raters = sorted(set(landmarks.rater))
    if len(raters) > 1:
        raise DataError(
            f"{path} has landmarks of several raters ({', '.join(raters)}); a thin-plate spline "
            "needs those of one",
            hint="write a table with the landmarks of one rater",
        )
    return landmarks
