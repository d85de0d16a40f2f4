"""How much of the EM's signal the light microscope shows, place by place.

Part of the mitochondria carry no label, and labels differ in brightness. One contrast for the whole
volume then leaves whole organelles as residual, and the deformation is pulled to explain them. A
contrast that is fitted around every sample lets unlabelled organelles pull nowhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clemreg.space.transform import FloatArray

Image = NDArray[np.float32]

_SHRINKAGE = 0.3  # what the overall contrast counts, beside an average neighbourhood's samples
_GREATEST = 1.5  # of the overall contrast; below 0 would draw towards opposite contrast
_ENOUGH = 150.0  # samples in a neighbourhood
_BINS = 1.5  # per sigma


def local_contrast(
    places_nm: FloatArray, dark: Image, light: Image, contrast: float, sigma_nm: float
) -> Image:
    """Fit ``light = contrast(x) * dark`` in Gaussian neighbourhoods.

    Parameters
    ----------
    places_nm
        (N, 3) where the samples are.
    dark, light
        (N,) EM, and light minus its level.
    contrast
        The overall one, towards which neighbourhoods of little EM signal are drawn.
    sigma_nm
        Size of the neighbourhoods; they are made larger if they would hold too few samples.

    Returns
    -------
    ndarray
        (N,) float32, between 0 and 1.5 times `contrast`.
    """
    low = places_nm.min(axis=0)
    sigma_nm = max(sigma_nm, _sigma_holding_enough(np.ptp(places_nm, axis=0), len(places_nm)))
    position = (places_nm - low) * (_BINS / sigma_nm)
    bins = position.astype(np.intp)
    shape = tuple(int(n) for n in bins.max(axis=0) + 1)
    flat = np.ravel_multi_index(tuple(bins.T), shape)

    def around(values: NDArray[np.float32]) -> FloatArray:
        sums = np.bincount(flat, values, int(np.prod(shape))).reshape(shape)
        smooth: FloatArray = ndimage.gaussian_filter(sums, _BINS, mode="constant")
        return smooth

    count = around(np.ones(len(dark), np.float32))
    prior = _SHRINKAGE * float(np.mean(dark**2)) * float(np.median(count[count > 0]))
    fitted = (around(dark * light) + prior * contrast) / (around(dark**2) + max(prior, 1e-30))
    least, most = sorted((0.0, _GREATEST * contrast))
    fitted = np.clip(fitted, least, most)
    at = ndimage.map_coordinates(fitted, position.T - 0.5, order=1, mode="nearest")
    return np.asarray(at, np.float32)


def _sigma_holding_enough(extent_nm: FloatArray, samples: int) -> float:
    """Sigma of the Gaussian whose effective volume, ``(4 pi)^(3/2) sigma^3``, holds enough."""
    volume = _ENOUGH / samples * float(np.prod(np.maximum(extent_nm, 1.0)))
    return float(np.cbrt(volume) / np.sqrt(4 * np.pi))
