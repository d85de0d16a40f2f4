from __future__ import annotations

import csv
import itertools
import json
import tracemalloc

import numpy as np
import pytest
from scipy.spatial import cKDTree

from clemreg.blocks.stages import Blockwise
from clemreg.cli.app import run_app
from clemreg.errors import ConfigError, DataError, GridError
from clemreg.io.quantise import quantise
from clemreg.io.volumes import open_labels, write_volume
from clemreg.measure.binding import Binding, BindingOptions, classify_ribosomes
from clemreg.measure.lines import ball_offsets, line_offsets
from clemreg.measure.ribosomes import (
    RibosomeOptions,
    Ribosomes,
    find_ribosomes,
    non_overlapping,
    write_spheres,
)
from clemreg.space.grid import Grid
from clemreg.volume import Volume

SHAPE = (34, 47, 53)
ANISOTROPIC = Grid(SHAPE, (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")
ISOTROPIC = Grid(SHAPE, (4.0, 4.0, 4.0), (-31.0, 12.5, 7.0), "em")


def paint(grid, centres_nm, radius_nm=10.0):
    """Signed distance of balls, quantised as predictions are."""
    points = grid.points_nm()
    distance = np.full(grid.shape, -np.inf)
    for centre in centres_nm:
        distance = np.maximum(distance, radius_nm - np.linalg.norm(points - centre, axis=-1))
    return Volume(np.clip(np.rint(128 * np.tanh(distance / 50) + 127), 0, 255).astype("u1"), grid)


def match(found, truth):
    distance = np.linalg.norm(found.centre_nm[:, None] - np.asarray(truth)[None], axis=-1)
    assert len(found) == len(truth)
    assert sorted(distance.argmin(axis=1)) == list(range(len(truth)))
    return distance.min(axis=1)


@pytest.mark.parametrize("grid", [ANISOTROPIC, ISOTROPIC])
def test_separate_touching_and_border_balls_are_found(grid):
    spacing = np.asarray(grid.spacing_nm)
    corner = np.asarray(grid.origin_nm)
    last = corner + (np.asarray(grid.shape) - 1) * spacing
    middle = corner + np.array([61.3, 77.9, 80.1])
    direction = np.array([0.48, 0.6, 0.64])
    truth = [
        middle,
        middle + 20.5 * direction,  # touches the first
        middle + 41 * direction,
        corner + np.array([12.0, 90.0, 160.0]),
        corner + np.array([40.0, 2.0, 40.0]),  # cut by the border
        last - np.array([25.0, 25.0, 3.0]),
        last - np.array([60.0, 14.0, 120.0]),
    ]
    error = match(find_ribosomes(paint(grid, truth)), truth)
    assert error[[0, 1, 2, 3]].max() < 4
    assert error.max() < 6


def test_centres_are_finer_than_a_voxel():
    rng = np.random.default_rng(3)
    base = ISOTROPIC.to_world(list(itertools.product((6, 17, 27), (8, 20, 33), (8, 22, 40))))
    truth = base + rng.uniform(-2, 2, base.shape)
    error = match(find_ribosomes(paint(ISOTROPIC, truth)), truth)
    assert np.sqrt((error**2).mean()) < 1.3  # rounding to voxels would give 2.0


def test_blocks_of_any_shape_give_the_same():
    rng = np.random.default_rng(5)
    truth = ANISOTROPIC.origin_nm + rng.uniform(0, 1, (60, 3)) * ANISOTROPIC.extent_nm
    volume = paint(ANISOTROPIC, truth)
    whole = find_ribosomes(volume)
    assert len(whole) > 40
    for block in [(9, 16, 11), (34, 5, 53)]:
        parts = find_ribosomes(volume, how=Blockwise(block))
        np.testing.assert_array_equal(parts.centre_nm, whole.centre_nm)
        np.testing.assert_array_equal(parts.score, whole.score)


def test_score_against_brute_force():
    grid = Grid((9, 11, 12), (5.24, 4.0, 4.0))
    rng = np.random.default_rng(0)
    mask = rng.random(grid.shape) < 0.7
    found = find_ribosomes(
        Volume(mask.astype("u1"), grid),
        RibosomeOptions(threshold=1, separation_nm=0, min_fraction=0),
    )
    inside = [
        o
        for o in itertools.product(range(-1, 2), range(-2, 3), range(-2, 3))
        if (5.24 * o[0]) ** 2 + 16 * (o[1] ** 2 + o[2] ** 2) <= 100
    ]

    def lit(v):
        return all(0 <= a < n for a, n in zip(v, grid.shape, strict=True)) and mask[tuple(v)]

    scores = np.zeros(grid.shape)
    for v in np.argwhere(mask):
        seen = [o for o in inside if lit(v + o) and all(lit(v + step) for step in line_offsets(o))]
        shift = np.mean(seen, axis=0) * grid.spacing_nm
        scores[tuple(v)] = len(seen) / len(inside) + 1 - np.linalg.norm(shift) / 10
    assert found.score.max() == pytest.approx(scores.max())
    top = np.argwhere(scores > scores.max() - 1e-9)[0]
    nearest = np.linalg.norm(found.centre_nm - top * grid.spacing_nm, axis=1).argmin()
    assert found.score[nearest] == pytest.approx(scores.max())


def test_a_wall_hides_what_is_behind_it():
    """Two thick plates with a slit: a ball centre sees only its own plate."""
    assert line_offsets((0, 0, 4)).tolist() == [[0, 0, 1], [0, 0, 2], [0, 0, 3]]
    assert line_offsets((2, -3, 1)).tolist() == [[1, -1, 0], [1, -2, 1]]
    for end in ball_offsets(20, (4, 4, 4)):
        np.testing.assert_array_equal(line_offsets(-end), -line_offsets(end))
    grid = Grid((21, 21, 21), (4.0, 4.0, 4.0))
    option = RibosomeOptions(threshold=1)
    everything = Volume(np.ones(grid.shape, "u1"), grid)
    assert find_ribosomes(everything, option).fraction.max() == 1
    plates = np.ones((21, 21, 5), "u1")
    plates[:, :, 2] = 0
    found = find_ribosomes(Volume(plates, Grid(plates.shape, (4.0, 4.0, 4.0))), option)
    # Plates of two voxels: the part of the ball in the own one, not what lies beyond the slit.
    x = ball_offsets(10, (4, 4, 4))[:, 2]
    assert found.fraction.max() == ((x == 0) | (x == 1)).mean()
    assert ((x == 0) | (x == 1) | (x == -2)).mean() > found.fraction.max()


def test_specks_are_left_out_unless_asked_for():
    data = np.zeros(ANISOTROPIC.shape, "u1")
    data[10, 11, 12] = 255
    volume = Volume(data, ANISOTROPIC)
    assert len(find_ribosomes(volume)) == 0
    speck = find_ribosomes(volume, RibosomeOptions(min_fraction=0))
    np.testing.assert_allclose(speck.centre_nm, [ANISOTROPIC.to_world([10, 11, 12])])
    assert speck.score[0] == pytest.approx(1 + speck.fraction[0])


def test_overlap_keeps_the_better():
    line = np.array([[0, 0, 0], [0, 0, 15.0], [0, 0, 31.0], [0, 0, 47.0]])
    assert non_overlapping(line, np.array([1.0, 1.5, 1.2, 1.4]), 16.0).tolist() == [1, 3]
    assert non_overlapping(line, np.array([1.0, 1.0, 1.0, 1.0]), 15.5).tolist() == [0, 2, 3]
    assert non_overlapping(np.zeros((0, 3)), np.zeros(0), 16.0).tolist() == []


def test_a_large_patch_of_foreground_does_not_fill_the_memory():
    """Every voxel inside is as good a centre as any; their pairs would be 10 million here."""
    data = np.zeros((60, 60, 60), "u1")
    data[5:55, 5:55, 5:55] = 255
    tracemalloc.start()
    found = find_ribosomes(Volume(data, Grid(data.shape, (4.0, 4.0, 4.0))))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) > 300
    gap = cKDTree(found.centre_nm).query(found.centre_nm, k=2)[0][:, 1]
    assert gap.min() > 16
    assert peak < 80e6


def test_spheres_are_all_voxels_within_the_radius_of_the_nearest_centre(tmp_path):
    grid = Grid((17, 131, 140), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")  # four blocks
    truth = np.array([[330.0, 312.0, 150.0], [330.0, 312.0, 166.0], [304.0, -60.0, 580.0]])
    ribosomes = Ribosomes(truth, np.ones(3), np.ones(3))
    labels = write_spheres(ribosomes, grid, tmp_path / "s.zarr", radius_nm=12.0)
    drawn = labels.read()
    assert labels.grid == grid
    assert sorted(np.unique(drawn)) == [0, 1, 2, 3]
    near = np.linalg.norm(grid.points_nm()[..., None, :] - truth, axis=-1)
    np.testing.assert_array_equal(drawn, np.where(near.min(-1) <= 12, near.argmin(-1) + 1, 0))


def test_classes_at_sheet_tube_envelope_and_in_the_open():
    grid = ANISOTROPIC
    planarity, envelope = np.zeros(grid.shape, "u1"), np.zeros(grid.shape, "u1")
    planarity[:, 10, :20] = np.ceil(254 * 0.9) + 1  # a sheet
    planarity[:, 10, 40:] = np.ceil(254 * 0.2) + 1  # a tube
    planarity[:, 40, :20] = np.ceil(254 * 0.9) + 1  # the nuclear envelope
    envelope[:, 40, :20] = 1
    voxel = np.array([[17, 14, 6], [17, 14, 46], [17, 36, 6], [17, 25, 30], [17, 16, 6]])
    ribosomes = Ribosomes(grid.to_world(voxel), np.ones(5), np.ones(5))
    found = classify_ribosomes(
        ribosomes, Volume(planarity, grid), Volume(envelope, grid), how=Blockwise((9, 20, 31))
    )
    assert found.code.tolist() == [
        Binding.SHEET, Binding.TUBE, Binding.NUCLEAR, Binding.CYTOSOLIC, Binding.CYTOSOLIC
    ]  # fmt: skip
    assert found.planarity[:2] == pytest.approx([0.9, 0.2], abs=0.005)
    assert np.isnan(found.planarity[2:]).all()
    assert found.counts() == {"cytosolic": 2, "nuclear": 1, "sheet": 1, "tube": 1}
    as_float = Volume(np.maximum(planarity.astype("f4") - 1, 0) / 254, grid)
    assert classify_ribosomes(ribosomes, as_float).code.tolist()[:3] == [3, 4, 3]


def test_the_rim_that_two_predictions_leave_is_no_peripheral_er():
    """The ER's prediction ends two voxels beyond that of the envelope, and far off it is ER."""
    grid = ANISOTROPIC
    planarity, envelope = np.zeros(grid.shape, "u1"), np.zeros(grid.shape, "u1")
    envelope[10:20, 20:24, 10:30] = 1
    planarity[10:20, 18:26, 10:44] = 230  # along x it goes on by 14 voxels: 56 nm
    voxel = np.array([[15, 29, 20], [15, 29, 41], [15, 15, 12]])
    ribosomes = Ribosomes(grid.to_world(voxel), np.ones(3), np.ones(3))
    volumes = Volume(planarity, grid), Volume(envelope, grid)
    for expand_nm, expected in ((0, [3, 3, 3]), (7.9, [3, 3, 3]), (8, [2, 3, 2]), (60, [2, 2, 2])):
        for block in ((99, 99, 99), (7, 12, 11)):
            found = classify_ribosomes(
                ribosomes, *volumes, BindingOptions(expand_nm=expand_nm), how=Blockwise(block)
            )
            assert found.code.tolist() == expected
    with pytest.raises(ConfigError, match="expanded by -1 nm"):
        BindingOptions(expand_nm=-1)


def test_command_writes_table_volumes_and_json(tmp_path):
    truth = ANISOTROPIC.to_world([[17, 14, 6], [17, 25, 30]])
    planarity = np.zeros(ANISOTROPIC.shape, "u1")
    planarity[:, 10, :20] = 230
    write_volume(tmp_path / "p.zarr", paint(ANISOTROPIC, truth))
    write_volume(tmp_path / "er.zarr", Volume(planarity, ANISOTROPIC))
    out, figures = tmp_path / "out", tmp_path / "r.json"
    arguments = ["ribosomes", str(tmp_path / "p.zarr"), "--out", str(out), "--json", str(figures)]
    assert run_app([*arguments, "--planarity", str(tmp_path / "er.zarr")]) == 0
    report = json.loads(figures.read_text())["ribosomes"]
    assert report["classes"] == {"cytosolic": 1, "nuclear": 0, "sheet": 1, "tube": 0}
    cubic_um = np.prod(ANISOTROPIC.extent_nm) * 1e-9
    assert report["per_um3"] == pytest.approx(2 / cubic_um)
    rows = list(csv.DictReader((out / "ribosomes.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == ["sheet", "cytosolic"]
    written = [[float(row[f"{axis}_nm"]) for axis in "zyx"] for row in rows]
    np.testing.assert_allclose(written, truth, atol=1)
    spheres, classes = (open_labels(out / f"{name}.zarr") for name in ("spheres", "classes"))
    assert spheres.read()[17, 25, 30] == 2
    assert classes.read()[17, 25, 30] == Binding.CYTOSOLIC
    assert not list(out.glob(".*"))
    assert run_app([*arguments, "--overwrite"]) == 0  # no planarity, so no classes
    assert sorted(path.name for path in out.iterdir()) == ["ribosomes.csv", "spheres.zarr"]
    assert "class" not in (out / "ribosomes.csv").read_text()
    write_volume(tmp_path / "wrong.zarr", Volume(planarity, ISOTROPIC))
    wrong = [*arguments, "--planarity", str(tmp_path / "wrong.zarr"), "--overwrite"]
    assert run_app(wrong) == 1


def test_a_channel_is_chosen_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    alone = paint(ANISOTROPIC, ANISOTROPIC.to_world([[17, 14, 6], [17, 25, 30]]))
    both = np.stack([np.zeros(SHAPE, "u1"), alone.read()])
    write_volume("all.zarr", Volume(both, ANISOTROPIC, ("mt", "ribo")))
    write_volume("one.zarr", Volume(both[1:], ANISOTROPIC, ("ribo",)))
    write_volume("ribo.zarr", alone)
    assert run_app(["ribosomes", "all.zarr", "--out", "out"]) == 1
    assert "all.zarr has channels mt, ribo; one volume is" in capsys.readouterr().err
    assert run_app(["ribosomes", "ribo.zarr", "--out", "out", "--channel", "ribo"]) == 1
    assert "has no channels, so none called 'ribo'" in capsys.readouterr().err
    tables = set()
    for name, more in (("all", ["--channel", "ribo"]), ("one", []), ("ribo", [])):
        assert run_app(["ribosomes", f"{name}.zarr", "--out", name, *more]) == 0
        tables.add((tmp_path / name / "ribosomes.csv").read_text())
    assert len(tables) == 1
    assert tables.pop().count("\n") == 3
    arguments = ["ribosomes", "ribo.zarr", "--out", "out", "--planarity", "all.zarr"]
    assert run_app(arguments) == 1
    shown = capsys.readouterr().err
    assert "all.zarr has channels mt, ribo; one volume is expected" in shown
    assert "a volume of its own" in shown


def test_a_body_filled_with_centres_is_said_to_be_one(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    points = ANISOTROPIC.points_nm() - ANISOTROPIC.centre_nm
    body = quantise(np.tanh((75 - np.linalg.norm(points, axis=-1)) / 50))
    write_volume("mito.zarr", Volume(body, ANISOTROPIC))
    # As close as ribosomes come: a chain, one touching the next.
    chain = ANISOTROPIC.centre_nm + np.arange(-4, 5)[:, None] * np.array([0.0, 20.5, 0.0])
    write_volume("ribo.zarr", paint(ANISOTROPIC, chain))
    said = {}
    for name in ("mito", "ribo"):
        caplog.clear()
        assert run_app(["ribosomes", f"{name}.zarr", "--out", name, "--json", f"{name}.json"]) == 0
        said[name] = caplog.text
        report = json.loads((tmp_path / f"{name}.json").read_text())["ribosomes"]
        rows = list(csv.DictReader((tmp_path / name / "ribosomes.csv").read_text().splitlines()))
        places = np.array([[float(row[f"{axis}_nm"]) for axis in "zyx"] for row in rows])
        apart = np.linalg.norm(places[:, None] - places, axis=-1)
        assert report["neighbours"] == pytest.approx((apart <= 24).sum() / len(rows) - 1, abs=0.02)
    assert "is it the prediction of ribosomes?" in said["mito"]
    assert said["ribo"] == ""


def test_bad_input_is_refused():
    with pytest.raises(GridError, match="holds 1 voxels"):
        find_ribosomes(Volume(np.zeros((3, 4, 5), "u1"), Grid((3, 4, 5), (20.0, 16.0, 16.0))))
    with pytest.raises(ConfigError, match="make no sense"):
        RibosomeOptions(radius_nm=0)
    ribosomes = Ribosomes(np.zeros((0, 3)), np.zeros(0), np.zeros(0))
    mask = Volume(np.zeros((3, 4, 5), "u1"), Grid((3, 4, 5), (5.0, 4.0, 4.0)))
    other = Volume(np.zeros((3, 4, 5), "u1"), Grid((3, 4, 5), (4.0, 4.0, 4.0)))
    assert classify_ribosomes(ribosomes, mask).counts()["cytosolic"] == 0
    with pytest.raises(GridError, match="do not have the same voxels"):
        classify_ribosomes(ribosomes, mask, other)


def test_a_mask_is_not_taken_for_a_signed_distance(caplog):
    mask = paint(ANISOTROPIC, ANISOTROPIC.to_world([[17, 14, 6]])).read() >= 127
    for dtype in ("f4", bool):
        with pytest.raises(DataError, match="ends at 1, below the threshold of 127") as error:
            find_ribosomes(Volume(mask.astype(dtype), ANISOTROPIC), how=Blockwise((16, 20, 30)))
        assert "--threshold 0.5" in error.value.hint
    assert len(find_ribosomes(Volume(mask.astype("u1"), ANISOTROPIC))) == 0
    assert "--threshold 1" in caplog.text  # a prediction that sees none may end at 1
    found = find_ribosomes(Volume(mask.astype("u1"), ANISOTROPIC), RibosomeOptions(threshold=1))
    assert len(found) == 1


def test_nan_in_a_prediction_is_not_background(tmp_path, capsys):
    values = np.zeros(ANISOTROPIC.shape, "f4")
    values[3, 4, 5] = np.nan
    path = str(tmp_path / "p.zarr")
    write_volume(path, Volume(values, ANISOTROPIC))
    for command in ("ribosomes", "microtubules"):
        assert run_app([command, path, "--out", str(tmp_path / "out")]) == 1
        assert "p.zarr holds NaN or infinite values" in capsys.readouterr().err


def test_a_killed_search_goes_on(tmp_path):
    rng = np.random.default_rng(8)
    truth = ANISOTROPIC.origin_nm + rng.uniform(0, 1, (30, 3)) * ANISOTROPIC.extent_nm
    volume = paint(ANISOTROPIC, truth)
    whole = find_ribosomes(volume)
    seen = []

    def stop(done, _total, _message):
        seen.append(done)
        if done == 3:
            raise KeyboardInterrupt

    block, scratch = (12, 24, 30), tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        find_ribosomes(volume, how=Blockwise(block, progress=stop), scratch=scratch)
    how = Blockwise(block, progress=lambda done, _total, _text: seen.append(done))
    again = find_ribosomes(volume, how=how, scratch=scratch)
    np.testing.assert_array_equal(again.centre_nm, whole.centre_nm)
    assert seen == list(range(1, 13))
