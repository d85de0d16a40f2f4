"""ITK transform files (``.h5``, ``.tfm``, ``.mat``, ``.xfm``, ``.txt``) through SimpleITK.

Like elastix, ITK maps points of the fixed image (LM) to the moving image (EM), xyz, and a composite
applies its *last* member first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clemreg.errors import FormatError, MissingError
from clemreg.io.atomic import atomic_path
from clemreg.io.tables import read_text
from clemreg.io.xyz import FloatArray, flip, flip_matrix
from clemreg.space.bspline import BSpline
from clemreg.space.field import DisplacementField
from clemreg.space.grid import Grid
from clemreg.space.transform import Affine, Chain, Transform
from clemreg.units import nm_per

SUFFIXES = (".h5", ".hdf5", ".tfm", ".mat", ".xfm", ".txt")


def read_itk(
    path: str | Path, *, source: str = "lm", target: str = "em", unit: str = "um"
) -> Transform:
    """Read a linear, cubic B-spline, displacement field or composite transform.

    Parameters
    ----------
    path
        The file.
    source, target
        Frames of the fixed and of the moving image.
    unit
        Unit of the images for which the transform was made.

    Returns
    -------
    Transform
        Maps points zyx nm of `source` to `target`. A displacement field holds its nearest edge
        value outside its grid, where ITK would not displace at all.

    Raises
    ------
    FormatError
        It is no ITK transform, not 3-D, or of a kind that clemreg has no equal for.
    MissingError
        There is no such file.
    """
    import SimpleITK as sitk

    if not Path(path).is_file():
        raise MissingError(f"transform file {path} is not there", hint="check the path")
    _check(Path(path))
    try:
        read = sitk.ReadTransform(str(path))
    except (RuntimeError, UnicodeDecodeError) as error:
        reason = next((s for s in reversed(str(error).splitlines()) if s.strip()), "")
        raise FormatError(f"{path} is no transform file that ITK can read: {reason}") from error
    members = _applied_in_order(read)
    names = [source, *(f"{source}:{i}" for i in range(1, len(members))), target]
    parts = [
        _convert(Path(path), member, nm_per(unit), (names[i], names[i + 1]))
        for i, member in enumerate(members)
    ]
    return parts[0] if len(parts) == 1 else Chain(tuple(parts))


@dataclass(frozen=True, eq=False)
class _Member:
    """One transform as it stands in a file."""

    kind: str
    fixed: FloatArray
    parameters: FloatArray


def _check(path: Path) -> None:
    """Raise FormatError for what ITK would take without a word, or never come back from.

    Of several transforms side by side ITK reads the first and drops the rest, and a damaged size of
    a lattice can keep it busy for ever.
    """
    try:
        members = list(_members(path))
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, IndexError) as error:
        raise FormatError(f"{path} is no transform file that ITK can read: {error}") from error
    if len(members) > 1 and not members[0].kind.startswith("CompositeTransform"):
        raise FormatError(
            f"{path} holds {len(members)} transforms side by side, not said how to chain",
            hint="write them as one CompositeTransform",
        )
    for member in members:
        if not (np.isfinite(member.fixed).all() and np.isfinite(member.parameters).all()):
            raise FormatError(f"{path}: the {member.kind} holds NaN or infinity")
        if member.kind.startswith(("BSpline", "DisplacementField")):
            n = int(member.kind.split("_")[2])
            sizes = member.fixed[:n]
            whole = len(sizes) == n and (sizes >= 1).all() and (sizes == np.round(sizes)).all()
            if not whole or math.prod(map(int, sizes)) * n != len(member.parameters):
                raise FormatError(
                    f"{path}: the {member.kind} has {len(member.parameters)} parameters, which do "
                    f"not fit its lattice of {sizes.tolist()}"
                )


def _members(path: Path) -> Iterator[_Member]:
    """Yield the transforms of an HDF5 or text file; none for ITK's other formats."""
    if path.suffix.lower() in (".h5", ".hdf5"):
        import h5py

        with h5py.File(path) as file:
            groups = file["TransformGroup"]
            for key in sorted(groups, key=int):
                kind = groups[key]["TransformType"].asstr()[0]
                empty = np.empty(0)
                numbers = [
                    np.asarray(groups[key].get(name, empty), dtype=np.float64)
                    for name in ("TransformFixedParameters", "TransformParameters")
                ]
                yield _Member(kind, *numbers)
    elif path.suffix.lower() in (".tfm", ".txt"):
        kinds: list[str] = []
        lines: dict[str, list[FloatArray]] = {"Parameters": [], "FixedParameters": []}
        for line in read_text(path, "ITK transform file").splitlines():
            key, _, value = line.partition(":")
            if key == "Transform":
                kinds.append(value.strip())
                for numbers in lines.values():
                    numbers.append(np.empty(0))
            elif key in lines:
                lines[key][-1] = np.array(value.split(), dtype=np.float64)
        yield from map(_Member, kinds, lines["FixedParameters"], lines["Parameters"])


def _applied_in_order(transform: Any) -> list[Any]:
    """Take composites apart: simple transforms, first applied first."""
    import SimpleITK as sitk

    if transform.GetTransformEnum() != sitk.sitkComposite:
        return [transform.Downcast()]
    composite = sitk.CompositeTransform(transform)
    count = composite.GetNumberOfTransforms()
    nested = (composite.GetNthTransform(i) for i in reversed(range(count)))
    return [simple for member in nested for simple in _applied_in_order(member)]


def _convert(path: Path, member: Any, scale: float, frames: tuple[str, str]) -> Transform:
    import SimpleITK as sitk

    if member.GetDimension() != 3:
        raise FormatError(f"{path} holds a {member.GetDimension()}-D transform, expected 3-D")
    if member.IsLinear():
        return _linear(member, scale, frames)
    kind = member.GetTransformEnum()
    if kind == sitk.sitkBSplineTransform:
        return _bspline(path, member, scale, frames)
    if kind == sitk.sitkDisplacementField:
        return _field(member, scale, frames)
    raise FormatError(
        f"{path} holds a {member.GetName()}, which clemreg cannot read",
        hint="linear, cubic B-spline, displacement field and composite transforms can be read",
    )


def _linear(member: Any, scale: float, frames: tuple[str, str]) -> Affine:
    """Any linear transform, known from where it sends the origin and the three axes."""
    offset = np.array(member.TransformPoint((0.0, 0.0, 0.0)))
    linear = np.stack(
        [np.array(member.TransformPoint(tuple(axis))) - offset for axis in np.eye(3)], axis=1
    )
    return Affine.from_linear(flip_matrix(linear), flip(offset) * scale, *frames)


def _bspline(path: Path, member: Any, scale: float, frames: tuple[str, str]) -> BSpline:
    if member.GetOrder() != 3:
        raise FormatError(f"{path}: B-spline of order {member.GetOrder()}, only 3 can be read")
    fixed = np.array(member.GetFixedParameters())
    x, y, z = (int(n) for n in fixed[:3])
    coefficients = np.array(member.GetParameters()).reshape(3, z, y, x)[::-1]
    return BSpline(
        coefficients_nm=coefficients * scale,
        grid_origin_nm=flip(fixed[3:6]) * scale,
        grid_spacing_nm=flip(fixed[6:9]) * scale,
        source=frames[0],
        target=frames[1],
        direction=flip_matrix(fixed[9:18].reshape(3, 3)),
    )


def _field(member: Any, scale: float, frames: tuple[str, str]) -> Transform:
    import SimpleITK as sitk

    image = sitk.DisplacementFieldTransform(member).GetDisplacementField()
    direction = flip_matrix(np.array(image.GetDirection()).reshape(3, 3))
    displacement = np.moveaxis(flip(sitk.GetArrayFromImage(image)) * scale, -1, 0)
    spacing = flip(image.GetSpacing()) * scale
    origin = flip(image.GetOrigin()) * scale
    if np.allclose(direction, np.eye(3), atol=1e-12):
        return _on_lattice(displacement, spacing, origin, frames)
    # A rotated lattice: turn into its axes, displace there, turn back.
    before, after = f"{frames[0]}:lattice", f"{frames[1]}:lattice"
    to_lattice = Affine.from_linear(direction.T, np.zeros(3), frames[0], before)
    turned = np.einsum("ij,jzyx->izyx", direction.T, displacement)
    field = _on_lattice(turned, spacing, direction.T @ origin, (before, after))
    back = Affine.from_linear(direction, np.zeros(3), after, frames[1])
    return Chain((to_lattice, field, back))


def _on_lattice(
    displacement_nm: FloatArray, spacing: FloatArray, origin: FloatArray, frames: tuple[str, str]
) -> DisplacementField:
    z, y, x = displacement_nm.shape[1:]
    grid = Grid((z, y, x), tuple(spacing), tuple(origin), frames[0])
    return DisplacementField(displacement_nm, grid, frames[1])


def write_itk(transform: Transform, path: str | Path, *, unit: str = "um") -> None:
    """Write a transform for ITK, SimpleITK, ANTs or Slicer.

    Parameters
    ----------
    transform
        An Affine, a BSpline, a DisplacementField, or a Chain of these.
    path
        The file; the suffix ``.h5`` or ``.tfm`` says the format.
    unit
        Unit of the images on which it will be used.

    Raises
    ------
    FormatError
        ITK has no equal for a part, or the suffix is unknown.
    StorageError
        It cannot be written.
    """
    import SimpleITK as sitk

    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise FormatError(f"{path}: ITK transform files end in {', '.join(SUFFIXES)}")
    parts: Sequence[Transform] = transform.parts if isinstance(transform, Chain) else (transform,)
    members = [_to_itk(part, nm_per(unit)) for part in parts]
    whole = members[0]
    if len(members) > 1:
        whole = sitk.CompositeTransform(3)
        for member in reversed(members):
            whole.AddTransform(member)
    with atomic_path(Path(path)) as temporary:
        # SimpleITK goes by the suffix, which the temporary name may not have.
        named = temporary.with_name(f"{temporary.name}{suffix}")
        try:
            sitk.WriteTransform(whole, str(named))
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)


def _to_itk(part: Transform, scale: float) -> Any:
    import SimpleITK as sitk

    if isinstance(part, Affine):
        affine = sitk.AffineTransform(3)
        affine.SetMatrix(flip_matrix(part.linear).ravel().tolist())
        affine.SetTranslation((flip(part.offset_nm) / scale).tolist())
        return affine
    if isinstance(part, BSpline):
        spline = sitk.BSplineTransform(3, 3)
        fixed = [
            np.array(part.coefficients_nm.shape[:0:-1], dtype=np.float64),
            flip(part.grid_origin_nm) / scale,
            flip(part.grid_spacing_nm) / scale,
            flip_matrix(part.direction).ravel(),
        ]
        spline.SetFixedParameters(np.concatenate(fixed).tolist())
        spline.SetParameters((part.coefficients_nm[::-1] / scale).ravel().tolist())
        return spline
    if isinstance(part, DisplacementField):
        vectors = flip(np.moveaxis(np.asarray(part.displacement_nm), 0, -1)) / scale
        image = sitk.GetImageFromArray(vectors, isVector=True)
        image.SetSpacing((flip(part.grid.spacing_nm) / scale).tolist())
        image.SetOrigin((flip(part.grid.origin_nm) / scale).tolist())
        return sitk.DisplacementFieldTransform(image)
    raise FormatError(
        f"ITK has no transform for a {type(part).__name__}",
        hint="sample it on a grid first: DisplacementField.sample(transform, grid)",
    )
