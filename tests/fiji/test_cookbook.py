"""The macro snippets of the documentation run as they stand."""

from __future__ import annotations

import re

import numpy as np
import pytest
from imagej_process import REPO
from test_macros import python_of_this_clemreg

from clemreg.io.points import read_points
from clemreg.io.tiff import write_tiff
from clemreg.io.transforms import write_transform
from clemreg.io.volumes import open_volume
from clemreg.space import Box, Grid
from clemreg.testing import random_affine
from clemreg.volume import Volume

pytestmark = pytest.mark.xdist_group("imagej")

PAGES = REPO / "docs" / "how-to"
LM = Grid((6, 20, 24), (104.0, 52.0, 56.0), (300.0, -200.0, 70.5), "lm")


def snippets(page):
    """Code blocks without a language: those are macros."""
    text = (PAGES / page).read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [code for language, code in blocks if not language]


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    write_tiff(tmp_path / "warped.tif", Volume(rng.integers(0, 255, LM.shape).astype("u1"), LM))
    light = rng.integers(0, 50, (2, *LM.shape)).astype("u2")
    write_tiff(tmp_path / "lm.tif", Volume(light, LM, ("mito", "er")))
    write_transform(random_affine(rng), tmp_path / "t.json")
    return tmp_path


def test_every_snippet_of_the_cookbook(imagej, data):
    found = snippets("fiji-macros.md")
    assert len(found) == 5
    python = python_of_this_clemreg(data)
    assert imagej.macro(f'call("ij.Prefs.set", "clemreg.python", "{python}");')["error"] is None
    said = []
    for code in found:
        # Slice 3 of its second channel: the sixth of the stack.
        points = 'Stack.setPosition(2, 3, 1); makeSelection("point", newArray(3,5), newArray(4,9));'
        opened = f'open("{data}/lm.tif"); {points}\n'
        answer = imagej.macro(opened + code.replace("/data/", f"{data}/"))
        assert answer["error"] is None, (code, answer)
        said.append(answer["log"])
        assert imagej.macro('run("Close All");')["error"] is None
    assert imagej.macro('call("ij.Prefs.set", "clemreg.python", "");')["error"] is None
    assert any("fold_fraction" in text and "EXIT 0" in text for text in said)
    (data / "points.csv").write_text(next(text for text in said if "name,x-" in text))
    expected = LM.to_world(np.array([[2, 4, 3], [2, 9, 5]]))
    np.testing.assert_allclose(read_points(data / "points.csv"), expected, atol=1e-3)


def test_points_of_an_image_without_origin_start_at_0(imagej):
    (code,) = (code for code in snippets("fiji-macros.md") if "Roi.getCoordinates" in code)
    made = 'newImage("t", "8-bit ramp", 9, 8, 6); run("Properties...", "unit=um pixel_width=0.05 '
    made += 'pixel_height=0.04 voxel_depth=0.2"); setSlice(4); makePoint(5, 6);\n'
    answer = imagej.macro(made + code + '\nrun("Close All");')
    assert answer["error"] is None, answer
    assert answer["log"].splitlines() == ["name,x-nm,y-nm,z-nm", "Pt-0,250,240,600"]


@pytest.mark.parametrize("image", ["lm.tif", "warped.tif"])
def test_a_crop_keeps_its_place(imagej, data, image):
    (code,) = (code for code in snippets("fiji-macros.md") if "origin-of" in code)
    opened = (
        f'open("{data}/{image}");\n{code}\nsaveAs("Tiff", "{data}/crop.tif"); run("Close All");'
    )
    assert imagej.macro(opened)["error"] is None
    whole, found = open_volume(data / image), open_volume(data / "crop.tif")
    box = Box((1, 2, 3), (5, 7, 9))
    np.testing.assert_allclose(found.grid.origin_nm, LM.crop(box).origin_nm, atol=1e-3)
    assert found.shape == box.shape
    np.testing.assert_array_equal(found.read(), whole.read(box))


def test_the_overlay(imagej, data):
    (code,) = snippets("fiji-apply.md")
    code = code.replace('open("', f'open("{data}/')
    answer = imagej.macro(code + 'getDimensions(w, h, c, s, f); close(); return "" + c + " " + s;')
    assert answer["error"] is None
    assert answer["value"] == "3 6"
