"""What the exports of a run show lies where the run registered it."""

from __future__ import annotations

import csv
import json
import re
from contextlib import nullcontext

import numpy as np
import pytest

from clemreg.config import load_run_config
from clemreg.io.transforms import write_transform
from clemreg.io.volumes import write_volume
from clemreg.pipeline.context import RunContext
from clemreg.pipeline.light import light_channel
from clemreg.pipeline.scene import bdv_setups, files_of_run, scene_of_run
from clemreg.pipeline.viewers import (
    MobieCommand,
    NeuroglancerCommand,
    export_mobie,
    export_neuroglancer,
)
from clemreg.space import Affine, Grid
from clemreg.testing import hostile_grid, random_affine
from clemreg.volume import Volume

LM = Grid((13, 9, 15), (9.0, 7.0, 5.0), (-400.0, 250.0, 77.0), "lm")
EM = hostile_grid("em")
SHIFT = np.array([12.5, -50.0, 120.0])  # zyx


@pytest.fixture
def context(tmp_path):
    """A run whose second channel, 561, has a chromatic shift."""
    rng = np.random.default_rng(0)
    write_volume(tmp_path / "em.zarr", Volume(rng.integers(0, 99, EM.shape).astype("u1"), EM))
    light = rng.integers(0, 99, (2, *LM.shape)).astype("u2")
    write_volume(tmp_path / "lm.zarr", Volume(light, LM, ("488", "561")))
    run = tmp_path / "run"
    write_volume(run / "warped_em.zarr", Volume(np.ones(LM.shape, "u1"), LM))
    linear = random_affine(rng, "lm", "em", mirror=True).linear
    affine = Affine.from_linear(linear, EM.centre_nm - linear @ LM.centre_nm, "lm", "em")
    (run / "registration").mkdir()
    write_transform(affine, run / "registration" / "transform.json")
    config = tmp_path / "clemreg.toml"
    config.write_text(
        '[em]\npath = "em.zarr"\nprediction = "em.zarr"\n[lm]\npath = "lm.zarr"\n'
        'channel = "561"\nshifts = { 561 = "120, -50, 12.5 nm" }\n[output]\ndir = "run"\n'
    )
    progress = nullcontext(lambda *_: None)
    return RunContext(load_run_config(config), tmp_path, lambda _: progress)


def test_bigdataviewer_shows_a_channel_where_it_was_registered(context):
    setups = {setup.name: setup for setup in bdv_setups(scene_of_run(context))}
    np.testing.assert_allclose(setups["LM 488"].volume.grid.origin_nm, LM.origin_nm)
    expected = light_channel(context.open_lm(), "561", context.shifts_nm()).grid.origin_nm
    np.testing.assert_allclose(setups["LM 561"].volume.grid.origin_nm, expected)
    np.testing.assert_allclose(expected, LM.origin_nm + SHIFT)


def test_mobie_shows_a_channel_where_it_was_registered(context, tmp_path):
    export_mobie(MobieCommand(files_of_run(context), tmp_path / "mobie"))
    with (tmp_path / "mobie" / "collection.csv").open(newline="", encoding="utf-8") as stream:
        cells = {row["name"]: row["affine"] for row in csv.DictReader(stream)}
    assert cells["LM 488"] == ""
    matrix = np.array(re.sub("[()]", "", cells["LM 561"]).split(","), float).reshape(3, 4)
    np.testing.assert_allclose(matrix, np.column_stack([np.eye(3), SHIFT[::-1]]))


def test_neuroglancer_shows_a_channel_where_it_was_registered(context, tmp_path):
    export_neuroglancer(NeuroglancerCommand(files_of_run(context), tmp_path / "s.json"))
    layers = json.loads((tmp_path / "s.json").read_text())["layers"]
    sources = {layer["name"]: layer["source"] for layer in layers}
    assert "transform" not in sources["LM 488"]
    transform = sources["LM 561"]["transform"]
    assert list(transform["outputDimensions"]) == ["c'", "z", "y", "x"]
    matrix = np.column_stack([np.eye(4), [0, *SHIFT]])
    np.testing.assert_allclose(transform["matrix"], matrix)
