"""clemreg's own transform files, what is no transform file, and formats side by side."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from clemreg.errors import FormatError, FrameError, MissingError
from clemreg.io.transforms import read_fixed_grid, read_transform, write_elastix, write_transform
from clemreg.space.inverse import Inverse
from clemreg.space.tps import ThinPlateSpline
from clemreg.space.transform import Affine, Chain, Transform

from .transform_cases import (
    GRID,
    a_bspline,
    a_field,
    an_affine,
    an_elastix_chain,
    points_in,
    rotation,
)


@pytest.mark.parametrize(
    "transform",
    [
        an_affine(),
        a_bspline(direction=rotation((0.1, 0.2, 0.3))),
        a_field(),
        ThinPlateSpline(points_in(GRID, 8), points_in(GRID, 8, 2), "lm", "em"),
        Chain((an_affine("lm", "mid"), a_bspline("mid", "em"))),
        Inverse(a_bspline("em", "lm")),
    ],
    ids=lambda t: type(t).__name__,
)
def test_own_json_is_exact_to_the_last_bit(tmp_path, transform: Transform):
    path = tmp_path / "transform.json"
    write_transform(transform, path, fixed_grid=GRID)
    again = read_transform(path, source="ignored", target="ignored")
    assert type(again) is type(transform)
    assert (again.source, again.target) == (transform.source, transform.target)
    points = points_in(GRID, 20)
    assert np.array_equal(again(points), transform(points))
    assert read_fixed_grid(path) == GRID
    record = json.loads(path.read_text())
    assert (record["unit"], record["axes"], record["version"]) == ("nanometer", "zyx", 1)


def own_json(tmp_path, change) -> str:
    path = tmp_path / "transform.json"
    write_transform(Chain((an_affine("lm", "mid"), a_bspline("mid", "em"))), path)
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    return str(path)


def cut(record):
    array = record["transform"]["parts"][1]["coefficients_nm"]
    array["base64"] = array["base64"][:-16]


def poison(record):
    record["transform"]["parts"][0]["matrix"][0][0] = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(version=2), "version is 2"),
        (lambda r: r.update(unit="micrometer"), "unit is 'micrometer'"),
        (lambda r: r.update(axes="xyz"), "axes is 'xyz'"),
        (lambda r: r.update(target="lm"), "frames outside and inside"),
        (lambda r: r["transform"].update(type="warp"), "unknown transform type 'warp'"),
        (lambda r: r["transform"]["parts"].reverse(), "cannot chain"),
        (lambda r: r["transform"]["parts"][1].pop("grid_origin_nm"), "damaged: KeyError"),
        (lambda r: r["transform"].update(parts=None), "damaged: TypeError"),
        (cut, "cut off"),
        (poison, "finite 4 x 4"),
    ],
)
def test_damaged_own_json(tmp_path, change, message):
    path = own_json(tmp_path, change)
    with pytest.raises((FormatError, FrameError, ValueError), match=message):
        read_transform(path)


def test_failed_write_leaves_the_old_file(tmp_path):
    class Strange(Affine):
        pass

    path = tmp_path / "transform.json"
    write_transform(an_affine(), path)
    before = path.read_bytes()
    odd = Chain((an_affine("lm", "mid"), _Odd("mid", "em")))
    with pytest.raises(FormatError, match="_Odd"):
        write_transform(odd, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["transform.json"]


class _Odd(Transform):
    def __init__(self, source, target):
        self.source, self.target = source, target

    def __call__(self, points_nm):
        return points_nm

    def jacobian(self, points_nm):
        return np.broadcast_to(np.eye(3), (len(points_nm), 3, 3))

    def inverse(self):
        return self


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.h5", b"\x89HDF\r\n\x1a\nrubbish", "ITK can read"),
        ("t.tfm", b"#Insight Transform File V1.0\nTransform: Foo_double_3_3\n", "ITK can read"),
        ("t.dat", b"nothing", "no transform file that clemreg knows"),
        ("t.json", b"[]", "no JSON object"),
    ],
)
def test_unreadable_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=message):
        read_transform(tmp_path / name)


def test_missing_file(tmp_path):
    for reader in (read_transform, read_fixed_grid):
        with pytest.raises(MissingError, match=r"nothing\.txt"):
            reader(tmp_path / "nothing.txt")


def test_a_folder_is_no_transform(tmp_path):
    for reader in (read_transform, read_fixed_grid):
        with pytest.raises(FormatError, match="folder without a displacement field"):
            reader(tmp_path)


def test_every_pair_of_formats_agrees(tmp_path):
    """One chain through every format that can hold it maps points alike."""
    chain = an_elastix_chain()
    write_transform(chain, tmp_path / "t.json")
    write_transform(chain, tmp_path / "t.h5")
    write_transform(chain, tmp_path / "t.tfm")
    last = write_elastix(chain, tmp_path / "elastix", GRID)[-1]
    points = points_in(GRID)
    mapped = [
        read_transform(p)(points)
        for p in (tmp_path / "t.json", tmp_path / "t.h5", tmp_path / "t.tfm", last)
    ]
    for one, other in itertools.combinations(mapped, 2):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-8)
