"""Overlap on a channel that the registration did not use, and the shift between two channels."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from scipy.ndimage import fourier_shift, gaussian_filter, map_coordinates

from clemreg.cli.app import run_app
from clemreg.io.transforms import write_transform
from clemreg.io.volumes import write_volume
from clemreg.pipeline.overlap import held_out_overlap
from clemreg.register.features import MovingOptions
from clemreg.report.html import _overlap_rows
from clemreg.space import Affine, Grid
from clemreg.testing import random_affine
from clemreg.volume import Volume

LM = Grid((20, 44, 48), (104.0, 60.0, 52.0), (300.0, -200.0, 70.0), "lm")
EM = Grid((70, 74, 78), (32.0, 30.0, 28.0), (900.0, 5000.0, -70.0), "em")
SHARP = MovingOptions(psf_sigma_nm=(60.0, 40.0, 40.0))


def truth():
    """Rotated, sheared and mirrored, the middle of the LM to that of the EM."""
    linear = random_affine(np.random.default_rng(3), "lm", "em", mirror=True).linear
    return Affine.from_linear(linear, EM.centre_nm - linear @ LM.centre_nm, "lm", "em")


@pytest.fixture(scope="module")
def er():
    """A light channel and an EM mask of one structure."""
    rng = np.random.default_rng(0)
    noise = gaussian_filter(rng.normal(size=EM.shape), 120.0 / np.array(EM.spacing_nm))
    mask = noise > np.percentile(noise, 75)
    blurred = gaussian_filter(mask.astype(float), 70.0 / np.array(EM.spacing_nm))
    index = EM.to_index(truth()(LM.points_nm().reshape(-1, 3)))
    density = map_coordinates(blurred, index.T, order=1).reshape(LM.shape)
    return Volume(rng.poisson(40 * density + 2).astype(np.uint16), LM), Volume(mask, EM)


def moved(by_nm):
    return truth().then(Affine.translation(by_nm, "em", "em"))


def test_the_right_place_overlaps_and_others_less(er):
    light, mask = er
    right = held_out_overlap(truth(), light, mask, SHARP)
    off = held_out_overlap(moved((0.0, 150.0, -150.0)), light, mask, SHARP)
    assert right["result"]["correlation"] > 0.85
    assert off["result"]["correlation"] < right["result"]["correlation"] - 0.2
    assert off["result"]["surface"]["median_nm"] > 1.3 * right["result"]["surface"]["median_nm"]
    assert right["result"]["dice"] > off["result"]["dice"] + 0.1
    assert abs(right["shifted"]["correlation"]) < 0.3
    assert right["affine_only"] == right["result"]


def test_small_components_count(er):
    """The paper's least volume is for mitochondria: ER and others come in smaller pieces."""
    light, _ = er
    small = np.zeros(EM.shape, bool)
    small[30:34, 30:34, 30:34] = True  # 1.7e6 nm3
    found = held_out_overlap(truth(), light, Volume(small, EM), SHARP)
    assert 0 < found["result"]["warped_um3"] < 0.2


def test_commands_measure_overlap_and_shift(er, tmp_path, capsys):
    light, mask = er
    offset_nm = np.array([-52.0, 30.0, 41.6])
    spectrum = np.fft.fftn(light.read().astype(float))
    voxels = offset_nm / np.array(LM.spacing_nm)
    shifted = np.fft.ifftn(fourier_shift(spectrum, -voxels)).real
    beads = np.stack([light.read(), shifted.clip(0)]).astype(np.float32)
    write_volume(tmp_path / "lm.zarr", Volume(beads, LM, channels=("er", "mito")))
    write_volume(tmp_path / "er.zarr", Volume(mask.read().astype(np.uint8), EM))
    write_transform(truth(), tmp_path / "t.json")
    words = ["evaluate", "overlap", "--transform", str(tmp_path / "t.json"), "--channel", "er"]
    words += ["--fixed", str(tmp_path / "lm.zarr"), "--moving", str(tmp_path / "er.zarr")]
    assert run_app([*words, "--json", str(tmp_path / "o.json")]) == 0
    found = json.loads((tmp_path / "o.json").read_text())["overlap"]
    assert found["result"]["correlation"] > 0.85
    assert set(found) == {"result", "affine_only", "shifted"}
    # A prediction of several structures: the channel of that name, not its mitochondria.
    stored = np.where(mask.read(), 200, 50).astype(np.uint8)
    several = np.stack([stored[::-1], stored[::-1], stored])
    written = Volume(several, EM, channels=("mito", "mito_mem", "er"))
    write_volume(tmp_path / "prediction.zarr", written)
    words[-1] = str(tmp_path / "prediction.zarr")
    assert run_app([*words, "--json", str(tmp_path / "p.json")]) == 0
    named = json.loads((tmp_path / "p.json").read_text())["overlap"]
    assert named["result"]["correlation"] == pytest.approx(found["result"]["correlation"])
    words = ["evaluate", "shift", str(tmp_path / "lm.zarr"), "--reference", "er"]
    assert run_app([*words, "--channel", "mito"]) == 0
    text = capsys.readouterr().out
    x, y, z = map(float, re.search(r'--shift mito="(.+), (.+), (.+) nm"', text).groups())
    np.testing.assert_allclose([z, y, x], offset_nm, atol=6)


def test_the_report_lists_what_was_not_used_apart():
    stats = {"ncc": 0.5, "dice": 0.6, "surface": {"median_nm": 40.0, "p95_nm": 200.0}}
    held_out = {"er": {"affine_only": {**stats, "ncc": 0.4}, "result": stats, "shifted": {}}}
    report = {"overlap": {"start": stats, "result": stats, "held_out": held_out}}
    rows = dict(_overlap_rows(report))
    assert list(rows) == [
        "start pose", "result", "er, not used: affine alone", "er, not used: result",
    ]  # fmt: skip
    assert rows["er, not used: affine alone"]["ncc"] == 0.4
