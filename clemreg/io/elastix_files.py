"""elastix transform parameter files: text in, `Transform` out, and back.

An elastix transform maps points of the fixed image (LM) to points of the moving image (EM), xyz,
usually in micrometres. A file may name an initial transform; with "Compose" the whole is
``T(x) = T_this(T_initial(x))``. Files are only read as text: nothing in them is executed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import numpy as np
from numpy.typing import ArrayLike

from clemreg.errors import FormatError, FrameError, MissingError
from clemreg.io.atomic import atomic_write_text
from clemreg.io.tables import read_text
from clemreg.io.xyz import FloatArray, flip, flip_matrix
from clemreg.space.bspline import BSpline
from clemreg.space.grid import Grid
from clemreg.space.transform import Affine, Chain, Transform
from clemreg.units import nm_per

log = logging.getLogger(__name__)

# elastix 5.2 renamed the key; older readers know only the plural.
INITIAL_KEYS = ("InitialTransformParameterFileName", "InitialTransformParametersFileName")
NO_INITIAL = ("", "NoInitialTransform")
_LINE = re.compile(r"\(\s*(\w+)\s*(.*?)\s*\)\s*(?://.*)?")
_QUOTED = re.compile(r'"([^"]*)"|([^\s"]+)')
_WHAT = "elastix transform parameter file"


@dataclass(frozen=True)
class ParameterFile:
    """The keys and values of one elastix file.

    Attributes
    ----------
    path
        Where it was read.
    values
        Key to texts, quotes removed.
    """

    path: Path
    values: dict[str, tuple[str, ...]]

    def text(self, key: str, default: str | None = None) -> str:
        """Return the first value of `key`, else `default`; FormatError without either."""
        found = self.values.get(key)
        if found:
            return found[0]
        if default is None:
            raise FormatError(f"{self.path}: the key {key} is missing, this is no whole {_WHAT}")
        return default

    def numbers(
        self, key: str, count: int | None = None, default: ArrayLike | None = None
    ) -> FloatArray:
        """Return the numbers of `key` (float64); FormatError if their count is not `count`."""
        texts = self.values.get(key)
        if texts is None and default is not None:
            return np.asarray(default, dtype=np.float64)
        if texts is None:
            raise FormatError(f"{self.path}: the key {key} is missing, this is no whole {_WHAT}")
        try:
            numbers = np.array(texts, dtype=np.float64)
        except ValueError as error:
            raise FormatError(f"{self.path}: {key} holds text instead of numbers") from error
        if not np.isfinite(numbers).all():
            raise FormatError(f"{self.path}: {key} holds NaN or infinity")
        if count is not None and len(numbers) != count:
            raise FormatError(f"{self.path}: {key} has {len(numbers)} numbers, expected {count}")
        return numbers

    @property
    def initial(self) -> str | None:
        """The initial transform's file name as written, under either spelling, or None."""
        for key in INITIAL_KEYS:
            name = self.text(key, "")
            if name not in NO_INITIAL:
                return name
        return None


def looks_like_elastix(text: str) -> bool:
    """Tell whether text is an elastix transform file, going by its ``(Transform ...)`` line."""
    return re.search(r"^\s*\(\s*Transform\s+\"", text, re.MULTILINE) is not None


def read_parameter_file(path: str | Path) -> ParameterFile:
    """Parse one elastix file, without its initial transform.

    Raises
    ------
    FormatError
        It is no elastix transform file, a line cannot be understood, or a key is there twice.
    MissingError
        There is no such file.
    """
    file = Path(path)
    text = read_text(file, _WHAT)
    if not looks_like_elastix(text):
        raise FormatError(f"{file} is no {_WHAT}: it has no (Transform ...) line")
    values: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("//"):
            continue
        match = _LINE.fullmatch(stripped)
        if match is None:
            raise FormatError(
                f"{file}, line {number}: not '(Key value ...)' as in an {_WHAT}",
                hint="the file may be cut off; copy it again",
            )
        if match[1] in values:
            raise FormatError(f"{file}, line {number}: the key {match[1]} is there twice")
        values[match[1]] = _split(match[2])
    return ParameterFile(file, values)


def _split(text: str) -> tuple[str, ...]:
    if '"' not in text:
        return tuple(text.split())
    return tuple(quoted or plain for quoted, plain in _QUOTED.findall(text))


def read_elastix(
    path: str | Path, *, source: str = "lm", target: str = "em", unit: str = "um"
) -> Transform:
    """Read an elastix transform and the initial transforms that it names.

    Affine, Euler (both conventions of ComputeZYX), Similarity, Translation and cubic B-spline
    transforms are understood. A relative file name counts from the folder of the file that names
    it; if a file is not where its name says, one with the same name beside the naming file is
    taken, since elastix writes absolute paths that break when a result is moved.

    Parameters
    ----------
    path
        The last file of the chain.
    source, target
        Frames of the fixed and of the moving image.
    unit
        Unit of the images that elastix worked on.

    Returns
    -------
    Transform
        Maps points zyx nm of `source` to `target`.

    Raises
    ------
    FormatError
        A file is broken, of an unknown kind, names itself, or asks to "Add" its initial transform.
    MissingError
        A file is not there.
    """
    files = _follow(Path(path))
    names = [source, *(f"{source}:{i}" for i in range(1, len(files))), target]
    scale = nm_per(unit)
    parts = [
        _convert(file, scale, names[i], names[i + 1]) for i, file in enumerate(reversed(files))
    ]
    return parts[0] if len(parts) == 1 else Chain(tuple(parts))


def read_elastix_grid(path: str | Path, *, frame: str = "lm", unit: str = "um") -> Grid | None:
    """Return the fixed image's grid that an elastix file states; None if rotated or not stated."""
    file = read_parameter_file(path)
    direction = file.numbers("Direction", 9, np.eye(3).ravel())
    if "Size" not in file.values or not np.allclose(direction, np.eye(3).ravel()):
        return None
    scale = nm_per(unit)
    spacing = file.numbers("Spacing", 3)
    corner = file.numbers("Origin", 3) + file.numbers("Index", 3, (0, 0, 0)) * spacing
    z, y, x = (int(n) for n in flip(file.numbers("Size", 3)))
    return Grid((z, y, x), tuple(flip(spacing) * scale), tuple(flip(corner) * scale), frame)


def _follow(path: Path) -> list[ParameterFile]:
    """Read the file and its initial transforms, last applied first."""
    files: list[ParameterFile] = []
    seen: set[Path] = set()
    current: Path | None = path
    while current is not None:
        resolved = current.resolve()
        if resolved in seen:
            raise FormatError(
                f"{current} is its own initial transform, directly or through others",
                hint="correct InitialTransformParameterFileName in one of the files",
            )
        seen.add(resolved)
        file = read_parameter_file(current)
        files.append(file)
        current = _initial_path(file, seen)
    return files


def _initial_path(file: ParameterFile, seen: Collection[Path]) -> Path | None:
    """Find the file that is named, those already in the chain only where they are named exactly.

    elastix stores the name as it was given: from the folder in which it ran.
    """
    name = file.initial
    if name is None:
        return None
    how = file.text("HowToCombineTransforms", "Compose")
    if how != "Compose":
        raise FormatError(
            f"{file.path}: HowToCombineTransforms is {how!r}, only 'Compose' is understood",
            hint='register again with (HowToCombineTransforms "Compose")',
        )
    stated = file.path.parent / name
    if stated.is_file():
        return stated
    # A bare name is that of a file beside; another folder may hold an unrelated one.
    far = len(PureWindowsPath(name).parts) > 1
    around = [*file.path.absolute().parent.parents, Path.cwd()] if far else []
    for found in (folder / name for folder in around):
        if found.is_file() and found.resolve() not in seen:
            return found
    beside = file.path.parent / PureWindowsPath(name).name
    if beside.is_file() and beside.resolve() not in seen:
        log.warning("%s names %s, which is not there; %s is taken", file.path, name, beside)
        return beside
    raise MissingError(
        f"{file.path} names the initial transform {name!r}, which is not there",
        hint=f"put that file beside {file.path.name}",
    )


def _convert(file: ParameterFile, scale: float, source: str, target: str) -> Transform:
    kind = file.text("Transform")
    for key in ("FixedImageDimension", "MovingImageDimension"):
        if file.text(key, "3") != "3":
            raise FormatError(f"{file.path}: {key} is {file.text(key)}, only 3-D is understood")
    if kind in ("BSplineTransform", "RecursiveBSplineTransform"):
        return _bspline(file, scale, source, target)
    if kind not in _LINEAR:
        known = ", ".join([*_LINEAR, "BSplineTransform"])
        raise FormatError(
            f"{file.path}: cannot read a {kind}, only {known}",
            hint="convert it to a displacement field with transformix (-def all)",
        )
    count, read = _LINEAR[kind]
    _check_count(file, count)
    linear, offset = read(file, file.numbers("TransformParameters", count))
    return Affine.from_linear(flip_matrix(linear), flip(offset) * scale, source, target)


def _check_count(file: ParameterFile, count: int) -> None:
    stated = int(file.numbers("NumberOfParameters", 1, (count,))[0])
    if stated != count:
        raise FormatError(f"{file.path}: NumberOfParameters is {stated}, expected {count}")


_Linear = tuple[FloatArray, FloatArray]


def _about_centre(file: ParameterFile, linear: FloatArray, shift: FloatArray) -> _Linear:
    """``y = L (x - c) + c + t``, as matrix and offset."""
    centre = file.numbers("CenterOfRotationPoint", 3)
    return linear, shift + centre - linear @ centre


def _affine(file: ParameterFile, p: FloatArray) -> _Linear:
    return _about_centre(file, p[:9].reshape(3, 3), p[9:])


def _translation(_file: ParameterFile, p: FloatArray) -> _Linear:
    return np.eye(3), p


def _euler(file: ParameterFile, p: FloatArray) -> _Linear:
    cx, cy, cz = np.cos(p[:3])
    sx, sy, sz = np.sin(p[:3])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    zyx = file.text("ComputeZYX", "false") == "true"
    rotation = about_z @ about_y @ about_x if zyx else about_z @ about_x @ about_y
    return _about_centre(file, rotation, p[3:])


def _similarity(file: ParameterFile, p: FloatArray) -> _Linear:
    x, y, z = p[:3]  # vector part of a unit quaternion
    w = np.sqrt(max(0.0, 1.0 - x * x - y * y - z * z))
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    return _about_centre(file, p[6] * rotation, p[3:6])


_LINEAR: dict[str, tuple[int, Callable[[ParameterFile, FloatArray], _Linear]]] = {
    "AffineTransform": (12, _affine),
    "EulerTransform": (6, _euler),
    "SimilarityTransform": (7, _similarity),
    "TranslationTransform": (3, _translation),
}


def _bspline(file: ParameterFile, scale: float, source: str, target: str) -> BSpline:
    order = file.text("BSplineTransformSplineOrder", "3")
    if order != "3" or file.text("UseCyclicTransform", "false") != "false":
        raise FormatError(
            f"{file.path}: only cubic, not cyclic B-splines are understood (found order {order})",
            hint="register again with (BSplineTransformSplineOrder 3)",
        )
    size = file.numbers("GridSize", 3)
    if (size < 1).any() or (size != np.round(size)).any():
        raise FormatError(f"{file.path}: GridSize must be whole and positive, got {size}")
    x, y, z = (int(n) for n in size)
    _check_count(file, 3 * x * y * z)
    coefficients = file.numbers("TransformParameters", 3 * x * y * z).reshape(3, z, y, x)[::-1]
    # elastix writes directions column by column.
    direction = file.numbers("GridDirection", 9, np.eye(3).ravel()).reshape(3, 3).T
    spacing = file.numbers("GridSpacing", 3)
    first = direction @ (spacing * file.numbers("GridIndex", 3, (0, 0, 0)))
    return BSpline(
        coefficients_nm=coefficients * scale,
        grid_origin_nm=flip(file.numbers("GridOrigin", 3) + first) * scale,
        grid_spacing_nm=flip(spacing) * scale,
        source=source,
        target=target,
        direction=flip_matrix(direction),
    )


def fits_elastix(transform: Transform) -> bool:
    """Whether a transform is made of what elastix's files can hold."""
    parts = transform.parts if isinstance(transform, Chain) else (transform,)
    return all(isinstance(part, (Affine, BSpline)) for part in parts)


def write_elastix(
    transform: Transform, folder: str | Path, fixed_grid: Grid, *, unit: str = "um"
) -> tuple[Path, ...]:
    """Write ``TransformParameters.0.txt``, ``.1.txt`` and so on, for transformix.

    Parameters
    ----------
    transform
        An Affine, a BSpline, or a Chain of these, in the order in which they act.
    folder
        Made if it is not there. Files name each other without folder, so it can be moved.
    fixed_grid
        The grid on which transformix will make its result: that of the LM image.
    unit
        Unit of the images that transformix will be given.

    Returns
    -------
    tuple of Path
        The files, first applied first; give the last one to ``transformix -tp``.

    Raises
    ------
    FormatError
        A part is neither Affine nor BSpline.
    FrameError
        `fixed_grid` is not in the frame where the transform starts.
    StorageError
        It cannot be written.
    """
    if fixed_grid.frame != transform.source:
        raise FrameError(
            f"the fixed grid is in frame {fixed_grid.frame!r}, the transform starts in "
            f"{transform.source!r}"
        )
    parts = transform.parts if isinstance(transform, Chain) else (transform,)
    scale = nm_per(unit)
    bodies = [_body(part, scale) for part in parts]
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for index, body in enumerate(bodies):
        initial = written[-1].name if written else NO_INITIAL[1]
        path = target / f"TransformParameters.{index}.txt"
        atomic_write_text(path, "\n".join([*body, *_header(initial, fixed_grid, scale), ""]))
        written.append(path)
    return tuple(written)


def _join(numbers: FloatArray | Sequence[float]) -> str:
    return " ".join(format(v, ".17g") for v in np.ravel(np.asarray(numbers, dtype=np.float64)))


def _body(part: Transform, scale: float) -> list[str]:
    if isinstance(part, Affine):
        numbers = np.concatenate([flip_matrix(part.linear).ravel(), flip(part.offset_nm) / scale])
        return [
            '(Transform "AffineTransform")',
            "(NumberOfParameters 12)",
            f"(TransformParameters {_join(numbers)})",
            "(CenterOfRotationPoint 0 0 0)",
        ]
    if isinstance(part, BSpline):
        z, y, x = part.coefficients_nm.shape[1:]
        return [
            '(Transform "BSplineTransform")',
            f"(NumberOfParameters {part.coefficients_nm.size})",
            f"(TransformParameters {_join(part.coefficients_nm[::-1] / scale)})",
            f"(GridSize {x} {y} {z})",
            "(GridIndex 0 0 0)",
            f"(GridSpacing {_join(flip(part.grid_spacing_nm) / scale)})",
            f"(GridOrigin {_join(flip(part.grid_origin_nm) / scale)})",
            f"(GridDirection {_join(flip_matrix(part.direction).T)})",
            "(BSplineTransformSplineOrder 3)",
            '(UseCyclicTransform "false")',
        ]
    raise FormatError(
        f"elastix has no transform for a {type(part).__name__}, only for Affine and BSpline",
        hint="write an ITK .h5 file with a displacement field instead",
    )


def _header(initial: str, grid: Grid, scale: float) -> list[str]:
    z, y, x = grid.shape
    return [
        *(f'({key} "{initial}")' for key in INITIAL_KEYS),
        '(HowToCombineTransforms "Compose")',
        "(FixedImageDimension 3)",
        "(MovingImageDimension 3)",
        '(FixedInternalImagePixelType "float")',
        '(MovingInternalImagePixelType "float")',
        f"(Size {x} {y} {z})",
        "(Index 0 0 0)",
        f"(Spacing {_join(flip(grid.spacing_nm) / scale)})",
        f"(Origin {_join(flip(grid.origin_nm) / scale)})",
        f"(Direction {_join(np.eye(3))})",
        '(UseDirectionCosines "true")',
        '(ResampleInterpolator "FinalBSplineInterpolator")',
        "(FinalBSplineInterpolationOrder 3)",
        '(Resampler "DefaultResampler")',
        "(DefaultPixelValue 0)",
        '(ResultImageFormat "nrrd")',
        '(ResultImagePixelType "float")',
        '(CompressResultImage "false")',
    ]
