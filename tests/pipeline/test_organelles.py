"""`clemreg organelles` on a drawn cell whose sizes are known, killed and changed.

Two spheres (mito) over a sheet (er); a microtubule that goes between the spheres and through the
sheet; a ribosome on the sheet and one in the open.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from scipy.special import erf

from clemreg.cli.app import run_app
from clemreg.config_organelles import load_organelles_config
from clemreg.io.quantise import quantise
from clemreg.io.volumes import open_volume, write_volume
from clemreg.measure.sheetness import SheetnessOptions
from clemreg.measure.tables import read_table
from clemreg.pipeline.context import this_command
from clemreg.pipeline.organelles import run_organelles
from clemreg.space import Grid
from clemreg.volume import Volume

GRID = Grid((42, 44, 80), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")
RADIUS_NM = 64.0
CENTRES = (22.0, 20.0, 19.0), (22.0, 22.0, 57.0)  # voxels; more than a diameter apart
SHEET = 3, 8  # slices; an odd number, so that the middle is a voxel
TUBE = 21.0, 38.0  # y, x in voxels; from end to end of the volume along z
BALLS = (10.0, 22.0, 38.0), (36.0, 38.0, 8.0)
SCALES = 7
CONFIG = """
[input]
predictions = "predictions"
organelles = ["mito", "er"]
recipe = "recipe.toml"
cell = "cell.zarr"

[microtubules]

[ribosomes]
planarity = "er"

[skeletonize]
organelles = ["mito"]

[[contacts]]
a = "er"
b = "mt"
recipe = "er_mt"

[[contacts]]
a = "mito"
b = "mt"
recipe = "mito_mt"

[[contacts]]
a = "er"
b = "mito"
distance = "20 nm"

[[contacts]]
a = "mito"
distance = "40 nm"
name = "between"

[planarity]
organelles = ["er"]
largest_radius = "30 nm"
scales = 7

[[reconstruct]]
of = "er"

[[reconstruct]]
of = "er"
name = "er-off-mito"
remove_inside = "mito"
expand = "30 nm"

[mesh]
organelles = ["mito"]
format = "obj"

[compute]
block = 48

[output]
dir = "run"
title = "Two spheres"
parquet = true
"""
QUICK = f"{CONFIG}\n[measure]\nreport = false\n"
RECIPE = """
[organelles.mito]
steps = [{ do = "threshold" }, { do = "components", min_volume_nm3 = 1000.0 }]
[organelles.er]
steps = [{ do = "threshold" }, { do = "components", min_volume_nm3 = 1000.0 }]
[organelles.nucleus]
steps = [{ do = "threshold" }]
"""
STEPS = (
    "refine", "planarity-er", "reconstruct-er-reconstructed", "reconstruct-er-off-mito",
    "microtubules-mt", "ribosomes-ribo", "measure-mito", "measure-er",
    "skeletonize-mito", "contacts-er_mt", "contacts-mito_mt", "contacts-er_mito",
    "contacts-between", "interactions", "contact_planarity-er_mt-er",
    "contact_planarity-er_mito-er", "mesh-mito", "summary",
)  # fmt: skip


def write_cell(folder: Path) -> None:
    points = GRID.points_nm()
    spacing = np.array(GRID.spacing_nm)
    spheres = [
        RADIUS_NM - np.linalg.norm(points - (GRID.origin_nm + spacing * c), axis=-1)
        for c in CENTRES
    ]
    z = points[..., 0] - GRID.origin_nm[0]
    low, high = ((edge - 0.5) * spacing[0] for edge in SHEET)
    sheet = np.minimum(z - low, high - z)
    y, x = (points[..., a] - GRID.origin_nm[a] - 4.0 * c for a, c in zip((1, 2), TUBE, strict=True))
    tube = 12.5 - np.hypot(y, x)
    balls = [10.0 - np.linalg.norm(points - (GRID.origin_nm + spacing * c), axis=-1) for c in BALLS]
    drawn = {"mito": spheres, "er": [sheet], "mt": [tube], "ribo": balls}
    for name, shapes in drawn.items():
        inside = np.max(shapes, axis=0)
        prediction = quantise(np.tanh(inside / 50.0))
        write_volume(folder / "predictions" / f"{name}.zarr", Volume(prediction, GRID))
    write_volume(folder / "cell.zarr", Volume(np.ones(GRID.shape, "u1"), GRID))
    coarse = replace(GRID, spacing_nm=tuple(2 * s for s in GRID.spacing_nm))
    ones = Volume(np.ones(GRID.shape, "u1"), coarse)
    write_volume(folder / "predictions" / "coarse.zarr", ones)
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "config.toml").write_text(CONFIG)


@pytest.fixture(scope="module")
def cell(tmp_path_factory) -> Path:
    """A cell whose chain has run."""
    folder = tmp_path_factory.mktemp("cell")
    write_cell(folder)
    assert run_app(["organelles", str(folder / "config.toml")]) == 0
    return folder


@pytest.fixture
def copy(cell, tmp_path) -> Path:
    """The same, to be changed; without pages for single organelles, which take most of the time.

    It lies elsewhere, so that its steps are done again once.
    """
    folder = tmp_path / "cell"
    shutil.copytree(cell, folder)
    (folder / "config.toml").write_text(QUICK)
    return folder


def states(folder, capsys, *words) -> dict[str, str]:
    """Run the chain; return the last state of each step."""
    capsys.readouterr()
    assert run_app(["organelles", str(folder / "config.toml"), *words]) == 0
    found = re.findall(r"^([\w-]+): (running|finished|up to date)$", capsys.readouterr().err, re.M)
    return dict(found)


def done_again(folder, capsys, *words) -> set[str]:
    return {step for step, state in states(folder, capsys, *words).items() if state == "finished"}


def report(folder):
    return json.loads((folder / "run" / "organelles.json").read_text())


# -- truth ----------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_spheres_and_the_sheet(cell):
    spheres = read_table(cell / "run" / "measure" / "mito" / "objects.csv")
    assert len(spheres) == 2
    np.testing.assert_allclose(spheres["volume_nm3"], 4 / 3 * math.pi * RADIUS_NM**3, rtol=0.02)
    np.testing.assert_allclose(spheres["surface_nm2"], 4 * math.pi * RADIUS_NM**2, rtol=0.02)
    order = np.argsort(spheres["centre_x_nm"])
    for axis, name in enumerate("zyx"):
        centres = [GRID.origin_nm[axis] + GRID.spacing_nm[axis] * c[axis] for c in CENTRES]
        np.testing.assert_allclose(spheres[f"centre_{name}_nm"][order], centres, atol=0.2)
    sheet = read_table(cell / "run" / "measure" / "er" / "objects.csv")
    volume = math.prod((SHEET[1] - SHEET[0], *GRID.shape[1:])) * math.prod(GRID.spacing_nm)
    assert sheet["volume_nm3"].tolist() == pytest.approx([volume], rel=1e-9)
    share = (SHEET[1] - SHEET[0]) / GRID.shape[0]
    assert sheet["fraction_of_cell"].tolist() == pytest.approx([share], rel=1e-9)
    page = (cell / "run" / "index.html").read_text()
    assert "<th>of the cell</th>" in page
    assert f"<td>{100 * share:.2f} %</td>" in page
    found = report(cell)["organelles"]
    assert found["er"]["refine"]["volume_um3"] == pytest.approx(volume / 1e9, rel=1e-9)
    assert found["mito"]["mesh"]["volume_nm3"]["sum"] == pytest.approx(
        spheres["volume_nm3"].sum(), rel=0.03
    )


def slab_sheetness(half_nm: float, step_nm: float) -> float:
    """Sheetness in the middle of an endless slab; the largest over all scales but the first."""
    noise = 0.0
    for smooth, norm in SheetnessOptions(scales=SCALES).sigmas_nm()[1:]:
        beside, middle = (erf((half_nm + x) / smooth / 2**0.5) for x in (step_nm, 0.0))
        other = erf((half_nm - step_nm) / smooth / 2**0.5)
        noise = max(noise, norm**2 * abs(beside + other - 2 * middle) / step_nm**2)
    return float((1 - math.exp(-8)) * (1 - math.exp(-2 * noise**2)))


def test_the_sheet_is_planar_away_from_the_border(cell):
    """Its planarity is that of an endless one, where no smoothing reaches its ends."""
    planarity = open_volume(cell / "run" / "planarity" / "er" / "planarity.zarr").read()
    level = (planarity.astype(float) - 1) / 254
    reach = math.ceil((4 * SheetnessOptions(scales=SCALES).sigmas_nm()[-1][0] + 14) / 4.0)
    inner = level[slice(*SHEET), reach:-reach, reach:-reach]
    assert inner.size >= 100
    spacing = GRID.spacing_nm[0]
    expected = slab_sheetness((SHEET[1] - SHEET[0]) / 2 * spacing, 2 * spacing)
    assert expected > 0.6
    np.testing.assert_allclose(inner, expected, rtol=0.05)
    found = report(cell)["organelles"]["er"]["planarity"]
    for part, chosen in (("planar", level >= 0.6), ("tubular", (level >= 0) & (level < 0.6))):
        volume = np.count_nonzero(chosen) * math.prod(GRID.spacing_nm)
        assert found[part]["volume_nm3"] == pytest.approx(volume, rel=1e-9)


def test_each_sphere_touches_the_sheet_and_the_other(cell):
    sites = read_table(cell / "run" / "contacts" / "er_mito" / "contacts.csv")
    assert sorted(sites["b_id"].tolist()) == [1, 2]
    assert set(sites["organelle_a"]) == {"er"}
    gap = GRID.spacing_nm[0] * (CENTRES[0][0] - SHEET[1] + 0.5) - RADIUS_NM
    np.testing.assert_allclose(sites["gap_nm"], gap, atol=GRID.spacing_nm[0])
    assert report(cell)["contacts"]["between"]["objects"] == 1


def test_a_microtubule_touches_the_sheet_and_both_spheres(cell):
    mt = report(cell)["organelles"]["mt"]["microtubules"]
    assert (mt["objects"], mt["unproven_blocks"]) == (1, 0)
    assert 120 < 1000 * mt["length_um"] < GRID.extent_nm[0]
    pairs = read_table(cell / "run" / "interactions" / "pairs.csv")
    kinds = sorted(zip(pairs["organelle_a"].tolist(), pairs["organelle_b"].tolist(), strict=True))
    expected = [("er", "mito")] * 2 + [("er", "mt")] + [("mito", "mito")] + [("mito", "mt")] * 2
    assert kinds == expected
    partners = read_table(cell / "run" / "interactions" / "partners.csv")
    (row,) = [r for r in partners.rows() if r["organelle"] == "mt"]
    assert (row["object_id"], row["partners"], row["touches"]) == (1, 3, "er+mito")


def test_each_site_knows_the_planarity_of_its_place(cell):
    """The mean of the planarity volume over the sheet's voxels of each site."""
    run = cell / "run"
    sites = open_volume(run / "contacts" / "er_mito" / "sites.zarr").read()
    level = open_volume(run / "planarity" / "er" / "planarity.zarr").read()
    table = read_table(run / "contact_planarity" / "er_mito-er" / "planarity.csv")
    assert table["b_id"].tolist() == [1, 2]
    for row in table.rows():
        values = level[(sites == row["contact_id"]) & (level > 0)].astype(float)
        assert row["planarity"] == pytest.approx((values.mean() - 1) / 254, rel=1e-9)
    assert table["planarity"].min() > 0.6  # both are under the middle of a sphere
    found = report(cell)["contacts"]["er_mito"]["planarity"]["er"]
    assert (found["planar"]["sites"], found["tubular"]["sites"]) == (2, 0)
    assert found["planar"]["area_nm2"] == pytest.approx(table["area_a_nm2"].sum(), rel=1e-9)


def test_contacts_of_what_is_reconstructed_have_its_planarity(copy, capsys):
    """Also where a name holds the sign that parts contact and organelle in a folder's name."""
    er, mito = '{a="er-reconstructed",b="mito",distance="20 nm"', '{a="mito",distance="40 nm"'
    contacts = f'contacts=[{er}}},{er},name="between"}},{mito},name="between-er"}}]'
    states(copy, capsys, "--set", contacts)
    found = report(copy)["contacts"]
    assert list(found) == ["er-reconstructed_mito", "between", "between-er"]
    assert "planarity" not in found["between-er"]
    for title in ("er-reconstructed_mito", "between"):
        (side,) = found[title]["planarity"].items()
        assert (side[0], side[1]["planar"]["sites"]) == ("er-reconstructed", 2)
    page = (copy / "run" / "index.html").read_text()
    assert page.count("2 of 2 (er-reconstructed)") == 2


def test_ribosomes_are_on_the_sheet_and_in_the_open(cell):
    found = report(cell)["organelles"]["ribo"]["ribosomes"]
    assert found["classes"] == {"cytosolic": 1, "nuclear": 0, "sheet": 1, "tube": 0}
    rows = list(read_table(cell / "run" / "ribosomes" / "ribo" / "ribosomes.csv").rows())
    for row, ball in zip(rows, BALLS, strict=True):
        centre = [row[f"{axis}_nm"] for axis in "zyx"]
        np.testing.assert_allclose(centre, GRID.to_world(ball), atol=1.5)


def test_every_table_is_that_of_the_single_command(cell, tmp_path):
    out, single = tmp_path / "l.zarr", tmp_path
    words = [str(cell / "predictions"), "--recipe", str(cell / "recipe.toml"), "--out", str(out)]
    mito, er = str(out / "mito"), str(out / "er")
    for command in (
        ["refine", *words],
        ["measure", mito, "--cell", str(cell / "cell.zarr"), "--csv", str(single / "mito.csv")],
        ["skeletonize", mito, "--csv", str(single / "lines.csv")],
        [
            "contacts", er, mito, "--distance", "20 nm", "--names", "er,mito",
            "--csv", str(single / "sites.csv"),
        ],
        [
            "planarity", er, "--out", str(single / "p.zarr"), "--largest-radius", "30 nm",
            "--scales", str(SCALES), "--csv", str(single / "planarity.csv"),
        ],
        [
            "mesh", mito, "--out", str(single / "meshes"), "--format", "obj",
            "--csv", str(single / "meshes.csv"),
        ],
        ["microtubules", str(cell / "predictions" / "mt.zarr"), "--out", str(single / "mt")],
        [
            "ribosomes", str(cell / "predictions" / "ribo.zarr"), "--out", str(single / "ribo"),
            "--planarity", str(single / "p.zarr"),
        ],
    ):  # fmt: skip
        assert run_app(command) == 0
    run = cell / "run"
    for ours, theirs in (
        ("measure/mito/objects.csv", "mito.csv"),
        ("skeletonize/mito/skeletons.csv", "lines.csv"),
        ("contacts/er_mito/contacts.csv", "sites.csv"),
        ("planarity/er/planarity.csv", "planarity.csv"),
        ("mesh/mito/meshes.csv", "meshes.csv"),
        ("microtubules/mt/tracks.swc", "mt/tracks.swc"),
        ("ribosomes/ribo/ribosomes.csv", "ribo/ribosomes.csv"),
    ):
        text = (run / ours).read_text()
        assert text.count("\n") > 1
        assert text == (single / theirs).read_text()


def test_the_sheet_is_reconstructed_with_and_without_what_is_near_mitochondria(cell):
    """Balls cover all of a flat sheet but some of its corners; the distance is SciPy's."""
    run = cell / "run"
    er, mito = (open_volume(run / "labels.zarr" / name).read() > 0 for name in ("er", "mito"))
    whole = open_volume(run / "reconstruct" / "er-reconstructed" / "labels.zarr").read()
    covered = open_volume(run / "planarity" / "er" / "planarity.zarr").read() > 0
    np.testing.assert_array_equal(whole, covered.astype("u4"))
    assert not (covered & ~er).any()
    assert covered.sum() > 0.99 * er.sum()
    off = open_volume(run / "reconstruct" / "er-off-mito" / "labels.zarr").read()
    far = distance_transform_edt(~mito, sampling=GRID.spacing_nm) > 30.0
    np.testing.assert_array_equal(off, np.where(far, whole, 0))
    assert 0 < off.sum() < whole.sum()
    found = report(cell)["organelles"]["er-off-mito"]["reconstruct"]
    volume = off.sum() * math.prod(GRID.spacing_nm) / 1e9
    assert (found["objects"], found["volume_um3"]) == (1, pytest.approx(volume, rel=1e-9))


def test_every_table_is_there_as_parquet_with_units(cell):
    parquet = pytest.importorskip("pyarrow.parquet")
    tables = sorted((cell / "run").rglob("*.csv"))
    assert len(tables) >= 9
    for path in tables:
        expected = read_table(path)
        found = parquet.read_table(path.with_suffix(".parquet")).to_pydict()
        assert list(found) == list(expected.columns)
        for name, column in expected.columns.items():
            np.testing.assert_array_equal(np.array(found[name], column.dtype), column)
    assert "measure/mito/objects.parquet" in (cell / "run" / "index.html").read_text()


def test_parquet_without_pyarrow_is_refused_before_any_work(cell, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    words = ["organelles", str(cell / "config.toml"), "--set", 'output.dir="refused"']
    assert run_app(words) == 1
    assert "clemreg-toolkit[measure]" in capsys.readouterr().err
    assert not (cell / "refused").exists()


def test_the_page_links_what_is_there(cell):
    run = cell / "run"
    links = re.findall(r'href="([^"]+)"', (run / "index.html").read_text())
    assert {"measure/mito/report.html", "contacts/er_mito/contacts.csv"} <= set(links)
    assert [link for link in links if not (run / link).exists()] == []
    assert not [p for p in run.rglob(".*") if p.name not in (".lock", ".labels.zarr.work")]


def test_it_says_how_it_was_made(cell):
    made = report(cell)["provenance"]
    assert made["command"] == this_command()
    assert made["config"]["contacts"][2]["distance"] == "20 nm"
    assert set(made["recipe"]["organelles"]) == {"mito", "er", "nucleus"}
    assert {"clemreg", "numpy"} <= set(made["versions"])
    assert made["inputs"]["predictions"]
    assert set(report(cell)["timings_s"]) == set(STEPS)


# -- again, changed, killed -----------------------------------------------------------------------


def test_a_second_run_is_up_to_date(cell, capsys):
    found = states(cell, capsys)
    assert tuple(found) == STEPS
    assert set(found.values()) == {"up to date"}


def test_workers_and_blocks_change_nothing(cell, capsys):
    words = ["--set", "compute.executor=serial", "--set", "compute.block=50"]
    assert done_again(cell, capsys, *words) == set()


def test_a_changed_key_redoes_its_step_and_what_follows(copy, capsys):
    run = copy / "run"
    states(copy, capsys)
    of_sheet = {step for step in STEPS if "planarity" in step} | {"ribosomes-ribo"}
    of_sheet |= {step for step in STEPS if "reconstruct" in step}
    assert done_again(copy, capsys, "--set", "planarity.cut=0.7") == {*of_sheet, "summary"}
    assert report(copy)["organelles"]["er"]["planarity"]["cut"] == 0.7
    before = (run / "contacts" / "er_mito" / "contacts.csv").read_text()
    text = QUICK.replace("20 nm", "30 nm").replace("largest", "cut = 0.7\nlargest")
    (copy / "config.toml").write_text(text)
    changed = {"contacts-er_mito", "contact_planarity-er_mito-er", "interactions", "summary"}
    assert done_again(copy, capsys) == changed
    assert (run / "contacts" / "er_mito" / "contacts.csv").read_text() != before
    (copy / "recipe.toml").write_text(RECIPE.replace("1000.0", "2000.0", 1))
    others = {step for step in STEPS if "mito" not in step and "between" not in step}
    of_mito = set(STEPS) - others | {"refine", "interactions", "summary"}
    assert done_again(copy, capsys) == of_mito
    (run / "measure" / "er" / "summary.json").unlink()
    assert done_again(copy, capsys) == {"measure-er"}


@pytest.mark.slow
def test_killed_while_it_works_it_ends_well(cell, tmp_path):
    write_cell(tmp_path)
    (tmp_path / "config.toml").write_text(QUICK)
    words = [sys.executable, "-m", "clemreg", "organelles", str(tmp_path / "config.toml")]
    for step in ("planarity-er", "microtubules-mt", "contacts-er_mito"):
        child = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        for line in child.stderr:
            if line.startswith(f"{step}: running".encode()):
                break
        os.kill(child.pid, signal.SIGKILL)
        child.communicate(timeout=60)
        assert child.returncode == -signal.SIGKILL
        assert not (tmp_path / "run" / "steps" / f"{step}.json").exists()
    subprocess.run(words, check=True, capture_output=True)
    assert "organelles" in report(tmp_path)["provenance"]["command"]
    tables = sorted(p.relative_to(cell) for p in cell.rglob("run/**/*.csv"))
    assert len(tables) >= 9
    for table in tables:
        assert (tmp_path / table).read_text() == (cell / table).read_text(), table
    assert not list((tmp_path / "run").rglob("*.partial")) + list(
        (tmp_path / "run").rglob(".unfinished")
    )


def test_unfinished_work_is_kept_for_the_same_inputs_only(copy, capsys):
    """Stopped after the first block of a contact, three times; before the third, it is changed."""
    folder = copy / "run" / "contacts" / "er_mito"
    mark = folder / ".sites.zarr.work" / "mark"
    kept = []

    @contextmanager
    def progress(title):
        def tell(_done, _total, _message):
            if title == "contacts-er_mito":
                kept.append(mark.exists())
                raise KeyboardInterrupt

        yield tell

    def stopped(*words):
        with pytest.raises(KeyboardInterrupt):
            run_organelles(
                load_organelles_config(copy / "config.toml", words), copy, progress=progress
            )
        mark.touch()

    stopped()
    stopped()
    stopped('contacts=[{a="er",b="mito",distance="30 nm"}]')
    assert kept == [False, True, False]
    states(copy, capsys)
    assert sorted(p.name for p in folder.iterdir()) == [
        "contacts.csv", "contacts.parquet", "sites.zarr", "summary.json",
    ]  # fmt: skip


def test_an_organelle_without_objects(copy, capsys):
    (copy / "recipe.toml").write_text(RECIPE.replace("1000.0", "1e9", 1))
    states(copy, capsys, "--set", "measure.report=true")
    found = report(copy)
    assert found["organelles"]["mito"]["measure"]["objects"] == 0
    assert found["contacts"]["er_mito"]["objects"] == 0
    assert (copy / "run" / "index.html").is_file()
    assert not (copy / "run" / "measure" / "mito" / "report.html").exists()
    assert (copy / "run" / "measure" / "er" / "report.html").is_file()


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("input.organels=1", "input.organels: Extra inputs are not permitted"),
        ("nonsense=1", "nonsense: Extra inputs are not permitted"),
        ('input.predictions="absent"', "absent"),
        ('input.cell="no_cell.zarr"', "no_cell.zarr"),
        ('input.recipe="none.toml"', "none.toml"),
        ('input.organelles=["mito","er","nucleus"]', "nucleus cannot be refined: no prediction"),
        ('input.organelles=["mito"]', "contacts names er"),
        ('mesh.organelles=["golgi"]', "mesh names golgi"),
        ('microtubules.prediction="tubes"', "holds no prediction called tubes"),
        ('microtubules.name="er"', "two organelles are called er"),
        ('ribosomes.planarity="mito"', "ribosomes.planarity names mito, but planarity has only er"),
        ('ribosomes.nuclear_envelope="ne"', "ribosomes.nuclear_envelope names ne"),
        ('mesh.organelles=["mito","mito"]', "mesh names mito twice"),
        ('contacts=[{a="er",b="mito"},{a="er",b="mito"}]', "two contacts are called er_mito"),
        ('contacts=[{a="er",recipe="x_y"}]', "no contact recipe 'x_y'"),
        ('contacts=[{a="er",distance="20"}]', "contacts.0.distance"),
        ('input.organelles=["../er"]', "input.organelles.0"),
        ('reconstruct=[{of="mito"}]', "reconstruct.of names mito, but planarity has only er"),
        ('planarity.organelles=["er-reconstructed"]', "planarity names er-reconstructed"),
        ('reconstruct=[{of="er"},{of="er"}]', "two organelles are called er-reconstructed"),
        ('input.cell="predictions/coarse.zarr"', "do not have the same voxels"),
        ('microtubules.prediction="coarse"', "do not have the same voxels"),
        ('ribosomes.prediction="coarse"', "do not have the same voxels"),
        ("compute.executor=gpu", "there is no executor 'gpu'"),
        ("compute.workers=0", "compute.workers"),
    ],
)
def test_what_is_wrong_is_named_before_any_work(cell, capsys, setting, message):
    words = ["organelles", str(cell / "config.toml"), "--set", 'output.dir="refused"']
    assert run_app([*words, "--set", setting]) == 1
    text = capsys.readouterr().err
    assert message in text
    assert "Traceback" not in text
    assert not list((cell / "refused").rglob("*.csv"))


def test_two_sides_of_contacts_that_would_have_one_folder(cell, capsys):
    words = ["organelles", str(cell / "config.toml"), "--set", 'output.dir="refused"']
    words += ["--set", 'reconstruct=[{of="er",name="off-er"}]']
    words += ["--set", 'contacts=[{a="off-er",name="x"},{a="er",name="x-off"}]']
    assert run_app(words) == 1
    assert "the planarity of two contacts is called x-off-er" in capsys.readouterr().err
    assert not (cell / "refused").exists()


def test_no_configuration(tmp_path, capsys):
    assert run_app(["organelles", str(tmp_path / "none.toml")]) == 1
    assert "no configuration at" in capsys.readouterr().err
