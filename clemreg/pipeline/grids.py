"""Whether what `clemreg organelles` compares lies on the same voxels, before any work."""

from __future__ import annotations

from collections.abc import Mapping

from clemreg.config_organelles import OrganellesConfig
from clemreg.measure.gather import same_grid
from clemreg.volume import Volume


def refuse_other_voxels(
    config: OrganellesConfig, predicted: Mapping[str, Volume], cell: Volume | None
) -> None:
    """Compare the voxels of contacts, ribosomes with their ER, and organelles with the cell.

    Parameters
    ----------
    predicted
        What each thing that can be named is made from.
    cell
        Mask of the cell, if there is one.

    Raises
    ------
    GridError
        Two of them have other voxels.
    """
    pairs = [(contact.a, contact.b) for contact in config.contacts]
    if config.ribosomes is not None:
        pairs += [
            (config.ribosomes.name, other)
            for other in (config.ribosomes.planarity, config.ribosomes.nuclear_envelope)
        ]
    pairs += [(part.of, part.remove_inside) for part in config.reconstruct]
    for a, b in pairs:
        if b is not None:
            same_grid(predicted[a], predicted[b])
    if cell is not None:
        for name in config.measured:
            same_grid(predicted[name], cell)
