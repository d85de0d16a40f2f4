"""Operations block by block, beside libraries that hold the volume: time, memory, scaling.

Each method runs in a fresh process, reads the same OME-Zarr and writes its result. Seconds of wall
time need a quiet machine; seconds of CPU are steadier on a shared one.

    python benchmarks/blocks_scaling.py --gigavoxels 0.1 0.5 2 --workers 1 2 --whole none
    python benchmarks/blocks_scaling.py --operations components measure contacts distance
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
from pathlib import Path

import numpy as np
import psutil

from clemreg.blocks.components import consecutive, find_components, write_components
from clemreg.blocks.distance import DistanceTo
from clemreg.blocks.executors import Processes
from clemreg.blocks.stages import Blockwise, map_volume
from clemreg.io.volumes import WriteOptions, open_labels, open_volume, write_volume
from clemreg.measure.contacts import ContactOptions, find_contacts
from clemreg.measure.morphology import measure_objects
from clemreg.space.grid import Box, Grid
from clemreg.volume import Labels, Volume

SPACING_NM = (5.24, 4.0, 4.0)
CHUNK = (64, 64, 64)
REACH_NM = 100.0
OPERATIONS = ("components", "measure", "contacts", "distance")
WHOLE = {
    "components": ("cc3d", "scipy", "skimage"),
    "measure": ("cc3d", "skimage"),
    "contacts": (),  # no library finds them
    "distance": ("edt", "scipy"),
}


class Blobs:
    """A mask of about a tenth of the volume: many separate objects of about 0.3 um.

    sin(u + v) is put together from sines of u and of v, which are few.
    """

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = shift

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
        return (total > 1.75).astype(np.uint8)


def grid_of(gigavoxels: float) -> Grid:
    side = round((gigavoxels * 1e9) ** (1 / 3) / 64) * 64
    return Grid((side, side, side), SPACING_NM)


def prepare(folder: Path, grid: Grid, block: int, operations: list[str]) -> dict[str, Path]:
    """Write a mask and, if asked for, the ids of its objects and of others beside them."""
    how = Blockwise((block,) * 3)
    sources = {}
    for name, shift in (("mask", 0.0), ("other", 0.9)):
        sources[name] = folder / f"{name}.zarr"
        map_volume(Blobs(shift), sources[name], grid, np.uint8, how)
        if not {"measure", "contacts"} & set(operations):
            break
        ids = f"{name}-ids"
        sources[ids] = folder / f"{ids}.zarr"
        found = find_components(open_volume(sources[name]).read, grid, folder / ids, how)
        write_components(found, consecutive(np.ones(len(found))), sources[ids], how)
        shutil.rmtree(folder / ids)
    return sources


def blockwise(operation: str, sources: dict[str, Path], folder: Path, how: Blockwise) -> int:
    if operation == "components":
        volume = open_volume(sources["mask"])
        found = find_components(volume.read, volume.grid, folder, how)
        write_components(found, consecutive(np.ones(len(found))), folder / "out.zarr", how)
        return len(found)
    if operation == "distance":
        volume = open_volume(sources["mask"])
        work = DistanceTo(volume.read, volume.grid, REACH_NM)
        map_volume(work, folder / "out.zarr", volume.grid, np.float32, how)
        return 0
    ids = open_labels(sources["mask-ids"])
    if operation == "measure":
        return len(measure_objects(ids, how=how, scratch=folder))
    other = open_labels(sources["other-ids"])
    return len(find_contacts(ids, other, ContactOptions(10.0), how=how, scratch=folder))


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
        how = Blockwise((block,) * 3, Processes(workers))
        count = blockwise(operation, sources, folder, how)
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
        return {"cpu_s": sum(self.cpu_s.values()), "memory_mb": self.peak_mb}


def run(job: tuple, sources: dict[str, Path], block: int) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    folder = Path(tempfile.mkdtemp(dir=sources["mask"].parent))
    process = context.Process(target=measure, args=(job, sources, folder, block, sender))
    process.start()
    watch = Watch(process.pid)
    while process.is_alive() and not receiver.poll(0.05):
        watch.sample()
    result = receiver.recv()
    process.join()
    shutil.rmtree(folder)
    return {**result, **watch.figures()}


def run_cellmap(operation: str, python: str, sources: dict[str, Path]) -> dict[str, float]:
    """The same by cellmap-analyze with one worker, in its own environment."""
    names = {"components": ["mask"], "measure": ["mask-ids"], "contacts": ["mask-ids", "other-ids"]}
    folder = Path(tempfile.mkdtemp(dir=sources["mask"].parent))
    words = [python, str(Path(__file__).with_name("cellmap_peer.py")), operation, "1", str(folder)]
    words += [str(sources[name] / "s0") for name in names[operation]]
    log = folder.with_suffix(".log")
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(words, stdout=stream, stderr=subprocess.STDOUT)
        watch = Watch(process.pid)
        while process.poll() is None:
            watch.sample()
            time.sleep(0.05)
    last = log.read_text(encoding="utf-8").strip().split("\n")[-1]
    if process.returncode:
        raise SystemExit(f"cellmap-analyze failed: {last}")
    shutil.rmtree(folder)
    return {"objects": -1, **json.loads(last), **watch.figures()}


def jobs_of(options: argparse.Namespace, operation: str) -> list[tuple[str, tuple]]:
    jobs = [
        (f"blocks, {n} worker{'s' * (n > 1)}", (operation, "blocks", n)) for n in options.workers
    ]
    if options.cellmap and operation != "distance":
        jobs.append(("cellmap-analyze", (operation, "cellmap", 1)))
    jobs += [
        (f"{library}, whole", (operation, library, 1))
        for library in WHOLE[operation]
        if options.whole == "all"
    ]
    return jobs


def efficiency(rows: list[dict]) -> str:
    walls = {row["method"]: row["wall_s"] for row in rows}
    one, two = (walls.get(f"blocks, {n}") for n in ("1 worker", "2 workers"))
    return f"{'':24}efficiency from 1 to 2 workers {one / two / 2:.0%}" if one and two else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigavoxels", type=float, nargs="+", default=[0.1])
    parser.add_argument("--block", type=int, default=192)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=["components"])
    parser.add_argument("--whole", choices=("all", "none"), default="all")
    parser.add_argument("--cellmap", help="Python of an environment with cellmap-analyze.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    every = []
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, block {options.block}")
    print("gigavoxels  operation   method             objects  wall ns/voxel  cpu ns/voxel     MB")
    for size in options.gigavoxels:
        grid = grid_of(size)
        voxels = math.prod(grid.shape)
        with tempfile.TemporaryDirectory() as folder:
            sources = prepare(Path(folder), grid, options.block, options.operations)
            for operation in options.operations:
                rows = []
                for name, job in jobs_of(options, operation):
                    if job[1] == "cellmap":
                        row = run_cellmap(operation, options.cellmap, sources)
                    else:
                        row = run(job, sources, options.block)
                    rows.append(
                        {"gigavoxels": voxels / 1e9, "operation": operation, "method": name, **row}
                    )
                    wall, cpu = (row[key] / voxels * 1e9 for key in ("wall_s", "cpu_s"))
                    print(
                        f"{voxels / 1e9:10.3f}  {operation:<10}  {name:<18} {row['objects']:7d} "
                        f"{wall:14.1f} {cpu:13.1f} {row['memory_mb']:6.0f}",
                        flush=True,
                    )
                if text := efficiency(rows):
                    print(text, flush=True)
                every += rows
    if options.json:
        options.json.write_text(json.dumps(every, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
