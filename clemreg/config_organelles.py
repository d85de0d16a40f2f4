"""The configuration of `clemreg organelles`: frozen, read from TOML, unknown keys refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from clemreg.config import Section, XyzLength, read_config
from clemreg.errors import ClemregError
from clemreg.units import parse_length_nm


def _is_length(text: str) -> str:
    try:
        parse_length_nm(text)
    except ClemregError as error:
        raise ValueError(error.message) from error
    return text


Length = Annotated[str, AfterValidator(_is_length)]
# Names become names of folders.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Names = Annotated[tuple[Name, ...], Field(min_length=1)]


class PredictionInput(Section):
    """What is refined.

    Attributes
    ----------
    predictions
        A volume with named channels, or a folder or container with one volume an organelle;
        relative to the configuration file.
    organelles
        Which organelles of the recipe are made and measured.
    recipe
        Preset such as ``"heinrich2021/jrc_hela-2"``, or a TOML file.
    voxel_size
        ``"x, y, z unit"``; only to override what the files say.
    cell
        Mask of the cell; adds the fraction of it that each object fills.
    """

    predictions: str
    organelles: Names
    recipe: str = "generic"
    voxel_size: XyzLength | None = None
    cell: str | None = None


class MeasureConfig(Section):
    """Tables of morphology.

    Attributes
    ----------
    organelles
        Which; None: all.
    report
        Whether a page with histograms and pictures is written for each.
    """

    organelles: tuple[Name, ...] | None = None
    report: bool = True


class SkeletonConfig(Section):
    """Centre lines; as the options of `clemreg skeletonize`."""

    organelles: Names
    shortest_branch: Length = "80 nm"
    memory_gb: Annotated[float, Field(gt=0)] = 4.0


class ContactConfig(Section):
    """One kind of contact; as the options of `clemreg contacts`.

    Attributes
    ----------
    a, b
        Two organelles; without b: contacts within a.
    name
        Of the output; ``a_b`` if not given.
    """

    a: Name
    b: Name | None = None
    name: Name | None = None
    recipe: str | None = None
    distance: Length | None = None
    method: Literal["sight", "naive"] = "sight"
    overlap: Literal["shared", "a", "b"] | None = None
    min_volume_nm3: Annotated[float, Field(ge=0)] = 0.0

    @property
    def title(self) -> str:
        """Name of the output."""
        return self.name or f"{self.a}_{self.b or self.a}"


class PlanarityConfig(Section):
    """Sheets and tubes; as the options of `clemreg planarity`."""

    organelles: Names
    cut: Annotated[float, Field(gt=0, lt=1)] = 0.6
    scale_rule: Literal["heinrich2021", "exact"] = "heinrich2021"
    scales: Annotated[int, Field(ge=1)] = 12
    largest_radius: Length = "200 nm"
    curvature: bool = False


class MeshConfig(Section):
    """Surface meshes; as the options of `clemreg mesh`."""

    organelles: Names
    format: Literal["ply", "obj", "neuroglancer"] = "ply"
    smoothing: Annotated[int, Field(ge=0)] = 20
    keep: Annotated[float, Field(gt=0, le=1)] = 0.2
    memory_gb: Annotated[float, Field(gt=0)] = 4.0


class ComputeConfig(Section):
    """Who does the work; results do not depend on it.

    Attributes
    ----------
    executor
        ``serial``, ``threads``, ``processes``; Dask: ``local``, ``slurm``, ``lsf`` or an address.
    workers
        Threads, processes or jobs.
    block
        Voxels per block along each axis.
    """

    executor: str = "threads"
    workers: Annotated[int, Field(ge=1)] = 1
    block: Annotated[int, Field(ge=1)] = 128


class OrganellesOutput(Section):
    """Where results go; `dir` is relative to the configuration file."""

    dir: str = "organelles"
    title: str = "Organelles"


class OrganellesConfig(Section):
    """Everything that `clemreg organelles` needs; a part without a section is not done."""

    input: PredictionInput
    measure: MeasureConfig = MeasureConfig()
    skeletonize: SkeletonConfig | None = None
    contacts: tuple[ContactConfig, ...] = ()
    planarity: PlanarityConfig | None = None
    mesh: MeshConfig | None = None
    compute: ComputeConfig = ComputeConfig()
    output: OrganellesOutput = OrganellesOutput()

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        parts = {
            "measure": self.measure.organelles or (),
            "skeletonize": self.skeletonize.organelles if self.skeletonize else (),
            "contacts": [n for c in self.contacts for n in (c.a, c.b) if n is not None],
            "planarity": self.planarity.organelles if self.planarity else (),
            "mesh": self.mesh.organelles if self.mesh else (),
        }
        known = self.input.organelles
        for part, names in parts.items():
            if unknown := [name for name in names if name not in known]:
                raise ValueError(
                    f"{part} names {', '.join(unknown)}, but input.organelles has only "
                    f"{', '.join(known)}"
                )
            if part != "contacts" and (twice := _twice(names)):
                raise ValueError(f"{part} names {twice} twice")
        if twice := _twice(known):
            raise ValueError(f"input.organelles names {twice} twice")
        if twice := _twice(contact.title for contact in self.contacts):
            raise ValueError(f"two contacts are called {twice}; give one of them a name")
        return self

    @property
    def measured(self) -> tuple[str, ...]:
        """Organelles with a table of morphology."""
        chosen = self.measure.organelles
        return self.input.organelles if chosen is None else chosen


def load_organelles_config(path: Path, overrides: Sequence[str] = ()) -> OrganellesConfig:
    """Read a configuration as `clemreg.config.load_run_config` does.

    Raises
    ------
    MissingError
        There is no such file.
    ConfigError
        The TOML is broken, a key is unknown or a value impossible; every fault is listed.
    """
    page = "docs/how-to/organelles.md"
    return read_config(
        OrganellesConfig,
        path,
        overrides,
        absent=f"{page} shows one to start from",
        invalid=f"{page} lists every key with its default",
    )


def _twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
