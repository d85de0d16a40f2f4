from __future__ import annotations

import re

import numpy as np
import pytest

from clemreg.errors import DataError
from clemreg.report.scores import LabelScores, Slice, error_picture, write_score_report
from clemreg.space.grid import Grid

GRID = Grid((1, 17, 23), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")


def plane(em=None) -> Slice:
    p, t, known = (np.zeros(GRID.shape[1:], bool) for _ in range(3))
    p[3:9, 4:12] = True
    t[5:12, 6:16] = True
    known[:, 2:] = True
    return Slice("mito", GRID, em, p, t, known)


def test_colours_say_right_invented_and_missed():
    picture = error_picture(plane(np.full(GRID.shape[1:], 7)))
    right, invented, missed, nothing, unknown = (
        picture[7, 8], picture[3, 5], picture[11, 14], picture[0, 20], picture[0, 0],
    )  # fmt: skip
    assert right.argmax() == 1
    assert (invented[0] > invented[1]) & (invented[2] > invented[1])
    assert missed[0] > missed[1] > missed[2]
    assert np.ptp(nothing) == np.ptp(unknown) == 0
    nowhere = plane()
    bright = error_picture(nowhere)
    assert bright[0, 20, 0] > bright[0, 0, 0]


def test_the_page_holds_every_number_and_links_nowhere(tmp_path):
    rows = [
        LabelScores("mito", {"dice": 0.8125, "mean_false_distance": 12.34, "voi": None}, "s at 1",
                    (0.7, 0.9)),
        LabelScores("<er>", {"dice": None, "precision": 0.25, "mean_false_positive_distance": 3.0}),
    ]  # fmt: skip
    path = tmp_path / "a" / "scores.html"
    rng = np.random.default_rng(0)
    write_score_report(path, "A & B", rows, [plane(rng.integers(0, 255, GRID.shape[1:]))])
    html = path.read_text()
    assert "A &amp; B" in html
    assert "&lt;er&gt;" in html
    assert re.search(r"dice</td><td>0\.812</td><td>–", html)
    assert re.search(r"mean_false_distance</td><td>12\.3</td><td>–", html)
    assert html.count("data:image/png") == 3
    assert not re.search(r'(src|href)="http', html)
    with pytest.raises(DataError, match="no class"):
        write_score_report(path, "x", [])
