from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from scipy.spatial import cKDTree

from clemreg.blocks.executors import Threads
from clemreg.blocks.stages import Blockwise
from clemreg.cli.app import run_app
from clemreg.errors import ConfigError, DataError
from clemreg.io.skeletons import Skeleton, read_skeleton, write_skeleton
from clemreg.io.volumes import open_labels, write_volume
from clemreg.measure.microtubules.baseline import skeleton_tracks
from clemreg.measure.microtubules.candidates import find_candidates
from clemreg.measure.microtubules.graph import Graph, build_graph
from clemreg.measure.microtubules.program import Costs, cost_of, solve
from clemreg.measure.microtubules.score import MatchOptions, score_tracks
from clemreg.measure.microtubules.trace import (
    TraceOptions,
    _cubes,
    _neighbours,
    _waves,
    assemble,
    trace,
)
from clemreg.measure.microtubules.tubes import Tube, write_tubes
from clemreg.space.grid import Grid
from clemreg.volume import Volume

ANISOTROPIC = Grid((67, 130, 160), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")
ISOTROPIC = Grid((88, 130, 160), (4.0, 4.0, 4.0), (-31.0, 12.5, 7.0), "em")


def fine(line, step_nm=1.0):
    """The line at equal steps."""
    line = np.asarray(line, dtype=float)
    along = np.append(0, np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1)))
    at = np.linspace(0, along[-1], int(along[-1] / step_nm) + 2)
    return np.stack([np.interp(at, along, line[:, k]) for k in range(3)], -1)


def predict(grid, lines, noise=0.05, seed=0):
    """Quantised signed distance of microtubules of 12.5 nm radius, with noise."""
    tree = cKDTree(np.concatenate([fine(line, 2.0) for line in lines]))
    distance, _ = tree.query(grid.points_nm().reshape(-1, 3), distance_upper_bound=40)
    x = np.tanh((12.5 - np.minimum(distance, 80).reshape(grid.shape)) / 50)
    x += np.random.default_rng(seed).normal(scale=noise, size=x.shape)
    return Volume(np.clip(np.rint(128 * x + 127), 0, 255).astype("u1"), grid, name="mt")


def microtubules(grid):
    """Two crossing 45 nm apart, two parallel 60 nm apart, and one that bends."""
    t = np.linspace(0, 1, 60)[:, None]
    bend = np.hstack([300 + 0 * t, 60 + 400 * t + 0 * t, 60 + 500 * t**2])
    lines = [
        [[60, 40, 40], [80, 480, 590]],
        [[115, 480, 40], [125, 40, 590]],
        [[200, 60, 30], [220, 70, 600]],
        [[200, 120, 30], [215, 130, 600]],
        bend,
    ]
    return [np.asarray(line, dtype=float) + grid.origin_nm for line in lines]


def distance_to(points, lines):
    return cKDTree(np.concatenate([fine(line) for line in lines])).query(points)[0]


@pytest.mark.parametrize("grid", [ANISOTROPIC, ISOTROPIC])
def test_crossing_parallel_and_bending_microtubules_are_traced(grid):
    truth = microtubules(grid)
    prediction = predict(grid, truth)
    candidates = find_candidates(prediction)
    # Finer than a voxel: rounding alone would leave sqrt((5.24^2 + 2 * 4^2) / 12) = 2.2 nm.
    assert np.median(distance_to(candidates.points_nm, truth)) < 1.5
    tracks = trace(build_graph(candidates, prediction))
    assert len(tracks.lines_nm) == len(truth)
    assert tracks.unproven == 0
    score = score_tracks(tracks.lines_nm, truth)
    assert (score.splits, score.merges) == (0, 0)
    assert (score.false_positives, score.false_negatives) == (0, 0)
    assert score.precision == 1
    assert score.recall > 0.85  # at an end, up to a cell is lost
    for line in tracks.lines_nm:
        assert distance_to(fine(line), truth).max() < 10


def test_blocks_of_any_size_give_the_same_candidates_and_evidence():
    prediction = predict(ANISOTROPIC, microtubules(ANISOTROPIC), noise=0.3, seed=1)
    whole = find_candidates(prediction, how=Blockwise((999, 999, 999)))
    assert len(whole) > 60
    graph = build_graph(whole, prediction, how=Blockwise((999, 999, 999)))
    for cells, block in [((15, 40, 60), (17, 64, 50)), ((50, 3, 39), (64, 9, 160))]:
        parts = find_candidates(prediction, how=Blockwise(cells))
        np.testing.assert_array_equal(parts.voxel, whole.voxel)
        np.testing.assert_array_equal(parts.points_nm, whole.points_nm)
        again = build_graph(parts, prediction, how=Blockwise(block))
        np.testing.assert_array_equal(again.edges, graph.edges)
        np.testing.assert_array_equal(again.evidence, graph.evidence)


def test_candidates_keep_their_distance_and_are_the_strongest_around():
    prediction = predict(ANISOTROPIC, microtubules(ANISOTROPIC), noise=0.3, seed=1)
    found = find_candidates(prediction)
    half = np.array([15, 20, 20]) / 2  # 80 nm in voxels
    gap = np.abs(found.voxel[:, None] - found.voxel) / half
    np.fill_diagonal(gap[..., 0], 9)
    assert (gap.max(axis=-1) >= 1).all()
    values = prediction.read()
    for voxel in found.voxel:
        cell = voxel // (15, 20, 20) * (15, 20, 20)
        block = values[tuple(slice(a, a + n) for a, n in zip(cell, (15, 20, 20), strict=True))]
        assert values[tuple(voxel)] == block.max() > 102


def test_evidence_is_the_mean_over_the_voxels_of_the_line():
    prediction = predict(ANISOTROPIC, microtubules(ANISOTROPIC), noise=0.3, seed=1)
    found = find_candidates(prediction)
    graph = build_graph(found, prediction)
    values = prediction.read()
    gap = np.linalg.norm(found.points_nm[:, None] - found.points_nm, axis=-1)
    np.testing.assert_array_equal(graph.edges, np.argwhere(np.triu(gap <= 180, k=1)))
    for (a, b), evidence in zip(graph.edges[::7], graph.evidence[::7], strict=True):
        start, end = found.voxel[a], found.voxel[b]
        steps = np.abs(end - start).max()
        line = [
            tuple(start + ((end - start) * 2 * k + steps) // (2 * steps)) for k in range(steps + 1)
        ]
        assert evidence == pytest.approx(1 - np.mean([values[v] / 255 for v in line]))


def straight_cost(graph, chosen, costs):
    """Cost of a set of edges, written down again from the definition; None if it is no path set."""
    total = 0.0
    for point in range(len(graph.points_nm)):
        here = [e for e in chosen if point in graph.edges[e]]
        if len(here) > 2:
            return None
        if not here:
            continue
        total += costs.selection + sum(graph.evidence[e] * costs.evidence / 2 for e in here)
        if len(here) == 1:
            total += costs.end
            continue
        away = [
            graph.points_nm[graph.edges[e].sum() - point] - graph.points_nm[point] for e in here
        ]
        cosine = away[0] @ away[1] / np.prod([np.linalg.norm(v) for v in away])
        total += (costs.angle * (np.pi - np.arccos(np.clip(cosine, -1, 1)))) ** 2
    return total


@pytest.mark.parametrize("seed", range(5))
def test_program_against_exhaustive_search(seed):
    rng = np.random.default_rng(seed)
    n = 8
    along = np.arange(n)[:, None] * np.array([10.0, 50.0, 5.0])
    points = along + rng.normal(scale=[20, 25, 20], size=(n, 3))
    pairs = np.array(sorted(itertools.combinations(range(n), 2), key=lambda p: p[1] - p[0])[:11])
    edges = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    graph = Graph(points, edges, rng.uniform(0, 0.6, len(edges)))
    costs = Costs(angle=rng.uniform(6, 22))
    best = min(
        cost
        for bits in range(1 << len(edges))
        if (cost := straight_cost(graph, [e for e in range(len(edges)) if bits >> e & 1], costs))
        is not None
    )
    answer = solve(graph, costs, range(n), {})
    assert answer.proven
    assert answer.cost == pytest.approx(best, abs=1e-6)
    assert cost_of(graph, answer.joins, costs) == pytest.approx(best, abs=1e-6)
    chosen = {edge for join in answer.joins.values() for edge in join if edge >= 0}
    assert straight_cost(graph, chosen, costs) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_decided_neighbours_are_kept(seed):
    """Fixing part of the optimum leaves the rest of it optimal."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 450, (22, 3)) * [0.3, 1, 1]
    pairs = cKDTree(points).query_pairs(180, output_type="ndarray")
    pairs = np.sort(pairs, axis=1)
    edges = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    graph = Graph(points, edges, rng.uniform(0, 0.3, len(edges)))
    costs = Costs(angle=10)
    whole = solve(graph, costs, range(22), {})
    assert whole.cost < -200
    known = {p: whole.joins.get(p) for p in range(9)}
    rest = solve(graph, costs, range(9, 22), known)
    joined = {p: j for p, j in known.items() if j} | dict(rest.joins)
    assert cost_of(graph, joined, costs) == pytest.approx(whole.cost)
    for edge in range(len(edges)):
        uses = [p for p, join in joined.items() if edge in join]
        assert sorted(uses) in ([], sorted(edges[edge].tolist()))


def test_small_blocks_reach_the_cost_of_the_whole():
    prediction = predict(ANISOTROPIC, microtubules(ANISOTROPIC), noise=0.12, seed=2)
    graph = build_graph(find_candidates(prediction), prediction)
    whole = trace(graph, TraceOptions(block_nm=1e6))
    blocks = trace(graph)  # 400 nm: eight blocks
    assert blocks.cost == pytest.approx(whole.cost, rel=0.01)
    smaller = trace(graph, TraceOptions(block_nm=150, context_nm=180))
    assert smaller.cost >= blocks.cost - 1e-6 >= whole.cost - 2e-6
    edges = [sum(len(line) - 1 for line in t.lines_nm) for t in (whole, blocks)]
    assert edges[0] == pytest.approx(edges[1], abs=2)


def test_cubes_solved_at_once_are_cubes_solved_in_order(tmp_path):
    """Each wave is solved backwards, and every cube is known to all that depend on it."""
    prediction = predict(ANISOTROPIC, microtubules(ANISOTROPIC), noise=0.3, seed=1)
    graph = build_graph(find_candidates(prediction), prediction)
    options = TraceOptions(block_nm=70, context_nm=130, reach_nm=130)
    keep = np.linalg.norm(np.diff(graph.points_nm[graph.edges], axis=1)[:, 0], axis=1) <= 130
    graph = Graph(graph.points_nm, graph.edges[keep], graph.evidence[keep])
    cubes = _cubes(graph, options)
    places = np.array([cube.box.start for cube in cubes])
    waves = _waves(places, 4)
    assert len(cubes) > waves.max() + 1  # some are solved at once
    for i, cube in enumerate(cubes):
        near = {p for e in graph.edges if set(e) & set(cube.around) for p in e}
        for j, other in enumerate(cubes[:i]):
            if near & set(other.own):
                assert waves[j] < waves[i]
    decided = {}
    for cube in cubes:
        known = _neighbours(graph, cube.around, decided)
        joins = solve(graph, options.costs, cube.around, known, 60).joins
        decided |= {p: joins.get(p) for p in cube.own}
    joins = {p: j for p, j in decided.items() if j is not None}
    seen = []
    how = Blockwise(executor=Threads(2), progress=lambda *a: seen.append(a[:2]))
    together = trace(graph, options, how=how, scratch=tmp_path)
    assert together.cost == pytest.approx(cost_of(graph, joins, options.costs), rel=1e-12)
    expected = assemble(graph, joins)
    assert len(together.lines_nm) == len(expected) > 1
    for ours, theirs in zip(together.lines_nm, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert seen == [(n, len(cubes)) for n in range(len(cubes) + 1)]


def test_empty_prediction_gives_no_tracks():
    nothing = Volume(np.zeros(ANISOTROPIC.shape, "u1"), ANISOTROPIC)
    candidates = find_candidates(nothing)
    tracks = trace(build_graph(candidates, nothing))
    assert (len(candidates), tracks.lines_nm, tracks.cost) == (0, (), 0)
    assert skeleton_tracks(nothing) == ()


def line(*points):
    return fine(points, 10.0)


def test_score_of_perfect_split_merged_missing_and_invented_lines():
    a = line([0, 0, 0], [0, 0, 1000])
    b = line([0, 400, 0], [0, 400, 1000])
    perfect = score_tracks([b, a], [a, b])
    assert (perfect.precision, perfect.recall, perfect.f1) == (1, 1, 1)
    assert perfect.to_json()["splits_per_um"] == 0
    halves = [line([0, 0, 0], [0, 0, 480]), line([0, 0, 520], [0, 0, 1000])]
    split = score_tracks([*halves, b], [a, b])
    assert (split.splits, split.merges, split.false_negatives) == (1, 0, 0)
    assert split.to_json()["splits_per_um"] == pytest.approx(0.5)
    bridge = line([0, 0, 0], [0, 0, 1000], [0, 400, 1000], [0, 400, 0])
    merged = score_tracks([bridge], [a, b])
    assert (merged.splits, merged.merges) == (0, 1)
    assert merged.spurious_nm == pytest.approx(400, abs=100)
    assert merged.recall == 1
    missing = score_tracks([a], [a, b])
    assert (missing.false_negatives, missing.recall, missing.precision) == (1, 0.5, 1)
    assert missing.missed_nm == pytest.approx(1000)
    invented = score_tracks([a, b], [a])
    assert (invented.false_positives, invented.precision) == (1, 0.5)


def test_one_line_cannot_stand_for_two_near_ones():
    """Within the match distance of both, yet it is only one."""
    pair = [line([0, y, 0], [0, y, 1000]) for y in (0, 80)]
    score = score_tracks([line([0, 40, 0], [0, 40, 1000])], pair)
    assert (score.merges, score.false_negatives) == (0, 1)
    assert score.recall == pytest.approx(0.5)


def test_crossing_swap_is_seen():
    straight = [line([0, 0, 0], [0, 1000, 1000]), line([0, 1000, 0], [0, 0, 1000])]
    swapped = [
        line([0, 0, 0], [0, 500, 500], [0, 0, 1000]),
        line([0, 1000, 0], [0, 500, 500], [0, 1000, 1000]),
    ]
    score = score_tracks(swapped, straight)
    assert (score.splits, score.merges) == (2, 2)
    assert 0.9 < score.precision < 1


def test_score_of_nothing():
    a = line([0, 0, 0], [0, 0, 1000])
    nothing = score_tracks([], [a])
    assert (nothing.false_negatives, nothing.recall) == (1, 0)
    assert np.isnan(nothing.precision)
    with pytest.raises(ConfigError, match="match options"):
        MatchOptions(step_nm=0)


def test_baseline_finds_a_clean_line_but_not_across_a_gap():
    truth = [np.array([[150.0, 60, 40], [170, 460, 590]]) + ANISOTROPIC.origin_nm]
    prediction = predict(ANISOTROPIC, truth, noise=0)
    clean = score_tracks(skeleton_tracks(prediction), truth)
    assert (clean.splits, clean.false_positives, clean.false_negatives) == (0, 0, 0)
    assert clean.precision == 1
    broken = np.array(prediction.data)
    broken[:, :, 72:86] = 0  # 56 nm are not seen
    volume = Volume(broken, ANISOTROPIC)
    assert score_tracks(skeleton_tracks(volume), truth).splits == 1
    tracks = trace(build_graph(find_candidates(volume), volume))
    assert score_tracks(tracks.lines_nm, truth).splits == 0
    huge = Volume(np.broadcast_to(np.uint8(0), (600, 600, 600)), Grid((600,) * 3, (4.0,) * 3))
    with pytest.raises(DataError, match="too many"):
        skeleton_tracks(huge)


def test_tubes_have_wall_lumen_and_flat_ends(tmp_path):
    grid = Grid((40, 70, 170), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")  # two blocks
    start, end = grid.to_world([20, 15, 12]), grid.to_world([22, 55, 160])
    other = np.stack([grid.to_world([6, 60, 5]), grid.to_world([6, 60, 30])])
    wall, lumen = write_tubes([np.stack([start, end]), other], grid, tmp_path, Tube(6, 12.5))
    walls, lumens = open_labels(wall), open_labels(lumen)
    assert walls.grid.spacing_nm == grid.spacing_nm
    w, h = walls.read(), lumens.read()
    points = grid.points_nm()
    axis = (end - start) / np.linalg.norm(end - start)
    along = (points - start) @ axis
    across = np.linalg.norm(points - start - along[..., None] * axis, axis=-1)
    between = (along >= 0) & (along <= np.linalg.norm(end - start))
    np.testing.assert_array_equal(w == 1, between & (across > 6) & (across <= 12.5))
    np.testing.assert_array_equal(h == 1, between & (across <= 6))
    assert (w == 2).any()
    assert not (w[h > 0] > 0).any()
    with pytest.raises(ConfigError, match="cannot have a lumen"):
        Tube(13, 12.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full(ANISOTROPIC.shape, 2**40 + 1, "u8"), "uint64 from 0 to 1"),
        (np.full(ANISOTROPIC.shape, 200, "f4"), "float32 from 0 to 200"),
        (np.full(ANISOTROPIC.shape, -0.9, "f4"), "float32 from -0.9 to 0"),
    ],
)
def test_what_is_no_prediction_is_refused(values, message):
    with pytest.raises(DataError, match=message):
        find_candidates(Volume(values, ANISOTROPIC))


def test_bad_options_are_refused():
    for lengths in ({"context_nm": 100}, {"reach_nm": math.nan}, {"block_nm": math.inf}):
        with pytest.raises(ConfigError, match="cannot be solved"):
            TraceOptions(**lengths)


def test_command_traces_draws_scores_and_writes_json(tmp_path):
    truth = microtubules(ISOTROPIC)
    write_volume(tmp_path / "mt.zarr", predict(ISOTROPIC, truth))
    write_skeleton(Skeleton.of_lines(truth), tmp_path / "truth.nml")
    out, figures = tmp_path / "out", tmp_path / "mt.json"
    arguments = ["microtubules", str(tmp_path / "mt.zarr"), "--out", str(out)]
    arguments += ["--truth", str(tmp_path / "truth.nml"), "--json", str(figures)]
    assert run_app(arguments) == 0
    report = json.loads(figures.read_text())["microtubules"]
    assert report["count"] == 5
    assert report["score"]["precision"] == 1
    assert report["score"]["merges"] == 0
    assert report["baseline"]["true_nm"] == pytest.approx(report["score"]["true_nm"])
    true_um = sum(np.linalg.norm(np.diff(t, axis=0), axis=1).sum() for t in truth) / 1e3
    assert report["length_um"] == pytest.approx(true_um, rel=0.15)
    lines = read_skeleton(out / "tracks.swc").lines()
    assert len(lines) == 5
    assert max(distance_to(fine(one), truth).max() for one in lines) < 10
    assert len(read_skeleton(out / "tracks.nml").lines()) == 5
    assert sorted(np.unique(open_labels(out / "wall.zarr").read())) == [0, 1, 2, 3, 4, 5]
    assert not list(out.glob(".*"))
    assert run_app([*arguments[:4], "--overwrite", "--context", "20"]) == 1


SMALL = Grid((40, 60, 80), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")
ONE_LINE = np.array([[340.0, -120, 100], [380, -100, 350]])


def wall_to_wall(grid):
    """What is no microtubule: foreground everywhere, as inside an organelle."""
    values = np.random.default_rng(0).integers(190, 255, grid.shape, dtype="u1")
    return Volume(values, grid, name="mito")


def test_supported_neighbours_tell_microtubules_from_bodies():
    volume = predict(ANISOTROPIC, microtubules(ANISOTROPIC), noise=0.3)
    assert build_graph(find_candidates(volume), volume).supported_neighbours.mean() < 4
    # So dense that a candidate has many others within reach, but background between them.
    places = itertools.product(range(30, 200, 80), range(30, 240, 80))
    lines = [np.array([[z, y, 20.0], [z + 10, y, 320]]) + SMALL.origin_nm for z, y in places]
    volume = predict(SMALL, lines)
    bundle = build_graph(find_candidates(volume), volume)
    assert 2 * len(bundle.edges) / len(bundle.points_nm) > 15
    assert bundle.supported_neighbours.mean() < 5
    volume = wall_to_wall(SMALL)
    body = build_graph(find_candidates(volume), volume)
    assert body.supported_neighbours.mean() > 12
    by_hand = [
        sum(point in edge and e <= 0.5 for edge, e in zip(body.edges, body.evidence, strict=True))
        for point in range(20)
    ]
    np.testing.assert_array_equal(body.supported_neighbours[:20], by_hand)


def test_what_is_everywhere_is_refused_before_the_program(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    grid = SMALL
    write_volume("mito.zarr", wall_to_wall(grid))
    command = ["microtubules", "mito.zarr", "--out", "out"]
    assert run_app(command) == 1
    shown = capsys.readouterr().err
    count = len(find_candidates(wall_to_wall(grid)))
    per_um3 = count / (40 * 5.24 * 60 * 4 * 80 * 4 / 1e9)
    assert f"mito.zarr gives {count} candidate points, {per_um3:.0f} per um3" in shown
    assert "at most 8 are allowed" in shown
    assert "is this the microtubule channel?" in shown
    assert "cubes" not in shown
    assert not (tmp_path / "out" / "tracks.swc").exists()
    anyway = ["microtubules", "mito.zarr", "--out", "anyway", "--max-neighbours", "100"]
    assert run_app([*anyway, "--json", "mt.json"]) == 0
    report = json.loads((tmp_path / "mt.json").read_text())["microtubules"]
    assert report["candidates"] == count
    assert report["candidates_per_um3"] == pytest.approx(per_um3)
    assert report["supported_neighbours"] > 8
    assert "PROGRESS 0/2 microtubules: cubes\n" in capsys.readouterr().err


def test_a_mask_is_traced_or_said_to_be_one(tmp_path, monkeypatch, capsys, caplog):
    """The same voxels in every way to store a mask; 1 of 255 is the background of a distance."""
    monkeypatch.chdir(tmp_path)
    lines = fine(ONE_LINE, 2.0)
    near = cKDTree(lines).query(SMALL.points_nm().reshape(-1, 3))[0].reshape(SMALL.shape)
    mask = near <= 12.5
    said = {}
    for name, values in {
        "bool": mask, "f4": mask.astype("f4"), "u255": mask.astype("u1") * 255,
        "u1": mask.astype("u1"), "u2": mask.astype("u2"), "empty": np.zeros(SMALL.shape, "u1"),
    }.items():  # fmt: skip
        write_volume(f"{name}.zarr", Volume(values, SMALL))
        words = ["microtubules", f"{name}.zarr", "--out", name, "--json", f"{name}.json"]
        code = run_app([*words, "--block", "32"])
        said[name] = capsys.readouterr().err + caplog.text
        caplog.clear()
        assert code == (1 if name == "u2" else 0)
        if code == 0:
            found = json.loads((tmp_path / f"{name}.json").read_text())["microtubules"]
            assert found["count"] == (0 if name in ("u1", "empty") else 1)
    assert "u1.zarr ends at 1 of 255" in said["u1"]
    assert "if it is a mask, save it as 0 and 255, or as bool" in said["u1"]
    assert (
        "holds uint16 from 0 to 1, expected uint8 signed distances, or bool or float"
        in (said["u2"])
    )
    assert [name for name, text in said.items() if "ends at" in text] == ["u1"]


def test_a_channel_is_chosen_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    right = predict(SMALL, [ONE_LINE])
    both = Volume(np.stack([np.zeros(SMALL.shape, "u1"), right.read()]), SMALL, ("mito", "mt"))
    write_volume("all.zarr", both)
    write_volume("mt.zarr", right)
    command = ["microtubules", "all.zarr", "--out", "out"]
    assert run_app(command) == 1
    shown = capsys.readouterr().err
    assert "all.zarr has channels mito, mt; one volume is expected" in shown
    assert "choose one: --channel mito" in shown
    assert run_app([*command, "--channel", "er"]) == 1
    assert "its channels are: mito, mt" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run_app([*command, "--channel", "mt"]) == 0
    assert run_app(["microtubules", "mt.zarr", "--out", "alone"]) == 0
    swc = [(tmp_path / name / "tracks.swc").read_text() for name in ("out", "alone")]
    assert swc[0] == swc[1]
    assert run_app([*command, "--channel", "mito", "--overwrite", "--json", "none.json"]) == 0
    assert json.loads((tmp_path / "none.json").read_text())["microtubules"]["count"] == 0
