"""Components block by block, beside cc3d and scipy on the whole volume: time, memory, scaling.

Each method runs in a fresh process, reads the same OME-Zarr and writes its labels as OME-Zarr.
Seconds of wall time need a quiet machine; seconds of CPU are steadier on a shared one.

    python benchmarks/blocks_scaling.py --gigavoxels 0.05 0.1 --workers 1 2
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from clemreg.blocks.components import consecutive, find_components, write_components
from clemreg.blocks.executors import Processes
from clemreg.blocks.stages import Blockwise, map_volume
from clemreg.io.volumes import WriteOptions, open_volume, write_volume
from clemreg.space.grid import Box, Grid
from clemreg.volume import Labels

SPACING_NM = (5.24, 4.0, 4.0)
CHUNK = (64, 64, 64)


class Blobs:
    """A mask of about a tenth of the volume: many separate objects of about 0.3 um."""

    def __call__(self, box: Box) -> np.ndarray:
        z, y, x = np.ogrid[box.slices]
        waves = [
            np.sin(a * z + b * y + c * x + a * b * 1e3)
            for a, b, c in ((0.11, 0.05, 0.03), (0.02, 0.12, 0.06), (0.05, 0.01, 0.13))
        ]
        bent = 0.4 * np.sin(0.013 * z + 0.017 * y) * np.sin(0.011 * x)
        return (sum(waves).astype(np.float32) + bent > 1.75).astype(np.uint8)


def grid_of(gigavoxels: float) -> Grid:
    side = round((gigavoxels * 1e9) ** (1 / 3) / 64) * 64
    return Grid((side, side, side), SPACING_NM)


def blockwise(source: Path, folder: Path, block: int, workers: int) -> int:
    volume = open_volume(source)
    how = Blockwise((block,) * 3, Processes(workers))
    found = find_components(volume.read, volume.grid, folder, how)
    write_components(found, consecutive(np.ones(len(found))), folder / "out.zarr", how)
    return len(found)


def whole(source: Path, folder: Path, method: str) -> int:
    volume = open_volume(source)
    mask = volume.read()
    if method == "cc3d":
        import cc3d

        labels, count = cc3d.connected_components(mask, connectivity=6, return_N=True)
    else:
        from scipy import ndimage

        labels, count = ndimage.label(mask)
    options = WriteOptions(chunk=CHUNK, levels=1, labels=True)
    write_volume(folder / "out.zarr", Labels(labels, volume.grid), options=options)
    return int(count)


def measure(method: str, source: Path, folder: Path, block: int, workers: int, out) -> None:
    begin = time.perf_counter()
    if method == "blocks":
        count = blockwise(source, folder, block, workers)
    else:
        count = whole(source, folder, method)
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


def run(method: str, source: Path, block: int, workers: int) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    folder = Path(tempfile.mkdtemp(dir=source.parent))
    process = context.Process(target=measure, args=(method, source, folder, block, workers, sender))
    process.start()
    watch = Watch(process.pid)
    while not receiver.poll(0.05):
        watch.sample()
    result = receiver.recv()
    process.join()
    shutil.rmtree(folder)
    return {**result, "cpu_s": sum(watch.cpu_s.values()), "memory_mb": watch.peak_mb}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigavoxels", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--block", type=int, default=192)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    jobs = [(f"blocks, {n} worker{'s' * (n > 1)}", "blocks", n) for n in options.workers]
    jobs += [("cc3d, whole", "cc3d", 1), ("scipy, whole", "scipy", 1)]
    rows = []
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, block {options.block}")
    print("gigavoxels  method              objects  wall ns/voxel  cpu ns/voxel  memory MB")
    for size in options.gigavoxels:
        grid = grid_of(size)
        voxels = math.prod(grid.shape)
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "mask.zarr"
            map_volume(Blobs(), source, grid, np.uint8, Blockwise((options.block,) * 3))
            for name, method, workers in jobs:
                row = run(method, source, options.block, workers)
                rows.append({"gigavoxels": voxels / 1e9, "method": name, **row})
                print(
                    f"{voxels / 1e9:10.3f}  {name:<18} {row['objects']:8d} "
                    f"{row['wall_s'] / voxels * 1e9:14.1f} {row['cpu_s'] / voxels * 1e9:13.1f} "
                    f"{row['memory_mb']:10.0f}",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
