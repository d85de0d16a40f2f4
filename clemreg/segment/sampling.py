"""Where patches for training come from: one source or several, bent or as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import ConfigError
from clemreg.segment.augment import AugmentOptions, draw_deformation, warp
from clemreg.segment.classes import category
from clemreg.segment.data import PatchSampler
from clemreg.segment.targets import CLASSES, class_targets
from clemreg.space.grid import Grid

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
Patch = tuple[FloatArray, FloatArray, BoolArray]
"""EM (z, y, x) in about [-1, 1]; tanh targets and where they are known (class, z, y, x)."""


@runtime_checkable
class Sampler(Protocol):
    """A source of patches."""

    def draw(self, rng: np.random.Generator) -> Patch:
        """Draw a patch."""


@dataclass(frozen=True)
class PatchShape:
    """Size of a patch, the same along each axis.

    Attributes
    ----------
    inputs, outputs
        Voxels of EM, and of the targets, which lie in the middle.
    input_nm, output_nm
        Their voxel sizes.

    Raises
    ------
    ConfigError
        The targets do not lie in the middle of whole voxels of EM.
    """

    inputs: int
    outputs: int
    input_nm: float
    output_nm: float

    def __post_init__(self) -> None:
        left = self.inputs * self.input_nm - self.outputs * self.output_nm
        halo = left / (2 * self.input_nm)
        if halo < 0 or abs(halo - round(halo)) > 1e-6:
            raise ConfigError(
                f"{self.outputs} voxels of {self.output_nm:g} nm do not lie in the middle of "
                f"{self.inputs} voxels of {self.input_nm:g} nm",
                hint="the same number of whole EM voxels must be left on both sides",
            )

    @property
    def halo(self) -> int:
        """Voxels of EM on each side beyond the targets."""
        return round((self.inputs - self.outputs * self.output_nm / self.input_nm) / 2)

    def grids(self) -> tuple[Grid, Grid]:
        """Voxels of EM and of the targets, in one frame."""
        coarse = Grid((self.inputs,) * 3, (self.input_nm,) * 3)
        origin = (self.halo - 0.5) * self.input_nm + self.output_nm / 2
        return coarse, Grid((self.outputs,) * 3, (self.output_nm,) * 3, (origin,) * 3)


class VolumePatches:
    """Patches of volumes with distances to organelles, for classes of any name.

    Classes that such volumes do not tell are not known.
    """

    def __init__(self, patches: PatchSampler, classes: Sequence[str]) -> None:
        self.patches, self.classes = patches, tuple(classes)

    def draw(self, rng: np.random.Generator) -> Patch:
        """Draw a patch."""
        em, distances, known = self.patches.draw(rng)
        return em, *volume_targets(distances, known, self.classes)


def volume_targets(
    distances_nm: FloatArray, known: BoolArray, classes: Sequence[str]
) -> tuple[FloatArray, BoolArray]:
    """Targets and where they are known, for classes of any name.

    Parameters
    ----------
    distances_nm, known
        As for `clemreg.segment.targets.class_targets`.
    classes
        By any of their names. Those that do not follow from an organelle are known nowhere.
    """
    own = {category(name).name: name for name in CLASSES}
    told = [own.get(category(name).name) for name in classes]
    rows = [i for i, name in enumerate(told) if name is not None]
    target = np.full((len(told), *distances_nm.shape[1:]), -1, np.float32)
    seen = np.zeros(target.shape, dtype=bool)
    if rows:
        target[rows], seen[rows] = class_targets(
            distances_nm, known, [name for name in told if name is not None]
        )
    return target, seen


class Mixture:
    """One of several sources for each patch, as often as their weights say."""

    def __init__(self, samplers: Sequence[Sampler], weights: Sequence[float]) -> None:
        if not samplers:
            raise ConfigError(
                "there is nothing to train on",
                hint="add [simulated], or [[real]], [[cosem]] or [[cellmap]] with something that "
                "is not held out",
            )
        self.samplers = list(samplers)
        self.shares = np.asarray(weights, dtype=float) / np.sum(weights)

    def draw(self, rng: np.random.Generator) -> Patch:
        """Draw a patch."""
        chosen = rng.choice(len(self.samplers), p=self.shares) if len(self.samplers) > 1 else 0
        return self.samplers[chosen].draw(rng)


class Bent:
    """Patches of another source, each deformed by its own smooth field.

    Parameters
    ----------
    sampler
        The source.
    shape
        Size of its patches.
    jitter_nm
        Standard deviation of the displacement of control points, along each axis.
    control_nm
        Distance between them.
    """

    def __init__(
        self, sampler: Sampler, shape: PatchShape, jitter_nm: float, control_nm: float
    ) -> None:
        self.sampler, self.grids = sampler, shape.grids()
        self.options = AugmentOptions(
            control_voxels=max(1, round(control_nm / shape.input_nm)),
            jitter_nm=jitter_nm,
            rotation=(0.0, 0.0),
            subsample=4,
        )

    def draw(self, rng: np.random.Generator) -> Patch:
        """Draw a patch; what is bent in from beyond it is not known."""
        em, target, known = self.sampler.draw(rng)
        outer, inner = self.grids
        deformation = draw_deformation(rng, outer, self.options)
        bent = [
            np.stack([warp(part, inner, inner, deformation) for part in parts])
            for parts in (target, known)
        ]
        return warp(em, outer, outer, deformation), bent[0], bent[1].astype(bool)
