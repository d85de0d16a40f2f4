"""The commands and the Python of the pages for Fiji run as they stand, as a newcomer runs them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from imagej_process import REPO, SCRIPTS, START_SECONDS, environment

from clemreg.cli.app import run_app
from clemreg.io.points import write_landmarks
from clemreg.io.tiff import write_tiff
from clemreg.io.transforms import write_transform
from clemreg.io.volumes import open_volume, write_volume
from clemreg.space import Grid, Landmarks
from clemreg.testing import random_affine, random_bspline
from clemreg.volume import Volume

PAGES = REPO / "docs" / "how-to"
LM = Grid((24, 60, 64), (104.0, 52.0, 52.0), frame="lm")


def blocks(page, language):
    text = (PAGES / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(page, language=""):
    """Lines that start clemreg, with continued lines in one and ``$PAIR`` filled in."""
    text = "\n".join(blocks(page, language)).replace("\\\n", " ")
    pair = re.search(r'^PAIR="(.*)"$', text, re.MULTILINE)
    lines = [line for line in text.splitlines() if line.startswith("clemreg ")]
    return [shlex.split(line.replace("$PAIR", pair.group(1) if pair else "")) for line in lines]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a small pair in place of the sample, and a name that is hard to quote."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "my wörk, 'x'"
    sample = folder / "sample_data"
    sample.mkdir(parents=True)
    transform = random_affine(rng, "lm", "lm").then(random_bspline(rng, LM, target="em"))
    write_transform(transform, sample / "truth.json")
    light = rng.integers(1, 99, (2, *LM.shape)).astype("u2")
    write_volume(sample / "lm.zarr", Volume(light, LM, ("mito", "er")))
    middle = transform(LM.centre_nm[None])[0]
    em = Grid((40, 44, 48), (40.0, 30.0, 30.0), tuple(middle - [800, 660, 720]), "em")
    write_volume(sample / "em.zarr", Volume(rng.integers(1, 99, em.shape).astype("u1"), em))
    points = LM.points_nm().reshape(-1, 3)[::9000]
    names = tuple(f"er{i}" for i in range(len(points)))
    landmarks = Landmarks(names, points, transform(points), ("AW",) * len(names))
    write_landmarks(landmarks, sample / "landmarks.csv")
    monkeypatch.chdir(folder)
    return folder


def test_every_command_of_the_export_page(place, capsys):
    """One run of a pipeline is named only as RUN_FOLDER; that line is tested with real runs."""
    lines = [words for words in commands("export.md") if "RUN_FOLDER" not in words]
    assert len(lines) >= 13
    for words in lines:
        assert run_app(words[1:]) == 0, (words, capsys.readouterr().err)
    written = {words[words.index("--out") + 1] for words in lines if "--out" in words}
    assert {path for path in written if not (place / path).exists()} == set()
    assert {words[2] for words in lines if words[1] == "export"} == {
        "bdv", "bigwarp", "mobie", "dfield", "elastix", "itk", "ngff", "imagej", "omezarr",
        "ecclem", "neuroglancer",
    }  # fmt: skip


def run_python(display, code):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(display),
        timeout=START_SECONDS,
        check=False,
    )


@pytest.mark.xdist_group("imagej")
def test_the_python_of_the_bridge_page(display, place):
    """In a process of its own, which must end although an image stays open."""
    code = "\n".join(blocks("fiji-python.md", "python"))
    shown = 'fiji=Path("/Applications/Fiji.app"), mode="shown"'
    assert shown in code
    code = code.replace(shown, 'mode="hidden"').replace("lm.zarr", "sample_data/lm.zarr")
    code += "\nfrom clemreg.io.volumes import write_volume\nwrite_volume('blurred.zarr', blurred)\n"
    done = run_python(display, code)
    assert (done.returncode, done.stderr) == (0, "")
    lm, blurred = (
        open_volume(place / "sample_data" / "lm.zarr"),
        open_volume(place / "blurred.zarr"),
    )
    assert blurred.grid == lm.grid
    assert blurred.channels == lm.channels
    assert 0 < blurred.read().std() < lm.read().std()


@pytest.mark.xdist_group("imagej")
def test_the_command_of_the_batch_page(display, place):
    (line,) = (block for block in blocks("fiji-batch.md", "sh"))
    words = shlex.split(line)
    assert words[:5] == ["xvfb-run", "-a", "clemreg", "fiji", "macro"]
    (place / "stacks").mkdir()
    write_tiff(place / "stacks" / "a.tif", Volume(np.ones(LM.shape, "u1"), LM))
    inside = SCRIPTS / words[5].partition("/CLEMReg/")[2]
    done = subprocess.run(
        [sys.executable, "-m", "clemreg", "fiji", "macro", str(inside), f"folder={place}/stacks"],
        capture_output=True,
        text=True,
        env=environment(display),
        timeout=START_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    assert "ok    a.tif: 64 x 60 x 24" in done.stderr
