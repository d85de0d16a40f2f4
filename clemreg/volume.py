"""`Volume` and `Labels`: a lazy array with a `Grid`. The type decides the interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import GridError, MissingError
from clemreg.space.grid import Box, Grid, Shape


class LazyArray(Protocol):
    """What a volume needs of its pixels: numpy, zarr, h5py and our own adapters all have it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along each axis."""

    @property
    def dtype(self) -> Any:
        """Pixel type."""

    def __getitem__(self, key: Any, /) -> Any:
        """Read a block."""


@dataclass(frozen=True, eq=False)
class Volume:
    """Intensities on a grid, read when asked for.

    Parameters
    ----------
    data
        Array-like zyx, or czyx with channels. Only the part asked for is read.
    grid
        Where the voxels are. Its shape equals the last three axes of `data`.
    channels
        Names along c; empty for a zyx array.
    coarser
        The same volume at lower resolutions, finest first, if the file has a pyramid.
    name
        What to call it in messages and figures.

    Raises
    ------
    GridError
        The shape of `data` does not fit grid and channels.
    """

    data: LazyArray
    grid: Grid
    channels: tuple[str, ...] = ()
    coarser: tuple[Volume, ...] = field(default=(), repr=False)
    name: str = ""

    def __post_init__(self) -> None:
        expected = ((len(self.channels),) if self.channels else ()) + self.grid.shape
        if tuple(self.data.shape) != expected:
            raise GridError(
                f"{self.name or 'volume'}: array of shape {tuple(self.data.shape)} does not fit "
                f"grid {self.grid.shape} with channels {list(self.channels)}",
                hint="axes are (channel,) z, y, x",
            )

    @property
    def shape(self) -> Shape:
        """Voxels along z, y, x."""
        return self.grid.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Pixel type."""
        result: np.dtype[Any] = np.dtype(self.data.dtype)
        return result

    @property
    def levels(self) -> tuple[Volume, ...]:
        """The volume itself and its coarser versions."""
        return (self, *self.coarser)

    def read(self, box: Box | None = None) -> NDArray[Any]:
        """Pixels of `box` (default all) as a numpy array zyx or czyx.

        Raises
        ------
        GridError
            The box reaches outside the volume.
        """
        box = self.grid.box if box is None else box
        self._require_inside(box)
        key = (slice(None), *box.slices) if self.channels else box.slices
        return np.asarray(self.data[key])

    def crop(self, box: Box) -> Volume:
        """Return the part in `box` as a volume at its place, still lazy, without coarser versions.

        Raises
        ------
        GridError
            The box reaches outside the volume.
        """
        self._require_inside(box)
        return replace(self, data=_BoxView(self.data, box), grid=self.grid.crop(box), coarser=())

    def _require_inside(self, box: Box) -> None:
        if box.clip(self.shape) != box:
            raise GridError(f"{self.name or 'volume'}: {box} reaches outside shape {self.shape}")

    def channel(self, which: str | int) -> Volume:
        """One channel, by name or number, as a zyx volume; a volume without channels is its own 0.

        Raises
        ------
        MissingError
            There is no such channel; the text lists those there are.
        """
        if not self.channels:
            if which in (0, self.name):
                return self
            raise MissingError(
                f"{self.name or 'volume'} has no channels, so none called {which!r}",
                hint="its only image is channel 0",
            )
        index = which if isinstance(which, int) else self._channel_index(which)
        if not 0 <= index < len(self.channels):
            raise MissingError(
                f"{self.name or 'volume'} has channels {list(self.channels)}, not {which!r}"
            )
        return replace(
            self,
            data=_ChannelView(self.data, index),
            channels=(),
            coarser=tuple(v.channel(index) for v in self.coarser),
            name=self.channels[index],
        )

    def _channel_index(self, name: str) -> int:
        if name not in self.channels:
            raise MissingError(
                f"{self.name or 'volume'} has no channel {name!r}",
                hint=f"its channels are: {', '.join(self.channels)}",
            )
        return self.channels.index(name)

    def with_frame(self, frame: str) -> Volume:
        """Rename the world frame of every level."""
        return replace(
            self,
            grid=self.grid.with_frame(frame),
            coarser=tuple(v.with_frame(frame) for v in self.coarser),
        )


class Labels(Volume):
    """Object or class ids on a grid: nearest-neighbour and mode only, never averaged."""


@dataclass(frozen=True)
class _ChannelView:
    """Channel `index` of a czyx array, still lazy."""

    parent: LazyArray
    index: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.parent.shape[1:])

    @property
    def dtype(self) -> Any:
        return self.parent.dtype

    def __getitem__(self, key: Any, /) -> Any:
        spatial: Sequence[Any] = key if isinstance(key, tuple) else (key,)
        return self.parent[(self.index, *spatial)]


@dataclass(frozen=True)
class _BoxView:
    """A box of a (c)zyx array, still lazy."""

    parent: LazyArray
    box: Box

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.parent.shape[:-3], *self.box.shape)

    @property
    def dtype(self) -> Any:
        return self.parent.dtype

    def __getitem__(self, key: Any, /) -> Any:
        spans = [s.indices(n) for s, n in zip(key[-3:], self.box.shape, strict=True)]
        moved = [
            slice(a + low, b + low) for (a, b, _), low in zip(spans, self.box.start, strict=True)
        ]
        return self.parent[(*key[:-3], *moved)]
