from __future__ import annotations

import base64
import html as html_module
import io
import json
import re
import tomllib
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from clemreg.report import figures
from clemreg.report.figures import Overlay
from clemreg.report.html import _timing_rows, number
from clemreg.report.report import ReportInputs, write_report
from clemreg.space import Affine, Grid
from clemreg.testing import random_bspline
from clemreg.volume import Volume

GRID = Grid((12, 40, 50), (104.0, 52.0, 52.0), (500.0, 100.0, -300.0), "lm")
NASTY = "<script>alert('x')</script>"

STATS = {"min": 0.8, "p0.1": 0.81, "p1": 0.85, "p50": 1.0, "p99": 1.1, "p99.9": 1.15, "max": 1.2,
         "mean": 1.0, "sd": 0.05, "fold_fraction": 0.0}  # fmt: skip
ERRORS = {"n": 30, "mean_nm": 45.0, "median_nm": 40.0, "p90_nm": 80.0, "p95_nm": 90.0,
          "max_nm": 99.0, "rms_nm": 50.0, "bias_nm": [1.0, 2.0, 3.0]}  # fmt: skip
CONFIG = {
    "em": {"path": 'C:\\data\\em "1".zarr', "voxel_size": None},
    "proof": {"raters": ["AW", NASTY]},
}
NUMBERS = {
    "landmarks": {
        **ERRORS,
        "by_rater": {NASTY: ERRORS, "JB": ERRORS},
        "between_raters": {**ERRORS, "median_nm": 32.0},
        "points": {
            "names": ["1", "2"],
            "lm_nm": [[900.0, 700.0, 400.0], [800.0, 900.0, 1400.0]],
            "difference_nm": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]],
            "error_nm": [3.7, 8.8],
        },
    },
    "jacobian": {"with_affine": STATS, "without_affine": STATS, "affine_determinant": 1.1},
    "orientation": {"score": 0.6, "runner_up": 0.2, "margin": 0.4, "mirrored": False},
    "affine": {"matrix": np.eye(4), "singular_values": [1.1, 1.02, 0.97], "determinant": 1.09},
    "stability": {
        "seeds": 3, "rms_nm": 5.0, "p95_nm": 9.0, "halves": {"rms_nm": 28.0, "p95_nm": 66.0},
        "suggested_landmarks": [{"x_um": 1.234, "y_um": 0.55, "z_um": 0.9, "error_nm": 71.4}],
    },
    "truth": {"tre_median_nm": 41.0, "tre_max_nm": float("nan")},
    "round_trip_nm": {"mean": 1e-4, "max": 1e-3},
    "timings_s": {"register: elastix": 9.0, "segment": 3.0, "register": 12.0},
    "provenance": {"command": ["clemreg", "run", NASTY], "config": CONFIG, "seed": 1,
                   "threads": 2, "versions": {"clemreg": "1"}, "inputs": {"em": NASTY, "lm": None}},
    "scores": {"start": 0.3, "affine": 0.5, "final": 0.62},
    "overlap": {"result": {"ncc": 0.407, "dice": 0.5, "surface": {"median_nm": 60.0}}},
}  # fmt: skip


def png_array(data):
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    lm = np.zeros(GRID.shape, np.float32)
    lm[3:6, 5:12, 35:45] = 1
    bspline = random_bspline(rng, GRID, amplitude_nm=30)
    affine = Affine.identity("lm", "lm")
    return ReportInputs(
        title=NASTY,
        numbers=NUMBERS,
        before=Overlay(lm, np.roll(lm, 8, axis=1), GRID),
        after=Overlay(lm, lm, GRID),
        transform=affine.then(bspline),
        affine=affine,
        grid=GRID,
        point_errors_nm=rng.gamma(3, 15, 30),
        rater_errors_nm={NASTY: rng.gamma(3, 15, 30)},
        determinants=rng.normal(1, 0.05, 500),
        determinant_plane=rng.normal(1, 0.05, GRID.shape[1:]),
        worst=((NASTY, 99.0, 1.0, 2.0, float("nan")),),
        repeats=(affine,),
        predicted_error=Volume(rng.gamma(3, 15, GRID.shape).astype(np.float32), GRID),
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory, inputs):
    folder = tmp_path_factory.mktemp("report")
    return folder, write_report(inputs, folder)


@pytest.fixture(scope="module")
def page(written):
    return (written[0] / "report.html").read_text(encoding="utf-8")


def test_the_html_stands_alone(page):
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", page)
    outside = re.sub(r"data:image/png;base64,[^\"]+", "", page)
    assert not re.search(r"https?:|//\w|@import|url\(", outside)
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", page)
    assert len(pictures) == 8
    for picture in pictures:
        assert png_array(base64.b64decode(picture)).std() > 1


def test_every_text_from_outside_is_escaped(page):
    """Title, rater, landmark, command, configuration, fingerprint."""
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 7


class Balance(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, _attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_tags_are_balanced(page):
    balance = Balance()
    balance.feed(page)
    assert balance.open == []


def test_the_configuration_in_the_page_can_be_run(page):
    blocks = [html_module.unescape(b) for b in re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)]
    config = next(b for b in blocks if b.startswith("[em]"))
    assert tomllib.loads(config) == {
        "em": {"path": CONFIG["em"]["path"]},
        "proof": CONFIG["proof"],
    }


def test_key_numbers_say_what_they_mean(page):
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert "median error 40 nm half of 30 landmarks that were not fitted" in text
    assert "person to person 32 nm" in text
    assert "from the truth 41 nm" in text
    assert "correlation inside the EM 0.62 of both images where the EM was imaged; 0.30 in" in text
    assert "folds 0 %" in text
    assert "predicted error 28 nm from random halves of the mitochondria (rms); 95 %" in text


def test_a_channel_that_was_not_used_is_shown_by_name(inputs, tmp_path):
    write_report(replace(inputs, check_channel="er <b>", check=inputs.after), tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h2>Channel er &lt;b&gt;, which was not used</h2>" in page
    assert page.count("data:image/png;base64,") == 9


def test_two_correlations_have_two_names(page):
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert re.search(r"correlation over the box Dice .* result 0\.407 0\.500", text)
    assert not re.search(r"correlation (?!inside the EM|over the box)", text)


def test_places_for_landmarks_are_listed(page):
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert "Add landmarks here" in text
    assert "predicted error (nm) 1 1.23 0.55 0.90 71 " in text


def test_parts_of_a_step_stand_below_it():
    rows = _timing_rows(NUMBERS["timings_s"])
    assert [name for name, _ in rows] == ["segment", "register", "register: elastix"]


def test_the_json_has_the_keys_that_scripts_rely_on(written):
    folder, verdict = written
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["schema"] == 1
    assert report["verdict"] == {"status": verdict.status, "reasons": list(verdict.reasons)}
    assert verdict.status == "pass"
    assert set(report) == {
        "schema", "verdict", "orientation", "affine", "landmarks", "jacobian", "round_trip_nm",
        "stability", "overlap", "truth", "stiffened", "timings_s", "provenance",
    }  # fmt: skip
    assert report["affine"]["matrix"][0] == [1.0, 0.0, 0.0, 0.0]
    assert report["truth"]["tre_max_nm"] is None
    assert "NaN" not in (folder / "report.json").read_text(encoding="utf-8")


def test_a_pose_that_was_not_searched_is_judged_by_the_images(tmp_path):
    unsearched = {"score": None, "runner_up": None, "margin": None, "mirrored": False}
    numbers = {"orientation": unsearched, "scores": {"start": 0.1, "final": 0.12}}
    write_report(ReportInputs("pair", numbers), tmp_path)
    reasons = json.loads((tmp_path / "report.json").read_text())["verdict"]["reasons"]
    assert any("correlate by 0.12: that is little agreement" in reason for reason in reasons)


def test_a_report_of_nothing_says_what_is_missing(tmp_path):
    verdict = write_report(ReportInputs("t", {}), tmp_path / "new")
    assert verdict.status == "warn"
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    assert report["landmarks"] is report["jacobian"] is None
    page = (tmp_path / "new" / "report.html").read_text()
    assert "not measured" in page
    assert "not looked for" in page


def test_unknown_numbers_become_dashes_not_errors(tmp_path):
    hollow = json.loads(re.sub(r": -?\d[\d.e-]*", ": null", json.dumps(_plain(NUMBERS))))
    assert write_report(ReportInputs("t", hollow), tmp_path).status == "warn"
    assert "–" in (tmp_path / "report.html").read_text(encoding="utf-8")


def _plain(value):
    from clemreg.io.atomic import plain

    return plain(value)


def test_a_failing_figure_leaves_the_last_report_as_it_was(written, inputs, monkeypatch):
    folder, _ = written
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert set(before) == {"report.html", "report.json"}

    def fail(*_args):
        raise MemoryError

    monkeypatch.setattr(figures, "checkerboard_figure", fail)
    with pytest.raises(MemoryError):
        write_report(inputs, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_numbers_are_short_and_have_no_minus_zero():
    assert [number(v, 0) for v in (31.6, -0.3, None, "x", True)] == ["32", "0", "–", "–", "1"]
    assert number(4e-6, 3) == "<0.001"
    assert number(0.0, 3) == "0.000"
