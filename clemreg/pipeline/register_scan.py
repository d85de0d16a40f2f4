"""``clemreg register --scan``: many registrations from one start pose, a table and a plot."""

from __future__ import annotations

import csv
import io
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError
from clemreg.evaluate.landmarks import evaluate_landmarks
from clemreg.evaluate.stability import evaluate_stability
from clemreg.io.atomic import atomic_path, atomic_write_json, atomic_write_text
from clemreg.io.points import read_landmarks
from clemreg.pipeline.register import Prepared, RegisterCommand, options_of, prepare_files
from clemreg.register.matching import draw_samples
from clemreg.register.registration import RegisterOptions, RegistrationResult, register
from clemreg.report.scan import scan_figure
from clemreg.space.landmarks import Landmarks

_STAGE_KEYS = ("grid_spacing_um", "bending_weight")
_REPEATS = 2


@dataclass(frozen=True)
class ScanAxis:
    """One parameter and the values it takes.

    Attributes
    ----------
    key
        ``grid_spacing_um``, ``bending_weight`` or ``seed``.
    values
        In the order given.
    """

    key: str
    values: tuple[float, ...]


def parse_axis(text: str) -> ScanAxis:
    """Read ``KEY=V1,V2,...``.

    Raises
    ------
    ConfigError
        The key cannot be scanned, or a value is no number.
    """
    key, equals, rest = text.partition("=")
    known = (*_STAGE_KEYS, "seed")
    if key not in known:
        raise ConfigError(f"cannot scan {key!r}", hint=f"one of {', '.join(known)}")
    try:
        values = tuple(float(v) for v in rest.split(","))
    except ValueError:
        raise ConfigError(f"--scan {text!r} is not of the form KEY=V1,V2,...") from None
    if not equals or not values:
        raise ConfigError(f"--scan {text!r} is not of the form KEY=V1,V2,...")
    if key == "seed" and any(v < 0 or v != round(v) for v in values):
        raise ConfigError(f"--scan {text!r}: seeds are whole numbers from 0 on")
    return ScanAxis(key, values)


def scan_files(
    command: RegisterCommand,
    axes: Sequence[ScanAxis],
    held_out: Path | None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Register with every combination; write ``scan.csv``, ``scan.json`` and ``scan.png``.

    The pose is searched once. With `held_out` landmarks each row has their error; without, how far
    two more seeds move the result.

    Raises
    ------
    ConfigError
        A parameter is scanned twice.
    """
    keys = [axis.key for axis in axes]
    if len(set(keys)) < len(keys):
        raise ConfigError(f"--scan names a parameter twice: {', '.join(keys)}")
    combinations = list(itertools.product(*(axis.values for axis in axes)))
    commands = [_changed(command, dict(zip(keys, c, strict=True))) for c in combinations]
    options = [options_of(one) for one in commands]  # refuses bad values before anything runs
    marks = None if held_out is None else read_landmarks(held_out)
    ready = prepare_files(command)
    rows: list[dict[str, Any]] = []
    for number, (values, one) in enumerate(zip(combinations, options, strict=True)):
        chosen = dict(zip(keys, values, strict=True))
        if progress is not None:
            words = ", ".join(f"{key}={value:g}" for key, value in chosen.items())
            progress(number, len(options), words)
        found, row = _measured(ready, one, marks)
        if ready.guides.pose is None:
            ready = replace(ready, guides=replace(ready.guides, pose=found.orientation))
        rows.append({**chosen, **row})
    if progress is not None:
        progress(len(options), len(options), "done")
    table = {"axes": {axis.key: list(axis.values) for axis in axes}, "rows": rows}
    _write(command.out, keys, table)
    return table


def _changed(command: RegisterCommand, values: dict[str, float]) -> RegisterCommand:
    stages: dict[str, Any] = {k: v for k, v in values.items() if k in _STAGE_KEYS}
    seed = int(values.get("seed", command.seed))
    return replace(command, seed=seed, stages=replace(command.stages, **stages))


def _measured(
    ready: Prepared, options: RegisterOptions, marks: Landmarks | None
) -> tuple[RegistrationResult, dict[str, Any]]:
    began = time.monotonic()
    options = replace(options, stability_seeds=0 if marks is not None else _REPEATS)
    result = register(ready.fixed, ready.moving, options, guides=ready.guides)
    row: dict[str, Any] = {}
    if marks is not None:
        tre = evaluate_landmarks(result.transform, marks).tre
        row |= {
            "tre_mean_nm": tre.mean_nm,
            "tre_median_nm": tre.median_nm,
            "tre_p95_nm": tre.p95_nm,
        }
    else:
        rng = np.random.default_rng(0)
        channel = ready.channel
        points = draw_samples(rng, channel, ready.guides.masks, result.affine, 3000, 0.0)
        spread = evaluate_stability([result.transform, *result.repeats], points)
        row |= {"stability_rms_nm": spread.rms_nm, "stability_p95_nm": spread.p95_nm}
    low, high = result.attempts[-1]
    row |= {
        "score": result.scores["final"],
        "volume_change_min": low,
        "volume_change_max": high,
        "stiffened": len(result.attempts) - 1,
        "seconds": round(time.monotonic() - began, 2),
    }
    return result, row


def _write(out: Path, keys: Sequence[str], table: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table["rows"][0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table["rows"])
    atomic_write_text(out / "scan.csv", text.getvalue())
    atomic_write_json(out / "scan.json", table)
    measured = "tre_mean_nm" if "tre_mean_nm" in table["rows"][0] else "stability_rms_nm"
    with atomic_path(out / "scan.png") as partial:
        partial.write_bytes(scan_figure(table["rows"], tuple(keys), measured))
