from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
from scipy.ndimage import distance_transform_edt, gaussian_filter, label

from clemreg.cli.app import run_app
from clemreg.evaluate.scores import METRICS
from clemreg.io.quantise import quantise
from clemreg.io.volumes import WriteOptions, create_volume, write_volume
from clemreg.space.grid import Box, Grid
from clemreg.testing import hostile_grid
from clemreg.volume import Volume

GRID = hostile_grid("em")
XYZ = "4, 4, 5.24 nm"


def blob(seed: int, shape=GRID.shape, share=0.3) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).random(shape), 1.5)
    return noise > np.quantile(noise, 1 - share)


def dice(p, t) -> float:
    return 2 * (p & t).sum() / (p.sum() + t.sum())


def run_score(tmp_path, *arguments) -> dict:
    out = tmp_path / "score.json"
    assert run_app(["score", *map(str, arguments), "--json", str(out)]) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize("value", [1, 255, 3])
def test_masks_in_tiff(tmp_path, value):
    p, t = blob(1), blob(2)
    tifffile.imwrite(tmp_path / "p.tif", (p * value).astype(np.uint8))
    tifffile.imwrite(tmp_path / "t.tif", t.astype(np.uint16) * 999)
    files = tmp_path / "p.tif", tmp_path / "t.tif"
    found = run_score(tmp_path, *files, "--voxel-size", XYZ)
    assert tuple(found) == METRICS
    assert found["dice"] == pytest.approx(dice(p, t))
    positive = distance_transform_edt(~t, sampling=(5.24, 4, 4))[p]
    assert found["mean_false_positive_distance"] == pytest.approx(positive.mean(), rel=1e-6)
    one = run_score(
        tmp_path, *files, "--spacing", XYZ, "--metric", "precision_with_tolerance",
        "--metric", "mean_false_positive_distance_clipped", "--tolerance", "6 nm", "--clip", "7 nm",
    )  # fmt: skip
    assert list(one) == ["precision_with_tolerance", "mean_false_positive_distance_clipped"]
    clipped = positive.clip(max=7).mean()
    assert one["mean_false_positive_distance_clipped"] == pytest.approx(clipped, rel=1e-6)


def test_prediction_as_written_by_segment_against_a_mask_without_voxel_size(tmp_path):
    x = np.stack([np.tanh(gaussian_filter(np.random.default_rng(i).normal(size=GRID.shape), 1) * 3)
                  for i in (1, 2)])  # fmt: skip
    options = WriteOptions(chunk=(8, 8, 8), levels=1)
    out = tmp_path / "p.zarr"
    names = ("mito", "mito_mem")
    with create_volume(out, GRID, np.uint8, channels=names, options=options) as writer:
        writer[GRID.box] = quantise(x)
    t = blob(2)
    np_t = tmp_path / "t.tif"
    tifffile.imwrite(np_t, t.astype(np.uint8))
    found = run_score(tmp_path, out, np_t, "--channel", "mito_mem", "--metric", "dice")
    assert found == {"dice": pytest.approx(dice(quantise(x[1]) >= 127, t))}
    higher = run_score(
        tmp_path, out, np_t, "--channel", "mito", "--metric", "dice", "--threshold", "140"
    )
    assert higher == {"dice": pytest.approx(dice(quantise(x[0]) >= 140, t))}


def crop_and_prediction(tmp_path):
    """COSEM ids in 2 nm voxels, 0 where nobody looked; and a prediction of a larger region."""
    fine = Grid((14, 18, 22), (2.62, 2.0, 2.0), (310.48, -192.0, 82.0), "em")
    ids = np.random.default_rng(0).choice([0, 3, 4, 35], fine.shape, p=[0.3, 0.2, 0.2, 0.3])
    write_volume(tmp_path / "ids.zarr", Volume(ids.astype(np.uint64), fine))
    p = blob(3)
    write_volume(tmp_path / "p.zarr", Volume(p.astype(np.uint8) * 255, GRID))
    box = Box((2, 2, 3), (9, 11, 14))  # 310.48 = 300 + 2 * 5.24, and so on
    return tmp_path / "p.zarr", tmp_path / "ids.zarr", p[box.slices], ids[::2, ::2, ::2]


def test_cosem_ids_leave_out_what_nobody_annotated(tmp_path):
    prediction, truth, p, ids = crop_and_prediction(tmp_path)
    t, known = np.isin(ids, (3, 4, 5)), ids > 0
    found = run_score(tmp_path, prediction, truth, "--label", "mito")
    assert found["dice"] == pytest.approx(dice(p & known, t))
    paper = run_score(tmp_path, prediction, truth, "--label", "mito", "--unannotated", "background")
    assert paper["dice"] == pytest.approx(dice(p, t))
    assert paper["dice"] < found["dice"]


def test_ribosomes_are_grown(tmp_path):
    prediction, truth, p, ids = crop_and_prediction(tmp_path)
    fine = Grid((14, 18, 22), (2.62, 2.0, 2.0), (310.48, -192.0, 82.0), "em")
    points = np.zeros(fine.shape, np.uint64)
    points[[3, 9], [4, 13], [5, 18]] = 34
    write_volume(tmp_path / "ribo.zarr", Volume(points, fine))
    t = (distance_transform_edt(points == 0, sampling=fine.spacing_nm) <= 8)[::2, ::2, ::2]
    found = run_score(
        tmp_path, prediction, tmp_path / "ribo.zarr", "--label", "ribo", "--annotated", truth
    )
    known = ids > 0
    assert found["dice"] == pytest.approx(dice(p & known, t & known))


def test_a_mask_says_what_is_annotated(tmp_path):
    p, t, known = blob(1), blob(2), blob(3, share=0.6)
    for name, mask in (("p", p), ("t", t), ("known", known)):
        tifffile.imwrite(tmp_path / f"{name}.tif", mask.astype(np.uint8))
    found = run_score(
        tmp_path, tmp_path / "p.tif", tmp_path / "t.tif", "--voxel-size", XYZ,
        "--annotated", tmp_path / "known.tif",
    )  # fmt: skip
    assert found["dice"] == pytest.approx(dice(p & known, t & known))


def test_objects(tmp_path):
    t = label(blob(1))[0]
    p = np.roll(t, 1, axis=2)
    for name, ids in (("p", p), ("t", t)):
        write_volume(tmp_path / f"{name}.zarr", Volume(ids.astype(np.uint32) * 70_000, GRID))
    found = run_score(tmp_path, tmp_path / "p.zarr", tmp_path / "t.zarr", "--instances")
    assert found["true_objects"] == t.max()
    assert 0 < found["instance_f1"] < 1
    assert found["dice"] == pytest.approx(dice(p > 0, t > 0))


def test_empty_masks_give_null(tmp_path):
    for name in "pt":
        tifffile.imwrite(tmp_path / f"{name}.tif", np.zeros(GRID.shape, np.uint8))
    found = run_score(tmp_path, tmp_path / "p.tif", tmp_path / "t.tif", "--voxel-size", XYZ)
    assert found["dice"] is None
    assert found["hausdorff"] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["p.tif", "t.tif"], 1, "does not say its voxel size"),
        (["p.tif", "short.tif", "--voxel-size", XYZ], 1, "prediction"),
        (["p.tif", "t.tif", "--voxel-size", XYZ, "--metric", "iou"], 1, "no metric 'iou'"),
        (["p.tif", "t.tif", "--voxel-size", XYZ, "--label", "mitos"], 1, "no class 'mitos'"),
        (
            ["p.tif", "t.tif", "--voxel-size", XYZ, "--label", "ribo"],
            1,
            "--annotated CROP/labels/all",
        ),
        (["f.tif", "t.tif", "--voxel-size", XYZ], 1, "--threshold 0.5"),
        (["f.tif", "t.tif", "--voxel-size", XYZ, "--instances", "--threshold", "1"], 1, "float32"),
        (["two.zarr", "t.tif"], 1, "--channel a"),
        (["p.tif", "t.tif", "--voxel-size", XYZ, "--unannotated", "yes"], 2, "neither leave-out"),
        (["absent.tif", "t.tif"], 1, "absent.tif"),
    ],
)
def test_mistakes_are_explained(tmp_path, monkeypatch, capsys, arguments, code, text):
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("p.tif", blob(1).astype(np.uint8))
    tifffile.imwrite("t.tif", blob(2).astype(np.uint8))
    tifffile.imwrite("short.tif", np.zeros((30, 17, 23), np.uint8))
    tifffile.imwrite("f.tif", blob(2).astype(np.float32))
    channels = ("a", "b")
    with create_volume("two.zarr", GRID, np.uint8, channels=channels) as writer:
        writer[GRID.box] = np.zeros((2, *GRID.shape))
    assert run_app(["score", *arguments]) == code
    assert text in capsys.readouterr().err


def test_the_given_voxel_size_is_for_files_that_have_none(tmp_path):
    """The truth does not say its voxels, a half of the prediction's, and is a part of it."""
    coarse = Grid((11, 17, 23), (10.48, 8.0, 8.0), (2.62, 2.0, 2.0), "em")
    p = blob(4)
    write_volume(tmp_path / "p.zarr", Volume(p.astype(np.uint8), coarse))
    t = blob(5, (14, 18, 22))
    tifffile.imwrite(tmp_path / "t.tif", t.astype(np.uint8))
    em = np.zeros(t.shape, np.uint8)
    tifffile.imwrite(tmp_path / "em.tif", em)
    files = tmp_path / "p.zarr", tmp_path / "t.tif"
    page = "--em", tmp_path / "em.tif", "--report", tmp_path / "r.html"
    found = run_score(tmp_path, *files, "--voxel-size", XYZ, "--metric", "dice", *page)
    assert found["dice"] == pytest.approx(dice(p[:7, :9, :11], t[::2, ::2, ::2]))


def test_as_many_voxels_of_twice_the_size_are_not_the_same_voxels(tmp_path, capsys):
    other = Grid(GRID.shape, tuple(2 * s for s in GRID.spacing_nm), GRID.origin_nm, "em")
    write_volume(tmp_path / "p.zarr", Volume(blob(1).astype(np.uint8), GRID))
    write_volume(tmp_path / "t.zarr", Volume(blob(2).astype(np.uint8), other))
    assert run_app(["score", str(tmp_path / "p.zarr"), str(tmp_path / "t.zarr")]) == 1
    assert "do not divide" in capsys.readouterr().err


KNOWN_GRIDS = {
    "as the truth": (GRID, (0, 0, 0)),
    "finer": (
        Grid((22, 34, 46), (2.62, 2.0, 2.0), (298.69, -201.0, 69.0), "em"),
        (0, 0, 0),
    ),
    "larger": (
        Grid((14, 21, 24), GRID.spacing_nm, (289.52, -208.0, 66.0), "em"),
        (2, 2, 1),
    ),
    "without origin": (Grid(GRID.shape, GRID.spacing_nm, (0.0, 0.0, 0.0), "em"), (0, 0, 0)),
}


@pytest.mark.parametrize("kind", KNOWN_GRIDS)
def test_a_mask_of_what_is_known_lies_where_it_says(tmp_path, kind):
    grid, first = KNOWN_GRIDS[kind]
    p, t, known = blob(1), blob(2), blob(3, grid.shape, share=0.6)
    for name, mask, on in (("p", p, GRID), ("t", t, GRID), ("known", known, grid)):
        write_volume(tmp_path / f"{name}.zarr", Volume(mask.astype(np.uint8), on))
    files = [tmp_path / f"{name}.zarr" for name in ("p", "t", "known")]
    step = 2 if kind == "finer" else 1
    where = tuple(slice(a, a + n * step, step) for a, n in zip(first, GRID.shape, strict=True))
    k = known[where]
    found = run_score(tmp_path, *files[:2], "--annotated", files[2], "--metric", "dice")
    assert found["dice"] == pytest.approx(dice(p & k, t & k))


@pytest.mark.parametrize(
    ("shape", "spacing", "text"),
    [
        ((11, 17, 23), (10.48, 8.0, 8.0), "do not divide"),
        ((11, 17, 22), None, "does not say its voxel size"),
    ],
)
def test_a_mask_whose_place_is_not_known_is_refused(tmp_path, capsys, shape, spacing, text):
    """As many voxels of twice the size lie elsewhere."""
    for name, seed in (("p", 1), ("t", 2)):
        write_volume(tmp_path / f"{name}.zarr", Volume(blob(seed).astype(np.uint8), GRID))
    known = tmp_path / ("known.zarr" if spacing else "known.tif")
    if spacing:
        write_volume(known, Volume(np.ones(shape, np.uint8), Grid(shape, spacing, GRID.origin_nm)))
    else:
        tifffile.imwrite(known, np.ones(shape, np.uint8))
    files = [str(tmp_path / f"{name}.zarr") for name in "pt"]
    assert run_app(["score", *files, "--annotated", str(known)]) == 1
    assert text in capsys.readouterr().err


def test_a_few_objects_in_uint8_are_no_signed_distance(tmp_path, capsys):
    t = label(blob(1))[0]
    p = np.roll(t, 1, axis=2)
    assert 3 < t.max() < 127
    for name, ids in (("p", p), ("t", t)):
        write_volume(tmp_path / f"{name}.zarr", Volume(ids.astype(np.uint8), GRID))
    files = tmp_path / "p.zarr", tmp_path / "t.zarr"
    assert run_app(["score", *map(str, files)]) == 1
    assert "--threshold 1 for a mask or objects" in capsys.readouterr().err
    expected = {"dice": pytest.approx(dice(p > 0, t > 0))}
    assert run_score(tmp_path, *files, "--metric", "dice", "--threshold", "1") == expected
    objects = run_score(tmp_path, *files, "--metric", "dice", "--instances")
    assert objects["true_objects"] == t.max()
    assert objects["dice"] == expected["dice"]


def test_many_objects_in_uint8_are_objects_if_that_is_said(tmp_path):
    t = label(blob(1))[0]
    ids = np.where(t, 90 + 20 * (t % 7), 0).astype(np.uint8)  # on both sides of 127
    for name in "pt":
        write_volume(tmp_path / f"{name}.zarr", Volume(ids, GRID))
    files = tmp_path / "p.zarr", tmp_path / "t.zarr"
    assert run_score(tmp_path, *files, "--metric", "dice", "--instances")["dice"] == 1


@pytest.mark.parametrize("values", [(0, 2), (0, 1, 40), (3,)])
def test_a_class_in_which_nothing_was_found_has_no_foreground(tmp_path, values):
    """As `clemreg segment` writes it: all voxels lie far outside."""
    pixels = np.random.default_rng(3).choice(values, (2, *GRID.shape)).astype(np.uint8)
    write_volume(tmp_path / "p.zarr", Volume(pixels, GRID, ("mito", "mito_mem")))
    write_volume(tmp_path / "t.zarr", Volume(blob(2).astype(np.uint8), GRID))
    files = tmp_path / "p.zarr", tmp_path / "t.zarr"
    found = run_score(tmp_path, *files, "--channel", "mito_mem")
    assert found["dice"] == 0
    assert found["recall"] is None


def test_a_class_of_0_and_1_may_be_either(tmp_path, capsys):
    p, t = blob(1), blob(2)
    write_volume(tmp_path / "p.zarr", Volume(p[None].astype(np.uint8), GRID, ("mito",)))
    write_volume(tmp_path / "t.zarr", Volume(t.astype(np.uint8), GRID))
    files = [str(tmp_path / f"{name}.zarr") for name in "pt"]
    assert run_app(["score", *files]) == 1
    assert "a mask or objects, or a signed distance" in capsys.readouterr().err
    found = run_score(tmp_path, *files, "--threshold", "1", "--metric", "dice")
    assert found["dice"] == pytest.approx(dice(p, t))


def nearest(truth: Grid, places_nm: np.ndarray) -> np.ndarray:
    """Voxel of the truth nearest to each place along z, by brute force; -1 beyond its ends.

    Of two as near it is the lower.
    """
    centres = truth.origin_nm[0] + np.arange(truth.shape[0]) * truth.spacing_nm[0]
    apart = np.abs(centres[None] - (places_nm[:, None] - 1e-3))
    inside = apart.min(axis=1) <= truth.spacing_nm[0] / 2
    return np.where(inside, apart.argmin(axis=1), -1)


@pytest.mark.parametrize("shift", [-0.5, -0.4, -0.3, 0.0, 0.3, 0.4, 0.45, 0.5, 1.5])
@pytest.mark.parametrize("step", [1, 3])
def test_a_truth_beside_the_voxels_of_the_prediction_is_scored(tmp_path, step, shift):
    """Shifted by parts of its voxel along z, inside the prediction: the nearest voxels count."""
    z = GRID.spacing_nm[0] / step
    origin = (300 + 2 * 5.24 - (step - 1) / 2 * z + shift * z, -200.0, 70.0)
    fine = Grid((7 * step, 17, 23), (z, 4.0, 4.0), origin, "em")
    p, t = blob(1), blob(2, fine.shape)
    write_volume(tmp_path / "p.zarr", Volume(p.astype(np.uint8), GRID))
    write_volume(tmp_path / "t.zarr", Volume(t.astype(np.uint8), fine))
    found = run_score(tmp_path, tmp_path / "p.zarr", tmp_path / "t.zarr", "--metric", "dice")
    rows = nearest(fine, 300 + 5.24 * np.arange(11))
    on = rows >= 0
    assert found["dice"] == pytest.approx(dice(p[on], t[rows[on]]))


@pytest.mark.parametrize("rest", [0, 1, 2])
def test_a_finer_truth_ends_anywhere_in_a_voxel(tmp_path, rest):
    """As 61 voxels of 2 nm from the edge of one of 6 nm on: the last is not the middle of one."""
    fine = Grid((15 + rest, 17, 23), (5.24 / 3, 4.0, 4.0), (300 + 5.24 * 5 / 3, -200, 70), "em")
    p, t = blob(1), blob(2, fine.shape)
    write_volume(tmp_path / "p.zarr", Volume(p.astype(np.uint8), GRID))
    write_volume(tmp_path / "t.zarr", Volume(t.astype(np.uint8), fine))
    found = run_score(tmp_path, tmp_path / "p.zarr", tmp_path / "t.zarr", "--metric", "dice")
    middles = t[1::3]
    assert found["dice"] == pytest.approx(dice(p[2 : 2 + len(middles)], middles))
