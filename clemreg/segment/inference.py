"""The network as it is computed to predict: the same function with less work."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from clemreg.segment.network import NetworkOptions, UNet

Ends = tuple[tuple[int, int], ...]
"""Voxels at the lower and the upper end of z, y and x."""

# Each voxel of a doubled axis lies with its neighbours over two of the voxels that were doubled:
# rows are the even and the odd voxel, and which of its three weights fall on which of the two.
_ON_FIRST = ((True, True, False), (True, False, False))


class FastUNet(nn.Module):
    """A `UNet` rearranged for speed; answers agree up to the rounding of float32.

    A convolution over voxels that were just doubled sees each of them several times. It is one
    of 2 x 2 x 2 over the voxels before doubling that gives all eight voxels of the double at once
    (weights that fall on one voxel are added up): 8 products instead of 27. What comes from the
    skip is convolved apart and added; so nothing is doubled or concatenated. Beyond the EM, where
    its outermost voxels go on, features are the same from a few voxels on: as many are computed,
    and the last repeated. On a processor, all convolutions are oneDNN's: torch by itself takes
    another algorithm for small blocks, whose last bits differ.

    References
    ----------
    Shi et al., "Is the deconvolution layer the same as a convolutional layer?", arXiv 1609.07009.
    """

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.options = network.options
        self.down = nn.ModuleList(
            nn.ModuleList(_Convolution(c.weight, c.bias) for c in _convolutions(block))
            for block in network.down
        )
        widths = network.options.widths
        self.up = nn.ModuleList(
            _Up(_convolutions(block), width)
            for block, width in zip(network.up, widths, strict=False)
        )
        self.head = _Convolution(network.head.weight, network.head.bias)

    @property
    def margin(self) -> int:
        """Voxels of EM that are enough beyond an end where the outermost voxel only repeats.

        The second of them, and what lies farther out, must be all the same.
        """
        return min(self.options.halo, 2 * self.options.fold)

    def forward(self, x: torch.Tensor, given: Ends | None = None) -> torch.Tensor:
        """Predict tanh signed distances, the voxels of each cube apart.

        Parameters
        ----------
        x
            (1, 1, z, y, x), as for `UNet`.
        given
            Voxels of `x` beyond the answer at either end of each axis: the halo, or `margin`
            where farther voxels are all the same. None: the halo.

        Returns
        -------
        torch.Tensor
            (class, z, fold, y, fold, x, fold), a view; `joined` makes (class, z, y, x) of it.
        """
        x = _folded(x, self.options.fold)
        needs = _needs(self.options)
        need = self.options.halo // self.options.fold
        given = given or ((self.options.halo,) * 2,) * 3
        z, y, x_ = ((low // self.options.fold, high // self.options.fold) for low, high in given)
        have: Ends = (z, y, x_)
        skips = []
        for level, block in enumerate(self.down):
            unit = 1 << level
            for convolution in block:  # type: ignore[attr-defined]
                need -= unit
                wanted = _convolved(have, need, unit)
                x = convolution(_reaching(x, have, _grown(wanted, unit), unit)).relu_()
                have = wanted
            if level < len(self.down) - 1:
                skips.append((x, have))
                wanted = _paired(have, need, unit)
                x = nn.functional.max_pool3d(_reaching(x, have, wanted, unit), 2)
                have = wanted
        for level in range(len(self.up) - 1, -1, -1):
            unit, wanted = 1 << level, ((needs[level],) * 2,) * 3
            skip, reach = skips.pop()
            x = self.up[level](
                _reaching(x, have, wanted, 2 * unit), _reaching(skip, reach, wanted, unit)
            )
            have = ((needs[level - 1] if level else 0,) * 2,) * 3
        x = torch.tanh_(self.head(x))
        n = self.options.fold
        cubes: torch.Tensor = x[0].unflatten(0, (len(self.options.classes), n, n, n))
        return cubes.permute(0, 4, 1, 5, 2, 6, 3)


def joined(cubes: torch.Tensor) -> torch.Tensor:
    """Put the voxels of cubes, as `FastUNet` gives them, in place: (class, z, y, x)."""
    c, z, n, y, _, x, _ = cubes.shape
    return cubes.reshape(c, z * n, y * n, x * n)


def mirrored(cubes: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """Mirror cubes along some of z, y, x (0, 1, 2)."""
    return cubes.flip([1 + 2 * a for a in axes] + [2 + 2 * a for a in axes]) if axes else cubes


class _Convolution(nn.Module):
    """A valid convolution, in the layout in which processors and GPUs are fastest."""

    weight: torch.Tensor
    bias: torch.Tensor | None  # none: on a GPU, adding even zeros takes a pass over the features

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        layout = torch.channels_last_3d
        self.register_buffer("weight", weight.detach().contiguous(memory_format=layout))
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type == "cpu" and _onednn_in_float32():
            one = [1, 1, 1]
            return torch.mkldnn_convolution(x, self.weight, self.bias, [0, 0, 0], one, one, 1)
        return nn.functional.conv3d(x, self.weight, self.bias)


class _Up(nn.Module):
    """Double, join with the skip, and convolve; without doubling or joining."""

    def __init__(self, convolutions: list[nn.Conv3d], skip: int) -> None:
        super().__init__()
        first, *rest = convolutions
        self.skip = _Convolution(first.weight[:, :skip], first.bias)
        self.below = _Convolution(_on_undoubled(first.weight[:, skip:]), None)
        self.rest = nn.ModuleList(_Convolution(c.weight, c.bias) for c in rest)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        below = self.below(x)
        joint: torch.Tensor = self.skip(skip)
        _add_cubes(joint, below)
        joint.relu_()
        for convolution in self.rest:
            joint = convolution(joint).relu_()
        return joint


def _convolutions(block: nn.Module) -> list[nn.Conv3d]:
    return [c for c in block.children() if isinstance(c, nn.Conv3d)]


def _onednn_in_float32() -> bool:
    return torch.backends.mkldnn.is_available() and not torch.is_autocast_enabled("cpu")


def _on_undoubled(weight: torch.Tensor) -> torch.Tensor:
    """Weights (8 out, in, 2, 2, 2) that do on voxels what (out, in, 3, 3, 3) do on their double.

    Outputs are ordered by the voxel (z, y, x) of the double first.
    """
    first = torch.tensor(_ON_FIRST)
    share = torch.stack([first, ~first], dim=1).to(weight.dtype)  # (voxel, tap, weight)
    spread = torch.einsum("oczyx,apz,bqy,drx->abdocpqr", weight.detach(), share, share, share)
    return spread.reshape(-1, *spread.shape[4:])


def _add_cubes(large: torch.Tensor, cubes: torch.Tensor) -> None:
    """Add (1, 8 c, z, y, x), eight voxels each, to (1, c, 2 z, 2 y, 2 x) in place.

    Whatever their order in memory, which is not the same for every algorithm of a GPU.
    """
    channels = large.shape[1]
    z, y, x = cubes.shape[2:]
    target = large[0].unflatten(3, (x, 2)).unflatten(2, (y, 2)).unflatten(1, (z, 2))
    apart = cubes[0].unflatten(0, (2, 2, 2, channels))
    # Channels last in both, as they mostly lie: so that they are added as they lie.
    target.permute(1, 2, 3, 4, 5, 6, 0).add_(apart.permute(4, 0, 5, 1, 6, 2, 3))


def _folded(x: torch.Tensor, n: int) -> torch.Tensor:
    """Make channels of cubes of voxels, channels last in memory."""
    _, _, z, y, x_ = x.shape
    cubes = x.new_empty(1, z // n, y // n, x_ // n, n**3)
    apart = cubes.view(z // n, y // n, x_ // n, n, n, n)
    voxels = x.reshape(z // n, n, y // n, n, x_ // n, n)
    for i in range(n):
        for j in range(n):
            apart[:, :, :, i, j] = voxels[:, i, :, j]
    return cubes.permute(0, 4, 1, 2, 3)


def _needs(options: NetworkOptions) -> list[int]:
    """Features beyond the answer that the doubling of each level needs, in the finest voxels."""
    return list(itertools.accumulate(n << level for level, n in enumerate(options.up)))


def _grown(ends: Ends, by: int) -> Ends:
    z, y, x = ((low + by, high + by) for low, high in ends)
    return z, y, x


def _convolved(have: Ends, need: int, unit: int) -> Ends:
    """Reach from which features are all the same after a convolution; not more than is needed."""
    z, y, x = ((min(need, low + unit), min(need, high + unit)) for low, high in have)
    return z, y, x


def _paired(have: Ends, need: int, unit: int) -> Ends:
    """Reach from which pairs of voxels, counted from what is needed inwards, are all the same."""

    def pairs(reach: int) -> int:
        return need - 2 * unit * max(0, (need - reach - unit) // (2 * unit))

    z, y, x = ((pairs(low), pairs(high)) for low, high in have)
    return z, y, x


def _reaching(x: torch.Tensor, have: Ends, wanted: Ends, unit: int) -> torch.Tensor:
    """Cut features, or repeat the outermost ones, so that they reach as far as wanted.

    Parameters
    ----------
    have, wanted
        Reach beyond the answer in the finest voxels.
    unit
        Finest voxels in one of `x` along an axis.
    """
    if have == wanted:
        return x
    more = [
        tuple((w - h) // unit for h, w in zip(*ends, strict=True))
        for ends in zip(have, wanted, strict=True)
    ]
    for axis, (low, high) in enumerate(more, start=2):
        cut = max(0, -low)
        x = x.narrow(axis, cut, x.shape[axis] - cut - max(0, -high))
    grown = [(max(0, low), max(0, high)) for low, high in more]
    if not any(low or high for low, high in grown):
        return x
    sizes = [n + low + high for n, (low, high) in zip(x.shape[2:], grown, strict=True)]
    result = x.new_empty(1, *sizes, x.shape[1]).permute(0, 4, 1, 2, 3)
    inner = result
    for axis, (low, _) in enumerate(grown, start=2):
        inner = inner.narrow(axis, low, x.shape[axis])
    inner.copy_(x)
    _repeat_ends(result, grown)
    return result


def _repeat_ends(x: torch.Tensor, ends: Sequence[tuple[int, int]]) -> None:
    """Fill so many voxels at the ends of each axis with the nearest others; x axis first."""
    for axis in (4, 3, 2):
        # What later axes fill is not filled yet: leave it out.
        part = x
        for other in range(2, axis):
            low, high = ends[other - 2]
            part = part.narrow(other, low, x.shape[other] - low - high)
        low, high = ends[axis - 2]
        n = x.shape[axis]
        if low:
            part.narrow(axis, 0, low).copy_(part.narrow(axis, low, 1))
        if high:
            part.narrow(axis, n - high, high).copy_(part.narrow(axis, n - high - 1, 1))
