"""Score a network during training on volumes that it never learns from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from clemreg.errors import ConfigError
from clemreg.segment.cosem import CosemUNet
from clemreg.segment.data import (
    FloatVolume,
    TrainingVolume,
    contrast_limits,
    normalise,
    separable_resample,
)
from clemreg.segment.network import UNet
from clemreg.segment.reading import Reader, taken_spacing
from clemreg.segment.sampling import Patch, PatchShape, Sampler, volume_targets
from clemreg.segment.targets import ORGANELLES
from clemreg.space.grid import Box, Grid, Triple
from clemreg.volume import Volume

# Input around each tile, in voxels: enough to be far from the zeros beyond the edge.
MARGIN = 32
TILE = 160
LONGEST_NM = 200.0


# Patches that are scored of each held-out crop.
_PATCHES = 4
Network = UNet | CosemUNet


@dataclass(frozen=True)
class Score:
    """How well one class is found.

    Attributes
    ----------
    iou, dice
        Overlap of the foreground; NaN if there is none in truth and prediction.
    mean_false_distance_nm
        Mean of the distances of predicted voxels to the truth and of true voxels to the
        prediction, each cut at 200 nm (0 for the right ones); NaN if either is empty.
    """

    iou: float
    dice: float
    mean_false_distance_nm: float


class Examiner(Protocol):
    """What scores a network while it trains."""

    @property
    def cases(self) -> Sequence[Any]:
        """What it scores on."""

    def examine(self, network: Network) -> tuple[dict[str, Score], NDArray[np.uint8]]:
        """Scores by class, and a picture (y, x); it is computed where the network is."""


class Validation:
    """Held-out volumes at the voxel sizes at which they are predicted, and what is true in them.

    Parameters
    ----------
    spacing_nm
        Voxel size of the network. Volumes are resampled as `clemreg segment` does it: to the
        nearest voxels that the network takes, if their own are not.
    """

    def __init__(
        self, volumes: Sequence[TrainingVolume], spacing_nm: float, classes: Sequence[str]
    ) -> None:
        self.classes = tuple(classes)
        self.spacings_nm = [taken_spacing(v.spacing_nm, (spacing_nm,) * 3) for v in volumes]
        self.cases: Sequence[Case] = [
            _case(v, taken, self.classes)
            for v, taken in zip(volumes, self.spacings_nm, strict=True)
        ]

    def examine(self, network: Network) -> tuple[dict[str, Score], NDArray[np.uint8]]:
        """Score every annotated class over all volumes together, and picture the first volume.

        Returns
        -------
        scores, example
            By class; and the middle slice of EM, truth and prediction of the first class side by
            side (y, 3 x).
        """
        logits = [_predict(network, em) for em, _, _ in self.cases]
        return self._scores([p > 0 for p in logits]), _example(self.cases[0], logits[0])

    def _scores(self, found: Sequence[NDArray[np.bool_]]) -> dict[str, Score]:
        result = {}
        for i, name in enumerate(self.classes):
            parts = [
                (f[i] & k[i], t[i] & k[i], spacing)
                for f, (_, t, k), spacing in zip(found, self.cases, self.spacings_nm, strict=True)
                if k[i].any()
            ]
            if parts:
                result[name] = _score(parts)
        return result


class PatchValidation:
    """Fixed patches of held-out crops, and what is true in them.

    Parameters
    ----------
    samplers
        One for each crop; they change nothing by chance but the place.
    shape
        Size of their patches.
    classes
        Names in the order of their targets.
    """

    def __init__(
        self, samplers: Sequence[Sampler], shape: PatchShape, classes: Sequence[str]
    ) -> None:
        self.shape, self.classes = shape, tuple(classes)
        self.cases: Sequence[Patch] = [
            sampler.draw(np.random.default_rng((i, k)))
            for i, sampler in enumerate(samplers)
            for k in range(_PATCHES)
        ]

    def examine(self, network: Network) -> tuple[dict[str, Score], NDArray[np.uint8]]:
        """Score every annotated class over all patches together, and picture the first patch."""
        found = [self._predict(network, em) for em, _, _ in self.cases]
        scores = {}
        for i, name in enumerate(self.classes):
            parts = [
                ((f[i] >= 0) & k[i], (t[i] >= 0) & k[i], (self.shape.output_nm,) * 3)
                for f, (_, t, k) in zip(found, self.cases, strict=True)
                if k[i].any()
            ]
            if parts:
                scores[name] = _score(parts)
        return scores, self._example(found[0])

    def _predict(self, network: Network, em: FloatVolume) -> FloatVolume:
        """Tanh distances, or logits, of the middle of a patch."""
        with torch.inference_mode():
            x = _on_device_of(network, em)
            if isinstance(network, CosemUNet):
                return np.asarray(network(x)[0].cpu().numpy())
            core = slice(self.shape.halo, self.shape.halo + self.shape.outputs)
            return np.asarray(network.padded_logits(x)[0, :, core, core, core].cpu().numpy())

    def _example(self, found: FloatVolume) -> NDArray[np.uint8]:
        em, target, _ = self.cases[0]
        z, halo = self.shape.outputs // 2, self.shape.halo
        scale = round(self.shape.input_nm / self.shape.output_nm)
        seen = self.shape.outputs // scale
        grey = em[halo + z // scale, halo : halo + seen, halo : halo + seen]
        shown = grey.repeat(scale, axis=0).repeat(scale, axis=1) / 2 + 0.5
        panels = [shown, target[0, z] >= 0, np.tanh(found[0, z]) / 2 + 0.5]
        picture = np.clip(np.concatenate(panels, axis=1), 0, 1) * 255
        return np.asarray(picture, dtype=np.uint8)


Case = tuple[FloatVolume, NDArray[np.bool_], NDArray[np.bool_]]
"""Normalised EM (z, y, x) with `MARGIN` around; truth and where it is known (class, z, y, x)."""


def _case(volume: TrainingVolume, spacing_nm: Triple, classes: Sequence[str]) -> Case:
    """Read a volume on voxels of `spacing_nm` (zyx); the edges of both grids coincide."""
    own = Grid(volume.em.shape, volume.spacing_nm)
    shape = own.with_spacing(spacing_nm).shape
    reader = Reader(Volume(volume.em, own), own.with_spacing(spacing_nm))
    em = normalise(reader.read(Box((0, 0, 0), shape).grow(MARGIN)), contrast_limits(volume.em))
    axes = [
        np.minimum((np.arange(n) + 0.5) * (s / f) - 0.5, most - 1)
        for n, s, f, most in zip(shape, spacing_nm, own.spacing_nm, own.shape, strict=True)
    ]
    distances = np.zeros((len(ORGANELLES), *shape), np.float32)
    known = np.zeros(distances.shape, bool)
    for i, organelle in enumerate(ORGANELLES):
        if organelle in volume.distances_nm:
            part = volume.distances_nm[organelle]
            distances[i], known[i] = separable_resample(part, axes, (1.0, 1.0, 1.0)), True
    target, seen = volume_targets(distances, known, classes)
    return em, target > 0, seen


def _on_device_of(network: Network, em: FloatVolume) -> torch.Tensor:
    device = next(network.parameters()).device
    return torch.from_numpy(np.ascontiguousarray(em))[None, None].to(device)


def _predict(network: Network, em: FloatVolume) -> FloatVolume:
    """Logits (class, z, y, x) of EM with `MARGIN` around, tile by tile in y and x."""
    if not isinstance(network, UNet):
        raise ConfigError(
            "a COSEM network is scored on crops, not on volumes",
            hint="give crops with held_out, and no held_out slices of volumes",
        )
    depth, *across = (n - 2 * MARGIN for n in em.shape)
    result = np.zeros((len(network.options.classes), depth, *across), np.float32)
    up = [-n % network.step for n in em.shape]
    padded = np.pad(em, [(0, u) for u in up], mode="edge")
    with torch.inference_mode():
        for y, x in _tiles(across):
            part = padded[:, y.start : y.stop + 2 * MARGIN, x.start : x.stop + 2 * MARGIN]
            more = [-n % network.step for n in part.shape]
            part = np.pad(part, [(0, m) for m in more], mode="edge")
            logits = network.padded_logits(_on_device_of(network, part))[0].cpu().numpy()
            inner = logits[:, MARGIN:, MARGIN:, MARGIN:]
            result[:, :, y, x] = inner[:, :depth, : y.stop - y.start, : x.stop - x.start]
    return result


def _example(case: Case, logits: FloatVolume) -> NDArray[np.uint8]:
    em, truth, _ = case
    z = truth.shape[1] // 2
    grey_em = em[z + MARGIN, MARGIN:-MARGIN, MARGIN:-MARGIN]
    panels = [grey_em / 2 + 0.5, truth[0, z], np.tanh(logits[0, z]) / 2 + 0.5]
    grey = np.clip(np.concatenate(panels, axis=1), 0, 1) * 255
    return np.asarray(grey, dtype=np.uint8)


def _tiles(shape: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    for y in range(0, shape[0], TILE):
        for x in range(0, shape[1], TILE):
            yield slice(y, min(y + TILE, shape[0])), slice(x, min(x + TILE, shape[1]))


def _score(parts: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_], Triple]]) -> Score:
    """Compare predictions and truths (z, y, x), each with its voxel size, together."""
    both = sum(int((p & t).sum()) for p, t, _ in parts)
    either = sum(int((p | t).sum()) for p, t, _ in parts)
    total = sum(int(p.sum()) + int(t.sum()) for p, t, _ in parts)
    false = [
        np.concatenate([_distances(p, t, spacing) for p, t, spacing in parts]),
        np.concatenate([_distances(t, p, spacing) for p, t, spacing in parts]),
    ]
    empty = not all(len(d) for d in false)
    return Score(
        iou=both / either if either else float("nan"),
        dice=2 * both / total if total else float("nan"),
        mean_false_distance_nm=float("nan") if empty else float(np.mean([d.mean() for d in false])),
    )


def _distances(
    of: NDArray[np.bool_], to: NDArray[np.bool_], spacing_nm: Triple
) -> NDArray[np.float32]:
    """Distance of each voxel of one mask to the other, cut at 200 nm."""
    import edt

    if not to.any():
        return np.full(int(of.sum()), LONGEST_NM, np.float32)
    distance = edt.edt(np.ascontiguousarray(~to), anisotropy=spacing_nm, parallel=1)
    return np.asarray(np.minimum(distance[of], LONGEST_NM), dtype=np.float32)
