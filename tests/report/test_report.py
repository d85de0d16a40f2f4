from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest

from clemreg.report import figures
from clemreg.report.figures import Overlay
from clemreg.report.report import ReportInputs, write_report
from clemreg.report.verdict import decide
from clemreg.space import Affine, Grid
from clemreg.testing import random_bspline

GRID = Grid((12, 40, 50), (104.0, 52.0, 52.0), (500.0, 100.0, -300.0), "lm")

STATS = {"min": 0.8, "p0.1": 0.81, "p1": 0.85, "p50": 1.0, "p99": 1.1, "p99.9": 1.15, "max": 1.2,
         "mean": 1.0, "sd": 0.05, "fold_fraction": 0.0}  # fmt: skip
ERRORS = {"n": 30, "mean_nm": 45.0, "median_nm": 40.0, "p90_nm": 80.0, "p95_nm": 90.0,
          "max_nm": 99.0, "rms_nm": 50.0, "bias_nm": [1.0, 2.0, 3.0]}  # fmt: skip
GOOD = {
    "landmarks": {
        **ERRORS,
        "by_rater": {"AW": ERRORS},
        "between_raters": {**ERRORS, "mean_nm": 32.0},
    },
    "jacobian": {"with_affine": STATS, "without_affine": STATS},
    "orientation": {"score": 0.6, "runner_up": 0.2, "margin": 0.4, "mirrored": False},
    "affine": {"matrix": np.eye(4), "singular_values": [1.1, 1.02, 0.97], "determinant": 1.09},
    "stability": {"seeds": 3, "rms_nm": 5.0, "p95_nm": 9.0},
    "truth": {"tre_median_nm": 41.0},
    "round_trip_nm": {"mean": 1e-4, "max": 1e-3},
    "timings_s": {"register": 12.0},
    "provenance": {"seed": 1},
}


def changed(**parts):
    return {**GOOD, **{k: {**(GOOD.get(k) or {}), **v} if v else None for k, v in parts.items()}}


@pytest.mark.parametrize(
    ("report", "status", "words"),
    [
        (GOOD, "pass", "within 40 nm"),
        (changed(landmarks=None), "warn", "not measured"),
        (changed(landmarks={"median_nm": 180.0}), "warn", "within 180 nm"),
        (changed(landmarks={"median_nm": 300.0}), "fail", "within 300 nm"),
        (changed(jacobian={"without_affine": {**STATS, "fold_fraction": 0.001}}), "fail", "folds"),
        (changed(jacobian={"without_affine": {**STATS, "min": 0.4}}), "warn", "0.40"),
        (changed(orientation={"mirrored": True}), "warn", "mirrored"),
        (changed(orientation={"margin": 0.01}), "warn", "too close"),
        (changed(affine={"singular_values": [1.6, 1.0, 1.0]}), "warn", "voxel size"),
        (changed(stability={"rms_nm": 90.0}), "warn", "90 nm"),
    ],
)
def test_the_verdict_and_its_reason(report, status, words):
    verdict = decide(report)
    assert verdict.status == status
    assert words in (verdict.reasons[0] if status != "pass" else " ".join(verdict.reasons))


def png_array(data):
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    lm = np.zeros(GRID.shape, np.float32)
    lm[3:6, 5:12, 35:45] = 1
    overlay = Overlay(lm, lm, GRID)
    bspline = random_bspline(rng, GRID, amplitude_nm=30)
    affine = Affine.identity("lm", "lm")
    return ReportInputs(
        title="<script>alert('x')</script>",
        numbers=GOOD,
        before=Overlay(lm, np.roll(lm, 8, axis=1), GRID),
        after=overlay,
        transform=affine.then(bspline),
        affine=affine,
        grid=GRID,
        point_errors_nm=rng.gamma(3, 15, 30),
        determinants=rng.normal(1, 0.05, 500),
        determinant_plane=rng.normal(1, 0.05, GRID.shape[1:]),
        worst=(("7", 99.0, 1.0, 2.0, float("nan")),),
    )


def test_the_html_stands_alone_and_escapes(tmp_path, inputs):
    write_report(inputs, tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", html)
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", html)
    assert len(pictures) == 5
    for picture in pictures:
        assert png_array(base64.b64decode(picture)).std() > 1


def test_the_json_has_the_keys_that_scripts_rely_on(tmp_path, inputs):
    verdict = write_report(inputs, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["schema"] == 1
    assert report["verdict"]["status"] == verdict.status == "pass"
    assert set(report) == {
        "schema", "verdict", "orientation", "affine", "landmarks", "jacobian", "round_trip_nm",
        "stability", "truth", "timings_s", "provenance",
    }  # fmt: skip
    assert report["affine"]["matrix"][0] == [1.0, 0.0, 0.0, 0.0]


def test_a_report_without_landmarks_says_so(tmp_path):
    verdict = write_report(ReportInputs("t", {**GOOD, "landmarks": None}), tmp_path)
    assert verdict.status == "warn"
    assert json.loads((tmp_path / "report.json").read_text())["landmarks"] is None
    assert "not measured" in (tmp_path / "report.html").read_text()


def test_overlays_show_the_blob_where_it_is():
    """Bright at small y (up) and large x (right); white where both images are alike."""
    lm = np.zeros(GRID.shape, np.float32)
    lm[3:9, 2:8, 40:48] = 1
    same = png_array(figures.overlay_figure(Overlay(lm, lm, GRID), Overlay(lm, lm, GRID)))
    empty = np.zeros_like(lm)
    only = png_array(figures.overlay_figure(Overlay(lm, empty, GRID), Overlay(lm, empty, GRID)))
    magenta = (only[..., 0] > 240) & (only[..., 2] > 240) & (only[..., 1] < 15)
    assert magenta.sum() > 200
    rows, columns = np.nonzero(magenta[: len(magenta) // 2, : magenta.shape[1] // 2])
    dark = (only.max(axis=-1) < 15)[: len(magenta) // 2, : magenta.shape[1] // 2]
    dark_rows, dark_columns = np.nonzero(dark)
    assert rows.mean() < dark_rows.mean()
    assert columns.mean() > dark_columns.mean()
    white = same.min(axis=-1)[: len(magenta) // 2, : magenta.shape[1] // 2]
    assert white[int(rows.mean()), int(columns.mean())] > 240


def test_unit_scaling_survives_flat_images():
    assert figures.to_unit(np.zeros((3, 3, 3))).max() == 0
    scaled = figures.to_unit(np.arange(1000.0).reshape(10, 10, 10))
    assert scaled.min() == 0
    assert scaled.max() == 1
