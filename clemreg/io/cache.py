"""The chunks of a volume that were read last, kept in memory."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from clemreg.io.source import AxesView
from clemreg.volume import LazyArray, Volume

LIMIT_BYTES = 128 << 20
AnyVolume = TypeVar("AnyVolume", bound=Volume)


def cached(image: AnyVolume, limit_bytes: int = LIMIT_BYTES) -> AnyVolume:
    """Return a volume that keeps the chunks that were read last, so that neighbours share them.

    One whose chunks are not known, or of which not eight fit, is returned as it is: numpy arrays
    and memory maps gain nothing.

    Parameters
    ----------
    limit_bytes
        Most bytes of chunks that are kept.
    """
    chunks = image.data.chunks if isinstance(image.data, AxesView) else None
    if chunks is None:
        return image
    chunk_bytes = int(np.prod(chunks)) * image.dtype.itemsize
    if 8 * chunk_bytes > limit_bytes:
        return image
    return replace(image, data=_CachedArray(image.data, chunks, limit_bytes // chunk_bytes))


class _CachedArray:
    """An array that is read by whole chunks."""

    def __init__(self, array: LazyArray, chunks: tuple[int, ...], kept: int) -> None:
        self.shape, self.dtype = array.shape, array.dtype
        self._array, self._chunks = array, chunks
        self._chunk = lru_cache(maxsize=kept)(self._read)

    def _read(self, place: tuple[int, ...]) -> NDArray[Any]:
        """Read the chunk at a place in the grid of chunks."""
        key = tuple(
            slice(i * c, min((i + 1) * c, n))
            for i, c, n in zip(place, self._chunks, self.shape, strict=True)
        )
        return np.asarray(self._array[key])

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[Any]:
        spans = [k.indices(n)[:2] for k, n in zip(key, self.shape, strict=True)]
        result = np.empty([max(0, stop - start) for start, stop in spans], self.dtype)
        if not result.size:
            return result
        places = [
            range(start // c, -(-stop // c))
            for (start, stop), c in zip(spans, self._chunks, strict=True)
        ]
        for place in itertools.product(*places):
            parts = [_overlap(*s) for s in zip(place, self._chunks, spans, strict=True)]
            ours, theirs = zip(*parts, strict=True)
            result[ours] = self._chunk(place)[theirs]
        return result


def _overlap(number: int, chunk: int, span: tuple[int, int]) -> tuple[slice, slice]:
    """Where a chunk and a span of voxels meet: counted in the span, and in the chunk."""
    start, stop = max(number * chunk, span[0]), min((number + 1) * chunk, span[1])
    first = number * chunk
    return slice(start - span[0], stop - span[0]), slice(start - first, stop - first)
