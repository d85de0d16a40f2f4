from __future__ import annotations

import numpy as np
import pytest
import tifffile

CONFIG = """
name = "ball"
out = "ball.safetensors"
[options]
spacing_nm = 16.0
classes = ["mito"]
steps = 4
batch = 1
output = 8
margin = 4
widths = [2, 3]
down = [1, 1]
up = [2]
checkpoint_every = 2
threads = 1
[[real]]
name = "mine"
em = "em.tif"
labels = "mito.tif"
voxel_size = "15, 16, 17 nm"
held_out = [0, 10]
[simulated]
blocks = 1
shape = [24, 28, 32]
spacing_nm = [15.0, 17.0]
"""


@pytest.fixture
def config(tmp_path):
    rng = np.random.default_rng(0)
    em = rng.integers(0, 255, (40, 24, 28)).astype(np.uint8)
    labels = np.zeros(em.shape, np.uint8)
    labels[5:30, 6:16, 8:20] = 1
    (tmp_path / "data").mkdir()
    tifffile.imwrite(tmp_path / "data" / "em.tif", em)
    tifffile.imwrite(tmp_path / "data" / "mito.tif", labels)
    path = tmp_path / "ball.toml"
    path.write_text(CONFIG)
    return path, em, labels
