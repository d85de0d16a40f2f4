"""Shifts by FFT: correlate turned copies of the coarse EM with the coarse LM."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clemreg.register.correlate import MaskedCorrelator
from clemreg.register.matching import EVERYWHERE, Masks
from clemreg.register.pose import SPENT_UM3, Pose
from clemreg.register.trusted import Image
from clemreg.space.transform import FloatArray
from clemreg.volume import Volume

_PEAKS = 2
_APART_NM = 1000.0


class Finder:
    """Correlates turned copies of the moving image with the fixed image.

    Parameters
    ----------
    fixed, moving
        Coarse LM and EM with the same isotropic voxels.
    linears
        Linear parts (lm -> em, zyx) that will be tried.
    threads
        FFT threads; 0 means all cores.
    masks
        Where both can be trusted, on their grids.
    """

    def __init__(
        self,
        fixed: Volume,
        moving: Volume,
        linears: list[FloatArray],
        threads: int,
        masks: Masks = EVERYWHERE,
    ) -> None:
        self._fixed, self._moving, self._mask = fixed, moving, masks.moving
        self._spacing = fixed.grid.spacing_nm[0]
        self._image: Image = moving.read()
        self._linears = linears
        halves = np.array([self._half(linear) for linear in linears])
        z, y, x = (int(2 * n + 1) for n in halves.max(axis=0))
        self._correlate = MaskedCorrelator(
            fixed.read(),
            (z, y, x),
            spent=1e9 * SPENT_UM3 / self._spacing**3,
            workers=threads or os.cpu_count() or 1,
            trusted=masks.fixed,
        )

    def poses(self) -> list[Pose]:
        """Return the best shifts of every rotation: the score is a strength, at full overlap."""
        return [pose for linear in self._linears for pose in self._best_shifts(linear)]

    def _half(self, linear: FloatArray) -> NDArray[np.intp]:
        """Half the size in voxels of the turned moving image."""
        corner = self._moving.grid.extent_nm / 2
        half = np.abs(np.linalg.inv(linear)) @ corner / self._spacing
        return np.asarray(np.ceil(half), np.intp)

    def _best_shifts(self, linear: FloatArray) -> list[Pose]:
        template, mask = self._template(linear)
        if not mask.any():
            return []
        score, zero = self._correlate(template, mask)
        found = []
        radius = max(1, round(_APART_NM / self._spacing))
        for _ in range(_PEAKS):
            at = np.unravel_index(int(score.argmax()), score.shape)
            if score[at] <= 0:
                break
            shift = np.array(at) - np.array(zero)
            correlation = float(np.sqrt(-np.expm1(-score[at])))
            found.append(self._pose(linear, shift, template.shape, correlation))
            around = tuple(slice(max(0, a - radius), a + radius + 1) for a in at)
            score[around] = 0
        return found

    def _template(self, linear: FloatArray) -> tuple[Image, NDArray[np.bool_]]:
        """Resample the moving image turned into the LM's axes, about its centre."""
        half = self._half(linear)
        shape = tuple(int(n) for n in 2 * half + 1)
        last = np.asarray(self._image.shape) - 1
        template = ndimage.affine_transform(
            self._image, linear, last / 2 - linear @ half, shape, order=1, mode="nearest"
        )
        z, y, x = np.ogrid[tuple(slice(-n, n + 1.0) for n in half)]
        mask = np.ones(shape, dtype=bool)
        for row, most in zip(linear, (last + 1) / 2, strict=True):
            mask &= np.abs(row[0] * z + row[1] * y + row[2] * x) <= most
        if self._mask is not None:
            mask &= ndimage.affine_transform(
                self._mask, linear, last / 2 - linear @ half, shape, order=0, mode="nearest"
            )
        return template * mask, mask

    def _pose(
        self, linear: FloatArray, shift: FloatArray, shape: tuple[int, ...], score: float
    ) -> Pose:
        centre_lm = self._fixed.grid.to_world(shift + (np.asarray(shape) - 1) / 2)
        matrix = np.eye(4)
        matrix[:3, :3] = linear
        matrix[:3, 3] = self._moving.grid.centre_nm - linear @ centre_lm
        return Pose(matrix, score, 1.0)
