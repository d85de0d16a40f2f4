"""The simulated COS-7 set: published deformation, predicted masks, PALM or SIM; TRE per seed.

    python benchmarks/registration_cos7.py --transforms FOLDER --seeds 20 --json palm.json

FOLDER holds the published `palm_def_TransformParameters.txt` (with its affine) and
`mask_bin.tif.gz`. Each seed draws another cell and another place inside the published cell mask;
the EM is segmented by the bundled network. Finished seeds are kept in the JSON file, so that the
same command goes on where it was stopped. With `--keep FOLDER` pairs and predictions are kept: PALM
and SIM see the same cells, which are then predicted once.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile

from clemreg.evaluate.landmarks import evaluate_landmarks
from clemreg.io.atomic import atomic_write_json
from clemreg.io.points import read_landmarks
from clemreg.io.transforms import read_fixed_grid, read_transform, write_transform
from clemreg.io.volumes import open_volume
from clemreg.pipeline.segment import segment_volume
from clemreg.register.features import PSF_SIGMA_NM, MovingOptions, prepare_fixed, prepare_moving
from clemreg.register.registration import RegisterOptions, register
from clemreg.simulate.pair import PairOptions, simulate_clem
from clemreg.space.transform import Affine, Chain, FloatArray, Transform
from clemreg.volume import Volume

EM_SHAPE = (160, 320, 320)
MASK_GRID_NM = (104.0, 52.0, 52.0)


def place_in_cell(mask_file: Path, rng: np.random.Generator) -> FloatArray:
    """Draw a place (3,) zyx nm of the published light field, 3 um inside the cell."""
    mask = tifffile.imread(io.BytesIO(gzip.decompress(mask_file.read_bytes()))) > 0
    from scipy.ndimage import distance_transform_edt

    flat = mask.any(axis=0)
    deep = distance_transform_edt(flat) * MASK_GRID_NM[1] > 3000.0
    y, x = np.argwhere(deep)[rng.integers(int(deep.sum()))]
    z = np.argwhere(mask[:, y, x]).mean()
    return np.array([z, y, x]) * MASK_GRID_NM


def published_at(transform_file: Path, place_nm: FloatArray, out: Path) -> Path:
    """Write the published transform seen from another place: its origin there."""
    given = read_transform(transform_file, source="lm", target="em")
    shift = Affine.translation(place_nm, "lm", "lm")
    write_transform(Chain((shift, given)), out)
    return out


def simulate(seed: int, modality: str, folder: Path, work: Path) -> Transform:
    """Make the pair of a seed, or take it as it was kept; return the true transform."""
    if (work / "config.toml").is_file():  # written last
        return read_transform(work / "truth.json", source="lm", target="em")
    rng = np.random.default_rng(5000 + seed)
    transform_file = folder / "palm_def_TransformParameters.txt"
    assert read_fixed_grid(transform_file) is not None
    place = place_in_cell(folder / "mask_bin.tif.gz", rng)
    options = PairOptions(seed=seed, em_shape=EM_SHAPE, microscope=modality)
    # simulate_clem looks through the file at the centre of the simulated light field.
    extent = np.array(EM_SHAPE) * options.em_spacing_nm * 1.05 + 2 * np.array([360, 1080, 1080])
    seen = published_at(transform_file, place - extent / 2, work / "published.json")
    return simulate_clem(work, replace(options, transform=str(seen)))


def predicted(em: Volume, kept: Path) -> Volume:
    """Segment, or take the prediction of the same pixels."""
    digest = hashlib.sha256(np.ascontiguousarray(em.read()).tobytes()).hexdigest()[:16]
    out = kept / f"prediction-{digest}.zarr"
    if not out.exists():
        segment_volume(em, out)
    return open_volume(out, frame="em")


def measure(
    seed: int, modality: str, folder: Path, work: Path, predictions: Path
) -> dict[str, object]:
    truth = simulate(seed, modality, folder, work)
    em, lm = open_volume(work / "em.zarr", frame="em"), open_volume(work / "lm.zarr", frame="lm")
    prediction = predicted(em, predictions)
    began, cpu = time.monotonic(), time.process_time()
    psf = MovingOptions(psf_sigma_nm=PSF_SIGMA_NM[modality])
    fixed = prepare_fixed(lm.channel("mito"))
    moving = prepare_moving(prediction, lm.grid.spacing_nm, psf)
    result = register(fixed, moving, RegisterOptions(seed=seed))
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    coarse = lm.grid.with_spacing((200.0, 200.0, 200.0)).points_nm().reshape(-1, 3)
    inside = coarse[em.grid.contains(truth(coarse))]
    error = np.linalg.norm(result.transform(inside) - truth(inside), axis=1)
    marks = read_landmarks(work / "landmarks.csv").select(rater="truth")
    at_er = evaluate_landmarks(result.transform, marks)
    determinant = result.transform.determinant(inside)
    return {
        "seed": seed,
        "landmarks_mean_nm": float(np.mean(at_er.points.error_nm)),
        "volume_mean_nm": float(error.mean()),
        "volume_median_nm": float(np.median(error)),
        "volume_p95_nm": float(np.percentile(error, 95)),
        "folds": float((determinant * np.sign(np.median(determinant)) <= 0).mean()),
        "margin": result.orientation.margin,
        "attempts": len(result.attempts),
        "seconds": seconds,
        "cpu_seconds": cpu,
    }


def summary(rows: list[dict[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {"seeds": len(rows)}
    for key in ("landmarks_mean_nm", "volume_mean_nm"):
        values = np.array([float(str(row[key])) for row in rows])
        found[f"{key}: median over seeds"] = float(np.median(values))
        found[f"{key}: worst seed"] = float(values.max())
    found["seeds with folds"] = sum(float(str(row["folds"])) > 0 for row in rows)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--transforms", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--modality", choices=("palm", "sim"), default="palm")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--keep", type=Path, help="folder that keeps pairs and predictions")
    arguments = parser.parse_args()
    rows = []
    if arguments.json.is_file():
        rows = json.loads(arguments.json.read_text(encoding="utf-8"))["seeds"]
    for seed in range(len(rows), arguments.seeds):
        with tempfile.TemporaryDirectory() as temporary:
            kept = arguments.keep or Path(temporary)
            work = kept / f"{arguments.modality}-{seed}"
            work.mkdir(parents=True, exist_ok=True)
            rows.append(measure(seed, arguments.modality, arguments.transforms, work, kept))
        atomic_write_json(arguments.json, {"summary": summary(rows), "seeds": rows})
        print(rows[-1], flush=True)
    print(json.dumps(summary(rows), indent=1))


if __name__ == "__main__":
    main()
