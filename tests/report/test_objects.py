from __future__ import annotations

import base64
import itertools
import re

import numpy as np
import pytest

from clemreg.cli.app import run_app
from clemreg.io.volumes import write_volume
from clemreg.report.objects import Quantity, histograms, picture, write_object_report
from clemreg.space import Grid
from clemreg.volume import Labels


def test_the_page_names_sizes_and_escapes_names(tmp_path):
    values = np.array([1.0, 2.0, 6.0, np.nan])
    path = tmp_path / "r.html"
    write_object_report(path, "<b>mito</b>", [Quantity("Volume", "µm³", values)], {}, 2)
    page = path.read_text(encoding="utf-8")
    assert "&lt;b&gt;mito&lt;/b&gt;" in page
    assert "4 objects; the border of the volume cuts 2," in page
    row = re.search(r"<td>Volume \(µm³\)</td>(.*)</tr>", page).group(1)
    assert re.findall(r"<td>([^<]*)</td>", row) == ["3", "3.00", "2.65", "2.00", "1.00", "6.00"]
    assert page.count("data:image/png;base64,") == 1


def test_the_histogram_counts_every_object():
    values = np.random.default_rng(0).normal(size=50)
    figure = histograms([Quantity("Length", "nm", values), Quantity("Radius", "nm", values[:0])])
    first, second = figure.axes
    assert sum(bar.get_height() for bar in first.patches) == 50
    assert first.get_xlabel() == "Length (nm)"
    assert not second.patches
    assert second.get_title() == "not known"


@pytest.mark.parametrize("value", [1.3e-4, -2.0, 0.0])
def test_one_value_stands_in_the_middle_of_its_histogram(value):
    (axes,) = histograms([Quantity("Volume", "µm³", np.array([value]))]).axes
    edges = [bar.get_x() for bar in axes.patches]
    assert len(axes.patches) == 5
    assert axes.patches[2].get_height() == 1
    assert axes.patches[2].get_x() + axes.patches[2].get_width() / 2 == pytest.approx(value)
    assert value == 0 or np.sign(edges).tolist() == [np.sign(value)] * len(edges)


@pytest.mark.parametrize(
    "values", [[0.0249245, 0.0249475], [0.84375, 0.84525], [1e-7, 3.0], [97123.1, 97123.4]]
)
def test_labels_of_a_histogram_do_not_touch(values):
    figure = histograms([Quantity("Volume", "µm³", np.array(values))] * 3)
    figure.canvas.draw()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        shown = [t for t in axes.xaxis.get_major_ticks() if low <= t.get_loc() <= high]
        boxes = [tick.label1.get_window_extent() for tick in shown]
        assert len(boxes) >= 2
        assert all(a.x1 + 2 < b.x0 for a, b in itertools.pairwise(boxes))


def test_the_picture_has_x_y_z_in_um():
    points = np.array([[0.0, 0, 0], [3000, 0, 0], [0, 2000, 0], [0, 0, 1000]])  # zyx nm
    faces = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])
    figure = picture({70_001: (points, faces)})
    for axes in figure.axes:
        assert axes.get_xlim()[1] == pytest.approx(1)
        assert axes.get_ylim()[1] == pytest.approx(2)
        assert axes.get_zlim()[1] == pytest.approx(3)


def test_a_report_from_the_command_line(tmp_path):
    pytest.importorskip("fast_simplification")
    grid = Grid((20, 34, 36), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0))
    ids = np.zeros(grid.shape, "u4")
    ids[4:10, 5:30, 5:12] = 70_001
    ids[12:, 5:30, 20:30] = 9
    write_volume(tmp_path / "m.zarr", Labels(ids, grid))
    words = ["measure", str(tmp_path / "m.zarr"), "--report", str(tmp_path / "r.html")]
    assert run_app(words) == 0
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "2 objects; the border of the volume cuts 1," in page
    for name in ("Volume", "Surface area", "Length of the centre line", "Mean radius"):
        assert name in page
    pictures = re.findall(r"base64,([A-Za-z0-9+/=]+)", page)
    assert len(pictures) == 2
    assert all(base64.b64decode(p).startswith(b"\x89PNG") for p in pictures)
    assert not list(tmp_path.glob(".*"))
