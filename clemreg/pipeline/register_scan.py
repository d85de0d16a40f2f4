"""``clemreg register --scan``: many registrations from one start pose, a table and a plot."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from clemreg import __version__
from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError
from clemreg.evaluate.landmarks import evaluate_landmarks
from clemreg.evaluate.stability import evaluate_stability
from clemreg.io.atomic import atomic_path, atomic_write_json, atomic_write_text
from clemreg.io.points import read_landmarks
from clemreg.io.transforms import transform_from_json, transform_to_json
from clemreg.pipeline.register import (
    Prepared,
    RegisterCommand,
    StageChoice,
    options_of,
    prepare_files,
    split_channel,
)
from clemreg.pipeline.steps import input_fingerprint, one_run_at_a_time
from clemreg.register.elastix_keys import KNOWN_KEYS
from clemreg.register.matching import draw_samples
from clemreg.register.orientation import Orientation
from clemreg.register.registration import RegisterOptions, RegistrationResult, register
from clemreg.report.scan import scan_figure
from clemreg.report.verdict import suspicions
from clemreg.space.grid import Triple
from clemreg.space.landmarks import Landmarks
from clemreg.space.transform import Affine

_STAGE_KEYS = ("grid_spacing_um", "bending_weight")
_REPEATS = 2


@dataclass(frozen=True)
class ScanAxis:
    """One parameter and the values it takes.

    Attributes
    ----------
    key
        ``grid_spacing_um``, ``bending_weight``, ``seed``, or a key of elastix's parameters.
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
    if key not in known and key not in KNOWN_KEYS:
        raise ConfigError(
            f"cannot scan {key!r}", hint=f"one of {', '.join(known)}, or a key of elastix"
        )
    try:
        values = tuple(float(v) for v in rest.split(","))
    except ValueError:
        raise ConfigError(f"--scan {text!r} is not of the form KEY=V1,V2,...") from None
    if not equals or not values:
        raise ConfigError(f"--scan {text!r} is not of the form KEY=V1,V2,...")
    if not all(map(math.isfinite, values)):
        raise ConfigError(f"--scan {text!r}: a value is not finite")
    if len(set(map(_text, values))) < len(values):
        raise ConfigError(f"--scan {text!r} gives a value twice")
    if key == "seed":
        if any(v < 0 or v != round(v) for v in values):
            raise ConfigError(f"--scan {text!r}: seeds are whole numbers from 0 on")
        values = tuple(int(v) for v in values)
    return ScanAxis(key, values)


def _text(value: float) -> str:
    return f"{value:.15g}"


def scan_files(
    command: RegisterCommand,
    axes: Sequence[ScanAxis],
    held_out: Path | None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Register with every combination; write ``scan.csv``, ``scan.json`` and ``scan.png``.

    The pose is searched once. With `held_out` landmarks each row has their error; without, how far
    two more seeds move the result. Every combination has a folder with its transform; a scan that
    was stopped goes on with the combinations that are missing.

    Raises
    ------
    ConfigError
        A parameter is scanned twice, or `held_out` are the landmarks that are fitted.
    StorageError
        Another scan writes to the same folder.
    """
    keys = [axis.key for axis in axes]
    if len(set(keys)) < len(keys):
        raise ConfigError(f"--scan names a parameter twice: {', '.join(keys)}")
    chosen = [
        dict(zip(keys, values, strict=True))
        for values in itertools.product(*(axis.values for axis in axes))
    ]
    commands = [_changed(command, values) for values in chosen]
    for one in commands:
        options_of(one)  # refuses bad values before anything runs
    rows: list[dict[str, Any]] = []
    with one_run_at_a_time(command.out):
        scan = _Scan(command, held_out)
        for number, (values, one) in enumerate(zip(chosen, commands, strict=True)):
            if progress is not None:
                words = ", ".join(f"{key}={_text(value)}" for key, value in values.items())
                progress(number, len(commands), words)
            name = "_".join(f"{key}={_text(value)}" for key, value in values.items())
            rows.append({**values, **scan.row(one, name)})
        if progress is not None:
            progress(len(commands), len(commands), "done")
        table = {"axes": {axis.key: list(axis.values) for axis in axes}, "rows": rows}
        _write(command.out, keys, table)
    return table


class _Scan:
    """Registrations from one start pose; what is finished is on disk and not done again."""

    def __init__(self, command: RegisterCommand, held_out: Path | None) -> None:
        self._command, self._held_out = command, held_out
        self._marks = None if held_out is None else read_landmarks(held_out)
        guides = command.guides
        if self._marks is not None and held_out is not None and guides.landmarks is not None:
            same = held_out.resolve() == guides.landmarks.resolve()
            if same and "fit" not in self._marks.role:
                raise ConfigError(
                    f"{held_out} is fitted and held out: what is fitted proves nothing",
                    hint="give some rows the role fit, or keep two tables",
                )
        files = [command.fixed, command.moving, guides.fixed_mask, guides.moving_mask, command.ecs]
        files += [split_channel(text)[1] for text in guides.also]
        more = (guides.landmarks, held_out, *command.stages.params)
        self._inputs = [input_fingerprint(file) for file in (*files, *more)]

    def row(self, command: RegisterCommand, name: str) -> dict[str, Any]:
        """Return the figures of one combination, whose files are in the folder `name`."""
        folder = self._command.out / name
        path, job = folder / "row.json", self._job(command)
        if _kept(path, job) is None:
            offset_nm = command.guides.fixed_offset_nm
            result, found = _measured(self._ready, options_of(command), self._marks, offset_nm)
            self._keep_pose(result.orientation)
            result.save(folder, self._ready.fixed.grid)
            atomic_write_json(path, {"job": job, "kept": found})
        kept = _kept(path, job)
        assert kept is not None
        return {**kept, "transform": f"{name}/transform.json"}

    @cached_property
    def _ready(self) -> Prepared:
        ready = prepare_files(self._command)
        kept = _kept(self._pose_path, self._pose_job)
        if kept is None:
            return ready
        affine = transform_from_json(kept.pop("affine"), where=str(self._pose_path))
        assert isinstance(affine, Affine)
        return _from_pose(ready, Orientation(affine, **kept))

    def _keep_pose(self, pose: Orientation) -> None:
        """Start all others from a pose that was searched."""
        if self._ready.guides.pose is not None or math.isnan(pose.score):
            return
        record = {f.name: getattr(pose, f.name) for f in fields(pose)}
        record["affine"] = transform_to_json(pose.affine)
        atomic_write_json(self._pose_path, {"job": self._pose_job, "kept": record})
        self._ready = _from_pose(self._ready, pose)

    @property
    def _pose_path(self) -> Path:
        return self._command.out / "start.json"

    @property
    def _pose_job(self) -> str:
        return self._job(replace(self._command, stages=StageChoice(), seed=0))

    def _job(self, command: RegisterCommand) -> str:
        """Identify what a combination depends on."""
        text = repr((__version__, replace(command, out=Path()), self._inputs))
        return hashlib.sha256(text.encode()).hexdigest()


def _from_pose(ready: Prepared, pose: Orientation) -> Prepared:
    return replace(ready, guides=replace(ready.guides, pose=pose))


def _kept(path: Path, job: str) -> dict[str, Any] | None:
    """Read what was kept of just this job."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return dict(record["kept"]) if record.get("job") == job else None


def _changed(command: RegisterCommand, values: dict[str, float]) -> RegisterCommand:
    stages: dict[str, Any] = {k: v for k, v in values.items() if k in _STAGE_KEYS}
    seed = int(values.get("seed", command.seed))
    keys = tuple((k, v) for k, v in values.items() if k in KNOWN_KEYS)
    return replace(command, seed=seed, stages=replace(command.stages, overrides=keys, **stages))


def _measured(
    ready: Prepared,
    options: RegisterOptions,
    marks: Landmarks | None,
    offset_nm: Triple,
) -> tuple[RegistrationResult, dict[str, Any]]:
    began = time.monotonic()
    options = replace(options, stability_seeds=0 if marks is not None else _REPEATS)
    result = register(ready.fixed, ready.moving, options, guides=ready.guides)
    row: dict[str, Any] = {}
    if marks is not None:
        tre = evaluate_landmarks(result.transform, marks, fixed_offset_nm=offset_nm).tre
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
        "suspicions": " ".join(suspicions(result.to_json())),
    }
    return result, row


def _write(out: Path, keys: Sequence[str], table: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    columns = dict.fromkeys(key for row in table["rows"] for key in row)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table["rows"])
    atomic_write_text(out / "scan.csv", text.getvalue())
    atomic_write_json(out / "scan.json", table)
    measured = "tre_mean_nm" if "tre_mean_nm" in table["rows"][0] else "stability_rms_nm"
    with atomic_path(out / "scan.png") as partial:
        partial.write_bytes(scan_figure(table["rows"], tuple(keys), measured))
