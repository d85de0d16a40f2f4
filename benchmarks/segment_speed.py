"""How fast the bundled network predicts, against a plain loop of it and against the processor.

    python benchmarks/segment_speed.py --threads 2

One run, the same EM, the same number of threads: `clemreg segment` as a user gets it (reading,
computing, writing an OME-Zarr), and plain float32 loops: the network as it was trained, block by
block with the halo it needs, torch's default memory format, everything in memory. Their answers
are compared voxel by voxel. The peak is what `torch.mm` reaches in float32. "CPU" is the time the
processor spent on it, which other programs disturb less than the time on the clock. On a GPU, the
share of the time in convolutions is told by torch.profiler.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from clemreg.blocks.plan import plan_blocks
from clemreg.io.quantise import quantise
from clemreg.io.volumes import open_volume, write_volume
from clemreg.pipeline.segment import SegmentSettings, segment_file
from clemreg.segment.blockwise import find_limits
from clemreg.segment.data import normalise
from clemreg.segment.models import Model, load_model
from clemreg.segment.network import NetworkOptions
from clemreg.segment.predict import automatic_block
from clemreg.space.grid import Grid
from clemreg.volume import Volume

PLAIN_BLOCKS = (64, 128)
T = TypeVar("T")


@dataclass(frozen=True)
class Timing:
    wall_s: float
    cpu_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="mito-8nm", help="bundled name or file")
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 256, 256), help="voxels z y x")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=2, help="the fastest counts")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        em = write_em(Path(folder) / "em.zarr", tuple(arguments.shape), model)
        report = measure(em, model, arguments.model, Path(folder), arguments.repeat)
    if torch.cuda.is_available():
        report["share of time in convolutions"] = convolution_share(model)
    show(report)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def write_em(path: Path, shape: tuple[int, int, int], model: Model) -> Path:
    """Blurred noise; what is in it does not matter for the time."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    smooth = gaussian_filter(noise, 2)
    grey = np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)
    write_volume(path, Volume(grey, Grid(shape, model.card.spacing_nm, frame="em")))
    return path


def measure(em: Path, model: Model, name: str, folder: Path, repeat: int) -> dict[str, Any]:
    volume = open_volume(em, frame="em")
    voxels = float(np.prod(volume.shape))
    fast, found = best(lambda: by_command(em, name, folder / "out.zarr"), repeat)
    peak = matrix_peak()
    needed = 2e-9 * products_per_voxel(model.network.options) * voxels
    report: dict[str, Any] = {
        "model": name,
        "voxels": voxels,
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "block": list(automatic_block(volume.shape, model.network.options)),
        "torch.mm, GFLOP/s": 1 / peak.wall_s,
        "clemreg segment": speed(fast, voxels) | of_peak(fast, needed, peak),
    }
    for block in PLAIN_BLOCKS:
        slow, expected = best(lambda block=block: by_loop(volume, model, block), repeat)  # type: ignore[misc]
        report[f"plain loop, blocks of {block}"] = speed(slow, voxels) | {
            "times slower": slow.wall_s / fast.wall_s,
            "times slower, CPU": slow.cpu_s / fast.cpu_s,
            "levels off at most": int(np.abs(found.astype(int) - expected).max()),
        }
    return report


def best(function: Callable[[], T], repeat: int) -> tuple[Timing, T]:
    timings = []
    for _ in range(repeat):
        wall, cpu = time.perf_counter(), time.process_time()
        result = function()
        timings.append(Timing(time.perf_counter() - wall, time.process_time() - cpu))
    return min(timings, key=lambda t: t.wall_s), result


def by_command(em: Path, name: str, out: Path) -> NDArray[np.uint8]:
    """What `clemreg segment` runs; always in float32, so that answers can be compared."""
    segment_file(str(em), out, model=name, settings=SegmentSettings(precise=True))
    return open_volume(out, frame="em").read()


def by_loop(volume: Volume, model: Model, block: int) -> NDArray[np.uint8]:
    """The loop that one would write."""
    network = load_model(model.path).network
    halo = network.halo
    up = [-n % network.step for n in volume.shape]
    em = normalise(volume.read(), find_limits(volume))
    padded = np.pad(em, [(halo, halo + u) for u in up], mode="edge")
    result = np.zeros(
        (len(model.classes), *(n + u for n, u in zip(em.shape, up, strict=True))), np.uint8
    )
    with torch.inference_mode():
        for part in plan_blocks(result.shape[1:], (block,) * 3):
            core = tuple(slice(a, b) for a, b in zip(part.core.start, part.core.stop, strict=True))
            x = padded[tuple(slice(s.start, s.stop + 2 * halo) for s in core)]
            result[(slice(None), *core)] = quantise(
                network(torch.from_numpy(x)[None, None])[0].numpy()
            )
    z, y, x_ = volume.shape
    return result[:, :z, :y, :x_]


def products_per_voxel(options: NetworkOptions) -> float:
    """Products of the network for one output voxel, as it was trained and without any halo."""
    w, cube = options.widths, options.fold**3
    total = w[0] * len(options.classes) * cube / cube
    for level, width in enumerate(w):
        size = cube * 8**level
        inputs = cube if level == 0 else w[level - 1]
        total += 27 * width * (inputs + width * (options.down[level] - 1)) / size
        if level < len(options.up):
            joined = width + w[level + 1]
            total += 27 * width * (joined + width * (options.up[level] - 1)) / size
    return total


def matrix_peak(n: int = 1536) -> Timing:
    """Seconds for a thousand million operations."""
    a, b = torch.rand(n, n), torch.rand(n, n)
    timing, _ = best(lambda: torch.mm(a, b), 4)
    operations = 2e-9 * n**3
    return Timing(timing.wall_s / operations, timing.cpu_s / operations)


def convolution_share(model: Model) -> float:
    """Share of the time on the clock in which the GPU computes convolutions."""
    from torch.profiler import ProfilerActivity, profile

    from clemreg.segment.inference import FastUNet, joined

    network = FastUNet(model.network).cuda()
    size = 192 // network.options.step * network.options.step + 2 * network.options.halo
    x = torch.rand(1, 1, size, size, size, device="cuda")
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        for _ in range(2):  # the first time, the profiler itself starts
            torch.cuda.synchronize()
            begin = time.perf_counter()
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
                for _ in range(5):
                    joined(network(x))
                torch.cuda.synchronize()
                wall = time.perf_counter() - begin
    rows = profiler.key_averages()
    inside = sum(r.device_time_total for r in rows if r.key == "aten::cudnn_convolution")
    return float(inside) * 1e-6 / wall


def speed(timing: Timing, voxels: float) -> dict[str, float]:
    return {"Mvoxel/s": voxels / timing.wall_s / 1e6, "s": timing.wall_s, "CPU s": timing.cpu_s}


def of_peak(timing: Timing, operations: float, peak: Timing) -> dict[str, float]:
    """Operations of the network as it was trained, halo not counted, as a share of the peak."""
    return {
        "of peak": operations * peak.wall_s / timing.wall_s,
        "of peak, CPU": operations * peak.cpu_s / timing.cpu_s,
    }


def show(report: dict[str, Any]) -> None:
    for name, value in report.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v:.3g}" for k, v in value.items())
        print(f"{name:30} {value}")


if __name__ == "__main__":
    main()
