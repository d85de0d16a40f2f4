"""elastix parameter files, against SimpleITK, transformix and the paper."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from clemreg.errors import FormatError, FrameError, MissingError
from clemreg.io.elastix_files import read_parameter_file
from clemreg.io.transforms import read_fixed_grid, read_transform, write_elastix
from clemreg.space.bspline import BSpline
from clemreg.space.transform import Affine, Chain

from .transform_cases import (
    ANGLES,
    GRID,
    SHIFT,
    UM,
    a_bspline,
    a_field,
    an_affine,
    an_elastix_chain,
    by_sitk,
    cosem_rows,
    elastix_text,
    itk_affine,
    itk_euler,
    itk_similarity,
    points_in,
    rotation,
)


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


@pytest.mark.parametrize("run2", ["TransformParameters.0.txt", "TransformParameters.1.txt"])
def test_names_from_where_elastix_ran_are_found_before_others_beside(tmp_path, run2):
    """`elastix -out run2 -t0 run1/TransformParameters.0.txt`: the name is that of the command."""
    named = "run1/TransformParameters.0.txt"
    for folder in ("run1", "run2"):
        (tmp_path / folder).mkdir()
    (tmp_path / named).write_text(elastix_text("TranslationTransform", SHIFT))
    unrelated = elastix_text("TranslationTransform", (1, 1, 1))
    (tmp_path / "run2" / "TransformParameters.0.txt").write_text(unrelated)
    last = elastix_text("TranslationTransform", SHIFT, initial=named)
    (tmp_path / "run2" / run2).write_text(last)
    found = read_transform(tmp_path / "run2" / run2)
    np.testing.assert_allclose(found([[0.0, 0.0, 0.0]]), [[6000, -4000, 2000]])


def test_a_folder_of_the_same_name_within_does_not_hide_the_one_that_is_named(tmp_path):
    (tmp_path / "run" / "run").mkdir(parents=True)
    (tmp_path / "run" / "t.txt").write_text(elastix_text("TranslationTransform", SHIFT))
    last = elastix_text("TranslationTransform", SHIFT, initial="run/t.txt")
    (tmp_path / "run" / "run" / "t.txt").write_text(last)
    found = read_transform(tmp_path / "run" / "run" / "t.txt")
    np.testing.assert_allclose(found([[0.0, 0.0, 0.0]]), [[6000, -4000, 2000]])


def test_a_bare_name_is_not_looked_for_in_other_folders(tmp_path, monkeypatch):
    """Every result of elastix has such names: that of another one may lie above."""
    (tmp_path / "run").mkdir()
    (tmp_path / "first.txt").write_text(elastix_text("TranslationTransform", SHIFT))
    last = elastix_text("TranslationTransform", SHIFT, initial="first.txt")
    (tmp_path / "run" / "last.txt").write_text(last)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingError, match=r"names the initial transform 'first.txt'"):
        read_transform(tmp_path / "run" / "last.txt")


def test_an_initial_transform_taken_from_beside_is_told(tmp_path, caplog):
    (tmp_path / "first.txt").write_text(elastix_text("TranslationTransform", SHIFT))
    last = elastix_text("TranslationTransform", SHIFT, initial="/nowhere/first.txt")
    (tmp_path / "second.txt").write_text(last)
    read_transform(tmp_path / "second.txt")
    assert "names /nowhere/first.txt, which is not there" in caplog.text


def test_a_file_that_names_its_own_name_elsewhere_is_not_its_own_start(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(elastix_text("TranslationTransform", SHIFT, initial="/nowhere/t.txt"))
    with pytest.raises(MissingError, match=r"names the initial transform '/nowhere/t.txt'"):
        read_transform(path)


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


def test_fixed_grid_without_spacing(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(elastix_text("TranslationTransform", SHIFT, Spacing="0 1 1"))
    with pytest.raises(FormatError, match=r"t\.txt: the fixed grid is wrong"):
        read_fixed_grid(path)
