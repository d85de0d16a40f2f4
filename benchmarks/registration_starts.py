"""Any start: random poses, scales, overlaps, missing mitochondria; is a wrong answer ever silent?

    python benchmarks/registration_starts.py --starts 100 --json starts.json
    python benchmarks/registration_starts.py --starts 15 --kind low-overlap --json low.json

``--kind mixed``: every third start is a thin tilted slab under a field larger than it, the rest are
blocks; 40 to 100 % of the EM lies in the field. ``low-overlap``: 10 to 40 % of it does.
``large-em``: the field lies in the EM and is a third to a half as wide. ``small-em``: all of the
EM lies in the field and covers 10 to 40 % of it. ``scale``: the scale is 20
to 30 % off. Each kind has its own seeds. Finished starts are kept in the JSON file, so that the
same command goes on where it was stopped. A start is right if half of the places in both volumes
are within 300 nm of the truth after the affine (the B-spline takes it from there), and the
handedness is that of the truth. A mirrored cell whose mirror was allowed is right, and the report
warns of it. ``--first 100`` draws starts that the search was not made on: 0 to 99 were looked at.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from clemreg.errors import ClemregError
from clemreg.io.atomic import atomic_write_json
from clemreg.register.features import prepare_fixed, prepare_moving
from clemreg.register.matching import Channel, Masks
from clemreg.register.newton import AffineFit, fit_affine
from clemreg.register.orientation import OrientationOptions, search_orientation
from clemreg.register.registration import scale_warnings
from clemreg.report.verdict import suspicions
from clemreg.simulate.deformation import DeformationOptions, random_deformation
from clemreg.simulate.tubes import TubeOptions, TubePair, simulate_tubes
from clemreg.space.grid import Box, Grid
from clemreg.space.transform import Affine, Chain, FloatArray
from clemreg.volume import Volume

RIGHT_NM = 300.0
LM_UM = (5.0, 9.5, 9.5)
EM_UM = 6.0
LOW_OVERLAP = 0.4  # of the EM in the field
FIRST_SEED = {
    "mixed": 0,
    "low-overlap": 20_000,
    "large-em": 30_000,
    "scale": 40_000,
    "small-em": 50_000,
}


@dataclass(frozen=True)
class Start:
    """One random start; lengths in um, angles in degrees."""

    seed: int
    kind: str
    search: str
    allow_mirror: bool
    mirrored: bool
    turned: bool
    angle: float
    tilt: float
    tilt_axis: float
    scale: float
    overlap: float
    thickness: float
    missing: float = 0.3
    spurious: float = 0.2
    em_um: float = EM_UM
    field_um: float = LM_UM[2]


def draw_start(seed: int, family: str = "mixed") -> Start:
    """Draw one start of a family; its seed is counted from 0."""
    seed += FIRST_SEED[family]
    rng = np.random.default_rng(1000 + seed)
    slab = seed % 3 == 0
    allow = bool(rng.integers(2))
    start = Start(
        seed=seed,
        kind="slab" if slab else "block",
        search="all" if seed % 5 == 1 else "in-plane",
        allow_mirror=allow,
        mirrored=allow and bool(rng.integers(2)),
        turned=bool(rng.integers(2)),
        angle=float(rng.uniform(0, 360)),
        tilt=float(rng.uniform(3, 10) if slab else rng.uniform(0, 30)),
        tilt_axis=float(rng.uniform(0, 360)),
        scale=float(rng.uniform(0.8, 1.2)),
        overlap=float(rng.uniform(0.4, 1.0)),
        thickness=float(rng.uniform(1.5, 2.5) if slab else rng.uniform(2.5, 3.5)),
    )
    if family == "low-overlap":
        return replace(start, overlap=float(rng.uniform(0.1, 0.4)))
    if family == "large-em":
        return replace(start, overlap=1.0, field_um=float(rng.uniform(3.0, 4.5)), em_um=9.0)
    if family == "small-em":
        width = EM_UM / start.scale / np.sqrt(rng.uniform(0.1, 0.4))
        return replace(start, overlap=1.0, field_um=float(width))
    if family == "scale":
        off = float(rng.uniform(1.2, 1.3))
        return replace(start, scale=off if rng.integers(2) else 1 / off)
    return start


def linear_of(start: Start, rng: np.random.Generator) -> FloatArray:
    """LM to EM, zyx."""
    linear = turn(2, start.tilt_axis).T @ turn(0, start.tilt) @ turn(2, start.tilt_axis)
    linear = linear @ turn(2, start.angle)
    if start.turned:
        linear = turn(0, 180.0) @ linear
    if start.search == "all":
        linear = turn(0, 90.0) @ linear
    if start.mirrored:
        linear = np.diag([-1.0, 1.0, 1.0]) @ linear
    return start.scale * linear @ np.diag(rng.uniform(0.97, 1.03, 3))


def turn(axis: int, degrees: float) -> FloatArray:
    """Rotation zyx about x (0), y (1) or z (2)."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.eye(3)
    i, j = [k for k in range(3) if k != axis]
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix[::-1, ::-1]


def simulate(start: Start) -> tuple[TubePair, Volume]:
    """Return the pair, and its light volume cut so that the EM overlaps it as asked for."""
    rng = np.random.default_rng(start.seed)
    spacing = (104.0, 52.0, 52.0)
    z, y, x = (round(1e3 * u / s) for u, s in zip(simulated_um(start), spacing, strict=True))
    lm = Grid((z, y, x), spacing, (400.0, -3000.0, 900.0), "lm")
    linear = linear_of(start, rng)
    centre = np.array([2500.0, -700.0, 6000.0])
    affine = Affine.from_linear(linear, centre - linear @ lm.centre_nm, "lm", "em")
    region = Grid((80, 130, 130), (100.0,) * 3, tuple(centre - [4000, 6500, 6500]), "em")
    options = DeformationOptions(displacement_nm=300.0)
    truth = Chain((affine, random_deformation(rng, region, options)))
    size = (start.thickness, start.em_um, start.em_um)
    if start.search == "all":
        size = (start.em_um, start.thickness, start.em_um)
    tubes = TubeOptions(
        missing=start.missing, spurious=start.spurious, em_spacing_nm=32.0, spacing_um=1.4
    )
    pair = simulate_tubes(rng, truth, lm, size, tubes)
    box = field_of(start, lm)
    return pair, Volume(pair.lm.read(box), lm.crop(box), name="mito")


def simulated_um(start: Start) -> tuple[float, float, float]:
    """Return the light volume zyx in um before it is cut: a small overlap needs a long one."""
    z, y, x = LM_UM
    if start.field_um > x:
        return z, start.field_um, start.field_um
    return (z, y, x) if start.overlap >= LOW_OVERLAP else (z, y, 2 * x)


def field_of(start: Start, lm: Grid) -> Box:
    """Return the part of the light volume that was imaged."""
    em_in_lm = start.em_um / start.scale * 1e3 / lm.spacing_nm[2]
    if start.field_um < LM_UM[2]:
        half = round(500.0 * start.field_um / lm.spacing_nm[2])
        y, x = lm.shape[1] // 2, lm.shape[2] // 2
        return Box((0, y - half, x - half), (lm.shape[0], y + half, x + half))
    first = max(0, int((lm.shape[2] - em_in_lm) / 2 + (1 - start.overlap) * em_in_lm))
    if start.overlap >= 0.97:
        return lm.box
    last = min(lm.shape[2], first + round(1e3 * LM_UM[2] / lm.spacing_nm[2]))
    return Box((0, 0, first), (*lm.shape[:2], last))


def measure(start: Start) -> dict[str, object]:
    pair, lm = simulate(start)
    fixed = prepare_fixed(lm)
    moving = prepare_moving(pair.prediction, lm.grid.spacing_nm)
    began, cpu = time.monotonic(), time.process_time()
    options = OrientationOptions(search=start.search, allow_mirror=start.allow_mirror)
    try:
        pose = search_orientation(fixed, moving, options)
        affine = fit_affine([Channel(fixed, moving)], Masks(), pose.affine, AffineFit(), 0)
    except ClemregError as error:
        return {**asdict(start), "outcome": "refused", "why": error.message}
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    points = pair.points_nm[lm.grid.contains(pair.points_nm)]
    error = np.linalg.norm(affine(points) - pair.truth(points), axis=1)
    right = float(np.median(error)) < RIGHT_NM and affine.is_mirrored == start.mirrored
    flags = suspicions(
        {
            "orientation": {
                "score": pose.score,
                "margin": pose.margin,
                "mirrored": pose.mirrored,
            },
            "affine": {
                "matrix": affine.matrix,
                "singular_values": affine.singular_values,
                "warnings": scale_warnings(affine),
            },
        }
    )
    outcome = "right" if right else "flagged" if flags else "silent-wrong"
    return {
        **asdict(start),
        "outcome": outcome,
        "median_nm": float(np.median(error)),
        "start_nm": float(
            np.median(np.linalg.norm(pose.affine(points) - pair.truth(points), axis=1))
        ),
        "score": pose.score,
        "margin": pose.margin,
        "flags": list(flags),
        "seconds": seconds,
        "cpu_seconds": cpu,
    }


def finished(path: Path | None) -> dict[int, dict[str, object]]:
    if path is None or not path.is_file():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))["starts"]
    return {int(row["seed"]): row for row in rows}


def summary(rows: list[dict[str, object]]) -> dict[str, object]:
    counts = {
        name: sum(row["outcome"] == name for row in rows)
        for name in ("right", "flagged", "refused", "silent-wrong")
    }
    times = [float(str(row["cpu_seconds"])) for row in rows if "cpu_seconds" in row]
    slabs = [row for row in rows if row["kind"] == "slab"]
    return {
        "starts": len(rows),
        **counts,
        "slabs": len(slabs),
        "slabs_right": sum(row["outcome"] == "right" for row in slabs),
        "right_but_flagged": sum(
            row["outcome"] == "right" and bool(row["flags"]) and not row["mirrored"] for row in rows
        ),
        "median_cpu_seconds": float(np.median(times)) if times else None,
    }


def measured(numbers: range, family: str, path: Path | None) -> Iterator[dict[str, object]]:
    done = finished(path)
    for start in (draw_start(number, family) for number in numbers):
        if start.seed not in done:
            done[start.seed] = measure(start)
            rows = [done[seed] for seed in sorted(done)]
            if path is not None:
                atomic_write_json(path, {"summary": summary(rows), "starts": rows})
        yield done[start.seed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--starts", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first start")
    parser.add_argument("--kind", choices=FIRST_SEED, default="mixed")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    numbers = range(arguments.first, arguments.first + arguments.starts)
    for row in measured(numbers, arguments.kind, arguments.json):
        rows.append(row)
        keys = ("seed", "kind", "search", "mirrored", "tilt", "scale", "overlap", "outcome")
        words = [f"{k}={row[k]:.2f}" if isinstance(row[k], float) else f"{row[k]}" for k in keys]
        numbers = [f"{k}={row[k]:.2f}" for k in ("median_nm", "score", "margin", "cpu_seconds")
                   if k in row]  # fmt: skip
        print(*words, *numbers, flush=True)
    print(json.dumps(summary(rows), indent=1))


if __name__ == "__main__":
    main()
