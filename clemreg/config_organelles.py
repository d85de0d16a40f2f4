"""The configuration of `clemreg organelles`: frozen, read from TOML, unknown keys refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from clemreg.config import Section, XyzLength, read_config, readable_by
from clemreg.units import parse_length_nm

Length = Annotated[str, readable_by(parse_length_nm)]
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

    def side(self, name: str) -> str:
        """Name of what is measured on the side of organelle `name`."""
        return f"{self.title}-{name}"


class PlanarityConfig(Section):
    """Sheets and tubes; as the options of `clemreg planarity`.

    Attributes
    ----------
    report
        Whether a page with histograms is written for each.
    """

    organelles: Names
    cut: Annotated[float, Field(gt=0, lt=1)] = 0.6
    scale_rule: Literal["heinrich2021", "exact"] = "heinrich2021"
    scales: Annotated[int, Field(ge=1)] = 12
    largest_radius: Length = "200 nm"
    curvature: bool = False
    report: bool = True


class ReconstructConfig(Section):
    """An organelle as its planarity reconstructs it; the paper's "er reconstructed".

    Attributes
    ----------
    of
        Organelle under `planarity`.
    name
        By which other sections name it; ``of-reconstructed`` if not given.
    remove_inside, expand
        Organelle whose surroundings are left out: the nucleus, for the peripheral ER.
    """

    of: Name
    name: Name | None = None
    remove_inside: Name | None = None
    expand: Length = "0 nm"

    @property
    def title(self) -> str:
        """Name of the output."""
        return self.name or f"{self.of}-reconstructed"


class MeshConfig(Section):
    """Surface meshes; as the options of `clemreg mesh`."""

    organelles: Names
    format: Literal["ply", "obj", "neuroglancer"] = "ply"
    smoothing: Annotated[int, Field(ge=0)] = 20
    keep: Annotated[float, Field(gt=0, le=1)] = 0.2
    memory_gb: Annotated[float, Field(gt=0)] = 4.0


Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class MicrotubulesConfig(Section):
    """Traced microtubules; as the options of `clemreg microtubules`.

    Attributes
    ----------
    prediction
        Name of the prediction, beside those of the organelles.
    name
        By which other sections name the tubes.
    """

    prediction: Name = "mt"
    name: Name = "mt"
    threshold: Share = 0.4
    reach: Length = "180 nm"
    block: Length = "400 nm"
    context: Length = "400 nm"
    evidence: float = 200.0
    angle: float = 22.0
    end: float = 200.0
    selection: float = -200.0
    time_limit_s: Positive = 120.0
    max_neighbours: Positive = 8.0


class RibosomesConfig(Section):
    """Ribosomes as spheres; as the options of `clemreg ribosomes`.

    Attributes
    ----------
    prediction, name
        As for microtubules.
    planarity
        Organelle whose planarity is measured, and that ribosomes sit on; None: no classes.
    nuclear_envelope
        Organelle that is the nuclear envelope, or the nucleus.
    expand
        ER within so much of it counts as nuclear.
    """

    prediction: Name = "ribo"
    name: Name = "ribo"
    planarity: Name | None = None
    nuclear_envelope: Name | None = None
    threshold: Annotated[float, Field(ge=0)] = 127.0
    radius: Length = "10 nm"
    separation: Length = "16 nm"
    min_fraction: Share = 0.3
    contact: Length = "10 nm"
    expand: Length = "20 nm"
    sheet: Share = 0.6


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
    """Where results go.

    Attributes
    ----------
    dir
        Relative to the configuration file.
    title
        Of the page.
    parquet
        Whether every table is written as Parquet, too.
    """

    dir: str = "organelles"
    title: str = "Organelles"
    parquet: bool = False


class OrganellesConfig(Section):
    """Everything that `clemreg organelles` needs; a part without a section is not done."""

    input: PredictionInput
    microtubules: MicrotubulesConfig | None = None
    ribosomes: RibosomesConfig | None = None
    measure: MeasureConfig = MeasureConfig()
    skeletonize: SkeletonConfig | None = None
    contacts: tuple[ContactConfig, ...] = ()
    planarity: PlanarityConfig | None = None
    reconstruct: tuple[ReconstructConfig, ...] = ()
    mesh: MeshConfig | None = None
    compute: ComputeConfig = ComputeConfig()
    output: OrganellesOutput = OrganellesOutput()

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        if twice := _twice(self.known):
            raise ValueError(f"two organelles are called {twice}")
        parts = {
            "measure": self.measure.organelles or (),
            "skeletonize": self.skeletonize.organelles if self.skeletonize else (),
            "contacts": [n for c in self.contacts for n in (c.a, c.b) if n is not None],
            "planarity": self.planar,
            "mesh": self.mesh.organelles if self.mesh else (),
        }
        for part, names in parts.items():
            known = self.found if part == "planarity" else self.known
            _require(part, names, known, "input.organelles has only")
            if part != "contacts" and (twice := _twice(names)):
                raise ValueError(f"{part} names {twice} twice")
        if twice := _twice(contact.title for contact in self.contacts):
            raise ValueError(f"two contacts are called {twice}; give one of them a name")
        return self

    @model_validator(mode="after")
    def _sides_have_names_of_their_own(self) -> Self:
        if twice := _twice(contact.side(name) for contact, name in self.planar_sides):
            raise ValueError(
                f"the planarity of two contacts is called {twice}; give one contact another name"
            )
        return self

    @model_validator(mode="after")
    def _ribosomes_sit_on_something_known(self) -> Self:
        if self.ribosomes is None:
            return self
        on, nuclear = self.ribosomes.planarity, self.ribosomes.nuclear_envelope
        _require("ribosomes.planarity", [on] if on else [], self.planar, "planarity has only")
        _require(
            "ribosomes.nuclear_envelope",
            [nuclear] if nuclear else [],
            self.input.organelles,
            "input.organelles has only",
        )
        return self

    @model_validator(mode="after")
    def _reconstructions_are_of_something_planar(self) -> Self:
        of = [part.of for part in self.reconstruct]
        without = [part.remove_inside for part in self.reconstruct if part.remove_inside]
        _require("reconstruct.of", of, self.planar, "planarity has only")
        source = "input.organelles has only"
        _require("reconstruct.remove_inside", without, self.input.organelles, source)
        return self

    @property
    def planar(self) -> tuple[str, ...]:
        """Organelles whose planarity is measured."""
        return self.planarity.organelles if self.planarity else ()

    @property
    def planar_sides(self) -> tuple[tuple[ContactConfig, str], ...]:
        """Each contact with each of its organelles that has a planarity, or is made of one."""
        of = {part.title: part.of for part in self.reconstruct}
        return tuple(
            (contact, name)
            for contact in self.contacts
            for name in dict.fromkeys((contact.a, contact.b or contact.a))
            if of.get(name, name) in self.planar
        )

    @property
    def found(self) -> tuple[str, ...]:
        """What is found in predictions: organelles, microtubules, ribosomes."""
        made = [part.name for part in (self.microtubules, self.ribosomes) if part is not None]
        return (*self.input.organelles, *made)

    @property
    def known(self) -> tuple[str, ...]:
        """Everything that can be named: what is found, and what is reconstructed of it."""
        return (*self.found, *(part.title for part in self.reconstruct))

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


def _require(part: str, names: Iterable[str], known: Sequence[str], source: str) -> None:
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"{part} names {', '.join(unknown)}, but {source} {', '.join(known) or 'nothing'}"
        )


def _twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
