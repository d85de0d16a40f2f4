from __future__ import annotations

import numpy as np
import pytest

from clemreg.pipeline.voxels import EM_VOXEL_NM, LM_VOXEL_NM, check_voxels
from clemreg.space import Grid
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
