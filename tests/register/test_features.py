"""What of an EM segmentation is registered: which mitochondria, and how much of their membrane."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from clemreg.errors import ConfigError, DataError
from clemreg.register import features
from clemreg.register.features import MovingOptions, prepare_moving
from clemreg.register.structure import structure
from clemreg.space import Grid
from clemreg.volume import Volume

GRID = Grid((30, 44, 60), (52.4, 40.0, 40.0), (700.0, -300.0, 90.0), "em")
VOXEL_NM3 = 52.4 * 40 * 40
SHARP = {"psf_sigma_nm": (1.0, 1.0, 1.0), "smooth_voxels": 0.0}


def box(*slices):
    mask = np.zeros(GRID.shape, bool)
    mask[slices] = True
    return mask


INSIDE = box(slice(12, 24), slice(10, 22), slice(10, 30))  # 2880 voxels, 2.4e8 nm3
SMALL = box(slice(4, 8), slice(30, 36), slice(10, 18))  # 192 voxels, 1.6e7
CUT = box(slice(12, 16), slice(38, 44), slice(40, 48))  # as large, but on a face
SPECK = box(slice(0, 3), slice(10, 14), slice(40, 43))  # 36 voxels, 3e6, on a face


def seen(mask, **options):
    """Where the prepared image of a mask shows something, on the grid of the mask."""
    moving = prepare_moving(Volume(mask, GRID), GRID.spacing_nm, MovingOptions(**SHARP, **options))
    assert moving.grid == GRID
    return moving.read() > 0.5


def test_small_mitochondria_are_dropped_unless_a_face_cuts_them():
    """The light microscope shows the rest of a cut one, and would match it with a neighbour."""
    everything = INSIDE | SMALL | CUT | SPECK
    assert np.array_equal(seen(everything), INSIDE | CUT)
    assert np.array_equal(seen(everything, min_cut_volume_nm3=2e7), INSIDE)  # as in the paper
    assert np.array_equal(seen(everything, min_volume_nm3=1.5e7), INSIDE | SMALL | CUT)
    assert np.array_equal(seen(everything, min_volume_nm3=0.0), everything)


def test_only_enclosed_holes_are_filled():
    hole = box(slice(16, 19), slice(14, 17), slice(15, 20))
    open_hole = box(slice(16, 19), slice(14, 17), slice(15, 60))
    assert np.array_equal(seen(INSIDE & ~hole), INSIDE)
    assert np.array_equal(seen(INSIDE & ~open_hole), INSIDE & ~open_hole)


@pytest.mark.parametrize(("reach_nm", "steps"), [(16.0, 0), (41.0, 1), (81.0, 2)])
def test_membrane_is_kept_near_kept_mitochondria(reach_nm, steps):
    """A prediction whose membrane is everywhere: what is left lies within reach of `mito`."""
    grid = Grid(GRID.shape, (40.0, 40.0, 40.0), GRID.origin_nm, "em")
    stored = np.stack([np.where(INSIDE | SMALL, 200, 50), np.full(GRID.shape, 255)])
    prediction = Volume(stored.astype(np.uint8), grid, channels=("mito", "mito_mem"))
    options = MovingOptions(**SHARP, membrane_reach_nm=reach_nm)
    found = prepare_moving(prediction, grid.spacing_nm, options).read() > 0.5
    z, y, x = np.indices((7, 7, 7)) - 3
    ball = np.hypot(np.hypot(z, y), x) <= reach_nm / 40
    assert ball.sum() == (1, 7, 33)[steps]
    assert np.array_equal(found, ndimage.binary_dilation(INSIDE, ball))


CUBIC = Grid(GRID.shape, (50.0, 50.0, 50.0), GRID.origin_nm, "em")


def prediction_of(**masks):
    """Predictions of a cubic grid, well inside or well outside of the masks."""
    stored = np.stack([np.where(mask, 200, 50) for mask in masks.values()]).astype(np.uint8)
    return Volume(stored, CUBIC, channels=tuple(masks))


def membrane_left(prediction, **options):
    options = MovingOptions(**SHARP, **options)
    return prepare_moving(prediction, CUBIC.spacing_nm, options).read() > 0.5


def test_nothing_is_left_within_150_nm_of_the_outside():
    """Only of its largest component: extracellular specks in the cell are wrong predictions."""
    outside = box(slice(10, 30), slice(0, 12), slice(14, 60))
    speck = box(slice(8, 10), slice(14, 16), slice(12, 14))  # before the outside in any order
    far = ndimage.distance_transform_edt(~outside, CUBIC.spacing_nm) > 150
    assert (INSIDE & far).any()
    assert (INSIDE & ~far).any()
    both = {"mito": INSIDE, "mito_mem": INSIDE, "ecs": outside | speck}
    assert np.array_equal(membrane_left(prediction_of(**both)), INSIDE & far)
    alone = {"mito_mem": INSIDE, "ecs": outside}
    assert np.array_equal(membrane_left(prediction_of(**alone)), INSIDE & far)
    left = membrane_left(prediction_of(**alone), outside_reach_nm=0.0)
    assert np.array_equal(left, INSIDE & ~outside)


def test_a_mitochondrion_that_the_outside_shrinks_below_the_least_volume_is_dropped():
    outside = box(slice(0, 30), slice(0, 16))  # leaves planes y 19 to 21 of INSIDE: 9e7 nm3
    prediction = prediction_of(mito=INSIDE | SMALL, mito_mem=INSIDE | SMALL, ecs=outside)
    assert membrane_left(prediction, min_volume_nm3=8.9e7).sum() == 12 * 3 * 20
    left = membrane_left(prediction, min_volume_nm3=2.3e7)
    assert left.sum() == 12 * 3 * 20 + SMALL.sum()
    with pytest.raises(DataError, match="nothing is left"):
        membrane_left(prediction, min_volume_nm3=9.1e7)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("linear", [0, 0, 1 / 14, 0.5, 13 / 14, 1, 1]),
        ("published", [0, 0, 14 / 120, 7 * 14 / 120, 13 * 14 / 120, 1, 1]),
    ],
)
def test_the_ramp_and_the_slope_that_was_published(kind, expected):
    """Blocks of one value, so that nothing is blurred between them at their middles."""
    stored = np.repeat(np.array([0, 120, 121, 127, 133, 134, 255], np.uint8), 8)
    stored = np.broadcast_to(stored, (8, 8, 56)).copy()
    grid = Grid(stored.shape, (40.0, 40.0, 40.0), (0.0, 5.0, -3.0), "em")
    options = MovingOptions(**SHARP, ramp_kind=kind)
    image = prepare_moving(Volume(stored[None], grid, channels=("mito_mem",)), (40.0,) * 3, options)
    density = image.read()[4, 4, 4::8] ** 2  # scaled so that the brightest 0.5 % are 1
    np.testing.assert_allclose(density, np.array(expected) / max(expected), atol=1e-6)


OTHER = box(slice(2, 8), slice(4, 40), slice(34, 56))


def test_of_several_channels_the_mitochondria_are_taken_or_none():
    """They came first by number, not by name: a probability of ER was registered."""
    stored = np.stack([OTHER, INSIDE]).astype(np.float32)
    for name in ("mito", "mito_mem"):
        assert np.array_equal(
            membrane_left(Volume(stored, CUBIC, channels=("er", name)), kind="probability"), INSIDE
        )
    for kind in ("mask", "probability", "prediction"):
        two = Volume(255 * stored.astype(np.uint8), CUBIC, channels=("er", "golgi"))
        with pytest.raises(DataError, match=r"\['er', 'golgi'\]: none is called mito_mem or mito"):
            membrane_left(two, kind=kind)
    one = Volume(stored[1:], CUBIC, channels=("c0",))
    assert np.array_equal(membrane_left(one, kind="probability"), INSIDE)


def test_a_further_structure_is_the_channel_of_its_own_name():
    """As `clemreg segment` writes them: mito, mito_mem, er."""
    written = prediction_of(mito=INSIDE, mito_mem=INSIDE, er=OTHER)
    found, kind = structure(written, "er")
    assert kind == "prediction"
    assert np.array_equal(membrane_left(found, kind=kind), OTHER)
    for name in ("mito", "mito_mem", "TOMM20", None):
        assert structure(written, name) == (written, "auto")
    for name in ("dna", ""):
        with pytest.raises(DataError, match="channels \\['mito', 'mito_mem', 'er'\\]: none is"):
            structure(written, name)
    alone = Volume(OTHER, CUBIC)
    assert structure(alone, "dna") == (alone, "auto")
    floats = Volume(np.stack([OTHER, INSIDE]).astype(np.float32), CUBIC, channels=("er", "golgi"))
    found, kind = structure(floats, "golgi")
    assert kind == "auto"
    assert np.array_equal(membrane_left(found, kind=kind), INSIDE)
    with pytest.raises(DataError, match="none is called mito"):
        structure(floats, None)


def test_an_unknown_ramp_is_refused():
    with pytest.raises(ConfigError, match="no ramp 'steep'"):
        MovingOptions(ramp_kind="steep")


def test_ids_are_a_mask_and_bytes_that_go_up_to_255_a_probability():
    ids = np.where(INSIDE, 3, 0).astype(np.uint8)
    ids[box(slice(18, 24), slice(10, 22), slice(10, 30))] = 60
    assert np.array_equal(seen(ids), INSIDE)
    shades = np.where(INSIDE, 200, 0).astype(np.uint8)
    shades[box(slice(12, 24), slice(10, 22), slice(10, 12))] = 20
    bright = INSIDE & (shades == 200)
    assert np.array_equal(seen(shades), bright)
    assert np.array_equal(seen(shades, kind="mask"), INSIDE)


def test_a_probability_may_have_sixteen_bits():
    shades = np.random.default_rng(0).integers(1, 256, GRID.shape).astype(np.uint16) * INSIDE
    assert np.array_equal(
        *(
            prepare_moving(Volume(each, GRID), GRID.spacing_nm, MovingOptions(kind="probability"))
            .read()
            for each in (shades.astype(np.uint8), (shades * 257).astype(np.uint16))
        )
    )  # fmt: skip
    with pytest.raises(DataError, match=r"int32 up to 65535, no probability"):
        seen((shades * 257).astype(np.int32), kind="probability")


def test_a_volume_of_classes_is_no_mask():
    """Where everything is something, the mitochondria must be named."""
    with pytest.raises(DataError, match="without a voxel that is 0"):
        seen(np.where(INSIDE, 5, 1).astype(np.uint8))
    with pytest.raises(ConfigError, match="no kind 'labels'"):
        MovingOptions(kind="labels")


WIDE = Grid((13, 22, 36), (130.0, 110.0, 90.0), (660.0, -340.0, 60.0), "em")


def outside_on(grid, values=(0, 1), dtype=np.uint8, speck=False):
    """Extracellular space beyond a slanted plane, on a grid of its own."""
    z, y, x = np.moveaxis(grid.points_nm() - np.array(CUBIC.centre_nm), -1, 0)
    marked = x - 0.5 * y + 0.3 * z < -450.0
    if speck:
        marked[4:9, 10, 15:18] = True
    return Volume(np.where(marked, values[1], values[0]).astype(dtype), grid), marked


def brought(marked, grid):
    """The mask at the voxels of `CUBIC`, voxel by voxel."""
    index = np.floor(grid.to_index(CUBIC.points_nm().reshape(-1, 3)) + 0.5).astype(int)
    inside = ((index >= 0) & (index < grid.shape)).all(axis=1)
    index = np.clip(index, 0, np.array(grid.shape) - 1)
    return (marked[tuple(index.T)] & inside).reshape(CUBIC.shape)


@pytest.mark.parametrize(
    "moving",
    [
        prediction_of(mito=INSIDE, mito_mem=INSIDE),
        prediction_of(mito=INSIDE, mito_mem=INSIDE, ecs=np.roll(INSIDE, 2)),
        Volume(INSIDE, CUBIC),
        Volume(INSIDE.astype("f4"), CUBIC),
    ],
    ids=["prediction", "prediction-with-its-own", "mask", "probability"],
)
def test_the_outside_may_be_a_volume_of_its_own_on_its_own_grid(moving):
    """It counts instead of a channel of the prediction, and for every kind of segmentation."""
    outside, marked = outside_on(WIDE)
    near = ndimage.distance_transform_edt(~brought(marked, WIDE), CUBIC.spacing_nm) <= 150
    assert 0.2 < (INSIDE & near).sum() / INSIDE.sum() < 0.8
    options = MovingOptions(**SHARP)
    found = prepare_moving(moving, CUBIC.spacing_nm, options, outside).read() > 0.5
    np.testing.assert_array_equal(found, INSIDE & ~near)


def test_all_of_a_mask_is_outside_but_only_the_largest_component_of_a_prediction():
    options = MovingOptions(**SHARP)
    moving = prediction_of(mito=INSIDE, mito_mem=INSIDE)
    one, _ = outside_on(WIDE)
    cases = {
        "mask": outside_on(WIDE, (0, 7), speck=True)[0],
        "stored": outside_on(WIDE, (126, 127), speck=True)[0],
        "float": outside_on(WIDE, (0.4, 0.5), "f4", speck=True)[0],
    }
    # Two values are a mask, so a third one makes a prediction of it.
    cases["stored"].data[0, 0, -1] = 90
    found = {
        name: prepare_moving(moving, CUBIC.spacing_nm, options, outside).read() > 0.5
        for name, outside in cases.items()
    }
    alone = prepare_moving(moving, CUBIC.spacing_nm, options, one).read() > 0.5
    np.testing.assert_array_equal(found["stored"], alone)
    np.testing.assert_array_equal(found["float"], alone)
    assert found["mask"].sum() < alone.sum()
    assert not (found["mask"] & ~alone).any()
    channels = Volume(
        np.stack([np.zeros(WIDE.shape, np.uint8), one.read()]), WIDE, channels=("mito", "ecs")
    )
    named = prepare_moving(moving, CUBIC.spacing_nm, options, channels).read() > 0.5
    np.testing.assert_array_equal(named, alone)


@pytest.mark.parametrize(
    ("outside", "words"),
    [
        (Volume(np.zeros(WIDE.shape, np.uint8), WIDE, name="ecs.tif"), "ecs.tif: there is none"),
        (outside_on(Grid(WIDE.shape, WIDE.spacing_nm, (9e6, 0, 0), "em"))[0], "do not overlap"),
        (Volume(np.ones(CUBIC.shape, np.uint8), CUBIC), "nothing is left"),
    ],
    ids=["empty", "elsewhere", "everything"],
)
def test_an_outside_that_cannot_be_is_refused(outside, words):
    moving = prediction_of(mito=INSIDE, mito_mem=INSIDE)
    if words == "do not overlap":
        data = np.ones(WIDE.shape, np.uint8)
        data[0] = 0
        outside = Volume(data, outside.grid)
    with pytest.raises(DataError, match=words):
        prepare_moving(moving, CUBIC.spacing_nm, MovingOptions(**SHARP), outside)


def test_a_mask_that_is_averaged_while_it_is_read_keeps_its_size(monkeypatch):
    """Voxels that are half foreground or more stay; ids are not averaged into other ids."""
    rng = np.random.default_rng(5)
    smooth = ndimage.gaussian_filter(rng.normal(size=(24, 30, 28)), 3.0)
    ids = np.where(smooth > 0, rng.integers(1, 9, smooth.shape), 0).astype(np.uint8)
    monkeypatch.setattr(features, "LARGEST", ids.size // 8)
    grid = Grid(ids.shape, (20.0,) * 3, (0.0, 5.0, -3.0), "em")
    options = MovingOptions(**SHARP, min_volume_nm3=0.0, min_cut_volume_nm3=0.0)
    found = prepare_moving(Volume(ids, grid), (40.0,) * 3, options)
    wanted = (ids > 0).reshape(12, 2, 15, 2, 14, 2).mean(axis=(1, 3, 5)) >= 0.5
    np.testing.assert_array_equal(found.read() > 0.5, ndimage.binary_fill_holes(wanted))
    assert found.grid.spacing_nm == (40.0,) * 3
