"""An organelle as its planarity reconstructs it: the balls of its medial surface, with ids."""

from __future__ import annotations

from pathlib import Path

from clemreg.blocks.distance import Near
from clemreg.blocks.stages import Blockwise, Read, map_volume
from clemreg.io.atomic import put_in_place
from clemreg.io.volumes import WriteOptions, open_labels
from clemreg.pipeline.measure import open_mask, working_folder
from clemreg.refine.objects import label_objects
from clemreg.refine.voxels import Outside
from clemreg.volume import Labels, Volume


def reconstruct(
    planarity: Path, out: Path, how: Blockwise, inside: Volume | None = None, expand_nm: float = 0.0
) -> Labels:
    """Give ids to the 6-connected parts of what planarity covers; none is too small.

    The "reconstructed" ER of Heinrich et al. 2021: without what no ball of the medial surface
    reaches. Without the surroundings of the nucleus it is their reconstructed peripheral ER, whose
    parts keep the ids of the whole.

    Parameters
    ----------
    planarity
        As `clemreg.measure.planarity.measure_planarity` writes it; 0 is not covered.
    out
        OME-Zarr to write.
    how
        Blocks, executor and progress.
    inside, expand_nm
        Mask; what lies within so many nm of it is left out. None: nothing is.
    """
    covered = open_mask(str(planarity))
    with working_folder((out,), (str(planarity),), (expand_nm, how.block)) as scratch:
        folder = scratch or out.parent
        mask = Near(covered.read, covered.grid, 0.0)  # any level of planarity is the same
        labels = label_objects(mask, covered.grid, 0.0, folder / "labels", how)
        read: Read = labels.read
        if inside is not None:
            read = Outside(read, Near(inside.read, covered.grid, expand_nm))
        options = WriteOptions(labels=True)
        made = folder / "made.zarr"
        map_volume(read, made, covered.grid, labels.dtype, how.named("reconstructed"), options)
        put_in_place(made, out)
    return open_labels(out)
