"""How fast a volume becomes a BigDataViewer HDF5, against h5py writing the same chunks with gzip.

    python benchmarks/export_bdv.py                      32 megavoxels, some seconds
    python benchmarks/export_bdv.py --megavoxels 2000    the size that is promised

clemreg writes all levels of the pyramid, h5py the full resolution alone. Each runs in a process of
its own, so that the peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from clemreg.export import bdv_pixels
from clemreg.export.bdv import BdvSetup, write_bdv
from clemreg.space import Box, Grid
from clemreg.volume import Volume

TILE = 128


class Repeated:
    """A volume of any size: one noisy, smooth tile (as EM is) again and again."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        from scipy.ndimage import gaussian_filter

        rng = np.random.default_rng(0)
        smooth = gaussian_filter(rng.normal(size=(TILE,) * 3), 2, mode="wrap")
        grey = 128 + 40 * smooth / smooth.std() + rng.normal(scale=6, size=(TILE,) * 3)
        self.tile = np.clip(grey, 0, 255).astype(np.uint8)
        self.shape = shape
        self.dtype = np.dtype(np.uint8)

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        index = [np.arange(k.start, k.stop) % TILE for k in key]
        return self.tile[np.ix_(*index)]


def by_h5py(folder: Path, volume: Volume, level: int) -> None:
    import h5py

    with h5py.File(folder / "plain.h5", "w") as file:
        cells = file.create_dataset(
            "cells",
            shape=volume.shape,
            dtype=volume.dtype,
            chunks=bdv_pixels.CHUNK,
            compression="gzip",
            compression_opts=level,
        )
        for box in Box.of_shape(volume.shape).tiles(bdv_pixels.BLOCK):
            cells[box.slices] = volume.read(box)


def by_clemreg(folder: Path, volume: Volume, _level: int) -> None:
    write_bdv(folder / "bdv.xml", [BdvSetup(volume, "EM")])


def child(connection: Any, write: Any, shape: tuple[int, int, int], level: int) -> None:
    volume = Volume(Repeated(shape), Grid(shape, (8.0, 8.0, 8.0)))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    before, cpu = usage.ru_maxrss, usage.ru_utime + usage.ru_stime
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        write(Path(folder), volume, level)
        seconds = time.perf_counter() - start
        size = sum(p.stat().st_size for p in Path(folder).iterdir())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    usage = resource.getrusage(resource.RUSAGE_SELF)
    connection.send(
        {
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime - cpu, 2),
            "seconds": round(seconds, 2),
            "megavoxels_per_s": round(np.prod(shape) / 1e6 / seconds, 1),
            "file_mb": round(size / 1e6, 1),
            "peak_mb": round(peak / 1024),
            "start_mb": round(before / 1024),
        }
    )


def measure(write: Any, shape: tuple[int, int, int], level: int) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=child, args=(there, write, shape, level))
    process.start()
    answer: dict[str, float] = here.recv()
    process.join()
    return answer


OURS = "clemreg, all levels"


def contenders(levels: list[int]) -> dict[str, tuple[Any, int]]:
    found = {f"h5py, gzip {level}": (by_h5py, level) for level in levels}
    return {OURS: (by_clemreg, bdv_pixels.COMPRESSION_LEVEL), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megavoxels", type=float, default=32.0)
    parser.add_argument("--repeats", type=int, default=1, help="the best of so many is reported")
    parser.add_argument(
        "--levels",
        type=int,
        nargs="+",
        default=[4, 1],
        help="gzip levels of h5py; its default is 4",
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    side = max(1, round((options.megavoxels * 1e6) ** (1 / 3) / 64)) * 64
    shape = (max(1, round(options.megavoxels * 1e6 / side**2)), side, side)
    entrants = contenders(options.levels)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in entrants}
    for _ in range(options.repeats):
        for name, (write, level) in entrants.items():
            runs[name].append(measure(write, shape, level))
    found: dict[str, Any] = {"shape": shape}
    found |= {name: min(all_of, key=lambda one: one["seconds"]) for name, all_of in runs.items()}
    for name in list(entrants)[1:]:
        ours, theirs = found[OURS], found[name]
        found[f"speed against {name}"] = round(theirs["seconds"] / ours["seconds"], 2)
        by_processor = theirs["cpu_seconds"] / ours["cpu_seconds"]
        found[f"speed against {name}, by processor time"] = round(by_processor, 2)
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
