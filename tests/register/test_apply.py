from __future__ import annotations

import dataclasses
import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from clemreg.cli.app import run_app
from clemreg.errors import ConvergenceError, FormatError, FrameError
from clemreg.io.meshes import Mesh, mesh_unit, read_mesh, write_mesh
from clemreg.io.points import read_points, write_points
from clemreg.io.skeletons import Skeleton, read_skeleton, write_skeleton
from clemreg.io.transforms import write_transform
from clemreg.io.volumes import open_volume, write_volume
from clemreg.register.apply import ApplyOptions, apply_to_image, warp_box, warped_volume
from clemreg.register.estimate import estimate_apply
from clemreg.register.positions import Positions
from clemreg.register.shapes import apply_to_mesh
from clemreg.space.bspline import BSpline
from clemreg.space.grid import Box, Grid
from clemreg.space.transform import Affine, Chain
from clemreg.testing import random_affine
from clemreg.volume import Labels, Volume

LM = Grid((70, 83, 91), (10.5, 8.0, 8.0), (300.0, -200.0, 70.0), "lm")
EM = Grid((150, 161, 172), (5.24, 6.0, 6.0), (-40.0, 25.0, 13.0), "em")
BOXES = [(70, 83, 91), (64, 64, 64), (13, 50, 7)]


def smooth_transform(seed=0, control_nm=(450.0, 380.0, 400.0)):
    """Mirrored, sheared, rotated from the middle of the LM to that of the EM, then bent."""
    rng = np.random.default_rng(seed)
    linear = random_affine(rng, mirror=True).linear
    offset = EM.centre_nm - linear @ LM.centre_nm
    coefficients = rng.normal(scale=12, size=(3, 11, 11, 11))
    bend = BSpline(coefficients, EM.centre_nm - 2000, np.array(control_nm), "em", "em")
    return Chain((Affine.from_linear(linear, offset, "lm", "em"), bend))


class Counted(Affine):
    """Counts the points that are mapped."""

    points = 0

    def __call__(self, points_nm):
        type(self).points += len(points_nm)
        return super().__call__(points_nm)


class Watched:
    """An array that notes how much is read at a time."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.largest = 0

    def __getitem__(self, key):
        part = self.array[key]
        self.largest = max(self.largest, part.size)
        return part


def em_pixels(dtype=np.uint8):
    return np.random.default_rng(1).integers(1, 250, EM.shape).astype(dtype)


def assembled(positions, image, block):
    out = np.zeros(LM.shape, image.dtype)
    for box in LM.box.tiles(block):
        out[box.slices] = warp_box(positions, image, box)
    return out


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_positions_are_within_the_tolerance_of_the_exact_ones(direction):
    forward = smooth_transform()
    arguments = (forward, LM, EM) if direction == "forward" else (forward.inverse(), EM, LM)
    positions, exact = Positions(*arguments), Positions(*arguments, tolerance=0)
    assert positions.step >= 4
    assert exact.step == 0
    box = Box((3, 5, 7), (40, 69, 70))
    error = np.abs(positions(box) - exact(box))
    assert 0 < error.max() < 1e-3
    truth = arguments[2].to_index(arguments[0](arguments[1].points_nm(box).reshape(-1, 3)))
    np.testing.assert_allclose(exact(box).reshape(3, -1).T, truth, atol=1e-8)


@pytest.mark.parametrize("control_nm", [(450.0, 380.0, 400.0), (150.0, 140.0, 160.0)])
def test_bounds_of_planes_hold_and_are_close(control_nm):
    """The finer control grid ends, so the cells at its end are evaluated voxel by voxel."""
    positions = Positions(smooth_transform(1, control_nm), LM, EM)
    assert positions.step > 0
    for box in (Box((3, 5, 7), (40, 69, 70)), Box((16, 16, 16), (48, 64, 80))):
        planes, index = positions.planes(box), positions(box).reshape(3, -1)
        np.testing.assert_array_equal(planes[4], positions(box)[:, 4])
        assert (planes.low <= index.min(axis=1)).all()
        assert (planes.high >= index.max(axis=1)).all()
        slack = positions.step * np.abs(positions.transform.jacobian(LM.centre_nm[None])[0]).max()
        assert (planes.low > index.min(axis=1) - 3 * slack - 2).all()
        assert (planes.high < index.max(axis=1) + 3 * slack + 2).all()


class Parabola(Affine):
    """Bends x so that its least value lies in the middle between two nodes."""

    def __call__(self, points_nm):
        there = super().__call__(points_nm)
        there[:, 2] = 0.002 * (points_nm[:, 2] - LM.to_world((0, 0, 48))[2]) ** 2
        return there


def test_bounds_hold_between_the_nodes():
    positions = Positions(Parabola(np.eye(4), "lm", "em"), LM, EM)
    assert positions.step == 32
    box = Box((0, 0, 33), (8, 8, 60))
    planes, least = positions.planes(box), positions(box)[2].min()
    assert least == pytest.approx(-13.0 / 6)
    nearest_node = (0.002 * (16 * 8) ** 2 - 13.0) / 6
    assert nearest_node > least + 5
    assert least - 4 < planes.low[2] <= least + 1e-9


def test_few_points_are_mapped():
    Counted.points = 0
    affine = smooth_transform().parts[0]
    positions = Positions(Counted(affine.matrix, "lm", "em"), LM, EM)
    assert positions.step == 32
    Counted.points = 0
    for box in LM.box.tiles((64, 64, 64)):
        positions(box)
    assert 0 < Counted.points < LM.size / 50


def test_where_a_deformation_ends_every_voxel_is_mapped():
    """ITK's B-spline jumps to zero at the border of its control grid."""
    coefficients = np.full((3, 6, 6, 6), 40.0)
    jump = BSpline(coefficients, LM.centre_nm - 200, np.full(3, 100.0), "lm", "em")
    positions, exact = Positions(jump, LM, EM), Positions(jump, LM, EM, tolerance=0)
    assert positions.step > 0
    box = Box((0, 0, 0), LM.shape)
    np.testing.assert_allclose(positions(box), exact(box), atol=1e-3)
    moved = exact(box)[0] - EM.to_index(LM.points_nm())[..., 0]
    assert {round(v) for v in np.unique(moved * 5.24)} == {0, 40}


@pytest.mark.parametrize("kind", [Volume, Labels])
def test_blocks_of_any_shape_give_the_same(kind):
    transform = smooth_transform()
    image = kind(em_pixels(np.uint16) * 300, EM)
    positions = Positions(transform, LM, EM)
    assert positions.step > 0
    whole, *others = (assembled(positions, image, block) for block in BOXES)
    assert (whole > 0).mean() > 0.3
    for other in others:
        np.testing.assert_array_equal(other, whole)
    exact = assembled(Positions(transform, LM, EM, tolerance=0), image, BOXES[0])
    assert (np.abs(whole - exact.astype(float)) > 500).mean() < (0.002 if kind is Labels else 1e-5)
    lazily = warped_volume(transform, image, LM)
    part = Box((10, 20, 30), (50, 60, 70))
    if kind is Volume:
        np.testing.assert_array_equal(lazily.read(part), whole[part.slices])


def test_ties_do_not_depend_on_the_block():
    """Half a voxel of shift: every nearest neighbour is a tie."""
    em = Grid(LM.shape, LM.spacing_nm, LM.origin_nm, "em")
    shift = Affine.translation(np.asarray(LM.spacing_nm) / 2, "lm", "em")
    ids = np.random.default_rng(0).integers(0, 9, em.shape).astype(np.uint32) * 70_001
    positions = Positions(shift, LM, em)
    whole = assembled(positions, Labels(ids, em), LM.shape)
    np.testing.assert_array_equal(whole[:-1, :-1, :-1], ids[1:, 1:, 1:])
    np.testing.assert_array_equal(assembled(positions, Labels(ids, em), (9, 31, 40)), whole)


def test_linear_interpolation_against_simpleitk():
    affine = smooth_transform().parts[0]
    pixels = em_pixels(np.float32)
    moving = sitk.GetImageFromArray(pixels)
    moving.SetSpacing(EM.spacing_nm[::-1])
    moving.SetOrigin(EM.origin_nm[::-1])
    itk = sitk.AffineTransform(3)
    itk.SetMatrix(affine.linear[::-1, ::-1].ravel())
    itk.SetTranslation(affine.offset_nm[::-1])
    expected = sitk.GetArrayFromImage(
        sitk.Resample(
            moving, LM.shape[::-1], itk, sitk.sitkLinear, LM.origin_nm[::-1], LM.spacing_nm[::-1],
            [1, 0, 0, 0, 1, 0, 0, 0, 1], 0.0,
        )
    )  # fmt: skip
    found = assembled(Positions(affine, LM, EM), Volume(pixels, EM), (32, 40, 50))
    inner = EM.to_index(affine(LM.points_nm().reshape(-1, 3))).reshape(*LM.shape, 3)
    inner = ((inner > 0.01) & (inner < np.asarray(EM.shape) - 1.01)).all(axis=-1)
    assert inner.mean() > 0.3
    np.testing.assert_allclose(found[inner], expected[inner], atol=0.05)


def test_reads_are_bounded_even_where_a_block_covers_all(monkeypatch):
    coarse = Grid((10, 12, 14), (80.0, 80.0, 75.0), tuple(EM.origin_nm), "lm")
    shift = Affine.identity("lm", "em")
    watched = Watched(em_pixels())
    whole = warp_box(Positions(shift, coarse, EM), Volume(watched, EM), coarse.box)
    assert watched.largest > 0.8 * EM.size
    watched.largest = 0
    monkeypatch.setattr("clemreg.register.apply.SOURCE_VOXELS", 100_000)
    cut = warp_box(Positions(shift, coarse, EM), Volume(watched, EM), coarse.box)
    assert 0 < watched.largest <= 100_000
    np.testing.assert_array_equal(cut, whole)


def test_a_place_without_an_inverse_is_an_error_and_not_a_number():
    fold = BSpline(
        np.random.default_rng(0).normal(scale=900, size=(3, 9, 9, 9)),
        EM.centre_nm - 900, np.full(3, 220.0), "lm", "em",
    )  # fmt: skip
    positions = Positions(fold.inverse(), EM, LM, tolerance=0)
    with pytest.raises(ConvergenceError, match="no inverse"):
        positions(Box((70, 70, 70), (78, 78, 78)))


def test_a_killed_run_goes_on_with_the_same_image_only(tmp_path):
    """Ids are not mixed with means of them, nor voxels with those of a file that was replaced."""
    ids, out = Volume(em_pixels(), EM, name="em"), tmp_path / "o.zarr"
    same = ApplyOptions(block=(64, 64, 64), inputs="one file")

    def stop(done, _total, _text):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply_to_image(smooth_transform(), ids, LM, out, same, progress=stop)
    as_labels = Labels(em_pixels(), EM, name="em")
    for image, options in ((as_labels, same), (ids, replace(same, inputs="another"))):
        with pytest.raises(FormatError, match="unfinished output of another job"):
            apply_to_image(smooth_transform(), image, LM, out, options)
    apply_to_image(smooth_transform(), ids, LM, out, same)


def test_a_boolean_image_is_rounded_as_one_of_bytes(tmp_path):
    far = np.linalg.norm(np.indices(EM.shape).T - np.asarray(EM.shape) / 2, axis=-1).T
    ball, shift = far < 11.5, Affine.from_linear(np.eye(3), (3.0, 4.0, 5.0), "lm", "em")
    onto = Grid(EM.shape, EM.spacing_nm, EM.origin_nm, "lm")
    as_bool = apply_to_image(shift, Volume(ball, EM), onto, tmp_path / "b.zarr")
    as_bytes = apply_to_image(shift, Volume(ball.astype("u1"), EM), onto, tmp_path / "u.zarr")
    assert as_bool.dtype == bool
    for one, other in zip(as_bool.levels, as_bytes.levels, strict=True):
        np.testing.assert_array_equal(one.read(), other.read().astype(bool))
    assert abs(int(as_bool.read().sum()) - int(ball.sum())) < 0.03 * ball.sum()


@pytest.mark.parametrize("name", ["o.zarr", "o.n5"])
def test_a_killed_run_goes_on(tmp_path, name):
    transform, image = smooth_transform(), Volume(em_pixels(), EM, name="em")
    options = ApplyOptions("n5" if name.endswith("n5") else "zarr", block=(64, 64, 64))
    seen = []

    def stop(done, _total, _text):
        seen.append(done)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply_to_image(transform, image, LM, tmp_path / name, options, progress=stop)
    assert not (tmp_path / name).exists()
    other = smooth_transform(seed=9)
    with pytest.raises(FormatError, match="unfinished output of another job"):
        apply_to_image(other, image, LM, tmp_path / name, options)
    out = apply_to_image(
        transform, image, LM, tmp_path / name, options, progress=lambda n, *_: seen.append(n)
    )
    assert seen == [*range(1, 9), 1]  # and the one block of the coarser level
    expected = assembled(Positions(transform, LM, EM), image, LM.shape)
    np.testing.assert_array_equal(out.read(), expected)
    assert out.grid.spacing_nm == LM.spacing_nm
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


def test_threads_give_the_same(tmp_path):
    transform, image = smooth_transform(), Volume(em_pixels(), EM)
    out = apply_to_image(
        transform, image, LM, tmp_path / "o.zarr", ApplyOptions(block=(64, 64, 64), workers=3)
    )
    expected = assembled(Positions(transform, LM, EM), image, LM.shape)
    np.testing.assert_array_equal(out.read(), expected)


def test_estimate_of_a_hundred_gigavoxels_is_quick_and_counts_right():
    onto = Grid((4000, 5000, 5000), (8.0, 8.0, 8.0), (0.0, 0.0, 0.0), "em")
    pixels = np.broadcast_to(np.uint16(7), (2100, 2600, 2700))
    image = Volume(pixels, Grid(pixels.shape, (16.0, 16.0, 16.0), (-50.0,) * 3, "lm"))
    found = estimate_apply(Affine.identity("em", "lm"), image, onto, ApplyOptions(workers=2))
    assert found.blocks == 32 * 40 * 20
    assert found.voxels == 10**11
    assert found.output_bytes == 2 * 10**11
    # Each block of 128 x 128 x 256 reads half as many voxels along each axis, and an edge.
    assert found.input_bytes == pytest.approx(2 * 32 * 40 * 20 * 67 * 67 * 131, rel=0.1)
    assert found.block_bytes < 30e6
    assert 60 < found.seconds < 1e6
    with pytest.raises(FrameError, match="inverse"):
        estimate_apply(Affine.identity("lm", "em"), image, onto)


# -- meshes, skeletons, points --------------------------------------------------------------------


def tetrahedron():
    """A corner, right way out: its volume is 100 * 50 * 20 / 6 nm^3."""
    vertices = np.array([[0.0, 0, 0], [0, 0, 100], [0, 50, 0], [20, 0, 0]]) + EM.centre_nm
    return Mesh(vertices, np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]))


def test_a_mirrored_mesh_stays_right_way_out():
    mesh = tetrahedron()
    assert mesh.volume_nm3() == pytest.approx(100 * 50 * 20 / 6)
    for seed, mirror in ((0, False), (1, True)):
        move = random_affine(np.random.default_rng(seed), "em", "lm", mirror=mirror)
        moved = apply_to_mesh(move, mesh)
        expected = mesh.volume_nm3() * abs(np.linalg.det(move.linear))
        assert moved.volume_nm3() == pytest.approx(expected)
        np.testing.assert_allclose(moved.vertices_nm, move(mesh.vertices_nm))


@pytest.fixture
def files(tmp_path):
    transform = smooth_transform()
    write_transform(transform, tmp_path / "t.json")
    write_volume(tmp_path / "em.zarr", Volume(em_pixels(), EM))
    write_volume(tmp_path / "lm.zarr", Volume(np.zeros(LM.shape, "u1"), LM))
    return tmp_path, transform


def test_command_maps_meshes_skeletons_and_points_both_ways(files):
    folder, transform = files
    mesh, points = tetrahedron(), tetrahedron().vertices_nm
    write_mesh(mesh, folder / "m.obj", unit="um")
    kinds = np.arange(1, len(points) + 1)
    line = dataclasses.replace(Skeleton.of_lines([points], 10.0), kinds=kinds)
    write_skeleton(line, folder / "s.swc")
    write_points(points, folder / "p.csv")
    t = str(folder / "t.json")

    def apply(source, out, *more):
        return run_app(["apply", t, str(folder / source), "--out", str(folder / out), *more])

    back = transform.inverse()(points)
    for more in ([], ["--unit", "um"], ["--unit", "mm"]):  # the file says um
        assert apply("m.obj", "m.ply", "--inverse", "--overwrite", *more) == 0
        assert mesh_unit(folder / "m.ply") == "um"
        found = read_mesh(folder / "m.ply")
        np.testing.assert_allclose(found.vertices_nm, back, atol=1e-3)
    assert found.volume_nm3() > 0
    assert apply("s.swc", "s.nml", "--inverse") == 0
    np.testing.assert_allclose(read_skeleton(folder / "s.nml").nodes_nm, back, atol=1e-3)
    scale = np.cbrt(np.abs(transform.determinant(back)))
    np.testing.assert_allclose(read_skeleton(folder / "s.nml").radius_nm, 10 / scale, rtol=1e-4)
    assert apply("s.swc", "moved.swc", "--inverse") == 0
    np.testing.assert_array_equal(read_skeleton(folder / "moved.swc").kinds, kinds)
    assert apply("p.csv", "q.csv", "--inverse") == 0
    np.testing.assert_allclose(read_points(folder / "q.csv"), back, atol=1e-3)
    assert apply("q.csv", "r.csv") == 0
    np.testing.assert_allclose(read_points(folder / "r.csv"), points, atol=1e-3)


def test_points_beside_the_light_volume_are_remarked(files, capsys):
    """A mesh is taken as nm: one that is in um lies in the corner of the world."""
    folder, transform = files
    write_transform(transform, folder / "t.json", fixed_grid=LM)
    mesh = tetrahedron()
    centred = Mesh(mesh.vertices_nm - mesh.vertices_nm.mean(0) + EM.centre_nm, mesh.faces)
    write_mesh(centred, folder / "says.ply", unit="um")
    said_so, nothing = b"comment unit: um", b"comment by somebody else"
    (folder / "um.ply").write_bytes((folder / "says.ply").read_bytes().replace(said_so, nothing))
    write_points(LM.to_world([[3.0, 4.0, 5.0]]), folder / "p.csv")
    t = str(folder / "t.json")

    def said(source, out, *more):
        assert run_app(["apply", t, str(folder / source), "--out", str(folder / out), *more]) == 0
        return " ".join(capsys.readouterr().err.split())

    assert "note" not in said("um.ply", "a.ply", "--inverse", "--unit", "um")
    assert "note" not in said("says.ply", "says-a.ply", "--inverse")
    wrong = said("um.ply", "b.ply", "--inverse")
    assert "note: 4 of 4 points" in wrong
    assert "check their unit (--unit) and the direction (--inverse)" in wrong
    assert "note" not in said("p.csv", "c.csv")
    write_points(np.zeros((0, 3)), folder / "none.csv")
    assert "note" not in said("none.csv", "d.csv")


def test_command_resamples_onto_any_spacing_and_into_n5(files):
    folder, transform = files
    arguments = ["apply", str(folder / "t.json"), str(folder / "em.zarr")]
    onto = ["--onto", str(folder / "lm.zarr"), "--spacing", "20, 18, 25 nm"]
    out = folder / "o.n5"
    assert run_app([*arguments, *onto, "--out", str(out), "--workers", "2"]) == 0
    found = open_volume(out)
    assert found.grid.spacing_nm == (25.0, 18.0, 20.0)
    grid = LM.with_spacing((25.0, 18.0, 20.0))
    expected = warp_box(Positions(transform, grid, EM), Volume(em_pixels(), EM), grid.box)
    np.testing.assert_array_equal(found.read(), expected)
    smooth = folder / "lab.zarr"
    assert run_app([*arguments, *onto, "--out", str(smooth), "--labels", "--tolerance", "0"]) == 0
    assert set(np.unique(open_volume(smooth).read())) <= set(range(250))


def test_an_output_of_unknown_kind_is_refused(files, capsys):
    folder, _ = files
    words = ["apply", str(folder / "t.json"), str(folder / "em.zarr")]
    words += ["--onto", str(folder / "lm.zarr"), "--out"]
    assert run_app([*words, str(folder / "o.png")]) == 1
    assert "let --out end in .zarr, .n5, .tif, .tiff" in capsys.readouterr().err
    assert not (folder / "o.png").exists()
    assert run_app([*words, str(folder / "o.zarr"), "--tolerance", "-1"]) == 2


@pytest.mark.parametrize("name", ["p.ply", "p.swc", "p.hdf5", "p.zarr", "p"])
def test_points_are_not_written_under_the_name_of_something_else(files, capsys, name):
    folder, _ = files
    write_points(np.zeros((3, 3)), folder / "p.csv")
    words = ["apply", str(folder / "t.json"), str(folder / "p.csv"), "--out"]
    assert run_app([*words, str(folder / name)]) == 1
    assert "let --out end in .csv" in capsys.readouterr().err
    assert not (folder / name).exists()


@pytest.mark.parametrize("name", ["em.zarr", "lm.zarr"])
def test_what_is_read_is_not_replaced(files, capsys, name):
    folder, _ = files
    before = open_volume(folder / name).read()
    words = ["apply", str(folder / "t.json"), str(folder / "em.zarr"), "--overwrite"]
    words += ["--onto", str(folder / "lm.zarr"), "--out", str(folder / "x" / ".." / name)]
    (folder / "x").mkdir()
    assert run_app(words) == 1
    assert "would be replaced by the result" in capsys.readouterr().err
    np.testing.assert_array_equal(open_volume(folder / name).read(), before)


def test_a_dataset_of_a_file_with_several_is_an_image(files):
    folder, transform = files
    with h5py.File(folder / "both.h5", "w") as file:
        file["other"], file["em"] = np.zeros((2, 3, 4), "u1"), em_pixels()
    words = ["apply", str(folder / "t.json"), str(folder / "both.h5::em"), "--onto"]
    words += [str(folder / "lm.zarr"), "--out", str(folder / "o.zarr")]
    assert run_app([*words, "--subject-spacing", xyz_text(EM)]) == 0
    em = Grid(EM.shape, EM.spacing_nm, (0.0, 0.0, 0.0), "em")
    expected = warp_box(Positions(transform, LM, em), Volume(em_pixels(), em), LM.box)
    assert expected.any()
    np.testing.assert_array_equal(open_volume(folder / "o.zarr").read(), expected)


def test_images_without_voxel_size_get_theirs_by_option(files, capsys):
    """Not by --spacing, which is that of the result."""
    folder, transform = files
    tifffile.imwrite(folder / "em.tif", em_pixels())
    tifffile.imwrite(folder / "lm.tif", np.zeros(LM.shape, "u1"))
    words = ["apply", str(folder / "t.json"), str(folder / "em.tif"), "--out"]
    words += [str(folder / "o.zarr"), "--onto", str(folder / "lm.tif")]
    assert run_app(words) == 1
    assert "--subject-spacing" in capsys.readouterr().err
    words += ["--subject-spacing", xyz_text(EM)]
    assert run_app(words) == 1
    assert "--onto-spacing" in capsys.readouterr().err
    assert run_app([*words, "--onto-spacing", xyz_text(LM)]) == 0
    em, lm = (Grid(g.shape, g.spacing_nm, (0.0, 0.0, 0.0), g.frame) for g in (EM, LM))
    expected = warp_box(Positions(transform, lm, em), Volume(em_pixels(), em), lm.box)
    assert expected.any()
    np.testing.assert_array_equal(open_volume(folder / "o.zarr").read(), expected)


def xyz_text(grid):
    return ", ".join(repr(s) for s in grid.spacing_nm[::-1]) + " nm"


def test_dry_run_prints_and_writes_json_but_no_volume(files, capsys):
    folder, _ = files
    arguments = ["apply", str(folder / "t.json"), str(folder / "em.zarr"), "--dry-run"]
    arguments += ["--out", str(folder / "o.zarr"), "--json", str(folder / "d.json")]
    assert run_app([*arguments, "--onto", str(folder / "lm.zarr")]) == 0
    assert "output_bytes" in capsys.readouterr().out
    report = json.loads((folder / "d.json").read_text())["apply"]
    assert report["voxels"] == LM.size
    assert not (folder / "o.zarr").exists()
    write_points(np.zeros((1, 3)), folder / "p.csv")
    assert run_app([*arguments[:2], str(folder / "p.csv"), *arguments[3:]]) == 1
    assert "nothing to estimate" in capsys.readouterr().err
