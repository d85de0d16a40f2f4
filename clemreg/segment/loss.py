"""What training makes small: cross entropy and Dice, over what is annotated only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from clemreg.segment.targets import CLASSES

# The share of positives is taken to be at least and at most this, as in the paper.
SHARES = (0.05, 0.95)


def balanced_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    known: torch.Tensor,
    classes: Sequence[str],
    balance: float = 1.0,
) -> torch.Tensor:
    """Cross entropy of every class, plus half of one minus Dice of every organelle.

    With ``tanh(logit)`` the prediction, ``(1 + tanh) / 2`` is a logistic function of twice the
    logit, so cross entropy against ``(1 + target) / 2`` is least where prediction and target are
    equal, and unlike the squared error it does not level off where the prediction is far out.
    Positives and negatives are weighted to count alike (share of positives at least 0.05, as in
    the paper); a membrane shares the weights of its organelle (Heinrich et al. 2021, training
    code: ``scale_loss=False, scale_key=parent``). The unknown is left out.

    Parameters
    ----------
    logits, target, known
        (n, class, z, y, x); targets are tanh signed distances, `known` is boolean.
    classes
        Names of the classes.
    balance
        Power of the weights: 1 as in the paper. Full balance moves the boundary outwards, since a
        voxel is then called positive where it is more likely so than on average.
    """
    loss = logits.new_zeros((), dtype=torch.float32)
    for i, name in enumerate(classes):
        here = known[:, i]
        if not here.any():
            continue
        parent = classes.index(CLASSES[name]) if CLASSES[name] in classes else i
        weight = _weights(target[:, parent] > 0, here) ** balance * here
        entropy = nn.functional.binary_cross_entropy_with_logits(
            2 * logits[:, i].float(), (target[:, i] + 1) / 2, reduction="none"
        )
        loss = loss + (entropy * weight).sum() / here.sum()
        if name == CLASSES[name]:
            loss = loss + 0.5 * _one_minus_dice(logits[:, i].float(), target[:, i] > 0, here)
    return loss / len(classes)


def _weights(positive: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    share = ((positive & known).sum() / known.sum()).clamp(*SHARES)
    return torch.where(positive, 1 / (2 * share), 1 / (2 * (1 - share)))


def _one_minus_dice(
    logits: torch.Tensor, inside: torch.Tensor, known: torch.Tensor
) -> torch.Tensor:
    """Soft Dice of what is inside; steep, so that it looks at the boundary only."""
    probability = torch.sigmoid(4 * logits) * known
    inside = inside & known
    both = (probability * inside).sum()
    return 1 - (2 * both + 50) / (probability.sum() + inside.sum() + 50)
