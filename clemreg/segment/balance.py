"""Weights and loss of the COSEM paper: inside and outside count alike, unknown counts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import GridError
from clemreg.segment.classes import category, weight_source

if TYPE_CHECKING:
    import torch

FRACTIONS = (0.05, 0.95)
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


def balance_weights(target: FloatArray, known: BoolArray, classes: Sequence[str]) -> FloatArray:
    """Weight of each voxel and class in the loss, (n, class, z, y, x).

    With f the share of known voxels of a class in the batch whose target is above 0, clipped to
    0.05 to 0.95, voxels inside weigh 1 / (2 f) and those outside 1 / (2 (1 - f)). The outermost
    layer of a structure has target 0 and is outside. A membrane uses the weights of its
    organelle, where both are known.

    Parameters
    ----------
    target, known
        Tanh distances and where they are known (n, class, z, y, x).
    classes
        Names of the classes.

    References
    ----------
    Heinrich et al., Nature 599:141 (2021), published training code (``BalanceByThreshold``).
    """
    if target.shape != known.shape or target.ndim != 5 or target.shape[1] != len(classes):
        raise GridError(
            f"targets {target.shape} and known {known.shape} are not (n, {len(classes)}, z, y, x)"
        )
    names = [category(name).name for name in classes]
    own = {name: _own_weights(target[:, i], known[:, i]) for i, name in enumerate(names)}
    return np.stack(
        [own[weight_source(name, names)] * known[:, i] for i, name in enumerate(names)], axis=1
    )


def _own_weights(target: FloatArray, known: BoolArray) -> FloatArray:
    inside = (target > 0) & known
    total = int(known.sum())
    if not total:
        return np.zeros(target.shape, dtype=np.float32)
    share = float(np.clip(inside.sum() / total, *FRACTIONS))
    weights = np.where(inside, 1 / (2 * share), 1 / (2 * (1 - share)))
    return np.where(known, weights, 0).astype(np.float32)


def weighted_loss(
    prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Sum over classes of the weighted squared error per voxel that has a weight.

    Parameters
    ----------
    prediction, target, weights
        (n, class, z, y, x); a class without weights adds nothing.
    """
    over = (0, 2, 3, 4)
    error = (weights * (prediction.float() - target) ** 2).sum(dim=over)
    count = (weights != 0).sum(dim=over).clamp(min=1)
    return (error / count).sum()
