from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

torch = pytest.importorskip("torch")

from clemreg.cli.app import run_app  # noqa: E402
from clemreg.errors import ConfigError, DataError, FormatError, MissingError, VoxelSizeError  # noqa: E402
from clemreg.io.quantise import quantise  # noqa: E402
from clemreg.io.volumes import WriteOptions, open_volume, write_volume  # noqa: E402
from clemreg.segment.blockwise import find_limits  # noqa: E402
from clemreg.segment.data import contrast_limits, normalise  # noqa: E402
from clemreg.segment.models import (  # noqa: E402
    FORMAT,
    Model,
    ModelCard,
    bundled_models,
    load_model,
    model_info,
    save_model,
    write_tensors,
)
from clemreg.segment.network import NetworkOptions, UNet  # noqa: E402
from clemreg.segment.predict import PredictOptions, predict  # noqa: E402
from clemreg.segment.reading import reader_for  # noqa: E402
from clemreg.space import Box, Grid  # noqa: E402
from clemreg.volume import Volume  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.xdist_group("torch")]
SPACING = (16.0, 16.0, 16.0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = UNet(NetworkOptions(widths=(4, 6), down=(1, 1), up=(2,), fold=2)).eval()
    with torch.no_grad():
        network.head.weight *= 6  # so that outputs spread over many grey levels
    return Model(ModelCard("tiny", SPACING), network)


@pytest.fixture
def em():
    rng = np.random.default_rng(2)
    return Volume(rng.integers(0, 255, (21, 34, 45)).astype(np.uint8), Grid((21, 34, 45), SPACING))


def whole(em, model):
    """The network on the whole extended volume at once, written independently."""
    x = normalise(em.read(), contrast_limits(em.read()))
    halo, step = model.network.halo, model.network.step
    up = [-n % step for n in x.shape]
    padded = np.pad(x, [(halo, halo + u) for u in up], mode="edge")
    with torch.inference_mode():
        out = model.network(torch.from_numpy(padded)[None, None])[0].numpy()
    z, y, x_ = em.shape
    return quantise(out[:, :z, :y, :x_])


@pytest.mark.parametrize("block", [8, 20, 48])
def test_blocks_give_the_whole(tmp_path, em, model, block):
    limits = contrast_limits(em.read())
    options = PredictOptions(block=block, precise=True, limits=limits)
    found = predict(em, model, tmp_path / "p.zarr", options=options).read()
    assert len(np.unique(found)) > 20
    np.testing.assert_array_equal(found, whole(em, model))


def test_a_stopped_prediction_goes_on_and_gives_the_same(tmp_path, em, model):
    options = PredictOptions(block=16, precise=True)
    straight = predict(em, model, tmp_path / "a.zarr", options=options).read()
    calls = []

    def stop(done, _total, _message):
        calls.append(done)
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(em, model, tmp_path / "b.zarr", options=options, progress=stop)
    assert not (tmp_path / "b.zarr").exists()
    seen = []
    again = predict(
        em, model, tmp_path / "b.zarr", options=options, progress=lambda d, _t, _m: seen.append(d)
    )
    assert seen[0] == 6
    np.testing.assert_array_equal(again.read(), straight)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "b.zarr"]


def test_other_weights_of_the_same_name_do_not_go_on(tmp_path, em, model):
    """Nor does another EM with the same voxels: no output is half of each."""

    def stop(done, _total, _message):
        if done == 5:
            raise KeyboardInterrupt

    options = PredictOptions(block=16, precise=True, limits=(0, 255))
    with pytest.raises(KeyboardInterrupt):
        predict(em, model, tmp_path / "p.zarr", options=options, progress=stop)
    other = UNet(model.network.options).eval()
    other.load_state_dict(model.network.state_dict())
    with torch.no_grad():
        other.head.bias[-1] += 1
    renamed = replace(em, name="another.zarr")
    for pair in ((em, Model(model.card, other)), (renamed, model)):
        with pytest.raises(FormatError, match="unfinished output of another") as error:
            predict(*pair, tmp_path / "p.zarr", options=options)
        assert ".p.zarr.partial and .p.zarr.blocks" in error.value.hint
    found = predict(em, model, tmp_path / "p.zarr", options=options).read()
    straight = predict(em, model, tmp_path / "q.zarr", options=options).read()
    np.testing.assert_array_equal(found, straight)


@pytest.mark.parametrize("removed", [False, True])
def test_coarser_levels_are_whole_after_a_stop(tmp_path, model, removed):
    """Gone on with, or begun anew: what was noted of levels that are gone counts for nothing."""
    shape = (10, 20, 140)
    pixels = np.random.default_rng(3).integers(0, 255, shape).astype(np.uint8)
    volume, options = Volume(pixels, Grid(shape, SPACING)), PredictOptions(block=16, precise=True)
    straight = predict(volume, model, tmp_path / "a" / "p.zarr", options=options)
    assert [v.shape[2] for v in straight.levels] == [140, 70, 35]

    def stop(done, _total, message):
        if message == "coarser levels" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(volume, model, tmp_path / "b" / "p.zarr", options=options, progress=stop)
    assert (tmp_path / "b" / ".p.zarr.level1").exists()
    if removed:
        shutil.rmtree(tmp_path / "b" / ".p.zarr.partial")
    found = predict(volume, model, tmp_path / "b" / "p.zarr", options=options)
    for level, expected in zip(found.levels, straight.levels, strict=True):
        np.testing.assert_array_equal(level.read(), expected.read())
        assert level.read().std() > 1
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["p.zarr"]


@pytest.mark.slow
def test_a_killed_prediction_goes_on_and_gives_the_same_file(tmp_path, em, model):
    """Killed outright, at any moment: what is finished stays, the rest is done again."""
    save_model(model.network, model.card, tmp_path / "m.safetensors")
    write_volume(tmp_path / "em.zarr", em)
    command = [sys.executable, "-m", "clemreg", "segment", str(tmp_path / "em.zarr")]
    command += ["--model", str(tmp_path / "m.safetensors"), "--block", "8", "--precise", "--out"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "killed" / "p.zarr")], stderr=subprocess.DEVNULL
    )
    ledger = tmp_path / "killed" / ".p.zarr.blocks"
    deadline = time.monotonic() + 100
    while not ledger.exists() or ledger.read_text().count("\n") < 4:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = ledger.read_text().count("\n") - 1
    assert not (tmp_path / "killed" / "p.zarr").exists()
    assert before < 90
    done = subprocess.run(
        [*command, str(tmp_path / "killed" / "p.zarr")], capture_output=True, text=True, check=True
    )
    first = re.search(r"PROGRESS (\d+)/\d+", done.stderr)
    assert first is not None
    assert int(first[1]) > before
    straight = predict(
        open_volume(tmp_path / "em.zarr", frame="em"),
        model,
        tmp_path / "straight" / "p.zarr",
        options=PredictOptions(block=8, precise=True),
    )
    roots = (tmp_path / "straight" / "p.zarr", tmp_path / "killed" / "p.zarr")
    assert file_contents(roots[0]) == file_contents(roots[1])
    assert len(np.unique(straight.read())) > 20


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from clemreg.io.volumes import open_volume
from clemreg.segment.models import load_model
from clemreg.segment.predict import PredictOptions, predict
folder = Path(sys.argv[1])
em, model = open_volume(folder / "em.zarr", frame="em"), load_model(folder / "m.safetensors")
options = PredictOptions(block=8, precise=True, threads=1)
chance, kills = random.Random(int(sys.argv[2])), 0
while True:
    child = os.fork()
    if not child:
        predict(em, model, folder / "killed" / "p.zarr", options=options)
        os._exit(0)
    # From before anything is written to a few blocks on.
    time.sleep(chance.choice([0.0, 0.01, 0.03, 0.1, 0.3]) * chance.random() * (1 + kills / 5))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        break
    kills += 1
print(kills, os.WEXITSTATUS(status))
"""


@pytest.mark.slow
def test_killed_again_and_again_at_any_moment(tmp_path, em, model):
    """Dozens of kills, from before the first byte on: the file is that of one straight run."""
    save_model(model.network, model.card, tmp_path / "m.safetensors")
    write_volume(tmp_path / "em.zarr", em)
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path), "1"],
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    kills, status = (int(v) for v in done.stdout.split())
    assert status == 0
    assert kills > 5
    predict(
        open_volume(tmp_path / "em.zarr", frame="em"),
        model,
        tmp_path / "straight" / "p.zarr",
        options=PredictOptions(block=8, precise=True),
    )
    killed, straight = (file_contents(tmp_path / name) for name in ("killed", "straight"))
    assert sorted(killed) == sorted(straight)
    assert killed == straight


def file_contents(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_mirrored_views_are_averaged(tmp_path, em, model):
    """The mean over x and y mirrors, computed independently on the whole."""
    limits = contrast_limits(em.read())
    options = PredictOptions(block=16, precise=True, limits=limits, views=4)
    found = predict(em, model, tmp_path / "p.zarr", options=options).read()
    network = model.network
    up = [-n % network.step for n in em.shape]
    x = normalise(em.read(), limits)
    padded = np.pad(x, [(network.halo, network.halo + u) for u in up], mode="edge")
    tensor = torch.from_numpy(padded)[None, None]
    with torch.inference_mode():
        views = [network(tensor.flip(axes)).flip(axes) for axes in ([], [4], [3], [3, 4])]
    mean = torch.stack(views).mean(0)[0, :, : em.shape[0], : em.shape[1], : em.shape[2]]
    difference = np.abs(found.astype(int) - quantise(mean.numpy()))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3
    assert (found != whole(em, model)).mean() > 0.3
    with pytest.raises(ConfigError, match="1, 2, 4, 8"):
        PredictOptions(views=3)


def test_contrast_limits_stand_for_black_and_white(tmp_path, em, model):
    doubled = Volume(em.read().astype(np.uint16) * 200 + 1000, em.grid)
    options = {"block": 24, "precise": True}
    a = predict(em, model, tmp_path / "a.zarr", options=PredictOptions(**options, limits=(10, 240)))
    limits = (10 * 200 + 1000, 240 * 200 + 1000)
    b = predict(
        doubled, model, tmp_path / "b.zarr", options=PredictOptions(**options, limits=limits)
    )
    assert (np.abs(a.read().astype(int) - b.read()) <= 1).all()
    c = predict(em, model, tmp_path / "c.zarr", options=PredictOptions(**options, limits=(90, 160)))
    assert (a.read() != c.read()).mean() > 0.3


def with_averages(pixels, spacing, origin, count):
    """Levels of averages of 2 x 2 x 2 voxels, down to one voxel along an axis."""
    levels = []
    for _ in range(count):
        grid = Grid(pixels.shape, spacing, origin, "em")
        levels.append(Volume(pixels, grid, name="em"))
        factor = [2 if n > 1 else 1 for n in pixels.shape]
        origin = tuple(o + (f - 1) / 2 * s for o, f, s in zip(origin, factor, spacing, strict=True))
        spacing = tuple(f * s for f, s in zip(factor, spacing, strict=True))
        z, y, x = (n // f for n, f in zip(pixels.shape, factor, strict=True))
        blocks = pixels[: z * factor[0], : y * factor[1], : x * factor[2]].reshape(
            z, factor[0], y, factor[1], x, factor[2]
        )
        pixels = blocks.mean((1, 3, 5)).round().astype(np.uint8)
    return replace(levels[0], coarser=tuple(levels[1:]))


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_black_and_white_do_not_depend_on_coarser_levels(count):
    """Speckle of 30 and 220: averages of 8 voxels are grey, the last level is one voxel."""
    pixels = np.random.default_rng(7).choice([30, 220], (22, 34, 46)).astype(np.uint8)
    em = with_averages(pixels, (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), count)
    assert find_limits(em) == (30, 220)


class Unread:
    """Voxels that nobody may read."""

    def __init__(self, shape):
        self.shape, self.dtype = shape, np.dtype(np.uint8)

    def __getitem__(self, key):
        raise AssertionError(f"{self.shape} was read")


def test_black_and_white_of_a_huge_volume_are_those_of_its_last_large_level():
    """Of 5e11, 3e7 and 500 voxels, the middle ones are read."""
    middle = np.full((240, 320, 400), 90, np.uint8)
    middle[:, ::7] = 60
    middle[:, 3::7] = 200
    shapes = ((6000, 8000, 10000), middle.shape, (6, 8, 10))
    arrays = Unread(shapes[0]), middle, Unread(shapes[2])
    levels = [
        Volume(a, Grid(s, (5.24 * k, 4.0 * k, 4.0 * k), (300.0, -200.0, 70.0), "em"))
        for a, s, k in zip(arrays, shapes, (1, 25, 1000), strict=True)
    ]
    assert find_limits(replace(levels[0], coarser=tuple(levels[1:]))) == (60, 200)


@pytest.mark.parametrize("block", [8, 24])
def test_a_mask_says_where_to_predict(tmp_path, em, model, block):
    """A coarse, shifted mask that ends inside the EM; voxel by voxel the nearest of it counts."""
    grid = Grid((6, 8, 9), (40.0, 50.0, 64.0), (30.0, -20.0, 55.0), "em")
    rng = np.random.default_rng(1)
    pixels = (rng.random(grid.shape) < 0.3).astype(np.uint8)
    pixels[:, :3] = 0  # so that whole blocks lie outside
    limits = contrast_limits(em.read())
    options = PredictOptions(block=block, precise=True, limits=limits, mask=Volume(pixels, grid))
    found = predict(em, model, tmp_path / "p.zarr", options=options).read()
    index = np.floor(grid.to_index(em.grid.points_nm()) + 0.5).astype(int).reshape(-1, 3)
    within = ((index >= 0) & (index < grid.shape)).all(axis=1)
    inside = np.zeros(len(index), bool)
    inside[within] = pixels[tuple(index[within].T)] > 0
    expected = whole(em, model) * inside.reshape(em.shape)
    assert 0.05 < inside.mean() < 0.5
    np.testing.assert_array_equal(found, expected)


def test_progress_says_how_fast(tmp_path, em, model):
    said = []
    options = PredictOptions(block=16)
    predict(
        em,
        model,
        tmp_path / "p.zarr",
        options=options,
        progress=lambda done, total, message: said.append((done, total, message)),
    )
    assert [s[0] for s in said] == list(range(1, said[0][1] + 1))
    assert all(re.fullmatch(r"\d+\.\d\d Mvoxel/s", s[2]) for s in said)


def test_other_voxel_sizes_are_resampled_in_place(tmp_path, caplog):
    """A step edge stays where it is in nm."""
    torch.manual_seed(0)
    model = Model(ModelCard("flat", SPACING), UNet(NetworkOptions(widths=(4,), down=(1,), up=())))
    fine = Grid((60, 64, 68), (8.0, 8.0, 8.0), (100.0, -50.0, 30.0), "em")
    pixels = np.full(fine.shape, 40, np.uint8)
    pixels[:, :, 34:] = 200
    volume = Volume(pixels, fine)
    found = predict(volume, model, tmp_path / "p.zarr", options=PredictOptions(precise=True))
    assert "resampled to (12.8, 12.8, 12.8) nm" in caplog.text
    np.testing.assert_allclose(found.grid.spacing_nm, 12.8)
    edge = np.asarray(fine.origin_nm) - 4
    np.testing.assert_allclose(np.asarray(found.grid.origin_nm) - 6.4, edge)
    rows = found.read()[0, 15, 16].astype(float)
    change = np.abs(np.diff(rows[6:-6])).argmax() + 6
    edge_nm = fine.origin_nm[2] + 33.5 * 8
    assert abs(found.grid.to_world([0, 0, change + 0.5])[2] - edge_nm) < 3 * 12.8


@pytest.mark.parametrize(
    ("found", "taken"),
    [
        ((5.24, 4.0, 4.0), (12.8, 6.4, 6.4)),
        ((19.0, 9.5, 7.0), (19.0, 9.5, 7.0)),
        ((40.0, 7.0, 7.0), None),
        ((40.0, 24.0, 16.0), (20.0, 10.0, 10.0)),
    ],
)
def test_the_voxel_size_nearest_to_that_of_the_em_is_taken(found, taken):
    """For a network of 16 x 8 x 8 nm that a quarter more or less does not harm."""
    grid = Grid((11, 17, 23), found, (300.0, -200.0, 70.0), "em")
    reader = reader_for(Volume(np.zeros(grid.shape, np.uint8), grid), (16.0, 8.0, 8.0), 1.25)
    if taken is None:  # flat voxels of the same volume as 24.5 x 12.2 x 12.2 nm
        taken = tuple(np.cbrt(40 * 7 * 7 / (16 * 8 * 8)) * np.array([16, 8, 8]))
    np.testing.assert_allclose(reader.grid.spacing_nm, taken)
    np.testing.assert_allclose(
        reader.grid.to_world([-0.5] * 3), grid.to_world([-0.5] * 3), atol=1e-9
    )


def test_a_pyramid_gives_what_its_finest_level_would(tmp_path):
    """5 nm EM goes to 6.4 nm, also where a level of 10 nm lies nearer to the network's 8 nm."""
    rng = np.random.default_rng(5)
    grid = Grid((22, 34, 46), (5.0, 5.0, 5.0), (300.0, -200.0, 70.0), "em")
    pixels = rng.integers(0, 255, grid.shape, np.uint8)
    write_volume(tmp_path / "em.zarr", Volume(pixels, grid), options=WriteOptions(levels=2))
    volume = open_volume(tmp_path / "em.zarr", frame="em")
    assert [v.grid.spacing_nm[0] for v in volume.levels] == [5.0, 10.0]
    reader = reader_for(volume, (8.0, 8.0, 8.0), 1.25)
    assert reader.volume.grid.spacing_nm == (5.0, 5.0, 5.0)
    np.testing.assert_allclose(reader.grid.spacing_nm, 6.4)


def test_distances_are_in_nm_whatever_the_voxels(tmp_path):
    """A network that counts voxels: the distance to a plane is read off the grey values."""
    network = UNet(NetworkOptions(classes=("mito",), widths=(2,), down=(1,), up=()))
    with torch.no_grad():
        for values in network.parameters():
            values.zero_()
        conv = network.convolutions[0]
        conv.weight[0, 0, 1, 1, 1], conv.weight[1, 0, 1, 1, 1] = 1, -1
        # Grey values change by 1/20 a voxel, so the logit is the distance in voxels of 16 nm / 50.
        network.head.weight[0, :, 0, 0, 0] = torch.tensor([1.0, -1.0]) * 20 * 16 / 50
    model = Model(ModelCard("ruler", SPACING), network.eval())
    for nm in (13.0, 16.0, 19.9):
        grid = Grid((11, 17, 23), (nm,) * 3, (300.0, -200.0, 70.0), "em")
        voxels = np.broadcast_to(np.arange(23) - 11.0, grid.shape).astype(np.float32)
        options = PredictOptions(limits=(-20.0, 20.0), precise=True)
        out = predict(Volume(voxels, grid), model, tmp_path / f"{nm}.zarr", options=options)
        np.testing.assert_array_equal(out.read()[0], quantise(np.tanh(voxels * nm / 50)))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16"])
@pytest.mark.parametrize("own_nm", [(40.0, 4.0, 4.0), (5.24, 4.0, 4.0), (14.0, 11.0, 12.0)])
def test_a_resampled_voxel_is_the_same_in_any_box(dtype, own_nm):
    """To the last bit, and linear between the voxels as SciPy has it where they are finer."""
    limits = np.iinfo(dtype)
    pixels = np.random.default_rng(2).integers(limits.min, limits.max, (11, 17, 23), dtype)
    own = Grid(pixels.shape, own_nm, (300.3, -200.1, 70.7), "em")
    reader = reader_for(Volume(pixels, own), (8.0, 8.0, 8.0), 1.25)
    box = Box((-3, -2, -5), tuple(n + 4 for n in reader.grid.shape))
    whole = reader.read(box)
    for start in np.ndindex(*(-(-n // 5) for n in box.shape)):
        low = np.asarray(start) * 5 + box.start
        part = Box(tuple(low), tuple(np.minimum(low + 5, box.stop)))
        inside = part.shift([-a for a in box.start]).slices
        np.testing.assert_array_equal(reader.read(part), whole[inside])
    if (np.asarray(reader.grid.spacing_nm) < own_nm).all():
        index = own.to_index(reader.grid.points_nm()).transpose(3, 0, 1, 2)
        expected = map_coordinates(pixels.astype(float), index, order=1, mode="nearest")
        core = reader.read(Box((0, 0, 0), reader.grid.shape))
        np.testing.assert_allclose(core, expected, atol=1e-3 * np.ptp(expected))


def test_resampled_blocks_give_the_whole_to_the_bit(tmp_path, em, model):
    """Beyond the EM, too, where resampled voxels are all the same from the second on."""
    spacing = tuple(s * k for s, k in zip(model.card.spacing_nm, (1.7, 0.6, 0.7), strict=True))
    volume = Volume(em.read(), Grid(em.shape, spacing, (300.0, -200.0, 70.0), "em"))
    found = [
        predict(
            volume, model, tmp_path / f"{b}.zarr", options=PredictOptions(block=b, precise=True)
        ).read()
        for b in (0, 8, 20)
    ]
    assert found[0].shape[1:] != em.shape
    assert found[0].std() > 1
    for each in found[1:]:
        np.testing.assert_array_equal(each, found[0])


def test_inputs_that_cannot_be_segmented(tmp_path, model):
    def run(pixels):
        volume = Volume(pixels, Grid(pixels.shape, SPACING))
        predict(volume, model, tmp_path / "p.zarr")

    with pytest.raises(DataError, match="volume is needed"):
        run(np.zeros((1, 40, 40), np.uint8))
    with pytest.raises(DataError, match="same grey value"):
        run(np.full((12, 12, 12), 9, np.uint8))
    with pytest.raises(DataError, match="NaN"):
        run(np.full((12, 12, 12), np.nan, np.float32))
    coarse = Volume(
        np.arange(64000, dtype=np.uint16).reshape(40, 40, 40), Grid((40,) * 3, (26e3,) * 3)
    )
    with pytest.raises(VoxelSizeError, match="too coarse"):
        predict(coarse, model, tmp_path / "p.zarr")
    with pytest.raises(DataError, match="do not meet") as error:
        mask = Volume(np.ones((9, 9, 9), np.uint8), Grid((9, 9, 9), SPACING, (500.0, 0, 0)))
        volume = Volume(np.zeros((12, 12, 12), np.uint8), Grid((12, 12, 12), SPACING))
        predict(
            volume, model, tmp_path / "p.zarr", options=PredictOptions(limits=(0, 9), mask=mask)
        )
    assert "one frame" in error.value.hint
    with pytest.raises(ConfigError, match="expected two grey values"):
        PredictOptions(limits=(math.nan, 255))
    with pytest.raises(ConfigError, match="blocks of -5 voxels"):
        PredictOptions(block=-5)
    assert not (tmp_path / "p.zarr").exists()


def test_an_empty_mask_and_a_coarser_level_are_told(tmp_path, em, model, caplog):
    mask = Volume(np.zeros(em.shape, np.uint8), em.grid, name="cell.zarr")
    found = predict(em, model, tmp_path / "p.zarr", options=PredictOptions(mask=mask)).read()
    assert not found.any()
    assert "the mask cell.zarr is 0 in all of the EM: nothing is predicted" in caplog.text
    fine = Grid(tuple(2 * n for n in em.shape), (8.0,) * 3, (-4.0,) * 3)
    pixels = em.read().repeat(2, 0).repeat(2, 1).repeat(2, 2)
    pyramid = Volume(pixels, fine, coarser=(em,))
    options = PredictOptions(precise=True, limits=contrast_limits(em.read()))
    again = predict(pyramid, model, tmp_path / "q.zarr", options=options)
    assert "those averaged to (16.0, 16.0, 16.0) nm are segmented" in caplog.text
    np.testing.assert_array_equal(again.read(), whole(em, model))


def test_model_files_round_trip_and_foreign_ones_are_refused(tmp_path, model):
    from safetensors.torch import save_file

    save_model(model.network, model.card, tmp_path / "m.safetensors")
    back = load_model(tmp_path / "m.safetensors")
    assert (back.card, back.classes) == (model.card, ("mito", "mito_mem"))
    for key, value in model.network.state_dict().items():
        torch.testing.assert_close(back.network.state_dict()[key], value)
    save_file({"x": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(FormatError, match="not a clemreg network"):
        load_model(tmp_path / "foreign.safetensors")
    torch.save({"x": 1}, tmp_path / "pickle.pt")
    with pytest.raises(FormatError, match="not a safetensors"):
        load_model(tmp_path / "pickle.pt")
    with pytest.raises(MissingError, match="bundled"):
        model_info("no-such-network")


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_model_files_have_the_mode_of_the_umask(tmp_path, model, umask):
    before = os.umask(umask)
    try:
        save_model(model.network, model.card, tmp_path / "m.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "m.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def test_the_command_line_passes_its_options_on(tmp_path, em, model, capsys):
    save_model(model.network, model.card, tmp_path / "m.safetensors")
    write_volume(tmp_path / "em.zarr", em)
    half = np.zeros(em.shape, np.uint8)
    half[:, :, 20:] = 1
    write_volume(tmp_path / "mask.zarr", Volume(half, em.grid))
    command = ["segment", str(tmp_path / "em.zarr"), "--model", str(tmp_path / "m.safetensors")]
    command += ["--spacing", "16, 16, 16 nm", "--contrast", "10", "240", "--tta", "2", "--precise"]
    command += ["--mask", str(tmp_path / "mask.zarr"), "--block", "16"]
    assert run_app([*command, "--out", str(tmp_path / "p.zarr")]) == 0
    assert "wrote" in capsys.readouterr().out
    options = PredictOptions(
        block=24, precise=True, limits=(10, 240), views=2, mask=Volume(half, em.grid)
    )
    straight = predict(em, model, tmp_path / "q.zarr", options=options).read()
    found = open_volume(tmp_path / "p.zarr").read()
    assert (np.abs(found.astype(int) - straight) <= 1).all()
    assert not found[..., :20].any()
    assert found[..., 20:].any()
    assert run_app([*command, "--tta", "3", "--out", str(tmp_path / "r.zarr")]) == 1
    assert "1, 2, 4, 8" in capsys.readouterr().err


def test_every_bundled_network_loads_and_has_a_card():
    for card in bundled_models():
        bundled = load_model(card.name)
        assert "mito" in bundled.classes
        text = bundled.path.with_suffix(".md").read_text()
        assert text.startswith(f"# Model card: {card.name}")
        assert all(f"`{name}`" in text for name in bundled.classes)
        assert bundled.path.stat().st_size < 20e6


def test_what_an_older_file_does_not_say_is_the_default(tmp_path):
    network = UNet(NetworkOptions(("mito",), (2, 3, 4)))
    card = ModelCard("old", SPACING, ("a",), 3)
    header = {
        "format": FORMAT,
        "card": json.dumps(card.to_json()),
        "network": json.dumps({"classes": ["mito"], "widths": [2, 3, 4]}),
    }
    write_tensors(tmp_path / "old.safetensors", network, header)
    found = load_model(tmp_path / "old.safetensors")
    assert (found.card, found.network.options) == (card, network.options)


def test_bfloat16_blocks_give_the_whole_within_a_level(tmp_path, em, model, monkeypatch):
    """As on processors that multiply bfloat16; here they do it slowly, but alike."""
    monkeypatch.setattr("clemreg.segment.predict.bfloat16_is_fast", lambda _device: True)
    limits = contrast_limits(em.read())
    found = [
        predict(
            em, model, tmp_path / f"{b}.zarr", options=PredictOptions(block=b, limits=limits)
        ).read()
        for b in (8, 20, 48)
    ]
    exact = whole(em, model)
    for each in found:
        assert np.abs(each.astype(int) - found[-1]).max() <= 1
        off = np.abs(each.astype(int) - exact)
        assert off.max() > 0  # it was bfloat16
        assert off.mean() < 1
