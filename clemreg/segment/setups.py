"""The networks of the COSEM paper as they were trained: what each predicts, from which voxels."""

from __future__ import annotations

from dataclasses import dataclass

from clemreg.errors import MissingError
from clemreg.segment.classes import ALL, FEW, MANY

OUTPUT_NM = 4.0


@dataclass(frozen=True)
class Setup:
    """One training setup of the paper.

    Attributes
    ----------
    name
        As in the paper, for example ``"setup04"``.
    input_nm
        Voxel size of its EM: 4 nm, or 8 nm (real, or simulated by sub-sampling). Its output
        has 4 nm voxels in both cases.
    classes
        Names of its output channels in order.
    iterations
        Training iterations that were run at most.
    datasets
        Data sets it was trained on; empty: all five.
    present_first
        Whether every second training block was drawn from crops where its classes occur.
    """

    name: str
    input_nm: float
    classes: tuple[str, ...]
    iterations: int
    datasets: tuple[str, ...] = ()
    present_first: bool = False

    @property
    def group(self) -> str:
        """``all``, ``many`` or ``few``: how many classes it learns together."""
        return {ALL: "all", MANY: "many"}.get(self.classes, "few")


def _pair(number: str, other: str, group: str, *millions: float) -> tuple[Setup, Setup]:
    """Two setups of one group of classes: 4 nm and 8 nm EM."""
    fine, coarse = (round(m * 1e6) for m in millions)
    return (
        Setup(f"setup{number}", 4.0, FEW[group], fine),
        Setup(f"setup{other}", 8.0, FEW[group], coarse),
    )


SETUPS = (
    Setup("setup01", 4.0, ALL, 2_000_000),
    Setup("setup03", 4.0, MANY, 3_000_000),
    Setup("setup04", 8.0, MANY, 2_000_000),
    *_pair("25", "26.1", "mito", 0.8, 2.8),
    *_pair("27.1", "28", "er", 1.1, 1.5),
    *_pair("29.1", "30", "golgi", 0.9, 0.5),
    *_pair("31", "32", "microtubules", 1.7, 1.8),
    *_pair("33", "34", "ribosomes", 2.0, 0.5),
    *_pair("35", "36", "nucleus", 0.9, 1.1),
    *_pair("37", "38", "NE", 0.5, 1.4),
    *_pair("39.1", "40", "chromatin", 0.5, 0.7),
    *_pair("41", "42", "centrosome", 0.5, 0.5),
    *_pair("43", "44", "ERES", 0.5, 0.5),
    *_pair("45", "46", "ecs", 1.0, 1.7),
    *_pair("47", "48", "MVB", 1.0, 2.6),
    *_pair("49.1", "50", "vesicle", 2.0, 1.3),
    *_pair("51", "52", "LD", 0.5, 0.5),
    Setup("setup56", 4.0, FEW["ribosomes"], 2_000_000, present_first=True),
    Setup("setup57", 4.0, FEW["golgi"], 1_000_000, present_first=True),
    Setup("setup59", 4.0, FEW["vesicle"], 2_000_000, present_first=True),
    Setup("setup61", 4.0, MANY, 2_000_000, datasets=("jrc_hela-2",)),
    Setup("setup62", 4.0, MANY, 2_000_000, datasets=("jrc_macrophage-2",)),
    Setup("setup63", 4.0, MANY, 1_400_000, datasets=("jrc_hela-3",)),
    Setup("setup64", 4.0, MANY, 1_800_000, datasets=("jrc_jurkat-1",)),
)


def setup(name: str) -> Setup:
    """Find a setup by its name, ``"setup04"`` or ``"04"``.

    Raises
    ------
    MissingError
        There is none; the text lists the names.
    """
    wanted = f"setup{name.removeprefix('setup')}"
    for each in SETUPS:
        if each.name == wanted:
            return each
    raise MissingError(
        f"there is no setup {name!r}", hint=f"setups are: {', '.join(s.name for s in SETUPS)}"
    )
