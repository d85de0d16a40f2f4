from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import norm

from clemreg.cli.app import run_app
from clemreg.errors import ConfigError, DataError
from clemreg.io.localisations import Localisations, read_localisations, write_localisations
from clemreg.io.transforms import write_transform
from clemreg.io.volumes import open_volume
from clemreg.register.render import (
    RenderOptions,
    apply_to_localisations,
    choose,
    chromatic_shift_nm,
    covering_grid,
    render,
    render_box,
)
from clemreg.space.grid import Box, Grid
from clemreg.testing import random_affine
from clemreg.volume import Volume

GRID = Grid((21, 40, 47), (30.0, 21.0, 20.0), (300.0, -200.0, 70.0), "lm")


def cloud(n=300, seed=0, inside=True):
    rng = np.random.default_rng(seed)
    margin = 0.35 if inside else 0.0
    low, size = np.asarray(GRID.origin_nm), GRID.extent_nm
    points = low + size * rng.uniform(margin, 1 - margin, (n, 3))
    return Localisations(points, rng.uniform(5, 25, (n, 3)), rng.uniform(100, 2000, n))


def test_counts_are_conserved_and_each_is_a_gaussian_over_voxels():
    assert render_box(cloud(), GRID, GRID.box).sum() == pytest.approx(300)
    one = Localisations(
        GRID.to_world([[10.3, 20.4, 23.1]]), np.array([[45.0, 30.0, 12.0]]), np.ones(1)
    )
    found = render_box(one, GRID, GRID.box)
    expected = np.ones(())
    for axis, n in enumerate(GRID.shape):
        edges = GRID.origin_nm[axis] + (np.arange(n + 1) - 0.5) * GRID.spacing_nm[axis]
        share = np.diff(norm.cdf(edges, one.points_nm[0, axis], one.precision_nm[0, axis]))
        expected = np.multiply.outer(expected, share)
    np.testing.assert_allclose(found, expected, atol=1e-5)  # cut at four standard deviations
    assert found.max() > 0.03


def test_moments_are_those_of_the_table():
    one = Localisations(GRID.to_world([[10.3, 20.4, 23.1]]), np.array([[60.0, 42, 50]]), np.ones(1))
    found = render_box(one, GRID, GRID.box)
    points = GRID.points_nm().reshape(-1, 3)
    mean = found.ravel() @ points
    np.testing.assert_allclose(mean, one.points_nm[0], atol=0.05)
    variance = found.ravel() @ (points - mean) ** 2
    expected = one.precision_nm[0] ** 2 + np.asarray(GRID.spacing_nm) ** 2 / 12
    np.testing.assert_allclose(variance, expected, rtol=0.01)


def test_any_box_gives_the_same_bits():
    many = cloud(2000, inside=False)
    whole = render_box(many, GRID, GRID.box)
    for shape in [(7, 13, 11), (21, 5, 47)]:
        for box in GRID.box.tiles(shape):
            np.testing.assert_array_equal(render_box(many, GRID, box), whole[box.slices])


def test_a_table_without_z_falls_in_one_plane():
    flat = Localisations(np.array([[0.0, 100, 100]]), np.array([[0.0, 10, 10]]), np.ones(1))
    grid = Grid((3, 20, 20), (50.0, 10.0, 10.0), (-50.0, 0.0, 0.0), "lm")
    found = render_box(flat, grid, Box((0, 0, 0), grid.shape))
    assert found[1].sum() == pytest.approx(1)
    assert found[[0, 2]].sum() == 0


def test_filters():
    rng = np.random.default_rng(0)
    crowd, lonely = rng.normal(0, 20, (50, 3)), np.array([[0.0, 5000, 0]])
    table = Localisations(
        np.concatenate([crowd, lonely]),
        np.concatenate([np.full((25, 3), 10.0), np.full((26, 3), 30.0)]),
        np.append(np.arange(50.0), np.nan),
    )
    assert len(choose(table, RenderOptions(min_neighbours=2))) == 50
    assert len(choose(table, RenderOptions(max_precision_nm=20))) == 25
    assert len(choose(table, RenderOptions(min_photons=10))) == 41
    with pytest.raises(DataError, match="none of 51"):
        choose(table, RenderOptions(max_precision_nm=1))
    with pytest.raises(ConfigError, match="make no sense"):
        RenderOptions(radius_nm=-1)


def test_channels_and_blur_are_written(tmp_path):
    a, b = cloud(50, 1), cloud(70, 2)
    grid = covering_grid({"a": a, "b": b}, np.array([40.0, 20, 20]), 150.0)
    options = RenderOptions(extra_blur_nm=150)
    out = render({"a": a, "b": b}, grid, tmp_path / "o.zarr", options)
    assert out.channels == ("a", "b")
    assert out.grid == grid
    assert out.read().sum(axis=(1, 2, 3)) == pytest.approx([50, 70], rel=1e-5)
    np.testing.assert_allclose(
        out.channel("b").read(), render_box(b, grid, grid.box, 150), atol=1e-6
    )


def test_chromatic_shift_is_found_in_nm():
    beads = cloud(40, 3)
    offset = np.array([14.0, -33.0, 27.0])
    volumes = [
        Volume(render_box(one, GRID, GRID.box, 30), GRID) for one in (beads.shifted(offset), beads)
    ]
    np.testing.assert_allclose(chromatic_shift_nm(*volumes), offset, atol=3)
    with pytest.raises(ConfigError, match="one grid"):
        chromatic_shift_nm(volumes[0], Volume(np.zeros((3, 4, 5)), Grid((3, 4, 5), (1.0,) * 3)))


def test_channels_of_different_structures_have_no_shift():
    rng = np.random.default_rng(0)
    grid = Grid((12, 30, 32), (40.0, 21.0, 20.0))
    one, other, flat = rng.poisson(3, grid.shape), rng.poisson(3, grid.shape), np.ones(grid.shape)
    for second in (other, flat):
        with pytest.raises(DataError, match="do not show the same structure"):
            chromatic_shift_nm(Volume(one, grid), Volume(second, grid))


def test_precision_follows_the_transform():
    move = random_affine(np.random.default_rng(1), "lm", "em", mirror=True)
    table = cloud(5)
    moved = apply_to_localisations(move, table)
    np.testing.assert_allclose(moved.points_nm, move(table.points_nm))
    rng = np.random.default_rng(0)
    samples = table.points_nm[2] + rng.normal(size=(200_000, 3)) * table.precision_nm[2]
    np.testing.assert_allclose(moved.precision_nm[2], move(samples).std(axis=0), rtol=0.01)


def test_command_draws_tables(tmp_path, capsys):
    write_localisations(cloud(60, 1), tmp_path / "mito.csv")
    write_localisations(cloud(80, 2), tmp_path / "er.csv")
    out, figures = tmp_path / "lm.zarr", tmp_path / "r.json"
    arguments = ["render", str(tmp_path / "mito.csv"), f"er={tmp_path / 'er.csv'}"]
    more = ["--spacing", "20, 21, 40 nm", "--json", str(figures)]
    assert run_app([*arguments, "--out", str(out), *more, "--shift", "er=5, 0, -8 nm"]) == 0
    report = json.loads(figures.read_text())["render"]
    assert report["channels"]["er"]["drawn"] == 80
    assert report["spacing_nm"] == [40, 21, 20]
    volume = open_volume(out)
    assert volume.channels == ("mito", "er")
    er = volume.channel("er").read()
    assert er.sum() == pytest.approx(80, rel=0.01)
    middle = er.ravel() @ volume.grid.points_nm().reshape(-1, 3) / er.sum()
    expected = cloud(80, 2).shifted((-8, 0, 5)).points_nm.mean(axis=0)
    np.testing.assert_allclose(middle, expected, atol=0.5)
    again = tmp_path / "onto.zarr"
    assert run_app([*arguments, "--out", str(again), "--onto", str(out)]) == 0
    assert open_volume(again).grid == volume.grid
    arguments += ["--overwrite", "--out", str(again)]
    assert run_app(arguments) == 1
    assert "either a voxel size or an image" in capsys.readouterr().err
    assert run_app([*arguments, *more[:2], "--shift", "dna=1,1,1 nm"]) == 1


def test_command_applies_a_transform_to_a_table(tmp_path):
    move = random_affine(np.random.default_rng(1), "lm", "em")
    write_transform(move, tmp_path / "t.json")
    write_localisations(cloud(9), tmp_path / "t.csv")
    arguments = ["apply", str(tmp_path / "t.json"), str(tmp_path / "t.csv")]
    assert run_app([*arguments, "--out", str(tmp_path / "o.csv")]) == 0
    found = read_localisations(tmp_path / "o.csv")
    np.testing.assert_allclose(found.points_nm, move(cloud(9).points_nm), atol=1e-6)
    np.testing.assert_allclose(found.photons, cloud(9).photons)


def test_command_applies_a_transform_to_tables_in_pixels(tmp_path, capsys):
    """PeakSelector text and Picasso HDF5; the camera pixel is asked for by its option."""
    import h5py

    move = random_affine(np.random.default_rng(1), "lm", "em")
    write_transform(move, tmp_path / "t.json")
    points = cloud(9).points_nm
    z, y, x = points.T
    rows = np.column_stack([x / 133, y / 133, z, np.full((9, 2), 15 / 133), np.full(9, 40.0)])
    titles = ["X Position", "Y Position", "Unwrapped Z"]
    titles += ["Sigma X Pos Full", "Sigma Y Pos Full", "Unwrapped Z Error"]
    lines = ["\t".join(titles), *("\t".join(map(repr, row)) for row in rows.tolist())]
    (tmp_path / "peaks.txt").write_text("\n".join(lines) + "\n")
    kinds = [(n, "f8") for n in ("x", "y", "z", "lpx", "lpy", "lpz")]
    with h5py.File(tmp_path / "locs.hdf5", "w") as file:
        file["locs"] = np.array([tuple(row) for row in rows.tolist()], dtype=kinds)
    for name in ("peaks.txt", "locs.hdf5"):
        words = ["apply", str(tmp_path / "t.json"), str(tmp_path / name)]
        words += ["--out", str(tmp_path / f"{name}.csv")]
        assert run_app(words) == 1
        assert '--pixel-size "133 nm"' in capsys.readouterr().err
        assert run_app([*words, "--pixel-size", "133 nm"]) == 0
        found = read_localisations(tmp_path / f"{name}.csv")
        np.testing.assert_allclose(found.points_nm, move(points), atol=1e-3)
        expected = np.sqrt(move.linear**2 @ np.array([40.0, 15, 15]) ** 2)
        np.testing.assert_allclose(found.precision_nm[:, 0], expected[0], rtol=1e-6)


def two_labels(path):
    rows = ["X Position\tY Position\tSigma X Pos Full\tSigma Y Pos Full\tLabel Set\tUnwrapped Z"]
    rows += [f"{10 + n}\t20\t0.1\t0.1\t{1 + n % 2}\t{40 * n}" for n in range(5)]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_command_draws_each_label_set_as_a_channel(tmp_path, capsys):
    table, figures = two_labels(tmp_path / "t.txt"), tmp_path / "r.json"
    more = ["--spacing", "52, 52, 104 nm", "--pixel-size", "133 nm"]
    more += ["--out", str(tmp_path / "o.zarr"), "--json", str(figures)]
    assert run_app(["render", f"mito={table}", *more]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "several label sets; label sets with their localisations: 1 (3), 2 (2)" in said
    assert run_app(["render", f"mito={table}@3", *more]) == 1
    assert "no label set 3" in capsys.readouterr().err
    assert run_app(["render", f"mito={table}@1", f"er={table}@2", *more]) == 0
    drawn = json.loads(figures.read_text())["render"]["channels"]
    assert (drawn["mito"]["drawn"], drawn["er"]["drawn"]) == (3, 2)


def test_command_draws_all_of_what_is_blurred(tmp_path):
    """The sum of the volume is the number of localisations."""
    write_localisations(cloud(60, 1), tmp_path / "mito.csv")
    words = ["render", str(tmp_path / "mito.csv"), "--spacing", "40,40,40 nm", "--blur", "150"]
    assert run_app([*words, "--out", str(tmp_path / "o.zarr")]) == 0
    assert open_volume(tmp_path / "o.zarr").read().sum() == pytest.approx(60, rel=1e-5)


def test_command_refuses_two_channels_of_one_name(tmp_path, capsys):
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        write_localisations(cloud(60, number), tmp_path / str(number) / "mito.csv")
    words = ["render", *(str(tmp_path / n / "mito.csv") for n in "12"), "--spacing", "20,20,20 nm"]
    assert run_app([*words, "--out", str(tmp_path / "o.zarr")]) == 1
    assert "channel 'mito' is given twice" in capsys.readouterr().err
