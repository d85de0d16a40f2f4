"""CPU time per voxel of measuring, beside whole-volume libraries."""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from clemreg.blocks.executors import Processes, Serial
from clemreg.blocks.stages import Blockwise
from clemreg.io.volumes import open_labels, write_volume
from clemreg.measure.contacts import ContactOptions, find_contacts
from clemreg.measure.morphology import measure_objects
from clemreg.measure.planarity import PlanarityOptions, measure_planarity
from clemreg.measure.sheetness import SheetnessOptions
from clemreg.space import Grid
from clemreg.volume import Labels

SPACING = (5.24, 4.0, 4.0)


def blobs(side, seed, threshold):
    """Labelled blobs in a tile that is repeated: realistic surfaces at any size."""
    import cc3d
    from scipy.ndimage import gaussian_filter

    tile = gaussian_filter(np.random.default_rng(seed).normal(size=(128,) * 3), 6, mode="wrap")
    mask = tile / tile.std() > threshold
    n = -(-side // 128)
    whole = np.tile(mask, (n, n, n))[:side, :side, :side]
    return cc3d.connected_components(np.ascontiguousarray(whole), connectivity=6).astype("u4")


def timed(name, voxels, action):
    start, used = time.perf_counter(), processor_seconds()
    action()
    wall, used = time.perf_counter() - start, processor_seconds() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cost = 1e9 * used / voxels
    print(f"{name:<44} {wall:7.1f} s, {used:6.1f} s of CPU, {cost:7.0f} ns/voxel, {peak:.2f} GiB")


def processor_seconds():
    """CPU time of this process and of its finished children; fair on a machine that is shared."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--planarity-side", type=int, default=128)
    options = parser.parse_args()
    side = options.side
    voxels = side**3
    grid = Grid((side,) * 3, SPACING)
    with TemporaryDirectory() as folder:
        base = Path(folder)
        for name, seed, threshold in (("a", 0, 1.2), ("b", 1, 1.5)):
            ids = blobs(side, seed, threshold)
            write_volume(base / f"{name}.zarr", Labels(ids, grid))
        a, b = open_labels(base / "a.zarr"), open_labels(base / "b.zarr")
        for executor in (Serial(), Processes(1), Processes(2)):
            how = Blockwise((128, 128, 128), executor)
            timed(f"measure {executor}", voxels, lambda how=how: measure_objects(a, how=how))
        for executor in (Serial(), Processes(1), Processes(2)):
            how = Blockwise((128, 128, 128), executor)
            for distance in (10.0, 20.0):
                timed(
                    f"contacts {distance:.0f} nm {executor}", voxels,
                    lambda how=how, d=distance: find_contacts(a, b, ContactOptions(d), how=how),
                )  # fmt: skip
        whole_volume(a.read(), voxels)
        planarity(options.planarity_side, base)


def whole_volume(ids, voxels):
    import cc3d
    from skimage.measure import regionprops_table

    timed("cc3d.statistics (counts, boxes, centroids)", voxels, lambda: cc3d.statistics(ids))
    wanted = ("label", "area", "centroid", "bbox", "inertia_tensor")
    timed(
        "skimage.regionprops_table (no surface)", voxels,
        lambda: regionprops_table(ids, properties=wanted, spacing=SPACING),
    )  # fmt: skip
    timed(
        "cc3d.contacts (voxel faces between objects)", voxels,
        lambda: cc3d.contacts(ids, connectivity=6, surface_area=True, anisotropy=SPACING),
    )  # fmt: skip


def planarity(side, base):
    grid = Grid((side,) * 3, SPACING)
    mask = Labels((blobs(side, 0, 1.2) > 0).astype("u1"), grid)
    options = PlanarityOptions(SheetnessOptions())
    timed(
        f"planarity of {side}^3, 12 scales, one block", side**3,
        lambda: measure_planarity(mask, base / "p.zarr", base / "s", options,
                                  how=Blockwise((side,) * 3)),
    )  # fmt: skip


if __name__ == "__main__":
    main()
