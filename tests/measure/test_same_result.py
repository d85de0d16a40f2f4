"""Every operation on a volume: any blocks, any executor, killed and gone on with: one result.

The truth of each result is tested elsewhere; here only that it is the same one.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from clemreg.blocks import stages
from clemreg.blocks.components import consecutive, find_components, write_components
from clemreg.blocks.distance import DistanceTo, Near
from clemreg.blocks.executors import Executor, Processes, Threads, _clean_context
from clemreg.blocks.plan import Block
from clemreg.blocks.stages import Blockwise, map_volume
from clemreg.io.volumes import WriteOptions, write_volume
from clemreg.measure.binding import classify_ribosomes
from clemreg.measure.contacts import ContactOptions, find_contacts
from clemreg.measure.curvature import curvature_histogram
from clemreg.measure.holdout import holdout_deviations
from clemreg.measure.mesh import mesh_objects
from clemreg.measure.microtubules.candidates import find_candidates
from clemreg.measure.microtubules.graph import build_graph
from clemreg.measure.microtubules.trace import TraceOptions, trace
from clemreg.measure.microtubules.tubes import write_tubes
from clemreg.measure.morphology import measure_objects
from clemreg.measure.planarity import PlanarityOptions, measure_planarity, site_planarity
from clemreg.measure.ribosomes import Ribosomes, find_ribosomes, write_spheres
from clemreg.measure.sheetness import SheetnessOptions
from clemreg.measure.skeleton import SkeletonOptions, skeletonize
from clemreg.pipeline.reconstruct import reconstruct
from clemreg.refine.agglomerate import Agglomeration
from clemreg.refine.objects import count_voxels, fill_holes, label_objects, touching_ids
from clemreg.refine.overlap import find_overlap
from clemreg.refine.voxels import AtLeast, Inside, Smoothed
from clemreg.refine.watershed import segment_instances
from clemreg.space import Grid
from clemreg.volume import Labels, Volume

GRID = Grid((22, 30, 64), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")
WHOLE = Blockwise(GRID.shape)
BLOCKS = (9, 30, 17), (22, 13, 40)


@cache
def world() -> dict[str, Volume]:
    """An ER with a cavity, two mitochondria, a microtubule, ribosomes, and noise."""
    rng = np.random.default_rng(4)
    z, y, x = np.indices(GRID.shape)
    er = np.zeros(GRID.shape, "u1")
    er[4:9, 2:28, 3:40] = 1
    er[6:8, 14:16, 6:12] = 0  # a cavity
    er[5:8, 12:16, 40:62] = 1  # a tube
    mito = np.zeros(GRID.shape, "u8")
    mito[(z - 16) ** 2 * 1.7 + (y - 9) ** 2 + (x - 15) ** 2 < 49] = 70_001
    mito[(z - 15) ** 2 * 1.7 + (y - 19) ** 2 + (x - 30) ** 2 < 60] = 2**40 + 1
    away = np.hypot((z - 17) * 5.24, (y - 24) * 4.0 - 0.2 * x)
    mt = 128 * np.tanh((12.5 - away) / 50) + 127 + rng.normal(scale=3, size=GRID.shape)
    ribo = np.zeros(GRID.shape, bool)
    for centre in ((11, 5, 9), (11, 24, 33), (19, 14, 50), (10, 20, 60)):
        ribo |= sum((5.24, 4, 4)[i] ** 2 * (p - c) ** 2 for i, (p, c) in enumerate(
            zip((z, y, x), centre, strict=True))) < 110  # fmt: skip
    bumps = 128 * np.tanh((30 - 5 * np.hypot(np.hypot(z - 11, y - 15), (x % 21) - 10)) / 50) + 127
    arrays = {
        "er": er, "mt": np.clip(mt, 0, 255).astype("u1"), "ribo": ribo.astype("u1") * 255,
        "noise": (rng.random(GRID.shape) < 0.3).astype("u1"),
        "bumps": np.clip(bumps + rng.normal(scale=4, size=GRID.shape), 0, 255).astype("u1"),
        "level": np.where(er, 1 + (7 * x + y) % 255, 0).astype("u1"),
    }  # fmt: skip
    volumes = {name: Volume(array, GRID, name=name) for name, array in arrays.items()}
    return volumes | {"mito": Labels(mito, GRID, name="mito")}


def table(found):
    return dict(found.columns)


def components(how, folder):
    found = find_components(world()["noise"].read, GRID, folder, how, connectivity=26)
    labels = write_components(found, consecutive(np.ones(len(found))), folder / "o.zarr", how)
    return {**found.table, "ids": labels.read()}


def refined(how, folder):
    smoothed = Smoothed(world()["bumps"].read, GRID, 9.0)
    mask = Inside(AtLeast(smoothed, 5.0), Near(world()["er"].read, GRID, 40.0))
    labels = label_objects(mask, GRID, 3000.0, folder / "l", how)
    ids, voxels = count_voxels(labels.read, GRID, folder / "c", how)
    near = touching_ids(labels.read, GRID, (int(ids[0]),), folder / "t", how)
    return {"labels": labels.read(), "ids": ids, "voxels": voxels, "near": np.array(near)}


def filled(how, folder):
    er = world()["er"]
    labels = fill_holes(Labels(er.read() * np.uint32(70_001), GRID), folder, how)
    assert labels.read()[7, 15, 8] == 70_001
    return {"ids": labels.read()}


def watershed(how, folder):
    smoothed = Smoothed(world()["bumps"].read, GRID, 6.0)
    labels = segment_instances(smoothed, GRID, Agglomeration(0.25, 0.5), folder, how)
    overlap = find_overlap(labels.read, world()["mito"].read, GRID, folder / "v", how)
    return {"ids": labels.read(), "shared": overlap.voxels, "found": overlap.found}


def distance(how, folder):
    work = DistanceTo(world()["er"].read, GRID, 33.0)
    options = WriteOptions(levels=2)
    out = map_volume(work, folder / "d.zarr", GRID, np.float32, how, options)
    return {"fine": out.read(), "coarse": out.levels[1].read()}


def morphology(how, folder):
    return table(measure_objects(world()["mito"], cell=world()["er"], how=how, scratch=folder))


def skeletons(how, folder, largest=10**9):
    options = SkeletonOptions(20.0, largest_box_voxels=largest)
    found = {}
    for item in skeletonize(world()["mito"], options, how=how, scratch=folder):
        found[f"nodes {item.object_id}"] = item.skeleton.nodes_nm
        found[f"radius {item.object_id}"] = item.skeleton.radius_nm
        found[f"longest {item.object_id}"] = item.longest
    return found


def large_skeletons(how, folder):
    return skeletons(how, folder, 10)


def save(_number, _mesh):
    """Leave the mesh alone; its numbers are in the table."""


def meshes(how, folder):
    return table(mesh_objects(world()["mito"], save, how=how, scratch=folder))


def contacts(how, folder, method="sight"):
    out, options = folder / "sites.zarr", ContactOptions(24.0, method)
    er = Labels(world()["er"].read(), GRID, name="er")
    found = find_contacts(er, world()["mito"], options, how=how, scratch=folder, out=out)
    assert len(found) >= 2
    sites = Labels(map_volume(None, out, GRID, np.uint64, how).read(), GRID, name="sites")
    planarity = site_planarity(sites, world()["level"], how=how, scratch=folder)
    return {**table(found), "sites": sites.read(), "planarity": planarity["planarity"]}


def naive_contacts(how, folder):
    return contacts(how, folder, "naive")


def planarity(how, folder):
    options = PlanarityOptions(SheetnessOptions(scales=3), largest_radius_nm=24.0)
    found = measure_planarity(world()["er"], folder / "p.zarr", folder, options, how=how)
    return {
        "level": found.volume.read(), "medial": found.medial.read(),
        "volumes": found.histogram["volume_nm3"], **table(found.thickness),
    }  # fmt: skip


def reconstructed(how, folder):
    level = folder / "level.zarr"
    if not level.exists():
        write_volume(level, world()["level"])
    found = reconstruct(level, folder / "r.zarr", how, world()["mito"], 12.0)
    assert 0 < np.count_nonzero(found.read()) < np.count_nonzero(world()["er"].read())
    return {"ids": found.read()}


def curvature(how, folder):
    edges = np.linspace(-0.1, 0.1, 9)
    return table(curvature_histogram(world()["er"], 8.0, edges, how=how, scratch=folder))


def holdout(how, folder):
    other = {"mito": world()["mito"], "noise": world()["noise"]}
    found = table(holdout_deviations(world()["er"], other, how=how, scratch=folder))
    return {name: column for name, column in found.items() if column.dtype.kind == "f"}


def ribosomes(how, folder):
    found = find_ribosomes(world()["ribo"], how=how, scratch=folder)
    assert len(found) == 4
    envelope = Volume((world()["er"].read() > 0) & (np.arange(30)[:, None] < 12), GRID)
    bound = classify_ribosomes(found, world()["level"], envelope, how=how, scratch=folder)
    return {"centre": found.centre_nm, "score": found.score, "class": bound.code}


def spheres(how, folder):
    centre = GRID.to_world([[11, 5, 9], [11, 24, 33], [12, 26, 35]])
    found = Ribosomes(centre, np.ones(3), np.ones(3))
    return {"ids": write_spheres(found, GRID, folder / "s.zarr", how=how).read()}


def microtubules(how, folder):
    points = find_candidates(world()["mt"], how=how, scratch=folder)
    graph = build_graph(points, world()["mt"], how=how, scratch=folder)
    options = TraceOptions(block_nm=90.0, context_nm=180.0)
    tracks = trace(graph, options, how=how, scratch=folder)
    assert len(tracks.lines_nm) == 1
    wall, lumen = (
        map_volume(None, path, GRID, np.uint32, how).read()
        for path in write_tubes(tracks.lines_nm, GRID, folder, how=how)
    )
    return {"line": tracks.lines_nm[0], "evidence": graph.evidence, "wall": wall, "lumen": lumen}


OPERATIONS = {
    f.__name__: f
    for f in (
        components, refined, filled, watershed, distance, morphology, skeletons, large_skeletons,
        meshes, contacts, naive_contacts, planarity, reconstructed, curvature, holdout, ribosomes,
        spheres, microtubules,
    )
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Results with the volume as one block, each computed once."""
    return cache(lambda name: OPERATIONS[name](WHOLE, tmp_path_factory.mktemp(name)))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert array.size > 0, name


@pytest.mark.parametrize("name", OPERATIONS)
def test_any_blocks_and_threads(whole, name, tmp_path):
    for number, block in enumerate(BLOCKS):
        how = Blockwise(block, Threads(2))
        assert_same(OPERATIONS[name](how, tmp_path / str(number)), whole(name))


SHARDED = ("components", "filled", "watershed", "distance", "contacts", "planarity", "microtubules")


@pytest.mark.parametrize("name", SHARDED)
def test_shards(whole, name, tmp_path, monkeypatch):
    """As if there were very many chunks: blocks become files; two of them are in no one's way."""
    monkeypatch.setattr(stages, "MANY_CHUNKS", 0)
    monkeypatch.setattr(stages, "LONGEST_CHUNK", 8)
    assert_same(OPERATIONS[name](Blockwise(BLOCKS[1], Threads(2)), tmp_path), whole(name))
    sharded = [p for p in tmp_path.rglob("zarr.json") if "sharding_indexed" in p.read_text()]
    assert sharded
    for path in sharded:
        blocks = math.prod(-(-n // b) for n, b in zip(GRID.shape, BLOCKS[1], strict=True))
        assert len(list((path.parent / "c").rglob("*/*/*"))) <= blocks


@pytest.fixture(scope="module")
def processes():
    """Two processes for all operations."""
    with Processes(2).started() as running:
        yield running


@dataclass(frozen=True)
class DiesOnce:
    """Do a block, then die before anybody hears of it; only if the mark is not there yet."""

    function: Callable[[Block], object]
    mark: Path

    def __call__(self, block):
        done = self.function(block)
        if block.number == 1 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return done


@dataclass(frozen=True)
class Killing:
    """Processes of which one is killed in each of the first two passes."""

    inner: Executor
    folder: Path
    passes: list[Path] = field(default_factory=list)

    @property
    def retries(self):
        return self.inner.retries

    @contextmanager
    def open(self, function):
        self.passes.append(self.folder / f"died{min(len(self.passes), 2)}")
        if len(self.passes) == 3:
            self.passes[-1].touch()
        with self.inner.open(DiesOnce(function, self.passes[-1])) as pool:
            yield pool


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_processes_of_which_some_are_killed(whole, processes, name, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    how = Blockwise(BLOCKS[1], Killing(processes, marks))
    assert_same(OPERATIONS[name](how, tmp_path / "work"), whole(name))
    assert (marks / "died0").exists()


@pytest.fixture(scope="module")
def dask():
    """One cluster for all operations."""
    pytest.importorskip("distributed")
    from clemreg.blocks.dask import Dask

    with Dask("local", 1).started() as running:
        yield running


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPERATIONS)
def test_dask(whole, dask, name, tmp_path):
    assert_same(OPERATIONS[name](Blockwise(BLOCKS[1], dask), tmp_path), whole(name))


def doomed(name, folder):
    """Work until the third block of any pass is finished, then die as by ``kill -9``."""

    def progress(done, _total, _message):
        if done == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    OPERATIONS[name](Blockwise(BLOCKS[0], progress=progress), folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_and_gone_on_with(whole, name, tmp_path):
    child = _clean_context().Process(target=doomed, args=(name, tmp_path))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    seen = []
    how = Blockwise(BLOCKS[0], progress=lambda done, _total, _message: seen.append(done))
    assert_same(OPERATIONS[name](how, tmp_path), whole(name))
    assert seen[0] == 4  # three blocks were not done again
