"""What cannot end well is refused before any work, not after hours of it."""

from __future__ import annotations

import numpy as np
import pytest

from clemreg.cli.app import run_app
from clemreg.io.volumes import write_volume
from clemreg.testing import hostile_grid
from clemreg.volume import Labels

WORDS = [
    (["measure", "LABELS", "--csv", "out/x.txt"], "not .txt"),
    (["skeletonize", "LABELS", "--csv", "out/x"], "not without suffix"),
    (["contacts", "LABELS", "--csv", "out/x.xlsx"], "not .xlsx"),
    (["mesh", "LABELS", "--out", "out/m", "--csv", "out/x.tsv"], "not .tsv"),
    (["mesh", "LABELS", "--out", "out/m", "--parquet", "out/x.csv2"], "not .csv2"),
    (["planarity", "LABELS", "--out", "out/p.zarr", "--thickness", "out/t.ods"], "not .ods"),
    (["holdout", "LABELS", "a=LABELS", "--csv", "out/x.doc"], "not .doc"),
    (["mesh", "LABELS", "--out", "out/m", "--format", "stl"], "mesh format 'stl'"),
    (["measure", "LABELS", "--csv", "LABELS/zarr.json/x.csv"], "cannot make the folder"),
    (["contacts", "LABELS", "--csv", "x.csv", "--names", "er"], "expected two names"),
    (["contacts", "LABELS", "./LABELS", "--csv", "x.csv"], "would both be called labels"),
    (["refine-scan", "LABELS", "--out", "LABELS/zarr.json/x"], "choose another output folder"),
    (["measure", "LABELS", "--block", "0"], "blocks of 0 voxels are none"),
    (["contacts", "LABELS", "--csv", "x.csv", "--block", "-3"], "blocks of -3 voxels"),
    (["microtubules", "LABELS", "--out", "out/t", "--truth", "none.nml"], "none.nml is not there"),
    (["ribosomes", "LABELS", "--out", "out/r", "--planarity", "none.zarr"], "no none.zarr"),
]


@pytest.mark.parametrize(("words", "message"), WORDS, ids=[w[1] for w in WORDS])
def test_refused_before_any_work(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    grid = hostile_grid()
    write_volume("labels.zarr", Labels(np.ones(grid.shape, "u1"), grid))
    assert run_app([word.replace("LABELS", "labels.zarr") for word in words]) == 1
    shown = capsys.readouterr()
    assert message in shown.err
    assert "PROGRESS" not in shown.err
    assert shown.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["labels.zarr"]


COMMANDS = [
    ["measure", "LABELS", "--csv", "x.csv"],
    ["measure", "one.zarr", "--cell", "LABELS", "--csv", "x.csv"],
    ["contacts", "one.zarr", "LABELS", "--csv", "x.csv"],
    ["skeletonize", "LABELS", "--csv", "x.csv"],
    ["planarity", "LABELS", "--out", "x.zarr"],
    ["mesh", "LABELS", "--out", "x"],
    ["holdout", "LABELS", "a=one.zarr", "--csv", "x.csv"],
    ["holdout", "one.zarr", "a=LABELS", "--csv", "x.csv"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=[" ".join(words[:3]) for words in COMMANDS])
def test_several_channels_are_no_label_volume(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    grid = hostile_grid()
    values = np.ones((2, *grid.shape), "u1")
    write_volume("labels.zarr", Labels(values, grid, ("mito", "er")))
    write_volume("one.zarr", Labels(values[:1], grid, ("mito",)))
    assert run_app([word.replace("LABELS", "labels.zarr") for word in words]) == 1
    shown = capsys.readouterr()
    assert "labels.zarr has channels mito, er; one volume is expected" in shown.err
    assert "a volume of its own" in shown.err
    assert "PROGRESS" not in shown.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.zarr", "one.zarr"]


def test_the_only_channel_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grid = hostile_grid()
    values = np.ones((1, *grid.shape), "u1")
    write_volume("one.zarr", Labels(values, grid, ("mito",)))
    write_volume("none.zarr", Labels(values[0], grid))
    for name in ("one", "none"):
        assert run_app(["measure", f"{name}.zarr", "--csv", f"{name}.csv"]) == 0
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "none.csv").read_text()


NEGATIVE = [
    ["measure", "LABELS", "--csv", "x.csv"],
    ["contacts", "LABELS", "--csv", "x.csv"],
    ["contacts", "LABELS", "good.zarr", "--csv", "x.csv"],
    ["contacts", "good.zarr", "LABELS", "--csv", "x.csv"],
    ["contacts", "good.zarr", "LABELS", "--method", "naive", "--csv", "x.csv"],
    ["skeletonize", "LABELS", "--csv", "x.csv"],
    ["mesh", "LABELS", "--out", "x"],
]


@pytest.mark.parametrize("words", NEGATIVE, ids=[" ".join(words[:5]) for words in NEGATIVE])
def test_a_negative_id_is_no_object(tmp_path, monkeypatch, capsys, words):
    """Some programs write -1 for "unknown"; as uint64 it would be an object of its own."""
    monkeypatch.chdir(tmp_path)
    grid = hostile_grid()
    ids = np.zeros(grid.shape, "i4")
    ids[2:5], ids[5:8] = 70_001, -1
    write_volume("labels.zarr", Labels(ids, grid))
    write_volume("good.zarr", Labels(np.abs(ids), grid))
    assert run_app([word.replace("LABELS", "labels.zarr") for word in words]) == 1
    assert "labels.zarr has negative ids" in capsys.readouterr().err
    assert not list(tmp_path.glob("x*"))
