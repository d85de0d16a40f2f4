from __future__ import annotations

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import tifffile

from clemreg.cli.app import run_app
from clemreg.evaluate.results import Result, ResultStore, write_csv

BASE = Result(
    "p", "d", "setup03", 500_000, "mito", "1", "volumes/raw/s0", "n5", "jrc_hela-2", 127.0,
    False, "dice", "{}", 0.5,
)  # fmt: skip


@pytest.fixture
def store(tmp_path):
    rows = [
        replace(BASE, setup=s, crop=c, value=v, iteration=i, metric=m)
        for m, sign in (("dice", 1), ("mean_false_distance", -40))
        for s, i, c, v in [
            ("setup03", 500_000, "1", 0.6 * sign), ("setup03", 500_000, "2", 0.4 * sign),
            ("setup01", 525_000, "1", 0.3 * sign), ("setup01", 525_000, "2", 0.9 * sign),
            ("setup25", 525_000, "1", 0.2 * sign), ("setup25", 525_000, "2", 0.1 * sign),
        ]
    ]  # fmt: skip
    tables = write_csv(rows, tmp_path / "csv")
    path = tmp_path / "scores.db"
    assert run_app(["results", "import", str(path), *map(str, tables)]) == 0
    assert len(ResultStore(path).find()) == 12
    return path


def test_tables_in_and_out(store, tmp_path, capsys):
    assert run_app(["results", "export", str(store), "--out", str(tmp_path / "out")]) == 0
    first, again = ((tmp_path / f / "mito.csv").read_text() for f in ("csv", "out"))
    assert sorted(first.splitlines()) == sorted(again.splitlines())
    assert run_app(["results", "import", str(store), str(tmp_path / "csv" / "mito.csv")]) == 0
    assert "0 new scores" in capsys.readouterr().out


def test_best_in_both_modes(store, tmp_path, capsys):
    out = tmp_path / "b.json"
    assert run_app(["results", "best", str(store), "--json", str(out)]) == 0
    row = json.loads(out.read_text())["rows"][0]
    assert (row["setup"], row["value"], row["crops"]) == ("setup01", pytest.approx(0.6), 2)
    assert "setup01" in capsys.readouterr().out
    assert run_app(["results", "best", str(store), "--mode", "test", "--json", str(out)]) == 0
    # Chosen on crop 2: setup01, 0.3 on crop 1. Chosen on crop 1: setup03, 0.4 on crop 2.
    assert json.loads(out.read_text())["rows"][0]["value"] == pytest.approx(0.35)
    assert run_app(["results", "best", str(store), "--mode", "both"]) == 2


def test_samples_with_one_crop_each_are_tested_on_one_another(tmp_path):
    """As in the paper, which held one crop of each of four samples out."""
    scores = {("a", "1"): (0.6, 0.5, 0.1), ("b", "1"): (0.4, 0.7, 0.8), ("c", "7"): (0.3, 0.2, 0.9)}
    rows = [
        replace(BASE, parent_dataset_id=sample, crop=crop, iteration=100 * i, value=value)
        for (sample, crop), values in scores.items()
        for i, value in enumerate(values)
    ]
    ResultStore(tmp_path / "s.db").add(rows)
    out = tmp_path / "b.json"
    command = ["results", "best", str(tmp_path / "s.db"), "--mode", "test", "--json", str(out)]
    assert run_app(command) == 0
    found = {r["sample"]: r for r in json.loads(out.read_text())["rows"]}
    # On b and c together 200 is best, and so on a and c; on a and b it is 100.
    assert {s: r["value"] for s, r in found.items()} == {"a": 0.1, "b": 0.8, "c": 0.2}
    assert {s: r["iteration"] for s, r in found.items()} == {"a": 0, "b": 200, "c": 200}


def test_compare_and_converged(store, tmp_path):
    out = tmp_path / "c.csv"
    command = ["results", "compare", str(store), "all-vs-many-vs-few", "--mode", "validation"]
    assert run_app([*command, "--out", str(out)]) == 0
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(r["value_all"]) for r in rows] == [0.3, 0.9]
    assert [r["setup_few"] for r in rows] == ["setup25"] * 2
    assert run_app(["results", "converged", str(store), "--json", str(tmp_path / "k.json")]) == 0
    found = json.loads((tmp_path / "k.json").read_text())["rows"]
    assert {(r["setup"], r["state"]) for r in found} == {
        ("setup01", "running"), ("setup03", "running"), ("setup25", "running"),
    }  # fmt: skip


def test_refined_scores_are_no_better_checkpoint(store, tmp_path):
    """They are compared with raw ones, but never averaged with them."""
    better = [
        replace(r, refined=True, value=1.0)
        for r in ResultStore(store).find(setup="setup03", metric="dice")
    ]
    assert ResultStore(store).add(better) == 2
    out = tmp_path / "b.json"
    assert run_app(["results", "best", str(store), "--json", str(out)]) == 0
    row = json.loads(out.read_text())["rows"][0]
    assert (row["setup"], row["value"]) == ("setup01", pytest.approx(0.6))


def test_scores_of_two_kinds_are_not_averaged(store, capsys):
    ResultStore(store).add([replace(BASE, iteration=525_000, setup="setup25", threshold=140.0)])
    assert run_app(["results", "best", str(store)]) == 1
    assert "mito: scores with threshold 127.0 and 140.0" in capsys.readouterr().err


def test_no_page_averages_scores_of_two_tolerances(store, tmp_path, capsys):
    page = tmp_path / "r.html"
    command = ["results", "report", str(store), "--out", str(page)]
    of = replace(BASE, setup="setup01", iteration=525_000, metric="f1_score_with_tolerance")
    ten, forty = ('{"tol_distance": 10}', '{"tol_distance": 40}')
    some = [replace(of, metric_params=forty, crop=c, value=v) for c, v in (("1", 0.9), ("2", 0.5))]
    # The same prediction in two files counts once: the mean is 0.7, not 2.3 / 3.
    ResultStore(store).add([*some, replace(some[0], path="copy")])
    assert run_app(command) == 0
    assert re.search(r"f1_score_with_tolerance</t[dh]>\s*<td[^>]*>0\.700<", page.read_text())
    ResultStore(store).add([replace(of, metric_params=ten, value=0.3)])
    assert run_app([*command, "--overwrite"]) == 1
    assert f"metric_params {ten} and {forty} are not averaged" in capsys.readouterr().err


def test_one_class_without_a_metric_hides_no_other(store, tmp_path):
    ResultStore(store).add([replace(BASE, label="er")])
    out = tmp_path / "k.json"
    assert run_app(["results", "converged", str(store), "--json", str(out)]) == 0
    rows = {(r["setup"], r["label"]): r for r in json.loads(out.read_text())["rows"]}
    assert rows["setup03", "mito"]["state"] == "running"
    er = rows["setup03", "er"]
    assert (er["state"], er["iteration"], er["incomplete"]) == ("incomplete", None, [500_000])


@pytest.mark.parametrize("mode", ["validation", "test"])
def test_there_is_no_best_of_scores_that_are_all_nan(tmp_path, capsys, mode):
    path = tmp_path / "nan.db"
    ResultStore(path).add([replace(BASE, value=float("nan")), replace(BASE, refined=True)])
    command = ["results", "best", str(path), "--mode", mode, "--out", str(tmp_path / "best.csv")]
    assert run_app(command) == 1
    assert "every score of dice of a raw prediction is NaN" in capsys.readouterr().err
    assert not (tmp_path / "best.csv").exists()


def test_a_table_replaces_scores_only_if_asked(store, tmp_path, capsys):
    write_csv([replace(BASE, value=0.61)], tmp_path / "new")
    command = ["results", "import", str(store), str(tmp_path / "new" / "mito.csv")]
    assert run_app(command) == 1
    assert "has dice = 0.6 for mito" in capsys.readouterr().err
    assert run_app([*command, "--replace"]) == 0
    assert [r.value for r in ResultStore(store).find(setup="setup03", crop="1", metric="dice")] == [
        0.61
    ]
    assert len(ResultStore(store).find()) == 12
    (tmp_path / "bad.csv").write_text(
        (tmp_path / "new" / "mito.csv").read_text().replace("500000", "many")
    )
    assert run_app(["results", "import", str(store), str(tmp_path / "bad.csv")]) == 1
    assert "line 2: iteration is a number, not 'many'" in capsys.readouterr().err


def test_mistakes_are_explained(store, tmp_path, capsys):
    assert run_app(["results", "compare", str(store), "raw-vs-refined"]) == 1
    assert "every arm of raw-vs-refined" in capsys.readouterr().err
    assert run_app(["results", "best", str(tmp_path / "no.db")]) == 1
    assert "no store" in capsys.readouterr().err
    assert run_app(["results", "best", str(store), "--metric", "voi"]) == 1
    assert "no score of voi" in capsys.readouterr().err


def test_pages(store, tmp_path):
    page = tmp_path / "all.html"
    assert run_app(["results", "report", str(store), "--out", str(page)]) == 0
    assert "setup01 at 525000" in page.read_text()
    rng = np.random.default_rng(0)
    for name in ("p", "t", "em"):
        array = rng.integers(0, 2 if name != "em" else 255, (5, 17, 23)).astype(np.uint8)
        tifffile.imwrite(tmp_path / f"{name}.tif", array)
    files = [str(tmp_path / f"{n}.tif") for n in ("p", "t")]
    one = tmp_path / "one.html"
    extra = ["--em", str(tmp_path / "em.tif"), "--report", str(one)]
    assert run_app(["score", *files, "--voxel-size", "4, 4, 5.24 nm", *extra]) == 0
    assert "Overlap by class" in one.read_text()
    assert one.read_text().count("data:image/png") == 3
