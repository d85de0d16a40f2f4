"""What a network can predict: the classes of the COSEM paper, their ids, names and setups."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import ConfigError, MissingError

UNKNOWN = 0
"""Voxels with this id were not annotated: they are neither inside nor outside of anything."""

# Atomic ids 1 to 37: (name in CellMap's tables, the same in words).
_ATOMS = (
    ("ecs", "extracellular space"),
    ("pm", "plasma membrane"),
    ("mito_mem", "mitochondrion membrane"),
    ("mito_lum", "mitochondrion lumen"),
    ("mito_ribo", "mitochondrion ribosome"),
    ("golgi_mem", "Golgi membrane"),
    ("golgi_lum", "Golgi lumen"),
    ("ves_mem", "vesicle membrane"),
    ("ves_lum", "vesicle lumen"),
    ("endo_mem", "endosome membrane"),
    ("endo_lum", "endosome lumen"),
    ("lyso_mem", "lysosome membrane"),
    ("lyso_lum", "lysosome lumen"),
    ("ld_mem", "lipid droplet membrane"),
    ("ld_lum", "lipid droplet lumen"),
    ("er_mem", "endoplasmic reticulum membrane"),
    ("er_lum", "endoplasmic reticulum lumen"),
    ("eres_mem", "ER exit site membrane"),
    ("eres_lum", "ER exit site lumen"),
    ("ne_mem", "nuclear envelope membrane"),
    ("ne_lum", "nuclear envelope lumen"),
    ("np_out", "nuclear pore, outside"),
    ("np_in", "nuclear pore, inside"),
    ("hchrom", "heterochromatin"),
    ("nhchrom", "heterochromatin at the nuclear envelope"),
    ("echrom", "euchromatin"),
    ("nechrom", "euchromatin at the nuclear envelope"),
    ("nucpl", "nucleoplasm"),
    ("nucleo", "nucleolus"),
    ("mt_out", "microtubule, outside"),
    ("cent", "centrosome"),
    ("cent_dapp", "centrosome, distal appendage"),
    ("cent_sdapp", "centrosome, subdistal appendage"),
    ("ribo", "ribosome"),
    ("cyto", "cytosol"),
    ("mt_in", "microtubule, inside"),
    ("nuc", "nucleus, not told apart further"),
)
NUCLEUS_GENERIC = 37


@dataclass(frozen=True)
class Atom:
    """One of the 37 ids that annotated voxels carry; every voxel has exactly one.

    Attributes
    ----------
    id
        1 to 37.
    cellmap
        Name in CellMap's class table.
    description
        In words.
    """

    id: int
    cellmap: str
    description: str


@dataclass(frozen=True)
class Category:
    """One of the 35 categories that networks predict; they overlap.

    Attributes
    ----------
    name
        As in the paper's training code, for example ``"mito_membrane"``. The key everywhere.
    paper
        As in the paper and on the OpenOrganelle portal, for example ``"mito-mem"``.
    ids
        Atomic ids that make it up.
    cellmap
        Name in CellMap's tables and models.
    parent
        Category whose balancing weights it shares in the loss; empty: its own.
    separate
        Name of the label set that holds it apart from ``labels/all``; empty: ``labels/all``.
    grown_nm
        Added to its signed distance: its annotations are drawn too small.
    generic_id
        Id of voxels known to be inside but not told apart further; 0: none.
    absorbs
        Categories joined to it in training: its signed distance is the largest of theirs.
    """

    name: str
    paper: str
    ids: tuple[int, ...]
    cellmap: str
    parent: str = ""
    separate: str = ""
    grown_nm: float = 0.0
    generic_id: int = 0
    absorbs: tuple[str, ...] = ()

    def contains(self, other: Category) -> bool:
        """Tell whether every voxel of `other` belongs to this one."""
        return set(other.ids) <= set(self.ids)


ATOMS = tuple(Atom(i, name, text) for i, (name, text) in enumerate(_ATOMS, start=1))

CATEGORIES = (
    Category("ecs", "ecs", (1,), "ecs"),
    Category("plasma_membrane", "pm", (2,), "pm"),
    Category("mito", "mito", (3, 4, 5), "mito"),
    Category("mito_membrane", "mito-mem", (3,), "mito_mem", parent="mito"),
    Category("mito_DNA", "mito-ribo", (5,), "mito_ribo", parent="mito"),
    Category("golgi", "golgi", (6, 7), "golgi"),
    Category("golgi_membrane", "golgi-mem", (6,), "golgi_mem"),
    Category("vesicle", "vesicle", (8, 9), "ves"),
    Category("vesicle_membrane", "vesicle-mem", (8,), "ves_mem", parent="vesicle"),
    Category("MVB", "endo", (10, 11), "endo"),
    Category("MVB_membrane", "endo-mem", (10,), "endo_mem", parent="MVB"),
    Category("lysosome", "lyso", (12, 13), "lyso"),
    Category("lysosome_membrane", "lyso-mem", (12,), "lyso_mem", parent="lysosome"),
    Category("LD", "ld", (14, 15), "ld"),
    Category("LD_membrane", "ld-mem", (14,), "ld_mem", parent="LD"),
    Category("er", "er", tuple(range(16, 24)), "er"),
    Category("er_membrane", "er-mem", (16, 18, 20), "er_mem", parent="er"),
    Category("ERES", "eres", (18, 19), "eres"),
    Category("ERES_membrane", "eres-mem", (18,), "eres_mem", parent="ERES"),
    Category("nucleus", "nucleus", (*range(20, 30), 37), "nuc", generic_id=NUCLEUS_GENERIC),
    Category("nucleolus", "nucleolus", (29,), "nucleo", separate="nucleolus"),
    Category("NE", "ne", (20, 21, 22, 23), "ne"),
    Category("NE_membrane", "ne-mem", (20, 22, 23), "ne_mem", parent="NE"),
    Category("nuclear_pore", "np", (22, 23), "np"),
    Category("nuclear_pore_out", "np-out", (22,), "np_out", parent="nuclear_pore"),
    Category("chromatin", "chrom", (24, 25, 26, 27), "chrom"),
    Category("NHChrom", "nhchrom", (25,), "nhchrom"),
    Category("EChrom", "echrom", (26,), "echrom"),
    Category("NEChrom", "nechrom", (27,), "nechrom"),
    Category("microtubules", "mt", (30, 36), "mt", absorbs=("centrosome",)),
    Category(
        "microtubules_out", "mt-out", (30,), "mt_out", parent="microtubules",
        absorbs=("centrosome",),
    ),
    Category(
        "centrosome", "cent", (31,), "cent", separate="centrosome", grown_nm=2.0,
        absorbs=("distal_app", "subdistal_app"),
    ),
    Category("distal_app", "cent-dapp", (32,), "cent_dapp"),
    Category("subdistal_app", "cent-sdapp", (33,), "cent_sdapp"),
    Category("ribosomes", "ribo", (34,), "ribo", separate="ribosomes", grown_nm=8.0),
)  # fmt: skip

CYTOSOL = Category("cytosol", "cyto", (35,), "cyto")
"""Annotated, but not predicted: what no category but ribosomes claims (`cytosol_mask`)."""

ALL = tuple(c.name for c in CATEGORIES if c.name != "ERES_membrane")
MANY = (
    "ecs", "plasma_membrane", "mito", "mito_membrane", "vesicle", "vesicle_membrane", "MVB",
    "MVB_membrane", "er", "er_membrane", "ERES", "nucleus", "microtubules", "microtubules_out",
)  # fmt: skip
FEW = {
    "mito": ("mito", "mito_membrane", "mito_DNA"),
    "er": ("er", "er_membrane"),
    "golgi": ("golgi", "golgi_membrane"),
    "microtubules": ("microtubules", "microtubules_out"),
    "ribosomes": ("ribosomes",),
    "nucleus": ("nucleus", "nucleolus"),
    "NE": ("NE", "NE_membrane", "nuclear_pore", "nuclear_pore_out"),
    "chromatin": ("chromatin", "NHChrom", "EChrom", "NEChrom"),
    "centrosome": ("centrosome", "distal_app", "subdistal_app"),
    "ERES": ("ERES", "ERES_membrane"),
    "ecs": ("ecs", "plasma_membrane"),
    "MVB": ("MVB", "MVB_membrane", "lysosome", "lysosome_membrane"),
    "vesicle": ("vesicle", "vesicle_membrane"),
    "LD": ("LD", "LD_membrane"),
}


class Annotation(Enum):
    """What is known of a category in a crop."""

    PRESENT = "present"
    """It was looked for and found: inside and outside are both supervised."""
    ABSENT = "absent"
    """It was looked for and is not there: every annotated voxel is outside."""
    UNKNOWN = "unknown"
    """Nobody looked: nothing can be learnt or scored."""


@dataclass(frozen=True)
class AnnotatedIds:
    """Which atomic ids were looked for in a crop.

    Attributes
    ----------
    present
        Ids that are annotated and occur.
    absent
        Ids that were looked for and do not occur.
    """

    present: frozenset[int]
    absent: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        unknown = sorted((self.present | self.absent) - {a.id for a in ATOMS})
        if unknown:
            raise ConfigError(f"ids {unknown} are none of the atomic ids 1 to {len(ATOMS)}")
        both = sorted(self.present & self.absent)
        if both:
            raise ConfigError(f"ids {both} are said to be present and absent at once")

    def of(self, category: Category) -> Annotation:
        """Return what is known of a category.

        It is annotated if all of its ids were looked for, or its generic id, or all but the
        generic one; and then present if one of its ids is.
        """
        looked_for = self.present | self.absent
        ids = set(category.ids)
        generic = {category.generic_id} & ids
        if not (
            ids <= looked_for
            or (generic and (generic <= looked_for or ids - generic <= looked_for))
        ):
            return Annotation.UNKNOWN
        return Annotation.PRESENT if ids & self.present else Annotation.ABSENT


_ALIASES = {alias: c for c in (*CATEGORIES, CYTOSOL) for alias in (c.cellmap, c.paper, c.name)}
# Names that layers on the portal carry.
_SUFFIXES = ("_pred", "_seg")


def category(name: str) -> Category:
    """Find a category by its name in the training code, the paper, the portal or CellMap.

    Raises
    ------
    MissingError
        There is none of that name; the text lists the names.

    Examples
    --------
    >>> category("endo-mem").name, category("mito_mem").paper, category("mito-ribo_pred").name
    ('MVB_membrane', 'mito-mem', 'mito_DNA')
    """
    bare = name
    for suffix in _SUFFIXES:
        bare = bare.removesuffix(suffix)
    found = _ALIASES.get(bare)
    if found is None:
        raise MissingError(
            f"there is no class {name!r}",
            hint=f"classes are: {', '.join(c.name for c in CATEGORIES)}",
        )
    return found


def parts_of(name: str) -> tuple[str, ...]:
    """Names of the categories that lie wholly inside a category."""
    whole = category(name)
    return tuple(c.name for c in CATEGORIES if c is not whole and whole.contains(c))


def wholes_of(name: str) -> tuple[str, ...]:
    """Names of the categories that a category lies wholly inside of."""
    part = category(name)
    return tuple(c.name for c in CATEGORIES if c is not part and c.contains(part))


def weight_source(name: str, predicted: Collection[str]) -> str:
    """Category whose balancing weights `name` uses: its parent's, if that is predicted too."""
    parent = category(name).parent
    return parent if parent in predicted else category(name).name


def cytosol_mask(masks: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Cytosol as the paper reconstructs it: what no predicted class but ribosomes claims.

    Parameters
    ----------
    masks
        Where each class is predicted (z, y, x), by name.

    Raises
    ------
    ConfigError
        Not all classes of the ``all`` group are predicted, so that the rest is more than cytosol.
    """
    by_name = {category(name).name: mask for name, mask in masks.items()}
    lacking = [name for name in ALL if name not in by_name]
    if lacking:
        raise ConfigError(
            f"cytosol is what no other class claims, and {', '.join(lacking)} are not predicted",
            hint="use a network that predicts all classes",
        )
    claimed = np.zeros_like(next(iter(by_name.values())), dtype=bool)
    for name in ALL:
        if name != "ribosomes":
            claimed |= by_name[name]
    return ~claimed
