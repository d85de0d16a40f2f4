"""The page on sheets and tubes draws what its tables say, with units on the axes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from clemreg.cli.app import run_app
from clemreg.io.volumes import write_volume
from clemreg.measure.tables import Table, read_table
from clemreg.report.canvas import BLUE, ORANGE
from clemreg.report.sheets import curvature_figure, planarity_figure, thickness_figure
from clemreg.space import Grid
from clemreg.volume import Labels

THICKNESS = Table.of(
    sheetness=[0.1, 0.1, 0.6, 0.83],
    thickness_from_nm=[56.0, 64.0, 48.0, 48.0],
    thickness_to_nm=[64.0, 72.0, 56.0, 56.0],
    medial_volume_nm3=[10.0, 20.0, 30.0, 40.0],
)


def heights(axes, colour):
    """Height above the bar below it by left edge."""
    from matplotlib.colors import same_color

    bars = [p for p in axes.patches if same_color(p.get_facecolor(), colour)]
    return {round(p.get_x(), 6): p.get_height() for p in bars if p.get_height() > 0}


def test_thickness_of_planar_and_tubular_parts():
    bars, map_, *_ = thickness_figure(THICKNESS, 0.6).axes
    assert bars.get_xlabel() == map_.get_xlabel() == "thickness (nm)"
    assert heights(bars, BLUE) == pytest.approx({48: 70})  # planar at 0.6, too
    assert heights(bars, ORANGE) == pytest.approx({56: 10, 64: 20})
    (mesh,) = map_.collections
    shown = np.ma.filled(mesh.get_array(), 0).reshape(20, 9)  # planarity, thickness
    assert np.argwhere(shown > 0).tolist() == [[2, 7], [2, 8], [12, 6], [16, 6]]
    assert shown[16, 6] == pytest.approx(40)


def test_planarity_by_volume_and_by_area():
    histogram = Table.of(
        sheetness=[0.02, 0.81, 0.84], volume_nm3=[1.0, 1.0, 2.0], area_nm2=[9.0, 1.0, 0.0]
    )
    volume, area = planarity_figure(histogram, 0.6).axes
    assert (volume.get_ylabel(), area.get_ylabel()) == ("volume (%)", "surface area (%)")
    assert heights(volume, BLUE) == pytest.approx({0: 25, 0.8: 75})
    assert heights(area, BLUE) == pytest.approx({0: 90, 0.8: 10})


def test_curvature_and_what_is_empty():
    edges = np.linspace(-0.1, 0.1, 81)
    voxels, gauss = np.zeros(80, int), np.full(80, np.nan)
    voxels[[40, 46]], gauss[[40, 46]] = (3, 1), (0.0, 2e-3)
    table = Table.of(
        curvature_from_per_nm=edges[:-1], curvature_to_per_nm=edges[1:],
        voxels=voxels, gauss_mean_per_nm2=gauss,
    )  # fmt: skip
    bars, line = curvature_figure(table).axes
    assert bars.get_xlabel() == "mean curvature (1/nm)"
    assert heights(bars, BLUE) == pytest.approx({0: 75, 0.015: 25})
    assert bars.get_xlim() == pytest.approx((-0.0025, 0.02))
    assert np.nanmax(line.lines[0].get_ydata()) == pytest.approx(2)  # 10^-3 nm^-2
    none = Table({name: column[:0] for name, column in THICKNESS.columns.items()})
    thickness_figure(none, 0.6)
    empty = Table({**table.columns, "voxels": np.zeros(80, int)})
    assert curvature_figure(empty).axes[0].get_xlim() == pytest.approx((-0.1, 0.1))


def test_the_command_writes_the_page(tmp_path):
    """A flat slab: planar, of one thickness, and flat but for its rim."""
    grid = Grid((13, 40, 40), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")
    slab = np.zeros(grid.shape, "u1")
    slab[4:8, 6:34, 6:34] = 1
    write_volume(tmp_path / "slab.zarr", Labels(slab, grid))
    words = ["planarity", str(tmp_path / "slab.zarr"), "--out", str(tmp_path / "p.zarr")]
    words += ["--scales", "6", "--largest-radius", "30 nm", "--report", str(tmp_path / "r.html")]
    words += ["--json", str(tmp_path / "p.json"), "--curvature", str(tmp_path / "c.csv")]
    assert run_app(words) == 0
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert re.findall("<h2>(.*)</h2>", page) == ["Planarity", "Thickness", "Curvature"]
    assert page.count("data:image/png;base64,") == 3
    shares = re.findall(r"<td>(\w+)</td><td>[^<]*</td><td>([\d.]+) %", page)
    report = json.loads((tmp_path / "p.json").read_text())["planarity"]
    assert [name for name, _ in shares] == ["planar", "tubular"]
    for name, share in shares:
        assert float(share) == pytest.approx(100 * report[name]["volume_fraction"], abs=0.006)
    curvature = read_table(tmp_path / "c.csv")
    low, high = (curvature[f"curvature_{end}_per_nm"] for end in ("from", "to"))
    fullest = int(np.argmax(curvature["voxels"]))
    assert low[fullest] <= 0 <= high[fullest]
