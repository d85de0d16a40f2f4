"""Lengths: from what people and files write to float nanometres."""

from __future__ import annotations

import math
import re

from clemreg.errors import VoxelSizeError

NM_PER_UNIT: dict[str, float] = {
    "pm": 1e-3,
    "picometer": 1e-3,
    "å": 0.1,
    "angstrom": 0.1,
    "nm": 1.0,
    "nanometer": 1.0,
    "nanometre": 1.0,
    "nanometers": 1.0,
    "um": 1e3,
    "µm": 1e3,  # micro sign
    "μm": 1e3,  # Greek mu: both spellings occur in real files
    "micron": 1e3,
    "microns": 1e3,
    "micrometer": 1e3,
    "micrometre": 1e3,
    "micrometers": 1e3,
    "\\u00b5m": 1e3,  # ImageJ escapes the micro sign in TIFF descriptions
    "mm": 1e6,
    "millimeter": 1e6,
    "cm": 1e7,
    "centimeter": 1e7,
    "m": 1e9,
    "meter": 1e9,
    "inch": 2.54e7,
    "inches": 2.54e7,
}

_SHORT = ("nm", "um", "mm", "cm", "m")

_NUMBER = r"([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)"
_BETWEEN = r"\s*(?:,|x|\s)\s*"
_TRIPLE = re.compile(_NUMBER + _BETWEEN + _NUMBER + _BETWEEN + _NUMBER + r"\s*([^\s\d.,]+)")
_LENGTH = re.compile(r"\s*" + _NUMBER + r"\s*([^\s\d.,]+)\s*")


def ascii_unit(unit: str) -> str:
    """Return a unit as formats without Unicode take it: ``"um"`` for ``"µm"``."""
    factor = nm_per(unit)
    return next((short for short in _SHORT if NM_PER_UNIT[short] == factor), unit.lower())


def nm_per(unit: str) -> float:
    """Nanometres in one `unit`.

    Parameters
    ----------
    unit
        Name of a length unit, in any case, singular or plural: ``"nm"``, ``"µm"``, ``"micron"``.

    Raises
    ------
    VoxelSizeError
        The unit is not a known length.

    Examples
    --------
    >>> nm_per("micrometer")
    1000.0
    """
    key = unit.strip()
    factor = NM_PER_UNIT.get(key) or NM_PER_UNIT.get(key.lower())
    if factor is None:
        raise VoxelSizeError(
            f"unknown length unit {unit!r}", hint="use nm, um, mm, or a word such as nanometer"
        )
    return factor


def parse_length_nm(text: str) -> float:
    """Read a length with its unit, in nm.

    Raises
    ------
    VoxelSizeError
        There is no number, no unit, or the number is not finite.

    Examples
    --------
    >>> parse_length_nm("0.2 um")
    200.0
    """
    match = _LENGTH.fullmatch(text)
    if match is None:
        raise VoxelSizeError(
            f"{text!r} is not a length", hint='write a number and a unit, for example "8 nm"'
        )
    value = float(match.group(1)) * nm_per(match.group(2))
    if not math.isfinite(value):
        raise VoxelSizeError(f"{text!r} is not a finite length")
    return value


def format_length(nm: float) -> str:
    """Write a length as people read it: nm below one micrometre, um above.

    Examples
    --------
    >>> format_length(31.62), format_length(12500.0)
    ('31.6 nm', '12.5 um')
    """
    return f"{nm / 1e3:.3g} um" if abs(nm) >= 1e3 else f"{nm:.3g} nm"


def parse_xyz_nm(text: str) -> tuple[float, float, float]:
    """Read ``"x, y, z unit"`` as people and Fiji write it, and return it as zyx in nm.

    The unit follows the last number and holds for all three; ``x`` between the numbers works too.

    Raises
    ------
    VoxelSizeError
        There are not three numbers, or there is no unit.

    Examples
    --------
    >>> parse_xyz_nm("4, 4, 5.24 nm")
    (5.24, 4.0, 4.0)
    """
    match = _TRIPLE.fullmatch(text.strip())
    if match is None:
        raise VoxelSizeError(
            f"{text!r} is not three numbers with a unit",
            hint='write x, y, z and a unit, for example "4, 4, 5.24 nm"',
        )
    factor = nm_per(match.group(4))
    x, y, z = (float(match.group(i)) * factor for i in (1, 2, 3))
    return z, y, x


def given_xyz_nm(text: str | None) -> tuple[float, float, float] | None:
    """Read a voxel size as `parse_xyz_nm` does; None where none is given."""
    return parse_xyz_nm(text) if text else None
