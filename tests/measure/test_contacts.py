from __future__ import annotations

import itertools

import numpy as np
import pytest

from clemreg.blocks.stages import Blockwise
from clemreg.errors import ConfigError, GridError
from clemreg.io.volumes import open_labels
from clemreg.measure.contacts import ContactOptions, find_contacts
from clemreg.measure.lines import line_between, line_offsets
from clemreg.measure.sight import lines
from clemreg.space import Grid
from clemreg.testing import hostile_grid
from clemreg.volume import Labels

SPACING = (5.24, 4.0, 4.0)
BLOCKS = [(4, 5, 6), (1, 17, 8), (7, 6, 100)]


def two_kinds(seed=0, shape=(11, 17, 23)):
    """Blobs of two kinds that lie close, in part touch, with ids above 2^16."""
    from scipy.ndimage import gaussian_filter

    grid = Grid(shape, SPACING, (300.0, -200.0, 70.0), "em")
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=shape), 1.6)
    field /= field.std()
    ids_a = np.array([70_001, 12, 2**40 + 5], np.uint64)
    ids_b = np.array([9, 65_600], np.uint64)
    third = np.arange(shape[2]) * 3 // shape[2]
    half = np.arange(shape[1]) * 2 // shape[1]
    a = np.where(field > 0.9, ids_a[third], 0)
    b = np.where(field < -0.7, ids_b[half][:, None], 0)
    return Labels(a, grid, name="a"), Labels(b, grid, name="b")


def surface_voxels(array):
    found = []
    for index in zip(*np.nonzero(array), strict=True):
        for axis, step in itertools.product(range(3), (-1, 1)):
            near = list(index)
            near[axis] += step
            inside = 0 <= near[axis] < array.shape[axis]
            if inside and array[tuple(near)] != array[index]:
                found.append(index)
                break
    return found


def walk(start, end):
    """Bresenham in three dimensions by error terms, from the end that comes first."""
    flipped = end < start
    if flipped:
        start, end = end, start
    delta = np.abs(np.subtract(end, start))
    sign = np.sign(np.subtract(end, start))
    n = int(delta.max())
    at, error = list(start), [0, 0, 0]
    way = []
    for _ in range(n - 1):
        for axis in range(3):
            error[axis] += 2 * int(delta[axis])
            # Half a step counts upwards, whichever way the axis is walked.
            if error[axis] > n or (error[axis] == n and sign[axis] > 0):
                at[axis] += int(sign[axis])
                error[axis] -= 2 * n
        way.append(tuple(at))
    return way


def brute_force(a, b, distance):
    """Contact voxels by pair: every pair of surface voxels, one line after the other."""
    marked = {}
    surface_a, surface_b = surface_voxels(a.data), surface_voxels(b.data)
    for one, other in itertools.product(surface_a, surface_b):
        apart = np.maximum(np.abs(np.subtract(one, other)) - 1, 0) * SPACING
        if np.linalg.norm(apart) > distance + 1e-6:
            continue
        way = walk(tuple(map(int, one)), tuple(map(int, other)))
        if any(a.data[v] or b.data[v] for v in way):
            continue
        pair = (int(a.data[one]), int(b.data[other]))
        marked.setdefault(pair, set()).update([one, *way, other])
    return marked


def split(voxels):
    """26-connected parts of a set of voxels, by flood fill."""
    left = {tuple(int(c) for c in v) for v in voxels}
    parts = []
    while left:
        stack, part = [left.pop()], set()
        while stack:
            voxel = stack.pop()
            part.add(voxel)
            near = {tuple(np.add(voxel, d).tolist()) for d in np.ndindex(3, 3, 3)}
            near = {tuple(c - 1 for c in v) for v in near} & left
            left -= near
            stack.extend(near)
        parts.append(part)
    return parts


@pytest.mark.parametrize("distance", [0.0, 8.0, 12.0])
def test_line_of_sight_equals_every_pair_of_voxels_one_by_one(distance):
    a, b = two_kinds(0, (9, 13, 16))
    table = find_contacts(a, b, ContactOptions(distance), how=Blockwise((5, 9, 7)))
    got = sorted((r["a_id"], r["b_id"], round(r["volume_nm3"] / 83.84)) for r in table.rows())
    expected = []
    for pair, voxels in brute_force(a, b, distance).items():
        expected += [(*pair, len(part)) for part in split(voxels)]
    assert got == sorted(expected)
    assert len(got) > 3


def test_the_label_volume_shows_the_voxels_of_each_site(tmp_path):
    a, b = two_kinds(3, (9, 13, 16))
    how = Blockwise((4, 5, 6))
    table = find_contacts(a, b, ContactOptions(8), how=how, out=tmp_path / "c.zarr")
    written = open_labels(tmp_path / "c.zarr")
    np.testing.assert_allclose(written.grid.origin_nm, a.grid.origin_nm)
    array = written.read()
    marked = brute_force(a, b, 8)
    union = np.zeros(a.shape, bool)
    for voxels in marked.values():
        union[tuple(np.array(sorted(voxels)).T)] = True
    np.testing.assert_array_equal(array > 0, union)
    for row in table.rows():
        own = marked[row["a_id"], row["b_id"]]
        places = zip(*np.nonzero(array == row["contact_id"]), strict=True)
        assert all(place in own for place in places)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("method", ["sight", "naive"])
def test_any_blocks_give_the_very_same_table(block, method):
    a, b = two_kinds(1)
    options = ContactOptions(9, method)
    whole = find_contacts(a, b, options, how=Blockwise((100, 100, 100)))
    parts = find_contacts(a, b, options, how=Blockwise(block))
    assert len(whole) > 3
    for name in whole.columns:
        np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)


def test_what_is_a_and_what_is_b_does_not_matter():
    a, b = two_kinds(2)
    one = find_contacts(a, b, ContactOptions(12))
    other = find_contacts(b, a, ContactOptions(12))
    mine = [one[n] for n in ("a_id", "b_id", "volume_nm3", "area_a_nm2", "gap_nm")]
    theirs = [other[n] for n in ("b_id", "a_id", "volume_nm3", "area_b_nm2", "gap_nm")]
    assert sorted(zip(*mine, strict=True)) == sorted(zip(*theirs, strict=True))


def test_naive_contacts_equal_brute_force_and_hold_the_refined(tmp_path):
    a, b = two_kinds(4, (7, 11, 13))
    distance = 8.0
    near = []
    for labels in (a, b):
        places = np.array(surface_voxels(labels.data))
        index = np.argwhere(np.ones(labels.shape, bool))
        apart = np.maximum(np.abs(index[:, None] - places[None]) - 1, 0) * SPACING
        close = (np.linalg.norm(apart, axis=-1) <= distance + 1e-6).any(1).reshape(labels.shape)
        close[labels.data > 0] = False
        close[tuple(places.T)] = True
        near.append(close)
    how, scratch = Blockwise((4, 5, 6)), tmp_path / "n"
    find_contacts(
        a, b, ContactOptions(distance, "naive"), how=how, scratch=scratch, out=tmp_path / "n.zarr"
    )
    naive = open_labels(tmp_path / "n.zarr").read() > 0
    np.testing.assert_array_equal(naive, near[0] & near[1])
    how, scratch = Blockwise((4, 5, 6)), tmp_path / "s"
    find_contacts(a, b, ContactOptions(distance), how=how, scratch=scratch, out=tmp_path / "s.zarr")
    sight = open_labels(tmp_path / "s.zarr").read() > 0
    assert not (sight & ~naive).any()
    assert sight.sum() < naive.sum()


@pytest.mark.parametrize(("voxels", "expected"), [(0, 1), (1, 1), (2, 1), (3, 0)])
def test_plates_touch_up_to_the_distance(voxels, expected):
    """Plates of 25 x 27 voxels, `voxels` * 5.24 nm apart, at 11 nm: area, volume and gap."""
    grid = Grid((23, 37, 41), SPACING, (300.0, -200.0, 70.0), "em")
    a, b = np.zeros((2, *grid.shape), "u4")
    a[5:9, 5:30, 6:33] = 70_001
    b[9 + voxels : 14 + voxels, 5:30, 6:33] = 65_537
    table = find_contacts(
        Labels(a, grid), Labels(b, grid), ContactOptions(11.0), how=Blockwise((8, 16, 16))
    )
    assert len(table) == expected
    for row in table.rows():
        assert row["area_a_faces_nm2"] == pytest.approx(25 * 27 * 16)
        assert row["area_b_faces_nm2"] == pytest.approx(25 * 27 * 16)
        assert row["volume_nm3"] == pytest.approx(25 * 27 * (voxels + 2) * 83.84)
        assert row["cleft_volume_nm3"] == pytest.approx(25 * 27 * voxels * 83.84)
        assert row["gap_nm"] == pytest.approx(voxels * 5.24)
        centre = grid.to_world([(8 + 9 + voxels) / 2, 17, 19])
        np.testing.assert_allclose([row[f"centre_{x}_nm"] for x in "zyx"], centre)


@pytest.mark.parametrize("voxels", [0, 1, 2, 4])
@pytest.mark.parametrize("axis", [0, 2])
def test_naive_contacts_have_the_gap_of_the_plates(voxels, axis):
    """Up to twice the distance, as no voxel is farther than that from either; of any ids."""
    grid = Grid((23, 37, 41), SPACING, (300.0, -200.0, 70.0), "em")
    a, b = np.zeros(grid.shape, "u1"), np.zeros(grid.shape, "u8")
    one, other = [slice(5, 20)] * 3, [slice(5, 20)] * 3
    one[axis], other[axis] = slice(5, 9), slice(9 + voxels, 14 + voxels)
    a[tuple(one)], b[tuple(other)] = 255, 2**64 - 1
    options = ContactOptions(11.0, "naive")
    how = Blockwise((8, 16, 16))
    row = next(find_contacts(Labels(a, grid), Labels(b, grid), options, how=how).rows())
    assert (row["a_id"], row["b_id"]) == (255, 2**64 - 1)
    assert row["gap_nm"] == pytest.approx(voxels * SPACING[axis])


def test_the_contact_area_of_two_spheres():
    """Facing caps: points of a sphere from which the other is nearer than the distance."""
    grid = Grid((50, 56, 108), SPACING, (300.0, -200.0, 70.0), "em")
    radius, gap, distance = 90.0, 6.0, 20.0
    points = grid.points_nm()
    centres = grid.centre_nm + np.array([[0, 0, -(radius + gap / 2)], [0, 0, radius + gap / 2]])
    a, b = (np.linalg.norm(points - c, axis=-1) <= radius for c in centres)
    row = next(
        find_contacts(
            Labels(a.astype("u4"), grid), Labels(b.astype("u4"), grid), ContactOptions(distance)
        ).rows()
    )
    # A point at height x above the cap's foot is within `distance` of the other sphere if
    # |p - c2| <= radius + distance; the cap's area is 2 pi r h.
    d = 2 * radius + gap
    cosine = (d**2 + radius**2 - (radius + distance) ** 2) / (2 * d * radius)
    cap = 2 * np.pi * radius**2 * (1 - cosine)
    assert row["area_a_nm2"] == pytest.approx(cap, rel=0.1)
    assert row["area_a_nm2"] == pytest.approx(row["area_b_nm2"], rel=0.02)


def test_a_third_object_blocks_the_view():
    grid = Grid((9, 20, 30), SPACING)
    a, b = np.zeros((2, *grid.shape), "u4")
    a[:, :, :10] = 1
    b[:, :, 14:] = 2
    assert len(find_contacts(Labels(a, grid), Labels(b, grid), ContactOptions(16))) == 1
    a[:, :, 12] = 3
    table = find_contacts(Labels(a, grid), Labels(b, grid), ContactOptions(16))
    assert table["a_id"].tolist() == [3]
    a[:, 10, 12] = 0  # a slit: the view is back, through it only
    table = find_contacts(Labels(a, grid), Labels(b, grid), ContactOptions(16))
    assert table["a_id"].tolist() == [1, 3]
    assert table["area_a_nm2"][0] < 0.5 * table["area_a_nm2"][1]


def test_objects_of_one_kind_and_two_sites_of_one_pair():
    grid = hostile_grid()
    ids = np.zeros(grid.shape, "u8")
    ids[2:9, 3:14, 3:5] = 2**40
    ids[2:4, 3:5, 5:8] = 2**40
    ids[2:4, 10:13, 5:8] = 2**40
    ids[2:9, 3:14, 8:12] = 70_001
    table = find_contacts(Labels(ids, grid), options=ContactOptions(4), how=Blockwise((4, 5, 6)))
    assert table["a_id"].tolist() == [70_001, 70_001]
    assert table["b_id"].tolist() == [2**40, 2**40]
    assert table["gap_nm"].tolist() == [0, 0]


def test_overlaps_go_where_they_are_said_to_go():
    grid = hostile_grid()
    a, b = np.zeros((2, *grid.shape), "u4")
    a[:, :, :10] = 1
    b[:, :, 8:] = 2

    def columns(overlap):
        options = ContactOptions(0.0, overlap=overlap)
        table = find_contacts(Labels(a, grid), Labels(b, grid), options)
        return (table["centre_x_nm"] - 70) / 4, table["volume_nm3"] / (83.84 * 11 * 17)

    assert columns("b") == (pytest.approx([7.5]), pytest.approx([2]))
    assert columns("a") == (pytest.approx([9.5]), pytest.approx([2]))
    assert columns("shared")[0] == pytest.approx([8.5])


def test_small_sites_and_nothing_at_all():
    a, b = two_kinds(1)
    table = find_contacts(a, b, ContactOptions(8))
    limit = float(np.median(table["volume_nm3"]))
    large = find_contacts(a, b, ContactOptions(8, min_volume_nm3=limit))
    assert len(large) == (table["volume_nm3"] >= limit).sum()
    assert large["contact_id"].tolist() == list(range(1, len(large) + 1))
    none = Labels(np.zeros(a.shape, "u1"), a.grid)
    assert len(find_contacts(a, none, ContactOptions(8))) == 0
    assert len(find_contacts(none, Labels(none.data, a.grid), ContactOptions(8, "naive"))) == 0


def test_what_cannot_be():
    a, _ = two_kinds()
    with pytest.raises(GridError, match="do not have the same voxels"):
        find_contacts(a, Labels(a.data, Grid(a.shape, (5.24, 4.0, 4.1))))
    with pytest.raises(ConfigError, match="need two label volumes"):
        find_contacts(a, options=ContactOptions(method="naive"))
    with pytest.raises(ConfigError, match="expected 0 or more"):
        ContactOptions(-1)
    with pytest.raises(ConfigError, match="sight or naive"):
        ContactOptions(method="best")
    with pytest.raises(ConfigError, match="shared, a or b"):
        ContactOptions(overlap="c")


def test_lines_are_the_same_from_both_ends_and_symmetric_in_number():
    ways = {line.step: line for line in lines(20.0, SPACING)}
    for step, line in ways.items():
        back = ways[tuple(-s for s in step)]
        np.testing.assert_array_equal(np.sort(line.between, 0), np.sort(back.between + step, 0))
        assert len(line.between) == max(max(map(abs, step)) - 1, 0)
    assert (6, 0, 0) not in ways
    assert (4, 0, 0) in ways  # 15.72 nm between the boxes
    assert (0, 6, 0) in ways  # 20 nm
    assert line_between((0, 2, 3)).tolist() == [[0, 1, 1], [0, 1, 2]]


def test_the_two_lines_differ_in_their_symmetry_and_at_halves_only():
    for step in itertools.product(range(-6, 7), repeat=3):
        steps = max(map(abs, step))
        if steps == 0:
            assert len(line_between(step)) == len(line_offsets(step)) == 0
            continue
        there, between = line_offsets(step), line_between(step)
        back = np.negative(step)
        np.testing.assert_array_equal(line_offsets(back), -there)
        np.testing.assert_array_equal(line_between(back)[::-1] - back, between)
        exact = np.arange(1, steps)[:, None] * np.array(step) / steps
        for found in (there, between):
            assert np.abs(found - exact).max(initial=0) <= 0.5 + 1e-9
        half = np.abs(np.abs(exact) % 1 - 0.5) < 1e-9
        np.testing.assert_array_equal(there[~half], between[~half])
