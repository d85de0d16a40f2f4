"""The network as it is computed to predict: the same function with less work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from clemreg.segment.network import UNet

# Each voxel of a doubled axis lies with its neighbours over two of the voxels that were doubled:
# rows are the even and the odd voxel, and which of its three weights fall on which of the two.
_ON_FIRST = ((True, True, False), (True, False, False))


class FastUNet(nn.Module):
    """A `UNet` rearranged for speed; answers agree up to the rounding of float32.

    A convolution over voxels that were just doubled sees each of them several times. It is one
    of 2 x 2 x 2 over the voxels before doubling that gives all eight voxels of the double at once
    (weights that fall on one voxel are added up): 8 products instead of 27. What comes from the
    skip is convolved apart and added; so nothing is doubled or concatenated. On a processor, all
    convolutions are oneDNN's: torch by itself takes another algorithm for small blocks, whose
    last bits differ.

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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Predict tanh signed distances, the voxels of each cube apart.

        Parameters
        ----------
        x
            (1, 1, z, y, x), as for `UNet`.

        Returns
        -------
        torch.Tensor
            (class, z, fold, y, fold, x, fold), a view; `joined` makes (class, z, y, x) of it.
        """
        x = _folded(x, self.options.fold)
        skips = []
        for level, block in enumerate(self.down):
            for convolution in block:  # type: ignore[attr-defined]
                x = convolution(x).relu_()
            if level < len(self.down) - 1:
                skips.append(x)
                x = nn.functional.max_pool3d(x, 2)
        for level in range(len(self.up) - 1, -1, -1):
            x = self.up[level](x, skips.pop())
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
    bias: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        if bias is None:
            bias = weight.new_zeros(len(weight))
        layout = torch.channels_last_3d
        self.register_buffer("weight", weight.detach().contiguous(memory_format=layout))
        self.register_buffer("bias", bias.detach().clone())

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
        joint: torch.Tensor = self.skip(_middle(skip, [2 * n for n in x.shape[2:]]))
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


def _middle(x: torch.Tensor, shape: list[int]) -> torch.Tensor:
    for axis, (n, m) in enumerate(zip(x.shape[2:], shape, strict=True)):
        x = x.narrow(axis + 2, (n - m) // 2, m)
    return x
