"""Every voxel of the EM has its own grey value here, so a patch tells where it comes from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clemreg.errors import ConfigError
from clemreg.segment import data
from clemreg.segment.data import PatchOptions, PatchSampler, TrainingVolume, contrast_limits

SHAPE, SPACING = (40, 36, 44), (16.0, 16.0, 16.0)
HALO = 5
CORE = (slice(HALO, -HALO),) * 3


def numbered(spacing=SPACING, *, upright=False):
    numbers = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    # Distances of up to 2000 nm, which float32 tells apart, too.
    return TrainingVolume(numbers, {"mito": numbers / 32}, spacing, upright=upright)


def steps(numbers):
    """How many voxels of the EM (axis of the patch, zyx of the EM) lie between two of a patch."""
    place = np.stack(np.unravel_index(numbers, SHAPE))
    result = []
    for axis in range(3):
        step = np.diff(place, axis=axis + 1).reshape(3, -1)
        assert (step == step[:, :1]).all()
        result.append(step[:, 0])
    return np.array(result)


@pytest.mark.parametrize("upright", [True, False])
def test_plain_patches_are_voxels_of_the_volume_turned(upright):
    volume = numbered(upright=upright)
    low, high = contrast_limits(volume.em)
    options = PatchOptions(16.0, 12, HALO, scale=(0.5, 2.0), plain=1.0)
    sampler, seen = PatchSampler([volume], options), set()
    for seed in range(400):
        x, distances, known = sampler.draw(np.random.default_rng(seed))
        numbers = np.rint((x[CORE] + 1) * (high - low) / 2 + low).astype(int)
        turned = steps(numbers)
        np.testing.assert_array_equal(distances[0] * 32, numbers)
        assert known[0].all()
        seen.add(tuple(turned.ravel().tolist()))
    # Mirrored along each axis; and y and x change places, or all three do.
    assert len(seen) == (16 if upright else 48)
    assert all(abs(turn[0]) == 1 for turn in seen) == upright


@pytest.mark.parametrize(
    ("spacing", "plain", "share"),
    [(SPACING, 0.0, 0.0), (SPACING, 0.3, 0.3), (SPACING, 1.0, 1.0), ((16.0, 16.0, 12.0), 1.0, 0.0)],
)
def test_a_share_of_the_patches_at_the_voxel_size_is_plain(monkeypatch, spacing, plain, share):
    changed = []
    monkeypatch.setattr(data, "recolour", lambda _rng, x: changed.append(x) or x)
    options = PatchOptions(16.0, 8, 2, scale=(1.0, 1.0), plain=plain)
    never = replace(numbered(), weight=0.0)
    sampler = PatchSampler([numbered(spacing), never], options)
    for seed in range(200):
        sampler.draw(np.random.default_rng(seed))
    assert abs(1 - len(changed) / 200 - share) < 0.1


def test_plain_patches_of_no_volume_are_refused():
    options = PatchOptions(16.0, 8, 2, plain=0.3)
    with pytest.raises(ConfigError, match=r"plain = 0.3 .* of 16 nm: .* = \(12.0, 16.0, 20.0\) nm"):
        PatchSampler([numbered((20.0, 16.0, 12.0))], options)


def test_without_plain_ones_the_patches_are_what_they_were():
    """A training begun before the option was there goes on with the same patches."""
    options = PatchOptions(16.0, 8, 2)
    x, _, _ = PatchSampler([numbered()], options).draw(np.random.default_rng(4))
    np.testing.assert_allclose(x[3, 4, 5:9], [0.602311, 0.281585, 0.647115, 0.522375], atol=1e-5)
