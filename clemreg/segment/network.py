"""A compact 3D U-Net with valid convolutions, so that a block is computed as in the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from clemreg.errors import GridError


@dataclass(frozen=True)
class NetworkOptions:
    """Shape of the network.

    Attributes
    ----------
    classes
        Names of the outputs.
    widths
        Feature channels at each level, finest first; each level halves the resolution.
    """

    classes: tuple[str, ...] = ("mito", "mito_mem")
    widths: tuple[int, ...] = (16, 32, 64)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


class UNet(nn.Module):
    """3D U-Net: two 3 x 3 x 3 convolutions and ReLU per level, max pooling, nearest upsampling.

    Input (n, 1, z, y, x) with sizes from `input_size`; output (n, classes, z, y, x) smaller by
    `halo` on every side. There is no normalisation layer, so no voxel depends on anything beyond
    its receptive field; and moving the input by `step` voxels moves the output by as much.

    References
    ----------
    Ronneberger et al., MICCAI 2015; Heinrich et al., Nature 2021 (valid 3D variant).
    """

    def __init__(self, options: NetworkOptions) -> None:
        super().__init__()
        self.options = options
        w = options.widths
        depth = len(w)
        self.down = nn.ModuleList(
            _double(1 if level == 0 else w[level - 1], w[level]) for level in range(depth)
        )
        self.up = nn.ModuleList(
            _double(w[level] + w[level + 1], w[level]) for level in range(depth - 1)
        )
        self.head = nn.Conv3d(w[0], len(options.classes), 1)

    @property
    def step(self) -> int:
        """Output sizes and block positions are multiples of this."""
        return int(2 ** (len(self.options.widths) - 1))

    @property
    def halo(self) -> int:
        """Voxels on each side that the output lacks."""
        depth = len(self.options.widths)
        down_and_up = sum(2 * 2 * 2**level for level in range(depth - 1))
        return int(down_and_up + 2 * 2 ** (depth - 1))

    def input_size(self, output: int) -> int:
        """Input voxels along an axis for `output` voxels.

        Raises
        ------
        GridError
            `output` is not a multiple of `step`.
        """
        if output % self.step or output < self.step:
            raise GridError(f"output size {output} is not a multiple of {self.step}")
        return output + 2 * self.halo

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Predict tanh signed distances."""
        skips = []
        for level, block in enumerate(self.down):
            x = block(x)
            if level < len(self.down) - 1:
                skips.append(x)
                x = nn.functional.max_pool3d(x, 2)
        for level in range(len(self.up) - 1, -1, -1):
            x = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
            x = self.up[level](torch.cat([_crop(skips[level], x.shape[2:]), x], dim=1))
        return self.head(x)


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3), nn.ReLU(True), nn.Conv3d(outputs, outputs, 3), nn.ReLU(True)
    )


def _crop(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    for axis, (n, m) in enumerate(zip(x.shape[2:], shape, strict=True)):
        x = x.narrow(axis + 2, (n - m) // 2, m)
    return x
