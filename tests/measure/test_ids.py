"""Ids beyond 2^16, 2^32 and 2^63 go through every command and into every file as they are."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from clemreg.cli.app import run_app
from clemreg.io.volumes import write_volume
from clemreg.measure.tables import read_table
from clemreg.space import Grid
from clemreg.volume import Labels

IDS = [2**16 + 1, 2**32 + 1, 2**63 + 1, 2**64 - 1]
GRID = Grid((20, 24, 88), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Objects in a row, 24 nm apart, and of each id less one another 10 nm above it."""
    monkeypatch.chdir(tmp_path)
    low, high = np.zeros(GRID.shape, "u8"), np.zeros(GRID.shape, "u8")
    for place, number in enumerate(IDS):
        x = slice(4 + 20 * place, 18 + 20 * place)
        low[2:9, 3:21, x], high[11:18, 3:21, x] = number, number - 1
    write_volume("low.zarr", Labels(low, GRID))
    write_volume("high.zarr", Labels(high, GRID))
    return tmp_path


def column(path, name):
    return read_table(path)[name].tolist()


def test_ids_of_every_command(folder):
    for words in (
        "measure low.zarr --csv m.csv --json m.json",
        "contacts low.zarr high.zarr --distance 20nm --csv c.csv --out c.zarr --graph c.graphml",
        "contacts low.zarr high.zarr --distance 20nm --method naive --csv n.csv",
        "contacts low.zarr --distance 30nm --csv w.csv",
        "interactions c.csv w.csv --csv p.csv --partners t.csv --graph g.graphml",
        "skeletonize low.zarr --csv s.csv --swc swc",
        "mesh low.zarr --out ply --csv e.csv --keep 1",
        "mesh low.zarr --out obj --format obj --keep 1",
        "mesh low.zarr --out ng --format neuroglancer --keep 1",
    ):
        assert run_app(words.split()) == 0, words
    for name in ("m.csv", "s.csv", "e.csv"):
        assert column(folder / name, "object_id") == IDS
    rows = json.loads((folder / "m.json").read_text())["measure"]["table"]
    assert [row["object_id"] for row in rows] == IDS
    for name in ("c.csv", "n.csv"):
        assert column(folder / name, "a_id") == IDS
        assert column(folder / name, "b_id") == [number - 1 for number in IDS]
    assert column(folder / "w.csv", "a_id") == IDS[:-1]
    assert column(folder / "w.csv", "b_id") == IDS[1:]
    assert sorted(column(folder / "t.csv", "object_id")) == sorted(IDS + [n - 1 for n in IDS])
    nodes = re.findall(r'<node id="low:(\d+)"', (folder / "g.graphml").read_text())
    assert sorted(map(int, nodes)) == IDS
    for kind in ("swc", "ply", "obj"):
        assert sorted(int(p.stem) for p in (folder / kind).iterdir()) == IDS
    assert {f"{number}:0" for number in IDS} < {p.name for p in (folder / "ng").iterdir()}


def test_parquet_holds_the_whole_ids(folder):
    parquet = pytest.importorskip("pyarrow.parquet")
    assert run_app(["measure", "low.zarr", "--parquet", "m.parquet"]) == 0
    assert parquet.read_table(folder / "m.parquet").column("object_id").to_pylist() == IDS
