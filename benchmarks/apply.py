"""Resample a volume through affine and B-spline: clemreg, transformix and scipy, on one machine.

Each runs in a process of its own; the memory is what it adds to its peak (read on Linux only).
Throughput is in gigavoxels of output per minute and per CPU minute (fair on a busy machine), the
transform included; loading libraries and compiled code is not. Two pairs are like for like, with
two threads each: "in_memory" reads, resamples and keeps the result, as "transformix" does
("one_thread" and "scipy" the same with one); "clemreg" compresses and writes it as OME-Zarr with a
pyramid, "transformix_file" as a compressed NRRD of the input's pixel type without one
(`itk.imwrite(..., compression=True)`).
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from clemreg.io.elastix_files import write_elastix
from clemreg.space import Affine, BSpline, Chain, Grid
from clemreg.space.grid import Box
from clemreg.volume import Volume

SPACING = (8.0, 8.0, 8.0)
THREADS = 2
LARGEST_WHOLE = 448  # voxels along an axis up to which the others are run


def make_transform(onto: Grid) -> Chain:
    """Rotated and scaled by a little, then bent by 60 nm over 1 um, as real ones are."""
    rng = np.random.default_rng(0)
    angle = 0.1
    linear = 1.02 * np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    )
    offset = onto.centre_nm - linear @ onto.centre_nm
    control = 1000.0
    count = np.ceil(onto.extent_nm * 1.3 / control).astype(int) + 5
    origin = onto.centre_nm - control * (count - 1) / 2
    bend = BSpline(rng.normal(scale=60, size=(3, *count)), origin, np.full(3, control), "lm", "em")
    return Chain((Affine.from_linear(linear, offset, "lm", "lm"), bend))


def make_pixels(shape: tuple[int, int, int]) -> np.ndarray:
    """Smooth grey values, made slab by slab."""
    z, y, x = (np.arange(n, dtype=np.float32) for n in shape)
    plane = np.sin(y[:, None] / 9) * np.cos(x[None] / 11) * 60 + 128
    out = np.empty(shape, np.uint8)
    for k in range(shape[0]):
        out[k] = plane + 50 * np.sin(z[k] / 7)
    return out


def clemreg(folder: Path, shape: tuple[int, int, int]) -> None:
    from clemreg.io.volumes import open_volume
    from clemreg.register.apply import ApplyOptions, apply_to_image

    onto = Grid(shape, SPACING, (0.0, 0.0, 0.0), "lm")
    image = open_volume(folder / "em.zarr", frame="em")
    apply_to_image(
        make_transform(onto), image, onto, folder / "out.zarr", ApplyOptions(workers=THREADS)
    )


def in_memory(folder: Path, shape: tuple[int, int, int]) -> None:
    _in_memory(folder, shape, THREADS)


def one_thread(folder: Path, shape: tuple[int, int, int]) -> None:
    _in_memory(folder, shape, 1)


def _in_memory(folder: Path, shape: tuple[int, int, int], threads: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from clemreg.io.volumes import open_volume
    from clemreg.register.apply import BLOCK, warped_volume

    onto = Grid(shape, SPACING, (0.0, 0.0, 0.0), "lm")
    warped = warped_volume(make_transform(onto), open_volume(folder / "em.zarr", frame="em"), onto)
    out = np.empty(shape, warped.dtype)

    def fill(box: Box) -> None:
        out[box.slices] = warped.read(box)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, onto.box.tiles(BLOCK)))


def scipy(folder: Path, shape: tuple[int, int, int]) -> None:
    from scipy.ndimage import map_coordinates

    from clemreg.io.volumes import open_volume

    onto = Grid(shape, SPACING, (0.0, 0.0, 0.0), "lm")
    pixels = open_volume(folder / "em.zarr").read()
    points = make_transform(onto)(onto.points_nm().reshape(-1, 3))
    map_coordinates(pixels, onto.to_index(points).T, order=1, output=np.float32)


def transformix(folder: Path, shape: tuple[int, int, int]) -> None:
    """Interpolate linearly, as the others do."""
    _transformix(folder, shape, "1")


def transformix_file(folder: Path, shape: tuple[int, int, int]) -> None:
    """The same, and write the result as the bytes that it was made from."""
    import itk

    found = _transformix(folder, shape, "1")
    image = itk.image_from_array(np.rint(itk.array_view_from_image(found)).astype(np.uint8))
    image.SetSpacing(found.GetSpacing())
    image.SetOrigin(found.GetOrigin())
    itk.imwrite(image, str(folder / "out.nrrd"), compression=True)


def cubic(folder: Path, shape: tuple[int, int, int]) -> None:
    """Let transformix interpolate as it does by default."""
    _transformix(folder, shape, "3")


def _transformix(folder: Path, shape: tuple[int, int, int], order: str) -> Any:
    import itk

    from clemreg.io.volumes import open_volume

    pixels = open_volume(folder / "em.zarr").read().astype(np.float32)
    image = itk.image_from_array(pixels)
    image.SetSpacing([s / 1e3 for s in SPACING])
    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(THREADS)
    parameters = itk.ParameterObject.New()
    for name in sorted(folder.glob("TransformParameters.*.txt")):
        parameters.AddParameterFile(str(name))
    for k in range(parameters.GetNumberOfParameterMaps()):
        parameters.SetParameter(k, "FinalBSplineInterpolationOrder", order)
        parameters.SetParameter(k, "Size", [str(n) for n in shape[::-1]])
    return itk.transformix_filter(image, parameters)


METHODS = (clemreg, in_memory, one_thread, scipy, transformix, transformix_file, cubic)


def measured(work: Callable[..., None], folder: Path, shape: tuple[int, int, int]) -> list[float]:
    """Seconds, CPU seconds and added peak memory (GB) of a call in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_timed, (work, folder, shape))


def _timed(work: Callable[..., None], folder: Path, shape: tuple[int, int, int]) -> list[float]:
    import scipy.ndimage  # noqa: F401
    import zarr  # noqa: F401

    from clemreg.io import volumes  # noqa: F401
    from clemreg.register import apply

    if work in (transformix, transformix_file, cubic):
        import itk

        itk.ParameterObject.New()
        itk.imwrite(itk.image_from_array(np.zeros((2, 2, 2), np.uint8)), str(folder / "small.nrrd"))
    if work in (clemreg, in_memory, one_thread):
        small = Grid((2, 2, 2), SPACING, (0.0, 0.0, 0.0), "em")
        image = Volume(np.zeros(small.shape, np.uint8), small)
        apply.warp_block(Affine.identity("lm", "em"), image, small.with_frame("lm"))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    before = peak_gb()
    begin, cpu = time.perf_counter(), time.process_time()
    work(folder, shape)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    return [seconds, cpu, peak_gb() - before]


def peak_gb() -> float:
    """Most memory that this process has had."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1e6


def main() -> None:
    from clemreg.io.volumes import write_volume

    sizes = [int(n) for n in sys.argv[1:]] or [192, 320]
    print("voxels        method           Gvoxel/min  Gvoxel/CPU min   seconds    CPU s   peak GB")
    for n in sizes:
        shape = (n // 2, n, n)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            grid = Grid(shape, SPACING, (0.0, 0.0, 0.0), "em")
            write_volume(folder / "em.zarr", Volume(make_pixels(shape), grid))
            onto = grid.with_frame("lm")
            write_elastix(make_transform(onto), folder, onto)
            spent = {}
            for work in (
                clemreg,
                in_memory,
                one_thread,
                scipy,
                transformix,
                transformix_file,
                cubic,
            ):
                if work is not clemreg and n > LARGEST_WHOLE:
                    continue
                seconds, cpu, peak = measured(work, folder, shape)
                spent[work] = np.array([seconds, cpu])
                giga = grid.size / 1e9 * 60
                print(
                    f"{grid.size:11d}   {work.__name__:16s} {giga / seconds:10.3f} "
                    f"{giga / cpu:15.3f} {seconds:9.2f} {cpu:8.2f} {peak:9.2f}",
                    flush=True,
                )
            for ours, theirs in ((in_memory, transformix), (clemreg, transformix_file)):
                if theirs in spent:
                    clock, cpu = spent[theirs] / spent[ours]
                    print(
                        f"{ours.__name__}: {clock:.1f} times {theirs.__name__} on the clock, "
                        f"{cpu:.1f} times by CPU time"
                    )


if __name__ == "__main__":
    main()
