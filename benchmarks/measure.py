"""CPU time per voxel of every operation, beside whole-volume libraries.

`clemreg.pipeline.plan` makes its estimates from the figures of ``--plan``.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from scipy.ndimage import distance_transform_edt

from clemreg.blocks.executors import Processes, Serial
from clemreg.blocks.stages import Blockwise, map_volume
from clemreg.io.quantise import quantise
from clemreg.io.volumes import WriteOptions, open_labels, open_volume, write_volume
from clemreg.measure.contacts import ContactOptions, find_contacts
from clemreg.measure.mesh import mesh_objects
from clemreg.measure.microtubules.candidates import find_candidates
from clemreg.measure.microtubules.graph import build_graph
from clemreg.measure.microtubules.tubes import write_tubes
from clemreg.measure.morphology import measure_objects
from clemreg.measure.planarity import PlanarityOptions, measure_planarity
from clemreg.measure.ribosomes import find_ribosomes, write_spheres
from clemreg.measure.sheetness import SheetnessOptions
from clemreg.measure.skeleton import SkeletonOptions, skeletonize
from clemreg.refine.agglomerate import Agglomeration
from clemreg.refine.objects import fill_holes, label_objects
from clemreg.refine.voxels import AtLeast, Smoothed
from clemreg.refine.watershed import segment_instances
from clemreg.space import Grid
from clemreg.volume import Labels, Volume

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


def balls(grid, per_um3):
    """A prediction of ribosomes at random places, as many as in a busy cytosol."""
    rng = np.random.default_rng(3)
    count = int(per_um3 * np.prod(grid.extent_nm) * 1e-9)
    seeds = np.ones(grid.shape, bool)
    seeds[tuple((rng.random((count, 3)) * grid.shape).astype(int).T)] = False
    away = distance_transform_edt(seeds, sampling=grid.spacing_nm)
    return quantise(np.tanh((10.0 - away) / 50))


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
    parser.add_argument("--plan", action="store_true", help="one figure for each operation")
    options = parser.parse_args()
    if options.plan:
        with TemporaryDirectory() as folder:
            every_operation(options.side, Path(folder))
        return
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


def every_operation(side, base):
    """Each operation once, in this process: what a plan for a whole cell rests on."""
    voxels, how = side**3, Blockwise((128, 128, 128))
    grid = Grid((side,) * 3, SPACING)
    ids = {n: Labels(blobs(side, k, t), grid, name=n) for k, (n, t) in enumerate(
        (("a", 1.2), ("b", 1.5), ("thin", 2.6)))}  # fmt: skip
    away = distance_transform_edt(ids["a"].read() > 0, sampling=SPACING)
    away -= distance_transform_edt(ids["a"].read() == 0, sampling=SPACING)
    prediction = Volume(quantise(np.tanh(away / 50)), grid)
    ribo = Volume(balls(grid, 4000), grid)
    for name, volume in (*ids.items(), ("p", prediction), ("ribo", ribo)):
        write_volume(base / f"{name}.zarr", volume)
    a, b, thin = (open_labels(base / f"{n}.zarr") for n in ids)
    read = open_volume(base / "p.zarr").read
    smoothed = Smoothed(read, grid, 12.0)
    lines = [grid.to_world(np.array([[0, y, 5], [side, y, side - 5]]))
             for y in range(10, side, 50)]  # fmt: skip

    def refine():
        labels = label_objects(AtLeast(smoothed, 0.0), grid, 0.0, base / "r", how)
        labels = fill_holes(labels, base / "f", how)
        map_volume(labels.read, base / "out.zarr", grid, np.uint32, how, WriteOptions(labels=True))

    def ribosomes():
        found = find_ribosomes(open_volume(base / "ribo.zarr"), how=how)
        write_spheres(found, grid, base / "spheres.zarr", how=how)

    def microtubules():
        write_tubes(lines, grid, base, how=how)
        points = find_candidates(open_volume(base / "p.zarr"), how=how, scratch=base)
        build_graph(points, open_volume(base / "p.zarr"), how=how, scratch=base)

    sheets = PlanarityOptions(SheetnessOptions())
    for name, action in {
        "refine": refine,
        "watershed": lambda: segment_instances(
            smoothed, grid, Agglomeration(0.25, 0.9), base / "w", how
        ),
        "measure": lambda: measure_objects(a, how=how),
        "skeletonize": lambda: list(skeletonize(a, how=how)),
        "skeletonize, in blocks": lambda: list(
            skeletonize(thin, SkeletonOptions(largest_box_voxels=0), how=how)
        ),
        "contacts": lambda: find_contacts(a, b, how=how, out=base / "c.zarr"),
        "mesh": lambda: mesh_objects(a, lambda *_: None, how=how),
        "ribosomes": ribosomes,
        "microtubules, without the program": microtubules,
        "planarity": lambda: measure_planarity(
            b, base / "s.zarr", base / "s", sheets, how=Blockwise((192, 192, 192))
        ),
    }.items():
        timed(name, voxels, action)


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
