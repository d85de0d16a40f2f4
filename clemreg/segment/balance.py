"""Weights and loss of the COSEM paper: inside and outside count alike, unknown counts nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clemreg.errors import GridError
from clemreg.segment.classes import category, weight_source
from clemreg.segment.parallel import Total, alone

FRACTIONS = (0.05, 0.95)


def balance_weights(
    target: torch.Tensor, known: torch.Tensor, classes: Sequence[str], total: Total = alone
) -> torch.Tensor:
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
    total
        Sum over the processes that share the batch.

    References
    ----------
    Heinrich et al., Nature 599:141 (2021), published training code (``BalanceByThreshold``).
    """
    if target.shape != known.shape or target.ndim != 5 or target.shape[1] != len(classes):
        raise GridError(
            f"targets {tuple(target.shape)} and known {tuple(known.shape)} are not "
            f"(n, {len(classes)}, z, y, x)"
        )
    names = [category(name).name for name in classes]
    own = {name: _own_weights(target[:, i], known[:, i], total) for i, name in enumerate(names)}
    return torch.stack(
        [own[weight_source(name, names)] * known[:, i] for i, name in enumerate(names)], dim=1
    )


def _own_weights(target: torch.Tensor, known: torch.Tensor, total: Total) -> torch.Tensor:
    inside = (target > 0) & known
    count = total(known.sum().float()).clamp(min=1)
    share = (total(inside.sum().float()) / count).clamp(*FRACTIONS)
    return torch.where(inside, 1 / (2 * share), 1 / (2 * (1 - share))) * known


def weighted_loss(
    prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor, total: Total = alone
) -> torch.Tensor:
    """Sum over classes of the weighted squared error per voxel that has a weight.

    Parameters
    ----------
    prediction, target, weights
        (n, class, z, y, x); a class without weights adds nothing.
    total
        Sum over the processes that share the batch.
    """
    over = (0, 2, 3, 4)
    error = total((weights * (prediction.float() - target) ** 2).sum(dim=over))
    count = total((weights != 0).sum(dim=over).float()).clamp(min=1)
    return (error / count).sum()
