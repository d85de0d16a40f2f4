from __future__ import annotations

import numpy as np
import pytest

from clemreg.errors import FormatError, GridError, MissingError
from clemreg.io.skeletons import Skeleton, read_skeleton, write_skeleton

LINE = np.array([[1.0, 20.0, 300.0], [2.0, 25.0, 310.0], [4.0, 20.0, 330.0]])
RING = np.array([[0.0, 0, 0], [0, 0, 9], [0, 9, 9], [0, 0, 0]])


@pytest.mark.parametrize("name", ["t.swc", "t.nml"])
def test_lines_come_back(tmp_path, name):
    write_skeleton(Skeleton.of_lines([LINE, LINE[:2] + 50], 12.5), tmp_path / name, unit="nm")
    back = read_skeleton(tmp_path / name)
    lines = back.lines()
    np.testing.assert_allclose(lines[0], LINE, rtol=0, atol=1e-9)
    np.testing.assert_allclose(lines[1], LINE[:2] + 50, rtol=0, atol=1e-9)
    np.testing.assert_allclose(back.radius_nm, 12.5)


def test_units_and_axes_of_swc(tmp_path):
    path = tmp_path / "t.swc"
    path.write_text("# a comment\n1 0 1.5 2 3 0.1 -1\n2 0 1.5 2 4 0 1  # tail\n")
    found = read_skeleton(path)
    np.testing.assert_allclose(found.nodes_nm, [[3000, 2000, 1500], [4000, 2000, 1500]])
    assert found.radius_nm[0] == pytest.approx(100)
    assert np.isnan(found.radius_nm[1])
    assert read_skeleton(path, unit="nm").nodes_nm[1].tolist() == [4, 2, 1.5]


def test_types_order_and_root_of_swc_are_kept(tmp_path):
    """A soma in the middle of two neurites is the root, although it is no end."""
    nodes = ["1 1 5 6 7 0.5 -1", "2 2 6 6 7 0.1 1", "3 2 7 6 7 0.1 2", "9 3 4 6 7 0.2 1"]
    (tmp_path / "a.swc").write_text("\n".join(nodes))
    found = read_skeleton(tmp_path / "a.swc")
    assert found.kinds.tolist() == [1, 2, 2, 3]
    write_skeleton(found, tmp_path / "b.swc")
    rows = [line.split() for line in (tmp_path / "b.swc").read_text().splitlines()[2:]]
    assert [(r[0], r[1], r[6]) for r in rows] == [
        ("1", "1", "-1"),
        ("2", "2", "1"),
        ("3", "2", "2"),
        ("4", "3", "1"),
    ]
    np.testing.assert_allclose([float(r[2]) for r in rows], [5, 6, 7, 4])
    # Children may come before their parents; then the nodes are numbered anew.
    (tmp_path / "a.swc").write_text("\n".join(nodes[::-1]))
    write_skeleton(read_skeleton(tmp_path / "a.swc"), tmp_path / "b.swc")
    again = read_skeleton(tmp_path / "b.swc")
    pairs = sorted(sorted(again.kinds[edge].tolist()) for edge in again.edges)
    assert pairs == [[1, 2], [1, 3], [2, 2]]


def test_nml_uses_its_voxel_size(tmp_path):
    path = tmp_path / "t.nml"
    path.write_text(
        '<things><parameters><scale x="4" y="4" z="5.24"/></parameters><thing id="1"><nodes>'
        '<node id="7" x="10" y="20" z="100" radius="2"/><node id="9" x="11" y="20" z="100"/>'
        '</nodes><edges><edge source="7" target="9"/></edges></thing></things>'
    )
    found = read_skeleton(path)
    np.testing.assert_allclose(found.nodes_nm, [[524, 80, 40], [524, 80, 44]])
    assert found.edges.tolist() == [[0, 1]]


def test_rings_and_branches(tmp_path):
    ring = Skeleton.of_lines([RING])
    assert len(ring.nodes_nm) == 3
    (line,) = ring.lines()
    assert len(line) == 4
    assert (line[0] == line[-1]).all()
    write_skeleton(ring, tmp_path / "r.nml")
    assert len(read_skeleton(tmp_path / "r.nml").edges) == 3
    write_skeleton(ring, tmp_path / "r.swc")  # trees cannot hold a ring: one edge is cut
    assert len(read_skeleton(tmp_path / "r.swc").edges) == 2
    joined = Skeleton(RING[:3], np.array([[0, 2], [1, 2]]), np.full(3, np.nan))
    write_skeleton(joined, tmp_path / "j.swc")  # a node of an SWC file has one parent only
    assert read_skeleton(tmp_path / "j.swc").parts()[0] == 1
    nodes = np.array([[0.0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 1], [0, 2, 1]])
    tree = Skeleton(nodes, np.array([[0, 1], [1, 2], [3, 1], [4, 3]]), np.full(5, np.nan))
    assert sorted(len(part) for part in tree.lines()) == [2, 2, 3]
    assert tree.parts()[0] == 1


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "t.swc"
    path.write_text("1 0 1 2 3 0.1 -1\n2 0 1 2 nan 0.1 1\n")
    with pytest.raises(FormatError, match=r"line 2: .* is not an SWC node"):
        read_skeleton(path)
    path.write_text("1 0 1 2 3 0.1 5\n")
    with pytest.raises(FormatError, match="line 1: parent 5"):
        read_skeleton(path)
    path.write_text("1 0 1 2 3 0.1 -1\n1 0 1 2 3 0.1 -1\n")
    with pytest.raises(FormatError, match="line 2: node 1 is there twice"):
        read_skeleton(path)
    nml = tmp_path / "t.nml"
    nml.write_text("<things><thing>")
    with pytest.raises(FormatError, match="is not an NML skeleton"):
        read_skeleton(nml)
    nml.write_text("<things/>")
    with pytest.raises(FormatError, match="no <scale>"):
        read_skeleton(nml)
    with pytest.raises(MissingError):
        read_skeleton(tmp_path / "absent.swc")
    with pytest.raises(FormatError, match="no skeleton format"):
        read_skeleton(tmp_path / "t.obj")
    with pytest.raises(GridError, match="do not make a skeleton"):
        Skeleton(LINE, np.array([[0, 3]]), np.zeros(3))
