"""What training makes small: cross entropy and Dice, over what is annotated only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from clemreg.segment.classes import category
from clemreg.segment.parallel import Total, alone

# The share of positives is taken to be at least and at most this, as in the paper.
SHARES = (0.05, 0.95)


def balanced_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    known: torch.Tensor,
    classes: Sequence[str],
    balance: float = 1.0,
    total: Total = alone,
) -> torch.Tensor:
    """Cross entropy of every class, plus half of one minus Dice.

    With ``tanh(logit)`` the prediction, ``(1 + tanh) / 2`` is a logistic function of twice the
    logit, so cross entropy against ``(1 + target) / 2`` is least where prediction and target are
    equal, and unlike the squared error it does not level off where the prediction is far out.
    Positives and negatives are weighted to count alike (share of positives at least 0.05, as in
    the paper); a membrane shares the weights of its organelle (Heinrich et al. 2021, training
    code: ``scale_loss=False, scale_key=parent``). The unknown is left out. A membrane needs
    the Dice most: its target is 0.24 at most, so cross entropy alone gives up where the place of
    the membrane is uncertain by more than its width.

    Parameters
    ----------
    logits, target, known
        (n, class, z, y, x); targets are tanh signed distances, `known` is boolean.
    classes
        Names of the classes.
    balance
        Power of the weights: 1 as in the paper. Full balance moves the boundary outwards, since a
        voxel is then called positive where it is more likely so than on average.
    total
        Sum over the processes that share the batch.
    """
    names = [category(name).name for name in classes]
    # Not a plain 0: where nothing is known, the step goes on with no gradient.
    loss = 0 * logits[:, :, 0, 0, 0].float().sum()
    for i, name in enumerate(names):
        here = known[:, i]
        if not total(here.sum().float()):
            continue
        parent = category(name).parent
        base = names.index(parent) if parent in names else i
        weight = balancing_weights(target[:, base] > 0, here, balance, total)
        loss = loss + weighted_entropy(logits[:, i], target[:, i], here, weight, total)
        steep = torch.sigmoid(4 * logits[:, i].float()) * here
        loss = loss + 0.5 * _one_minus_dice(steep, (target[:, i] > 0) & here, total)
    return loss / len(classes)


def weighted_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    known: torch.Tensor,
    weight: torch.Tensor,
    total: Total = alone,
) -> torch.Tensor:
    """Cross entropy of one class, weighted voxel by voxel, as a mean over what is known.

    Parameters
    ----------
    logits, target, known, weight
        (n, z, y, x) each, as in `balanced_loss`.
    total
        Sum over the processes that share the batch.
    """
    entropy = nn.functional.binary_cross_entropy_with_logits(
        2 * logits.float(), (target + 1) / 2, reduction="none"
    )
    return total((entropy * weight * known).sum()) / total(known.sum().float())


def balancing_weights(
    positive: torch.Tensor, known: torch.Tensor, balance: float = 1.0, total: Total = alone
) -> torch.Tensor:
    """Weights with which all positives count as much as all negatives, to a power."""
    share = total((positive & known).sum().float()) / total(known.sum().float())
    share = share.clamp(*SHARES)
    return torch.where(positive, 1 / (2 * share), 1 / (2 * (1 - share))) ** balance


def _one_minus_dice(probability: torch.Tensor, inside: torch.Tensor, total: Total) -> torch.Tensor:
    """Soft Dice of what is inside; the probability is steep, so it looks at the boundary only."""
    both = total((probability * inside).sum())
    return 1 - (2 * both + 50) / (total(probability.sum()) + total(inside.sum().float()) + 50)
