"""`clemreg organelles --plan`: a volume of 30 gigavoxels of which no chunk is written."""

from __future__ import annotations

import json
import math

import pytest

from clemreg.cli.app import run_app
from clemreg.io.volumes import WriteOptions, create_volume
from clemreg.pipeline.plan import COSTS
from clemreg.space import Grid

GRID = Grid((2000, 3000, 5000), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")
CONFIG = """
[input]
predictions = "predictions"
organelles = ["mito", "er"]
recipe = "heinrich2021/jrc_hela-2"

[microtubules]

[skeletonize]
organelles = ["mito"]

[[contacts]]
a = "er"
b = "mito"

[[contacts]]
a = "er"
b = "mt"
recipe = "er_mt"

[planarity]
organelles = ["er"]

[compute]
executor = "slurm"
workers = 100
block = 256
"""


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    for name in ("mito", "er", "mt"):
        path, options = folder / "predictions" / f"{name}.zarr", WriteOptions(levels=1)
        with create_volume(path, GRID, "u1", options=options):
            """Nothing is written: all voxels are 0."""
    (folder / "config.toml").write_text(CONFIG)
    return folder


def plan(cell, tmp_path, *words):
    out = tmp_path / "plan.json"
    config = str(cell / "config.toml")
    assert run_app(["organelles", config, "--plan", "--json", str(out), *words]) == 0
    steps = json.loads(out.read_text())["plan"]["steps"]
    return {step["step"]: step for step in steps}


def test_a_whole_cell_is_planned_and_nothing_is_written(cell, tmp_path, capsys):
    before = sorted(cell.iterdir())
    steps = plan(cell, tmp_path)
    assert sorted(cell.iterdir()) == before
    text = capsys.readouterr().out
    assert "30 gigavoxels (2000, 3000, 5000) (z, y, x), 100 workers" in text
    assert text.count("\n") == 2 + len(steps)
    assert list(steps) == [
        "refine-mito", "refine-er", "planarity-er", "microtubules-mt", "measure-mito",
        "measure-er", "skeletonize-mito", "contacts-er_mito", "contacts-er_mt",
        "contact_planarity-er_mito-er", "contact_planarity-er_mt-er", "total",
    ]  # fmt: skip
    assert {step["blocks"] for step in steps.values()} == {8 * 12 * 20}
    whole = steps.pop("total")
    for name in ("core_hours", "hours", "read_gb", "written_gb"):
        assert whole[name] == pytest.approx(sum(step[name] for step in steps.values()))
    assert whole["memory_gb"] == max(step["memory_gb"] for step in steps.values())


def test_the_estimate_is_the_measured_cost_of_what_is_read(cell, tmp_path):
    steps = plan(cell, tmp_path, "--set", "compute.block=128")
    # 5 nm are 1 voxel in z and 2 in y and x; 48 nm are 10 and 12.
    for cost, (z, y) in (("measure", (2, 4)), ("refine", (20, 24))):
        more = (128 + z) * (128 + y) ** 2 / 128**3
        hours = math.prod(GRID.shape) * COSTS[cost].cpu_ns * more * 1e-9 / 3600
        assert steps[f"{cost}-er"]["core_hours"] == pytest.approx(hours, rel=1e-9)
    # By the paper's recipe, mitochondria are split by watershed.
    ratio = steps["refine-mito"]["core_hours"] / steps["refine-er"]["core_hours"]
    assert ratio == pytest.approx(COSTS["watershed"].cpu_ns / COSTS["refine"].cpu_ns, rel=0.01)


def test_workers_share_the_work_but_not_what_is_serial(cell, tmp_path):
    one, many = (
        plan(cell, tmp_path, "--set", f"compute.workers={n}")["refine-er"] for n in (1, 100)
    )
    assert one["core_hours"] == many["core_hours"]
    serial = one["hours"] - one["core_hours"]
    assert 0 < serial < many["hours"] < one["hours"] / 10
    assert many["hours"] == pytest.approx(one["core_hours"] / 100 + serial, rel=1e-9)


def test_larger_blocks_read_less_and_need_more_memory(cell, tmp_path):
    small, large = (
        plan(cell, tmp_path, "--set", f"compute.block={n}")["planarity-er"] for n in (128, 512)
    )
    # 360 nm are 69 voxels in z and 90 in y and x.
    more = [(n + 138) * (n + 180) ** 2 / n**3 for n in (128, 512)]
    assert small["read_gb"] / large["read_gb"] == pytest.approx(more[0] / more[1], rel=1e-9)
    assert small["core_hours"] > large["core_hours"]
    assert small["memory_gb"] < large["memory_gb"]


def test_further_contacts_cost_more(cell, tmp_path):
    steps = plan(cell, tmp_path)
    near, far = (steps[f"contacts-{name}"]["core_hours"] for name in ("er_mito", "er_mt"))
    assert 2 * near < far < 4 * near  # 4.4 times the lines of sight


def test_inputs_that_are_not_there(cell, capsys):
    config = str(cell / "config.toml")
    words = ["organelles", config, "--plan", "--set", 'input.predictions="none"']
    assert run_app(words) == 1
    assert "none" in capsys.readouterr().err
