"""``clemreg simulate clem``: what was typed becomes a simulated pair."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError
from clemreg.io.atomic import put_in_place, remove
from clemreg.io.volumes import open_labels, open_volume
from clemreg.simulate.deformation import DeformationOptions
from clemreg.simulate.light import MICROSCOPES
from clemreg.simulate.pair import PairOptions, simulate_clem, simulate_from_labels
from clemreg.space.transform import Transform
from clemreg.units import given_xyz_nm, parse_xyz_nm

OUTPUTS = ("em.zarr", "em_labels.zarr", "lm.zarr", "truth.json", "landmarks.csv", "config.toml")


@dataclass(frozen=True)
class SimulateCommand:
    """What ``clemreg simulate clem`` was told; sizes as typed (x, y, z)."""

    out: Path
    seed: int = 0
    microscope: str = "palm"
    em_shape: str = "400,384,160"
    em_spacing: str = "16,16,16 nm"
    rotation_deg: float = 17.0
    transform: Path | None = None
    em: Path | None = None
    labels: Path | None = None
    spacing: str | None = None


def simulate(command: SimulateCommand, progress: Progress | None = None) -> Transform:
    """Write the pair and return the true transform LM to EM.

    Its files appear when all are made, so that one that is killed leaves none in the way.

    Raises
    ------
    ConfigError
        Options that do not go together.
    """
    if command.microscope not in MICROSCOPES:
        raise ConfigError(f"no microscope {command.microscope!r}", hint="palm or sim")
    options = PairOptions(
        seed=command.seed,
        em_shape=_shape(command.em_shape),
        em_spacing_nm=parse_xyz_nm(command.em_spacing),
        microscope=command.microscope,
        deformation=DeformationOptions(rotation_deg=command.rotation_deg),
        transform=None if command.transform is None else str(command.transform),
    )
    if (command.em is None) != (command.labels is None):
        raise ConfigError("--em and --labels go together")
    made = command.out / ".clem.partial"
    remove(made)
    made.mkdir(parents=True)
    try:
        truth = _simulate(command, made, options, progress)
        for name in OUTPUTS:
            put_in_place(made / name, command.out / name)
    finally:
        remove(made)
    return truth


def _simulate(
    command: SimulateCommand, out: Path, options: PairOptions, progress: Progress | None
) -> Transform:
    if command.em is None or command.labels is None:
        return simulate_clem(out, options, progress)
    spacing = given_xyz_nm(command.spacing)
    em = open_volume(command.em, spacing_nm=spacing, frame="em")
    labels = open_labels(command.labels, spacing_nm=spacing, frame="em")
    return simulate_from_labels(out, em, labels, options, progress)


def _shape(text: str) -> tuple[int, int, int]:
    try:
        x, y, z = (int(v) for v in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--em-shape {text!r}: three whole numbers x,y,z are needed") from error
    return z, y, x
