"""Score the bundled networks: on held-out slices of real EM, and on simulated EM.

    python benchmarks/segment_accuracy.py --real ../shared/data/lucchi-train

The real data (EPFL hippocampus FIB-SEM, voxels of 5 nm) is not part of clemreg; without it only
the simulated blocks are scored. Slices 0 to 39 are never trained on; they are what
`clemreg train` validates on. They are predicted alone, a block 0.2 um thick that is all border, and
with the EM of the slices after them in view, as in a whole volume. The masks are cut off at two
faces (`ANNOTATED`); there they are scored, too, and left out in a row of its own. Truth and
prediction are compared at 5 nm, the prediction interpolated linearly. Object by object, parts that
hang together by faces are compared as they are, without watershed.

A seed of simulated EM is an appearance: the same staining, noise and artefacts on four pieces of
tissue or cell, scored together, since one piece may hold hardly any mitochondria.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import edt
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

from clemreg.evaluate.instances import score_instances
from clemreg.io.quantise import SURFACE
from clemreg.io.volumes import open_labels, open_volume
from clemreg.segment.data import separable_resample
from clemreg.segment.models import bundled_models, load_model
from clemreg.segment.predict import PredictOptions, predict
from clemreg.segment.targets import MEMBRANE_NM, signed_distance_nm
from clemreg.simulate.em import EmAppearance, random_piece, render_em
from clemreg.simulate.phantom import ER_CLASSES
from clemreg.space.grid import Box, Grid
from clemreg.volume import Volume

HELD_OUT = 40
IN_VIEW = 110  # 40 and what the networks see beyond (320 nm)
SEEDS = (7001, 7002, 7003)  # training draws its blocks from other seeds
PIECES = 4
APART = 3  # empty voxels between pieces
TOLERANCE = 2  # voxels
# In the 125 slices of training the masks cover 0.000, 0.004, 0.032 and 0.059 of columns 0 to 3 and
# 0.062 to 0.064 of the next six; 0.030 and 0.045 of the last two rows and 0.048 to 0.052 of the
# six before. The EM goes on.
ANNOTATED = (slice(None), slice(0, 766), slice(4, None))
CRUMB_NM3 = 1e6  # a cube of 100 nm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--real", type=Path, help="folder with em.tif and mito.tif")
    parser.add_argument("--model", action="append", help="bundled name or file; default: all")
    parser.add_argument("--voxel-nm", type=float, help="of simulated EM; default: the network's")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS, help="of simulated EM")
    parser.add_argument("--tta", type=int, default=1, help="mirrored views to average")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    rows = {}
    for name in arguments.model or [card.name for card in bundled_models()]:
        if arguments.real is not None and (arguments.real / "em.tif").is_file():
            for slices, where in ((HELD_OUT, "alone"), (IN_VIEW, "of a volume")):
                for what, row in real(name, arguments.real, arguments.tta, slices).items():
                    rows[f"{Path(name).stem}, real, slices 0 to 39 {where}{what}"] = row
        for seed in arguments.seeds:
            rows[f"{Path(name).stem}, simulated, seed {seed}"] = simulated(
                name, seed, arguments.voxel_nm, arguments.tta
            )
        show({k: v for k, v in rows.items() if k.startswith(Path(name).stem)})
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def real(name: str, folder: Path, views: int, slices: int) -> dict[str, dict[str, float]]:
    """Score the held-out slices, predicted with so many slices in view: all, and the annotated."""
    spacing = (5.0, 5.0, 5.0)
    em = open_volume(folder / "em.tif", spacing_nm=spacing, frame="em")
    box = Box((0, 0, 0), (slices, *em.shape[1:]))
    in_view = Volume(em.read(box), Grid(box.shape, spacing, frame="em"))
    # The distance to a surface beyond the last held-out slice is known from the slices after it.
    labels = open_labels(folder / "mito.tif", spacing_nm=spacing, frame="em").read() != 0
    found = {c: p[:HELD_OUT] for c, p in run(name, in_view, views).items()}
    result = {}
    for what, part in (("", (slice(None),) * 3), (", annotated", ANNOTATED)):
        distance = signed_distance_nm(labels[part][: HELD_OUT + 20], spacing)[:HELD_OUT]
        here = {c: p[part] for c, p in found.items()}
        result[what] = scores(here, {"mito": distance}, spacing[0])
    return result


def simulated(name: str, seed: int, voxel_nm: float | None, views: int) -> dict[str, float]:
    """Score pieces of one appearance."""
    spacing = (voxel_nm,) * 3 if voxel_nm else load_model(name).card.spacing_nm
    grid = Grid((96, 160, 160), spacing, frame="em")
    look = EmAppearance.random(np.random.default_rng(seed))
    found, distances = [], []
    for piece in range(PIECES):
        phantom = random_piece(np.random.default_rng((seed, piece)), grid)
        em = render_em(np.random.default_rng(seed), phantom.labels, grid, look)
        found.append(run(name, Volume(em, grid), views))
        er = signed_distance_nm(phantom.mask(ER_CLASSES), spacing)
        distances.append({"mito": phantom.mito_distance_nm, "er": er})
    return scores(_one_above_another(found, 0), _one_above_another(distances, -1e3), spacing[0])


def _one_above_another(
    pieces: Sequence[Mapping[str, NDArray[np.float32]]], empty: float
) -> dict[str, NDArray[np.float32]]:
    apart = ((0, APART), (0, 0), (0, 0))
    return {
        name: np.concatenate([np.pad(p[name], apart, constant_values=empty) for p in pieces])
        for name in pieces[0]
    }


def run(name: str, em: Volume, views: int) -> dict[str, NDArray[np.float32]]:
    """Stored values of every class on the grid of the EM."""
    model = load_model(name)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "prediction.zarr"
        found = predict(em, model, out, options=PredictOptions(views=views))
        pixels = found.read()
    if found.shape == em.shape:
        return dict(zip(model.classes, pixels.astype(np.float32), strict=True))
    axes = []
    for axis in range(3):
        world = em.grid.origin_nm[axis] + np.arange(em.shape[axis]) * em.grid.spacing_nm[axis]
        place = (world - found.grid.origin_nm[axis]) / found.grid.spacing_nm[axis]
        axes.append(np.clip(place, 0, found.shape[axis] - 1))
    return {
        c: separable_resample(p.astype(np.float32), axes, (1.0, 1.0, 1.0))
        for c, p in zip(model.classes, pixels, strict=True)
    }


def scores(
    found: Mapping[str, NDArray[np.float32]],
    distances: Mapping[str, NDArray[np.float32]],
    spacing_nm: float,
) -> dict[str, float]:
    mito = distances["mito"]
    shell = (mito > 0) & (mito <= MEMBRANE_NM)
    result = {"mito IoU": iou(found["mito"] >= SURFACE, mito > 0)}
    result["membrane F1"] = f1(found["mito_mem"] >= SURFACE, shell)
    if "er" in found and "er" in distances:
        result["er IoU"] = iou(found["er"] >= SURFACE, distances["er"] > 0)
    result |= instances(found["mito"] >= SURFACE, mito > 0, spacing_nm)
    result["voxel nm"] = spacing_nm
    return result


def instances(
    found: NDArray[np.bool_], truth: NDArray[np.bool_], spacing_nm: float
) -> dict[str, float]:
    """Object by object: what hangs together by faces, crumbs of the prediction left out."""
    objects, _ = label(found)
    sizes = np.bincount(objects.ravel())
    objects[sizes[objects] < CRUMB_NM3 / spacing_nm**3] = 0
    true, _ = label(truth)
    scores = score_instances(objects, true)
    return {
        "objects": scores.predicted_objects,
        "true": scores.true_objects,
        "matched F1": scores.instance_f1,
        "AP": scores.average_precision,
        "VOI split": scores.voi_split,
        "VOI merge": scores.voi_merge,
    }


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def f1(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """A voxel counts as right if there is one of the other mask within `TOLERANCE` voxels."""
    if not found.any() or not truth.any():
        return float(found.any() == truth.any())
    precision = (edt.edt(~truth)[found] <= TOLERANCE).mean()
    recall = (edt.edt(~found)[truth] <= TOLERANCE).mean()
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def show(rows: Mapping[str, Mapping[str, float]]) -> None:
    for name, row in rows.items():
        print(f"{name:57}", ", ".join(f"{k} {v:.3f}" for k, v in row.items()), flush=True)


if __name__ == "__main__":
    main()
