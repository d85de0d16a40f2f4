"""Landmarks as transforms: against BigWarp, SciPy and exact linear maps."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from scipy.interpolate import RBFInterpolator

from clemreg.errors import DataError
from clemreg.io.transforms import read_transform
from clemreg.space.transform import Affine

from .transform_cases import ANGLES, SHIFT, UM, cosem_rows, rotation


def test_bigwarp_spline_golden(shared_data):
    found = read_transform(shared_data / "golden" / "bigwarp_tps_landmarks.csv")
    target = np.array([[0.0, 0, 0], [5, 6, 7], [12.5, 3.25, 9]])
    moving = [
        [2.3790581354112943, -1.6106701680021243, 1.5410249341272788],
        [7.996758423143107, 4.185067163292817, 8.741817243187548],
        [15.44762117897327, 0.5994774635519255, 10.52324939701092],
    ]
    np.testing.assert_allclose(
        found(target[:, ::-1] * UM), np.array(moving)[:, ::-1] * UM, rtol=1e-10, atol=1e-7
    )
    assert (found.source, found.target) == ("lm", "em")


def test_bigwarp_spline_of_a_t_cell_against_scipy(shared_data):
    path = shared_data / "cosem-clem" / "tcell-roi2-bigwarp-landmarks.csv"
    with path.open(newline="") as stream:
        rows = [row for row in csv.reader(stream) if row[1] == "true"]
    numbers = np.array([[float(v) for v in row[2:]] for row in rows])
    oracle = RBFInterpolator(numbers[:, 3:], numbers[:, :3], kernel="thin_plate_spline", degree=1)
    where = np.random.default_rng(2).uniform([14, 9, 3], [33, 34, 11], (50, 3))
    found = read_transform(path)(where[:, ::-1] * UM)
    np.testing.assert_allclose(found, oracle(where)[:, ::-1] * UM, rtol=1e-8)


@pytest.mark.parametrize("kind", ["Affine", "Similarity", "Rotation", "Translation"])
def test_bigwarp_linear_models(tmp_path, kind):
    angles = (0.0, 0.0, 0.0) if kind == "Translation" else ANGLES
    linear = rotation(angles) * (1.3 if kind in ("Affine", "Similarity") else 1.0)
    if kind == "Affine":
        linear = linear @ [[1, 0.2, 0], [0, 1, 0.1], [0, 0, 0.8]]
    target = np.random.default_rng(8).uniform(0, 20, (9, 3))
    moving = target @ linear.T + SHIFT
    marks = {"movingPoints": moving.tolist(), "fixedPoints": target.tolist()}
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"type": kind, "landmarks": marks}))
    found = read_transform(path)
    assert isinstance(found, Affine)
    points = np.random.default_rng(9).uniform(0, 20, (5, 3))
    expected = (points @ linear.T + SHIFT)[:, ::-1] * UM
    np.testing.assert_allclose(found(points[:, ::-1] * UM), expected, rtol=1e-9)


def test_landmarks_of_one_rater_make_a_spline_too(tmp_path, shared_data):
    path = shared_data / "cosem-clem" / "clem-landmarks.csv"
    with pytest.raises(DataError, match="AW, Auto, JB"):
        read_transform(path)
    lines = path.read_text().splitlines()
    one = [lines[0], *(line for line in lines if ",JB," in line)]
    (tmp_path / "jb.csv").write_text("\n".join(one))
    em, lm = cosem_rows(path, "JB")
    found = read_transform(tmp_path / "jb.csv")(lm[:, ::-1] * UM)
    np.testing.assert_allclose(found, em[:, ::-1] * UM, atol=1e-4)


def test_too_few_landmarks(tmp_path):
    rows = "".join(f"Pt-{i},true,{i},1,2,3,4,5\n" for i in range(3))
    (tmp_path / "b.csv").write_text(rows + "Pt-3,false,1,2,3,4,5,6\n")
    with pytest.raises(DataError, match="3 usable"):
        read_transform(tmp_path / "b.csv")
