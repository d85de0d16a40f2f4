"""clemreg against ANTs SyN, greedy and elastix's defaults: same images, same start, same places.

    python benchmarks/registration_peers.py --venv peers-venv --seeds 3 --json peers.json

The peers are installed into a virtual environment of their own. They get clemreg's prepared images
and, since none of them searches poses, clemreg's start pose for free; clemreg's time includes the
search. Every peer brings images of the coordinates along with its transform, so that no convention
of theirs has to be known. Simulated tubes deformed by a smooth random field. What is in the JSON
file is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from clemreg.errors import ClemregError
from clemreg.io.atomic import atomic_write_json
from clemreg.io.xyz import flip, flip_matrix
from clemreg.register.elastix import ElastixJob, run_elastix
from clemreg.register.features import prepare_fixed, prepare_moving
from clemreg.register.registration import RegisterOptions, register
from clemreg.simulate.deformation import DeformationOptions, random_transform
from clemreg.simulate.tubes import TubeOptions, TubePair, simulate_tubes
from clemreg.space.grid import Grid
from clemreg.space.resample import sample_array
from clemreg.space.transform import Affine, FloatArray
from clemreg.volume import Volume

PEERS = ("ants", "greedy", "elastix")
AXES = "xyz"
OUTSIDE_NM = 1e5  # the peers' coordinates outside the moving image are 1e6 um
PACKAGES = ("antspyx", "picsl-greedy")


def environment(folder: Path) -> Path:
    """Make the peers' environment if it is not there; return its Python."""
    python = folder / "bin" / "python"
    if not python.is_file():
        venv.create(folder, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return python


def simulate(seed: int) -> TubePair:
    rng = np.random.default_rng(seed)
    lm = Grid((48, 150, 150), (104.0, 52.0, 52.0), (0.0, 0.0, 0.0), "lm")
    region = Grid((60, 100, 100), (100.0,) * 3, (500.0, -2000.0, 900.0), "em")
    truth = random_transform(rng, lm.centre_nm, region, DeformationOptions(displacement_nm=350.0))
    return simulate_tubes(rng, truth, lm, (2.6, 5.5, 5.5), TubeOptions(spacing_um=1.2))


def write_image(array: np.ndarray, grid: Grid, path: Path) -> None:
    image = sitk.GetImageFromArray(array.astype(np.float32))
    image.SetSpacing([float(v) for v in flip(grid.spacing_nm) / 1e3])
    image.SetOrigin([float(v) for v in flip(grid.origin_nm) / 1e3])
    sitk.WriteImage(image, str(path))


def write_inputs(fixed: Volume, moving: Volume, start: Affine, folder: Path) -> None:
    write_image(fixed.read(), fixed.grid, folder / "fixed.nii")
    write_image(moving.read(), moving.grid, folder / "moving.nii")
    coordinates = moving.grid.points_nm()[..., ::-1] / 1e3
    for index, axis in enumerate(AXES):
        write_image(coordinates[..., index], moving.grid, folder / f"coordinate_{axis}.nii")
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = flip_matrix(start.linear), flip(start.offset_nm) / 1e3
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation(matrix[:3, 3].tolist())
    sitk.WriteTransform(transform, str(folder / "start.tfm"))
    ras = np.diag([-1.0, -1.0, 1.0, 1.0])  # greedy's matrices are in the NIfTI convention
    np.savetxt(folder / "start.mat", ras @ matrix @ ras, fmt="%.12g")


def run_peer(name: str, python: Path, folder: Path, grid: Grid, points: FloatArray) -> dict:
    worker = Path(__file__).with_name("peer_workers.py")
    variables = {**os.environ, "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "2"}
    before = children_seconds()
    log = subprocess.run(
        [str(python), str(worker), name, str(folder)],
        env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if log.returncode:
        return {"error": (log.stderr or log.stdout)[-300:]}
    arrived = []
    for axis in AXES:
        image = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{name}_{axis}.nii")))
        arrived.append(sample_array(image.astype(np.float64), grid, points) * 1e3)
    seconds = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["seconds"]
    there = np.stack(arrived[::-1], axis=-1)
    return {"there": there, "seconds": seconds, "cpu_seconds": children_seconds() - before}


def run_elastix_defaults(
    fixed: Volume, moving: Volume, start: Affine, folder: Path, points: FloatArray
) -> dict:
    """Affine and B-spline with the values that elastix itself proposes."""
    common = {
        "FixedImagePyramid": ["FixedSmoothingImagePyramid"],
        "MovingImagePyramid": ["MovingSmoothingImagePyramid"],
        "Interpolator": ["LinearInterpolator"],
        "ResampleInterpolator": ["FinalBSplineInterpolator"],
        "Resampler": ["DefaultResampler"],
        "Optimizer": ["AdaptiveStochasticGradientDescent"],
        "ImageSampler": ["RandomCoordinate"],
        "NumberOfResolutions": ["4"],
        "MaximumNumberOfIterations": ["256"],
        "NumberOfSpatialSamples": ["2048"],
        "NewSamplesEveryIteration": ["true"],
        "CheckNumberOfSamples": ["true"],
        # The light field is wider than the EM; with the default of 0.25 elastix gives up.
        "RequiredRatioOfValidSamples": ["0.05"],
        "HowToCombineTransforms": ["Compose"],
        "WriteResultImage": ["false"],
    }
    affine = common | {
        "Registration": ["MultiResolutionRegistration"],
        "Transform": ["AffineTransform"],
        "AutomaticScalesEstimation": ["true"],
        "Metric": ["AdvancedMattesMutualInformation"],
    }
    bspline = common | {
        "Registration": ["MultiMetricMultiResolutionRegistration"],
        "Transform": ["BSplineTransform"],
        "Metric": ["AdvancedMattesMutualInformation", "TransformBendingEnergyPenalty"],
        "Metric0Weight": ["1"],
        "Metric1Weight": ["1"],
        "FinalGridSpacingInPhysicalUnits": ["10"],
    }
    before = children_seconds()
    job = ElastixJob(fixed, moving, (affine, bspline), None, start)
    try:
        run = run_elastix(job, folder, threads=2)
    except ClemregError as error:
        return {"error": error.message}
    cpu = children_seconds() - before
    return {"there": run.transform(points), "seconds": run.seconds, "cpu_seconds": cpu}


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


Row = dict[str, object]


def measure(
    seed: int, python: Path, peers: Sequence[str], rows: dict[str, Row]
) -> Iterator[dict[str, Row]]:
    """Add the rows that are missing, one after the other."""
    pair = simulate(seed)
    fixed = prepare_fixed(pair.lm)
    moving = prepare_moving(pair.prediction, pair.lm.grid.spacing_nm)
    points, truth = pair.points_nm, pair.truth(pair.points_nm)
    began, cpu = time.monotonic(), time.process_time()
    ours = register(fixed, moving, RegisterOptions(threads=2))
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    start = ours.orientation.affine
    rows = {
        **rows,
        "clemreg": {
            **errors(ours.transform(points), truth),
            "seconds": seconds,
            "cpu_seconds": cpu,
        },
        "start pose": errors(start(points), truth),
    }
    yield rows
    for name in (peer for peer in peers if peer not in rows):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_inputs(fixed, moving, start, folder)
            if name == "elastix":
                found = run_elastix_defaults(fixed, moving, start, folder / "e", points)
            else:
                found = run_peer(name, python, folder, fixed.grid, points)
        there = found.pop("there", None)
        rows = {**rows, name: {**found, **({} if there is None else errors(there, truth))}}
        yield rows


def errors(there: FloatArray, truth: FloatArray) -> dict[str, object]:
    """Errors of the points that arrived inside the EM, and the share that did not."""
    distance = np.linalg.norm(there - truth, axis=1)
    arrived = distance < OUTSIDE_NM
    distance = distance[arrived]
    return {
        "median_nm": float(np.median(distance)),
        "mean_nm": float(distance.mean()),
        "lost": 1.0 - float(arrived.mean()),
    }


def summary(runs: list[dict[str, Row]]) -> dict[str, object]:
    table: dict[str, object] = {}
    for name in ("start pose", "clemreg", *PEERS):
        rows = [run[name] for run in runs if "median_nm" in run.get(name, {})]
        keys = [
            k
            for k in ("median_nm", "mean_nm", "lost", "seconds", "cpu_seconds")
            if rows and k in rows[0]
        ]
        table[name] = {k: float(np.median([float(str(r[k])) for r in rows])) for k in keys}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--venv", type=Path, default=Path("peers-venv"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    python = environment(arguments.venv)
    runs = []
    if arguments.json and arguments.json.is_file():
        runs = json.loads(arguments.json.read_text(encoding="utf-8"))["runs"]
    for seed in range(arguments.seeds):
        if seed < len(runs) and all(peer in runs[seed] for peer in arguments.peers):
            continue
        runs[seed:] = runs[seed:] or [{}]
        for rows in measure(seed, python, arguments.peers, runs[seed]):
            runs[seed] = rows
            print(seed, json.dumps(rows), flush=True)
            if arguments.json:
                atomic_write_json(arguments.json, {"summary": summary(runs), "runs": runs})
    print(json.dumps(summary(runs), indent=1))


if __name__ == "__main__":
    sys.exit(main())
