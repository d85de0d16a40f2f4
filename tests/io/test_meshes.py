from __future__ import annotations

import struct

import numpy as np
import pytest

from clemreg.errors import FormatError, GridError, MissingError
from clemreg.io.meshes import Mesh, mesh_unit, read_mesh, write_mesh

MESH = Mesh(
    np.array([[0.5, 1, 2], [0, 0, 100], [0, 50.25, 0], [20, 0, 0]]),
    np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]),
)


@pytest.mark.parametrize("unit", ["um", "µm", "microns"])
@pytest.mark.parametrize("name", ["m.obj", "m.ply"])
def test_a_mesh_comes_back(tmp_path, name, unit):
    write_mesh(MESH, tmp_path / name, unit=unit)
    assert mesh_unit(tmp_path / name) == "um"
    back = read_mesh(tmp_path / name)
    np.testing.assert_allclose(back.vertices_nm, MESH.vertices_nm, rtol=1e-12)
    np.testing.assert_array_equal(back.faces, MESH.faces)


def test_the_file_holds_x_y_z_and_skimage_fills_it_right(tmp_path):
    """A marching-cubes ellipsoid keeps its volume, sign and axes through a file."""
    from skimage.measure import marching_cubes

    spacing = np.array([5.24, 4.0, 4.0])
    z, y, x = (np.indices((31, 33, 35)).T * spacing - spacing * 16).T
    inside = 1 - (z / 60) ** 2 - (y / 40) ** 2 - (x / 25) ** 2
    vertices, faces, _, _ = marching_cubes(inside, 0, spacing=tuple(spacing))
    mesh = Mesh(vertices.astype(float), faces.astype(np.intp))
    write_mesh(mesh, tmp_path / "m.ply")
    back = read_mesh(tmp_path / "m.ply")
    assert abs(back.volume_nm3()) == pytest.approx(4 / 3 * np.pi * 60 * 40 * 25, rel=0.02)
    assert back.volume_nm3() == pytest.approx(mesh.volume_nm3())
    write_mesh(mesh, tmp_path / "m.obj")
    first = (tmp_path / "m.obj").read_text().splitlines()[1].split()
    assert [float(v) for v in first[1:]] == pytest.approx(vertices[0][::-1].tolist())


def test_other_peoples_files(tmp_path):
    obj = tmp_path / "m.obj"
    obj.write_text("o thing\nv 1 2 3\nv 4 5 6\nv 7 8 9\nv 1 1 1\nvn 0 0 1\nf 1/1/1 2//1 3 -1\n")
    mesh = read_mesh(obj)
    assert mesh.vertices_nm[0].tolist() == [3, 2, 1]
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    head = (
        "ply\nformat {}\ncomment hi\nelement vertex 3\nproperty float x\nproperty float y\n"
        "property float z\nproperty uchar red\nelement face 1\n"
        "property list uchar int vertex_index\nend_header\n"
    )
    ply = tmp_path / "m.ply"
    ply.write_text(head.format("ascii 1.0") + "1 2 3 255\n4 5 6 0\n7 8 9 0\n3 0 1 2\n")
    expected = [[3, 2, 1], [6, 5, 4], [9, 8, 7]]
    assert read_mesh(ply).vertices_nm.tolist() == expected
    ply.write_bytes(ply.read_bytes().replace(b"\n", b"\r\n"))  # from Windows
    assert read_mesh(ply).vertices_nm.tolist() == expected
    rows = b"".join(struct.pack(">fffB", *v[::-1], 7) for v in expected)
    face = struct.pack(">Biii", 3, 0, 1, 2)
    ply.write_bytes(head.format("binary_big_endian 1.0").encode() + rows + face)
    assert read_mesh(ply).vertices_nm.tolist() == expected
    assert read_mesh(ply).faces.tolist() == [[0, 1, 2]]
    ply.write_bytes(head.format("binary_big_endian 1.0").encode() + rows + face[:-1])
    with pytest.raises(FormatError, match="damaged PLY"):
        read_mesh(ply)


def test_a_unit_that_is_none_is_a_comment_like_any_other(tmp_path):
    obj = tmp_path / "m.obj"
    obj.write_text("# unit: µm\nv 1 2 3\nv 4 5 6\nv 7 8 9\nf 1 2 3\n", encoding="utf-8")
    assert read_mesh(obj, unit="mm").vertices_nm[0].tolist() == [3000, 2000, 1000]
    obj.write_text("# unit: cubit\nv 1 2 3\nv 4 5 6\nv 7 8 9\nf 1 2 3\n")
    assert mesh_unit(obj) is None
    assert read_mesh(obj, unit="um").vertices_nm[0].tolist() == [3000, 2000, 1000]


def test_damaged_files_are_named(tmp_path):
    obj = tmp_path / "m.obj"
    obj.write_text("v 1 2 3\nv 1 2 x\n")
    with pytest.raises(FormatError, match="line 2"):
        read_mesh(obj)
    obj.write_text("v 1 2 3\nf 1 2 3\n")
    with pytest.raises(FormatError, match="do not make a mesh"):
        read_mesh(obj)
    obj.write_text("v 1 2\n")
    with pytest.raises(FormatError, match="needs x, y and z"):
        read_mesh(obj)
    obj.write_text("v 1 2 nan\n")
    with pytest.raises(FormatError, match="not finite"):
        read_mesh(obj)
    ply = tmp_path / "m.ply"
    ply.write_text("solid\n")
    with pytest.raises(FormatError, match="not a PLY"):
        read_mesh(ply)
    with pytest.raises(MissingError):
        read_mesh(tmp_path / "absent.ply")
    with pytest.raises(FormatError, match="no mesh format"):
        read_mesh(tmp_path / "m.stl")
    with pytest.raises(GridError, match="do not make a mesh"):
        Mesh(MESH.vertices_nm, np.array([[0, 1, 4]]))
