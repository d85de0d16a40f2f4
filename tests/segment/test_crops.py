from __future__ import annotations

import numpy as np
import pytest

from clemreg.errors import ConfigError, DataError, VoxelSizeError
from clemreg.segment.augment import AugmentOptions
from clemreg.segment.cellmap import CellMapCrop, CellMapLabel
from clemreg.segment.classes import AnnotatedIds
from clemreg.segment.crops import (
    CellMapAnnotations,
    CosemAnnotations,
    CropOptions,
    CropPatches,
    TrainingCrop,
    digest,
)
from clemreg.segment.groundtruth import CosemCrop, subsample
from clemreg.segment.sampling import Bent, Mixture, PatchShape
from clemreg.space.grid import Box, Grid
from clemreg.volume import Labels, Volume

EM = Grid((40, 60, 66), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")
CENTRE = EM.centre_nm + np.array([6.0, 10.0, -14.0])
RADIUS = 52.0
# The annotated part, in label voxels of half the EM's size.
START, STOP = (14, 20, 22), (66, 100, 112)
GREY = AugmentOptions(
    contrast=(1, 1), brightness=(0, 0), gamma=(1, 1), control_voxels=20, jitter_nm=3
)
SMALL = PatchShape(20, 12, 4.0, 4.0)


def ball(grid):
    """Distance to the surface of a ball, positive inside, on a grid in nm."""
    return RADIUS - np.linalg.norm(grid.points_nm() - CENTRE, axis=-1)


def fine_grid():
    spacing = np.asarray(EM.spacing_nm) / 2
    edge = np.asarray(EM.origin_nm) - np.asarray(EM.spacing_nm) / 2
    origin = edge + (np.asarray(START) + 0.5) * spacing
    return Grid(tuple(np.subtract(STOP, START)), tuple(spacing), tuple(origin), "em")


@pytest.fixture(scope="module")
def em():
    return Volume(np.where(ball(EM) > 0, 60, 180).astype(np.uint8), EM)


def cosem_crop(em, ids=None, masks=None, versions=None):
    """A dark ball that is mitochondrion lumen; the rest is cytosol."""
    grid = fine_grid()
    ids = ids or AnnotatedIds(frozenset({3, 4, 35}), frozenset({5, 14, 15}))
    every = np.where(ball(grid) > 0, 4, 35).astype(np.uint64)
    crop = CosemCrop("crop9", {"all": Labels(every, grid)}, masks or {}, ids)
    return TrainingCrop("s/crop9", versions or (em,), (20, 220), CosemAnnotations(crop))


def agreement(patches, shape, seeds=4):
    """Share of the surely inside or outside voxels whose grey value says the same."""
    right = total = 0
    for seed in range(seeds):
        x, target, known = patches.draw(np.random.default_rng(seed))
        scale = round(shape.input_nm / shape.output_nm)
        core = slice(shape.halo, shape.halo + shape.outputs // scale)
        grey = x[core, core, core].repeat(scale, 0).repeat(scale, 1).repeat(scale, 2)
        sure = known[0] & (np.abs(target[0]) > np.tanh(4.0 * scale / 50))
        assert target.shape == known.shape == (len(target), *(shape.outputs,) * 3)
        right += ((grey < 0) == (target[0] > 0))[sure].sum()
        total += sure.sum()
    assert total > 600
    return right / total


@pytest.mark.parametrize("augment", [None, GREY])
def test_em_and_targets_lie_together(em, augment):
    """Anisotropic voxels, an origin, labels of half the size: a dark ball where it is annotated."""
    patches = CropPatches([cosem_crop(em)], CropOptions(SMALL, ("mito",), augment))
    assert agreement(patches, SMALL) > 0.99


@pytest.mark.parametrize("augment", [None, GREY])
def test_coarse_em_and_fine_targets_lie_together(em, augment):
    """The eight sub-samplings as EM of 8 nm, targets of 4 nm."""
    shape = PatchShape(14, 12, 8.0, 4.0)
    crop = cosem_crop(em, versions=tuple(subsample(em, phase) for phase in range(8)))
    patches = CropPatches([crop], CropOptions(shape, ("mito",), augment))
    assert agreement(patches, shape) > 0.98


def test_targets_are_the_signed_distance(em):
    """Without changes: within a label voxel of the distance to the ball, in nm."""
    crop = cosem_crop(em)
    patches = CropPatches([crop], CropOptions(SMALL, ("mito",)))
    x, target, known = patches.draw(np.random.default_rng(3))
    where = np.argwhere(known[0])
    assert len(where) > 300
    rng = np.random.default_rng(3)
    rng.choice(1, p=[1.0])
    rng.integers(1)
    start, box = patches._place(rng, fine_grid(), EM, (2, 2, 2))
    np.testing.assert_array_equal(
        x, (np.clip((em.read(box) - 20.0) / 200, 0, 1) * 2 - 1).astype("f4")
    )
    points = fine_grid().to_world(np.asarray(start) + 2 * where)
    expected = RADIUS - np.linalg.norm(points - CENTRE, axis=-1)
    found = 50 * np.arctanh(target[0][known[0]].astype(float))
    near = np.abs(expected) < 60
    assert near.sum() > 50
    assert np.abs(found - expected)[near].max() < 6.5  # the diagonal of a label voxel, eroded


def test_absent_teaches_and_unknown_does_not():
    """Absent is known only farther from the border than the longest distance, as in the paper."""
    grid = Grid((150, 160, 160), (2.0, 2.0, 2.0), (-1.0, -1.0, -1.0), "em")
    coarse = Grid((75, 80, 80), (4.0, 4.0, 4.0), (0.0, 0.0, 0.0), "em")
    ids = AnnotatedIds(frozenset({35}), frozenset({14, 15}))
    crop = CosemCrop("c", {"all": Labels(np.full(grid.shape, 35, np.uint8), grid)}, {}, ids)
    em = Volume(np.zeros(coarse.shape, np.uint8), coarse)
    training = TrainingCrop("c", (em,), (0, 255), CosemAnnotations(crop))
    options = CropOptions(PatchShape(64, 64, 4.0, 4.0), ("ld", "er"))
    _, target, known = CropPatches([training], options).draw(np.random.default_rng(0))
    assert 0 < known[0].mean() < 0.1
    assert (target[0][known[0]] < -0.98).all()
    assert not known[1].any()
    with pytest.raises(DataError, match="no crop has er annotated"):
        CropPatches([training], CropOptions(SMALL, ("er",)))


def test_a_mask_takes_knowledge_away(em):
    grid = fine_grid()
    half = np.zeros(grid.shape, np.uint8)
    half[:26] = 1
    options = CropOptions(PatchShape(24, 24, 4.0, 4.0), ("mito",))
    free, masked = (
        CropPatches([cosem_crop(em, masks=m)], options).draw(np.random.default_rng(0))[2][0]
        for m in ({}, {"mito": Labels(half, grid)})
    )
    assert 0 < masked.sum() < free.sum()
    assert not (masked & ~free).any()
    edge = int(np.flatnonzero(masked.any(axis=(1, 2))).max())
    np.testing.assert_array_equal(masked[: edge + 1], free[: edge + 1])
    assert free[edge + 1 :].any()


def test_cellmap_crops_teach_class_by_class(em):
    grid = fine_grid()
    values = np.where(ball(grid) > 0, 2, 1).astype(np.uint8)
    values[:, :, :30] = 0
    label = CellMapLabel("mito", Labels(values, grid), 0, 1, 2, False)
    annotations = CellMapAnnotations(CellMapCrop("crop1", {"mito": label}))
    crop = TrainingCrop("j/crop1", (subsample(em, 0), em), (20, 220), annotations)
    patches = CropPatches([crop], CropOptions(SMALL, ("mito", "nuc"), GREY))
    assert agreement(patches, SMALL) > 0.99
    assert not patches.draw(np.random.default_rng(1))[2][1].any()
    other = CellMapLabel("ld", Labels(values, EM.crop(grid.box)), 0, 1, 2, False)
    with pytest.raises(DataError, match="2 grids"):
        CellMapAnnotations(CellMapCrop("crop1", {"mito": label, "LD": other}))


def test_patches_lie_where_it_is_annotated():
    """Most of each patch is annotated, though only a corner of the crop is."""
    grid = fine_grid()
    every = np.zeros(grid.shape, np.uint64)
    every[:30, :34, :38] = 35
    every[:30:5, :34, :38] = 4
    bright = np.zeros(EM.shape, np.uint8)
    first = np.asarray(START) // 2
    bright[tuple(slice(a, a + n) for a, n in zip(first, (15, 17, 19), strict=True))] = 255
    crop = CosemCrop("c", {"all": Labels(every, grid)}, {}, AnnotatedIds(frozenset({35, 3, 4, 5})))
    em = Volume(bright, EM)
    training = TrainingCrop("c", (em,), (0, 255), CosemAnnotations(crop))
    patches = CropPatches([training], CropOptions(PatchShape(12, 12, 4.0, 4.0), ("mito",)))
    shares = [(patches.draw(np.random.default_rng(seed))[0] > 0).mean() for seed in range(4)]
    assert min(shares) >= 0.7  # 0.75 of the label voxels
    every[5:] = 0
    with pytest.raises(DataError, match="places were tried"):
        patches.draw(np.random.default_rng(0))


def test_patches_where_nothing_can_be_known_are_drawn_again():
    """A class that is absent is known far from the border only: in the middle of this crop."""
    grid = Grid((150, 160, 160), (2.0, 2.0, 2.0), (-1.0, -1.0, -1.0), "em")
    em = Volume(np.zeros((75, 80, 80), np.uint8), Grid((75, 80, 80), (4.0,) * 3, frame="em"))
    ids = AnnotatedIds(frozenset({35}), frozenset({14, 15}))

    def crop(part):
        every = Labels(np.full(part.shape, 35, np.uint8), part)
        return TrainingCrop(
            "c", (em,), (0, 255), CosemAnnotations(CosemCrop("c", {"all": every}, {}, ids))
        )

    options = CropOptions(PatchShape(28, 28, 4.0, 4.0), ("ld",))
    patches = CropPatches([crop(grid)], options)
    assert all(patches.draw(np.random.default_rng(seed))[2].any() for seed in range(6))
    small = CropPatches([crop(grid.crop(Box((0, 0, 0), (60, 60, 60))))], options)
    with pytest.raises(DataError, match="20 patches that are annotated nothing can be known of ld"):
        small.draw(np.random.default_rng(0))


def test_crops_with_the_class_come_first_if_asked(em):
    absent = AnnotatedIds(frozenset({35}), frozenset({3, 4, 5}))
    with_it, without = cosem_crop(em), cosem_crop(em, absent)
    shares = []
    for present in (0.0, 0.8):
        patches = CropPatches(
            [with_it, without, without, without], CropOptions(SMALL, ("mito",), present=present)
        )
        rng = np.random.default_rng(0)
        shares.append(np.mean([patches._choose(rng) == 0 for _ in range(400)]))
    assert shares[0] == pytest.approx(0.25, abs=0.07)
    assert shares[1] == pytest.approx(0.8 + 0.2 * 0.25, abs=0.07)


def test_other_voxel_sizes_are_refused(em):
    with pytest.raises(VoxelSizeError, match="cannot teach a network for 8 nm"):
        CropPatches([cosem_crop(em)], CropOptions(PatchShape(14, 12, 8.0, 4.0), ("mito",)))
    with pytest.raises(VoxelSizeError, match="too coarse"):
        CropPatches([cosem_crop(em)], CropOptions(PatchShape(14, 8, 4.0, 1.0), ("mito",)))
    with pytest.raises(ConfigError, match="do not lie in the middle"):
        PatchShape(13, 10, 4.0, 4.0)


def test_bent_patches_bend_together(em):
    """The ball is still dark where the target is positive, and is not where it was."""
    straight = CropPatches([cosem_crop(em)], CropOptions(SMALL, ("mito",)))
    bent = Bent(straight, SMALL, 8.0, 40.0)
    assert agreement(bent, SMALL) > 0.97
    a, b = (s.draw(np.random.default_rng(2)) for s in (straight, bent))
    assert a[0].shape == b[0].shape
    assert np.abs(a[1] - b[1]).max() > 0.1
    assert b[2].dtype == bool


def test_a_mixture_draws_by_weight():
    class Fixed:
        def __init__(self, value):
            self.value = value

        def draw(self, _rng):
            return self.value

    mixture = Mixture([Fixed("a"), Fixed("b")], [1.0, 3.0])
    drawn = [mixture.draw(np.random.default_rng(i)) for i in range(400)]
    assert drawn.count("b") / 400 == pytest.approx(0.75, abs=0.06)
    with pytest.raises(ConfigError, match="nothing to train on"):
        Mixture([], [])


def test_crops_are_told_from_others_by_every_voxel_that_is_learnt_from(em):
    """A label or a grey value in the middle of a slab, at an end, and what was looked for."""
    grid = fine_grid()
    same = digest([cosem_crop(em)])
    assert digest([cosem_crop(Volume(em.read().copy(), EM))]) == same
    labels = np.where(ball(grid) > 0, 4, 35).astype(np.uint64)
    others = [digest([cosem_crop(em, ids=AnnotatedIds(frozenset({3, 4, 35}), frozenset({5})))])]
    for place in ((0, 0, 0), (31, 50, 40), (40, 31, 17), (51, 79, 89)):  # 31: the end of a slab
        changed = labels.copy()
        changed[place] = 3
        crop = CosemCrop(
            "crop9", {"all": Labels(changed, grid)}, {}, cosem_crop(em).annotations.crop.ids
        )
        others.append(digest([TrainingCrop("s/crop9", (em,), (20, 220), CosemAnnotations(crop))]))
    for place in ((7, 10, 11), (20, 30, 33), (32, 49, 55)):  # the crop's corners, and its middle
        grey = em.read().copy()
        grey[place] += 1
        others.append(digest([cosem_crop(Volume(grey, EM))]))
    others.append(digest([cosem_crop(em)] * 2))
    assert len({same, *others}) == len(others) + 1
