"""``clemreg simulate``: what was typed becomes a pair, or predictions, with known truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError
from clemreg.io.atomic import atomic_write_text, put_in_place, remove
from clemreg.io.skeletons import Skeleton, write_skeleton
from clemreg.io.volumes import WriteOptions, open_labels, open_volume, write_volume
from clemreg.io.xyz import flip
from clemreg.simulate.deformation import DeformationOptions
from clemreg.simulate.light import MICROSCOPES
from clemreg.simulate.organelles import MICROTUBULE_NM, DrawnOrganelles, draw_organelles
from clemreg.simulate.pair import PairOptions, simulate_clem, simulate_from_labels
from clemreg.space.transform import Transform
from clemreg.units import given_xyz_nm, parse_xyz_nm

OUTPUTS = ("em.zarr", "em_labels.zarr", "lm.zarr", "truth.json", "landmarks.csv", "config.toml")
ORGANELLES = (
    "predictions.zarr", "mito.zarr", "cell.zarr", "microtubules.nml", "ribosomes.csv",
    "recipe.toml", "cell.toml",
)  # fmt: skip
RECIPE = """\
base = "heinrich2021/jrc_hela-2"

[organelles.ne]                      # there is no nucleus to look around
steps = [{ do = "threshold" }, { do = "components", min_volume_nm3 = 3e5 }]
"""
CELL = """\
[input]
predictions = "predictions.zarr"
organelles = ["mito", "er", "ne"]
recipe = "recipe.toml"
cell = "cell.zarr"

[microtubules]

[ribosomes]
planarity = "er"
nuclear_envelope = "ne"

[skeletonize]
organelles = ["mito"]

[[contacts]]
a = "er"
b = "mito"
distance = "20 nm"

[[contacts]]
a = "er"
b = "mt"
recipe = "er_mt"

[[contacts]]
a = "mito"
b = "mt"
recipe = "mito_mt"

[planarity]
organelles = ["er"]
largest_radius = "50 nm"             # nothing here is thicker; less to read and to smooth
scales = 9

[[reconstruct]]
of = "er"

[mesh]
organelles = ["mito"]
keep = 1.0

[output]
dir = "organelles"
title = "A drawn piece of cell"
"""


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
    _check_seed(command.seed)
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
    with _made(command.out, OUTPUTS) as made:
        return _simulate(command, made, options, progress)


def simulate_organelles(out: Path, seed: int, progress: Progress | None = None) -> DrawnOrganelles:
    """Write predictions of a drawn piece of cell, the truth, and a configuration to run on them.

    Returns
    -------
    DrawnOrganelles
        What was drawn.

    Raises
    ------
    ConfigError
        The seed is below 0.
    """
    _check_seed(seed)
    tell = progress or (lambda _done, _total, _message: None)
    tell(0, 2, "drawing")
    drawn = draw_organelles(np.random.default_rng(seed))
    tell(1, 2, "writing")
    with _made(out, ORGANELLES) as made:
        write_volume(made / "predictions.zarr", drawn.predictions)
        for name, labels in (("mito", drawn.mitochondria), ("cell", drawn.cell)):
            write_volume(made / f"{name}.zarr", labels, options=WriteOptions(labels=True))
        lines = Skeleton.of_lines(drawn.microtubules_nm, MICROTUBULE_NM)
        write_skeleton(lines, made / "microtubules.nml", unit="nm")
        atomic_write_text(made / "ribosomes.csv", _ribosome_table(drawn))
        atomic_write_text(made / "recipe.toml", RECIPE)
        atomic_write_text(made / "cell.toml", CELL)
    tell(2, 2, "done")
    return drawn


def _ribosome_table(drawn: DrawnOrganelles) -> str:
    rows = [
        ",".join([*(f"{value:.3f}" for value in place), name])
        for name, places in drawn.ribosomes_nm.items()
        for place in flip(places)
    ]
    return "\n".join(["x_nm,y_nm,z_nm,class", *rows, ""])


@contextmanager
def _made(out: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield a folder for files that go to `out` when all are made."""
    made = out / ".simulate.partial"
    remove(made)
    made.mkdir(parents=True)
    try:
        yield made
        for name in names:
            put_in_place(made / name, out / name)
    finally:
        remove(made)


def _simulate(
    command: SimulateCommand, out: Path, options: PairOptions, progress: Progress | None
) -> Transform:
    if command.em is None or command.labels is None:
        return simulate_clem(out, options, progress)
    spacing = given_xyz_nm(command.spacing)
    em = open_volume(command.em, spacing_nm=spacing, frame="em")
    labels = open_labels(command.labels, spacing_nm=spacing, frame="em")
    return simulate_from_labels(out, em, labels, options, progress)


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise ConfigError(f"--seed {seed}: a whole number from 0 is needed")


def _shape(text: str) -> tuple[int, int, int]:
    try:
        x, y, z = (int(v) for v in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--em-shape {text!r}: three whole numbers x,y,z are needed") from error
    return z, y, x
