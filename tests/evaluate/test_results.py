from __future__ import annotations

import csv
import json
import math
import sqlite3
from dataclasses import replace

import pytest

from clemreg.errors import ConfigError, FormatError, MissingError, StorageError
from clemreg.evaluate.results import (
    COLUMNS,
    Result,
    ResultStore,
    metric_params,
    read_csv,
    require,
    write_csv,
)
from clemreg.evaluate.scores import METRICS

FIRST = Result(
    "pred.n5", "mito", "setup25", 575_000, "mito", "111", "volumes/raw/s0", "hela-2.n5",
    "jrc_hela-2", 127.0, False, "dice", "{}", 0.8125,
)  # fmt: skip


def some() -> list[Result]:
    return [
        FIRST,
        replace(FIRST, refined=True, value=0.9),
        replace(FIRST, label="er", metric="hausdorff", value=math.nan),
        replace(
            FIRST, metric="mean_false_distance_clipped", metric_params='{"clip_distance": 200}',
            value=1 / 3,
        ),
    ]  # fmt: skip


def key(result: Result) -> tuple:
    return tuple(repr(getattr(result, c)) for c in COLUMNS)


def test_stored_and_found_again(tmp_path):
    store = ResultStore(tmp_path / "a" / "scores.db")
    assert store.add(some()) == 4
    again = ResultStore(tmp_path / "a" / "scores.db")
    assert sorted(map(key, again.find())) == sorted(map(key, some()))
    assert again.find(label="er", setup="setup25")[0].metric == "hausdorff"
    assert [r.value for r in again.find(refined=True)] == [0.9]
    assert again.find(crop="112") == []
    with pytest.raises(ConfigError, match="no column 'cell'"):
        again.find(cell="x")


def test_a_question_has_one_answer(tmp_path):
    store = ResultStore(tmp_path / "scores.db")
    store.add(some())
    assert store.add(some()) == 0  # the same again, NaN included
    fresh = replace(FIRST, crop="113")
    with pytest.raises(StorageError, match=r"dice = 0\.8125 for mito .* not 0\.5"):
        store.add([fresh, replace(FIRST, value=0.5)])
    assert store.find(crop="113") == []  # all or none
    store.replace([fresh, replace(FIRST, value=0.5)])
    assert len(store.find()) == 5
    assert store.find(metric="dice", refined=False, crop="111")[0].value == 0.5


def test_an_independent_program_reads_the_store(tmp_path):
    ResultStore(tmp_path / "scores.db").add(some())
    db = sqlite3.connect(tmp_path / "scores.db")
    assert db.execute("SELECT count(*), max(value) FROM results").fetchone() == (4, 0.9)
    assert db.execute("SELECT value FROM results WHERE label = 'er'").fetchone() == (None,)
    db.close()


def test_other_files_are_no_store(tmp_path):
    (tmp_path / "text.db").write_text("label,crop\n" * 500)
    with pytest.raises(FormatError, match="not an SQLite file"):
        ResultStore(tmp_path / "text.db")
    db = sqlite3.connect(tmp_path / "other.db")
    db.execute("CREATE TABLE cells (id)")
    db.close()
    with pytest.raises(FormatError, match="no store of scores"):
        ResultStore(tmp_path / "other.db")


def test_csv_as_published(tmp_path):
    paths = write_csv(some(), tmp_path / "out")
    assert [p.name for p in paths] == ["er.csv", "mito.csv"]
    with paths[1].open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == [
        "path", "dataset", "setup", "iteration", "label", "crop", "raw_dataset", "parent_path",
        "parent_dataset_id", "threshold", "refined", "metric", "metric_params", "value",
    ]  # fmt: skip
    assert rows[2]["metric_params"] == "{'clip_distance': 200}"
    assert (rows[0]["threshold"], rows[0]["refined"]) == ("127", "False")
    back = [r for p in paths for r in read_csv(p)]
    assert sorted(map(key, back)) == sorted(map(key, some()))


def test_csv_in_another_order_and_with_json(tmp_path):
    path = tmp_path / "x.csv"
    columns = COLUMNS[::-1]
    values = dict(zip(COLUMNS, key(FIRST), strict=True))
    cells = {c: v.strip("'") for c, v in values.items()} | {
        "metric": "recall_with_tolerance", "metric_params": '"{""tol_distance"": 40}"',
        "refined": "false", "value": "",
    }  # fmt: skip
    path.write_text(",".join(columns) + "\n" + ",".join(cells[c] for c in columns) + "\n")
    found = read_csv(path)[0]
    assert found.metric_params == '{"tol_distance": 40}'
    assert math.isnan(found.value)
    assert found.iteration == 575_000


@pytest.mark.parametrize(
    ("column", "cell", "text"),
    [
        ("iteration", "many", "line 2: iteration is a number, not 'many'"),
        ("refined", "perhaps", "line 2: refined is True or False"),
        ("metric_params", "[3]", "line 2: metric_params"),
        ("metric_params", "__import__('os')", "line 2"),
        ("metric", "accuracy", "no metric 'accuracy'"),
    ],
)
def test_bad_csv(tmp_path, column, cell, text):
    path = tmp_path / "x.csv"
    cells = {c: v.strip("'") for c, v in zip(COLUMNS, key(FIRST), strict=True)} | {column: cell}
    path.write_text(",".join(COLUMNS) + "\n" + ",".join(cells.values()) + "\n")
    with pytest.raises((FormatError, ConfigError), match=text):
        read_csv(path)
    path.write_text("label,crop\nmito,3\n")
    with pytest.raises(FormatError, match="no column path, dataset"):
        read_csv(path)


def test_parameters_of_metrics():
    assert sum(metric_params(m, 40, 200) != "{}" for m in METRICS) == 8
    assert metric_params("recall_with_tolerance", 2.5, 200) == '{"tol_distance": 2.5}'
    assert json.loads(metric_params("recall_with_tolerance", 40, 200, "background")) == {
        "tol_distance": 40, "unannotated": "background",
    }  # fmt: skip
    with pytest.raises(MissingError, match="no score of golgi"):
        require([], "golgi")
