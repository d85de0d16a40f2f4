from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import zarr

from clemreg.cli.app import run_app
from clemreg.evaluate.results import ResultStore
from clemreg.io.volumes import open_volume, write_volume
from clemreg.segment.groundtruth import open_cosem_raw
from clemreg.volume import Volume


@pytest.fixture
def prediction(cosem_sample, tmp_path):
    """Dark is mitochondrion, more or less; droplets are nowhere."""
    em = open_cosem_raw(cosem_sample)
    values = em.read()
    mito = np.where(values < 75, 160, 90).astype(np.uint8)
    path = tmp_path / "p.zarr"
    nothing = np.zeros_like(mito)
    write_volume(path, Volume(np.stack([mito, nothing]), em.grid, ("mito", "ld")))
    return path


def command(sample, prediction, *more):
    return [
        "validate", str(prediction), "--n5", str(sample), "--setup", "setup03",
        "--ids", str(sample.parent / "ids.json"), *more,
    ]  # fmt: skip


def test_scores_are_kept_chosen_and_compared(cosem_sample, prediction, tmp_path, capsys):
    store = tmp_path / "scores.db"
    arguments = command(cosem_sample, prediction, "--iteration", "500000", "--store", str(store))
    assert run_app([*arguments, "--json", str(tmp_path / "s.json")]) == 0
    assert "84 scores kept" in capsys.readouterr().out  # 2 classes, 2 crops, 21 metrics
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["mito"]["3"]["dice"] == pytest.approx(dice(cosem_sample, prediction), abs=1e-6)
    assert scores["LD"]["8"]["dice"] is None  # looked for, not there, not found
    assert run_app(arguments) == 0
    assert "0 scores kept" in capsys.readouterr().out
    later = command(cosem_sample, prediction, "--iteration", "525000", "--store", str(store))
    assert run_app([*later, "--label", "mito", "--threshold", "80", "--metric", "dice"]) == 0
    lax, strict = (
        [r.value for r in ResultStore(store).find(label="mito", metric="dice", iteration=n)]
        for n in (525_000, 500_000)
    )
    assert len(lax) == len(strict) == 2
    assert max(lax) < min(strict) - 0.1
    out = tmp_path / "best.json"
    assert run_app(["results", "best", str(store), "--mode", "test", "--json", str(out)]) == 0
    rows = {r["label"]: r for r in json.loads(out.read_text())["rows"]}
    assert rows["mito"]["iteration"] == 500_000
    assert rows["mito"]["sample"] == "jrc_ball"
    refined = command(cosem_sample, prediction, "--iteration", "500000", "--store", str(store))
    assert run_app([*refined, "--refined", "--label", "mito", "--crop", "crop3"]) == 0
    compare = ["results", "compare", str(store), "raw-vs-refined", "--mode", "validation"]
    assert run_app([*compare, "--json", str(out)]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["label"], row["crop"]) == ("mito", "3")
    assert row["value_raw"] > row["value_refined"]


def dice(sample, prediction):
    """By SimpleITK, on the voxels of crop 3."""
    labels = open_volume(sample / "volumes/groundtruth/0003/crop3/labels/all", frame="em").read()
    truth = np.isin(labels, (3, 4, 5))[::2, ::2, ::2]
    found = open_volume(prediction).read()[0, 4:44, 6:46, 2:46] >= 127
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(sitk.GetImageFromArray(a.astype(np.uint8)) for a in (found, truth)))
    return overlap.GetDiceCoefficient()


def test_mistakes_are_explained(cosem_sample, prediction, capsys):
    plain = command(cosem_sample, prediction, "--iteration", "1")
    assert run_app([*plain, "--label", "er"]) == 1
    assert "no channel er" in capsys.readouterr().err
    assert run_app([*plain, "--crop", "crop4"]) == 1
    assert "crop3, crop8" in capsys.readouterr().err
    assert run_app([*plain, "--unannotated", "inside"]) == 2
    assert run_app([*plain[:-4], "--iteration", "1", "--label", "ld"]) == 1
    assert "did anybody look" in capsys.readouterr().err


def test_a_page_shows_every_class(cosem_sample, prediction, tmp_path):
    page = tmp_path / "r.html"
    arguments = command(cosem_sample, prediction, "--iteration", "5", "--metric", "dice")
    arguments += ["--metric", "precision", "--metric", "recall", "--report", str(page)]
    assert run_app(arguments) == 0
    html = page.read_text()
    assert "setup03 at 5, on 2 crops" in html
    assert all(f"{name}: one slice" in html for name in ("mito, crop3", "LD, crop3"))
    assert html.count("data:image/png") == 3  # bars, two slices


def test_every_option_is_in_the_scores(cosem_sample, prediction, tmp_path, capsys):
    """Options are part of the question: other lengths or another sample make another score."""
    store = tmp_path / "scores.db"
    plain = command(cosem_sample, prediction, "--iteration", "7", "--store", str(store))
    plain += ["--label", "mito", "--crop", "crop8", "--metric", "recall_with_tolerance"]
    mine = ["--sample", "ball", "--raw-dataset", "volumes/raw/s1", "--tolerance", "8 nm"]
    assert run_app(plain) == 0
    assert run_app([*plain, *mine, "--clip", "90 nm"]) == 0
    rows = {r.parent_dataset_id: r for r in ResultStore(store).find()}
    assert set(rows) == {"jrc_ball", "ball"}
    assert rows["ball"].raw_dataset == "volumes/raw/s1"
    assert json.loads(rows["ball"].metric_params) == {"tol_distance": 8}
    assert json.loads(rows["jrc_ball"].metric_params) == {"tol_distance": 40}
    assert rows["ball"].value <= rows["jrc_ball"].value
    em = open_volume(prediction)
    write_volume(prediction, Volume(em.read() * 0 + 200, em.grid, em.channels))
    changed = [*plain[:-1], "precision"]
    assert run_app(changed) == 0
    write_volume(prediction, Volume(em.read() * 0 + 100, em.grid, em.channels))
    assert run_app(changed) == 1
    assert "replace the stored score" in capsys.readouterr().err
    assert run_app([*changed, "--replace"]) == 0
    (row,) = ResultStore(store).find(metric="precision")
    assert np.isnan(row.value)


def test_cellmap_crops_are_scored_too(cellmap_sample, tmp_path, capsys):
    """Against SimpleITK; the prediction has voxels of its own, and what is absent is scored."""
    em = open_volume(cellmap_sample / "em.zarr", frame="em")
    dark = np.where(em.read() < 74, 200, 30).astype(np.uint8)
    path, store, page = tmp_path / "p.zarr", tmp_path / "s.db", tmp_path / "r.html"
    write_volume(path, Volume(np.stack([dark, np.zeros_like(dark)]), em.grid, ("mito", "er")))
    truth = cellmap_sample / "groundtruth"
    arguments = [
        "validate", str(path), "--cellmap", str(truth), "--em", str(cellmap_sample / "em.zarr"),
        "--setup", "mine", "--iteration", "5", "--store", str(store), "--report", str(page),
        "--sample", "ball",
    ]  # fmt: skip
    assert run_app(arguments) == 0
    rows = {(r.label, r.crop, r.metric): r for r in ResultStore(store).find()}
    assert {key[:2] for key in rows} == {(c, n) for c in ("mito", "er") for n in ("21", "110")}
    parts = [open_volume(truth / "crop21" / n).read() == 2 for n in ("mito_mem", "mito_lum")]
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    masks = (dark[4:44, 6:46, 2:46] >= 127, np.any(parts, axis=0)[::2, ::2, ::2])
    overlap.Execute(*(sitk.GetImageFromArray(m.astype(np.uint8)) for m in masks))
    row = rows["mito", "21", "dice"]
    assert row.value == pytest.approx(overlap.GetDiceCoefficient(), abs=1e-6)
    assert 0.6 < row.value < 0.95
    assert (row.parent_dataset_id, row.raw_dataset) == ("ball", "em.zarr")
    assert np.isnan(rows["er", "21", "dice"].value)  # looked for, not there, not found
    assert page.read_text().count("data:image/png") >= 3
    assert run_app([*arguments[:2], *arguments[6:], "--overwrite"]) == 1
    assert "--n5 SAMPLE.n5, or --cellmap" in capsys.readouterr().err


def test_classes_of_a_cellmap_crop_may_have_voxels_of_their_own(
    cellmap_sample, write_cellmap_label, tmp_path, capsys
):
    """Voxels of the nucleus are four times as long; then the parts of droplets differ, too."""
    root = tmp_path / "jrc_ball"
    shutil.copytree(cellmap_sample, root)
    crop = root / "groundtruth" / "crop21"
    em = open_volume(root / "em.zarr", frame="em")
    start = em.grid.to_world((4, 6, 2)) + np.asarray(em.grid.spacing_nm) / 2
    coarse = (10.48, 8.0, 8.0), start.tolist()
    rng = np.random.default_rng(4)
    nucleus = rng.integers(0, 3, (20, 20, 22)).astype(np.uint8)
    write_cellmap_label(crop / "nuc", nucleus, *coarse)
    group = zarr.open_group(str(crop), mode="a", zarr_format=2)
    names = ["mito_mem", "mito_lum", "mito_ribo", "er", "nuc"]
    group.attrs["cellmap"] = {"annotation": {"class_names": names}}
    dark = np.where(em.read() < 74, 200, 30).astype(np.uint8)
    found = rng.integers(0, 255, em.shape).astype(np.uint8)
    path, out = tmp_path / "p.zarr", tmp_path / "s.json"
    write_volume(path, Volume(np.stack([dark, found, found]), em.grid, ("mito", "nuc", "ld")))
    command = [
        "validate", str(path), "--cellmap", str(root / "groundtruth"), "--setup", "mine",
        "--iteration", "1", "--crop", "crop21", "--metric", "dice", "--json", str(out),
    ]  # fmt: skip
    assert run_app(command) == 0
    scores = json.loads(out.read_text())
    inside = (slice(4, 44), slice(6, 46), slice(2, 46))
    parts = [open_volume(crop / n).read() == 2 for n in ("mito_mem", "mito_lum")]
    whole = np.ones((40, 40, 44), bool)
    for name, p, t, known in (
        ("mito", dark[inside] >= 127, np.any(parts, axis=0)[::2, ::2, ::2], whole),
        ("nucleus", found[inside][::2, ::2, ::2] >= 127, nucleus == 2, nucleus != 0),
    ):
        overlap = 2 * (p & t).sum() / ((p & known).sum() + t.sum())
        assert scores[name]["21"]["dice"] == pytest.approx(overlap)
    fine = open_volume(crop / "er").grid
    write_cellmap_label(crop / "ld_mem", nucleus, *coarse)
    write_cellmap_label(crop / "ld_lum", np.ones(fine.shape, np.uint8), fine.spacing_nm, start)
    group.attrs["cellmap"] = {"annotation": {"class_names": [*names, "ld_mem", "ld_lum"]}}
    assert run_app([*command, "--label", "nuc"]) == 0
    assert json.loads(out.read_text()) == {"nucleus": scores["nucleus"]}
    assert run_app(command) == 1
    assert "ld_mem, ld_lum lie on different grids" in capsys.readouterr().err


TWICE = """
def model(em):
    return -em.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)


input_size, output_size = (16, 16, 16), (32, 32, 32)
input_voxel_size, output_voxel_size = (10.48, 8, 8), (5.24, 4, 4)
output_channels = ("mito",)
"""


def test_a_network_for_8_nm_is_scored_where_the_paper_scored_it(cosem_sample, tmp_path):
    """Voxel 2 k of the prediction from simulated 8 nm EM begins with voxel 2 k of the 4 nm EM."""
    script, path, out = (tmp_path / name for name in ("twice.py", "p.zarr", "s.json"))
    script.write_text(TWICE)
    em = str(cosem_sample / "volumes/subsampled/raw/0")
    segment = ["segment", em, "--model", str(script), "--contrast", "20", "220"]
    assert run_app([*segment, "--out", str(path)]) == 0
    arguments = command(cosem_sample, path, "--iteration", "1", "--metric", "dice")
    assert run_app([*arguments, "--json", str(out)]) == 0
    expected = dice(cosem_sample, path)
    assert json.loads(out.read_text())["mito"]["3"] == {"dice": pytest.approx(expected, abs=1e-6)}
