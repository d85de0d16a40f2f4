from __future__ import annotations

import json
import sys
import time

import numpy as np
import pytest

from clemreg.blocks.executors import Threads
from clemreg.blocks.stages import Blockwise
from clemreg.cli.app import run_app
from clemreg.errors import ConfigError, DataError, DependencyError
from clemreg.io.volumes import write_volume
from clemreg.measure.mesh import MeshOptions, area_nm2, mesh_mask, mesh_objects, smooth
from clemreg.measure.tables import read_table
from clemreg.space import Grid
from clemreg.testing import random_rotation
from clemreg.volume import Labels


def sphere(radius=90.0, spacing=(5.24, 4.0, 4.0)):
    n = np.ceil(radius / np.asarray(spacing)).astype(int) + 2
    grid = Grid(tuple(2 * n + 1), spacing, (300.0, -200.0, 70.0), "em")
    centre = grid.centre_nm + np.array([1.1, -0.7, 0.4])
    return np.linalg.norm(grid.points_nm() - centre, axis=-1) <= radius, grid, centre


def check_closed(mesh):
    ends = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    forward = {tuple(e) for e in ends.tolist()}
    assert len(forward) == len(ends)
    assert forward == {(b, a) for a, b in forward}


@pytest.mark.parametrize("spacing", [(5.24, 4.0, 4.0), (4.0, 4.0, 4.0)])
@pytest.mark.parametrize("keep", [1.0, 0.1])
def test_a_sphere_has_its_volume_area_place_and_normals(spacing, keep):
    if keep < 1:
        pytest.importorskip("fast_simplification")
    mask, grid, centre = sphere(spacing=spacing)
    mesh = mesh_mask(mask, grid, MeshOptions(keep=keep))
    assert mesh.volume_nm3() == pytest.approx(4 / 3 * np.pi * 90**3, rel=0.01)
    assert area_nm2(mesh) == pytest.approx(4 * np.pi * 90**2, rel=0.02)
    away = mesh.vertices_nm - centre
    np.testing.assert_allclose(np.linalg.norm(away, axis=1), 90, atol=4)
    # Normals by the right hand in x, y, z point outwards.
    a, b, c = (mesh.vertices_nm[mesh.faces[:, i], ::-1] for i in range(3))
    normal = np.cross(b - a, c - a)
    outwards = (normal * ((a + b + c) / 3 - centre[::-1])).sum(1)
    assert (outwards > 0).mean() > 0.99
    check_closed(mesh)
    plain = mesh_mask(mask, grid, MeshOptions(smoothing=0, keep=1))
    assert area_nm2(plain) > 1.06 * area_nm2(mesh)  # the staircase that smoothing takes away
    assert len(mesh.faces) == pytest.approx(keep * len(plain.faces), rel=0.02)


def test_a_torus_keeps_its_hole_and_a_cut_object_is_closed():
    rotation = random_rotation(np.random.default_rng(0))
    grid = Grid((50, 60, 62), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0))
    local = (grid.points_nm() - grid.centre_nm) @ rotation
    ring = np.hypot(local[..., 0], np.hypot(local[..., 1], local[..., 2]) - 70) <= 25
    mesh = mesh_mask(ring, grid, MeshOptions(keep=1))
    edges = len(mesh.faces) * 3 / 2
    assert len(mesh.vertices_nm) - edges + len(mesh.faces) == 0
    assert mesh.volume_nm3() == pytest.approx(2 * np.pi**2 * 70 * 25**2, rel=0.02)
    assert area_nm2(mesh) == pytest.approx(4 * np.pi**2 * 70 * 25, rel=0.02)
    cut = mesh_mask(ring[:25], grid, MeshOptions(keep=1))
    check_closed(cut)
    assert cut.volume_nm3() == pytest.approx(ring[:25].sum() * np.prod(grid.spacing_nm), rel=0.03)


def test_smoothing_moves_no_flat_face_and_does_not_drift():
    mask, grid, _ = sphere(60.0)
    mesh = mesh_mask(mask, grid, MeshOptions(0, 1))
    far = smooth(mesh, 30)
    np.testing.assert_allclose(far.vertices_nm.mean(0), mesh.vertices_nm.mean(0), atol=0.05)
    assert far.volume_nm3() == pytest.approx(mesh.volume_nm3(), rel=0.01)
    np.testing.assert_array_equal(far.faces, mesh.faces)


@pytest.fixture
def labels():
    mask, grid, _ = sphere(40.0)
    ids = mask.astype("u8") * 70_001
    ids[0, 0, :2] = 2**40 + 1
    ids[-1, -1, -1] = 5
    return Labels(ids, grid)


def test_every_object_whatever_the_blocks(labels):
    kept = [{}, {}]
    options = MeshOptions(keep=1)
    whole = mesh_objects(labels, kept[0].__setitem__, options)
    how = Blockwise((5, 9, 14), Threads(2))
    parts = mesh_objects(labels, kept[1].__setitem__, options, how=how)
    assert whole["object_id"].tolist() == [5, 70_001, 2**40 + 1]
    for name in whole.columns:
        np.testing.assert_array_equal(whole[name], parts[name])
    for number, mesh in kept[0].items():
        np.testing.assert_array_equal(mesh.vertices_nm, kept[1][number].vertices_nm)
    corner = kept[0][5].vertices_nm.mean(0)
    last = labels.grid.to_world(np.asarray(labels.shape) - 1)
    np.testing.assert_allclose(corner, last, atol=0.01)
    with pytest.raises(DataError, match="object 70001"):
        mesh_objects(labels, kept[0].__setitem__, MeshOptions(largest_box_voxels=100))
    none = Labels(np.zeros((1, 4, 5), "u1"), Grid((1, 4, 5), (5.24, 4.0, 4.0)))
    assert len(mesh_objects(none, kept[0].__setitem__)) == 0


def test_an_object_of_one_voxel_keeps_its_surface():
    grid = Grid((3, 3, 3), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0))
    mask = np.zeros(grid.shape, bool)
    mask[1, 1, 1] = True
    mesh = mesh_mask(mask, grid, MeshOptions(smoothing=0, keep=0.2))
    assert len(mesh.faces) == 8
    # Marching cubes makes an octahedron of it, a sixth of the voxel.
    assert mesh.volume_nm3() == pytest.approx(5.24 * 4 * 4 / 6)
    np.testing.assert_allclose(mesh.vertices_nm.mean(0), grid.to_world((1, 1, 1)))


def thin_mask(name):
    """Objects of few voxels across, anywhere in the array."""
    mask = np.zeros((11, 17, 23), bool)
    if name == "voxel":
        mask[4, 5, 6] = True
    elif name == "thread":
        mask[4, 5, 2:21] = True
    elif name == "double thread":
        mask[4:6, 5:7, 2:21] = True
    elif name == "winding thread":
        for z, y, x in zip(range(2, 9), range(3, 10), range(4, 11), strict=True):
            mask[z, y, x] = mask[z, y, x + 1] = mask[z, y + 1, x + 1] = True
    else:
        z, y, x = np.ogrid[-4:7, -7:10, -9:14]
        mask = (z * 5.24) ** 2 + (y * 4.0) ** 2 + (x * 4.0) ** 2 <= 9.0**2
    return mask


THIN = ["voxel", "thread", "double thread", "winding thread", "speck"]


@pytest.mark.parametrize("name", THIN)
@pytest.mark.parametrize("options", [(20, 1.0), (20, 0.2), (50, 0.1), (7, 0.8)])
def test_thin_objects_keep_the_volume_that_marching_cubes_leaves(name, options):
    pytest.importorskip("fast_simplification")
    mask = thin_mask(name)
    grid = Grid(mask.shape, (5.24, 4.0, 4.0), (300.0, -200.0, 70.0))
    plain = mesh_mask(mask, grid, MeshOptions(0, 1)).volume_nm3()
    mesh = mesh_mask(mask, grid, MeshOptions(*options))
    assert 0.95**2 <= mesh.volume_nm3() / plain <= 1.05**2
    assert len(mesh.faces) >= 4
    if name == "thread":  # a rhombus is half of each face; at both ends a pyramid
        expected = 5.24 * 4.0 * 4.0 / 2 * (18 + 1 / 3)
        assert mesh.volume_nm3() == pytest.approx(expected, rel=0.1)
        low, high = mesh.vertices_nm[:, 2].min(), mesh.vertices_nm[:, 2].max()
        np.testing.assert_allclose([low, high], [70 + 4 * 1.5, 70 + 4 * 20.5], atol=4)


def test_the_table_has_the_volume_of_a_thread():
    ids = thin_mask("thread").astype("u8") * (2**40 + 1)
    labels = Labels(ids, Grid(ids.shape, (5.24, 4.0, 4.0), (300.0, -200.0, 70.0)))
    row = next(mesh_objects(labels, lambda *_: None).rows())
    assert row["volume_nm3"] == pytest.approx(5.24 * 4.0 * 4.0 / 2 * (18 + 1 / 3), rel=0.1)


def read_ply(path):
    body = path.read_bytes()
    header, _, rest = body.partition(b"end_header\n")
    count = {w[1]: int(w[2]) for w in (x.split() for x in header.decode().splitlines())
             if w[0] == "element"}  # fmt: skip
    points = np.frombuffer(rest, "<f8", count["vertex"] * 3).reshape(-1, 3)
    rows = np.frombuffer(rest[points.nbytes :], np.uint8).reshape(count["face"], 13)
    assert (rows[:, 0] == 3).all()
    return points, np.ascontiguousarray(rows[:, 1:]).view("<i4")


def read_obj(path):
    lines = [line.split() for line in path.read_text().splitlines()]
    points = np.array([[float(v) for v in line[1:]] for line in lines if line[0] == "v"])
    return points, np.array([[int(v) - 1 for v in line[1:]] for line in lines if line[0] == "f"])


def read_neuroglancer(folder, number):
    assert json.loads((folder / "info").read_text()) == {"@type": "neuroglancer_legacy_mesh"}
    (name,) = json.loads((folder / f"{number}:0").read_text())["fragments"]
    body = (folder / name).read_bytes()
    count = int(np.frombuffer(body, "<u4", 1)[0])
    points = np.frombuffer(body, "<f4", 3 * count, 4).reshape(-1, 3)
    return points, np.frombuffer(body, "<u4", offset=4 + points.nbytes).reshape(-1, 3)


def test_two_threads_do_not_simplify_at_once(labels, monkeypatch):
    """The library keeps its mesh in variables of the process; one object took another's mesh."""
    import fast_simplification

    simplify, inside, most = fast_simplification.simplify, [], []

    def watched(*arguments):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.05)
        found = simplify(*arguments)
        inside.pop()
        return found

    monkeypatch.setattr(fast_simplification, "simplify", watched)
    mesh_objects(labels, lambda *_: None, how=Blockwise(executor=Threads(3)))
    assert len(most) >= 3
    assert max(most) == 1


@pytest.mark.parametrize("kind", ["ply", "obj", "neuroglancer"])
def test_files_from_the_command_line_hold_the_same_mesh(tmp_path, labels, kind):
    write_volume(tmp_path / "l.zarr", labels)
    words = ["mesh", str(tmp_path / "l.zarr"), "--out", str(tmp_path / "m"), "--format", kind]
    words += ["--keep", "1", "--smoothing", "3", "--csv", str(tmp_path / "m.csv")]
    assert run_app([*words, "--json", str(tmp_path / "m.json"), "--workers", "2"]) == 0
    kept = {}
    mesh_objects(labels, kept.__setitem__, MeshOptions(3, 1))
    for number, mesh in kept.items():
        if kind == "neuroglancer":
            points, faces = read_neuroglancer(tmp_path / "m", number)
        else:
            read = read_ply if kind == "ply" else read_obj
            points, faces = read(tmp_path / "m" / f"{number}.{kind}")
        np.testing.assert_allclose(points[:, ::-1], mesh.vertices_nm, atol=2e-3)
        np.testing.assert_array_equal(faces, mesh.faces)
    assert read_table(tmp_path / "m.csv")["object_id"].tolist() == [5, 70_001, 2**40 + 1]
    assert json.loads((tmp_path / "m.json").read_text())["mesh"]["objects"] == 3
    assert not list(tmp_path.glob(".*"))


def test_another_format_after_a_stop_writes_every_object(tmp_path, labels, monkeypatch, capsys):
    def stops(_mesh, path):
        if path.name == "70001.ply":
            raise DataError("stopped here")

    write_volume(tmp_path / "l.zarr", labels)
    words = ["mesh", str(tmp_path / "l.zarr"), "--out", str(tmp_path / "m"), "--keep", "1"]
    with monkeypatch.context() as patch:
        patch.setattr("clemreg.pipeline.measure.write_mesh", stops)
        assert run_app([*words, "--format", "ply"]) == 1
    assert "stopped here" in capsys.readouterr().err
    assert run_app([*words, "--format", "obj"]) == 0
    found = sorted(path.name for path in (tmp_path / "m").glob("*.obj"))
    assert found == ["1099511627777.obj", "5.obj", "70001.obj"]


def test_what_cannot_be(tmp_path, labels, monkeypatch, capsys):
    write_volume(tmp_path / "l.zarr", labels)
    words = ["mesh", str(tmp_path / "l.zarr"), "--out", str(tmp_path / "m")]
    assert run_app([*words, "--format", "stl"]) == 1
    assert "expected one of obj, ply, neuroglancer" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="above 0, up to 1"):
        MeshOptions(keep=0)
    with pytest.raises(ConfigError, match="0 or more"):
        MeshOptions(smoothing=-1)
    monkeypatch.setitem(sys.modules, "fast_simplification", None)
    with pytest.raises(DependencyError, match=r"--keep 1"):
        mesh_mask(*sphere(30.0)[:2], MeshOptions())
