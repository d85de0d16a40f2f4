"""Basins and agglomeration: against brute force, skimage, and touching objects with known truth."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from scipy import ndimage

from clemreg.blocks.executors import Processes
from clemreg.blocks.stages import Blockwise
from clemreg.io.quantise import quantise
from clemreg.refine.agglomerate import (
    Agglomeration,
    Boundaries,
    affinity_quantile,
    agglomerate,
    find_boundaries,
)
from clemreg.refine.voxels import Smoothed
from clemreg.refine.watershed import Affinity, find_basins, find_fragments, segment_instances
from clemreg.space.grid import Grid
from clemreg.volume import Labels, Volume

from .conftest import GRID

BLOCKS = [(5, 9, 8), (14, 3, 31), (3, 25, 4), (64, 64, 64)]


def ascend(heights):
    """Follow each voxel to its maximum, one step at a time."""
    padded = np.pad(heights, 1, constant_values=-1.0)
    end = {}
    for start in zip(*np.nonzero(heights > 0), strict=True):
        here = start
        path = []
        while here not in end:
            path.append(here)
            best = here
            for step in np.ndindex(3, 3, 3):
                there = tuple(int(h + s - 1) for h, s in zip(here, step, strict=True))
                a = padded[tuple(t + 1 for t in there)]
                b = padded[tuple(t + 1 for t in best)]
                if a > b or (a == b and there < best):
                    best = there
            if best == here:
                end[here] = here
                break
            here = best
        for voxel in path:
            end[voxel] = end[here]
    labels = np.zeros(heights.shape, int)
    names = {}
    for voxel in sorted(end):
        labels[voxel] = names.setdefault(end[voxel], len(names) + 1)
    return labels


@pytest.fixture(scope="module")
def heights():
    rng = np.random.default_rng(4)
    field = ndimage.gaussian_filter(rng.normal(size=GRID.shape), 1.5).astype(np.float32)
    field = np.maximum(field / field.std(), 0)
    return np.minimum(field, np.float32(1.5))  # plateaus on top


@pytest.mark.parametrize("block", BLOCKS)
def test_basins_are_where_steepest_ascent_ends(tmp_path, heights, block):
    found = find_basins(Volume(heights, GRID).read, GRID, tmp_path, Blockwise(block))
    from clemreg.blocks.components import consecutive, write_components

    how = Blockwise(block)
    ids = write_components(found, consecutive(np.ones(len(found))), tmp_path / "o.zarr", how)
    expected = ascend(heights)
    assert expected.max() > 20
    assert (ids.read() == expected).all()


def test_basins_have_the_maxima_of_skimage(tmp_path):
    from skimage.feature import peak_local_max

    rng = np.random.default_rng(5)
    field = np.maximum(ndimage.gaussian_filter(rng.normal(size=GRID.shape), 2.0), 0)
    field = field.astype(np.float32)
    found = find_basins(Volume(field, GRID).read, GRID, tmp_path, Blockwise((6, 9, 8)))
    maxima = peak_local_max(field, min_distance=1, exclude_border=False, threshold_abs=0)
    assert len(found) == len(maxima) > 5
    assert found.table["voxels"].sum() == (field > 0).sum()


@pytest.mark.parametrize("block", BLOCKS)
def test_boundaries_count_every_pair_of_voxels_once(tmp_path, block):
    rng = np.random.default_rng(6)
    ids = rng.integers(0, 5, GRID.shape).astype(np.uint32)
    affinity = rng.random(GRID.shape).astype(np.float32)
    found = find_boundaries(
        Labels(ids, GRID), Volume(affinity, GRID), 4, tmp_path, Blockwise(block)
    )
    expected = {}
    for axis in range(3):
        a, b = ids.take(range(ids.shape[axis] - 1), axis), ids.take(range(1, ids.shape[axis]), axis)
        value = affinity.take(range(1, ids.shape[axis]), axis)
        for i, j, v in zip(a.ravel(), b.ravel(), value.ravel(), strict=True):
            if i and j and i != j:
                key = (int(min(i, j)) - 1, int(max(i, j)) - 1)
                expected.setdefault(key, []).append(int(v * 256))
    assert [tuple(p) for p in found.pairs.tolist()] == sorted(expected)
    for pair, histogram in zip(found.pairs.tolist(), found.histograms, strict=True):
        assert (histogram == np.bincount(expected[tuple(pair)], minlength=256)).all()


@pytest.mark.parametrize("quantile", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_quantiles_are_those_of_numpy(quantile):
    rng = np.random.default_rng(7)
    for size in (1, 2, 5, 100):
        bins = rng.integers(0, 256, size)
        expected = np.quantile(bins, quantile, method="lower") / 256
        assert affinity_quantile(np.bincount(bins, minlength=256), quantile) == expected


def naive_agglomeration(boundaries, quantile, threshold):
    """Score all boundaries anew after each merge, from single pairs of voxels."""

    def affinity(histogram):
        return np.quantile(np.repeat(np.arange(256), histogram), quantile, method="lower") / 256

    group = list(range(boundaries.count))
    while True:
        united = {}
        for (a, b), histogram in zip(boundaries.pairs.tolist(), boundaries.histograms, strict=True):
            key = tuple(sorted((group[a], group[b])))
            if key[0] != key[1]:
                united[key] = united.get(key, 0) + histogram
        scores = [(1 - affinity(h), *key) for key, h in united.items()]
        if not scores or min(scores)[0] > threshold:
            return np.unique(group, return_inverse=True)[1] + 1
        _, a, b = heapq.nsmallest(1, scores)[0]
        group = [a if g == b else g for g in group]


def test_small_contacts_count_more_where_the_paper_says_so():
    """Four fragments in a row: contacts of one pair, of two and of nine, all of affinity 0.5."""
    histograms = np.zeros((3, 256), np.int64)
    histograms[:, 128] = 1, 2, 9
    boundaries = Boundaries(4, np.array([(0, 1), (1, 2), (2, 3)]), histograms)

    def objects(threshold, affinity):
        return agglomerate(boundaries, 0.25, [threshold], affinity)[0].tolist()

    assert objects(0.499, "quantile") == [1, 2, 3, 4]
    assert objects(0.5, "quantile") == [1, 1, 1, 1]
    by_contact = [1 - 0.5 / np.tanh(n) for n in (1, 2, 9)]  # 0.343, 0.481, 0.5
    expected = [[1, 1, 2, 3], [1, 1, 1, 2], [1, 1, 1, 1]]
    for score, groups in zip(by_contact, expected, strict=True):
        assert objects(score + 1e-9, "quantile_by_contact") == groups
    assert objects(by_contact[0] - 1e-9, "quantile_by_contact") == [1, 2, 3, 4]


@pytest.mark.parametrize("quantile", [0.25, 0.5, 0.75])
def test_agglomeration_is_the_naive_one(quantile):
    rng = np.random.default_rng(8)
    pairs = np.array([(a, b) for a in range(25) for b in range(a + 1, 25) if rng.random() < 0.2])
    histograms = np.zeros((len(pairs), 256), np.int64)
    for row in histograms:
        centre = rng.integers(10, 245)
        np.add.at(row, np.clip(rng.normal(centre, 20, 30).astype(int), 0, 255), 1)
    boundaries = Boundaries(26, pairs, histograms)  # the last fragment touches nothing
    thresholds = [0.2, 0.4, 0.6, 0.8]
    together = agglomerate(boundaries, quantile, thresholds)
    counts = []
    for threshold, ids in zip(thresholds, together, strict=True):
        assert (ids == naive_agglomeration(boundaries, quantile, threshold)).all()
        assert (ids == agglomerate(boundaries, quantile, [threshold])[0]).all()
        counts.append(int(ids.max()))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] > 1


def touching_sausages(grid):
    """Two bent tubes that touch: prediction merges them by a thin neck; truth knows two."""
    points = grid.points_nm() - np.asarray(grid.origin_nm)
    t = np.linspace(0, 1, 60)[:, None]
    size = grid.extent_nm
    first = np.hstack([0.5 + 0 * t, 0.30 + 0.12 * np.sin(np.pi * t), 0.1 + 0.8 * t]) * size
    second = np.hstack([0.5 + 0 * t, 0.86 - 0.14 * np.sin(np.pi * t), 0.1 + 0.8 * t]) * size
    distances = []
    for line in (first, second):
        d = np.full(grid.shape, np.inf)
        for p in line:
            d = np.minimum(d, np.linalg.norm(points - p, axis=-1))
        distances.append(d)
    truth = np.where(distances[0] < distances[1], 1, 2)
    nearest = np.minimum(*distances)
    radius = 0.155 * size[1]
    truth[nearest > radius] = 0
    return quantise(np.tanh((radius - nearest) / 50.0)), truth.astype(np.uint32)


@pytest.fixture(scope="module")
def sausages():
    grid = Grid((40, 70, 80), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")
    return grid, *touching_sausages(grid)


def test_touching_objects_come_apart_and_stay_whole(tmp_path, sausages):
    grid, prediction, truth = sausages
    read = Smoothed(Volume(prediction, grid).read, grid, 12.0)
    assert ndimage.label(read(grid.box) >= 127)[1] == 1  # components merge the two
    settings = Agglomeration(0.25, 0.95)
    found = [
        segment_instances(read, grid, settings, tmp_path / f"{block}", Blockwise(block)).read()
        for block in [(40, 70, 80), (17, 24, 33)]
    ]
    assert (found[0] == found[1]).all()
    assert set(np.unique(found[0])) == {0, 1, 2}
    inside = (found[0] > 0) & (truth > 0)
    agree = (found[0] == truth)[inside].mean()
    assert max(agree, 1 - agree) > 0.99


def test_a_threshold_of_one_gives_components_again(tmp_path, sausages):
    grid, prediction, _ = sausages
    read = Smoothed(Volume(prediction, grid).read, grid, 12.0)
    how = Blockwise((20, 35, 40), Processes(2))
    labels = segment_instances(read, grid, Agglomeration(0.5, 1.0), tmp_path, how).read()
    expected, _ = ndimage.label(Affinity(read)(grid.box) > 0)
    assert (labels == expected).all()


def test_nothing_predicted(tmp_path):
    grid = Grid((1, 5, 6), (5.24, 4.0, 4.0))
    empty = Volume(np.zeros(grid.shape, np.uint8), grid)
    fragments = find_fragments(empty.read, grid, tmp_path, Blockwise((1, 3, 3)))
    assert len(fragments.found) == 0
    assert agglomerate(fragments.boundaries, 0.5, [0.5])[0].shape == (0,)
