"""Operations block by block, beside libraries that hold the volume: time, memory, scaling.

Each method runs in a fresh process, reads the same OME-Zarr and writes its result. Seconds of wall
time need a quiet machine; seconds of CPU are steadier on a shared one. With ``--json`` every
finished row is kept, and the same command goes on from there.

    python benchmarks/blocks_scaling.py --gigavoxels 0.1 0.5 2 --workers 1 2 --whole none
    python benchmarks/blocks_scaling.py --operations all --json scaling.json
    python benchmarks/blocks_scaling.py --cellmap peer/bin/python      # see cellmap_peer.py
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from clemreg.blocks.components import consecutive, find_components, write_components
from clemreg.blocks.distance import DistanceTo
from clemreg.blocks.executors import Processes, started
from clemreg.blocks.stages import Blockwise, map_volume
from clemreg.io.atomic import atomic_write_json
from clemreg.io.quantise import quantise
from clemreg.io.volumes import WriteOptions, open_labels, open_volume, write_volume
from clemreg.measure.contacts import ContactOptions, find_contacts
from clemreg.measure.mesh import mesh_objects
from clemreg.measure.microtubules.candidates import find_candidates
from clemreg.measure.microtubules.graph import build_graph
from clemreg.measure.morphology import measure_objects
from clemreg.measure.planarity import measure_planarity
from clemreg.measure.ribosomes import find_ribosomes, write_spheres
from clemreg.measure.skeleton import skeletonize
from clemreg.measure.thin import thin_volume
from clemreg.refine.agglomerate import Agglomeration
from clemreg.refine.objects import fill_holes, label_objects
from clemreg.refine.voxels import AtLeast, Smoothed
from clemreg.refine.watershed import segment_instances
from clemreg.space.grid import Box, Grid
from clemreg.volume import Labels, Volume

SPACING_NM = (5.24, 4.0, 4.0)
CHUNK = (64, 64, 64)
REACH_NM = 100.0
SAMPLE_S = 0.4  # looking at memory takes 10 ms of a core on which a worker could be
WHOLE = {
    "components": ("cc3d", "scipy", "skimage"),
    "measure": ("cc3d", "skimage"),
    "distance": ("edt", "scipy"),
}  # no library does the others
CELLMAP = ("components", "measure", "contacts")


@dataclass(frozen=True)
class Blobs:
    """How far a voxel lies in an object, about in nm: objects of 0.3 um in a tenth of the volume.

    sin(u + v) is put together from sines of u and of v, which are few.
    """

    shift: float = 0.0

    def __call__(self, box: Box) -> np.ndarray:
        z, y, x = np.ogrid[box.slices]
        waves = [(0.11, 0.05, 0.03), (0.02, 0.12, 0.06), (0.05, 0.01, 0.13)]
        total = np.zeros(box.shape, np.float32)
        for a, b, c in waves:
            plane, line = a * z + b * y + a * b * 1e3 + self.shift, c * x
            for f, g in ((np.sin, np.cos), (np.cos, np.sin)):
                total += f(plane).astype(np.float32) * g(line).astype(np.float32)
        bent = 0.4 * np.sin(0.013 * z + 0.017 * y)
        total += bent.astype(np.float32) * np.sin(0.011 * x).astype(np.float32)
        return (total - np.float32(1.75)) * np.float32(40)


@dataclass(frozen=True)
class Mask:
    """The objects themselves."""

    blobs: Blobs

    def __call__(self, box: Box) -> np.ndarray:
        return (self.blobs(box) > 0).astype(np.uint8)


@dataclass(frozen=True)
class Prediction:
    """What a network would say of them."""

    blobs: Blobs

    def __call__(self, box: Box) -> np.ndarray:
        return quantise(np.tanh(self.blobs(box) / 50))


@dataclass(frozen=True)
class Balls:
    """A prediction of ribosomes: one in every cube of 20 voxels, off its middle: 1500 a um3."""

    side: int = 20

    def __call__(self, box: Box) -> np.ndarray:
        away = np.zeros(box.shape, np.float32)
        place = np.ogrid[box.slices]
        cell = [p // self.side for p in place]
        mixed = (cell[0] * 73_856_093) ^ (cell[1] * 19_349_663) ^ (cell[2] * 83_492_791)
        for axis, (p, c) in enumerate(zip(place, cell, strict=True)):
            centre = c * self.side + 4 + (mixed >> 3 * axis) % (self.side - 8)
            away += (np.float32(SPACING_NM[axis]) * (p - centre)) ** 2
        return quantise(np.tanh((10 - np.sqrt(away)) / 50))


SOURCES = {
    "mask": Mask(Blobs()), "other": Mask(Blobs(0.9)), "prediction": Prediction(Blobs()),
    "ribosomes": Balls(),
}  # fmt: skip


def grid_of(gigavoxels: float) -> Grid:
    side = round((gigavoxels * 1e9) ** (1 / 3) / 64) * 64
    return Grid((side, side, side), SPACING_NM)


def prepare(
    folder: Path, grid: Grid, how: Blockwise, operation: str, made: dict[str, Path]
) -> None:
    """Write what an operation reads and is not there yet: masks, ids of objects, predictions."""
    for name in OPERATIONS[operation].reads:
        kind = name.removesuffix("-ids")
        if kind not in made:
            made[kind] = folder / f"{kind}.zarr"
            map_volume(SOURCES[kind], made[kind], grid, np.uint8, how)
        if name not in made:
            made[name] = folder / f"{name}.zarr"
            found = find_components(open_volume(made[kind]).read, grid, folder / name, how)
            write_components(found, consecutive(np.ones(len(found))), made[name], how)
            shutil.rmtree(folder / name)


def components(mask: Path, folder: Path, how: Blockwise) -> int:
    volume = open_volume(mask)
    found = find_components(volume.read, volume.grid, folder, how)
    write_components(found, consecutive(np.ones(len(found))), folder / "out.zarr", how)
    return len(found)


def distance(mask: Path, folder: Path, how: Blockwise) -> int:
    volume = open_volume(mask)
    work = DistanceTo(volume.read, volume.grid, REACH_NM)
    map_volume(work, folder / "out.zarr", volume.grid, np.float32, how)
    return 0


def measure_ids(ids: Path, folder: Path, how: Blockwise) -> int:
    return len(measure_objects(open_labels(ids), how=how, scratch=folder))


def contacts(ids: Path, other: Path, folder: Path, how: Blockwise) -> int:
    options = ContactOptions(10.0)
    found = find_contacts(open_labels(ids), open_labels(other), options, how=how, scratch=folder)
    return len(found)


def refine(prediction: Path, folder: Path, how: Blockwise) -> int:
    volume = open_volume(prediction)
    mask = AtLeast(Smoothed(volume.read, volume.grid, 12.0), 0.0)
    label_objects(mask, volume.grid, 0.0, folder, how)
    return 0


def holes(ids: Path, folder: Path, how: Blockwise) -> int:
    fill_holes(open_labels(ids), folder, how)
    return 0


def watershed(prediction: Path, folder: Path, how: Blockwise) -> int:
    volume = open_volume(prediction)
    smoothed = Smoothed(volume.read, volume.grid, 12.0)
    segment_instances(smoothed, volume.grid, Agglomeration(0.25, 0.9), folder, how)
    return 0


def skeletons(ids: Path, folder: Path, how: Blockwise) -> int:
    return sum(1 for _ in skeletonize(open_labels(ids), how=how, scratch=folder))


def thinning(mask: Path, folder: Path, how: Blockwise) -> int:
    volume = open_volume(mask)
    thin_volume(volume.read, volume.grid, folder, how, "line")
    return 0


def planarity(mask: Path, folder: Path, how: Blockwise) -> int:
    measure_planarity(open_volume(mask), folder / "out.zarr", folder, how=how)
    return 0


def ribosomes(prediction: Path, folder: Path, how: Blockwise) -> int:
    volume = open_volume(prediction)
    found = find_ribosomes(volume, how=how, scratch=folder)
    write_spheres(found, volume.grid, folder / "out.zarr", how=how)
    return len(found)


def microtubules(prediction: Path, folder: Path, how: Blockwise) -> int:
    """Points and evidence; the program itself depends on what was found."""
    volume = open_volume(prediction)
    points = find_candidates(volume, how=how, scratch=folder)
    build_graph(points, volume, how=how, scratch=folder)
    return len(points)


def no_file(_number: int, _mesh: object) -> None:
    """Let meshes go."""


def meshes(ids: Path, folder: Path, how: Blockwise) -> int:
    return len(mesh_objects(open_labels(ids), no_file, how=how, scratch=folder))


@dataclass(frozen=True)
class Operation:
    work: Callable[..., int]
    reads: tuple[str, ...]


OPERATIONS = {
    "components": Operation(components, ("mask",)),
    "measure": Operation(measure_ids, ("mask-ids",)),
    "contacts": Operation(contacts, ("mask-ids", "other-ids")),
    "distance": Operation(distance, ("mask",)),
    "refine": Operation(refine, ("prediction",)),
    "holes": Operation(holes, ("mask-ids",)),
    "watershed": Operation(watershed, ("prediction",)),
    "skeletons": Operation(skeletons, ("mask-ids",)),
    "thinning": Operation(thinning, ("mask",)),
    "mesh": Operation(meshes, ("mask-ids",)),
    "ribosomes": Operation(ribosomes, ("ribosomes",)),
    "microtubules": Operation(microtubules, ("prediction",)),
    "planarity": Operation(planarity, ("mask",)),
}


def whole(operation: str, library: str, sources: dict[str, Path], folder: Path) -> int:
    name = "mask-ids" if operation == "measure" else "mask"
    volume = open_volume(sources[name])
    array = volume.read()
    if operation == "measure":
        return whole_measure(array, library)
    options = WriteOptions(chunk=CHUNK, levels=1, labels=operation == "components")
    if operation == "distance":
        found = Volume(whole_distance(array == 0, library), volume.grid)
        write_volume(folder / "out.zarr", found, options=options)
        return 0
    labels, count = whole_components(array, library)
    write_volume(folder / "out.zarr", Labels(labels, volume.grid), options=options)
    return int(count)


def whole_components(array: np.ndarray, library: str) -> tuple[np.ndarray, int]:
    if library == "cc3d":
        import cc3d

        return cc3d.connected_components(array, connectivity=6, return_N=True)
    if library == "scipy":
        from scipy import ndimage

        return ndimage.label(array)
    from skimage.measure import label

    return label(array, connectivity=1, return_num=True)


def whole_measure(array: np.ndarray, library: str) -> int:
    if library == "cc3d":
        import cc3d

        return len(cc3d.statistics(array)["voxel_counts"]) - 1
    from skimage.measure import regionprops_table

    wanted = ("label", "area", "centroid", "bbox", "inertia_tensor")
    return len(regionprops_table(array, properties=wanted, spacing=SPACING_NM)["label"])


def whole_distance(outside: np.ndarray, library: str) -> np.ndarray:
    if library == "edt":
        import edt

        return edt.edt(outside, anisotropy=SPACING_NM, parallel=1)
    from scipy.ndimage import distance_transform_edt

    return distance_transform_edt(outside, sampling=SPACING_NM).astype(np.float32)


def measure(job: tuple, sources: dict[str, Path], folder: Path, block: int, out) -> None:
    operation, method, workers = job
    begin = time.perf_counter()
    if method == "blocks":
        chosen = OPERATIONS[operation]
        with started(Processes(workers)) as running:
            how = Blockwise((block,) * 3, running)
            count = chosen.work(*(sources[name] for name in chosen.reads), folder, how)
    else:
        count = whole(operation, method, sources, folder)
    out.send({"objects": count, "wall_s": time.perf_counter() - begin})


class Watch:
    """CPU seconds and memory of a process and all that it starts, sampled."""

    def __init__(self, pid: int) -> None:
        self.root = psutil.Process(pid)
        self.cpu_s: dict[int, float] = {}
        self.peak_mb = 0.0

    def sample(self) -> None:
        memory = 0.0
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [self.root, *self.root.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    self.cpu_s[process.pid] = times.user + times.system
                    memory += process.memory_info().rss / 2**20
        self.peak_mb = max(self.peak_mb, memory)

    def figures(self) -> dict[str, float]:
        total, main = sum(self.cpu_s.values()), self.cpu_s.get(self.root.pid, 0.0)
        return {"cpu_s": total, "main_cpu_s": main, "memory_mb": self.peak_mb}


def run(job: tuple, sources: dict[str, Path], block: int) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    folder = Path(tempfile.mkdtemp(dir=next(iter(sources.values())).parent))
    process = context.Process(target=measure, args=(job, sources, folder, block, sender))
    process.start()
    watch = Watch(process.pid)
    while process.is_alive() and not receiver.poll(SAMPLE_S):
        watch.sample()
    result = receiver.recv()
    process.join()
    shutil.rmtree(folder)
    return {**result, **watch.figures()}


def run_cellmap(operation: str, python: str, sources: dict[str, Path]) -> dict[str, float]:
    """The same by cellmap-analyze with one worker, in its own environment."""
    folder = Path(tempfile.mkdtemp(dir=next(iter(sources.values())).parent))
    words = [python, str(Path(__file__).with_name("cellmap_peer.py")), operation, "1", str(folder)]
    words += [str(sources[name] / "s0") for name in OPERATIONS[operation].reads]
    log = folder.with_suffix(".log")
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(words, stdout=stream, stderr=subprocess.STDOUT)
        watch = Watch(process.pid)
        while process.poll() is None:
            watch.sample()
            time.sleep(SAMPLE_S)
    last = log.read_text(encoding="utf-8").strip().split("\n")[-1]
    if process.returncode:
        raise SystemExit(f"cellmap-analyze failed: {last}")
    shutil.rmtree(folder)
    return {"objects": -1, **json.loads(last), **watch.figures()}


def jobs_of(options: argparse.Namespace, operation: str) -> list[tuple[str, tuple]]:
    jobs = [
        (f"blocks, {n} worker{'s' * (n > 1)}", (operation, "blocks", n)) for n in options.workers
    ]
    if options.cellmap and operation in CELLMAP:
        jobs.append(("cellmap-analyze", (operation, "cellmap", 1)))
    if options.whole == "all":
        jobs += [(f"{lib}, whole", (operation, lib, 1)) for lib in WHOLE.get(operation, ())]
    return jobs


class Rows:
    """What was measured; kept in a file, so that a stopped benchmark goes on."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: list[dict] = json.loads(path.read_text()) if path and path.exists() else []

    def find(self, **which: object) -> dict | None:
        return next((r for r in self.rows if all(r[k] == v for k, v in which.items())), None)

    def add(self, row: dict) -> None:
        self.rows.append(row)
        if self.path is not None:
            atomic_write_json(self.path, self.rows)


def show(row: dict) -> None:
    wall, cpu, main = (row[k] / row["gigavoxels"] for k in ("wall_s", "cpu_s", "main_cpu_s"))
    print(
        f"{row['gigavoxels']:10.3f}  {row['operation']:<12}  {row['method']:<18} "
        f"{row['objects']:7d} {wall:8.1f} {cpu:8.1f} {main:8.1f} {row['memory_mb']:6.0f}",
        flush=True,
    )


def show_efficiency(rows: Rows, size: float, operation: str) -> None:
    found = [
        rows.find(gigavoxels=size, operation=operation, method=f"blocks, {n}")
        for n in ("1 worker", "2 workers")
    ]
    if all(found):
        one, two = (row["wall_s"] for row in found)
        print(f"{'':26}efficiency from 1 to 2 workers {one / two / 2:.0%}", flush=True)


def one_size(size: float, options: argparse.Namespace, rows: Rows) -> None:
    """All operations on a volume of so many gigavoxels, those that are not measured yet."""
    grid = grid_of(size)
    gigavoxels = math.prod(grid.shape) / 1e9
    with tempfile.TemporaryDirectory() as folder:
        sources: dict[str, Path] = {}
        for operation in options.operations:
            for method, job in jobs_of(options, operation):
                key = {"gigavoxels": gigavoxels, "operation": operation, "method": method}
                row = rows.find(**key, block=options.block)
                if row is None:
                    how = Blockwise((options.block,) * 3)
                    prepare(Path(folder), grid, how, operation, sources)
                    if job[1] == "cellmap":
                        figures = run_cellmap(operation, options.cellmap, sources)
                    else:
                        figures = run(job, sources, options.block)
                    row = {**key, "block": options.block, **figures}
                    rows.add(row)
                show(row)
            show_efficiency(rows, gigavoxels, operation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigavoxels", type=float, nargs="+", default=[0.1])
    parser.add_argument("--block", type=int, default=192)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--operations", nargs="+", choices=(*OPERATIONS, "all"), default=["components"]
    )
    parser.add_argument("--whole", choices=("all", "none"), default="all")
    parser.add_argument("--cellmap", help="Python of an environment with cellmap-analyze.")
    parser.add_argument("--json", type=Path, help="Rows; those that are there are not done again.")
    options = parser.parse_args()
    if "all" in options.operations:
        options.operations = list(OPERATIONS)
    rows = Rows(options.json)
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, block {options.block}")
    print(
        "gigavoxels  operation     method             objects  wall ns/voxel  cpu ns/voxel     MB"
    )
    for size in options.gigavoxels:
        one_size(size, options, rows)


if __name__ == "__main__":
    main()
