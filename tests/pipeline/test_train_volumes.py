from __future__ import annotations

import re

import numpy as np
import pytest
import tifffile

pytest.importorskip("torch")

from clemreg.errors import (
    ConfigError,
    DataError,
    GridError,
)
from clemreg.io.volumes import write_volume
from clemreg.pipeline.train import (
    load_train_config,
    train_from_config,
    training_volumes,
)
from clemreg.pipeline.train_volumes import held_out_volumes, real_volumes
from clemreg.space.grid import Grid
from clemreg.volume import Volume

from .conftest import CONFIG

pytestmark = [pytest.mark.torch, pytest.mark.xdist_group("torch")]


def test_held_out_slices_are_never_trained_on(config):
    path, em, labels = config
    loaded = load_train_config(path, (f"mine={path.parent / 'data'}",))
    real, simulated = training_volumes(loaded)
    (held_out,) = held_out_volumes(loaded.real[0])
    np.testing.assert_array_equal(real.em, em[10:])
    np.testing.assert_array_equal(held_out.em, em[:10])
    np.testing.assert_array_equal(held_out.distances_nm["mito"] > 0, labels[:10] > 0)
    assert real.spacing_nm == held_out.spacing_nm == (17.0, 16.0, 15.0)
    assert set(real.distances_nm) == {"mito"}
    assert set(simulated.distances_nm) == {"mito", "er"}


@pytest.mark.parametrize(
    "values",
    [
        lambda em: em.astype(np.uint16) * 200,
        lambda em: em.astype(np.int16) * 200 - 25_000,
        lambda em: em.astype(np.float32) / 255,
        lambda em: em.astype(np.float64) / 255,
    ],
    ids=["uint16", "int16", "float32", "float64"],
)
@pytest.mark.parametrize("pool", [1, 2])
def test_em_that_is_not_bytes_keeps_its_grey_values(config, values, pool):
    """What is learnt from and what is scored: the network sees the same as with bytes."""
    path, em, _ = config
    path.write_text(CONFIG.replace("[simulated]", f"pool = {pool}\n[simulated]"))
    loaded = load_train_config(path, (f"mine={path.parent / 'data'}",))
    tifffile.imwrite(loaded.real[0].em, values(em))
    real, _ = training_volumes(loaded)
    (held_out,) = held_out_volumes(loaded.real[0])
    for volume, part in ((real, em[10:]), (held_out, em[:10])):
        z, y, x = (n // pool for n in part.shape)
        blocks = values(part).reshape(z, pool, y, pool, x, pool)
        assert volume.em.dtype == np.float32
        np.testing.assert_allclose(volume.em, blocks.mean(axis=(1, 3, 5)), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_em_with_values_that_are_no_numbers_is_refused(config, bad):
    path, em, _ = config
    loaded = load_train_config(path, (f"mine={path.parent / 'data'}",))
    values = em.astype(np.float32)
    values[3, 4, 5] = bad
    tifffile.imwrite(loaded.real[0].em, values)
    with pytest.raises(DataError, match=r"em\.tif holds values that are not finite"):
        list(held_out_volumes(loaded.real[0]))


def test_bytes_are_averaged_to_bytes(config):
    """As the bundled networks were trained."""
    path, em, _ = config
    path.write_text(CONFIG.replace("[simulated]", "pool = 2\n[simulated]"))
    loaded = load_train_config(path, (f"mine={path.parent / 'data'}",))
    (held_out,) = held_out_volumes(loaded.real[0])
    assert held_out.em.dtype == np.uint8
    blocks = em[:10].reshape(5, 2, 12, 2, 14, 2).astype(int).sum(axis=(1, 3, 5))
    np.testing.assert_array_equal(held_out.em, blocks // 8)


def test_rows_and_columns_without_outlines_are_not_there(config):
    """As if the volume ended there: a mask cut off at its faces teaches no surface."""
    path, em, labels = config
    path.write_text(CONFIG.replace("[simulated]", "rows = [7, 24]\ncolumns = [9, 27]\n[simulated]"))
    loaded = load_train_config(path, (f"mine={path.parent / 'data'}",))
    real, _ = training_volumes(loaded)
    (held_out,) = held_out_volumes(loaded.real[0])
    for volume, part in ((real, np.s_[10:, 7:, 9:27]), (held_out, np.s_[:10, 7:, 9:27])):
        np.testing.assert_array_equal(volume.em, em[part])
        np.testing.assert_array_equal(volume.distances_nm["mito"] > 0, labels[part] > 0)
    # The label goes on beyond row 7 and column 9 by one: no surface there, the next one is far.
    assert real.distances_nm["mito"][5, 0, 0] > 40


def test_a_volume_annotated_slice_by_slice_is_upright(config):
    path, _, _ = config
    folder = (f"mine={path.parent / 'data'}",)
    assert not next(training_volumes(load_train_config(path, folder))).upright
    path.write_text(CONFIG.replace("[simulated]", "upright = true\n[simulated]"))
    loaded = load_train_config(path, folder)
    real, simulated = training_volumes(loaded)
    (held_out,) = held_out_volumes(loaded.real[0])
    assert (real.upright, held_out.upright, simulated.upright) == (True, True, False)


@pytest.mark.parametrize("part", ["[30, 10]", "[0, 100]", "[-5, 10]", "[5, 5]", "[0, -1]"])
def test_held_out_slices_that_are_not_there_are_refused(config, part):
    path, _, _ = config
    path.write_text(CONFIG.replace("held_out = [0, 10]", f"held_out = {part}"))
    loaded = load_train_config(path, (f"mine={path.parent / 'data'}",))
    for volumes in (training_volumes(loaded), held_out_volumes(loaded.real[0])):
        text = rf"held_out = {re.escape(part)} of .*em\.tif: there are 40 slices"
        with pytest.raises(ConfigError, match=text) as error:
            list(volumes)
        assert "0 <= first < end <= 40" in error.value.hint


@pytest.mark.parametrize(
    ("part", "learnt", "told"),
    [
        ((0, 0), [(0, 40)], []),
        ((0, 24), [(24, 40)], []),
        ((16, 24), [(0, 16), (24, 40)], []),
        ((15, 24), [(24, 40)], ["slices 0 to 14"]),
        ((1, 20), [(20, 40)], ["slice 0"]),
        ((16, 25), [(0, 16)], ["slices 25 to 39"]),
        ((0, 40), [], []),  # all are for scores
    ],
)
def test_parts_with_few_slices_are_left_out_and_told(config, caplog, part, learnt, told):
    path, em, _ = config
    path.write_text(CONFIG.replace("held_out = [0, 10]", f"held_out = {list(part)}"))
    entry = load_train_config(path, (f"mine={path.parent / 'data'}",)).real[0]
    found = list(real_volumes(entry))
    for volume, (a, b) in zip(found, learnt, strict=True):
        np.testing.assert_array_equal(volume.em, em[a:b])
    assert sum(v.weight for v in found) == pytest.approx(0.5 if learnt else 0)
    assert [r.getMessage() for r in caplog.records] == [
        f"{entry.em}: too few to learn from: {slices}" for slices in told
    ]


@pytest.mark.parametrize("part", [(0, 30), (14, 29), (1, 40)])
def test_a_volume_with_too_few_slices_beside_the_held_out_is_refused(config, part):
    path, _, _ = config
    path.write_text(CONFIG.replace("held_out = [0, 10]", f"held_out = {list(part)}"))
    entry = load_train_config(path, (f"mine={path.parent / 'data'}",)).real[0]
    text = rf"em\.tif: no part with 16 slices .*it has 40, and held_out = \[{part[0]}, {part[1]}\]"
    with pytest.raises(ConfigError, match=text) as error:
        list(real_volumes(entry))
    assert "held_out = [0, 40] is for scores only" in error.value.hint


def test_a_thin_volume_is_refused_by_what_it_has(config):
    path, em, labels = config
    path.write_text(CONFIG.replace("held_out = [0, 10]", ""))
    entry = load_train_config(path, (f"mine={path.parent / 'data'}",)).real[0]
    tifffile.imwrite(entry.em, em[:12])
    tifffile.imwrite(entry.labels, labels[:12])
    with pytest.raises(ConfigError, match=r"em\.tif: no part with 16 slices .*: it has 12, and"):
        list(real_volumes(entry))


def test_all_slices_held_out_leave_nothing_to_train_on(config):
    path, _, _ = config
    path.write_text(
        CONFIG[: CONFIG.index("[simulated]")].replace("held_out = [0, 10]", "held_out = [0, 40]")
    )
    with pytest.raises(ConfigError, match="there is nothing to train on") as error:
        train_from_config(path, (f"mine={path.parent / 'data'}",))
    assert "not held out" in error.value.hint


@pytest.mark.parametrize("line", ["rows = [0, 25]", "columns = [20, 8]", "rows = [-1, 9]"])
def test_rows_that_are_not_there_are_refused(config, line):
    path, _, _ = config
    path.write_text(CONFIG.replace("[simulated]", f"{line}\n[simulated]"))
    name = line.split()[0]
    n = {"rows": 24, "columns": 28}[name]
    with pytest.raises(ConfigError, match=rf"{name} = .* of .*em.tif: there are {n} {name}"):
        list(training_volumes(load_train_config(path, (f"mine={path.parent / 'data'}",))))


@pytest.mark.parametrize("key", ["em", "labels"])
@pytest.mark.parametrize("channels", [("one",), ("one", "other")])
def test_volumes_have_one_channel(config, key, channels):
    """An axis of one is left out, as of many OME-Zarr; of two, none is the one."""
    path, em, labels = config
    loaded = load_train_config(path, (f"mine={path.parent / 'data'}",))
    entry = loaded.real[0].model_copy(update={key: str(path.parent / "c.zarr")})
    values = {"em": em, "labels": labels}[key]
    grid = Grid(em.shape, (17.0, 16.0, 15.0))
    stacked = Volume(np.stack([values] * len(channels)), grid, channels)
    write_volume(path.parent / "c.zarr", stacked)
    if len(channels) == 1:
        (found,), (expected,) = real_volumes(entry), real_volumes(loaded.real[0])
        np.testing.assert_array_equal(found.em, expected.em)
        np.testing.assert_array_equal(found.distances_nm["mito"], expected.distances_nm["mito"])
    else:
        with pytest.raises(DataError, match=r"c\.zarr has 2 channels \(one, other\), expected one"):
            list(real_volumes(entry))


@pytest.mark.parametrize("more", [1, -1])
def test_em_and_labels_lie_on_the_same_voxels(config, more):
    path, em, labels = config
    loaded = load_train_config(path, (f"mine={path.parent / 'data'}",))
    other = labels[:, :more] if more < 0 else np.pad(labels, [(0, 0), (0, more), (0, 0)])
    tifffile.imwrite(loaded.real[0].labels, other)
    z, y, x = em.shape
    with pytest.raises(GridError, match=rf"mito.tif has \({z}, {y + more}, {x}\) voxels, .*em.tif"):
        next(training_volumes(loaded))
