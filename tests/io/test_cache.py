from __future__ import annotations

import numpy as np
import pytest
import zarr

from clemreg.io.cache import cached
from clemreg.io.source import AxesView
from clemreg.space.grid import Box
from clemreg.testing import hostile_grid
from clemreg.volume import Labels, Volume


class Counted:
    """A zarr array, and how often each of its chunks was read."""

    def __init__(self, array: zarr.Array) -> None:
        self.array, self.reads = array, []
        self.shape, self.dtype, self.chunks = array.shape, array.dtype, array.chunks

    def __getitem__(self, key):
        self.reads.append(tuple((k.start, k.stop) for k in key if isinstance(k, slice)))
        return self.array[key]


def stored(axes: str, chunks: dict[str, int]) -> tuple[Counted, np.ndarray]:
    """Random numbers with those axes, and the same in the order of a volume."""
    sizes = dict(zip("czyx", (2, *hostile_grid().shape), strict=True))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 2**40, [sizes[a] for a in axes], np.uint64)
    array = zarr.create_array(
        zarr.storage.MemoryStore(),
        shape=pixels.shape,
        chunks=tuple(chunks[a] for a in axes),
        dtype="uint64",
    )
    array[:] = pixels
    order = [axes.index(a) for a in "czyx" if a in axes]
    return Counted(array), pixels.transpose(order)


def boxes(rng: np.random.Generator, count: int) -> list[Box]:
    ends = [np.sort(rng.integers(0, n + 1, (count, 2))) for n in hostile_grid().shape]
    return [Box(*(tuple(int(e[i, k]) for e in ends) for k in (0, 1))) for i in range(count)]


@pytest.mark.parametrize("axes", ["zyx", "xyz", "czyx", "yxcz"])
def test_what_is_kept_is_what_is_stored_whatever_is_asked(axes):
    array, pixels = stored(axes, {"c": 1, "z": 4, "y": 5, "x": 7})
    names = ("a", "b") if "c" in axes else ()
    volume = Volume(AxesView(array, axes, "test"), hostile_grid(), names)
    # Of 100 chunks of 1120 bytes so few are kept that many are read again.
    kept = cached(volume, limit_bytes=9 * 4 * 5 * 7 * 8)
    for box in boxes(np.random.default_rng(1), 30):
        np.testing.assert_array_equal(kept.read(box), pixels[(..., *box.slices)])
    assert kept.dtype == np.uint64
    assert len(array.reads) > len(set(array.reads))


@pytest.mark.parametrize("axes", ["zyx", "xyz", "yzx"])
def test_a_chunk_that_is_kept_is_read_once(axes):
    array, pixels = stored(axes, {"z": 4, "y": 5, "x": 7})
    labels = cached(Labels(AxesView(array, axes, "test"), hostile_grid()))
    assert isinstance(labels, Labels)
    for box in labels.grid.box.tiles((3, 3, 3)):
        np.testing.assert_array_equal(labels.read(box), pixels[box.slices])
    assert len(array.reads) == len(set(array.reads)) == 3 * 4 * 4


def test_what_has_no_chunks_or_too_large_ones_is_left_as_it_is():
    array, pixels = stored("zyx", {"z": 11, "y": 17, "x": 23})
    volume = Volume(AxesView(array, "zyx", "test"), hostile_grid())
    assert cached(volume, limit_bytes=8 * pixels.nbytes - 1) is volume
    assert cached(volume, limit_bytes=8 * pixels.nbytes) is not volume
    plain = Volume(pixels, hostile_grid())
    assert cached(plain) is plain
    unknown = Volume(AxesView(pixels, "zyx", "test"), hostile_grid())
    assert cached(unknown) is unknown
