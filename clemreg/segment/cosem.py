"""The U-Net of the COSEM paper in torch, with the names that its published checkpoints use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from clemreg.errors import GridError
from clemreg.segment.setups import OUTPUT_NM

POOLING = (2, 3, 3)
STEP = 18
"""Input sizes are multiples of this, and moving the input by it moves the output."""
SMALLEST = 198
HALO = 90
"""Input voxels on each side that the output of the U-Net itself lacks."""
# What two 3 x 3 x 3 convolutions take off an axis.
_PASS = 4


@dataclass(frozen=True)
class CosemOptions:
    """Shape of the network.

    Attributes
    ----------
    classes
        Names of the outputs in channel order.
    input_nm
        Voxel size of the EM: 4 nm, or 8 nm with one more upsampling; the output has 4 nm.
    widths
        Feature channels at the four levels on the way down, finest first.
    up_widths
        Feature channels at the three levels on the way up, finest first.
    """

    classes: tuple[str, ...]
    input_nm: float
    widths: tuple[int, int, int, int] = (12, 72, 432, 2592)
    up_widths: tuple[int, int, int] = (72, 72, 432)

    def __post_init__(self) -> None:
        if self.input_nm not in (OUTPUT_NM, 2 * OUTPUT_NM):
            raise GridError(
                f"COSEM networks take EM of 4 or 8 nm, not {self.input_nm} nm",
                hint="resample the EM first",
            )
        widths = (*self.widths, *self.up_widths)
        counts = len(self.widths), len(self.up_widths)
        if counts != (4, 3) or not all(isinstance(n, int) and n > 0 for n in widths):
            raise GridError(
                f"widths {self.widths} and up_widths {self.up_widths} are not four and three "
                "numbers of channels"
            )

    @property
    def scale(self) -> int:
        """Output voxels per input voxel along an axis."""
        return round(self.input_nm / OUTPUT_NM)

    def output_size(self, size: int) -> int:
        """Output voxels along an axis for `size` input voxels.

        Raises
        ------
        GridError
            The size is not a multiple of `STEP` from `SMALLEST` on.

        Examples
        --------
        >>> [CosemOptions((), nm).output_size(216) for nm in (4.0, 8.0)]
        [36, 68]
        """
        if size % STEP or size < SMALLEST:
            raise GridError(
                f"a COSEM network cannot take {size} voxels along an axis",
                hint=f"multiples of {STEP} from {SMALLEST} on fit",
            )
        core = size - 2 * HALO
        return core if self.scale == 1 else self.scale * core - _PASS

    def input_size(self, most: int) -> int:
        """Largest input size whose output has at most `most` voxels, but at least `SMALLEST`."""
        size = SMALLEST
        while self.output_size(size + STEP) <= most:
            size += STEP
        return size


class CosemUNet(nn.Module):
    """3D U-Net with valid convolutions, four levels, and output voxels of 4 nm.

    Two 3 x 3 x 3 convolutions with ReLU at each level; max pooling by 2, 3, 3; upsampling repeats
    voxels, mixes channels by one matrix and applies a ReLU, as in the trained networks (a ReLU has
    no weights, so loading cannot notice when it is left out). After upsampling, features are
    cropped so that moving the input by `STEP` voxels moves the output by as much. The head is
    linear: its output is compared with the tanh of the signed distance as it is.

    Input (n, 1, z, y, x) in [-1, 1]; output (n, class, z, y, x), sizes as in
    `CosemOptions.output_size`.

    References
    ----------
    Heinrich et al., Nature 599:141 (2021), and its published training setups.
    """

    def __init__(self, options: CosemOptions) -> None:
        super().__init__()
        self.options = options
        top = options.up_widths[0]
        self.backbone = nn.ModuleList([_Backbone(options)])
        if options.scale > 1:
            self.backbone += [_Upsample(options.scale, top, top), _ConvPass(top, top)]
        self.prediction_head = nn.Conv3d(top, len(options.classes), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Predict tanh signed distances.

        Raises
        ------
        GridError
            The input has a size that does not fit.
        """
        for size in x.shape[2:]:
            self.options.output_size(size)
        for part in self.backbone:
            x = part(x)
        result: torch.Tensor = self.prediction_head(x)
        return result


class _Backbone(nn.Module):
    """The U-Net itself: `l_conv` down, `r_up` and `r_conv` up."""

    def __init__(self, options: CosemOptions) -> None:
        super().__init__()
        w, u = options.widths, options.up_widths
        below = (u[1], u[2], w[3])  # features that come up to each level
        raised = (u[0], u[1], u[2])  # and after their upsampling
        self.l_conv = nn.ModuleList(_ConvPass(a, b) for a, b in zip((1, *w[:3]), w, strict=True))
        self.r_up = nn.ModuleList(
            [
                nn.ModuleList(
                    _Upsample(k, a, b) for k, a, b in zip(POOLING, below, raised, strict=True)
                )
            ]
        )
        self.r_conv = nn.ModuleList(
            [
                nn.ModuleList(
                    _ConvPass(skip + up, out)
                    for skip, up, out in zip(w[:3], raised, u, strict=True)
                )
            ]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for convolve, factor in zip(self.l_conv, POOLING, strict=False):
            x = convolve(x)
            skips.append(x)
            x = nn.functional.max_pool3d(x, factor)
        x = self.l_conv[-1](x)
        up, conv = (part[0] for part in (self.r_up, self.r_conv))
        for level in (2, 1, 0):
            x = _crop_to_factor(up[level](x), level)  # type: ignore[index]
            x = torch.cat([_crop(skips[level], x.shape[2:]), x], dim=1)
            x = conv[level](x)  # type: ignore[index]
        return x


class _ConvPass(nn.Module):
    """Two valid 3 x 3 x 3 convolutions, each with ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv_pass = nn.Sequential(
            nn.Conv3d(inputs, outputs, 3), nn.ReLU(), nn.Conv3d(outputs, outputs, 3), nn.ReLU()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv_pass(x)
        return result


class _Upsample(nn.Module):
    """Repeat voxels, mix channels, ReLU."""

    def __init__(self, factor: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=factor, mode="nearest"),
            nn.Conv3d(inputs, outputs, 1),
            nn.ReLU(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Mixing before repeating gives the same numbers with less work.
        repeat, mix, relu = self.up
        result: torch.Tensor = repeat(relu(mix(x)))
        return result


def _crop_to_factor(x: torch.Tensor, level: int) -> torch.Tensor:
    """Crop so that what the convolutions leave is a multiple of what follows from the pooling."""
    factor = STEP
    for pooled in POOLING[:level]:
        factor //= pooled
    return _crop(x, [(n - _PASS) // factor * factor + _PASS for n in x.shape[2:]])


def _crop(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Cut the middle out; the odd voxel is left at the end."""
    for axis, (n, m) in enumerate(zip(x.shape[2:], shape, strict=True)):
        x = x.narrow(axis + 2, (n - m) // 2, m)
    return x
