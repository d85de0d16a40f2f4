"""Correlation of a volume with a masked template over all shifts, by FFT.

Normalised cross-correlation where "outside" means "not imaged" (Padfield, IEEE TIP 2012): each
shift is scored on the voxels that both have, and its mean and variance are those of that overlap.
Both may have voxels that cannot be trusted; for the volume alone that is rare, and costs more FFTs.
A high correlation on a sliver proves less than a lower one on everything: `evidence`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from clemreg.register.trusted import Image, Mask

Spectrum = NDArray[np.complex64]

_FLAT = 1e-2  # variance in the overlap over that of the whole, below which nothing is shown


def evidence(correlation: Image, share: Image) -> Image:
    """Say how much a correlation r on a share s of the places proves: ``-s log(1 - r^2)``.

    Times half the number of independent places, this is the logarithm of the likelihood ratio
    between "the one image is a line through the other, plus noise" and "they have nothing in
    common". A negative correlation proves nothing.
    """
    r = np.clip(correlation, 0.0, 0.9999)
    return np.asarray(-share * np.log1p(-r * r), np.float32)


def strength(correlation: float, share: float) -> float:
    """Correlation at full overlap with the same `evidence`."""
    r = min(max(correlation, 0.0), 0.9999)
    return float(np.sqrt(1.0 - (1.0 - r * r) ** share))


class MaskedCorrelator:
    """Correlates one volume with many templates.

    Parameters
    ----------
    fixed
        (z, y, x) image.
    largest
        Largest template shape that will come.
    spent
        Voxels of overlap that prove nothing: so many can be made to agree by chance.
    workers
        FFT threads.
    trusted
        Where the volume was imaged and can be trusted; None is everywhere.
    """

    def __init__(
        self,
        fixed: Image,
        largest: tuple[int, int, int],
        *,
        spent: float,
        workers: int,
        trusted: Mask = None,
    ) -> None:
        self._workers, self._spent = workers, spent
        self._shape = fixed.shape
        full = (a + b - 1 for a, b in zip(fixed.shape, largest, strict=True))
        self._size = tuple(fft.next_fast_len(n, real=True) for n in full)
        seen = fixed if trusted is None else fixed[trusted]
        scaled = ((fixed - seen.mean()) / (float(seen.std()) or 1.0)).astype(np.float32)
        self._voxels, self._trusted = float(seen.size), None
        if trusted is not None:
            scaled[~trusted] = 0
            self._trusted = self._forward(trusted.astype(np.float32))
        self._spectra = [self._forward(a) for a in (scaled, scaled * scaled)]

    def __call__(
        self, template: Image, mask: NDArray[np.bool_]
    ) -> tuple[Image, tuple[int, int, int]]:
        """Score every shift by its `evidence`.

        Parameters
        ----------
        template
            (z, y, x), no larger than `largest`.
        mask
            Where it was imaged.

        Returns
        -------
        ndarray, tuple of int
            Evidence per shift, and the index of shift zero.
        """
        weight = mask.astype(np.float32)
        centred = (template - template[mask].mean()) * weight
        centred /= float(np.sqrt((centred**2).sum() / weight.sum())) or 1.0
        fixed, squared = self._spectra
        t, w = (np.conj(self._forward(a)) for a in (centred, weight))
        product, sums, squares = (
            self._shifted(spectrum, template.shape)
            for spectrum in (fixed * t, fixed * w, squared * w)
        )
        count, level, energy = (self._covered(a) for a in (weight, centred, centred**2))
        count = np.maximum(count, 1.0)
        variance_f, variance_t = squares / count - (sums / count) ** 2, energy / count
        variance_t -= (level / count) ** 2
        smaller = min(float(weight.sum()), self._voxels)
        share = np.clip((count - self._spent) / smaller, 0.0, 1.0).astype(np.float32)
        usable = (share > 0) & (variance_f > _FLAT) & (variance_t > _FLAT)
        scale = np.sqrt(np.where(usable, variance_f * variance_t, 1.0))
        ncc = np.where(usable, (product / count - sums * level / count**2) / scale, 0.0)
        z, y, x = (n - 1 for n in template.shape)
        return evidence(ncc, share), (z, y, x)

    def _forward(self, image: Image) -> Spectrum:
        spectrum: Spectrum = fft.rfftn(image, self._size, workers=self._workers)
        return spectrum

    def _shifted(self, spectrum: Spectrum, template: tuple[int, ...]) -> Image:
        """Transform back; move negative shifts, which the FFT wraps to the end, to the front."""
        image: Image = fft.irfftn(spectrum, self._size, workers=self._workers)
        keep = tuple(slice(0, a + b - 1) for a, b in zip(self._shape, template, strict=True))
        return np.roll(image, tuple(n - 1 for n in template), (0, 1, 2))[keep]

    def _covered(self, image: Image) -> Image:
        """Sum of a template over what lies in the volume, per shift."""
        if self._trusted is None:
            return self._running(image)
        return self._shifted(self._trusted * np.conj(self._forward(image)), image.shape)

    def _running(self, image: Image) -> Image:
        """Sum of a template over the whole of the volume's box, per shift, from running sums."""
        total = image
        for axis, n in enumerate(self._shape):
            size = total.shape[axis]
            sums = np.cumsum(total, axis=axis, dtype=np.float64)
            sums = np.concatenate([np.zeros_like(sums.take([0], axis)), sums], axis=axis)
            shift = np.arange(1 - size, n)
            total = sums.take(np.minimum(n - shift, size), axis)
            total -= sums.take(np.maximum(-shift, 0), axis)
        return total.astype(np.float32)
