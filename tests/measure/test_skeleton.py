from __future__ import annotations

import json

import numpy as np
import pytest

from clemreg.blocks.executors import Threads
from clemreg.blocks.stages import Blockwise
from clemreg.cli.app import run_app
from clemreg.errors import ConfigError
from clemreg.io.skeletons import read_skeleton
from clemreg.io.volumes import write_volume
from clemreg.measure.paths import VoxelGraph, longest_path, path_length_nm, prune, smooth_path
from clemreg.measure.skeleton import SkeletonOptions, measure_skeleton, skeleton_table, skeletonize
from clemreg.measure.tables import read_table
from clemreg.space import Grid
from clemreg.testing import random_rotation
from clemreg.volume import Labels

GRID = Grid((60, 84, 90), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")


def turned(seed, grid=GRID):
    """Voxel centres in nm in a turned frame about the middle of the volume, and the rotation."""
    rotation = random_rotation(np.random.default_rng(seed))
    return (grid.points_nm() - grid.centre_nm) @ rotation, rotation


def tube(points, line, radius):
    """Voxels within `radius` of a line of points (N, 3)."""
    from scipy.spatial import cKDTree

    away, _ = cKDTree(line).query(points.reshape(-1, 3), distance_upper_bound=radius)
    return np.isfinite(away).reshape(points.shape[:3])


def arc(radius, start, stop):
    t = np.linspace(start, stop, 2000)
    return np.stack([np.zeros_like(t), radius * np.sin(t), radius * np.cos(t)], 1)


def only(labels, **options):
    (item,) = skeletonize(labels, SkeletonOptions(**options))
    return item, measure_skeleton(item)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_bent_tube_has_its_length_radius_and_place(seed):
    points, rotation = turned(seed)
    line, radius = arc(100.0, -1.8, 1.8), 20.0
    labels = Labels(tube(points, line, radius).astype("u4") * 70_001, GRID)
    item, row = only(labels)
    assert row["object_id"] == 70_001
    # The skeleton may end up to one radius before or behind the middle of an end cap.
    assert row["smooth_length_nm"] == pytest.approx(360, abs=radius)
    assert 1.0 < row["length_nm"] / row["smooth_length_nm"] < 1.2
    assert row["radius_mean_nm"] == pytest.approx(radius, rel=0.05)
    assert row["radius_sd_nm"] < 0.06 * radius
    assert (row["branches"], row["branch_points"], row["ends"], row["rings"]) == (1, 0, 2, 0)
    # Every node lies near the axis, in the world frame.
    local = (item.skeleton.nodes_nm - GRID.centre_nm) @ rotation
    beside = np.hypot(local[:, 0], np.hypot(local[:, 1], local[:, 2]) - 100)
    assert beside.mean() < 5
    assert beside.max() < 12


@pytest.mark.parametrize("seed", [0, 5])
def test_a_torus_is_one_ring_and_its_longest_way_is_half_of_it(seed):
    points, _ = turned(seed)
    ring = np.hypot(points[..., 0], np.hypot(points[..., 1], points[..., 2]) - 100) <= 22
    _, row = only(Labels(ring.astype("u2"), GRID))
    assert (row["branches"], row["branch_points"], row["ends"], row["rings"]) == (1, 0, 0, 1)
    # The thinned ring may lie one voxel beside the axis.
    assert row["smooth_length_nm"] == pytest.approx(np.pi * 100, abs=np.pi * 5.24)
    assert row["end_to_end_nm"] == pytest.approx(200, abs=2 * 5.24)


def test_a_y_keeps_its_three_arms_and_loses_its_spine():
    points, rotation = turned(3)
    arms = [150.0, 140.0, 120.0, 40.0]
    directions = np.array([[0, 0, 1], [0, 0.87, -0.5], [0, -0.87, -0.5], [1, 0, 0]])
    t = np.linspace(0, 1, 400)[:, None]
    lines = [t * d * n for d, n in zip(directions, arms, strict=True)]
    y = np.any([tube(points, line, 14.0) for line in lines[:3]], axis=0)
    spine = y | tube(points, lines[3] + [14, 0, 0], 8.0)
    item, row = only(Labels(spine.astype("u8") * 2**40, GRID))
    assert (row["branches"], row["branch_points"], row["ends"]) == (3, 1, 3)
    assert row["cable_nm"] > row["length_nm"] > 0
    # The longest way joins the two longest arms.
    ends = (item.skeleton.nodes_nm[item.longest[[0, -1]]] - GRID.centre_nm) @ rotation
    for tip in directions[:2] * np.array(arms[:2])[:, None]:
        assert np.linalg.norm(ends - tip, axis=1).min() < 20
    _, kept = only(Labels(spine.astype("u8"), GRID), shortest_branch_nm=10.0)
    assert kept["ends"] == 4
    assert kept["branches"] > 3


def test_pruning_cuts_the_shortest_first_and_a_twig_on_a_twig():
    """A line with a fork at its end: the longer tine stays as the line's new end."""
    mask = np.zeros((1, 40, 60), bool)
    mask[0, 20, 5:41] = True
    for step in range(1, 9):
        mask[0, 20 - step, 40 + step] = True
    for step in range(1, 6):
        mask[0, 20 + step, 40 + step] = True
    graph = VoxelGraph.of_mask(mask, (5.24, 4.0, 4.0)).slim()
    kept = graph.keep(prune(graph, 80.0))
    assert kept.index[:, 1].max() == 20
    assert kept.index[:, 2].max() == 48
    assert (kept.degree() <= 2).all()
    assert len(kept.index) == 36 + 8
    path = longest_path(kept, kept)
    assert path_length_nm(kept.index[path] * [5.24, 4, 4]) == pytest.approx(
        35 * 4 + 8 * np.hypot(4, 4)
    )
    everything = prune(graph, 1e9)  # a bare line has no branch point, so it stays
    assert everything.sum() == 36 + 8


def test_the_longest_path_equals_floyd_and_warshall():
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import floyd_warshall
    from skimage.morphology import skeletonize as lee

    points, _ = turned(8)
    rng = np.random.default_rng(0)
    knots = rng.uniform(-110, 110, (9, 3))
    pairs = [(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (4, 5), (5, 3), (6, 4), (7, 8), (8, 1)]
    t = np.linspace(0, 1, 300)[:, None]
    lines = [knots[a] * (1 - t) + knots[b] * t for a, b in pairs]
    mask = np.any([tube(points, line, 12) for line in lines], axis=0)
    graph = VoxelGraph.of_mask(lee(mask, method="lee") > 0, GRID.spacing_nm)
    n = len(graph.index)
    network = coo_array((graph.length_nm, graph.edges.T), shape=(n, n)).tocsr()
    distance = floyd_warshall(network, directed=False)
    expected = distance[np.isfinite(distance)].max()
    slim = graph.slim()
    path = longest_path(graph, slim)
    got = path_length_nm(graph.index[path] * np.asarray(GRID.spacing_nm))
    assert got == pytest.approx(expected, rel=1e-9)
    assert len(slim.edges) - n + 1 >= 2  # it does have rings
    assert 200 < n < 2000


def test_smoothing_takes_the_staircase_away_and_keeps_the_ends():
    t = np.arange(60)
    stairs = np.stack([t * 0, np.round(t * 0.41), t], 1) * [5.24, 4, 4]
    straight = np.hypot(stairs[-1, 1], stairs[-1, 2])
    assert path_length_nm(stairs) > 1.05 * straight
    smooth = smooth_path(stairs)
    np.testing.assert_allclose(smooth[[0, -1]], stairs[[0, -1]], atol=1e-9)
    assert path_length_nm(smooth) == pytest.approx(straight, rel=0.01)
    for few in (stairs[:1], stairs[:2], stairs[:3]):
        np.testing.assert_allclose(smooth_path(few)[[0, -1]], few[[0, -1]], atol=1e-9)


def several():
    points, _ = turned(4)
    ids = np.zeros(GRID.shape, "u8")
    ids[tube(points, arc(100.0, -1.0, 1.5), 16.0)] = 70_001
    ids[tube(points, arc(100.0, 2.1, 4.2), 18.0)] = 2**40 + 1
    ids[0, 0, 0] = 9
    ids[-3:, -4:, -5:] = 12
    return Labels(ids, GRID)


def test_neither_blocks_nor_workers_change_a_skeleton(tmp_path):
    labels = several()
    whole = list(skeletonize(labels))
    how = Blockwise((13, 40, 27), Threads(2))
    parts = list(skeletonize(labels, how=how, scratch=tmp_path / "s"))
    again = list(skeletonize(labels, how=how, scratch=tmp_path / "s"))  # all from the scratch
    assert [i.object_id for i in whole] == [9, 12, 70_001, 2**40 + 1]
    for one, *others in zip(whole, parts, again, strict=True):
        for other in others:
            np.testing.assert_array_equal(one.skeleton.nodes_nm, other.skeleton.nodes_nm)
            np.testing.assert_array_equal(one.skeleton.edges, other.skeleton.edges)
            np.testing.assert_array_equal(one.longest, other.longest)
    table = skeleton_table([measure_skeleton(item) for item in whole])
    assert table["object_id"].dtype == np.uint64
    assert table["length_nm"][0] == 0
    assert table["branches"].tolist()[0] == 1


def test_ids_keep_their_last_digit_whatever_their_size():
    grid = Grid((3, 4, 9), (5.24, 4.0, 4.0))
    ids = np.zeros(grid.shape, np.uint64)
    large = [2**53 + 1, 2**64 - 1]
    ids[1, 1, 1:3], ids[1, 1, 5:8] = large
    found = skeleton_table([measure_skeleton(item) for item in skeletonize(Labels(ids, grid))])
    assert found["object_id"].dtype == np.uint64
    assert found["object_id"].tolist() == large
    assert found["length_nm"].tolist() == [4, 8]


def test_limits_and_nothing():
    with pytest.raises(ConfigError, match="0 or more"):
        SkeletonOptions(shortest_branch_nm=-1)
    none = Labels(np.zeros((1, 5, 6), "u1"), Grid((1, 5, 6), (5.24, 4.0, 4.0)))
    assert list(skeletonize(none)) == []
    assert len(skeleton_table([])) == 0
    full = Labels(np.ones((1, 5, 6), "u1"), none.grid)
    row = measure_skeleton(next(skeletonize(full)))
    assert np.isnan(row["radius_mean_nm"])  # no surface in sight


@pytest.mark.parametrize("seed", [0, 1])
def test_a_large_tube_has_its_length_and_radius_block_by_block(seed):
    points, rotation = turned(seed)
    line, radius = arc(100.0, -1.8, 1.8), 20.0
    labels = Labels(tube(points, line, radius).astype("u4") * 70_001, GRID)
    item, row = only(labels, largest_box_voxels=1000)
    assert row["smooth_length_nm"] == pytest.approx(360, abs=radius)
    assert row["radius_mean_nm"] == pytest.approx(radius, rel=0.05)
    assert (row["branches"], row["branch_points"], row["ends"], row["rings"]) == (1, 0, 2, 0)
    local = (item.skeleton.nodes_nm - GRID.centre_nm) @ rotation
    beside = np.hypot(local[:, 0], np.hypot(local[:, 1], local[:, 2]) - 100)
    assert beside.max() < 12


def test_large_objects_are_the_same_for_any_blocks_and_go_on(tmp_path):
    """A torus, a tube, and a speck; large are those with a box above 3000 voxels."""
    points, _ = turned(0)
    ids = several().read()
    ids[np.hypot(points[..., 0], np.hypot(points[..., 1], points[..., 2]) - 60) <= 16] = 2**41
    labels, options = Labels(ids, GRID), SkeletonOptions(largest_box_voxels=3000)
    whole = list(skeletonize(labels, options))
    assert [i.object_id for i in whole] == [9, 12, 70_001, 2**40 + 1, 2**41]
    assert measure_skeleton(whole[-1])["rings"] == 1

    def stop(_done, _total, message):
        if message == "round 2 of thinning":
            raise KeyboardInterrupt

    block = (21, 40, 34)
    with pytest.raises(KeyboardInterrupt):
        list(skeletonize(labels, options, how=Blockwise(block, progress=stop), scratch=tmp_path))
    how = Blockwise(block, Threads(2))
    for one, other in zip(
        whole, skeletonize(labels, options, how=how, scratch=tmp_path), strict=True
    ):
        np.testing.assert_array_equal(one.skeleton.nodes_nm, other.skeleton.nodes_nm)
        np.testing.assert_array_equal(one.skeleton.radius_nm, other.skeleton.radius_nm)
        np.testing.assert_array_equal(one.longest, other.longest)
    (picked,) = skeletonize(labels, options, only=[2**41])
    np.testing.assert_array_equal(picked.skeleton.nodes_nm, whole[-1].skeleton.nodes_nm)


def test_radii_do_not_depend_on_where_they_are_computed():
    """An object that is thin already, so that both ways keep the same voxels."""
    ids = np.zeros(GRID.shape, "u1")
    ids[30, 10:70, 12] = 1
    ids[30, 40, 12:80] = 1
    ids[28:33, 60:64, 8:17] = 1
    labels = Labels(ids, GRID)
    (small,), (large,) = (
        skeletonize(labels, SkeletonOptions(largest_box_voxels=n)) for n in (10**9, 10)
    )
    of = [
        dict(zip(map(tuple, i.skeleton.nodes_nm), i.skeleton.radius_nm, strict=True))
        for i in (small, large)
    ]
    common = of[0].keys() & of[1].keys()
    assert len(common) > 100
    assert all(of[0][n] == pytest.approx(of[1][n], rel=1e-6) for n in common)


def test_skeletonize_from_the_command_line(tmp_path):
    write_volume(tmp_path / "l.zarr", several())
    words = ["skeletonize", str(tmp_path / "l.zarr"), "--csv", str(tmp_path / "s.csv")]
    words += ["--swc", str(tmp_path / "swc"), "--shortest-branch", "60 nm", "--memory-gb", "1"]
    assert run_app([*words, "--json", str(tmp_path / "s.json")]) == 0
    table = read_table(tmp_path / "s.csv")
    assert table["object_id"].tolist() == [9, 12, 70_001, 2**40 + 1]
    skeleton = read_skeleton(tmp_path / "swc" / "70001.swc")
    assert GRID.contains(skeleton.nodes_nm).all()
    assert skeleton.radius_nm.mean() == pytest.approx(16, rel=0.1)
    rows = json.loads((tmp_path / "s.json").read_text())["skeletonize"]["table"]
    assert rows[2]["smooth_length_nm"] == pytest.approx(250, abs=16)
    assert not list(tmp_path.glob(".*"))
