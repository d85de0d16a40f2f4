"""Transform files against what wrote them or reads them: SimpleITK, elastix, BigWarp, the paper."""

from __future__ import annotations

import csv
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.interpolate import RBFInterpolator

from clemreg.errors import DataError, FormatError, FrameError, MissingError
from clemreg.io.elastix_files import read_parameter_file
from clemreg.io.transforms import (
    read_fixed_grid,
    read_transform,
    write_elastix,
    write_transform,
)
from clemreg.space.bspline import BSpline
from clemreg.space.field import DisplacementField
from clemreg.space.grid import Grid
from clemreg.space.inverse import Inverse
from clemreg.space.tps import ThinPlateSpline
from clemreg.space.transform import Affine, Chain, Transform

GRID = Grid((11, 17, 23), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "lm")
UM = 1e3


def rotation(angles) -> np.ndarray:
    """Of ITK's Euler3DTransform, xyz, as an oracle for directions."""
    return np.array(sitk.Euler3DTransform((0, 0, 0), *angles).GetMatrix()).reshape(3, 3)


def an_affine(source="lm", target="em") -> Affine:
    linear = rotation((0.3, -0.4, 0.9)) @ [[1.1, 0.2, 0], [0, 0.9, -0.1], [0, 0, -1.05]]
    return Affine.from_linear(linear, [1234.5, -77.25, 310.0], source, target)


def a_bspline(source="lm", target="em", direction=None) -> BSpline:
    rng = np.random.default_rng(11)
    return BSpline(
        coefficients_nm=rng.normal(0, 4.0, (3, 7, 9, 10)),
        grid_origin_nm=np.array([270.0, -230.0, 40.0]),
        grid_spacing_nm=np.array([19.5, 16.25, 18.0]),
        source=source,
        target=target,
        direction=np.eye(3) if direction is None else direction,
    )


def a_field(source="lm", target="em") -> DisplacementField:
    rng = np.random.default_rng(12)
    return DisplacementField(rng.normal(0, 9, (3, *GRID.shape)), GRID.with_frame(source), target)


def points_in(grid: Grid, n: int = 200, seed: int = 1) -> np.ndarray:
    low, high = grid.corners_nm().min(0), grid.corners_nm().max(0)
    return np.random.default_rng(seed).uniform(low, high, (n, 3))


def by_sitk(transform, points_nm, unit_nm=UM) -> np.ndarray:
    """What SimpleITK makes of zyx nm points."""
    mapped = [transform.TransformPoint(tuple(p[::-1] / unit_nm)) for p in np.asarray(points_nm)]
    return np.array(mapped)[:, ::-1] * unit_nm


# ---- clemreg's own


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


# ---- elastix: reading


def elastix_text(kind, numbers, initial="NoInitialTransform", **keys) -> str:
    lines = {
        "Transform": f'"{kind}"',
        "NumberOfParameters": len(numbers),
        "TransformParameters": " ".join(repr(float(v)) for v in numbers),
        "InitialTransformParameterFileName": f'"{initial}"',
        "HowToCombineTransforms": '"Compose"',
        "FixedImageDimension": 3,
        "MovingImageDimension": 3,
        "CenterOfRotationPoint": "0.5 -0.25 2.0",
        "Size": "23 17 11",
        "Index": "0 0 0",
        "Spacing": "0.004 0.004 0.00524",
        "Origin": "0.07 -0.2 0.3",
        "Direction": "1 0 0 0 1 0 0 0 1",
    }
    lines.update(keys)
    return "// made for a test\n\n" + "\n".join(f"({k} {v})" for k, v in lines.items() if v != "")


ANGLES, SHIFT, CENTRE = (0.3, 0.5, 0.7), (1.0, -2.0, 3.0), (0.5, -0.25, 2.0)


def itk_euler(zyx: bool):
    transform = sitk.Euler3DTransform(CENTRE, *ANGLES, SHIFT)
    transform.SetComputeZYX(zyx)
    return transform


def itk_similarity():
    transform = sitk.Similarity3DTransform()
    transform.SetCenter(CENTRE)
    transform.SetParameters((0.1, -0.2, 0.3, *SHIFT, 1.25))
    return transform


def itk_affine():
    return sitk.AffineTransform((1.1, 0.2, 0.3, 0, 0.9, -0.2, 0.05, 0, 1.2), SHIFT, CENTRE)


@pytest.mark.parametrize(
    ("kind", "numbers", "keys", "oracle"),
    [
        ("AffineTransform", itk_affine().GetMatrix() + SHIFT, {}, itk_affine()),
        ("EulerTransform", ANGLES + SHIFT, {"ComputeZYX": '"false"'}, itk_euler(zyx=False)),
        ("EulerTransform", ANGLES + SHIFT, {}, itk_euler(zyx=False)),
        ("EulerTransform", ANGLES + SHIFT, {"ComputeZYX": '"true"'}, itk_euler(zyx=True)),
        ("SimilarityTransform", (0.1, -0.2, 0.3, *SHIFT, 1.25), {}, itk_similarity()),
        ("TranslationTransform", SHIFT, {}, sitk.TranslationTransform(3, SHIFT)),
    ],
)
@pytest.mark.parametrize("unit", ["um", "mm"])
def test_linear_elastix_transforms_are_those_of_itk(tmp_path, kind, numbers, keys, oracle, unit):
    path = tmp_path / "TransformParameters.0.txt"
    path.write_text(elastix_text(kind, numbers, **keys))
    found = read_transform(path, unit=unit)
    points = points_in(GRID, 20) * 20
    np.testing.assert_allclose(
        found(points), by_sitk(oracle, points, {"um": 1e3, "mm": 1e6}[unit]), atol=1e-6
    )
    assert (found.source, found.target) == ("lm", "em")


def bspline_keys(spline: BSpline, index=(0, 0, 0)) -> dict[str, str]:
    """As elastix writes it: the grid direction column by column, in um."""
    z, y, x = spline.grid_shape
    spacing, direction = spline.grid_spacing_nm[::-1] / UM, spline.direction[::-1, ::-1]
    origin = spline.grid_origin_nm[::-1] / UM - direction @ (spacing * index)
    text = {"GridSize": (x, y, z), "GridIndex": index, "GridSpacing": spacing}
    text |= {"GridOrigin": origin, "GridDirection": direction.T.ravel()}
    keys = {k: " ".join(repr(float(n)) for n in v) for k, v in text.items()}
    return keys | {"BSplineTransformSplineOrder": "3", "UseCyclicTransform": '"false"'}


def bspline_numbers(spline: BSpline) -> np.ndarray:
    return spline.coefficients_nm[::-1].ravel() / UM


@pytest.mark.parametrize("index", [(0, 0, 0), (2, -1, 3)])
def test_bspline_with_direction_and_index(tmp_path, index):
    spline = a_bspline(direction=rotation((0.1, -0.2, 0.15)))
    path = tmp_path / "t.txt"
    numbers, keys = bspline_numbers(spline), bspline_keys(spline, index)
    path.write_text(elastix_text("BSplineTransform", numbers, **keys))
    found = read_transform(path)
    assert isinstance(found, BSpline)
    points = points_in(GRID)
    assert np.abs(spline(points) - points).max() > 3
    np.testing.assert_allclose(found(points), spline(points), atol=1e-8)


@pytest.mark.parametrize(
    "key", ["InitialTransformParameterFileName", "InitialTransformParametersFileName"]
)
def test_initial_transform_acts_first_under_both_spellings(tmp_path, key):
    (tmp_path / "sub").mkdir()
    first = elastix_text("AffineTransform", itk_affine().GetMatrix() + SHIFT)
    (tmp_path / "sub" / "first.txt").write_text(first)
    second = elastix_text("EulerTransform", ANGLES + SHIFT)
    second = second.replace(
        '(InitialTransformParameterFileName "NoInitialTransform")', f'({key} "sub/first.txt")'
    )
    (tmp_path / "second.txt").write_text(second)
    found = read_transform(tmp_path / "second.txt", source="a", target="b")
    assert isinstance(found, Chain)
    assert (found.source, found.target, len(found.parts)) == ("a", "b", 2)
    points = points_in(GRID, 20)
    expected = by_sitk(itk_euler(zyx=False), by_sitk(itk_affine(), points))
    np.testing.assert_allclose(found(points), expected, atol=1e-6)
    assert np.abs(by_sitk(itk_affine(), by_sitk(itk_euler(zyx=False), points)) - expected).max() > 9


@pytest.mark.parametrize("name", ["/nowhere/run 7/first.txt", r"C:\runs\first.txt"])
def test_moved_results_find_the_initial_transform_beside(tmp_path, name):
    (tmp_path / "first.txt").write_text(elastix_text("TranslationTransform", SHIFT))
    (tmp_path / "second.txt").write_text(elastix_text("TranslationTransform", SHIFT, initial=name))
    found = read_transform(tmp_path / "second.txt")
    np.testing.assert_allclose(found([[0.0, 0.0, 0.0]]), [[6000, -4000, 2000]])


def test_three_link_chain(tmp_path):
    names = ["NoInitialTransform", "a.txt", "b.txt"]
    for name, initial in zip(["a.txt", "b.txt", "c.txt"], names, strict=True):
        text = elastix_text("TranslationTransform", SHIFT, initial=initial)
        (tmp_path / name).write_text(text)
    assert len(read_transform(tmp_path / "c.txt").parts) == 3


def test_fixed_grid_of_elastix_file(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(elastix_text("TranslationTransform", SHIFT))
    found = read_fixed_grid(path)
    assert found.shape == GRID.shape
    assert found.frame == "lm"
    np.testing.assert_allclose(found.spacing_nm, GRID.spacing_nm)
    np.testing.assert_allclose(found.origin_nm, GRID.origin_nm)
    turned = elastix_text("TranslationTransform", SHIFT, Direction="0 1 0 -1 0 0 0 0 1")
    path.write_text(turned)
    assert read_fixed_grid(path) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (elastix_text("AffineTransform", range(11), NumberOfParameters=12), "11 numbers, expect"),
        (elastix_text("AffineTransform", range(12), NumberOfParameters=11), "is 11, expected 12"),
        (elastix_text("AffineTransform", range(12), TransformParameters="1 2 x"), "text instead"),
        (elastix_text("TranslationTransform", [1, 2, np.nan]), "NaN"),
        (elastix_text("TranslationTransform", SHIFT, CenterOfRotationPoint="")[:-2], "cut off"),
        (elastix_text("EulerTransform", ANGLES + SHIFT, CenterOfRotationPoint=""), "CenterOfRot"),
        (elastix_text("EulerTransform", (0.1, 1, 2), FixedImageDimension=2), "only 3-D"),
        (elastix_text("SplineKernelTransform", SHIFT), "cannot read a SplineKernelTransform"),
        (elastix_text("TranslationTransform", SHIFT) + "\n(Index 0 0 0)", "Index is there twice"),
        (elastix_text("BSplineTransform", range(4), GridSize="1 1 1"), "is 4, expected 3"),
        (elastix_text("BSplineTransform", range(4), GridSize="1.5 1 1"), "whole and positive"),
        (
            elastix_text("BSplineTransform", SHIFT, GridSize="1 1 1", UseCyclicTransform='"true"'),
            "not cyclic",
        ),
        (
            elastix_text("BSplineTransform", SHIFT, BSplineTransformSplineOrder="2"),
            "found order 2",
        ),
        ("(Size 1 2 3)\n", "no .Transform .... line"),
        ("root:x:0:0:root\n", "no .Transform .... line"),
    ],
)
def test_broken_elastix_files(tmp_path, text, message):
    path = tmp_path / "broken.txt"
    path.write_text(text)
    with pytest.raises(FormatError, match=message) as caught:
        read_transform(path)
    assert "broken.txt" in str(caught.value)


def test_truncated_bspline_file_of_the_paper(tmp_path, shared_data):
    whole = (shared_data / "cosem-clem" / "palm_def_TransformParameters.txt").read_text()
    (tmp_path / "cut.txt").write_text(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="cut off"):
        read_transform(tmp_path / "cut.txt")


def test_chain_errors(tmp_path):
    loop = tmp_path / "loop.txt"
    loop.write_text(elastix_text("TranslationTransform", SHIFT, initial="other.txt"))
    other = tmp_path / "other.txt"
    other.write_text(elastix_text("TranslationTransform", SHIFT, initial="./loop.txt"))
    with pytest.raises(FormatError, match="its own initial transform"):
        read_transform(loop)
    other.unlink()
    with pytest.raises(MissingError, match=r"loop.txt names the initial transform 'other.txt'"):
        read_transform(loop)
    keys = {"HowToCombineTransforms": '"Add"'}
    loop.write_text(elastix_text("TranslationTransform", SHIFT, initial="x.txt", **keys))
    with pytest.raises(FormatError, match="'Add'"):
        read_transform(loop)
    loop.write_text(elastix_text("TranslationTransform", SHIFT, **keys))
    assert isinstance(read_transform(loop), Affine)  # nothing to add to


@pytest.mark.parametrize("name", ["/dev/zero", "../../../../etc/passwd", "/etc/passwd", "."])
def test_hostile_initial_names_are_only_read(tmp_path, name):
    (tmp_path / "t.txt").write_text(elastix_text("TranslationTransform", SHIFT, initial=name))
    with pytest.raises((FormatError, MissingError)) as caught:
        read_transform(tmp_path / "t.txt")
    assert "root:" not in str(caught.value)


# ---- elastix: the paper's files and transformix


def cosem_rows(path, rater):
    """Independent of clemreg's own reader: (N, 3) em and lm, xyz um."""
    with path.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["Rater ID"] == rater]
    return tuple(
        np.array([[float(row[f"{side}-{axis}"]) for axis in "xyz"] for row in rows])
        for side in ("em", "lm")
    )


def test_palm_transform_reproduces_the_published_points(shared_data):
    folder = shared_data / "cosem-clem"
    em, lm = cosem_rows(folder / "clem-landmarks.csv", "Auto")
    transform = read_transform(folder / "palm_def_TransformParameters.txt")
    mapped = transform((lm + np.array([43.94, 21.84, 4.42]))[:, ::-1] * 1e3)
    error = np.linalg.norm(mapped - em[:, ::-1] * 1e3, axis=1)
    assert len(error) == 31
    assert error.max() < 0.1
    assert error.mean() < 0.035


@pytest.mark.parametrize("which", ["palm", "sim"])
def test_papers_bspline_against_simpleitk(shared_data, which):
    path = shared_data / "cosem-clem" / f"{which}_def_TransformParameters.txt"
    file = read_parameter_file(path)
    oracle = sitk.BSplineTransform(3, 3)
    fixed = [*file.values["GridSize"], *file.values["GridOrigin"], *file.values["GridSpacing"]]
    oracle.SetFixedParameters([float(v) for v in [*fixed, *np.eye(3).ravel()]])
    oracle.SetParameters([float(v) for v in file.values["TransformParameters"]])
    affine, spline = read_transform(path).parts
    grid = read_fixed_grid(path)
    points = affine(points_in(grid, 300))
    expected = by_sitk(oracle, points)
    assert np.abs(expected - points).max() > 500
    np.testing.assert_allclose(spline(points), expected, atol=1e-6)
    assert grid.shape == {"palm": (59, 1650, 1388), "sim": (117, 3300, 2775)}[which]


def an_elastix_chain() -> Chain:
    direction = rotation((0.1, -0.2, 0.15))
    small = Affine.from_linear(rotation((0.02, 0.01, -0.03)), [3.0, -2.0, 4.0], "lm", "mid")
    back = Affine.from_linear(np.eye(3) * [1.2, 1, 0.9], [700.0, 100, -60], "bent", "em")
    return Chain((small, a_bspline("mid", "bent", direction), back))


def test_elastix_files_come_back_exactly(tmp_path):
    chain = an_elastix_chain()
    paths = write_elastix(chain, tmp_path / "out", GRID)
    assert [path.name for path in paths] == [f"TransformParameters.{i}.txt" for i in range(3)]
    assert str(tmp_path) not in "".join(path.read_text() for path in paths)
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    again = read_transform(moved / "TransformParameters.2.txt")
    points = points_in(GRID)
    np.testing.assert_allclose(again(points), chain(points), rtol=0, atol=1e-9)
    found = read_fixed_grid(moved / "TransformParameters.2.txt")
    np.testing.assert_allclose(found.index_to_world, GRID.index_to_world, rtol=1e-15)


def test_elastix_cannot_hold_everything(tmp_path):
    with pytest.raises(FormatError, match="DisplacementField"):
        write_elastix(a_field(), tmp_path / "out", GRID)
    assert not (tmp_path / "out").exists()
    with pytest.raises(FrameError):
        write_elastix(an_affine(), tmp_path / "out", GRID.with_frame("em"))


TRANSFORMIX = """
import json, sys
import itk
import numpy as np

last, points_file, out = sys.argv[1:]
parameters = itk.ParameterObject.New()
parameters.ReadParameterFile(last)
image = itk.image_from_array(np.zeros((4, 4, 4), np.float32))
rows = itk.transformix_pointset(
    image, parameters, fixed_point_set_file_name=points_file, output_directory=out
)
text = [" ".join(row) for row in rows]
print(json.dumps([[float(v) for v in t.split("OutputPoint = [")[1].split("]")[0].split()]
                  for t in text]))
"""


def transformix(tmp_path, last, points_nm, unit_nm) -> np.ndarray:
    """Points zyx nm through elastix's own program, started where the files are."""
    out = tmp_path / "transformix"
    out.mkdir(exist_ok=True)
    lines = [" ".join(map(repr, map(float, p[::-1] / unit_nm))) for p in points_nm]
    (out / "points.txt").write_text("\n".join(["point", str(len(lines)), *lines, ""]))
    done = subprocess.run(
        [sys.executable, "-c", TRANSFORMIX, last.name, str(out / "points.txt"), str(out)],
        cwd=last.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    mapped = np.array(json.loads(done.stdout.strip().splitlines()[-1]))
    return mapped[:, ::-1] * unit_nm


@pytest.mark.elastix
@pytest.mark.slow
def test_transformix_reads_our_files(tmp_path):
    """In nm its six printed decimals are 1e-6 nm."""
    pytest.importorskip("itk")
    chain = an_elastix_chain()
    points = points_in(GRID, 50)
    last = write_elastix(chain, tmp_path / "files", GRID, unit="nm")[-1]
    mapped = transformix(tmp_path, last, points, 1.0)
    np.testing.assert_allclose(mapped, chain(points), atol=2e-6)


# ---- ITK


@pytest.mark.parametrize("suffix", [".h5", ".tfm"])
@pytest.mark.parametrize(
    "transform",
    [
        an_affine(),
        a_bspline(direction=rotation((0.1, -0.2, 0.15))),
        a_field(),
        Chain((an_affine("lm", "mid"), a_bspline("mid", "mid2"), an_affine("mid2", "em"))),
    ],
    ids=lambda t: type(t).__name__,
)
def test_simpleitk_reads_what_we_write_and_back(tmp_path, transform, suffix):
    path = tmp_path / f"t{suffix}"
    write_transform(transform, path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    points = points_in(GRID, 100)
    expected = transform(points)
    np.testing.assert_allclose(by_sitk(sitk.ReadTransform(str(path)), points), expected, atol=1e-6)
    again = read_transform(path)
    assert (again.source, again.target) == ("lm", "em")
    np.testing.assert_allclose(again(points), expected, atol=1e-6)


@pytest.mark.parametrize(
    "oracle", [itk_euler(zyx=True), itk_similarity(), sitk.Transform(3, sitk.sitkIdentity)]
)
def test_itk_linear_transforms(tmp_path, oracle):
    sitk.WriteTransform(oracle, str(tmp_path / "t.txt"))
    found = read_transform(tmp_path / "t.txt", unit="mm")
    assert isinstance(found, Affine)
    points = points_in(GRID, 10) * 1e4
    np.testing.assert_allclose(found(points), by_sitk(oracle, points, 1e6), atol=1e-6)


def test_itk_nested_composite_and_rotated_field(tmp_path):
    vectors = np.random.default_rng(5).normal(0, 0.01, (*GRID.shape, 3))
    image = sitk.GetImageFromArray(vectors, isVector=True)
    image.SetSpacing((0.004, 0.004, 0.00524))
    image.SetOrigin((0.07, -0.2, 0.3))
    image.SetDirection(rotation((0.1, -0.2, 0.15)).ravel().tolist())
    inside = [
        image.TransformContinuousIndexToPhysicalPoint(p) for p in ((3.3, 4.4, 5.5), (20, 9, 2.5))
    ]
    inner = sitk.CompositeTransform(3)
    inner.AddTransform(itk_affine())
    inner.AddTransform(itk_affine().GetInverse())
    oracle = sitk.CompositeTransform(3)
    oracle.AddTransform(itk_euler(zyx=False))
    oracle.AddTransform(sitk.DisplacementFieldTransform(image))
    oracle.AddTransform(inner)
    path = tmp_path / "t.h5"
    oracle.FlattenTransform()
    sitk.WriteTransform(oracle, str(path))
    points = np.array(inside)[:, ::-1] * UM
    expected = by_sitk(oracle, points)
    moved = by_sitk(itk_euler(zyx=False), points)
    assert np.abs(expected - moved).min() > 0.1
    np.testing.assert_allclose(read_transform(path)(points), expected, atol=1e-6)


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


def test_transforms_side_by_side_are_refused(tmp_path):
    """SimpleITK would take the first, and only print a warning."""
    sitk.WriteTransform(itk_affine(), str(tmp_path / "a.tfm"))
    text = (tmp_path / "a.tfm").read_text()
    (tmp_path / "b.tfm").write_text(text + text[text.index("#Transform") :])
    with pytest.raises(FormatError, match="2 transforms side by side"):
        read_transform(tmp_path / "b.tfm")


def test_damaged_lattice_size_does_not_hang(tmp_path):
    h5py = pytest.importorskip("h5py")
    write_transform(a_bspline(), tmp_path / "t.h5")
    with h5py.File(tmp_path / "t.h5", "r+") as file:
        file["TransformGroup/0/TransformFixedParameters"][1] = 1e18
    with pytest.raises(FormatError, match="do not fit its lattice"):
        read_transform(tmp_path / "t.h5")
    with h5py.File(tmp_path / "t.h5", "r+") as file:
        file["TransformGroup/0/TransformFixedParameters"][1] = np.nan
    with pytest.raises(FormatError, match="NaN"):
        read_transform(tmp_path / "t.h5")


def test_fixed_grid_without_spacing(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(elastix_text("TranslationTransform", SHIFT, Spacing="0 1 1"))
    with pytest.raises(FormatError, match=r"t\.txt: the fixed grid is wrong"):
        read_fixed_grid(path)


def test_two_dimensional_and_quadratic_itk_transforms_are_refused(tmp_path):
    sitk.WriteTransform(sitk.AffineTransform(2), str(tmp_path / "t.tfm"))
    with pytest.raises(FormatError, match="2-D"):
        read_transform(tmp_path / "t.tfm")
    sitk.WriteTransform(sitk.BSplineTransform(3, 2), str(tmp_path / "t.h5"))
    with pytest.raises(FormatError, match="order 2"):
        read_transform(tmp_path / "t.h5")


def test_itk_has_no_thin_plate_spline(tmp_path):
    spline = ThinPlateSpline(points_in(GRID, 8), points_in(GRID, 8, 2), "lm", "em")
    with pytest.raises(FormatError, match="ThinPlateSpline"):
        write_transform(spline, tmp_path / "t.h5")
    with pytest.raises(FormatError, match="how to write"):
        write_transform(an_affine(), tmp_path / "t.txt")
    assert not list(tmp_path.iterdir())


def test_missing_file(tmp_path):
    for reader in (read_transform, read_fixed_grid):
        with pytest.raises(MissingError, match=r"nothing\.txt"):
            reader(tmp_path / "nothing.txt")


# ---- BigWarp


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
