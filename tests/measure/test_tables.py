from __future__ import annotations

import sys

import numpy as np
import pytest

from clemreg.errors import ConfigError, DataError, DependencyError, FormatError, MissingError
from clemreg.measure.tables import Table, read_table, write_table


@pytest.fixture
def table():
    return Table.of(
        object_id=np.array([3, 70_001, 2**63 + 5], np.uint64),
        length_nm=[1 / 3, np.nan, 1e300],
        organelle=["mito", "er, smooth", 'a "b"'],
    )


def test_a_csv_comes_back_unchanged(tmp_path, table):
    write_table(tmp_path / "t.csv", table)
    back = read_table(tmp_path / "t.csv")
    assert list(back.columns) == list(table.columns)
    assert back["object_id"].dtype == np.uint64
    for name in table.columns:
        np.testing.assert_array_equal(back[name], table[name])
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines[0] == "object_id,length_nm,organelle"
    assert lines[2] == '70001,,"er, smooth"'


def test_parquet_read_by_pyarrow(tmp_path, table):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_table(tmp_path / "t.parquet", table)
    back = parquet.read_table(tmp_path / "t.parquet")
    assert back.column("object_id").to_pylist() == [3, 70_001, 2**63 + 5]
    assert back.column("organelle").to_pylist() == table["organelle"].tolist()
    np.testing.assert_array_equal(back.column("length_nm").to_numpy(), table["length_nm"])


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, table, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DependencyError, match=r"clemreg-toolkit\[measure\]"):
        write_table(tmp_path / "t.parquet", table)
    assert not (tmp_path / "t.parquet").exists()


def test_what_is_no_table(tmp_path, table):
    with pytest.raises(ConfigError, match=r"\.csv or \.parquet"):
        write_table(tmp_path / "t.xls", table)
    with pytest.raises(DataError, match="different lengths"):
        Table.of(a=[1], b=[1, 2])
    with pytest.raises(DataError, match="no column 'volume'"):
        table["volume"]
    with pytest.raises(MissingError):
        read_table(tmp_path / "absent.csv")
    (tmp_path / "torn.csv").write_text("a,b\n1,2\n3\n")
    with pytest.raises(FormatError, match="line 3: 1 fields, expected 2"):
        read_table(tmp_path / "torn.csv")
    (tmp_path / "twice.csv").write_text("a,a\n1,2\n")
    with pytest.raises(FormatError, match="one name"):
        read_table(tmp_path / "twice.csv")


def test_rows_can_be_left_out(table):
    kept = table.where(table["object_id"] > 5)
    assert [row["object_id"] for row in kept.rows()] == [70_001, 2**63 + 5]
