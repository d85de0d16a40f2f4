"""What a format module hands over: pixels still on disk, with their geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clemreg.errors import FormatError
from clemreg.volume import LazyArray


@dataclass(frozen=True, eq=False)
class Level:
    """One resolution of a volume.

    Attributes
    ----------
    data
        Array-like with axes (c,) z, y, x.
    spacing_nm
        Voxel size zyx, or None where the file does not say.
    origin_nm
        Centre of voxel (0, 0, 0), zyx.
    origin_voxels
        The same in voxels, where the file has an origin and a voxel size but no unit.
    """

    data: LazyArray
    spacing_nm: tuple[float, float, float] | None
    origin_nm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    origin_voxels: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def scaled_origin_nm(self, spacing_nm: tuple[float, float, float]) -> tuple[float, ...]:
        """Return the origin if the voxels have another size: the same number of voxels away."""
        if self.spacing_nm is None:
            voxels = self.origin_voxels
        else:
            pairs = zip(self.origin_nm, self.spacing_nm, strict=True)
            voxels = tuple(o / s for o, s in pairs)  # type: ignore[assignment]
        return tuple(v * s for v, s in zip(voxels, spacing_nm, strict=True))


@dataclass(frozen=True, eq=False)
class Source:
    """A volume as a format module found it.

    Attributes
    ----------
    format
        Name of the format.
    levels
        Resolutions, finest first.
    channels
        Names; empty without a channel axis.
    unit
        Unit as written in the file.
    notes
        What a user should know.
    lost_origin
        Why the origin in the file does not hold any more; empty if it does.
    """

    format: str
    levels: tuple[Level, ...]
    channels: tuple[str, ...] = ()
    unit: str = ""
    notes: tuple[str, ...] = ()
    lost_origin: str = ""


# Types that few formats and programs know, and what holds their values. Truth values stay: they are
# a mask, while 0 and 1 in uint8 may be anything.
_WIDER: dict[str, np.dtype[Any]] = {"float16": np.dtype(np.float32)}


@dataclass(frozen=True, eq=False)
class AxesView:
    """An array whose axes are named and may stand in any order, seen as (c,) z, y, x.

    float16 is read as float32.

    Parameters
    ----------
    array
        Anything that can be indexed with slices.
    axes
        One letter an axis of `array`; axes other than c, z, y, x are fixed at 0.
    name
        For messages.
    """

    array: Any
    axes: str
    name: str

    @property
    def wanted(self) -> str:
        """Axes of the view, in order."""
        return "".join(a for a in "czyx" if a in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along the view's axes."""
        sizes = dict(zip(self.axes, self.array.shape, strict=True))
        return tuple(int(sizes[a]) for a in self.wanted)

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Pixel type in the file."""
        dtype = self.array.dtype
        result: np.dtype[Any] = np.dtype(getattr(dtype, "numpy_dtype", dtype))
        return result

    @property
    def dtype(self) -> np.dtype[Any]:
        """Pixel type of what is read."""
        return _WIDER.get(self.stored_dtype.name, self.stored_dtype)

    @property
    def chunks(self) -> tuple[int, ...] | None:
        """Size of a chunk along the view's axes; None where there are none, or not known."""
        sizes = getattr(self.array, "chunks", None)
        if sizes is None:
            return None
        by_axis = dict(zip(self.axes, sizes, strict=True))
        return tuple(int(by_axis[a]) for a in self.wanted)

    def __getitem__(self, key: Any, /) -> Any:
        """Read a block.

        Raises
        ------
        FormatError
            A chunk cannot be read or decoded.
        """
        key = key if isinstance(key, tuple) else (key,)
        key = key + (slice(None),) * (len(self.wanted) - len(key))
        of = dict(zip(self.wanted, key, strict=True))
        try:
            block = np.asarray(self.array[tuple(of.get(a, 0) for a in self.axes)])
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            raise FormatError(
                f"cannot read {self.name} at {_words(self.wanted, key)}: {error}",
                hint="a chunk is damaged or missing; copy the file again",
            ) from error
        left = [a for a in self.axes if isinstance(of.get(a, 0), slice)]
        order = [left.index(a) for a in self.wanted if a in left]
        if self.stored_dtype.name in _WIDER:
            block = block.astype(self.dtype)
        return block.transpose(order)


def _words(axes: str, key: Sequence[Any]) -> str:
    return ", ".join(
        f"{a} {k.start or 0}:{'' if k.stop is None else k.stop}"
        if isinstance(k, slice)
        else f"{a} {k}"
        for a, k in zip(axes, key, strict=True)
    )


def require_spatial(axes: str, shape: Sequence[int], name: str) -> None:
    """Check that z, y and x are there and that nothing but channels is longer than one.

    Raises
    ------
    FormatError
        An axis is missing (a 2-D image), or there are several time points.
    """
    if not set("zyx") <= set(axes) or len(set(axes)) != len(axes):
        hint = "clemreg works on volumes, not on single images"
        if "t" in axes and "z" not in axes:
            hint = "if its time points are slices, swap them: Image > Properties in Fiji"
        raise FormatError(
            f"{name} has axes {axes!r} of sizes {tuple(shape)}; z, y and x are needed", hint=hint
        )
    for axis, size in zip(axes, shape, strict=True):
        if axis not in "czyx" and size != 1:
            raise FormatError(
                f"{name} has {size} positions along axis {axis!r}; one is expected",
                hint="export one time point",
            )
