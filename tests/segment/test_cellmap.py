from __future__ import annotations

import numpy as np
import pytest
import zarr

from clemreg.errors import DataError, FormatError, MissingError
from clemreg.segment.cellmap import (
    find_cellmap_classes,
    find_cellmap_crops,
    open_cellmap_crop,
    open_cellmap_label,
)
from clemreg.segment.classes import Annotation
from clemreg.space.grid import Box, Grid

FINE = (12, 18, 23)  # z, y, x; 2 nm, z a little longer
CODES = {"unknown": 0, "absent": 1, "present": 2}


def write_cellmap(root, name, array, kind, encoding):
    group = zarr.open_group(str(root / name), mode="w", zarr_format=2)
    group.create_array("s0", data=array, chunks=(5, 6, 7))
    transformations = [
        {"type": "scale", "scale": [2.62, 2.0, 2.0]},
        {"type": "translation", "translation": [104.8, 200.0, 400.0]},
    ]
    axes = [{"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"]
    datasets = [{"path": "s0", "coordinateTransformations": transformations}]
    annotation = {"class_name": name, "annotation_type": {"type": kind, "encoding": encoding}}
    group.attrs.update({
        "multiscales": [{"version": "0.4", "axes": axes, "datasets": datasets}],
        "cellmap": {"annotation": annotation},
    })  # fmt: skip
    return group


@pytest.fixture
def crop(tmp_path):
    root = tmp_path / "recon-1" / "labels" / "groundtruth" / "crop234"
    group = zarr.open_group(str(root), mode="w", zarr_format=2)
    names = ["mito", "nuc"]
    group.attrs["cellmap"] = {"annotation": {"version": "0.1.1", "class_names": names}}
    rng = np.random.default_rng(1)
    semantic = rng.integers(0, 3, FINE).astype(np.uint8)
    objects = rng.choice([0, 1, 70_000], FINE).astype(np.uint32)
    write_cellmap(root, "mito", semantic, "semantic_segmentation", CODES)
    write_cellmap(root, "nuc", objects, "instance_segmentation", {"unknown": 1, "absent": 0})
    return root, semantic, objects


def test_cellmap_crops(crop):
    root, semantic, objects = crop
    assert find_cellmap_classes(root) == ("mito", "nuc")
    mito, nucleus = (open_cellmap_label(root, name) for name in ("mito", "nuc"))
    assert mito.labels.grid == Grid(FINE, (2.62, 2, 2), (104.8, 200, 400), "em")
    inside, known = mito.truth()
    np.testing.assert_array_equal(inside, semantic == 2)
    np.testing.assert_array_equal(known, semantic != 0)
    assert nucleus.instances
    inside, known = nucleus.truth(Box((1, 2, 3), (5, 6, 7)))
    part = objects[1:5, 2:6, 3:7]
    np.testing.assert_array_equal(inside, part == 70_000)
    np.testing.assert_array_equal(known, part != 1)


def test_bad_cellmap_crops(crop, tmp_path):
    root, semantic, _ = crop
    with pytest.raises(MissingError, match="no class 'golgi'") as error:
        open_cellmap_label(root, "golgi")
    assert "mito, nuc" in error.value.hint
    with pytest.raises(FormatError, match=r"no class_names"):
        find_cellmap_classes(root / "mito")
    write_cellmap(root, "er", semantic, "skeleton", {"unknown": 0})
    with pytest.raises(FormatError, match="what its values mean"):
        open_cellmap_label(root, "er")
    zarr.open_group(str(tmp_path / "plain"), mode="w", zarr_format=2)
    with pytest.raises(FormatError, match=r"no cellmap\.annotation"):
        find_cellmap_classes(tmp_path / "plain")
    with pytest.raises(MissingError, match="not a zarr group"):
        find_cellmap_classes(tmp_path / "absent")


def test_classes_by_their_own_array_or_by_their_parts(crop):
    root, semantic, _ = crop
    rng = np.random.default_rng(2)
    parts = {
        name: rng.choice([0, 1, 2], FINE, p=(0.1, 0.6, 0.3)).astype(np.uint8)
        for name in ("ld_mem", "ld_lum", "golgi_mem")
    }
    for name, array in parts.items():
        write_cellmap(root, name, array, "semantic_segmentation", CODES)
    group = zarr.open_group(str(root), mode="a", zarr_format=2)
    names = ["mito", "nuc", "perox", *parts]
    group.attrs["cellmap"] = {"annotation": {"class_names": names}}
    opened = open_cellmap_crop(root)
    assert set(opened.labels) == {"mito", "nucleus", "LD", "LD_membrane", "golgi_membrane"}
    inside, known, grid = opened.truth("ld", (1, 2, 2))
    membrane, lumen = (parts[n][:, ::2, ::2] for n in ("ld_mem", "ld_lum"))
    np.testing.assert_array_equal(inside, (membrane == 2) | (lumen == 2))
    np.testing.assert_array_equal(known, inside | ((membrane > 0) & (lumen > 0)))
    assert grid == Grid((12, 9, 12), (2.62, 4, 4), (104.8, 201, 401), "em")
    only = open_cellmap_crop(root, ("mito", "ld-mem"))
    assert set(only.labels) == {"mito", "LD_membrane"}
    np.testing.assert_array_equal(only.truth("mito", (1, 1, 1))[0], semantic == 2)
    with pytest.raises(MissingError, match="no class golgi and not all of its parts"):
        open_cellmap_crop(root, ("golgi",))
    with pytest.raises(DataError, match="nobody annotated er here"):
        opened.truth("er")
    group.attrs["cellmap"] = {"annotation": {"class_names": ["perox"]}}
    with pytest.raises(MissingError, match="none of the paper's classes"):
        open_cellmap_crop(root)


def test_present_absent_and_unknown_are_kept_apart(crop):
    root, _, _ = crop
    one = np.ones(FINE, np.uint8)
    one[0, 0] = 0
    arrays = {"ecs": one, "pm": 0 * one, "mito_mem": np.where(one, 2, 0).astype(np.uint8)}
    for name, array in arrays.items():
        write_cellmap(root, name, array, "semantic_segmentation", CODES)
    group = zarr.open_group(str(root), mode="a", zarr_format=2)
    group.attrs["cellmap"] = {"annotation": {"class_names": list(arrays)}}
    opened = open_cellmap_crop(root)
    states = {name: opened.of(name) for name in ("ecs", "pm", "mito-mem", "er")}
    assert states == {
        "ecs": Annotation.ABSENT, "pm": Annotation.UNKNOWN, "mito-mem": Annotation.PRESENT,
        "er": Annotation.UNKNOWN,
    }  # fmt: skip


def test_crops_of_a_sample_by_number(crop, tmp_path):
    root, _, _ = crop
    for name in ("crop9", "crop1000", "cropped"):
        (root.parent / name).mkdir()
    assert find_cellmap_crops(root.parent) == ("crop9", "crop234", "crop1000")
    with pytest.raises(MissingError, match="holds no crops"):
        find_cellmap_crops(tmp_path / "none")
