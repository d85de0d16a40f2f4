"""A network while it learns: with normalisation that is folded away, and where it starts from."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import nn

from clemreg.errors import FormatError
from clemreg.segment.classes import category
from clemreg.segment.cosem import CosemOptions, CosemUNet
from clemreg.segment.network import NetworkOptions, UNet


class Trainee(nn.Module):
    """A network with batch normalisation after each convolution, to be folded into it at the end.

    Normalisation makes training several times faster; but statistics of a patch would make a voxel
    depend on all of it. So in the last part of the training they are frozen, and are then just a
    scale and a shift of the convolution's output.
    """

    def __init__(self, options: NetworkOptions) -> None:
        super().__init__()
        self.network = UNet(options)
        for conv in self.network.convolutions:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.network.head.weight, std=0.01)
        self.norms = nn.ModuleList(
            nn.BatchNorm3d(conv.out_channels, momentum=0.05) for conv in self.network.convolutions
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (n, class, z, y, x) of every voxel of the input."""
        norms = iter(self.norms)
        return self.network.padded_logits(x, lambda features: next(norms)(features))

    @torch.no_grad()
    def settle(self, x: torch.Tensor) -> None:
        """Give the normalisation the statistics of these patches, without changing the outcome.

        A network to start from has its normalisation folded in; this lets it train with one again.
        """
        norms = iter(self.norms)

        def measure(features: torch.Tensor) -> torch.Tensor:
            norm = cast("nn.BatchNorm3d", next(norms))
            variance, mean = torch.var_mean(features.float(), dim=(0, 2, 3, 4))
            norm.running_mean.copy_(mean)  # type: ignore[union-attr]
            norm.running_var.copy_(variance)  # type: ignore[union-attr]
            norm.weight.copy_(torch.sqrt(variance + norm.eps))
            norm.bias.copy_(mean)
            return features

        self.network.padded_logits(x, measure)

    @torch.no_grad()
    def folded(self) -> UNet:
        """Return the plain network that does the same with frozen statistics."""
        plain = UNet(self.network.options)
        plain.load_state_dict(self.network.state_dict())
        for conv, norm in zip(plain.convolutions, self.norms.children(), strict=True):
            _fold_in(conv, cast("nn.BatchNorm3d", norm))
        return plain.eval()


class CosemTrainee(nn.Module):
    """A COSEM network, which learns as it is: it has no normalisation."""

    def __init__(self, options: CosemOptions) -> None:
        super().__init__()
        self.network = CosemUNet(options)
        for layer in self.network.modules():
            if isinstance(layer, nn.Conv3d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.network.prediction_head.weight, std=0.01)
        self.norms = nn.ModuleList()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Prediction (n, class, z, y, x) of the middle of the input, to compare as it is."""
        result: torch.Tensor = self.network(x)
        return result

    def settle(self, x: torch.Tensor) -> None:
        """Do nothing: there is no normalisation to give statistics to."""

    def folded(self) -> CosemUNet:
        """Return the network itself."""
        return copy.deepcopy(self.network).eval().requires_grad_(False)


def start_cosem_from(network: CosemUNet, other: CosemUNet) -> None:
    """Take over another COSEM network's weights; rows of the head go by class name.

    A network for 8 nm EM can start from one for 4 nm EM and the other way round: what only one of
    them has stays as it is.

    Raises
    ------
    FormatError
        The bodies of the networks differ in shape.
    """
    state, theirs = network.state_dict(), other.state_dict()
    body = [k for k in theirs if not k.startswith("prediction_head.") and k in state]
    wrong = [k for k in body if state[k].shape != theirs[k].shape]
    if wrong or not body:
        raise FormatError(
            f"the network to start from has another shape: {', '.join(wrong[:3])} "
            f"({len(wrong)} tensors)",
            hint=f"use its widths {other.options.widths} and up_widths {other.options.up_widths}",
        )
    state.update({k: theirs[k].clone() for k in body})
    rows = {category(name).name: i for i, name in enumerate(other.options.classes)}
    for i, name in enumerate(network.options.classes):
        row = rows.get(category(name).name)
        if row is not None:
            for key in ("prediction_head.weight", "prediction_head.bias"):
                state[key][i] = theirs[key][row]
    network.load_state_dict(state)


def _fold_in(conv: nn.Conv3d, norm: nn.BatchNorm3d) -> None:
    """Let a convolution do what a frozen normalisation after it does."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None or conv.bias is None:
        raise ValueError("only convolutions with bias and norms with statistics can be folded")
    scale = norm.weight / torch.sqrt(variance + norm.eps)
    conv.weight.mul_(scale[:, None, None, None, None])
    conv.bias.sub_(mean).mul_(scale).add_(norm.bias)


def start_from(network: UNet, other: UNet) -> None:
    """Take over another network's weights; rows of the head go by class name.

    A network that folds can start from one that does not: it then sees the mean of each cube of
    voxels and predicts the same for all of them. So one for fine EM starts from one for coarse EM.
    A wider network can start from a narrower one: what is new has no say in what was there, so
    that it begins with the same predictions (Chen, Goodfellow & Shlens, ICLR 2016, the idea).

    Raises
    ------
    FormatError
        The other network is not of the same depth, wider somewhere, or folds otherwise.
    """
    ours, options = network.options, other.options
    theirs = other.state_dict()
    if ours.fold > 1 and options.fold == 1:
        theirs = _folded(theirs, ours.fold**3)
    elif ours.fold != options.fold:
        raise FormatError(_other_shape(options), hint=f"use its fold {options.fold}")
    if (ours.down, ours.up) != (options.down, options.up) or any(
        a < b for a, b in zip(ours.widths, options.widths, strict=True)
    ):
        raise FormatError(
            _other_shape(options), hint="use its down, up and fold, and widths no smaller than its"
        )
    state = network.state_dict()
    for key, weight in theirs.items():
        if not key.startswith("head."):
            state[key] = _widened(state[key], weight, _inputs(key, ours, options))
    cube = ours.fold**3
    named = {category(name).name: j for j, name in enumerate(options.classes)}
    for i, name in enumerate(ours.classes):
        j = named.get(category(name).name)
        if j is None:
            continue
        for key in ("head.weight", "head.bias"):
            rows = state[key][i * cube : (i + 1) * cube]
            old = theirs[key][j * cube : (j + 1) * cube]
            rows.copy_(_widened(rows, old, list(range(options.widths[0]))))
    network.load_state_dict(state)


def _other_shape(options: NetworkOptions) -> str:
    return (
        f"the network to start from has another shape: widths {options.widths}, down "
        f"{options.down}, up {options.up}, fold {options.fold}"
    )


def _inputs(key: str, ours: NetworkOptions, theirs: NetworkOptions) -> list[int]:
    """Which of our input channels of a convolution are those of the other network, in order."""
    kind, level, layer = key.split(".")[:3]
    n = int(level)
    if layer != "0":
        return list(range(theirs.widths[n]))
    if kind == "down":
        return list(range(theirs.widths[n - 1] if n else ours.fold**3))
    skip = list(range(theirs.widths[n]))
    return skip + [ours.widths[n] + i for i in range(theirs.widths[n + 1])]


def _widened(new: torch.Tensor, old: torch.Tensor, inputs: list[int]) -> torch.Tensor:
    """Put `old` into the first outputs of `new`; other inputs do not reach these."""
    result = new.clone()
    result[: len(old)] = 0
    if old.dim() == 1:
        result[: len(old)] = old
    else:
        result[: len(old), inputs] = old
    return result


def _folded(state: dict[str, torch.Tensor], cube: int) -> dict[str, torch.Tensor]:
    """Weights for cubes of voxels instead of voxels."""
    state = dict(state)
    first = "down.0.0.weight"
    state[first] = state[first].repeat_interleave(cube, dim=1) / cube
    for key in ("head.weight", "head.bias"):
        state[key] = state[key].repeat_interleave(cube, dim=0)
    return state
