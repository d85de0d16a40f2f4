"""Correlation of two masked volumes over all shifts, by FFT.

Normalised cross-correlation where "outside" means "not imaged" (Padfield, IEEE TIP 2012): each
shift is scored on the voxels that both volumes have, and its mean and variance are those of that
overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Image = NDArray[np.float32]
Spectrum = NDArray[np.complex64]


@dataclass(frozen=True)
class Correlation:
    """Scores over shifts; index (i, j, k) stands for a shift of (i, j, k) - `zero`.

    Attributes
    ----------
    ncc
        Normalised correlation in [-1, 1]; 0 where the overlap is too small.
    overlap
        Share of the smaller mask that overlaps, 0 to 1.
    zero
        Index of shift zero, zyx.
    """

    ncc: Image
    overlap: Image
    zero: tuple[int, int, int]

    @property
    def rank(self) -> Image:
        """What poses are compared by: a high correlation on a sliver of overlap counts less."""
        return self.ncc * np.sqrt(self.overlap)


class MaskedCorrelator:
    """Correlates one fixed volume with many templates.

    Parameters
    ----------
    fixed
        (z, y, x) image.
    mask
        True where `fixed` was imaged.
    largest
        Largest template shape that will come.
    min_overlap
        Share of the smaller of the two masks that must overlap.
    workers
        FFT threads.
    """

    def __init__(
        self,
        fixed: Image,
        mask: NDArray[np.bool_],
        largest: tuple[int, int, int],
        *,
        min_overlap: float,
        workers: int,
    ) -> None:
        self._workers = workers
        self._min_overlap = min_overlap
        self._fixed_shape = fixed.shape
        self._full = tuple(a + b - 1 for a, b in zip(fixed.shape, largest, strict=True))
        self._size = tuple(fft.next_fast_len(n, real=True) for n in self._full)
        self._count = int(mask.sum())
        weight = mask.astype(np.float32)
        centred = (fixed - fixed[mask].mean()).astype(np.float32) * weight
        self._scale = float(centred.std()) or 1.0
        centred /= self._scale
        self._spectra = [self._forward(a) for a in (centred, centred * centred, weight)]

    def __call__(self, template: Image, mask: NDArray[np.bool_]) -> Correlation:
        """Correlate with a template no larger than `largest`; `mask` is where it was imaged."""
        weight = mask.astype(np.float32)
        values = template[mask]
        centred = (template - values.mean()).astype(np.float32) * weight
        centred /= float(values.std()) or 1.0
        f, ff, one = self._spectra
        t, tt, w = (np.conj(self._forward(a)) for a in (centred, centred * centred, weight))
        count = np.maximum(self._backward(one * w), 1.0)
        mean_f, mean_t = self._backward(f * w) / count, self._backward(one * t) / count
        covariance = self._backward(f * t) / count - mean_f * mean_t
        variance_f = self._backward(ff * w) / count - mean_f**2
        variance_t = self._backward(one * tt) / count - mean_t**2
        smaller = min(self._count, int(mask.sum()))
        overlap = np.clip(count / smaller, 0, 1).astype(np.float32)
        usable = (overlap >= self._min_overlap) & (variance_f > 1e-2) & (variance_t > 1e-2)
        scale = np.sqrt(np.where(usable, variance_f * variance_t, 1.0))
        ncc = np.where(usable, covariance / scale, 0.0).astype(np.float32)
        return self._arranged(ncc, overlap, template.shape)

    def quick(self, template: Image, mask: NDArray[np.bool_]) -> tuple[Image, tuple[int, int, int]]:
        """Correlate as if the fixed image had the same variance everywhere, and 0 outside.

        Two transforms instead of nine: good for choosing what to look at. A template that leaves
        the fixed image scores less by what it loses.

        Returns
        -------
        ndarray, tuple of int
            Score per shift, and the index of shift zero.
        """
        weight = mask.astype(np.float32)
        centred = (template - template[mask].mean()).astype(np.float32) * weight
        energy = float(np.sqrt((centred**2).sum() * mask.sum())) or 1.0
        product = self._backward(self._spectra[0] * np.conj(self._forward(centred)))
        return self._shifted(product / np.float32(energy), template.shape)

    def _forward(self, image: Image) -> Spectrum:
        spectrum: Spectrum = fft.rfftn(image, self._size, workers=self._workers)
        return spectrum

    def _backward(self, spectrum: Spectrum) -> Image:
        image: Image = fft.irfftn(spectrum, self._size, workers=self._workers)
        return image

    def _arranged(self, ncc: Image, overlap: Image, template: tuple[int, ...]) -> Correlation:
        scores, zero = self._shifted(ncc, template)
        share, _ = self._shifted(overlap, template)
        return Correlation(scores, np.clip(share, 0, 1), zero)

    def _shifted(
        self, image: Image, template: tuple[int, ...]
    ) -> tuple[Image, tuple[int, int, int]]:
        """Move negative shifts, which the FFT wraps to the end, to the front."""
        z, y, x = (n - 1 for n in template)
        keep = tuple(slice(0, a + b - 1) for a, b in zip(self._fixed_shape, template, strict=True))
        return np.roll(image, (z, y, x), (0, 1, 2))[keep], (z, y, x)
