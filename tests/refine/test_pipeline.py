"""`clemreg refine` as a user runs it: files in, OME-Zarr out, killed, resumed, changed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from scipy import ndimage

from clemreg.cli.app import run_app
from clemreg.io.volumes import WriteOptions, create_volume, open_labels, write_tiff, write_volume
from clemreg.pipeline.refine import RefineOptions, refine_cell
from clemreg.volume import Volume

from .conftest import GRID, blobs

RECIPE = """
[organelles.mito]
steps = [
    { do = "smooth" },
    { do = "threshold", distance_nm = 5.0 },
    { do = "components", min_volume_nm3 = 2000.0 },
    { do = "fill_holes" },
]
[organelles.ld]
source = ["mito"]
steps = [
    { do = "watershed", quantile = 0.5, threshold = 0.6 },
    { do = "keep_adjacent", ids = [1] },
]
[organelles.mito-mem]
source = ["mito_mem"]
steps = [{ do = "threshold" }, { do = "assign", parent = "mito" }]
[organelles.er]
steps = [{ do = "threshold" }, { do = "remove_inside", mask = "mito", expand_nm = 8.0 },
         { do = "components" }]
[organelles.er-periph]
of = "er"
steps = [{ do = "remove_inside", mask = "nucleus", expand_nm = 80.0 }]
[organelles.nucleus]
steps = [{ do = "threshold" }]
"""
PREDICTIONS = {"mito": blobs(1), "mito_mem": blobs(2), "er": blobs(3, level=0.9)}


@pytest.fixture
def cell(tmp_path):
    """One file with channels, and the recipe."""
    with create_volume(
        tmp_path / "cell.zarr",
        GRID,
        np.uint8,
        channels=tuple(PREDICTIONS),
        options=WriteOptions(levels=1),
    ) as writer:
        writer[GRID.box] = np.stack(list(PREDICTIONS.values()))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def expected():
    sigma = 12.0 / np.asarray(GRID.spacing_nm)
    smooth = ndimage.gaussian_filter(PREDICTIONS["mito"].astype(np.float32), sigma, mode="nearest")
    labels, _ = ndimage.label(smooth >= 128 * math.tanh(5 / 50) + 127)
    voxels = np.bincount(labels.ravel())
    keep = voxels > math.ceil(2000.0 / math.prod(GRID.spacing_nm))
    keep[0] = False
    mito = (np.cumsum(keep) * keep)[labels]
    mito = _filled(mito)
    membrane = np.where(PREDICTIONS["mito_mem"] >= 127, mito, 0)
    far = ndimage.distance_transform_edt(mito == 0, sampling=GRID.spacing_nm) > 8.0 + 1e-4
    er, _ = ndimage.label((PREDICTIONS["er"] >= 127) & far)
    return {"mito": mito, "mito-mem": membrane, "er": er}


def _filled(labels):
    for value in range(1, labels.max() + 1):
        whole = ndimage.binary_fill_holes(labels == value)
        labels = np.where(whole & (labels == 0), value, labels)
    return labels


def check(out):
    for name, labels in expected().items():
        found = open_labels(out / name, frame="em")
        assert labels.any()
        assert (found.read() == labels).all(), name
        assert found.grid == GRID


def command(cell, *more):
    return [
        "refine",
        str(cell / "cell.zarr"),
        "--recipe",
        str(cell / "recipe.toml"),
        "--out",
        str(cell / "out.zarr"),
        "--block",
        "9",
        *more,
    ]


def test_the_command_does_a_cell(cell, capsys):
    assert run_app(command(cell, "--json", str(cell / "r.json"))) == 0
    check(cell / "out.zarr")
    report = json.loads((cell / "r.json").read_text())
    assert report["skipped"] == {"er-periph": "needs nucleus", "nucleus": "no prediction"}
    mito = report["organelles"]["mito"]
    labels = expected()["mito"]
    assert mito["objects"] == labels.max()
    nm3 = math.prod(GRID.spacing_nm)
    assert mito["volume_um3"] == pytest.approx((labels > 0).sum() * nm3 / 1e9)
    assert mito["largest_um3"] == pytest.approx(np.bincount(labels.ravel())[1:].max() * nm3 / 1e9)
    assert "needs nucleus" in capsys.readouterr().out
    kept = sorted(p.name for p in (cell / ".out.zarr.work").iterdir())
    assert kept == [".lock", "counts", "steps"]  # what was only needed on the way is gone


def test_two_processes_write_the_same(cell):
    assert run_app(command(cell, "--workers", "2", "--organelle", "mito")) == 0
    found = open_labels(cell / "out.zarr" / "mito")
    assert (found.read() == expected()["mito"]).all()
    assert not (cell / "out.zarr" / "er").exists()


@pytest.mark.slow
def test_killed_at_any_time_it_goes_on(cell):
    arguments = [sys.executable, "-m", "clemreg", *command(cell)]
    work = cell / ".out.zarr.work"
    for pattern in (
        "mito-*/2-components/labels/*/*.npz",
        "mito-*/3-fill_holes",
        "ld-*/0-watershed/labels/*/*.npz",
        "ld-*/0-watershed/boundaries",
        "er-*",
    ):
        child = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while child.poll() is None and not list(work.glob(pattern)):
            time.sleep(0.005)
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
        child.wait()
    subprocess.run(arguments, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    check(cell / "out.zarr")
    options = RefineOptions(("ld",), block=64)
    refine_cell(
        str(cell / "cell.zarr"), str(cell / "recipe.toml"), cell / "b.zarr", options=options
    )
    split = [open_labels(cell / name / "ld").read() for name in ("out.zarr", "b.zarr")]
    assert len(np.unique(split[1])) > 2
    assert (split[0] == split[1]).all()


@pytest.mark.slow
def test_ctrl_c_stops_the_workers_and_the_command_goes_on(cell):
    arguments = [sys.executable, "-m", "clemreg", *command(cell, "--workers", "2")]
    child = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    while child.poll() is None and not list(
        (cell / ".out.zarr.work").glob("mito-*/2-*/labels/*/*")
    ):
        time.sleep(0.005)
    workers = psutil.Process(child.pid).children(recursive=True)
    assert workers
    os.kill(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 130
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    assert not psutil.wait_procs(workers, timeout=30)[1]
    subprocess.run(arguments, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    check(cell / "out.zarr")


def test_a_changed_recipe_redoes_only_what_it_touches(cell):
    options = RefineOptions(block=16)
    paths = (str(cell / "cell.zarr"), str(cell / "recipe.toml"), cell / "out.zarr")
    refine_cell(*paths, options=options)
    names = {p.name for p in (cell / "out.zarr").iterdir() if p.is_dir()}
    for name in names:  # an inode number could be given out again
        (cell / "out.zarr" / name / "kept").touch()
    text = RECIPE.replace("expand_nm = 8.0", "expand_nm = 30.0")
    (cell / "recipe.toml").write_text(text)
    refine_cell(*paths, options=options)
    kept = {name for name in names if (cell / "out.zarr" / name / "kept").exists()}
    assert kept == {"mito", "mito-mem", "ld"}
    er = open_labels(cell / "out.zarr" / "er").read()
    assert (er > 0).sum() < (expected()["er"] > 0).sum()


def test_a_folder_of_files_and_the_portal_s_names(tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    source = tmp_path / "cell"
    source.mkdir()
    write_tiff(source / "mito_pred.tif", Volume(PREDICTIONS["mito"], GRID))
    write_volume(source / "er.n5", Volume(PREDICTIONS["er"], GRID), format="n5")
    write_volume(source / "mito_mem.zarr", Volume(PREDICTIONS["mito_mem"], GRID))
    options = RefineOptions(("mito",), block=16, executor="processes", workers=1)
    refine_cell(str(source), str(tmp_path / "recipe.toml"), tmp_path / "a.zarr", options=options)
    found = open_labels(tmp_path / "a.zarr" / "mito").read()
    assert (found == expected()["mito"]).all()


@pytest.mark.parametrize(
    ("names", "taken"),
    [(("late", "early", "ld"), "early"), (("ld", "late"), "late"), (("ld", "er"), "ld")],
)
def test_the_first_source_that_is_there_counts_as_channel_and_as_file(tmp_path, names, taken):
    """The organelle's own name is the last."""
    steps = 'source = ["early", "late"]\nsteps = [{ do = "threshold" }]'
    (tmp_path / "recipe.toml").write_text(f"[organelles.ld]\n{steps}\n")
    volumes = {name: blobs(number) for number, name in enumerate(names)}
    both = Volume(np.stack(list(volumes.values())), GRID, names)
    write_volume(tmp_path / "channels.zarr", both)
    for name, values in volumes.items():
        write_volume(tmp_path / "folder" / f"{name}.zarr", Volume(values, GRID))
    for source in ("channels.zarr", "folder"):
        words = [str(tmp_path / source), "--recipe", str(tmp_path / "recipe.toml")]
        assert run_app(["refine", *words, "--out", str(tmp_path / f"{source}.out")]) == 0
        found = open_labels(tmp_path / f"{source}.out" / "ld").read() > 0
        np.testing.assert_array_equal(found, volumes[taken] >= 127)


def test_a_file_without_channels_is_the_organelle_that_is_named(tmp_path, capsys):
    write_volume(tmp_path / "p.zarr", Volume(PREDICTIONS["mito"], GRID))
    arguments = ["refine", str(tmp_path / "p.zarr")]  # the generic recipe
    arguments += ["--out", str(tmp_path / "o.zarr")]
    assert run_app(arguments) == 1
    assert "name it: --organelle mito" in capsys.readouterr().err
    assert not (tmp_path / "o.zarr").exists()
    spacing = ["--spacing", "400, 400, 524 nm"]
    assert run_app([*arguments, "--organelle", "er", *spacing]) == 0
    found = open_labels(tmp_path / "o.zarr" / "er")
    assert found.grid.spacing_nm == (524.0, 400.0, 400.0)
    assert found.read().any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--organelle", "nucleus"], "nucleus cannot be refined: no prediction"),
        (["--organelle", "er-periph"], "er-periph cannot be refined: needs nucleus"),
        (["--organelle", "golgi"], "there is no organelle 'golgi' in the recipe"),
        (["--recipe", "heinrich2021/hela"], "there is no recipe 'heinrich2021/hela'"),
        (["--executor", "gpu"], "there is no executor 'gpu'"),
        (["--block", "0"], "blocks of 0 voxels"),
    ],
)
def test_what_cannot_be_done_is_said(cell, capsys, change, message):
    assert run_app(command(cell, *change)) == 1
    assert message in capsys.readouterr().err
    assert not (cell / "out.zarr").exists()


def test_wrong_inputs_are_named(tmp_path, capsys):
    arguments = ["--recipe", "generic", "--out", str(tmp_path / "o.zarr")]
    assert run_app(["refine", str(tmp_path / "absent.zarr"), *arguments]) == 1
    assert "there is no" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run_app(["refine", str(tmp_path / "empty"), *arguments]) == 1
    assert "holds no prediction that the recipe names" in capsys.readouterr().err
    floats = Volume(np.full(GRID.shape, np.nan, np.float32), GRID)
    write_volume(tmp_path / "f.zarr", floats)
    assert run_app(["refine", str(tmp_path / "f.zarr"), *arguments, "--organelle", "mito"]) == 1
    assert "predictions are uint8 signed distances" in capsys.readouterr().err
    assert not (tmp_path / "o.zarr").exists()
    (tmp_path / "o2.zarr").mkdir()
    arguments[-1] = str(tmp_path / "o2.zarr")
    write_volume(tmp_path / "p.zarr", Volume(np.zeros(GRID.shape, np.uint8), GRID))
    assert run_app(["refine", str(tmp_path / "p.zarr"), *arguments, "--organelle", "mito"]) == 1
    assert "is no OME-Zarr group" in capsys.readouterr().err
