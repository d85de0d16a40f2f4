from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clemreg.config import RunConfig
from clemreg.errors import DataError
from clemreg.io.volumes import write_volume
from clemreg.pipeline.doctor import refuse_impossible
from clemreg.pipeline.voxels import EM_VOXEL_NM, LM_VOXEL_NM, check_prediction, check_voxels
from clemreg.space import Grid
from clemreg.space.grid import Box
from clemreg.volume import Volume


@pytest.mark.parametrize(
    ("name", "usual", "spacing", "status", "words"),
    [
        ("EM", EM_VOXEL_NM, (5.24, 4.0, 4.0), "ok", "5.24 nm"),
        ("EM", EM_VOXEL_NM, (50.0, 5.0, 5.0), "ok", "50 nm"),
        ("EM", EM_VOXEL_NM, (4.0, 4.0, 8.0), "warning", "square"),
        ("EM", EM_VOXEL_NM, (1.6, 4.0, 4.0), "warning", "0.4 times as thick"),
        ("EM", EM_VOXEL_NM, (5240.0, 4000.0, 4000.0), "error", "usual for EM"),
        ("LM", LM_VOXEL_NM, (104.0, 52.0, 52.0), "ok", "104 nm"),
        ("LM", LM_VOXEL_NM, (52.0, 104.0, 52.0), "warning", "square"),
        ("LM", LM_VOXEL_NM, (1500.0, 52.0, 52.0), "warning", "29 times as thick"),
        ("LM", LM_VOXEL_NM, (0.104, 0.052, 0.052), "error", "usual for LM"),
    ],
)
def test_voxels_that_cannot_be_are_named(name, usual, spacing, status, words):
    volume = Volume(np.zeros((3, 4, 5), np.uint8), Grid((3, 4, 5), spacing))
    found = check_voxels(name, volume, usual)
    assert found.status == status
    assert words in found.text
    assert (found.status == "ok") == (found.hint == "")


EM = Grid((60, 70, 80), (10.0, 8.0, 8.0), (900.0, 5000.0, -70.0), "em")


@pytest.mark.parametrize(
    ("grid", "status", "words"),
    [
        (EM, "ok", "lies in the EM"),
        (EM.downsample((4, 4, 4)), "ok", "lies in the EM"),
        (EM.crop(Box((10, 5, 3), (40, 60, 70))), "ok", "lies in the EM"),
        # 70 voxels of 8 nm padded to 5 of 128 nm
        (Grid((5, 5, 5), (128.0,) * 3, (959.0, 5060.0, -10.0), "em"), "ok", "lies in the EM"),
        (replace(EM, origin_nm=(0.0, 0.0, 0.0)), "error", "do not overlap"),
        (replace(EM, origin_nm=(900.0, 5000.0, 0.0)), "warning", "70 nm beyond the EM"),
        (replace(EM, spacing_nm=(10.0, 8.0, 16.0)), "warning", "636 nm beyond the EM"),
        (replace(EM, spacing_nm=(10e3, 8e3, 8e3)), "warning", "beyond the EM"),
    ],
)
def test_a_prediction_that_lies_elsewhere_than_its_em_is_named(grid, status, words):
    em, found = (Volume(np.zeros(g.shape, np.uint8), g) for g in (EM, grid))
    finding = check_prediction(em, found)
    assert finding.status == status
    assert words in finding.text
    assert ("origin" in finding.hint) == (status != "ok")


def test_a_run_with_a_prediction_of_another_place_is_refused(tmp_path):
    lm = Grid((10, 12, 14), (104.0, 60.0, 60.0), frame="lm")
    write_volume(tmp_path / "lm.zarr", Volume(np.zeros(lm.shape, np.uint8), lm, name="mito"))
    write_volume(tmp_path / "em.zarr", Volume(np.zeros(EM.shape, np.uint8), EM))
    lost = replace(EM, origin_nm=(0.0, 0.0, 0.0))
    write_volume(tmp_path / "p.zarr", Volume(np.zeros(EM.shape, np.uint8), lost))

    def config(prediction):
        em = {"path": "em.zarr", "prediction": prediction}
        return RunConfig.model_validate({"em": em, "lm": {"path": "lm.zarr", "channel": 0}})

    refuse_impossible(config("em.zarr"), tmp_path)
    with pytest.raises(DataError, match=r"EM prediction: .* they do not overlap"):
        refuse_impossible(config("p.zarr"), tmp_path)
    with pytest.raises(DataError, match=r"EM prediction: .*absent"):
        refuse_impossible(config("absent.zarr"), tmp_path)
