from __future__ import annotations

import csv
import json

import networkx as nx
import numpy as np
import pytest

from clemreg.cli.app import run_app
from clemreg.errors import ConfigError
from clemreg.io.volumes import open_labels, write_volume
from clemreg.measure.interactions import interactions, named, partners, write_graphml
from clemreg.measure.recipes import contact_recipe, contact_recipes
from clemreg.measure.tables import Table, read_table, write_table
from clemreg.testing import hostile_grid
from clemreg.volume import Labels


def contacts(rows, a, b):
    a_id, b_id, area, gap = (np.array(c) for c in zip(*rows, strict=True))
    table = Table.of(
        a_id=a_id.astype("u8"), b_id=b_id.astype("u8"), volume_nm3=area * 10.0,
        area_a_nm2=area * 1.0, area_b_nm2=area * 2.0, gap_nm=gap * 1.0,
    )  # fmt: skip
    return named(table, a, b)


@pytest.fixture
def pairs():
    er = contacts([(1, 70_001, 5, 8), (1, 70_001, 7, 2), (1, 70_002, 3, 0)], "er", "mt")
    mito = contacts([(2**40, 70_001, 11, 9)], "mito", "mt")
    return interactions([er, mito])


def test_sites_of_a_pair_add_up_and_a_microtubule_touches_two_organelles(pairs):
    assert len(pairs) == 3
    row = next(r for r in pairs.rows() if r["organelle_a"] == "er" and r["b_id"] == 70_001)
    assert (row["sites"], row["area_a_nm2"], row["area_b_nm2"], row["gap_nm"]) == (2, 12, 24, 2)
    seen = {(r["organelle"], r["object_id"]): r for r in partners(pairs).rows()}
    assert seen["mt", 70_001]["touches"] == "er+mito"
    assert seen["mt", 70_001]["partners"] == 2
    assert seen["er", 1]["touches"] == "mt"
    assert seen["er", 1]["partners"] == 2


def test_tables_without_rows_change_no_id(tmp_path):
    """Read back from CSV, an empty table has no types; a large id is no float, nor is a name."""
    many, none = contacts([(2**60 + 1, 2**60 + 3, 5, 8)], "er", "mt"), tmp_path / "none.csv"
    write_table(none, many.where(np.zeros(1, bool)))
    for tables in ([many, read_table(none)], [read_table(none), many]):
        pairs = interactions(tables)
        assert pairs["a_id"].tolist() == [2**60 + 1]
        assert partners(pairs)["object_id"].tolist() == [2**60 + 1, 2**60 + 3]
    empty = interactions([read_table(none)])
    assert [empty[n].dtype.kind for n in ("a_id", "organelle_b", "gap_nm")] == ["u", "U", "f"]
    write_graphml(tmp_path / "g.graphml", empty)
    assert len(nx.read_graphml(tmp_path / "g.graphml")) == 0


def fields(path):
    """Columns as the texts that stand in the file."""
    head, *rows = csv.reader(path.read_text().splitlines())
    return dict(zip(head, map(list, zip(*rows, strict=True)), strict=True))


def test_a_name_that_looks_like_a_number_stays_a_name(tmp_path, monkeypatch):
    """001 is not 1, 2e3 not 2000: as numbers, 001 and 1 would be one organelle."""
    monkeypatch.chdir(tmp_path)
    for name, a in (("x", "001"), ("y", "1")):
        write_table(f"{name}.csv", contacts([(1, 2**63 + 3, 5, 8)], a, "2e3"))
    words = [
        "interactions",
        "x.csv",
        "y.csv",
        "--csv",
        "p.csv",
        "--partners",
        "t.csv",
        "--graph",
        "g.graphml",
    ]
    assert run_app(words) == 0
    read = fields(tmp_path / "p.csv")
    assert read["organelle_a"] == ["001", "1"]
    assert read["organelle_b"] == ["2e3", "2e3"]
    assert read["sites"] == ["1", "1"]
    touched = fields(tmp_path / "t.csv")
    assert touched["organelle"] == ["001", "1", "2e3"]
    assert touched["touches"] == ["2e3", "2e3", "001+1"]
    assert sorted(nx.read_graphml("g.graphml")) == ["001:1", "1:1", f"2e3:{2**63 + 3}"]
    assert read_table("t.csv")["organelle"].tolist() == ["001", "1", "2e3"]


def test_networkx_reads_the_graph(tmp_path, pairs):
    write_graphml(tmp_path / "g.graphml", pairs)
    graph = nx.read_graphml(tmp_path / "g.graphml")
    assert set(graph) == {"er:1", f"mito:{2**40}", "mt:70001", "mt:70002"}
    assert graph.nodes[f"mito:{2**40}"] == {"organelle": "mito", "object_id": 2**40}
    edge = graph.edges["er:1", "mt:70001"]
    assert edge["sites"] == 2
    assert edge["area_a_nm2"] == 12.0
    assert not graph.is_directed()


def test_the_papers_recipes():
    recipes = {r.name.split("/")[1]: r for r in contact_recipes()}
    assert len(recipes) == 19
    for name, recipe in recipes.items():
        assert recipe.options.distance_nm == (20 if "mt" in name.split("_") else 10)
        assert recipe.options.method == "sight"
    assert recipes["er_mito"].options.overlap == "a"
    assert recipes["er_ribo"].options.overlap == "b"
    assert recipes["mt_nucleus"].options.overlap == "a"
    assert recipes["mito_pm"].options.overlap == "shared"
    assert recipes["er-periph_ribo"].a == "er-periph-reconstructed"
    assert recipes["er-periph_mt"].a == "er-periph"
    with pytest.raises(ConfigError, match="no contact recipe 'er_x'") as error:
        contact_recipe("er_x")
    assert "golgi_mt" in error.value.hint


@pytest.fixture
def files(tmp_path):
    grid = hostile_grid()
    er, mt = np.zeros((2, *grid.shape), "u8")
    er[:, :, :10] = 2**40 + 1
    mt[:, 3:5, 14:] = 70_001
    mt[:, 10:12, 9:] = 70_002
    for name, array in (("er", er), ("mt", mt)):
        write_volume(tmp_path / f"{name}.zarr", Labels(array, grid))
    return tmp_path


def test_contacts_and_interactions_from_the_command_line(files, capsys):
    words = ["contacts", str(files / "er.zarr"), str(files / "mt.zarr"), "--recipe", "er_mt"]
    words += ["--csv", str(files / "c.csv"), "--out", str(files / "c.zarr"), "--block", "7"]
    words += ["--json", str(files / "c.json"), "--graph", str(files / "c.graphml")]
    assert run_app(words) == 0
    assert "gap_nm" in capsys.readouterr().out
    table = read_table(files / "c.csv")
    assert table["b_id"].tolist() == [70_001, 70_002]
    assert table["gap_nm"].tolist() == [16, 0]
    assert table["organelle_b"].tolist() == ["mt", "mt"]
    assert set(np.unique(open_labels(files / "c.zarr").read())) == {0, 1, 2}
    assert len(nx.read_graphml(files / "c.graphml")) == 3
    assert json.loads((files / "c.json").read_text())["contacts"]["objects"] == 2
    assert not list(files.glob(".*"))
    words = ["interactions", str(files / "c.csv"), "--csv", str(files / "i.csv")]
    words += ["--partners", str(files / "p.csv"), "--graph", str(files / "i.graphml")]
    assert run_app([*words, "--json", str(files / "i.json")]) == 0
    assert read_table(files / "p.csv")["touches"].tolist() == ["mt", "er", "er"]
    assert json.loads((files / "i.json").read_text())["interactions"]["touching"]["er"] == 2


def test_options_given_win_over_the_recipe(files, capsys):
    words = ["contacts", str(files / "er.zarr"), str(files / "mt.zarr"), "--recipe", "er_mt"]
    out = str(files / "c.csv")
    given = ["--distance", "6 nm", "--overlap", "shared", "--method", "naive", "--csv", out]
    more = ["--names", "er,tubule", "--min-volume", "1", "--workers", "2"]
    assert run_app([*words, *given, *more]) == 0
    table = read_table(out)
    assert table["b_id"].tolist() == [70_002]
    assert table["organelle_b"].tolist() == ["tubule"]
    assert run_app([*words, "--names", "one"]) == 1
    assert "expected two names" in capsys.readouterr().err
    assert run_app([*words, "--distance", "6"]) == 1
    assert "number and a unit" in capsys.readouterr().err
    assert run_app([*words[:3], "--recipe", "x"]) == 1
    assert "no contact recipe" in capsys.readouterr().err
    alone = ["contacts", str(files / "mt.zarr"), "--parquet", str(files / "c.parquet")]
    pytest.importorskip("pyarrow")
    assert run_app(alone) == 0
    assert (files / "c.parquet").is_file()


def test_measure_from_the_command_line(files, capsys):
    words = ["measure", str(files / "mt.zarr"), "--cell", str(files / "er.zarr"), "--block", "8"]
    words += ["--csv", str(files / "m.csv"), "--json", str(files / "m.json"), "--workers", "2"]
    assert run_app(words) == 0
    table = read_table(files / "m.csv")
    assert table["object_id"].tolist() == [70_001, 70_002]
    assert table["volume_nm3"].tolist() == pytest.approx([11 * 2 * 9 * 83.84, 11 * 2 * 14 * 83.84])
    cell = 11 * 17 * 10
    # One is not in it at all, of the other a column of voxels is.
    assert table["fraction_of_cell"].tolist() == pytest.approx([0, 11 * 2 / cell])
    rows = json.loads((files / "m.json").read_text())["measure"]["table"]
    assert rows[0]["object_id"] == 70_001
    assert run_app(["measure", str(files / "nothing.zarr")]) == 1
    assert "there is no" in capsys.readouterr().err
