"""A compact 3D U-Net with valid convolutions, so that a block is computed as in the whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from clemreg.errors import GridError

Features = Callable[[torch.Tensor], torch.Tensor]


def _as_it_is(x: torch.Tensor) -> torch.Tensor:
    return x


@dataclass(frozen=True)
class NetworkOptions:
    """Shape of the network.

    Attributes
    ----------
    classes
        Names of the outputs.
    widths
        Feature channels at each level, finest first; each level halves the resolution.
    down
        3 x 3 x 3 convolutions at each level on the way down, the deepest level included.
    up
        3 x 3 x 3 convolutions at each level on the way up, finest first, one number fewer.
    fold
        Input voxels along each axis that become the channels of one voxel of the finest level;
        the head unfolds as many. 1: the finest level is the input's grid.
    """

    classes: tuple[str, ...] = ("mito", "mito_mem")
    widths: tuple[int, ...] = (16, 32, 64)
    down: tuple[int, ...] = (2, 2, 2)
    up: tuple[int, ...] = (2, 2)
    fold: int = 1

    def __post_init__(self) -> None:
        counts = (*self.widths, *self.down, *self.up, self.fold)
        if not self.widths or not all(isinstance(n, int) and n > 0 for n in counts):
            raise GridError(
                f"widths {self.widths}, down {self.down}, up {self.up} and fold {self.fold} are "
                "not whole numbers from 1 on",
                hint="every level needs channels and a convolution",
            )
        if len(self.down) != len(self.widths) or len(self.up) != len(self.widths) - 1:
            raise GridError(
                f"widths {self.widths} need as many entries in down ({self.down}) and one fewer "
                f"in up ({self.up})"
            )
        size = int(2 ** (len(self.widths) - 1))
        for level, convolutions in enumerate(self.up):
            size += 2 * convolutions
            if size % 2:
                raise GridError(
                    f"up {self.up} leaves an odd size at level {level}, which cannot come from "
                    "doubling",
                    hint="with three levels (2, 2) fits, with four (2, 1, 2)",
                )
            size //= 2

    @property
    def step(self) -> int:
        """Output sizes and block positions are multiples of this."""
        return int(self.fold * 2 ** (len(self.widths) - 1))

    @property
    def halo(self) -> int:
        """Voxels on each side that the output lacks: the radius of the receptive field."""
        return self.fold * sum(
            n << level
            for convolutions in (self.down, self.up)
            for level, n in enumerate(convolutions)
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


class UNet(nn.Module):
    """3D U-Net that works on voxels folded into channels, for short times on any processor.

    ``fold`` voxels along each axis are taken as channels of one (space to depth); then levels of
    3 x 3 x 3 convolutions with ReLU, max pooling on the way down, nearest upsampling and
    concatenated skips on the way up; the head gives every class for each of the folded voxels.
    tanh at the end.

    Input (n, 1, z, y, x) with sizes from `input_size`; output (n, classes, z, y, x) smaller by
    `halo` on every side. There is no normalisation layer, so no voxel depends on anything beyond
    its receptive field; and moving the input by `step` voxels moves the output by as much.

    References
    ----------
    Ronneberger et al., MICCAI 2015; Heinrich et al., Nature 2021 (valid 3D variant); Shi et al.,
    CVPR 2016 (sub-pixel head).
    """

    def __init__(self, options: NetworkOptions) -> None:
        super().__init__()
        self.options = options
        w = options.widths
        depth = len(w)
        cube = options.fold**3
        self.down = nn.ModuleList(
            _block(cube if level == 0 else w[level - 1], w[level], options.down[level])
            for level in range(depth)
        )
        self.up = nn.ModuleList(
            _block(w[level] + w[level + 1], w[level], options.up[level])
            for level in range(depth - 1)
        )
        self.head = nn.Conv3d(w[0], len(options.classes) * cube, 1)

    @property
    def step(self) -> int:
        """Output sizes and block positions are multiples of this."""
        return self.options.step

    @property
    def halo(self) -> int:
        """Voxels on each side that the output lacks."""
        return self.options.halo

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

    @property
    def convolutions(self) -> tuple[nn.Conv3d, ...]:
        """Those followed by a ReLU, in the order in which they are used."""
        blocks = [*self.down, *list(self.up)[::-1]]
        return tuple(c for block in blocks for c in block.children() if isinstance(c, nn.Conv3d))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Predict tanh signed distances."""
        return torch.tanh(self._pass(x, 0, _as_it_is))

    def padded_logits(self, x: torch.Tensor, after: Features = _as_it_is) -> torch.Tensor:
        """Predict every voxel of the input, with zeros beyond its edge, before the tanh.

        For training: a valid pass would spend most of its work on the halo. Near the edge the
        answer is worse; the loss leaves a margin out. Sizes are multiples of `step`.

        Parameters
        ----------
        x
            (n, 1, z, y, x).
        after
            What is done to the features after each of `convolutions`, before its ReLU.
        """
        return self._pass(x, 1, after)

    def _pass(self, x: torch.Tensor, padding: int, after: Features) -> torch.Tensor:
        x = fold(x, self.options.fold)
        skips = []
        for level, block in enumerate(self.down):
            x = _convolve(block, x, padding, after)
            if level < len(self.down) - 1:
                skips.append(x)
                x = nn.functional.max_pool3d(x, 2)
        for level in range(len(self.up) - 1, -1, -1):
            x = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
            x = torch.cat([_crop(skips[level], x.shape[2:]), x], dim=1)
            x = _convolve(self.up[level], x, padding, after)
        return unfold(self.head(x), self.options.fold)


def digest(network: nn.Module) -> str:
    """Tell the weights of any network from others."""
    known = hashlib.sha256()
    for name, value in network.state_dict().items():
        if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            continue  # what networks of others may hold beside weights
        known.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        known.update(
            value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return known.hexdigest()[:16]


def fold(x: torch.Tensor, n: int) -> torch.Tensor:
    """Make channels of cubes of `n` voxels: (b, c, z, y, x) to (b, c n^3, z/n, y/n, x/n)."""
    if n == 1:
        return x
    b, c, z, y, x_ = x.shape
    cubes = x.reshape(b, c, z // n, n, y // n, n, x_ // n, n).permute(0, 1, 3, 5, 7, 2, 4, 6)
    layout = torch.channels_last_3d
    return cubes.reshape(b, c * n**3, z // n, y // n, x_ // n).contiguous(memory_format=layout)


def unfold(x: torch.Tensor, n: int) -> torch.Tensor:
    """Undo `fold`."""
    if n == 1:
        return x
    b, c, z, y, x_ = x.shape
    cubes = x.reshape(b, c // n**3, n, n, n, z, y, x_).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return cubes.reshape(b, c // n**3, z * n, y * n, x_ * n)


def _block(inputs: int, outputs: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(convolutions):
        layers += [nn.Conv3d(inputs if i == 0 else outputs, outputs, 3), nn.ReLU(True)]
    return nn.Sequential(*layers)


def _convolve(block: nn.Module, x: torch.Tensor, padding: int, after: Features) -> torch.Tensor:
    for layer in block.children():
        if isinstance(layer, nn.Conv3d):
            x = after(nn.functional.conv3d(x, layer.weight, layer.bias, padding=padding))
        else:
            x = layer(x)
    return x


def _crop(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    for axis, (n, m) in enumerate(zip(x.shape[2:], shape, strict=True)):
        x = x.narrow(axis + 2, (n - m) // 2, m)
    return x
