"""Real mitochondria that a slightly too generous prediction merges (EPFL hippocampus)."""

from __future__ import annotations

import cc3d
import edt
import numpy as np
import pytest

from clemreg.blocks.stages import Blockwise
from clemreg.io.quantise import quantise
from clemreg.io.volumes import open_volume
from clemreg.refine.recipe import load_recipe
from clemreg.refine.scan import ScanSettings, scan
from clemreg.refine.voxels import Smoothed
from clemreg.space.grid import Box, Grid
from clemreg.volume import Labels, Volume

# Two mitochondria lie 10 nm apart here.
REGION = Box((26, 490, 810), (146, 622, 924))
GENEROUS_NM = 10.0


@pytest.mark.slow
def test_the_paper_s_settings_take_merged_mitochondria_apart(tmp_path, shared_data):
    volume = open_volume(shared_data / "lucchi-train" / "mito.tif", spacing_nm=(5.0, 5.0, 5.0))
    mask = volume.read(REGION) > 0
    truth = cc3d.dust(cc3d.connected_components(mask, connectivity=6), threshold=3000)
    grid = Grid(REGION.shape, (5.0, 5.0, 5.0))
    inside = edt.edt(truth > 0, anisotropy=grid.spacing_nm, black_border=False)
    outside = edt.edt(truth == 0, anisotropy=grid.spacing_nm, black_border=False)
    distance = np.where(truth > 0, inside - 2.5, 2.5 - outside)
    prediction = Volume(quantise(np.tanh((distance + GENEROUS_NM) / 50)), grid)

    step = load_recipe("heinrich2021/jrc_hela-2").organelles["mito"].steps[0]
    settings = ScanSettings([step.quantile], [step.threshold], min_volume_nm3=4e5)
    (naive, split), _ = scan(
        Smoothed(prediction.read, grid, step.sigma_nm),
        grid,
        settings,
        tmp_path,
        Blockwise((64, 64, 64)),
        Labels(truth, grid).read,
    )
    assert naive.objects == len(np.unique(truth)) - 2
    assert naive.voi_merge > 0.3
    assert split.objects == len(np.unique(truth)) - 1
    assert split.f1 == 1.0 > naive.f1
    assert split.voi_merge < 0.02
    assert split.voi_split < 0.02
