"""Each step against scipy on the whole volume, for blocks of any shape and every executor."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from clemreg.blocks.dask import Dask
from clemreg.blocks.executors import Processes, started
from clemreg.blocks.stages import Blockwise, map_volume
from clemreg.errors import ConfigError, DataError
from clemreg.refine.apply import Stage, Workplace, apply_step, refine_organelle
from clemreg.refine.objects import fill_holes
from clemreg.refine.recipe import Organelle
from clemreg.space.grid import Grid
from clemreg.volume import Labels, Volume

from .conftest import GRID, blobs

VOXEL_NM3 = math.prod(GRID.spacing_nm)
BLOCKS = [(5, 9, 8), (14, 3, 31), (64, 64, 64)]


def refine(tmp_path, steps, values, *, how=None, kind="prediction", others=None, grid=GRID):
    organelle = Organelle.model_validate({"steps": steps})
    stage = Stage(Volume(values, grid).read, grid, kind, values.dtype)
    others = {name: Labels(ids, grid) for name, ids in (others or {}).items()}
    work = Workplace("mito", tmp_path / "work", how or Blockwise((6, 9, 8)), others)
    out = refine_organelle(organelle, stage, work, tmp_path / "out.zarr")
    assert out.grid.spacing_nm == grid.spacing_nm
    assert out.grid.origin_nm == grid.origin_nm
    return out.read()


def smoothed(prediction):
    sigma = 12.0 / np.asarray(GRID.spacing_nm)
    return ndimage.gaussian_filter(
        prediction.astype(np.float32), sigma, mode="nearest", truncate=4.0
    )


def without_small(labels, limit):
    voxels = np.bincount(labels.ravel())
    keep = voxels > limit
    keep[0] = False
    return (np.cumsum(keep) * keep)[labels]


@pytest.mark.parametrize("block", BLOCKS)
def test_smooth_threshold_components(tmp_path, prediction, block):
    minimum = 40 * VOXEL_NM3 - 1.0  # up to 40 voxels are dropped
    steps = [
        {"do": "smooth", "sigma_nm": 12.0},
        {"do": "threshold", "distance_nm": 8.0},
        {"do": "components", "min_volume_nm3": minimum},
    ]
    got = refine(tmp_path, steps, prediction, how=Blockwise(block))
    mask = smoothed(prediction) >= 128 * math.tanh(8 / 50) + 127
    whole, _ = ndimage.label(mask)
    expected = without_small(whole, 40)
    assert expected.max() > 2
    assert whole.max() > expected.max()
    assert (got == expected).all()


@pytest.mark.parametrize("distance_nm", [-20.0, 0.0, 15.0])
def test_thresholds_are_signed_distances_in_nm(tmp_path, distance_nm):
    d = np.linspace(-60, 60, GRID.size).reshape(GRID.shape)
    values = np.clip(np.rint(128 * np.tanh(d / 50) + 127), 0, 255).astype(np.uint8)
    got = refine(tmp_path, [{"do": "threshold", "distance_nm": distance_nm}], values)
    wrong = (got > 0) != (d >= distance_nm)
    assert np.abs(d[wrong] - distance_nm).max(initial=0) < 0.25  # half a grey value
    assert 0 < got.sum() < got.size


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("expand_nm", [0.0, 4.0, 8.5])
@pytest.mark.parametrize("do", ["keep_inside", "remove_inside"])
def test_masks_expand_in_nm(tmp_path, prediction, block, expand_nm, do):
    other = np.where(blobs(2, level=1.4) >= 127, 70_000, 0).astype(np.uint32)
    steps = [{"do": "threshold"}, {"do": do, "mask": "er", "expand_nm": expand_nm}]
    got = refine(tmp_path, steps, prediction, how=Blockwise(block), others={"er": other})
    distance = ndimage.distance_transform_edt(other == 0, sampling=GRID.spacing_nm)
    near = distance <= expand_nm + 1e-4
    expected = (prediction >= 127) & (near if do == "keep_inside" else ~near)
    assert 0 < expected.sum() < (prediction >= 127).sum()
    assert (got == expected).all()


def filled_by_brute_force(labels):
    """Flood each background part; count what it touches."""
    parts, count = ndimage.label(labels == 0)
    result = labels.copy()
    six = ndimage.generate_binary_structure(3, 1)
    for part in range(1, count + 1):
        inside = parts == part
        around = ndimage.binary_dilation(inside, six) & ~inside
        touched = set(np.unique(labels[around])) - {0}
        edge = np.ones(labels.shape, bool)
        edge[1:-1, 1:-1, 1:-1] = False
        if len(touched) == 1 and not (inside & edge).any():
            result[inside] = touched.pop()
    return result


@pytest.mark.parametrize("block", BLOCKS)
def test_holes_belong_to_one_object_and_not_to_the_border(tmp_path, block):
    rng = np.random.default_rng(3)
    labels, _ = ndimage.label(rng.random(GRID.shape) < 0.72)
    labels = np.where(labels == 1, rng.integers(1, 3, (14, 1, 1)) * 70_000, labels)
    labels[4:11, 3:12, 4:14] = 5
    labels[5:10, 4:11, 5:13] = 0  # a large hole across blocks
    labels[6, 5, 6] = 5  # an island in it, same id
    labels = labels.astype(np.uint32)
    expected = filled_by_brute_force(labels)
    got = fill_holes(Labels(labels, GRID), tmp_path, Blockwise(block)).read()
    assert (got[5:10, 4:11, 5:13] == 5).all()
    assert (expected != labels).sum() > 300
    assert ((expected == 0) & (labels == 0)).sum() > 100
    assert (got == expected).all()


def test_filling_can_save_an_object_from_the_size_filter(tmp_path):
    shell = np.zeros(GRID.shape, np.uint8)
    shell[2:9, 2:9, 2:9] = 255
    shell[3:8, 3:8, 3:8] = 0
    shell[10:13, 15:18, 15:18] = 255
    steps = [
        {"do": "threshold"},
        {"do": "components"},
        {"do": "fill_holes", "min_volume_nm3": 300 * VOXEL_NM3},
    ]
    got = refine(tmp_path, steps, shell)
    assert (got[2:9, 2:9, 2:9] == 1).all()
    assert (got > 0).sum() == 7**3


def test_a_volume_of_just_the_minimum_is_dropped_as_in_the_paper(tmp_path):
    values = np.zeros(GRID.shape, np.uint8)
    values[0, 0, :10] = 255
    values[5, 5, :11] = 255
    steps = [{"do": "threshold"}, {"do": "components", "min_volume_nm3": 10 * VOXEL_NM3}]
    got = refine(tmp_path, steps, values)
    assert (got[0] == 0).all()
    assert (got[5, 5, :11] == 1).all()


def three_objects():
    labels = np.zeros(GRID.shape, np.uint32)
    labels[1:4, 2:8, 2:9] = 70_001
    labels[4:9, 2:8, 2:9] = 3  # touches the first
    labels[9:12, 8:20, 10:30] = 70_009  # larger, touches 3 by an edge only
    return labels


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(
    ("step", "kept"),
    [
        ({"do": "keep", "ids": [70_001, 70_009]}, {70_001, 70_009}),
        ({"do": "drop", "ids": [70_001]}, {3, 70_009}),
        ({"do": "keep_adjacent", "ids": [70_001]}, {70_001, 3}),
        ({"do": "keep_adjacent", "ids": [70_009]}, {70_009}),
        ({"do": "largest"}, {70_009}),
    ],
)
def test_choosing_by_id(tmp_path, block, step, kept):
    labels = three_objects()
    got = refine(tmp_path, [step], labels, how=Blockwise(block), kind="labels")
    assert (got == np.where(np.isin(labels, list(kept)), labels, 0)).all()


def test_an_id_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="mito has no object 5, 7"):
        refine(tmp_path, [{"do": "keep", "ids": [7, 3, 5]}], three_objects(), kind="labels")


def test_membranes_get_the_id_of_their_parent(tmp_path, prediction):
    parent = three_objects()
    steps = [{"do": "threshold"}, {"do": "assign", "parent": "mito"}]
    got = refine(tmp_path, steps, prediction, others={"mito": parent})
    expected = np.where(prediction >= 127, parent, 0)
    assert len(np.unique(expected)) == 4
    assert (got == expected).all()


FULL = [
    {"do": "smooth"},
    {"do": "threshold"},
    {"do": "remove_inside", "mask": "er", "expand_nm": 9.0},
    {"do": "components", "min_volume_nm3": 1000.0},
    {"do": "fill_holes"},
    {"do": "keep_adjacent", "ids": [1]},
]


SPLIT = [
    {"do": "watershed", "quantile": 0.5, "threshold": 0.6, "min_volume_nm3": 1000.0},
    {"do": "fill_holes"},
    {"do": "largest"},
]


def refined_both_ways(tmp_path, executor, steps, prediction):
    """In blocks by an executor, and as one."""
    other = (blobs(2, level=1.2) >= 127).astype(np.uint32)
    how = Blockwise((7, 25, 16), executor)
    got = refine(tmp_path / "a", steps, prediction, how=how, others={"er": other})
    whole = Blockwise((64, 64, 64))
    return got, refine(tmp_path / "b", steps, prediction, how=whole, others={"er": other})


@pytest.mark.parametrize(
    "steps",
    [pytest.param(FULL, marks=pytest.mark.slow), SPLIT],
    ids=["full", "split"],
)
def test_processes_refine_alike(tmp_path, prediction, steps):
    got, expected = refined_both_ways(tmp_path, Processes(2), steps, prediction)
    assert expected.any()
    np.testing.assert_array_equal(got, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_dask_cluster_refines_alike(tmp_path, prediction):
    pytest.importorskip("distributed")
    with started(Dask("local", 2)) as executor:
        assert executor.cluster.startswith("tcp://127.0.0.1")
        for name, steps in (("full", FULL), ("split", SPLIT)):
            got, expected = refined_both_ways(tmp_path / name, executor, steps, prediction)
            assert expected.any()
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("values", [0, 255])
def test_nothing_and_everything_and_one_voxel_thick(tmp_path, values):
    grid = Grid((1, 9, 7), (5.24, 4.0, 4.0))
    prediction = np.full(grid.shape, values, np.uint8)
    steps = [
        {"do": "smooth"},
        {"do": "threshold"},
        {"do": "components"},
        {"do": "fill_holes"},
        {"do": "largest"},
    ]
    got = refine(tmp_path, steps, prediction, grid=grid, how=Blockwise((1, 4, 4)))
    assert (got == (values > 0)).all()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"do": "components"}], "'components' needs a mask or labels, but has a prediction"),
        ([{"do": "smooth"}], "ends with a prediction"),
        ([{"do": "threshold"}, {"do": "smooth"}], "'smooth' needs a prediction, but has a mask"),
        ([{"do": "threshold"}, {"do": "largest"}], "'largest' needs a labels, but has a mask"),
    ],
)
def test_steps_in_an_impossible_order(tmp_path, prediction, steps, message):
    with pytest.raises(ConfigError, match=message):
        refine(tmp_path, steps, prediction)


def test_masks_on_another_grid_are_refused(tmp_path, prediction):
    other = Labels(np.ones((3, 4, 5), np.uint8), Grid((3, 4, 5), (5.24, 4.0, 4.0)))
    organelle = Organelle.model_validate({"steps": [{"do": "keep_inside", "mask": "er"}]})
    stage = Stage(Volume(prediction, GRID).read, GRID, "mask", prediction.dtype)
    work = Workplace("mito", tmp_path, Blockwise(), {"er": other})
    with pytest.raises(DataError, match="same voxels"):
        refine_organelle(organelle, stage, work, tmp_path / "out.zarr")


def test_smoothing_a_block_is_smoothing_the_volume(tmp_path, prediction):
    from clemreg.refine.voxels import Smoothed

    read = Smoothed(Volume(prediction, GRID).read, GRID, 12.0)
    got = map_volume(read, tmp_path / "s.zarr", GRID, np.float32, Blockwise((3, 5, 7))).read()
    assert (got == smoothed(prediction)).all()  # to the last bit: ties must not depend on blocks


def test_an_unknown_step_is_an_error(prediction):
    stage = Stage(Volume(prediction, GRID).read, GRID, "prediction", prediction.dtype)
    with pytest.raises(TypeError, match="str is no step"):
        apply_step("smooth", stage, None)
