from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tensorstore
from scipy.ndimage import distance_transform_edt

from clemreg.errors import ConfigError, DataError, FormatError, MissingError
from clemreg.segment.classes import AnnotatedIds, Annotation
from clemreg.segment.groundtruth import (
    annotated_ids,
    contrast_limits,
    find_cosem_crops,
    open_cosem_crop,
    open_cosem_raw,
    subsample,
)
from clemreg.segment.sdt import crop_targets
from clemreg.space.grid import Box, Grid
from clemreg.volume import Volume

FINE = (12, 18, 23)  # z, y, x; 2 nm, z a little longer
LOOKED = AnnotatedIds(frozenset({3, 4, 30, 36, 35, 34}), frozenset({5, 14, 15}))


def write_n5(root, inner, array, resolution, offset, **more):
    """Write (z, y, x) as published: axes x, y, z, attributes in x, y, z and nm."""
    spec = {
        "driver": "n5",
        "kvstore": {"driver": "file", "path": str(root / inner)},
        "metadata": {
            "dimensions": list(array.shape[::-1]),
            "blockSize": [8, 7, 5],
            "dataType": array.dtype.name,
            "compression": {"type": "gzip"},
        },
    }
    tensorstore.open(spec, create=True).result().write(array.T).result()
    path = root / inner / "attributes.json"
    own = json.loads(path.read_text()) | {"resolution": resolution, "offset": offset} | more
    path.write_text(json.dumps(own))


@pytest.fixture(scope="module")
def container(tmp_path_factory):
    root = tmp_path_factory.mktemp("cosem") / "jrc_hela-2.n5"
    rng = np.random.default_rng(0)
    ids = rng.choice([3, 4, 30, 36, 35], FINE).astype(np.uint64)
    ids[:, :4] = 0
    ribosomes = np.zeros(FINE, np.uint64)
    ribosomes[[3, 7], [9, 14], [5, 20]] = 34
    where = [400.0, 200.0, 104.8]
    crop = "volumes/groundtruth/0003/crop9"
    write_n5(root, f"{crop}/labels/all", ids, [2.0, 2.0, 2.62], where)
    write_n5(root, f"{crop}/labels/ribosomes", ribosomes, [2.0, 2.0, 2.62], where)
    mask = np.ones(FINE, np.uint8)
    mask[:, :, :6] = 0
    write_n5(root, f"{crop}/masks/mito", mask, [2.0, 2.0, 2.62], where)
    other = "volumes/groundtruth/0003/crop13"
    write_n5(root, f"{other}/labels/all", ids[:6], [2.0, 2.0, 2.62], where)
    write_n5(root, f"{other}/labels/nucleolus", ids[:5], [2.0, 2.0, 2.62], where)
    raw = rng.integers(0, 65535, (9, 11, 14)).astype(np.uint16)
    write_n5(root, "volumes/raw/s0", raw, [4.0, 4.0, 5.24], [0, 8.0, 0],
             contrastAdjustment={"min": 30_000, "max": 40_000})  # fmt: skip
    write_n5(root, "volumes/raw/s1", raw[::2, ::2, ::2], [8.0, 8.0, 10.48], [0.0, 8.0, 0.0])
    phase = raw[0::2, 1::2, 1::2]
    write_n5(root, "volumes/subsampled/raw/3", phase, [8.0, 8.0, 10.48], [0.0, 8.0, 0.0])
    return root, ids, ribosomes, raw


def test_labels_in_z_y_x_with_their_place(container):
    root, ids, ribosomes, _ = container
    assert find_cosem_crops(root) == ("crop9", "crop13")
    crop = open_cosem_crop(root, "crop9", LOOKED)
    assert crop.grid == Grid(FINE, (2.62, 2, 2), (104.8 - 1.31, 199, 399), "em")
    box = Box((2, 3, 5), (9, 17, 22))
    sets = crop.read(box)
    assert set(sets) == {"all", "ribosomes"}
    np.testing.assert_array_equal(sets["all"], ids[box.slices])
    np.testing.assert_array_equal(sets["ribosomes"], ribosomes[box.slices])
    target, known = crop_targets(sets, LOOKED, crop.grid.spacing_nm, ("mito", "ribo", "golgi"))
    assert target.shape == (3, 4, 7, 9)
    assert known.any(axis=(1, 2, 3)).tolist() == [True, True, False]


def test_truth_of_a_class(container):
    root, ids, ribosomes, _ = container
    crop = open_cosem_crop(root, "crop9", LOOKED)
    mask, known, grid = crop.truth("mito")
    np.testing.assert_array_equal(mask, np.isin(ids, (3, 4, 5))[::2, ::2, ::2])
    expected = ids > 0
    expected[:, :, :6] = False  # masks/mito
    np.testing.assert_array_equal(known, expected[::2, ::2, ::2])
    assert grid.spacing_nm == (5.24, 4, 4)
    assert grid.shape == mask.shape == (6, 9, 12)
    assert grid.origin_nm == pytest.approx((104.8, 200, 400))
    grown, known, _ = crop.truth("ribo")
    distance = distance_transform_edt(ribosomes == 0, sampling=(2.62, 2, 2))
    np.testing.assert_array_equal(grown, (distance <= 8)[::2, ::2, ::2])
    np.testing.assert_array_equal(known, (ids > 0)[::2, ::2, ::2])
    absent, known, _ = crop.truth("LD")
    assert not absent.any()
    assert known.any()
    assert crop.of("LD") is Annotation.ABSENT
    with pytest.raises(DataError, match="nobody annotated golgi"):
        crop.truth("golgi")


def test_a_mask_may_have_the_voxels_of_the_em(container, tmp_path):
    """The paper's training read masks of single labels at 4 nm, from the corner of the crop."""
    _, ids, *_ = container
    crop = "volumes/groundtruth/0003/crop1"
    where = [400.0, 200.0, 104.8]
    raw = np.zeros((2, 2, 2), np.uint8)
    write_n5(tmp_path, "volumes/raw/s0", raw, [4.0, 4.0, 5.24], [0, 0, 0])
    write_n5(tmp_path, f"{crop}/labels/all", ids, [2.0, 2.0, 2.62], where)
    mask = np.random.default_rng(5).integers(0, 2, (6, 9, 12)).astype(np.uint8)
    write_n5(tmp_path, f"{crop}/masks/mito", mask, [4.0, 4.0, 5.24], where)
    opened = open_cosem_crop(tmp_path, "crop1", LOOKED)
    fine = mask.repeat(2, 0).repeat(2, 1).repeat(2, 2)[:, :, :23]
    np.testing.assert_array_equal(opened.masks["mito"].read(), fine)
    box = Box((3, 4, 7), (10, 17, 22))
    np.testing.assert_array_equal(opened.masks["mito"].read(box), fine[box.slices])
    _, known, _ = opened.truth("mito")
    np.testing.assert_array_equal(known, ((ids > 0) & (fine > 0))[::2, ::2, ::2])
    for shape, offset in (((5, 9, 12), where), ((6, 9, 12), [404.0, 200.0, 104.8])):
        write_n5(tmp_path, f"{crop}/masks/er", np.ones(shape, np.uint8), [4.0, 4.0, 5.24], offset)
        with pytest.raises(FormatError, match="er lies on"):
            open_cosem_crop(tmp_path, "crop1", LOOKED)
        shutil.rmtree(tmp_path / crop / "masks/er")


def test_what_a_crop_alone_says_is_present_only(container):
    root, *_ = container
    crop = open_cosem_crop(root, "crop9")
    assert crop.ids == AnnotatedIds(frozenset({3, 4, 30, 34, 35, 36}))
    assert crop.of("microtubules") is Annotation.PRESENT
    assert crop.of("mito") is Annotation.UNKNOWN  # id 5 does not occur: absent or not looked for?


def test_bad_crops(container, tmp_path):
    root, *_ = container
    with pytest.raises(MissingError, match=r"crop7 is not there") as error:
        open_cosem_crop(root, "crop7")
    assert "crop9, crop13" in error.value.hint
    with pytest.raises(FormatError, match="nucleolus lies on"):
        open_cosem_crop(root, "crop13")
    with pytest.raises(MissingError, match="no crops"):
        find_cosem_crops(tmp_path)


def test_documents_of_the_crop_database():
    document = {
        "number": "9",
        "labels": {
            "present_annotated": [[3], [4], [30, 36], [35]], "absent_annotated": [[5], [14, 15]],
            "present_unannotated": [[16]], "present_partial_annotation": [[1]],
        },
    }  # fmt: skip
    ids = annotated_ids(document)
    assert ids == AnnotatedIds(frozenset({3, 4, 30, 36, 35}), frozenset({5, 14, 15}))
    for wrong in ({}, {"labels": {}}, {"labels": {"present_annotated": [["mito"]]}}):
        with pytest.raises(FormatError, match="crop"):
            annotated_ids(wrong)


def test_raw_its_average_and_a_phase(container):
    root, _, _, raw = container
    em = open_cosem_raw(root)
    np.testing.assert_array_equal(em.read(), raw)
    assert em.grid.spacing_nm == (5.24, 4, 4)
    assert em.grid.origin_nm == (0, 8, 0)
    assert open_cosem_raw(root, level=1).grid.origin_nm == (2.62, 10, 2)
    assert contrast_limits(root) == (30_000, 40_000)
    stored, made = open_cosem_raw(root, 3), subsample(em, 3)
    np.testing.assert_array_equal(made.read(), stored.read())
    # As published, all eight begin with the EM: each stands for voxels of 8 nm.
    assert stored.grid.origin_nm == (2.62, 10, 2)
    assert made.grid.origin_nm == (0, 12, 4)
    with pytest.raises(ConfigError, match="not 8"):
        open_cosem_raw(root, 8)
    with pytest.raises(MissingError):
        open_cosem_raw(root, 4)


def test_eight_phases_hold_every_voxel_once():
    grid = Grid((5, 6, 7), (5.24, 4, 4), (300.0, -200.0, 70.0), "em")
    values = np.arange(grid.size).reshape(grid.shape)
    em = Volume(values, grid)
    seen = []
    for phase in range(8):
        part = subsample(em, phase)
        seen += part.read().ravel().tolist()
        box = Box((0, 1, 0), (2, 2, 2))
        where = grid.to_index(part.grid.points_nm(box)).round().astype(int)
        np.testing.assert_array_equal(part.read(box), values[tuple(np.moveaxis(where, -1, 0))])
        np.testing.assert_array_equal(part.read()[box.slices], part.read(box))
    assert sorted(seen) == values.ravel().tolist()
    with pytest.raises(DataError, match="no phase 4"):
        subsample(Volume(values[:1], Grid((1, 6, 7), (4, 4, 4))), 4)
    with pytest.raises(ConfigError, match="not -1"):
        subsample(em, -1)


def test_contrast_must_be_said(tmp_path):
    write_n5(tmp_path, "volumes/raw/s0", np.zeros((2, 3, 4), np.uint8), [4, 4, 4], [0, 0, 0])
    with pytest.raises(FormatError, match="no contrastAdjustment"):
        contrast_limits(tmp_path)
    path = tmp_path / "volumes/raw/s0/attributes.json"
    own = json.loads(path.read_text()) | {"contrastAdjustment": {"min": 3, "max": 3}}
    path.write_text(json.dumps(own))
    with pytest.raises(FormatError, match="no range"):
        contrast_limits(tmp_path)
